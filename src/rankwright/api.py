"""The same verbs in Python: run an experiment, check one, or call a room with values of your own.

    import rankwright as rw

    result = rw.run("demo", overrides=["mine.negatives=3"])
    print(result.table["rows"])

The command line is written on top of this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankwright import config
from rankwright.boxes import refuse_missing_split, refuse_search_without_dev
from rankwright.core import Collection, Group
from rankwright.errors import ConfigError, DataError
from rankwright.forecast import Work, forecast
from rankwright.pipeline import Outcome, Walk
from rankwright.pipeline.answering import refuse_unmeasured
from rankwright.pipeline.preflight import Preflight
from rankwright.rooms.data import DataReport, data
from rankwright.rooms.diagnose import Case, Diagnosis, diagnose
from rankwright.rooms.merge import MergeReport, merge
from rankwright.rooms.score import Options, Scored, score
from rankwright.sections import NAME, Experiment, MergeSection
from rankwright.toolbox import probe, progress
from rankwright.toolbox.formats import Splits, flag, read, trec
from rankwright.toolbox.formats.files import written_whole
from rankwright.toolbox.metrics import measure_name
from rankwright.toolbox.ragtable import RagTable
from rankwright.toolbox.table import Table
from rankwright.toolbox.weights import locate


@dataclass(frozen=True)
class Result:
    """What a walk came to: its folder, what became of each stage, and the table if it was reached."""

    folder: Path
    outcomes: list[Outcome]
    table: Table | None
    verdict: Mapping[str, Any] | None = None
    """word, slug (ship, blend, keep, inconclusive), lines and numbers, if the walk came to a verdict"""
    rag: RagTable | None = None
    """the context metrics and a judge's of every column, if there is a rag section"""

    @property
    def report(self) -> Path | None:
        """The report's page, if there is one."""
        page = self.folder / "report" / "index.html"
        return page if page.exists() else None


@dataclass(frozen=True)
class Checked:
    """What a check found: the data, and the work that a run would be."""

    experiment: Experiment
    data: DataReport
    work: list[Work]


def shipped() -> list[str]:
    """The names of the experiments that come with rankwright."""
    return sorted(
        file.name.removesuffix(".yaml") for file in _shipped_folder().iterdir() if file.name.endswith(".yaml")
    )


def load(experiment: str | Path, overrides: Sequence[str] = ()) -> tuple[Experiment, str]:
    """An experiment by its file, its run folder, or the name of a shipped one; and the file's text.

    Raises:
        ConfigError: neither; or the file cannot be understood.
    """
    path = Path(experiment)
    if is_run_folder(path):  # by whatever name: it may have been moved, or copied
        found, text = load(path / "resolved.yaml", overrides)
        if any(override.partition("=")[0].strip() == "name" for override in overrides):
            return found, text
        name = path.resolve().name
        if not re.fullmatch(NAME, name):
            hint = "rename the folder: letters, digits, dots, underscores and hyphens"
            raise ConfigError(f"{name!r} cannot be the name of a run", where=str(path), hint=hint)
        return found.model_copy(update={"name": name}), text
    if not path.exists() and path.parent == Path():
        there = _shipped_folder() / f"{path.name.removesuffix('.yaml')}.yaml"
        if not there.is_file():
            raise ConfigError(
                f"no experiment file {str(experiment)!r}",
                hint=f"rankwright init DATA writes one; shipped with rankwright: {', '.join(shipped())}",
            )
        with resources.as_file(there) as path:
            return config.load_experiment(path, overrides), path.read_text(encoding="utf-8")
    return config.load_experiment(path, overrides), path.read_text(encoding="utf-8-sig")


def run(
    experiment: str | Path | Experiment | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    until: str | None = None,
    quiet: bool = True,
) -> Result:
    """Walk an experiment, up to the room `until` or to the end; reuse what is done, go on with what was stopped.

    `experiment` is a file, the name of a shipped one, an Experiment, or plain values.

    Raises:
        RankwrightError: of any kind. What was done before stays.
    """
    walk, source = _walk(experiment, overrides, runs)
    with progress.silenced(quiet):
        outcomes = walk.run(until, source=source)
    reached = {outcome.stage for outcome in outcomes}
    table = walk.boxes.table() if "evaluate" in reached else None
    return Result(
        walk.folder.root,
        outcomes,
        table,
        walk.boxes.values("verdict", "verdict.json") if "verdict" in reached else None,
        walk.boxes.values("rag", "rag.json") if "rag" in reached else None,
    )


