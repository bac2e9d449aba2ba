"""The corridor: the order of the rooms, which boxes can be used again, and what is said on the way.

    data -> retrieve -> mine -> train -> merge -> rerank -> blend -> general
         -> evaluate -> diagnose -> verdict -> report

Only this module knows the order. For every stage it says what the stage is made of (its key) and how to make it
from the boxes of earlier ones; `workspace` decides whether it must be made.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rankwright import config
from rankwright.boxes import Boxes
from rankwright.core import SPLITS, Qrels, Run, content_hash, text_id
from rankwright.errors import ArtefactError, ConfigError
from rankwright.plan import BLENDED, RETRIEVAL, Model, Plan
from rankwright.rooms.blend import FUSED, RRF, blend, blended, fuse, fused
from rankwright.rooms.data import data
from rankwright.rooms.diagnose import Case, Chosen, diagnose
from rankwright.rooms.evaluate import evaluate
from rankwright.rooms.general import general
from rankwright.rooms.merge import merge
from rankwright.rooms.mine import PairScorer, mine
from rankwright.rooms.report import ReportView, report
from rankwright.rooms.rerank import rerank
from rankwright.rooms.retrieve import RetrieveContext, pair_scorer, retrieve
from rankwright.rooms.train import DevSet, Workbench, train
from rankwright.rooms.verdict import Arm, preferred, verdict
from rankwright.sections import Experiment, FuseRetriever, ImportRetriever, MergeSection, Precision, Section
from rankwright.toolbox.formats import Splits, read
from rankwright.toolbox.formats.content import content, file_content
from rankwright.toolbox.metrics import label, measure_name
from rankwright.toolbox.model import SETTINGS, read_settings
from rankwright.toolbox.progress import say, stage_line
from rankwright.toolbox.scorer import CachedScorer, both_orders, pair_lengths, tokens_read
from rankwright.version import __version__
from rankwright.workspace import MadeOf, RunFolder, disk_errors, stage_key, write_json, write_text

ROOMS = (
    *("data", "retrieve", "mine", "train", "merge", "rerank", "blend", "general"),
    *("evaluate", "diagnose", "verdict", "report"),
)

VERSIONS = dict.fromkeys(ROOMS, 1) | {"rerank": 2, "evaluate": 2, "report": 2}
"""Raise a room's number when the same input gives another output: boxes made before are then made anew."""

_PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "accelerate", "peft", "faiss-cpu", "bm25s"),
    *("ir-measures", "numpy", "scipy", "datasets"),
)


@dataclass(frozen=True)
class Stage:
    """A stage: what it would be made of now, and how to make it in a folder (returning what to tell)."""

    name: str
    made_of: Callable[[], MadeOf]
    work: Callable[[Path], list[str]]


@dataclass
class Outcome:
    """What became of a stage: ``ran``, ``resumed`` or ``reused`` (or would, in a dry run), why, and how long."""

    stage: str
    action: str
    why: str
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)


