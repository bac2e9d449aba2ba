"""The recipe that stays unless dev says otherwise, and the rivals that a search may try.

In: facts of the collection (how far the teacher's scores spread, whether both sides are of one kind). Out: Recipes,
each a mine section and a training without its base, its pairs and its dev. It trains nothing.

The first recipe learns from all positives and from mixed negatives, and holds on to the retriever's own order by a
listwise KL of equal weight: where labels have holes, that is what keeps a mined, unlabelled, relevant document from
being pushed down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwright.core import Collection, Run
from rankwright.sections import MineSection, Training

_QUESTIONS = ("who", "what", "when", "where", "which", "why", "how", "is", "are", "do", "does", "can", "did", "was")


@dataclass(frozen=True)
class Recipe:
    """One way to train: its name, what it would be better at, which groups, and which training."""

    name: str
    why: str
    mine: MineSection
    training: Training

    def but(self, name: str, why: str, mine: dict[str, Any] | None = None, **training: Any) -> Recipe:
        """The same with some keys changed."""
        return Recipe(
            name,
            why,
            MineSection(**{**self.mine.model_dump(), **(mine or {})}),
            Training(**{**self.training.model_dump(), **training}),
        )


@dataclass(frozen=True)
class Facts:
    """What the recipes depend on, read from train alone.

    `spread` is the median over queries of the standard deviation of the teacher's scores of a query's candidates, in
    the teacher's unit; `symmetric` says that queries and documents are texts of one kind, `graded` that labels tell
    more than relevant or not.
    """

    spread: float
    symmetric: bool
    graded: bool

    @classmethod
    def of(cls, collection: Collection, run: Run) -> Facts:
        """Facts of a collection and of the teacher's run for its training queries."""
        spreads = [np.std([score for _, score in hits]) for hits in run.rankings.values() if len(hits) > 1]
        grades = {grade for labels in collection.qrels["train"].values() for grade in labels.values() if grade > 0}
        return cls(
            spread=max(float(np.median(spreads)) if spreads else 1.0, 1e-6),
            symmetric=_symmetric(collection),
            graded=len(grades) > 1,
        )


def first(candidates: str, facts: Facts, given: Training, rate: float) -> Recipe:
    """The recipe that stays unless a rival is better beyond the noise. `given` are the user's own keys, which win."""
    mine = MineSection(candidates=candidates, negatives=5, random=3, positives=4, drop_above=None)
    training = {"loss": {"listwise": 1.0, "kl": 1.0}, "kl_temperature": facts.spread, "learning_rate": rate}
    return Recipe("mixed, kl 1", "labels, and holding on to the retriever's order", mine, _with(given, training))


def distillation(candidates: str, facts: Facts, given: Training, rate: float) -> Recipe:
    """How a plain encoder becomes a reranker without labels: it learns the retriever's order."""
    mine = MineSection(candidates=candidates, negatives=6, random=2, unlabelled=100_000)
    training = {
        **{"groups": "unlabelled", "loss": {"kl": 1.0}, "kl_temperature": facts.spread, "learning_rate": rate},
        **{"both_orders": False, "sample": None},
    }
    return Recipe("distilled", "no labels: the retriever's own order", mine, _with(given, training, forced=True))


def rivals(start: Recipe, facts: Facts, given: Training, others: Mapping[str, float] | None = None) -> list[Recipe]:
    """What else may be right, the likeliest first: a small purse tries only the first of them.

    None that would change a key that the user has written. `others` are retrievers beside the served one, with the
    spread of their scores: one of them alone may give better negatives, and another order to hold on to.
    """
    rate = start.training.learning_rate
    found = [
        start.but("mixed, no kl", "labels that are complete", loss={"listwise": 1.0}),
        start.but("weighed, kl 1", "mined negatives count by how surely they are none", {"holes": "weigh"}),
        start.but("mixed, kl 3", "a retriever that is hard to beat", loss={"listwise": 1.0, "kl": 3.0}),
        start.but("mixed, kl 1, twice the rate", "a model that has far to go", learning_rate=2 * rate),
        start.but("filtered hard, kl 1", "complete labels, strong retriever", {"negatives": 8, "random": 0, **_FILTER}),
        start.but("medium ranks, kl 1", "false negatives at the top only", {"window": (10, 100)}),
        start.but("random, kl 1", "easy negatives: no false ones among them", {"negatives": 0, "random": 8}),
        start.but("mixed, kl 1, half the rate", "a model that is nearly there", learning_rate=rate / 2),
        start.but("mixed, lambda, kl 1", "the top ranks, and graded labels", loss={"lambda": 1.0, "kl": 1.0}),
        start.but("mixed, bce, kl 1", "one threshold for all queries", loss={"bce": 1.0, "kl": 1.0}),
    ]
    found += [
        start.but(
            f"mixed from {name}, kl 1", "another retriever's negatives", {"candidates": name}, kl_temperature=spread
        )
        for name, spread in (others or {}).items()
    ]
    if facts.graded:
        found.insert(1, found.pop([one.name for one in found].index("mixed, lambda, kl 1")))
    if facts.symmetric:
        found.insert(1, start.but("mixed, kl 1, both orders", "a pair means the same either way", both_orders=True))
    fixed = given.model_fields_set & set(start.training.model_dump()) - _SEARCHED
    return [one for one in found if all(getattr(one.training, key) == getattr(start.training, key) for key in fixed)]


_SEARCHED = {"recipe", "budget", "bases", "base", "mine", "dev", "keep", "average"}
"""Keys of a training that the search needs for itself."""
_FILTER = {"drop_above": 0.95, "filter_against": "max"}


def _with(given: Training, values: dict[str, Any], *, forced: bool = False) -> Training:
    """A training of the given one's written keys and these; the written ones win unless these are forced."""
    own = {key: getattr(given, key) for key in given.model_fields_set - _SEARCHED}
    merged = {**own, **values} if forced else {**values, **own}
    return Training(**{**merged, "dev": None, "keep": "last"})


def _symmetric(collection: Collection) -> bool:
    """Whether queries look like documents: of about the same length, and hardly any of them a question."""
    queries = [collection.queries[query] for query in collection.qrels["train"]]
    documents = list(collection.documents.values())
    ratio = _words(queries) / max(_words(documents), 1e-9)
    asked = [text for text in queries if text.rstrip().endswith(("?", "？")) or _first_word(text) in _QUESTIONS]
    return 2 / 3 <= ratio <= 3 / 2 and len(asked) < 0.05 * len(queries)


def _words(texts: Sequence[str], sample: int = 1000) -> float:
    some = texts[:: max(1, len(texts) // sample)]
    return float(np.mean([len(text.split()) for text in some])) if some else 0.0


def _first_word(text: str) -> str:
    return text.split(maxsplit=1)[0].lower() if text.split() else ""
