"""What the names in an experiment stand for: which retriever, which model, in which order.

Reads an Experiment and nothing else: no files, no models. `finetuned` is the last training unless one bears that name,
`base` what that one starts from, `merged` the merge; any other word is a training's name, or a model from outside (a
folder, a hub id, `offline`).
"""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.errors import ConfigError
from rankwright.sections import Experiment, FuseRetriever, MineSection, Training

RETRIEVAL = "retrieval"
RESERVED = (RETRIEVAL, "rrf", "fused")
MINE = "mine"
"""The key of the mine section that trainings share; a training's own is under its name."""
BLENDED = "-blend"
"""What an arm's name ends in when its scores are blended with the retriever's."""
OF_A_SEARCH = ("-base", "-first")
"""What a search's own trainings end in: how a plain encoder became its base, and the first of two rounds."""


@dataclass(frozen=True)
class Model:
    """A model by where it comes from: ``train`` (and its name), ``merge``, or ``outside`` (and its reference)."""

    kind: str
    name: str

    @property
    def stage(self) -> str | None:
        """The stage that makes it, or None for a model from outside."""
        return f"train/{self.name}" if self.kind == "train" else "merge" if self.kind == "merge" else None


@dataclass(frozen=True)
class Plan:
    """An experiment with all its names resolved.

    `trainings` stand in an order in which each follows its base, and what its mining filters by; `searches` are those
    of them whose recipe is still to be found. `mine_from` gives the retriever that a training's groups are mined from
    and `filters` the reranker whose scores their filter reads, if any; the key MINE stands for the shared section.
    `members` are the retrievers that `rerank_from` fuses. `arms` maps an arm of the table to its model; `split` is
    measured, `splits` are all that the data must have.
    """

    mine_from: dict[str, str]
    filters: dict[str, Model]
    rerank_from: str
    members: tuple[str, ...]
    trainings: tuple[str, ...]
    searches: tuple[str, ...]
    bases: dict[str, Model]
    arms: dict[str, Model]
    examined: str | None
    merged: tuple[Model, ...]
    split: str
    splits: tuple[str, ...]

    @classmethod
    def of(cls, experiment: Experiment) -> Plan:
        """Resolve the names.

        Raises:
            ConfigError: a name that stands for nothing, trainings that start from one another in a circle, or a
                section that needs another one.
        """
        _check_sections(experiment)
        names = _Names(experiment)
        bases = {name: names.base(name) for name in experiment.train}
        rerank = experiment.rerank
        arms = dict(rerank.arms) if rerank and rerank.arms is not None else names.usual_arms() if rerank else {}
        rerank_from = _retriever(experiment, rerank.candidates if rerank else None, "rerank.candidates")
        fusion = experiment.retrieve[rerank_from]
        members = tuple(fusion.of) if isinstance(fusion, FuseRetriever) else ()
        _check_arms(arms, (*RESERVED, *members))
        _check_members(members)
        merge = experiment.merge
        split = experiment.evaluate.split if experiment.evaluate else "test"
        searches = tuple(name for name, training in experiment.train.items() if training.recipe == "auto")
        tuned = _tuned(experiment)
        _check_split(split, searches, tuned, experiment)
        watched = ["dev" for name, training in experiment.train.items() if training.dev or name in searches]
        watched += ["dev"] if tuned or (merge and merge.asks_dev) else []
        miners = _miners(experiment)
        filters = {
            place: names.filter(section.filter_by, place)
            for place, section in miners.items()
            if section.filter_by != "retriever"
        }
        return cls(
            mine_from={
                place: _retriever(experiment, section.candidates, f"{_where(place)}.candidates")
                for place, section in miners.items()
            },
            filters=filters,
            rerank_from=rerank_from,
            members=members,
            trainings=_in_order(bases, filters),
            searches=searches,
            bases=bases,
            arms={arm: names.model(word, f"rerank.arms.{arm}") for arm, word in arms.items()},
            examined=_examined(experiment, list(arms)),
            merged=tuple(names.model(word, "merge.models") for word in merge.models) if merge else (),
            split=split,
            splits=tuple(dict.fromkeys(["train", *watched, split])),
        )

    def root(self, model: Model) -> Model:
        """The model from outside that a model comes from, by trainings and merges: it has the same shape."""
        while model.kind != "outside":
            model = self.bases[model.name] if model.kind == "train" else self.merged[0]
        return model


