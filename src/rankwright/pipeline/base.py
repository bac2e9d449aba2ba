"""What all stages share: the rooms in order, what a stage is, and the site that an experiment is worked on.

In: an experiment and the folder for runs. Out: names, keys, candidates and scorers for the stages. It does not know
what any stage does, nor which comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rankwright.boxes import Boxes
from rankwright.core import SPLITS, Qrels, Run
from rankwright.errors import ConfigError
from rankwright.pipeline.preflight import is_plain
from rankwright.plan import Model, Plan
from rankwright.rooms.mine import PairScorer
from rankwright.rooms.retrieve import RetrieveContext, pair_scorer
from rankwright.sections import Experiment, FuseRetriever, Precision, RerankSection, Scoring, Section
from rankwright.toolbox.device import choose_precision
from rankwright.toolbox.engine import packed
from rankwright.toolbox.engine.guard import Labels
from rankwright.toolbox.formats import trec
from rankwright.toolbox.model import SETTINGS, Reranker, read_settings
from rankwright.toolbox.scorer import CachedScorer, both_orders
from rankwright.workspace import MadeOf, RunFolder, write_json

ROOMS = (
    *("data", "retrieve", "recipe", "mine", "train", "merge", "rerank", "blend", "general"),
    *("evaluate", "rag", "diagnose", "verdict", "report"),
)

VERSIONS = dict.fromkeys(ROOMS, 1) | {
    **{"data": 2, "retrieve": 3, "recipe": 9, "mine": 4, "train": 9, "merge": 6, "rerank": 8, "blend": 7, "general": 6},
    **{"evaluate": 3, "diagnose": 6, "verdict": 2, "report": 4},
}
"""Raise a room's number when the same input gives another output: boxes made before are then made anew."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Stage:
    """A stage: what it would be made of now, and how to make it in a folder (returning what to tell).

    `afterwards` is done whether it was made or reused: what lies beside a model is lost where the model is made anew.
    """

    name: str
    made_of: Callable[[], MadeOf]
    work: Callable[[Path], list[str]]
    afterwards: Callable[[], None] = _nothing

    @property
    def room(self) -> str:
        """The room that makes it: ``train`` for ``train/finetuned``."""
        return self.name.partition("/")[0]


@dataclass
class Outcome:
    """What became of a stage: ``ran``, ``resumed`` or ``reused`` (or would, in a dry run), why, and how long."""

    stage: str
    action: str
    why: str
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)


def planned(experiment: Experiment) -> Plan:
    """The plan; of the arms that nobody named, without a base that cannot score: a plain encoder has no head.

    Raises:
        ConfigError: a name in the experiment stands for nothing, or such a base is to be diagnosed.
    """
    plan = Plan.of(experiment)
    if not experiment.rerank or experiment.rerank.arms is not None:
        return plan
    searched = [plan.bases[name] for name in plan.searches]  # which may yet become rerankers
    arms = {arm: model for arm, model in plan.arms.items() if model in searched or not is_plain(model)}
    if plan.examined and plan.examined not in arms:
        message = f"diagnose.arm: {plan.examined!r} is a plain encoder without a head, which cannot score pairs"
        raise ConfigError(message, hint=f"one of {', '.join(arms)}" if arms else "diagnose: null")
    return replace(plan, arms=arms)


