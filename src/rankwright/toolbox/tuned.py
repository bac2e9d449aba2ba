"""Several retrievers -> one, by weights that dev chose: each member scores every candidate that any of them found.

In come the members' scorers and runs, dev's labels and query texts; out come weights, runs, and a score of any pair.
A convex combination of normalised scores (Bruch, Gai and Ingber, 2210.11934), in standard deviations of the member's
own run for the query, so that a pair that is in no run has a score too. It does not know how a member searches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Qrels, Run, relevant, text_id
from rankwright.errors import DataError
from rankwright.toolbox import stats
from rankwright.toolbox.fuse import Scale, scale, simplex, standardised
from rankwright.toolbox.lists import Lists
from rankwright.toolbox.metrics import label

Scores = NDArray[np.float32]
Values = NDArray[np.float64]
Pairs = Sequence[tuple[str, str]]
PairScorer = Callable[[Pairs], Scores]

METRIC = "ndcg@10"
NORMALISATION = "standard deviations from the mean of the member's own run for the query, or from its scale here"
_SAMPLE = 300  # dev queries at most that choose the weights
_FEW = 5  # members at most that are weighed in tenths (1,001 ways); more of them in fifths
_PAIRS = 1 << 20  # pairs scored together, or little more: a long run in little memory


@dataclass(frozen=True)
class Members:
    """What is fused: each retriever's scorer of pairs, and its runs (retriever -> split -> run).

    A scorer without a run (a document prior) finds nothing, and has one scale for all queries: that of its scores of
    what the others found for dev.
    """

    scorers: Mapping[str, PairScorer]
    runs: Mapping[str, Mapping[str, Run]]

    def found(self, split: str) -> Run:
        """What any member found for the split's queries, all at score 0: so in the order of document ids."""
        found: dict[str, dict[str, float]] = {}
        for name in self.runs:
            for query, hits in self.runs[name][split].rankings.items():
                found.setdefault(query, {}).update((document, 0.0) for document, _ in hits)
        return Run.from_scores(found)

    def standardised(self, pairs: Pairs) -> list[Values]:
        """Each member's scores of the pairs, in standard deviations from its own mean: float64 (pairs,) each."""
        numbers = {query: number for number, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
        places = np.array([numbers[query] for query, _ in pairs], dtype=np.int64)
        return [
            standardised(scorer(pairs), self._scales_of(name, list(numbers))[places])
            for name, scorer in self.scorers.items()
        ]

    def _scales_of(self, name: str, queries: Sequence[str]) -> Values:
        """A member's scale for each query: float64 (queries, 3)."""
        if name in self.runs:
            known = [self._scales[name].get(query, _NOTHING) for query in queries]
        else:
            known = [self.common[name]] * len(queries)
        return np.array(known, dtype=np.float64).reshape(-1, 3)

    @cached_property
    def common(self) -> dict[str, Scale]:
        """The one scale of each scorer without a run."""
        found = self.found("dev")
        pairs = [(query, document) for query in found.rankings for document in found.documents(query)]
        return {name: scale(scorer(pairs).tolist()) for name, scorer in self.scorers.items() if name not in self.runs}

    @cached_property
    def _scales(self) -> dict[str, dict[str, Scale]]:
        return {
            name: {
                query: scale([score for _, score in hits])
                for run in self.runs[name].values()
                for query, hits in run.rankings.items()
            }
            for name in self.runs
        }


_NOTHING = scale([])


@dataclass(frozen=True)
class Chosen:
    """Weights that sum to 1, and what they were chosen by: the dev means of each member alone, and of the fusion."""

    weights: dict[str, float]
    queries: int
    alone: dict[str, float]
    fused: float

    def line(self) -> str:
        """The choice in words: ``dense 0.60, bm25 0.40 (nDCG@10 on 279 dev queries .1040, .0713 alone -> .1071)``."""
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in self.weights.items())
        alone = ", ".join(map(_figure, self.alone.values()))
        on = f"{label(METRIC)} on {self.queries:,} dev quer{'y' if self.queries == 1 else 'ies'}"
        return f"{weights} ({on} {alone} alone -> {_figure(self.fused)})"


@dataclass(frozen=True)
class Tuned:
    """The fusion itself: its weights are one a member, by name."""

    members: Members
    weights: Mapping[str, float]

    def score(self, pairs: Pairs) -> Scores:
        """The fused score of (query id, document id) pairs, float32 (pairs,): whatever else is scored with them."""
        return _mixed(self.members.standardised(pairs), [self.weights[name] for name in self.members.scorers])

    def values(self) -> dict[str, Any]:
        """What serving it needs, as JSON takes it: weights, how scores are normalised, the scale of a prior."""
        scales = {name: {"mean": own.mean, "spread": own.spread} for name, own in self.members.common.items()}
        return {"weights": dict(self.weights), "normalisation": NORMALISATION, "scales": scales}

    def run(self, split: str, depth: int) -> Run:
        """The split's fused run: the best `depth` of what any member found."""
        scores: dict[str, dict[str, float]] = {}
        for pairs in _blocks(self.members.found(split)):
            for (query, document), score in zip(pairs, self.score(pairs).tolist(), strict=True):
                scores.setdefault(query, {})[document] = score
        return Run.from_scores(scores, depth)


