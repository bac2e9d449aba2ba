"""One small training and what dev says of it, kept by its key.

In: a Recipe, a base, and how many pairs. Out: a Result: the metric of every dev query, in the order that is served
(blended with the retriever's score) and in the model's own. A trial that was made before, by this search or one that
was stopped, is not made again. It does not know which recipes there are, nor what is chosen.

    trials/KEY/result.json   what dev says
    trials/KEY/model         the trained model, until it is forgotten; made again where it is asked for
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwright.auto.case import Case
from rankwright.auto.purse import Purse
from rankwright.auto.recipes import Recipe
from rankwright.core import Group, content_hash
from rankwright.errors import ModelError
from rankwright.rooms.mine import PairScorer, mine
from rankwright.rooms.train import DevSet, Workbench, train
from rankwright.sections import MineSection, Training
from rankwright.toolbox.progress import say
from rankwright.toolbox.weights import fingerprint
from rankwright.workspace import write_json

NOT_TRAINING = {"recipe", "budget", "bases", "base", "mine", "seed"}
"""Keys of a training that say where it comes from, not how it runs."""


@dataclass(frozen=True)
class Result:
    """What dev says of a trial.

    `values` is the served metric a query, `alone` that of the model's own order; `weight` the blend's, `pairs` those
    trained.
    """

    key: str
    name: str
    pairs: int
    weight: float
    values: tuple[float, ...]
    alone: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """The served metric's mean."""
        return float(np.mean(self.values)) if self.values else 0.0

    @property
    def rank(self) -> tuple[float, float]:
        """What trials are sorted by: the served mean and, where it is equal to six digits, the mean of its own order.

        Short trials often leave the served order as the retriever has it; then only their own orders differ.
        """
        return round(self.mean, 6), float(np.mean(self.alone)) if self.alone else 0.0

    def array(self) -> NDArray[np.float64]:
        """The served values as an array (queries,)."""
        return np.array(self.values)


def training_key(section: Training, groups: Sequence[Group], base: Path, seed: int, made_by: str) -> str:
    """What a training without a dev set depends on, as a hash: equal keys give equal weights on one machine.

    `made_by` names the versions of the rooms that it goes through, and its device.
    """
    settings = section.model_dump(mode="json", exclude=NOT_TRAINING)
    texts = (json.dumps([group.query, list(group.documents), list(group.labels), _numbers(group)]) for group in groups)
    about = [json.dumps(settings, sort_keys=True), fingerprint(base), str(seed), made_by]
    return content_hash(itertools.chain(about, texts))[:16]


def _numbers(group: Group) -> list[str]:
    return [f"{value:.9g}" for value in (*group.teacher, *group.weights)]


@dataclass
class Trials:
    """Where trials are made: in which folder, for which dev queries, out of which purse; `seed` is the training's."""

    case: Case
    dev: DevSet
    purse: Purse
    folder: Path
    seed: int
    origins: dict[Path, str] = field(default_factory=dict)
    """What the bases go back to, for the cards of models."""
    _mined: dict[str, tuple[list[Group], list[Group]]] = field(default_factory=dict, repr=False)

    @property
    def asked(self) -> int:
        """How many pairs are scored where dev is asked once."""
        return len(self.dev.pairs) * self.case.orders

    def groups(self, section: MineSection, kind: str = "labelled", teacher: PairScorer | None = None) -> list[Group]:
        """The groups of a mine section; `teacher` is whose scores its filter reads where it is a model's."""
        key = section.model_dump_json() + str(id(teacher) if teacher else "")
        if key not in self._mined:
            assert section.candidates
            mined = mine(
                self.case.collection,
                self.case.runs[section.candidates],
                section,
                teacher=self.case.scorer(section.candidates),
                filter_scores=teacher,
                per_split=self.case.per_split,
                seed=self.case.seed,
            )
            self._mined[key] = mined.groups, mined.unlabelled
        labelled, unlabelled = self._mined[key]
        return labelled if kind == "labelled" else unlabelled

    def run(self, recipe: Recipe, base: Path, pairs: int, teacher: PairScorer | None = None) -> Result:
        """Train `base` by the recipe on about so many pairs, and ask dev; neither where dev has said it before."""
        training = self._training(recipe, base, pairs, teacher)
        key = training[2]
        self.purse.pay(pairs)
        if not (self.folder / key / "result.json").exists():
            self._trained(recipe.name, training, base)
        found = self.ask(recipe.name, self.folder / key / "model", key, pairs)
        # After what dev says is kept: a kill costs nothing.
        shutil.rmtree(self.folder / key / "checkpoints", ignore_errors=True)
        return found

    def model(self, recipe: Recipe, base: Path, pairs: int) -> Path:
        """The model of a trial that was run; it is trained again where it has been forgotten."""
        training = self._training(recipe, base, pairs)
        self._trained(recipe.name, training, base)
        return self.folder / training[2] / "model"

    def ask(self, name: str, model: Path, key: str, pairs: int = 0) -> Result:
        """What dev says of a model, kept under the key."""
        file = self.folder / key / "result.json"
        self.purse.pay(scored=self.asked)
        if file.exists():
            values = json.loads(file.read_text(encoding="utf-8"))
            found = Result(**{**values, "values": tuple(values["values"]), "alone": tuple(values["alone"])})
        else:
            scores = self.case.scores_of(model)(self.dev.pairs)
            weight, each = self.dev.choose(lambda _: scores)
            alone = self.dev.reranked(lambda _: scores)
            found = Result(key, name, pairs, weight, tuple(each.tolist()), tuple(alone.tolist()))
            write_json(file, asdict(found))
        say(f"{name}, {pairs:,} pairs: {self.dev.metric} {found.mean:.4f} served on dev, weight {found.weight:g}")
        return found

    def _training(
        self, recipe: Recipe, base: Path, pairs: int, teacher: PairScorer | None = None
    ) -> tuple[Training, list[Group], str]:
        """The training, its groups and its key."""
        groups = self.groups(recipe.mine, recipe.training.groups, teacher)
        section = Training(**{**recipe.training.model_dump(), "max_pairs": pairs})
        return section, groups, training_key(section, groups, base, self.seed, self.case.made_by)

    def _trained(self, name: str, training: tuple[Training, list[Group], str], base: Path) -> None:
        """See that the model is there: begin its training, or go on; one that fails leaves nothing to go on from."""
        section, groups, key = training
        folder = self.folder / key
        if (folder / "model").exists():
            return
        title, origin = f"{name}, {section.max_pairs:,} pairs", self.origins.get(base)
        bench = Workbench(folder, self.case.device, self.case.cache, self.seed, title, origin)
        try:
            train(groups, section, base=base, dev=None, bench=bench)
        except ModelError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def forget(folder: Path, but: Container[str]) -> None:
    """Delete the trained models below a search's folder, but those of the keys named; what dev said of them stays."""
    for model in (folder / "trials").glob("*/model"):
        if model.parent.name not in but:
            _delete(model)


def _delete(model: Path) -> None:
    """Delete a model's folder; out of its place first, so that a kill leaves no half of a model there."""
    gone = model.with_name("gone")
    shutil.rmtree(gone, ignore_errors=True)
    shutil.rmtree(model.rename(gone), ignore_errors=True)