class _Names:
    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.trainings = list(experiment.train)

    def base(self, training: str) -> Model:
        section = self.experiment.train[training]
        if section.recipe == "auto":
            return self._tried(training, section)
        word = section.base
        if word == training:
            raise ConfigError(f"train.{training} starts from itself")
        if word in self.trainings:
            return Model("train", word)
        if word in ("base", "merged"):
            raise ConfigError(f"train.{training}.base: {word!r} is an arm; name a training, or a model from outside")
        return self._outside(word, f"train.{training}.base", self.trainings)

    def _tried(self, training: str, section: Training) -> Model:
        """The first of the bases that a search tries; it comes before all trainings, so that none of them can be one.

        The names that it writes down must be free before it begins.
        """
        if taken := [name for end in OF_A_SEARCH if (name := training + end) in self.trainings]:
            raise ConfigError(f"train.{taken[0]}: the search of train.{training} may write that name; rename yours")
        where = f"train.{training}.{'bases' if section.bases else 'base'}"
        words = section.bases or [section.base]
        for word in words:
            if word in (*self.trainings, "base", "finetuned", "merged"):
                raise ConfigError(f"{where}: recipe: auto starts from models from outside, not from {word!r}")
        models = [self._outside(word, where, self.trainings) for word in words]
        return models[0]

    def model(self, word: str, where: str) -> Model:
        if word in self.trainings:
            return Model("train", word)
        if word in ("base", "finetuned"):
            if not self.trainings:
                raise ConfigError(f"{where}: there is no training that {word!r} could mean")
            tuned = "finetuned" if "finetuned" in self.trainings else self._last()
            return Model("train", tuned) if word == "finetuned" else self.base(tuned)
        if word == "merged" and where.startswith("merge."):
            raise ConfigError(f"{where}: the merge cannot be made of itself")
        if word == "merged":
            if self.experiment.merge is None:
                raise ConfigError(f"{where}: there is no merge section that {word!r} could mean")
            return Model("merge", "merged")
        return self._outside(word, where, [*self.trainings, "base", "finetuned", "merged"])

    def filter(self, word: str, place: str) -> Model:
        where = f"{_where(place)}.filter_by"
        if word in self.trainings and place == MINE:
            raise ConfigError(f"{where}: groups that all trainings share cannot wait for one of them; give one its own")
        return Model("train", word) if word in self.trainings else self._outside(word, where, self.trainings)

    def usual_arms(self) -> dict[str, str]:
        arms = {"base": "base", "finetuned": "finetuned"} if self.trainings else {}
        return arms | ({"merged": "merged"} if self.experiment.merge else {})

    def _last(self) -> str:
        """The training that no other starts from, the last of them as written."""
        used = {self.experiment.train[name].base for name in self.trainings}
        used |= {own.filter_by for training in self.experiment.train.values() if (own := training.mine)}
        return [name for name in self.trainings if name not in used][-1]

    @staticmethod
    def _outside(word: str, where: str, known: Iterable[str]) -> Model:
        close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
        if close and "/" not in word and not Path(word).exists():
            raise ConfigError(f"{where}: no training or model folder {word!r}; did you mean {close[0]}?")
        return Model("outside", word)


def unfolded(experiment: Experiment, name: str, trainings: Mapping[str, Mapping[str, Any]]) -> Experiment:
    """The experiment with the training `name` replaced by others, in their order, and all else as it was.

    Their names are free: a search's were refused to others when the experiment was planned.
    """
    train: dict[str, Training] = {}
    for own, training in experiment.train.items():
        train |= {new: Training(**values) for new, values in trainings.items()} if own == name else {own: training}
    return experiment.model_copy(update={"train": train})


def _examined(experiment: Experiment, arms: list[str]) -> str | None:
    """The arm that is diagnosed: the one named, else finetuned, else the last training's, else the last."""
    wanted = experiment.diagnose.arm if experiment.diagnose else None
    if wanted is not None and wanted not in arms:
        raise ConfigError(f"diagnose.arm: no arm {wanted!r}", hint=f"the arms are {', '.join(arms)}")
    if not arms or wanted:
        return wanted
    trained = [arm for arm in arms if arm in experiment.train]
    return "finetuned" if "finetuned" in arms else (trained or arms)[-1]


