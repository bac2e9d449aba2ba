"""The recipe that stays unless dev says otherwise, and the rivals that a search may try.

In: facts of the collection (how far the teacher's scores spread, whether both sides are of one kind). Out: Recipes,
each a mine section and a training without its base, its pairs and its dev. It trains nothing.

The first recipe learns from all positives and from mixed negatives. Unless a loss is written, it also holds on to the
retriever's own order, by a listwise KL as strong as the labels have holes: that is what keeps a mined, unlabelled,
relevant document from being pushed down, and where labels are complete, much of it keeps a model from learning. A rival
is named by what it changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwright.core import Collection, Run, relevant
from rankwright.sections import LossName, MineSection, Training
from rankwright.toolbox import holes

FILTER: Mapping[str, Any] = {"drop_above": 0.95, "filter_against": "max"}
"""The keys of a mine section that set doubtful candidates aside, and no more than these."""
_QUESTIONS = ("who", "what", "when", "where", "which", "why", "how", "is", "are", "do", "does", "can", "did", "was")


@dataclass(frozen=True)
class Recipe:
    """One way to train: its name, what it would be better at, which groups, and which training."""

    name: str
    why: str
    mine: MineSection
    training: Training

    def but(self, name: str, why: str, mine: Mapping[str, Any] | None = None, **training: Any) -> Recipe:
        """The same with some keys changed."""
        return Recipe(
            name,
            why,
            MineSection(**{**self.mine.model_dump(), **(mine or {})}),
            Training(**{**self.training.model_dump(), **training}),
        )


@dataclass(frozen=True)
class Facts:
    """What the recipes depend on, read from train alone; and of how many of its queries groups are mined.

    `spread` is how far the teacher's scores of a query's candidates lie apart, in its unit (see the function);
    `symmetric` says that queries and documents are texts of one kind, `graded` that labels tell more than relevant or
    not; `doubt` is how likely an unlabelled candidate of the first TOP ranks is relevant, on average (NaN: too few
    labels to tell). `queries` is None for all of them.
    """

    spread: float
    symmetric: bool
    graded: bool
    doubt: float = float("nan")
    queries: int | None = None

    @classmethod
    def of(cls, collection: Collection, run: Run) -> Facts:
        """Facts of a collection and of the teacher's run for its training queries."""
        grades = {grade for labels in collection.qrels["train"].values() for grade in labels.values() if grade > 0}
        return cls(
            spread=spread(run),
            symmetric=_symmetric(collection),
            graded=len(grades) > 1,
            doubt=_doubt(collection, run),
        )

    @property
    def hold(self) -> float:
        """The weight of the KL to the retriever's order beside the labels: `doubt` in tenths, 1 where it is unknown.

        LEAST_HOLD at least: the retriever's order also teaches a short training. (Train queries held out, blended; at
        doubts of .01, .04 and .06, weights of 0 and 0.3 ranked pubmedqa .9376 and .9350, selqa .8895 and .8916, scifact
        .7369 and .7420, which alone is beyond chance; at .42, weights of 0, 0.4 and 1 seealso .5399, .5423, .5401.)
        """
        return 1.0 if math.isnan(self.doubt) else max(LEAST_HOLD, round(self.doubt, 1))


TOP, WINDOW = 10, 50
"""Ranks that are asked how many relevant documents are unlabelled there, and those that the estimate is made from."""
LEAST_HOLD = 0.3
"""Of the KL's weight."""
SAMPLE = 1000
"""Queries or texts that are enough for a mean."""
POSITIVES, NEGATIVES, RANDOM = 4, 5, 3
"""Of each group that a step sees: positives at most, mined negatives and random ones."""
ENOUGH = 1000
"""Training queries that are always mined: by fewer, rates of holes are not told."""
STEPS = 1000
"""Optimiser steps that a training should have at least, before its batches grow."""
SMALL_BATCH, BATCH = 2, 8
"""Queries a step: where pairs are few, and where there are plenty."""
FASTEST = 3.0
"""How much faster, at most, a head is trained that starts from nothing in few steps."""


