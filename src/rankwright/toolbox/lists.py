"""A retriever's candidates and a reranker's scores for them as arrays: every depth and blend weight without a new run.

In come two Runs and Qrels; out come orders (as permutations), metrics query by query, and Runs. One row a query,
one column a candidate, in the retriever's order. It does not know which weight or depth is chosen, nor by whom.

The blend is a convex combination of z-normalised scores (Bruch, Gai and Ingber, 2210.11934, who normalise by the
minimum and maximum): within the first `depth` candidates of a query, (1 - weight) z(retriever) + weight z(reranker).
Weight 0 is the retriever's order, weight 1 the reranker's. Candidates below `depth`, and those without a reranker's
score, keep the retriever's order, underneath.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Qrels, Run, relevant
from rankwright.errors import ConfigError

Values = NDArray[np.float64]
Places = NDArray[np.int64]

NORMALISATION = "z"
"""The word for (score - mean) / standard deviation over a query's reranked candidates; all 0 where they are equal."""


@dataclass(frozen=True)
class Lists:
    """Candidates of some queries, (queries, width), padded on the right.

    `retrieved` and `reranked` are scores, NaN where there is none; `grades` are labels, -1 for what is not judged;
    `by_id` ranks a query's candidates by their ids, which breaks ties; `ideal` holds each query's relevant grades,
    found or not, the highest first, padded with 0.
    """

    queries: tuple[str, ...]
    documents: tuple[tuple[str, ...], ...]
    retrieved: Values
    reranked: Values
    grades: NDArray[np.int64]
    by_id: Places
    ideal: NDArray[np.int64]

    @classmethod
    def of(cls, retrieved: Run, reranked: Run | None, qrels: Qrels, *, depth: int | None = None) -> Lists:
        """The queries of `qrels` that have a relevant document; reranked scores below `depth` are not read."""
        queries = tuple(query for query, grades in qrels.items() if relevant(grades))
        documents = tuple(tuple(retrieved.documents(query)) for query in queries)
        width = max((len(row) for row in documents), default=0)
        shape = len(queries), width
        first, second = np.full(shape, np.nan), np.full(shape, np.nan)
        grades, by_id = np.full(shape, -1), np.full(shape, width)
        best = [sorted((grade for grade in qrels[query].values() if grade > 0), reverse=True) for query in queries]
        ideal = np.zeros((len(queries), max(map(len, best), default=0)), dtype=np.int64)
        for place, (query, row) in enumerate(zip(queries, documents, strict=True)):
            known = reranked.scores(query) if reranked else {}
            labels = qrels[query]
            count = len(row)
            first[place, :count] = [score for _, score in retrieved.rankings.get(query, ())]
            second[place, :count] = [known.get(document, np.nan) for document in row]
            grades[place, :count] = [max(labels.get(document, -1), -1) for document in row]
            by_id[place, sorted(range(count), key=row.__getitem__)] = np.arange(count)
            ideal[place, : len(best[place])] = best[place]
        if depth is not None:
            second[:, depth:] = np.nan
        return cls(queries, documents, first, second, grades, by_id, ideal)

    @property
    def width(self) -> int:
        """Candidates of the query that has the most."""
        return int(self.retrieved.shape[1])

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> Lists:
        """Some of the queries, by number or by mask."""
        chosen = np.arange(len(self.queries))[places]
        return Lists(
            tuple(self.queries[place] for place in chosen),
            tuple(self.documents[place] for place in chosen),
            self.retrieved[chosen],
            self.reranked[chosen],
            self.grades[chosen],
            self.by_id[chosen],
            self.ideal[chosen],
        )

    def scores(self, weight: float, depth: int) -> Values:
        """The blend's score of each candidate, -inf for those that it leaves underneath and for the padding."""
        mixed = ~np.isnan(self.reranked)
        mixed[:, depth:] = False
        blend = (1 - weight) * _standard(self.retrieved, mixed) + weight * _standard(self.reranked, mixed)
        return np.where(mixed, blend, -np.inf)

    def order(self, weight: float, depth: int) -> Places:
        """Columns in the order of the blend, best first: int64 (queries, width); padding stands last."""
        if weight == 0:
            return np.tile(np.arange(self.width), (len(self.queries), 1))
        scores = self.scores(weight, depth)
        # lexsort's last key counts most. What is not mixed has -inf and is told apart by the retriever's rank.
        ties = np.where(np.isneginf(scores), self.width + np.arange(self.width)[None, :], self.by_id)
        places: Places = np.lexsort((ties, -scores), axis=1)
        return places

    def measure(self, order: Places, metric: str) -> Values:
        """`metric` of each query when its candidates stand in `order`, as `metrics.per_query` has it: (queries,).

        Raises:
            ConfigError: a metric other than mrr, recall, ndcg, map, precision or success.
        """
        grades = np.take_along_axis(self.grades, order, axis=1)
        return measure_grades(grades, self.ideal, metric)

    def run(self, weight: float, depth: int) -> Run:
        """The blend as a Run. Candidates underneath go on downwards from the lowest, a whole step each."""
        scores, order = self.scores(weight, depth), self.order(weight, depth)
        if weight == 0:  # the retriever's own order: its ties are in order already, and so are its scores
            return Run(
                {
                    query: tuple(zip(row, self.retrieved[place, : len(row)].tolist(), strict=True))
                    for place, (query, row) in enumerate(zip(self.queries, self.documents, strict=True))
                }
            )
        rankings = {}
        for place, (query, row) in enumerate(zip(self.queries, self.documents, strict=True)):
            columns = order[place, : len(row)]
            own = scores[place, columns]
            mixed = int(np.isfinite(own).sum())
            lowest = float(own[mixed - 1]) if mixed else 0.0
            values = [*own[:mixed].tolist(), *(lowest - step for step in range(1, len(row) - mixed + 1))]
            rankings[query] = tuple((row[column], value) for column, value in zip(columns, values, strict=True))
        return Run(rankings)