def choose_weights(members: Members, qrels: Qrels, texts: Mapping[str, str]) -> Chosen:
    """The weights with the best mean nDCG@10 on a sample of dev: `qrels` are dev's, `texts` its queries' texts.

    Weights sum to 1 in steps of 0.1 (of more than five members, 0.2); of equals the most even, then the first. A scorer
    without a run gets a weight only where it gains on queries that have not chosen it: each half of the sample is
    measured with the weights that the other half chooses, and the paired 95% interval of the gains lies above 0.

    Raises:
        DataError: no dev query has a relevant document.
    """
    sample = _sample(qrels, texts)
    if not sample:
        raise DataError("no dev query has a relevant document: a fusion's weights cannot be chosen")
    lists = Lists.of(members.found("dev"), None, sample)
    pairs = [(query, one) for query, row in zip(lists.queries, lists.documents, strict=True) for one in row]
    parts = members.standardised(pairs)
    there = ~np.isnan(lists.retrieved)
    grid = simplex(len(parts), 10 if len(parts) <= _FEW else 5)
    values = {weights: _values(lists, there, _mixed(parts, weights)) for weights in grid}
    means = _means(values)
    bare = [place for place, name in enumerate(members.scorers) if name not in members.runs]
    plain = [weights for weights in grid if not any(weights[place] for place in bare)]
    worth = len(plain) < len(grid) and stats.surely_positive(_crossed(values, plain), error=0.05, draws=2000)
    best = _best(means if worth else {weights: means[weights] for weights in plain})
    names = list(members.scorers)
    alone = {name: means[tuple(float(other == name) for other in names)] for name in names}
    return Chosen(dict(zip(names, best, strict=True)), len(lists.queries), alone, means[best])


def _best(means: Mapping[tuple[float, ...], float]) -> tuple[float, ...]:
    return min(means, key=lambda weights: (-means[weights], round(sum(weight**2 for weight in weights), 12)))


def _means(values: Mapping[tuple[float, ...], Values]) -> dict[tuple[float, ...], float]:
    """Rounded, so that a mean's last bits do not decide between equals."""
    return {weights: round(float(each.mean()), 12) for weights, each in values.items()}


def _crossed(values: Mapping[tuple[float, ...], Values], plain: Sequence[tuple[float, ...]]) -> Values:
    """Each query's gain over the best of `plain`, both chosen by the half of the queries that it is not in."""
    count = len(next(iter(values.values())))
    gains = np.zeros(count)
    for half in range(2 if count > 1 else 0):
        measured = np.arange(count) % 2 == half
        means = _means({weights: each[~measured] for weights, each in values.items()})
        best, usual = _best(means), _best({weights: means[weights] for weights in plain})
        gains[measured] = values[best][measured] - values[usual][measured]
    return gains


def _sample(qrels: Qrels, texts: Mapping[str, str]) -> Qrels:
    """The judged queries, at most so many, drawn by their texts: the same whatever their order."""
    judged = [query for query, grades in qrels.items() if relevant(grades)]
    drawn = sorted(judged, key=lambda query: (text_id("dev" + texts[query]), query))[:_SAMPLE]
    return {query: qrels[query] for query in drawn}


def _values(lists: Lists, there: NDArray[np.bool_], scores: Scores) -> Values:
    table = np.full(there.shape, -np.inf, dtype=np.float32)
    table[there] = scores  # row by row, as the pairs are
    # Columns stand in the order of ids, so that a stable sort breaks ties as a Run does.
    return lists.measure(np.argsort(-table, axis=1, kind="stable"), METRIC)


def _mixed(parts: Sequence[Values], weights: Sequence[float]) -> Scores:
    """The weighted sum, member after member: not a matrix product, whose last bits depend on what else is in it."""
    total = np.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        total += weight * part
    return total.astype(np.float32)


def _blocks(run: Run) -> Iterator[list[tuple[str, str]]]:
    """The run's pairs, in blocks of whole queries."""
    pairs: list[tuple[str, str]] = []
    for query in run.rankings:
        pairs += [(query, document) for document in run.documents(query)]
        if len(pairs) >= _PAIRS:
            yield pairs
            pairs = []
    if pairs:
        yield pairs


def _figure(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")