def first(
    candidates: str, facts: Facts, given: Training, rate: float, pairs: float = math.inf, passes: float = 1.0
) -> Recipe:
    """The recipe that stays unless a rival is better beyond the noise. `given` are the user's own keys, which win.

    `rate` is the peak learning rate for steps of BATCH queries, `pairs` how many the last training will have at least,
    and `passes` how often it will see each group at least. Where that is more than once, every pass draws other
    negatives, unless a `sample` is written. (Train queries held out, blended: pubmedqa .9365 instead of .9350,
    cranfield .5242 instead of .5199, in 2.2 and 3.6 passes; neither beyond chance.)
    """
    times = 1 if "sample" in given.model_fields_set else math.ceil(passes)
    counts = {"negatives": NEGATIVES * times, "random": RANDOM * times, "positives": POSITIVES}
    mine = MineSection(candidates=candidates, queries=facts.queries, drop_above=None, **counts)
    width = 2 + NEGATIVES + RANDOM
    training = {
        **({"sample": {"positives": POSITIVES, "negatives": NEGATIVES + RANDOM}} if times > 1 else {}),
        "loss": {"listwise": 1.0, "kl": facts.hold},
        "kl_temperature": facts.spread,
        **_pace(given, rate, pairs / width),
    }
    found = _with(given, training)
    why = "labels, and holding on to the retriever's order" if found.loss.get("kl") else "labels alone"
    return Recipe(f"mixed, {_loss(found.loss)}", why, mine, found)


def distillation(candidates: str, facts: Facts, given: Training, rate: float, pairs: int) -> Recipe:
    """How a plain encoder becomes a reranker without labels: from `pairs` pairs it learns the retriever's order."""
    negatives, random = 6, 2
    groups = max(1, math.ceil(pairs / (1 + negatives + random)))
    counts = {"negatives": negatives, "random": random, "unlabelled": groups}
    mine = MineSection(candidates=candidates, queries=facts.queries, drop_above=None, **counts)
    training = {
        **{"groups": "unlabelled", "loss": {"kl": 1.0}, "kl_temperature": facts.spread, "sample": None},
        **{"both_orders": False, **_pace(given, rate, groups, new_head=True)},
    }
    return Recipe("distilled", "no labels: the retriever's own order", mine, _with(given, training, forced=True))


def _pace(given: Training, rate: float, groups: float, *, new_head: bool = False) -> dict[str, Any]:
    """Batch and learning rate for so many groups: few of them make small steps, and slower ones.

    At equal pairs, steps of 2 queries at 6e-5 ranked dev better than steps of 8 at 1e-4 (an exponent of 0.37 between).
    A head that starts from nothing has far to go: in a few hundred steps it needs a higher rate, by the square root of
    the steps that are missing to STEPS. (On dev of selqa, 100 steps: nDCG@10 .637 at 6e-5, .805 at 2e-4, .702 at 4e-4;
    of scifact .482 and .600 at the first two. A training that goes on from there was better at 6e-5: .848, .820.)
    """
    batch = given.batch if "batch" in given.model_fields_set else round(min(BATCH, max(SMALL_BATCH, groups / STEPS)))
    if "learning_rate" in given.model_fields_set:
        return {"batch": batch, "learning_rate": rate}
    rate *= min(1.0, batch / BATCH) ** 0.37
    if new_head:
        rate *= min(FASTEST, max(1.0, math.sqrt(STEPS * batch / groups)))
    return {"batch": batch, "learning_rate": rate}


def most_queries(pairs: float, given: Training, there: int) -> int | None:
    """How many of `there` training queries to mine: all that a training of so many pairs could see once; None: all.

    What no training will see costs memory and hours where labels are plenty.
    """
    width = 1 + NEGATIVES + RANDOM
    if given.sample:
        width = min(width, given.sample.positives + given.sample.negatives)
    most = max(ENOUGH, math.ceil(pairs / width))
    return most if most < there else None


def rivals(start: Recipe, facts: Facts, given: Training, others: Mapping[str, float] | None = None) -> list[Recipe]:
    """What else may be right, the likeliest first: a small purse tries only the first of them.

    None that would change a key that the user has written, or that is the first recipe over again. `others` are
    retrievers beside the served one, with the spread of their scores: one of them alone may give better negatives, and
    another order to hold on to.
    """
    rate, all_of_them = start.training.learning_rate, start.mine.negatives + start.mine.random
    mined, drawn = {"negatives": all_of_them, "random": 0, **FILTER}, {"negatives": 0, "random": all_of_them}
    found = [
        _other_hold(start, facts.hold),
        start.but("holes weighed", "mined negatives count by how surely they are none", {"holes": "weigh"}),
        start.but("kl 3", "a retriever that is hard to beat", loss={"listwise": 1.0, "kl": 3.0}),
        start.but("twice the rate", "a model that has far to go", learning_rate=2 * rate),
        start.but("hard, filtered", "complete labels, strong retriever", mined),
        start.but("medium ranks", "false negatives at the top only", {"window": (10, 100)}),
        start.but("random negatives", "easy negatives: no false ones among them", drawn),
        start.but("half the rate", "a model that is nearly there", learning_rate=rate / 2),
        start.but(_LAMBDA, "the top ranks, and graded labels", loss={"lambda": 1.0, "kl": facts.hold}),
        start.but("bce", "one threshold for all queries", loss={"bce": 1.0, "kl": facts.hold}),
    ]
    found += [
        start.but(f"from {name}", "another retriever's negatives", {"candidates": name}, kl_temperature=spread)
        for name, spread in (others or {}).items()
    ]
    if facts.graded:
        found.insert(1, found.pop([one.name for one in found].index(_LAMBDA)))
    if facts.symmetric:
        found.insert(1, start.but("both orders", "a pair means the same either way", both_orders=True))
    fixed = given.model_fields_set - _OF_A_SEARCH
    own = [one for one in found if all(getattr(one.training, key) == getattr(start.training, key) for key in fixed)]
    return [one for one in own if (one.mine, one.training) != (start.mine, start.training)]