class Walk:
    """An experiment on its way through the rooms, in the run folder ``runs/NAME``.

    Raises, when it is made:
        ConfigError: a name in the experiment stands for nothing.
    """

    def __init__(self, experiment: Experiment, runs: Path = Path("runs")) -> None:
        _check_metrics(experiment)
        self.experiment = experiment
        self.plan = Plan.of(experiment)
        self.folder = RunFolder(runs / experiment.name)
        self.boxes = Boxes(self.folder)
        self.keys: dict[str, str] = {}
        self.context = RetrieveContext(
            cache=self.folder.cache,
            device=experiment.device,
            per_split=experiment.data.corpus == "per_split",
            drop_self=experiment.data.self_matches == "drop",
        )

    def run(self, until: str | None = None, *, source: str | None = None) -> list[Outcome]:
        """Walk up to the room `until` (default: the last), making what cannot be reused.

        `source` is the text of the experiment's file, kept beside the resolved one.

        Raises:
            RankwrightError: of any kind; what was done before it stays, and the same call goes on from there.
        """
        stages = self._until(until)
        with disk_errors(self.folder.root), self.folder.locked():
            self._write_front(source)
            return [self._walk_through(stage) for stage in stages]

    def dry_run(self, until: str | None = None) -> list[Outcome]:
        """What `run` would do; nothing is written. A stage's key does not wait for the stages before it."""
        outcomes: list[Outcome] = []
        for stage in self._until(until):
            decision = self.folder.decide(stage.name, self._made_of(stage))
            action = "reuse" if decision.reuse else "resume" if decision.resume else "run"
            outcomes.append(Outcome(stage.name, action, decision.why))
        return outcomes

    def stages(self) -> Iterator[Stage]:
        """All stages of the experiment, in order."""
        yield Stage("data", self._data_made_of, self._data)
        yield Stage("retrieve", self._retrieve_made_of, self._retrieve)
        if self.experiment.mine:
            yield Stage("mine", self._mine_made_of, self._mine)
        for name in self.plan.trainings:
            yield Stage(f"train/{name}", partial(self._train_made_of, name), partial(self._train, name))
        if self.experiment.merge:
            yield Stage("merge", self._merge_made_of, self._merge)
        if self.experiment.rerank:
            yield from self._reranking_stages()
        if self.experiment.evaluate:
            yield from self._judging_stages()

    def _reranking_stages(self) -> Iterator[Stage]:
        yield Stage("rerank", self._rerank_made_of, self._rerank)
        if self.experiment.blend:
            yield Stage("blend", self._blend_made_of, self._blend)
        if self.experiment.general:
            yield Stage("general", self._general_made_of, self._general)

    def _judging_stages(self) -> Iterator[Stage]:
        yield Stage("evaluate", self._evaluate_made_of, self._evaluate)
        if self.experiment.diagnose and self.plan.examined:
            yield Stage("diagnose", self._diagnose_made_of, self._diagnose)
        if self.experiment.verdict and self.plan.arms:
            yield Stage("verdict", self._verdict_made_of, self._verdict)
        if self.experiment.report:
            yield Stage("report", self._report_made_of, self._report)

    def _until(self, until: str | None) -> list[Stage]:
        stages = list(self.stages())
        if until is None:
            return stages
        wanted = [place for place, stage in enumerate(stages) if stage.name.partition("/")[0] == until]
        if not wanted:
            raise ConfigError(f"the experiment has no {until} section", hint=f"add `{until}:` to it")
        return stages[: wanted[-1] + 1]

    def _made_of(self, stage: Stage) -> MadeOf:
        """What a stage is made of, and its key for those that follow."""
        made_of = stage.made_of()
        self.keys[stage.name] = stage_key(made_of)
        return made_of

    def _walk_through(self, stage: Stage) -> Outcome:
        made_of = self._made_of(stage)
        decision = self.folder.decide(stage.name, made_of)
        if decision.reuse:
            self.folder.tidy(stage.name)
            stage_line(stage.name, "reused", decision.why)
            return Outcome(stage.name, "reused", decision.why)
        action = "resumed" if decision.resume else "ran"
        stage_line(stage.name, "resumes" if decision.resume else "runs", decision.why)
        started = time.monotonic()
        with self.folder.making(stage.name, made_of) as out:
            lines = stage.work(out)
        for line in lines:
            say(line)
        seconds = time.monotonic() - started
        stage_line(stage.name, "done", f"{seconds:.1f} s")
        return Outcome(stage.name, action, decision.why, round(seconds, 2), lines)

    def _write_front(self, source: str | None) -> None:
        """The run folder's first page: the experiment as given, as resolved, and what it runs on."""
        write_text(self.folder.root / "resolved.yaml", config.dump(self.experiment))
        if source is not None:
            write_text(self.folder.root / "experiment.yaml", source)
        write_json(self.folder.root / "environment.json", environment())

    def _inputs(self, *stages: str) -> dict[str, Any]:
        return {f"input.{stage}": self.keys[stage] for stage in stages}

    def _model_input(self, model: Model) -> dict[str, Any]:
        if model.stage:
            return self._inputs(model.stage)
        return {f"content.{model.name}": self.boxes.model_fingerprint(model)}

    # -------------------------------------------------------------------------------------------- data

    def _data_made_of(self) -> MadeOf:
        section = self.experiment.data
        held = {"content.data.source": content(section.source)}
        return {**_config("data", section), "seed": self.experiment.seed, **held, "room": VERSIONS["data"]}

    def _data(self, out: Path) -> list[str]:
        collection, told = data(self.experiment.data, self.experiment.seed)
        self.boxes.save_data(out, collection, told)
        return told.lines()

    # ---------------------------------------------------------------------------------------- retrieve

    def _retrieve_made_of(self) -> MadeOf:
        made: dict[str, Any] = {}
        for name, retriever in self.experiment.retrieve.items():
            made |= _config(f"retrieve.{name}", retriever)
            if isinstance(retriever, ImportRetriever):
                made |= {f"content.{path}": file_content(path) for path in retriever.runs.values()}
            elif retriever.kind == "dense":
                made |= self._model_input(Model("outside", retriever.model))
        return {**made, **self._inputs("data"), "room": VERSIONS["retrieve"]}

    def _retrieve(self, out: Path) -> list[str]:
        runs = retrieve(self.boxes.collection, self.experiment.retrieve, self.context)
        self.boxes.save_candidates(out, runs)
        sizes = {split: len(run.rankings) for split, run in next(iter(runs.values())).items()}
        told = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
        return [f"{', '.join(runs)}: candidates for {told} queries"]

    def _candidates(self, split: str) -> Run:
        there = split in self.boxes.collection.qrels
        return self.boxes.candidates(self.plan.rerank_from, split) if there else Run()

    def _pair_scorer(self, retriever: str) -> PairScorer:
        splits = [split for split in SPLITS if split in self.boxes.collection.qrels]
        runs = {name: {split: self.boxes.candidates(name, split) for split in splits} for name in self._needed(retriever)}
        return pair_scorer(self.boxes.collection, retriever, self.experiment.retrieve, self.context, runs)

    def _needed(self, retriever: str) -> list[str]:
        """The retriever and all that it fuses."""
        section = self.experiment.retrieve[retriever]
        below = section.of if isinstance(section, FuseRetriever) else []
        return [retriever, *(name for one in below for name in self._needed(one))]

    # -------------------------------------------------------------------------------------------- mine

    def _mine_made_of(self) -> MadeOf:
        section = self.experiment.mine
        assert section
        made: dict[str, Any] = {**_config("mine", section), "mine.candidates": self.plan.mine_from}
        if section.filter_by != "retriever":
            made |= self._model_input(Model("outside", section.filter_by))
        return {**made, "seed": self.experiment.seed, **self._inputs("data", "retrieve"), "room": VERSIONS["mine"]}

    def _mine(self, out: Path) -> list[str]:
        section = self.experiment.mine
        assert section
        collection = self.boxes.collection
        mined = mine(
            collection,
            self.boxes.candidates(self.plan.mine_from, "train"),
            section,
            teacher=self._pair_scorer(self.plan.mine_from),
            filter_scores=None if section.filter_by == "retriever" else self._teacher(section.filter_by),
            per_split=self.context.per_split,
            seed=self.experiment.seed,
        )
        self.boxes.save_mined(out, mined)
        return mined.lines(section)

    def _teacher(self, reference: str) -> PairScorer:
        scorer = CachedScorer(reference, cache=self.folder.cache, device=self.experiment.device)
        collection = self.boxes.collection

        def score(pairs: Any) -> Any:
            texts = [(collection.queries[query], collection.documents[document]) for query, document in pairs]
            return scorer(texts, what=f"score with {reference}")

        return score

    # ------------------------------------------------------------------------------------------- train

    def _train_made_of(self, name: str) -> MadeOf:
        section = self.experiment.train[name]
        seed = self.experiment.seed if section.seed is None else section.seed
        made = {
            **_config(f"train.{name}", section),
            f"train.{name}.seed": seed,
            "train.dev.from": self.plan.rerank_from,
        }
        return {**made, **self._inputs("mine"), **self._model_input(self.plan.bases[name]), "room": VERSIONS["train"]}

    def _train(self, name: str, out: Path) -> list[str]:
        section = self.experiment.train[name]
        dev = None
        if section.dev:
            dev = DevSet.of(self.boxes.collection, self._candidates("dev"), section.dev)
        bench = Workbench(out, self.experiment.device, self.folder.cache, self.experiment.seed)
        base = self.boxes.model(self.plan.bases[name])
        trained = train(self.boxes.groups(section.groups), section, base=base, dev=dev, bench=bench)
        return trained.lines()

    # ------------------------------------------------------------------------------------------- merge

    def _merge_made_of(self) -> MadeOf:
        section = self.experiment.merge
        assert section
        made: dict[str, Any] = _config("merge", section)
        for model in self.plan.merged:
            made |= self._model_input(model)
        return {**made, "merge.models": [model.name for model in self.plan.merged], "room": VERSIONS["merge"]}

    def _merge(self, out: Path) -> list[str]:
        section = self.experiment.merge
        assert section
        folders = [self.boxes.model(model) for model in self.plan.merged]
        named = MergeSection(**{**section.model_dump(), "models": [model.name for model in self.plan.merged]})
        return merge(folders, named, out / "model").lines()

    # ------------------------------------------------------------------------------------------ rerank

    def _rerank_made_of(self) -> MadeOf:
        section = self.experiment.rerank
        assert section
        made = _config("rerank", section.model_copy(update={"arms": None, "candidates": self.plan.rerank_from}))
        made["rerank.arms"] = [f"{arm}: {model.name}" for arm, model in self.plan.arms.items()]  # their order counts
        made["rerank.split"] = self.plan.split
        for model in self.plan.arms.values():
            made |= self._model_input(model)
        return {**made, **self._inputs("data", "retrieve"), "room": VERSIONS["rerank"]}

    def _rerank(self, out: Path) -> list[str]:
        section = self.experiment.rerank
        assert section
        told = []
        for arm, model in self.plan.arms.items():
            scorer, precision = self._scorer(model)
            for split, candidates in self._reranked_candidates().items():
                score = partial(scorer, what=f"rerank {arm}, {split}")
                run = rerank(self.boxes.collection, candidates, score, depth=section.depth)
                self.boxes.save_reranked(out, arm, split, run)
            told.append(f"{arm}: {model.name}, {precision}")
        return told

    def _reranked_candidates(self) -> dict[str, Run]:
        """The candidates of the measured split and, for `blend` to choose on, those of a sample of dev."""
        section, collection = self.experiment.rerank, self.boxes.collection
        assert section
        runs = {self.plan.split: self.boxes.candidates(self.plan.rerank_from, self.plan.split)}
        if self._chooses_on_dev():
            run = self._candidates("dev")
            chosen = sorted(collection.qrels["dev"], key=lambda query: text_id("dev" + collection.queries[query]))
            runs["dev"] = Run({query: run.rankings.get(query, ()) for query in chosen[: section.dev_queries]})
        return runs

    def _chooses_on_dev(self) -> bool:
        section = self.experiment.rerank
        there = "dev" in self.boxes.collection.qrels and self.plan.split != "dev"
        return bool(section and section.dev_queries and self.experiment.blend and there)

    def _scorer(
        self, model: Model, precision: Precision | None = None, max_length: int | None = None
    ) -> tuple[Any, str]:
        """A model's scores of text pairs, cached, and the precision that they are computed in."""
        section = self.experiment.rerank
        assert section
        scorer = CachedScorer(
            self.boxes.model(model),
            cache=self.folder.cache,
            device=self.experiment.device,
            max_length=max_length or section.max_length,
            precision=precision or section.precision,
        )
        return (both_orders(scorer) if section.both_orders else scorer), scorer.precision

    # ------------------------------------------------------------------------------------------- blend

    def _blend_made_of(self) -> MadeOf:
        section = self.experiment.blend
        assert section
        made = {**_config("blend", section), "blend.candidates": self.plan.rerank_from}
        return {**made, **self._inputs("data", "retrieve", "rerank"), "room": VERSIONS["blend"]}

    def _blend(self, out: Path) -> list[str]:
        section, rerank_section = self.experiment.blend, self.experiment.rerank
        assert section
        assert rerank_section
        depth, split = rerank_section.depth, self.plan.split
        if not self._chooses_on_dev():
            write_json(out / "choices.json", {"arms": {}, "fusion": None, "depth": depth})
            return ["no dev split: nothing to choose a blend on (data.dev_share above 0 cuts one from train)"]
        dev = self._reranked_candidates()["dev"]
        qrels = {query: self.boxes.collection.qrels["dev"][query] for query in dev.rankings}
        told, chosen = [], {}
        for arm in self._arms():
            choice = blend(dev, self.boxes.reranked(arm, "dev"), qrels, section, depth=depth)
            retrieved, reranked = self.boxes.candidates(self.plan.rerank_from, split), self.boxes.reranked(arm, split)
            run = blended(retrieved, reranked, choice, depth=depth)
            self.boxes.save_reranked(out, arm + BLENDED, split, run)
            chosen[arm] = choice.values()
            told.append(
                f"{arm}: weight {choice.weight:g} at depth {choice.depth}; dev {label(section.metric)} "
                f"{choice.retrieval:.4f} retrieval, {choice.reranked:.4f} reranked, {choice.blended:.4f} blended"
            )
            self._keep_with_model(self.plan.arms[arm], {"blend": choice.serving()})
        fusion = self._fusion(out, qrels, section.metric)
        write_json(out / "choices.json", {"arms": chosen, "fusion": fusion, "depth": depth})
        return told

    def _fusion(self, out: Path, qrels: Qrels, metric: str) -> dict[str, Any] | None:
        """Tuned fusion of all plain retrievers: what a reranker must beat where there are several."""
        names = [name for name, retriever in self.experiment.retrieve.items() if retriever.kind != "fuse"]
        tuned = fuse({name: self.boxes.candidates(name, "dev") for name in names}, qrels, metric)
        if tuned is None:
            return None
        for name, run in fused({name: self.boxes.candidates(name, self.plan.split) for name in names}, tuned).items():
            self.boxes.save_reranked(out, name, self.plan.split, run)
        return {"weights": tuned.weights, "rrf": tuned.rrf, "fused": tuned.fused}

    def _keep_with_model(self, model: Model, values: Mapping[str, Any]) -> None:
        """Add to rankwright.json beside a model of ours: no part of the stage's outputs, nor of the fingerprint."""
        if model.stage:
            path = self.boxes.model(model) / SETTINGS
            before = read_settings(self.boxes.model(model))
            write_json(path, {**before, **values})

    # ----------------------------------------------------------------------------------------- general

    def _general_made_of(self) -> MadeOf:
        section = self.experiment.general
        assert section
        made = {**_config("general", section), "content.general.source": content(section.source)}
        return {**made, **self._inputs("rerank"), "room": VERSIONS["general"]}

    def _general(self, out: Path) -> list[str]:
        section = self.experiment.general
        assert section
        elsewhere = read(section.source, Splits(), dedupe=True).collection
        scorers = {
            arm: partial(self._scorer(model, max_length=section.max_length)[0], what=f"general, {arm}")
            for arm, model in self.plan.arms.items()
        }
        found = general(elsewhere, scorers, section)
        self.boxes.save_general(out, found)
        return found.lines()

    # ---------------------------------------------------------------------------------------- evaluate

    def _arms(self) -> list[str]:
        return list(self.plan.arms) if self.experiment.rerank else []

    def _evaluate_made_of(self) -> MadeOf:
        section = self.experiment.evaluate
        assert section
        inputs = ["data", "retrieve", *(["rerank"] if self.experiment.rerank else [])]
        inputs += ["blend"] if self.experiment.rerank and self.experiment.blend else []
        made = {**_config("evaluate", section), "evaluate.retriever": self.plan.rerank_from}
        return {**made, "seed": self.experiment.seed, **self._inputs(*inputs), "room": VERSIONS["evaluate"]}

    def _evaluate(self, out: Path) -> list[str]:
        section = self.experiment.evaluate
        assert section
        runs = self._runs()
        evaluation = evaluate(runs, self.boxes.collection.qrels[section.split], section, self.experiment.seed)
        self.boxes.save_evaluation(out, evaluation, self.provenance())
        return [f"{len(evaluation.queries):,} {section.split} queries, {len(runs)} arms"]

    def _runs(self) -> dict[str, Run]:
        """Retrieval, fusions of retrievers, the arms, the arms blended."""
        split = self.plan.split
        runs = {RETRIEVAL: self.boxes.candidates(self.plan.rerank_from, split)}
        chosen = self._choices()
        if chosen["fusion"]:
            runs |= {name: self.boxes.blended(name, split) for name in (RRF, FUSED)}
        runs |= {arm: self.boxes.reranked(arm, split) for arm in self._arms()}
        return runs | {arm + BLENDED: self.boxes.blended(arm + BLENDED, split) for arm in chosen["arms"]}

    def provenance(self) -> dict[str, str]:
        """Where the table's numbers come from: data, candidates, models, versions."""
        retriever = self.experiment.retrieve[self.plan.rerank_from]
        told = {
            "data": f"{self.experiment.data.source} ({self.keys['data'][:12]})",
            "candidates": f"{self.plan.rerank_from}: {getattr(retriever, 'model', retriever.kind)}"
            f" ({self.keys['retrieve'][:12]})",
        }
        for arm in self._arms():
            model = self.plan.arms[arm]
            told[arm] = f"{model.name} ({self.boxes.model_fingerprint(model)[:12]})"
        told["experiment"] = content_hash([config.dump(self.experiment)])[:12]
        packages = ("torch", "transformers", "ir-measures")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        told["versions"] = f"rankwright {__version__}, {versions}"
        return told

    # ---------------------------------------------------------------------------------------- diagnose

    def _diagnose_made_of(self) -> MadeOf:
        section = self.experiment.diagnose
        assert section
        made = {**_config("diagnose", section), "diagnose.arm": self.plan.examined, "seed": self.experiment.seed}
        stages = ["data", "retrieve", "evaluate", "rerank", *self._optional("mine", "blend", "general")]
        return {**made, **self._inputs(*stages), "room": VERSIONS["diagnose"]}

    def _choices(self) -> dict[str, Any]:
        """What dev chose. Without the stage, what an earlier walk left there does not count."""
        return self.boxes.choices() if "blend" in self.keys else {"arms": {}, "fusion": None}

    def _general_values(self) -> dict[str, Any]:
        return self.boxes.general() if "general" in self.keys else {}

    def _made(self, stage: str, file: str) -> Any:
        return self.boxes.values(stage, file) if stage in self.keys else None

    def _optional(self, *stages: str) -> list[str]:
        return [stage for stage in stages if stage in self.keys]

    def _diagnose(self, out: Path) -> list[str]:
        found = diagnose(self._case())
        write_json(out / "findings.json", found.values())
        write_text(out / "findings.txt", "\n".join(found.lines()) + "\n")
        fires = [f"{finding.id} {finding.name}: {finding.reading}" for finding in found.findings if finding.fires]
        return [*found.ladder.lines(), *(fires or ["no check fires"])]

    def _case(self) -> Case:
        """All that is known of the arm that is examined."""
        section, rerank_section, arm = self.experiment.diagnose, self.experiment.rerank, self.plan.examined
        assert section
        assert rerank_section
        assert arm
        model, collection = self.plan.arms[arm], self.boxes.collection
        training = self.experiment.train.get(model.name) if model.kind == "train" else None
        scorer, _ = self._scorer(model)
        low, _ = self._scorer(model, precision="bf16")
        chosen = self._choices()["arms"].get(arm)
        general_values, before = self._general_values(), self._before(arm)
        return Case(
            retrieved=self.boxes.candidates(self.plan.rerank_from, self.plan.split),
            reranked=self.boxes.reranked(arm, self.plan.split),
            qrels=collection.qrels[self.plan.split],
            depth=rerank_section.depth,
            metric=section.metric,
            split=self.plan.split,
            collection=collection,
            train_run=self.boxes.candidates(self.plan.mine_from, "train") if training else None,
            groups=self.boxes.groups(training.groups) if training else (),
            log=self.boxes.log(model.name) if training else (),
            chosen=Chosen(*(chosen[word] for word in ("weight", "depth", "gain", "low", "high"))) if chosen else None,
            general=(general_values[before], general_values[arm]) if before and general_values else None,
            score=partial(scorer, what="diagnose, scores"),
            low_precision=partial(low, what="diagnose, bf16"),
            retriever=self._pair_scorer(self.plan.rerank_from),
            tokens=pair_lengths(self.boxes.model(model)),
            max_length=tokens_read(self.boxes.model(model), rerank_section.max_length),
            sample=section.sample,
            resamples=section.resamples,
            seed=self.experiment.seed,
        )

    def _before(self, arm: str) -> str | None:
        """The arm of the model that this arm's training, or merge, started from."""
        model = self.plan.arms[arm]
        if model.kind == "train":
            wanted = self.plan.bases[model.name]
        elif model.kind == "merge" and self.plan.merged:
            wanted = next((part for part in self.plan.merged if part in self.plan.bases.values()), self.plan.merged[0])
        else:
            return None
        return next((name for name, other in self.plan.arms.items() if other == wanted and name != arm), None)

    # ----------------------------------------------------------------------------------------- verdict

    def _verdict_made_of(self) -> MadeOf:
        section = self.experiment.verdict
        assert section
        stages = ["evaluate", *self._optional("blend", "general")]
        return {
            **_config("verdict", section),
            "seed": self.experiment.seed,
            **self._inputs(*stages),
            "room": VERSIONS["verdict"],
        }

    def _verdict(self, out: Path) -> list[str]:
        section = self.experiment.verdict
        assert section
        chosen = self._choices()
        dev = next(iter(chosen["arms"].values()), {"retrieval": None})["retrieval"]
        baselines: dict[str, float | None] = {RETRIEVAL: dev}
        if chosen["fusion"]:
            baselines |= {name: chosen["fusion"][name] for name in (RRF, FUSED)}
        assert self.experiment.rerank
        arms = [_judged_arm(arm, chosen["arms"].get(arm), self.experiment.rerank.depth) for arm in self._arms()]
        values, before = self._general_values(), self._before(preferred(arms).name)
        found = verdict(
            self.boxes.per_query(section.metric),
            arms,
            section,
            baselines=baselines,
            general=(values[before], values[preferred(arms).name]) if values and before else None,
            seed=self.experiment.seed,
        )
        write_json(out / "verdict.json", {**found.values(), "lines": found.lines(), "slug": found.slug})
        for arm in self._arms():
            self._keep_with_model(self.plan.arms[arm], {"verdict": {"word": found.word, "arm": found.arm}})
        return found.lines()

    # ------------------------------------------------------------------------------------------ report

    def _report_made_of(self) -> MadeOf:
        section = self.experiment.report
        assert section
        stages = ["data", "retrieve", "evaluate", *self._optional("blend", "diagnose", "verdict")]
        stages += [f"train/{name}" for name in self.plan.trainings]
        return {**_config("report", section), **self._inputs(*stages), "room": VERSIONS["report"]}

    def _report(self, out: Path) -> list[str]:
        section = self.experiment.report
        assert section
        collection = self.boxes.collection
        done = {stage.name: self.folder.read(stage.name) for stage in self.stages()}
        diagnosis = self._made("diagnose", "findings.json") or {"findings": (), "ladder": None}
        view = ReportView(
            title=section.title or self.experiment.name,
            table=self.boxes.table(),
            runs=self._runs(),
            qrels=collection.qrels[self.plan.split],
            queries=collection.queries,
            documents=collection.documents,
            trainings={name: self.boxes.log(name) for name in self.plan.trainings},
            data_lines=self.boxes.data_lines(),
            verdict=self._made("verdict", "verdict.json"),
            findings=diagnosis["findings"],
            ladder=diagnosis["ladder"],
            blends=self._choices()["arms"],
            depth=self.experiment.rerank.depth if self.experiment.rerank else None,
            seconds={name: float(stage["seconds"]) for name, stage in done.items() if stage},
            examples=section.examples,
        )
        write_text(out / "index.html", report(view))
        return [str(out / "index.html")]