def _check_arms(arms: Iterable[str], taken: Sequence[str]) -> None:
    for arm in arms:
        if arm in taken or arm.endswith(BLENDED):
            raise ConfigError(f"rerank.arms: {arm!r} is a column that rankwright makes itself; use another name")


def _check_members(members: Iterable[str]) -> None:
    """A fused retriever is a column too, and must not take the place of retrieval itself."""
    for name in members:
        if name in RESERVED:
            message = f"retrieve.{name}: {name!r} is a column that rankwright makes itself"
            raise ConfigError(message, hint="another name, as in dense or bm25")


def _tuned(experiment: Experiment) -> list[str]:
    """The fusions whose weights dev chooses."""
    retrievers = experiment.retrieve.items()
    return [name for name, one in retrievers if isinstance(one, FuseRetriever) and one.method == "tuned"]


def _check_split(split: str, searches: Sequence[str], tuned: Sequence[str], experiment: Experiment) -> None:
    """What was found on dev, and trained on train, is measured on test alone, where a verdict is to be believed."""
    found, merge = [f"train.{name}: recipe: auto" for name in searches], experiment.merge
    found += [f"retrieve.{name}: method: tuned" for name in tuned]
    if merge and merge.weight == "sweep":
        found.append("merge.weight: sweep")
    if merge and merge.method == "cocktail":
        found.append("merge.method: cocktail")
    if experiment.verdict and experiment.rerank:
        trained = experiment.train.items()
        watching = [name for name, own in trained if own.dev and own.keep == "best"]
        found += [f"train.{name}" for name in (experiment.train if split == "train" else watching)]
    if split == "test" or not found:
        return
    message = f"evaluate.split: {split} would measure on queries that {found[0]} has chosen or learned by"
    hint = "evaluate: {split: test}; or what is fixed (recipe, fusion, merge, dev: null), or verdict: null"
    raise ConfigError(message, hint=hint)


def _check_sections(experiment: Experiment) -> None:
    for name, retriever in experiment.retrieve.items():
        for fused in retriever.of if isinstance(retriever, FuseRetriever) else ():
            _retriever(experiment, fused, f"retrieve.{name}.of")
    for name, training in experiment.train.items():
        if training.recipe == "auto":
            continue
        where, mine = (f"train.{name}.mine", training.mine) if training.mine else ("mine", experiment.mine)
        if mine is None:
            raise ConfigError("train needs groups, and there is no mine section", hint="mine: {} takes its defaults")
        if training.groups == "unlabelled" and not mine.unlabelled:
            message = f"train.{name} takes groups: unlabelled, and {where}.unlabelled is 0"
            raise ConfigError(message, hint=f"{where}: {{unlabelled: 1000}}")
        if training.groups == "labelled" and not (mine.negatives or mine.random or mine.given):
            raise ConfigError(f"{where}: negatives, random and given are all 0, so that no group would hold a negative")


def _miners(experiment: Experiment) -> dict[str, MineSection]:
    """The shared mine section as MINE, and each training's own by its name."""
    own = {name: training.mine for name, training in experiment.train.items() if training.mine}
    return ({MINE: experiment.mine} if experiment.mine else {}) | own


def _where(place: str) -> str:
    return "mine" if place == MINE else f"train.{place}.mine"


def _retriever(experiment: Experiment, wanted: str | None, where: str) -> str:
    names = list(experiment.retrieve)
    if wanted is None:
        return names[-1]
    if wanted not in names:
        close = difflib.get_close_matches(wanted, names, n=1)
        guess = f"did you mean {close[0]}?" if close else f"the retrievers are {', '.join(names)}"
        raise ConfigError(f"{where}: there is no retriever {wanted!r}; {guess}")
    return wanted


def _in_order(bases: dict[str, Model], filters: dict[str, Model]) -> tuple[str, ...]:
    needs = {
        name: [model.name for model in (base, filters.get(name)) if model and model.kind == "train"]
        for name, base in bases.items()
    }
    try:
        return tuple(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        raise ConfigError(f"trainings that start from one another: {' -> '.join(error.args[1])}") from None