def dry_run(
    experiment: str | Path, *, overrides: Sequence[str] = (), runs: str | Path = "runs", until: str | None = None
) -> list[Outcome]:
    """What `run` would do with each stage; nothing is written.

    Raises:
        ConfigError: the experiment cannot be understood.
    """
    return _walk(experiment, overrides, runs)[0].dry_run(until)


def is_run_folder(place: str | Path) -> bool:
    """Whether a folder holds a run."""
    return (Path(place) / "resolved.yaml").is_file()


def diagnose_files(
    candidates: str | Path,
    reranked: str | Path,
    qrels: str | Path,
    *,
    texts: tuple[str | Path | None, str | Path | None] = (None, None),
    depth: int | None = None,
    metric: str = "ndcg@10",
) -> Diagnosis:
    """Diagnose anybody's runs, with no model: TREC runs of the retriever and the reranker, and qrels.

    `texts` are the files of queries and corpus (TSV or JSONL), for the checks that read texts. `depth` candidates count
    as reranked (default: all).

    Raises:
        DataError: files that cannot be read, a document twice, NaN scores; runs and qrels that share no query.
    """
    before, after = trec.read_run(candidates), trec.read_run(reranked)
    judged = trec.read_qrels(qrels)
    queries, documents = (trec.read_texts(path) if path else {} for path in texts)
    widest = max((len(hits) for hits in before.rankings.values()), default=1)
    measure_name(metric)
    return diagnose(
        Case(
            retrieved=before,
            reranked=after,
            qrels=judged,
            depth=depth or widest,
            metric=metric,
            collection=Collection(documents, queries, {"test": judged}),
        )
    )


def export_rag(run: str | Path, out: str | Path, arm: str | None = None) -> list[Path]:
    """Write what each arm of a measured run folder would send to a language model, as rows for any version of ragas.

    JSONL with user_input, retrieved_contexts, retrieved_context_ids, reference_contexts, reference_context_ids,
    response and reference. With an `arm`, `out` is a file; without, a folder that gets a file for each arm.

    Raises:
        ConfigError: no such run folder, or no such arm.
        ArtefactError: the run folder has no table yet.
        DataError: a text is missing.
    """
    folder = Path(run)
    if not is_run_folder(folder):
        raise ConfigError(f"{str(run)!r} is no run folder", hint="rankwright rag export runs/NAME --out DIR")
    walk = Walk(load(folder)[0], folder.resolve().parent)
    actions = {outcome.stage: outcome.action for outcome in walk.dry_run()}
    answering = walk.judging.answering
    refuse_unmeasured(walk.site, actions.get("evaluate"))
    answered = actions.get("rag") == "reuse"  # else answers were written from other passages
    wanted = {arm: Path(out)} if arm else {name: Path(out) / f"{name}.jsonl" for name in answering.runs()}
    for name, file in wanted.items():
        rows = answering.rows(name, answered=answered)
        with written_whole(file) as opened:
            opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return list(wanted.values())


def merge_models(
    models: Sequence[str | Path],
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    examples: str | Path | None = None,
    device: str = "auto",
    quiet: bool = True,
) -> MergeReport:
    """Merge any two or more rerankers, folders or hub ids, into the folder `out`; no experiment is needed.

    `options` are keys of the `merge:` section but for `models`. `examples` are groups (FlagEmbedding's JSONL):
    `method: cocktail` takes its losses from them, at most `options["examples"]` of them in the file's order, and
    `head: rescale` its probe pairs; without them the pairs come from the collection `docstrings:`. Both load the
    models; any other merge loads no torch.

    Raises:
        ConfigError: options that do not fit together, or fewer than two models; cocktail without examples.
        DataError: examples that cannot be read, or none with a relevant document and another.
        ModelError: the models do not fit together, or one cannot be read.
        ArtefactError, DiskError: `out` holds something else, or cannot be written.
    """
    section = _merge_section({"seed": 0, **(options or {}), "models": [str(model) for model in models]})
    measuring = section.method == "cocktail" or section.head == "rescale"
    if section.method == "cocktail" and examples is None:
        raise ConfigError("cocktail weighs the models by their losses on examples", hint="--examples groups.jsonl")
    if examples is not None and not measuring:
        raise ConfigError(
            "examples are read by the method cocktail and by head: rescale alone",
            hint="--method cocktail, --head rescale, or no examples",
        )
    folders = [locate(str(model)) for model in models]
    groups = None if examples is None else flag.read_groups(examples)
    with progress.silenced(quiet):
        more: dict[str, Any] = {}
        if section.method == "cocktail" and groups is not None:
            more["losses"] = [probe.loss_of(folder, groups[: section.examples], device=device) for folder in folders]
        if section.head == "rescale":
            more["probe"] = partial(probe.logits_of, pairs=_probe_pairs(groups), device=device)
        return merge(folders, section, Path(out), **more)


