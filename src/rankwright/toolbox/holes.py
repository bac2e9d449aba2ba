"""Holes in labels: how likely an unlabelled candidate is relevant and was only never judged.

In: scores of candidates, comparable between queries, and which of them are labelled relevant (`telling` reads both off
a query's labels). Out: how much each counts as a negative, 0 to 1. It does not know any text, or who scored.

The estimate is Elkan and Noto's (2008, "Learning classifiers from only positive and unlabeled data"). The labelled
are taken as a sample of the relevant, drawn at the same rate c at every score. Then, for an unlabelled candidate,

    p(relevant) = (1 - c) / c * g / (1 - g)        g = p(labelled | score), c = mean g over the labelled

g is fitted by isotonic regression: it only has to rise with the score. Their c is exact where scores tell the
relevant from the others; where the two overlap it comes out too low, and p too high.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
from numpy.typing import NDArray

ENOUGH = 20
"""Fewer labelled candidates than this say nothing about a rate."""


def standardised(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """One query's scores as z-scores; 0 for all where they are equal (to seven digits, as float32 tells them)."""
    values: NDArray[np.float64] = scores.astype(np.float64)
    if not len(values):
        return values
    spread = float(values.std())
    if spread <= 1e-7 * float(np.abs(values).max()):
        return np.zeros(len(values))
    centred: NDArray[np.float64] = values - values.mean()
    return centred / spread


def telling(
    scores: Mapping[str, float], judged: Mapping[str, int], known: Container[str]
) -> list[tuple[str, float, bool]]:
    """Of one query's scored candidates those that tell about holes: id, z-score among all, labelled relevant or not.

    Left out are candidates whose case is known though they are not labelled relevant: those judged otherwise (`judged`
    is id -> grade), and those in `known`, such as copies of relevant ones.
    """
    standard = standardised(np.array(list(scores.values()))).tolist()
    return [
        (document, value, judged.get(document, 0) > 0)
        for document, value in zip(scores, standard, strict=True)
        if judged.get(document, 0) > 0 or (document not in judged and document not in known)
    ]


def weights(scores: NDArray[np.float64], labelled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 - p(relevant) of each unlabelled candidate, which falls as scores rise; 1 for the labelled.

    All are 1 where fewer than `ENOUGH` are labelled, and where scores do not tell the labelled from the others.
    """
    if labelled.sum() < ENOUGH:
        return np.ones(len(scores))
    rate = _labelled_rate(scores, labelled)
    found = float(rate[labelled].mean())
    if found >= 1 or rate.min() == rate.max():  # there is no hole at any labelled one's score, or no signal at all
        return np.ones(len(scores))
    with np.errstate(divide="ignore"):
        odds = rate / (1 - rate)  # infinite only among candidates that are all labelled
    relevant = np.clip((1 - found) / found * odds, 0.0, 1.0)
    return np.where(labelled, 1.0, 1.0 - relevant)


def _labelled_rate(scores: NDArray[np.float64], labelled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """p(labelled | score) of each, by isotonic regression; equal scores have one rate."""
    from scipy.optimize import isotonic_regression

    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    shares = np.bincount(places, weights=labelled) / counts
    rates: NDArray[np.float64] = np.clip(isotonic_regression(shares, weights=counts).x, 0.0, 1.0)
    return rates[places]
