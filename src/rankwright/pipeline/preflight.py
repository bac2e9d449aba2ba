"""What would stop a run after hours of work, looked at before any of it is done.

In: an experiment, its plan, which rooms are walked to, and how large the splits are. Out: nothing, or the error that
the stage in question would raise. It looks at configurations and small files only: no model is loaded, no source but
the experiment's own is read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rankwright.errors import ConfigError, DataError, MissingExtraError, ModelError, RankwrightError
from rankwright.plan import BLENDED, RETRIEVAL, Model, Plan
from rankwright.rooms.blend import FUSED, RRF
from rankwright.sections import DenseRetriever, Experiment
from rankwright.toolbox.device import choose_device
from rankwright.toolbox.exits import ExitHead, refuse_layer
from rankwright.toolbox.formats import refuse_absent, trec
from rankwright.toolbox.formats.answers import read_answers
from rankwright.toolbox.model import has_head
from rankwright.toolbox.tensors import refuse_pickles
from rankwright.toolbox.weights import locate, seen


@dataclass(frozen=True)
class Preflight:
    """What is to be walked: `wants` says whether a room is walked to, `made` whether a stage has been made once.

    `sizes` counts each split's judged queries. The texts of `queries` are read only where a check needs them, so that
    a run of which all is done stays as quick as it is.
    """

    experiment: Experiment
    plan: Plan
    sizes: Mapping[str, int]
    queries: Callable[[], Mapping[str, str]]
    wants: Callable[[str], bool] = lambda room: True
    made: Callable[[str], bool] = lambda stage: False

    def check(self) -> None:
        """Raise what a later stage would.

        Raises:
            RankwrightError: of the kind of that stage's error.
        """
        experiment = self.experiment
        if self.wants("retrieve") and not self.made("retrieve"):
            self._retrievers()
        if self.wants("train"):
            self._precisions()
            self._exits()
        if self.wants("merge") and not self.made("merge"):
            self._merged()
        if experiment.rerank and self.wants("rerank"):
            self._arms()
            self._cascade()
        if experiment.rerank and experiment.general and self.wants("general"):
            refuse_absent(experiment.general.source, "general.source")
        if experiment.evaluate:
            self._measured()
        if experiment.evaluate and experiment.rag and self.wants("rag"):
            self._rag()

    def _outside(self) -> Iterator[tuple[str, Model]]:
        """The arms whose models come from outside; not the base of a search, which may yet become a reranker."""
        tried = [self.plan.bases[name] for name in self.plan.searches]
        return ((arm, model) for arm, model in self.plan.arms.items() if model.kind == "outside" and model not in tried)

    def _arms(self) -> None:
        assert self.experiment.rerank
        for arm, model in self._outside():
            try:
                plain = not has_head(locate(model.name))
            except ModelError as error:
                if error.message.startswith("cannot reach the hub"):
                    continue  # it may be there when it is needed
                raise
            if plain and self.experiment.rerank.arms is not None:  # else it is left out
                others = ", ".join(f"{name}: {other.name}" for name, other in self.plan.arms.items() if name != arm)
                raise ModelError(
                    f"rerank.arms.{arm}: {model.name!r} is a plain encoder without a head, which cannot score pairs",
                    hint=f"rerank: {{arms: {{{others}}}}}, or a training with recipe: distill in its place",
                )

    def _retrievers(self) -> None:
        for name, retriever in self.experiment.retrieve.items():
            if isinstance(retriever, DenseRetriever) and retriever.precision == "fp16":
                self._refuse_fp16(f"retrieve.{name}")

    def _precisions(self) -> None:
        for name, training in self.experiment.train.items():
            if training.precision != "fp16" or self.made(f"train/{name}"):  # perhaps elsewhere, to be used here
                continue
            self._refuse_fp16(f"train.{name}")

    def _refuse_fp16(self, where: str) -> None:
        if choose_device(self.experiment.device) == "cpu":
            raise ConfigError(f"{where}.precision: fp16 needs a GPU", hint="precision: auto")

    def _exits(self) -> None:
        """An exit head's layer, where the base's configuration lies here; else the training will say it."""
        for name, training in self.experiment.train.items():
            if training.exit is None or self.made(f"train/{name}"):
                continue
            place = seen(self.plan.root(self.plan.bases[name]).name)
            if place is None:
                continue
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # a training will say it
                if layers := json.loads((place / "config.json").read_bytes()).get("num_hidden_layers"):
                    refuse_layer(training.exit, int(layers), f"train.{name}.exit")

    def _merged(self) -> None:
        """Folders whose weights a merge could not read. Of what is the hub's, other files may yet be fetched."""
        for model in self.plan.merged:
            folder = Path(model.name).expanduser()
            if model.kind == "outside" and folder.is_dir():
                refuse_pickles(folder)

    def _measured(self) -> None:
        section, plan = self.experiment.evaluate, self.plan
        assert section
        if section.judged is not None and self.wants("evaluate"):
            trec.read_qrels(section.judged)
        queries = self.sizes.get(plan.split, 0)
        if self.experiment.verdict and plan.arms and self.wants("verdict") and queries < 2:
            message = f"a verdict needs at least 2 judged queries, and {plan.split} has {queries}"
            raise DataError(message, hint=f"more of them (data.{plan.split}_share, max_queries), or verdict: null")

    def _cascade(self) -> None:
        assert self.experiment.rerank
        if not self.experiment.rerank.cascade:
            return
        trained = any(training.exit for training in self.experiment.train.values())
        if not trained and not any(ExitHead.read(locate(model.name)) for _, model in self._outside()):
            message = "rerank.cascade: no arm's model has an exit head"
            raise ConfigError(message, hint="train: {NAME: {exit: N}} trains one after N layers")
        if self.plan.split == "dev" or "dev" not in self.sizes:
            message = "rerank.cascade measures its loss on the split dev, which the data do not have or is measured"
            raise ConfigError(message, hint="data.dev_share above 0, and another evaluate.split; or cascade: null")

    def _rag(self) -> None:
        section, plan = self.experiment.rag, self.plan
        assert section
        if section.answers and not self.made("rag"):
            read_answers(section.answers, self.queries())
        columns = [RETRIEVAL, *plan.members, RRF, FUSED, *plan.arms, *(arm + BLENDED for arm in plan.arms)]
        if unknown := [arm for arm in section.arms or () if arm not in columns]:
            raise ConfigError(f"rag.arms: there is no {', '.join(unknown)}", hint=f"columns are {', '.join(columns)}")
        missing = [name for name in ("ragas", "openai", "httpx") if importlib.util.find_spec(name) is None]
        if section.endpoint and missing:
            message = f"rag.endpoint needs what is not installed: {', '.join(missing)}"
            raise MissingExtraError(message, hint="pip install 'rankwright[rag]', or leave rag.endpoint out")


def refuse_without_candidates(plan: Plan, found: int, asked: int) -> None:
    """Raise a DataError where none of the queries that are measured has a candidate, before anything is trained."""
    if asked and not found:
        message = f"{plan.rerank_from} has no candidate for any of the {asked:,} queries of {plan.split}"
        raise DataError(message, hint="do the query ids of an imported run fit? Do the texts share any word?")


def is_plain(model: Model) -> bool:
    """Whether a model from outside is an encoder without a head, as far as can be told without asking the hub."""
    place = seen(model.name) if model.kind == "outside" else None
    if place is None:
        return False
    try:
        return not has_head(place)
    except RankwrightError:  # whoever needs it will say what is wrong with it
        return False
