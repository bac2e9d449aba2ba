"""Several runs -> one run. Pure functions; they do not know where a run came from, nor what a document says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Run


def rrf(runs: Sequence[Run], *, k: int = 60, depth: int | None = None) -> Run:
    """Reciprocal rank fusion: the sum of 1 / (k + rank) over the runs that have the document, ranks from 1.

    Cormack, Clarke and Büttcher, SIGIR 2009. The first `depth` documents of each query are kept.
    """
    return _summed(
        [
            {
                query: {document: 1 / (k + rank) for rank, (document, _) in enumerate(hits, start=1)}
                for query, hits in run.rankings.items()
            }
            for run in runs
        ],
        depth,
    )


def weighted(runs: Sequence[Run], weights: Sequence[float], *, depth: int | None = None) -> Run:
    """The weighted sum of scores, each run's scaled to 0..1 for each query (min-max).

    A document that a run lacks gets 0 from it, like the last one that it has; where all of a run's scores are equal,
    each is 1. The first `depth` documents of each query are kept.

    Raises:
        ValueError: not one weight a run.
    """
    return _summed(
        [
            {
                query: {document: weight * score for document, score in min_max(dict(hits)).items()}
                for query, hits in run.rankings.items()
            }
            for run, weight in zip(runs, weights, strict=True)
        ],
        depth,
    )


class Scale(NamedTuple):
    """A retriever's own scores for a query, in three numbers; the spread is 0 where none differ."""

    mean: float
    spread: float
    lowest: float


def scale(own: Sequence[float]) -> Scale:
    """The mean, the standard deviation and the lowest of a retriever's own scores for a query."""
    if not own:
        return Scale(0.0, 0.0, 0.0)
    known = np.asarray(own, dtype=np.float64)
    spread = float(known.std())
    # What is left of equal numbers after a subtraction is not a spread.
    flat = spread <= 1e-12 * float(np.abs(known).max())
    return Scale(float(known.mean()), 0.0 if flat else spread, float(known.min()))


def standardised(scores: NDArray[np.floating[Any]], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores in standard deviations from the mean, each by its own scale: float64 (scores,).

    `scales` are (scores, 3), a `Scale` a row. A score that is not a number counts as the lowest; where there is no
    spread, the score is 0.
    """
    mean, spread, lowest = scales.T
    known = np.where(np.isnan(scores), lowest, scores.astype(np.float64))
    done: NDArray[np.float64] = np.where(spread > 0, (known - mean) / np.where(spread > 0, spread, 1.0), 0.0)
    return done


def simplex(parts: int, steps: int = 10) -> list[tuple[float, ...]]:
    """All weights of so many parts that sum to 1, in steps of 1 / `steps`, in ascending order of the first, and so on.

    As stars and bars: `parts` - 1 bars among the steps cut them into parts.
    """
    places = steps + parts - 1
    return [
        tuple((after - before - 1) / steps for before, after in itertools.pairwise((-1, *bars, places)))
        for bars in itertools.combinations(range(places), parts - 1)
    ]


def min_max(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores moved and scaled to 0..1; all 1 when they are all equal, for they were retrieved."""
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    if low == high:
        return dict.fromkeys(scores, 1.0)
    return {document: (score - low) / (high - low) for document, score in scores.items()}


def _summed(parts: Sequence[Mapping[str, Mapping[str, float]]], depth: int | None) -> Run:
    terms: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        for query, scores in part.items():
            documents = terms.setdefault(query, {})
            for document, score in scores.items():
                documents.setdefault(document, []).append(score)
    # fsum is exact whatever the order: documents with the same ranks in other runs tie, and do not differ by a bit.
    return Run.from_scores(
        {
            query: {document: math.fsum(values) for document, values in documents.items()}
            for query, documents in terms.items()
        },
        depth,
    )