@dataclass
class Site:
    """Where an experiment is worked on: what is wanted, what stands in the run folder, the keys of stages passed.

    `experiment` and `plan` may be replaced on the way (see `adopt`): read them when they are needed.
    """

    experiment: Experiment
    plan: Plan
    folder: RunFolder
    boxes: Boxes
    keys: dict[str, str] = field(default_factory=dict)
    _pair_scorers: dict[str, PairScorer] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, experiment: Experiment, runs: Path) -> Site:
        """The site ``runs/NAME`` of an experiment.

        Raises:
            ConfigError: a name in the experiment stands for nothing.
        """
        folder = RunFolder(runs / experiment.name)
        return cls(experiment, planned(experiment), folder, Boxes(folder))

    def adopt(self, experiment: Experiment) -> None:
        """Go on with another experiment: the stages that follow are those that it asks for.

        Raises:
            ConfigError: a name in the experiment stands for nothing; the one before then stays.
        """
        plan = planned(experiment)
        self.experiment, self.plan = experiment, plan

    @property
    def context(self) -> RetrieveContext:
        """What retrieving needs to know beside its section."""
        return RetrieveContext(
            cache=self.folder.cache,
            device=self.experiment.device,
            per_split=self.experiment.data.corpus == "per_split",
            drop_self=self.experiment.data.self_matches == "drop",
        )

    @property
    def measured_qrels(self) -> Qrels:
        """The labels of the measured split and, where those have none, of `evaluate.judged`."""
        labels, section = self.boxes.collection.qrels[self.plan.split], self.experiment.evaluate
        if section is None or section.judged is None:
            return labels
        more = trec.read_qrels(section.judged)
        return {query: {**more.get(query, {}), **grades} for query, grades in labels.items()}

    @property
    def arms(self) -> list[str]:
        """The arms that are reranked, in their order."""
        return list(self.plan.arms) if self.experiment.rerank else []

    def keep_with_model(self, model: Model, key: str, value: Mapping[str, Any] | None) -> None:
        """Put into rankwright.json beside a model of ours, or take out of it (None).

        It is no part of the stage's outputs, nor of the fingerprint.
        """
        if not model.stage or not self.boxes.model(model).is_dir():
            return
        path = self.boxes.model(model) / SETTINGS
        before = read_settings(self.boxes.model(model))
        wanted = {name: own for name, own in {**before, key: value}.items() if own is not None}
        if wanted != before:
            write_json(path, wanted)

    def inputs(self, *stages: str) -> dict[str, Any]:
        """The keys of earlier stages, as parts of what one is made of."""
        return {f"input.{stage}": self.keys[stage] for stage in stages}

    def model_input(self, model: Model) -> dict[str, Any]:
        """What a model adds to what a stage is made of: its stage's key, or a hash of its files."""
        if model.stage:
            return self.inputs(model.stage)
        return {f"content.{model.name}": self.boxes.model_fingerprint(model)}

    def candidates(self, split: str) -> Run:
        """The candidates that are reranked; none where the data have no such split."""
        there = split in self.boxes.collection.qrels
        return self.boxes.candidates(self.plan.rerank_from, split) if there else Run()

    def pair_scorer(self, retriever: str) -> PairScorer:
        """A retriever's scores of pairs of query and document, once `retrieve` is done.

        Made once for all stages, and so kept: of BM25 with its index, of a fusion with the weights that dev chose.
        """
        if retriever not in self._pair_scorers:
            self._pair_scorers[retriever] = self._made_pair_scorer(retriever)
        return self._pair_scorers[retriever]

    def _made_pair_scorer(self, retriever: str) -> PairScorer:
        splits = [split for split in SPLITS if split in self.boxes.collection.qrels]
        runs = {
            name: {split: self.boxes.candidates(name, split) for split in splits} for name in self._needed(retriever)
        }
        return pair_scorer(self.boxes.collection, retriever, self.experiment.retrieve, self.context, runs)

    def _needed(self, retriever: str) -> list[str]:
        """The retriever and all that it fuses."""
        section = self.experiment.retrieve[retriever]
        below = section.of if isinstance(section, FuseRetriever) else []
        return [retriever, *(name for one in below for name in self._needed(one))]

    def scorer(
        self,
        model: Model,
        precision: Scoring | None = None,
        max_length: int | None = None,
    ) -> tuple[Any, CachedScorer]:
        """A model's scores of text pairs, cached, and what tells how they are computed."""
        section = self.experiment.rerank
        assert section
        scorer = CachedScorer(
            self.boxes.model(model),
            cache=self.folder.cache,
            device=self.experiment.device,
            max_length=max_length or section.max_length,
            precision=precision or section.precision,
            labels=self.guard_labels(),
        )
        return (both_orders(scorer) if section.both_orders else scorer), scorer

    def guard_labels(self) -> Labels | None:
        """The labels by which a lower precision may be judged: dev's, by texts; None where dev is what is measured."""
        collection = self.boxes.collection
        if "dev" not in collection.qrels or self.plan.split == "dev":
            return None
        texts = collection.documents
        return {
            collection.queries[query]: {
                texts[document]: grade for document, grade in grades.items() if document in texts
            }
            for query, grades in collection.qrels["dev"].items()
        }

    def score_with(self, model: Path, section: RerankSection, precision: Precision) -> Any:
        """A model's scores of text pairs, not kept: for models that are soon forgotten.

        In the `precision` that they were trained in, unless the section asks for exact scores; in fp32 where the head
        of their family would not stay in it, since rounded logits tie. int8 would cost more than their probes do.
        """
        reranker = Reranker.load(model, device=self.experiment.device, max_length=section.max_length)
        word = "exact"
        if section.precision != "exact" and packed.supported(reranker.model):
            word = f"torch {choose_precision(precision, reranker.device, self.folder.cache)[0]}"
        score = partial(reranker.score, precision=word)
        return both_orders(score) if section.both_orders else score


def flat(name: str, section: Section) -> dict[str, Any]:
    """A section, flat: ``{"mine.negatives": 7, "train.finetuned.dev.depth": 30, …}``."""
    return dict(_flat(name, section.model_dump(mode="json")))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat(f"{name}.{key}", below)
    else:
        yield name, value