def score_pairs(
    model: str | Path,
    file: str | Path,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    quiet: bool = True,
) -> Scored:
    """Score any number of (query, document) pairs, JSONL or TSV, into Parquet shards in the folder `out`.

    `options` are precision (``balanced``), max_length (512), device (``auto``) and shard (100,000 pairs). Memory does
    not grow with the pairs, and the same call goes on where one was stopped; see `rooms.score`.

    Raises:
        ConfigError: unknown options, or `out` holds scores of another model, file or options.
        DataError: lines that are no pairs, told before anything is scored.
        ModelError: no reranker there, or its scores are not finite.
        ArtefactError, DiskError: `out` is in use, or cannot be written.
    """
    known = {field.name for field in fields(Options)}
    if unknown := [name for name in options or {} if name not in known]:
        raise ConfigError(f"unknown option {unknown[0]!r}", hint=f"one of {', '.join(sorted(known))}")
    with progress.silenced(quiet):
        return score(model, file, out, Options(**(options or {})))


def check(experiment: str | Path | Experiment | Mapping[str, Any], *, overrides: Sequence[str] = ()) -> Checked:
    """Read the configuration and the data, train nothing, write nothing; say how much work a run would be.

    Raises:
        RankwrightError: whatever would stop a run before it trains.
    """
    resolved, _ = _resolve(experiment, overrides)
    plan = Walk(resolved).plan
    collection, report = data(resolved.data, resolved.seed)
    refuse_search_without_dev(collection, plan.searches)
    for split in plan.splits:
        refuse_missing_split(collection, split)
    sizes = {split: counts.queries for split, counts in report.splits.items()}
    Preflight(resolved, plan, sizes, lambda: collection.queries).check()
    return Checked(resolved, report, forecast(resolved, collection, plan))


def _resolve(
    experiment: str | Path | Experiment | Mapping[str, Any], overrides: Sequence[str]
) -> tuple[Experiment, str | None]:
    if isinstance(experiment, (str, Path)):
        return load(experiment, overrides)
    if overrides:
        raise ConfigError("overrides go with an experiment file; change the values themselves")
    return (experiment if isinstance(experiment, Experiment) else config.validate(experiment)), None


def _walk(
    experiment: str | Path | Experiment | Mapping[str, Any], overrides: Sequence[str], runs: str | Path
) -> tuple[Walk, str | None]:
    """The walk, and the text of the experiment's file; a run folder goes on where it is, and keeps its first page."""
    resolved, source = _resolve(experiment, overrides)
    if isinstance(experiment, (str, Path)) and is_run_folder(experiment):
        return Walk(resolved, Path(experiment).resolve().parent), None
    return Walk(resolved, Path(runs)), source


def _merge_section(values: Mapping[str, Any]) -> MergeSection:
    if len(values["models"]) < 2:
        raise ConfigError("a merge needs two models or more", hint="rankwright merge A B --out DIR")
    if values.get("weight") == "sweep":
        raise ConfigError("a sweep needs an experiment, whose dev queries choose", hint="merge: {weight: sweep}")
    try:
        return MergeSection.model_validate(values)
    except ValidationError as error:
        told = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors()]
        raise ConfigError(
            "\n".join(f"{key}: {text}" if key else text.removeprefix("Value error, ") for key, text in told)
        ) from None


def _probe_pairs(groups: Sequence[Group] | None) -> list[tuple[str, str]]:
    """Pairs of which about half are relevant: of the examples, else of the docstrings of installed packages."""
    if groups is None:
        elsewhere = read("docstrings:", Splits(), dedupe=True).collection
        groups = probe.groups_of(elsewhere, None, "train", count=32, negatives=1)
    if not (pairs := probe.pairs_of(groups)):
        raise DataError("no examples to probe the models with", hint="a line has query, pos and neg")
    return pairs


def _shipped_folder() -> Any:
    return resources.files("rankwright") / "experiments"
