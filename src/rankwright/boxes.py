"""Each room's box in the run folder: which files hold it, and how they are written and read back.

    data/      corpus.jsonl queries.jsonl qrels/*.tsv (BEIR), report.json
    retrieve/  NAME.SPLIT.run (TREC), NAME.json (what dev chose, of a tuned fusion)
    recipe/    NAME/recipe.json (what was found and tried), NAME/recipe.txt, NAME/trials/KEY
    mine/      groups.jsonl unlabelled.jsonl (FlagEmbedding's JSONL and more), dropped.jsonl
    train/     NAME/model, NAME/log.jsonl, and the files of mine/ where a training mines for itself
    merge/     model
    rerank/    ARM.SPLIT.run (TREC), precision.json (how each arm's scores were computed, and why),
               cascade.json (what dev allows each arm's cascade)
    blend/     choices.json, ARM-blend.SPLIT.run, rrf.SPLIT.run, fused.SPLIT.run
    general/   values.json
    evaluate/  table.json table.md tests.json per_query.parquet
    diagnose/  findings.json findings.txt
    verdict/   verdict.json
    report/    index.html

It knows formats, not the order of rooms nor when a box is still good.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Collection, Group, Run
from rankwright.errors import DataError
from rankwright.plan import MINE, Model
from rankwright.rooms.data import DataReport
from rankwright.rooms.evaluate import Evaluation
from rankwright.rooms.general import General
from rankwright.rooms.mine import Dropped, Mined
from rankwright.toolbox.engine.guard import Decision
from rankwright.toolbox.formats import beir, flag, trec
from rankwright.toolbox.table import GeneralTable, Table, markdown
from rankwright.toolbox.weights import fingerprint, locate
from rankwright.workspace import RunFolder, write_json, write_text

Values = NDArray[np.float64]


class Boxes:
    """What stands in a run folder. What was read once is kept; `save_…` writes into the folder given."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._candidates: dict[tuple[str, str], Run] = {}

    @functools.cached_property
    def collection(self) -> Collection:
        """The texts and qrels of the data stage."""
        return beir.read(self.folder.stage("data")).collection

    def save_data(self, out: Path, collection: Collection, report: DataReport) -> None:
        """Write the collection and what was told about it."""
        beir.write(collection, out)
        write_json(out / "report.json", {"lines": report.lines(), **asdict(report)})
        self.__dict__["collection"] = collection

    def data_lines(self) -> list[str]:
        """What the data stage told."""
        return [str(line) for line in _json(self.folder.stage("data") / "report.json")["lines"]]

    def data_sizes(self) -> dict[str, int]:
        """How many judged queries each split has, without reading the texts."""
        splits = _json(self.folder.stage("data") / "report.json")["splits"]
        return {str(split): int(counts["queries"]) for split, counts in splits.items()}

    def candidates(self, retriever: str, split: str) -> Run:
        """A retriever's run.

        Raises:
            DataError: the data have no such split.
        """
        refuse_missing_split(self.collection, split)
        key = retriever, split
        if key not in self._candidates:
            self._candidates[key] = trec.read_run(self.folder.stage("retrieve") / f"{retriever}.{split}.run")
        return self._candidates[key]

    def save_candidates(self, out: Path, runs: Mapping[str, Mapping[str, Run]]) -> None:
        """Write every run, a file each, and keep them as they will be read."""
        self._candidates.clear()
        for name, splits in runs.items():
            for split, run in splits.items():
                trec.write_run(out / f"{name}.{split}.run", run, name)
                self._candidates[name, split] = trec.as_read(run)

    def groups(self, kind: str, place: str = MINE) -> list[Group]:
        """Training groups, ``labelled`` or ``unlabelled``, of the shared mine section or of a training's own."""
        name = "groups" if kind == "labelled" else kind
        return flag.read_groups(self._groups_folder(place) / f"{name}.jsonl")

    def _groups_folder(self, place: str) -> Path:
        return self.folder.stage(MINE if place == MINE else f"train/{place}")

    def has_groups(self, folder: Path) -> bool:
        """Whether a training that was stopped has its groups already; what was set aside is written last."""
        return (folder / "dropped.jsonl").exists()

    def recipe(self, training: str) -> dict[str, Any] | None:
        """What a search has found, or None before it has."""
        file = self.folder.stage(f"recipe/{training}") / "recipe.json"
        return dict(_json(file)) if file.exists() else None

    def save_recipe(self, out: Path, found: Mapping[str, Any]) -> None:
        """Write what a search has found, for programs and for people."""
        write_json(out / "recipe.json", found)
        write_text(out / "recipe.txt", "\n".join(found["lines"]) + "\n")

    def trials(self) -> list[Path]:
        """The folders of all searches' trials."""
        return sorted(self.folder.stage("recipe").glob("*/trials/*"))

    def save_mined(self, out: Path, mined: Mined) -> None:
        """Write the groups, and what was set aside."""
        flag.write_groups(out / "groups.jsonl", mined.groups)
        if mined.unlabelled:
            flag.write_groups(out / "unlabelled.jsonl", mined.unlabelled)
        write_text(out / "dropped.jsonl", "".join(_dropped_lines(mined.dropped)))

    def model(self, model: Model) -> Path:
        """The folder of a model; one from outside is fetched when it is not here."""
        return self.folder.stage(model.stage) / "model" if model.stage else locate(model.name)

    def model_fingerprint(self, model: Model) -> str:
        """What a model's files hold, as a hash."""
        return fingerprint(self.model(model))

    def log(self, training: str) -> list[dict[str, Any]]:
        """The records of a training's log."""
        text = (self.folder.stage(f"train/{training}") / "log.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def reranked(self, arm: str, split: str) -> Run:
        """An arm's run."""
        return trec.read_run(self.folder.stage("rerank") / f"{arm}.{split}.run")

    def save_reranked(self, out: Path, arm: str, split: str, run: Run) -> None:
        """Write an arm's run."""
        trec.write_run(out / f"{arm}.{split}.run", run, arm)

    def save_decisions(self, out: Path, decided: Mapping[str, Decision]) -> None:
        """Write how each arm's scores were computed, and why."""
        write_json(out / "precision.json", {arm: decision.values() for arm, decision in decided.items()})

    def decisions(self) -> dict[str, Decision]:
        """The same, read; nothing before that stage."""
        found = self.values("rerank", "precision.json") or {}
        return {arm: Decision.read(values) for arm, values in found.items()}

    def choices(self) -> dict[str, Any]:
        """What the blend stage chose: ``{"arms": {arm: Choice}, "fusion": …, "depth": …}``; nothing without it."""
        path = self.folder.stage("blend") / "choices.json"
        chosen: dict[str, Any] = _json(path) if path.exists() else {"arms": {}, "fusion": None}
        return chosen

    def blended(self, arm: str, split: str) -> Run:
        """A blended arm's run, or a fusion's."""
        return trec.read_run(self.folder.stage("blend") / f"{arm}.{split}.run")

    def save_general(self, out: Path, found: General) -> None:
        """Write the values of each query, arm by arm."""
        values = {arm: values.tolist() for arm, values in found.values.items()}
        write_json(out / "values.json", {"metric": found.metric, "queries": list(found.queries), "values": values})

    def general(self) -> General | None:
        """What every arm came to on the general collection; None without that stage."""
        path = self.folder.stage("general") / "values.json"
        if not path.exists():
            return None
        found = _json(path)
        values = {arm: np.asarray(own, dtype=np.float64) for arm, own in found["values"].items()}
        return General(found["metric"], tuple(found["queries"]), values)

    def per_query(self, metric: str) -> dict[str, Values]:
        """Arm -> values of each query in a metric, in one order of queries."""
        from pyarrow import parquet

        table = parquet.read_table(self.folder.stage("evaluate") / "per_query.parquet").to_pydict()
        found: dict[str, list[float]] = {}
        for arm, value in zip(table["arm"], table[metric], strict=True):
            found.setdefault(arm, []).append(value)
        return {arm: np.asarray(values, dtype=np.float64) for arm, values in found.items()}

    def values(self, stage: str, file: str) -> Any:
        """A stage's JSON file, or None where the stage is not done."""
        path = self.folder.stage(stage) / file
        return _json(path) if path.exists() else None

    def save_evaluation(
        self, out: Path, evaluation: Evaluation, provenance: Mapping[str, str], general: GeneralTable | None
    ) -> None:
        """Write the table (JSON and Markdown), the tests, and the values of each query."""
        from pyarrow import parquet

        table = evaluation.table(provenance)
        if general:
            table["general"] = general
        write_json(out / "table.json", table)
        write_text(out / "table.md", markdown(table))
        write_json(out / "tests.json", evaluation.tests())
        parquet.write_table(evaluation.per_query_table(), out / "per_query.parquet")

    def table(self) -> Table:
        """The table of the evaluate stage."""
        table: Table = _json(self.folder.stage("evaluate") / "table.json")
        return table


def refuse_missing_split(collection: Collection, split: str) -> None:
    """Raise a DataError when the data have no such split."""
    if split not in collection.qrels:
        hint = "data.dev_share above 0, or dev: null with keep: last" if split == "dev" else "evaluate.split"
        raise DataError(f"something needs the split {split}, which the data do not have", hint=hint)


def refuse_search_without_dev(collection: Collection, searches: Iterable[str]) -> None:
    """Raise a DataError when a recipe is to be found and there is no dev split to choose on."""
    for name in searches:
        if "dev" not in collection.qrels:
            message = f"train.{name}: recipe: auto chooses on the split dev, which the data do not have"
            raise DataError(message, hint="data.dev_share above 0, or a recipe that is fixed")


def _dropped_lines(dropped: Iterable[Dropped]) -> Iterable[str]:
    for candidate in dropped:
        values = {name: value for name, value in vars(candidate).items() if value is not None}
        yield json.dumps(values, ensure_ascii=False) + "\n"


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