def _other_hold(start: Recipe, hold: float) -> Recipe:
    """The weight of the KL on the other side, in case that the labels' holes are not what they seem."""
    if hold < 0.5:
        return start.but("kl 1", "labels with more holes than it seems", loss={"listwise": 1.0, "kl": 1.0})
    return start.but("no kl", "labels that are more complete than it seems", loss={"listwise": 1.0})


_LAMBDA = "lambda"
_OF_A_SEARCH = {"recipe", "budget", "bases", "base"}
"""Keys that say how a recipe is searched, and are no part of one."""


def _with(given: Training, values: dict[str, Any], *, forced: bool = False) -> Training:
    """A training of the given one's written keys and these; the written ones win unless these are forced."""
    own = {key: getattr(given, key) for key in given.model_fields_set - _OF_A_SEARCH}
    merged = {**own, **values} if forced else {**values, **own}
    return Training(**{**merged, "dev": None, "keep": "last"})


def _doubt(collection: Collection, run: Run) -> float:
    """How likely an unlabelled candidate of the first TOP ranks is relevant, on average, by `toolbox.holes`.

    Candidates judged not relevant and copies of relevant ones are no holes: their case is known. Those that mining sets
    aside for other reasons (texts of dev and test queries, say) are asked like any other. NaN where too few relevant
    candidates are labelled; 0 where scores do not tell them from the others.
    """
    scores: list[float] = []
    labelled: list[bool] = []
    first: list[bool] = []
    texts, qrels = collection.documents, collection.qrels["train"]
    for query in _some([query for query, hits in run.rankings.items() if hits and relevant(qrels.get(query, {}))]):
        hits = dict(run.rankings[query][:WINDOW])
        same = {texts[document] for document in relevant(qrels[query])}
        copies = {document for document in hits if texts[document] in same}
        top = set(list(hits)[:TOP])
        for document, score, positive in holes.telling(hits, qrels[query], copies):
            scores.append(score)
            labelled.append(positive)
            first.append(document in top)
    if sum(labelled) < holes.ENOUGH:
        return float("nan")
    labels = np.array(labelled)
    asked = ~labels & np.array(first)
    return float(1 - holes.weights(np.array(scores), labels)[asked].mean()) if asked.any() else 0.0


def spread(run: Run) -> float:
    """The median over queries of the standard deviation of a query's scores; 1 where there are none."""
    spreads = [np.std([score for _, score in hits]) for hits in run.rankings.values() if len(hits) > 1]
    return max(float(np.median(spreads)) if spreads else 1.0, 1e-6)


def _symmetric(collection: Collection) -> bool:
    """Whether queries look like documents: of about as many characters, and hardly any of them a question.

    Characters, as not every language has spaces between its words.
    """
    queries = [collection.queries[query] for query in collection.qrels["train"]]
    documents = list(collection.documents.values())
    ratio = _length(queries) / max(_length(documents), 1e-9)
    asked = [text for text in queries if text.rstrip().endswith(("?", "？")) or _first_word(text) in _QUESTIONS]
    return 2 / 3 <= ratio <= 3 / 2 and len(asked) < 0.05 * len(queries)


def _length(texts: Sequence[str]) -> float:
    """The mean length of some of them, in characters."""
    some = _some(texts)
    return float(np.mean([len(text) for text in some])) if some else 0.0


def _some(all_of_them: Sequence[str]) -> Sequence[str]:
    """Every n-th of them, about SAMPLE."""
    return all_of_them[:: max(1, len(all_of_them) // SAMPLE)]


def _loss(terms: Mapping[LossName, float]) -> str:
    """A loss in words: ``listwise + 3 kl``."""
    return " + ".join(term if weight == 1 else f"{weight:g} {term}" for term, weight in terms.items() if weight)


def _first_word(text: str) -> str:
    return text.split(maxsplit=1)[0].lower() if text.split() else ""