def _standard(scores: Values, mixed: NDArray[np.bool_]) -> Values:
    """z-scores over the mixed candidates of each row; 0 elsewhere, and where all are equal."""
    count = np.maximum(mixed.sum(axis=1, keepdims=True), 1)
    known = np.where(mixed, scores, 0.0)
    centred = np.where(mixed, known - known.sum(axis=1, keepdims=True) / count, 0.0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    # What is left of equal numbers after a subtraction is not a spread.
    flat = spread <= 1e-12 * np.abs(known).max(axis=1, keepdims=True, initial=0.0)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, spread))


def blend_scores(retrieved: Sequence[float], reranked: Sequence[float], weight: float) -> Values:
    """The blend of one query's scores, all candidates mixed: what serving needs. float64 (candidates,)."""
    mixed = np.ones((1, len(retrieved)), dtype=bool)
    both = [_standard(np.asarray([scores], dtype=np.float64), mixed)[0] for scores in (retrieved, reranked)]
    blend: Values = (1 - weight) * both[0] + weight * both[1]
    return blend


def measure_grades(grades: NDArray[np.int64], ideal: NDArray[np.int64], metric: str) -> Values:
    """A metric of ranked grades (queries, ranks; below 1 is not relevant), given all relevant grades: (queries,).

    trec_eval's definitions, as `metrics.per_query`: nDCG has linear gains and log2(rank + 1); MAP divides by all
    relevant documents, found or not.

    Raises:
        ConfigError: a metric that is not known here.
    """
    word, _, cutoff = metric.partition("@")
    if word not in _MEASURES:
        raise ConfigError(f"unknown metric {metric!r}", hint=f"one of {', '.join(_MEASURES)}")
    top = int(cutoff) if cutoff else max(grades.shape[1], ideal.shape[1], 1)
    gains = np.maximum(grades[:, :top], 0).astype(np.float64)
    return _MEASURES[word](gains, np.maximum(ideal, 0), top)


def _mrr(gains: Values, ideal: NDArray[np.int64], top: int) -> Values:
    hits = gains > 0
    if not hits.shape[1]:
        return np.zeros(len(hits))
    reciprocal: Values = np.where(hits.any(axis=1), 1 / (1.0 + hits.argmax(axis=1)), 0.0)
    return reciprocal


def _recall(gains: Values, ideal: NDArray[np.int64], top: int) -> Values:
    share: Values = (gains > 0).sum(axis=1) / np.maximum((ideal > 0).sum(axis=1), 1)
    return share


def _ndcg(gains: Values, ideal: NDArray[np.int64], top: int) -> Values:
    best: Values = (ideal[:, :top] / np.log2(np.arange(2, ideal[:, :top].shape[1] + 2))).sum(axis=1)
    own: Values = (gains / np.log2(np.arange(2, gains.shape[1] + 2))).sum(axis=1)
    share: Values = own / np.where(best > 0, best, 1.0)
    return share


def _map(gains: Values, ideal: NDArray[np.int64], top: int) -> Values:
    hits = (gains > 0).astype(np.float64)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    mean: Values = (precision * hits).sum(axis=1) / np.maximum((ideal > 0).sum(axis=1), 1)
    return mean


def _precision(gains: Values, ideal: NDArray[np.int64], top: int) -> Values:
    share: Values = (gains > 0).sum(axis=1) / top
    return share


def _success(gains: Values, ideal: NDArray[np.int64], top: int) -> Values:
    return np.where((gains > 0).any(axis=1), 1.0, 0.0)


_MEASURES = {
    "mrr": _mrr,
    "recall": _recall,
    "ndcg": _ndcg,
    "map": _map,
    "precision": _precision,
    "success": _success,
}