def environment() -> dict[str, Any]:
    """What this process runs on: versions, processor, threads."""
    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "rankwright": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "packages": packages,
    }


def status(run: Path) -> list[Mapping[str, Any]]:
    """Each stage of a run folder: done, outdated (an earlier one was made anew) or unfinished; how far a training is.

    Raises:
        ArtefactError: there is no run in the folder.
    """
    resolved = run / "resolved.yaml"
    if not resolved.exists():
        raise ArtefactError("no run is here", where=str(run), hint="name a run folder, as in runs/demo")
    walk = Walk(config.load_experiment(resolved), run.parent)
    walk.folder = RunFolder(run)
    told: dict[str, dict[str, Any]] = {}
    for stage in walk.stages():
        told[stage.name] = _stage_status(walk, stage.name, told)
    return list(told.values())


def _stage_status(walk: Walk, name: str, before: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    done = walk.folder.read(name)
    if done:
        then = done["made_of"].items()
        inputs = {what.removeprefix("input."): key for what, key in then if what.startswith("input.")}
        good = {stage: told["key"] for stage, told in before.items() if told["state"] == "done"}
        state = "done" if inputs.items() <= good.items() else "outdated"
        return {"stage": name, "state": state, "seconds": done["seconds"], "key": done["key"]}
    folder = walk.folder.stage(name)
    if not (folder / "unfinished").exists():
        return {"stage": name, "state": "not begun"}
    log = folder / "log.jsonl"
    steps = log.read_text(encoding="utf-8").count('"loss"') if log.exists() else None
    return {"stage": name, "state": "unfinished", **({"steps": steps} if steps is not None else {})}


def _judged_arm(arm: str, choice: Mapping[str, Any] | None, depth: int) -> Arm:
    if choice is None:
        return Arm(arm, None, depth, None, None, None)
    return Arm(arm, choice["weight"], choice["depth"], choice["reranked"], choice["blended"], arm + BLENDED)


def _check_metrics(experiment: Experiment) -> None:
    """Refuse an unknown metric now, and not after hours of training."""
    watched = [training.dev.metric for training in experiment.train.values() if training.dev]
    for metric in (*(experiment.evaluate.metrics if experiment.evaluate else ()), *watched):
        measure_name(metric)
    if experiment.evaluate and experiment.verdict and experiment.rerank:
        deciding = experiment.verdict.metric
        if deciding not in experiment.evaluate.metrics:
            raise ConfigError(
                f"verdict.metric: {deciding!r} is not measured",
                hint=f"add {deciding} to evaluate.metrics, or verdict: null",
            )


def _config(name: str, section: Section) -> dict[str, Any]:
    """A section, flat: ``{"mine.negatives": 7, "train.finetuned.dev.depth": 30, …}``."""
    return dict(_flat(name, section.model_dump(mode="json")))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat(f"{name}.{key}", below)
    else:
        yield name, value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


__all__ = ["ROOMS", "Outcome", "Stage", "Walk", "environment", "stage_key", "status"]
