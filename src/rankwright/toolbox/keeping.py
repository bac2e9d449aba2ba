"""Which of a training's weights are kept: the better reranker among all that dev does not put clearly below the best.

In: the metric of every dev query, in the order that is watched and in the model's own. Out: whether weights take the
place of those that were kept. It does not know what the watched order is, nor where weights lie.

A served order moves little while a model learns: on a few dozen queries its best is chosen by luck, often among the
first steps, while the own order of a model tells steps apart. Where the own order is what is watched, this is the
highest mean. A mean of several weights is no lucky one among them, so it stands unless dev is sure that it is worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.toolbox import stats

HAIR = 1e-9
"""Means that differ by less are equal."""
ERROR = 0.1
"""Of the test that says that an average is worse, in either order."""


@dataclass(frozen=True)
class Measured:
    """What dev says of weights: each query's metric in the order that is watched, and in the model's own."""

    values: Sequence[float]
    own: Sequence[float]

    @property
    def mean(self) -> float:
        """The watched metric's mean."""
        return float(np.mean(self.values))

    @property
    def alone(self) -> float:
        """The mean of the model's own order."""
        return float(np.mean(self.own))


def higher(new: Measured, best: Measured) -> Measured:
    """The one with the higher mean; of equals, the one that was there."""
    return new if new.mean > best.mean + HAIR else best


def takes(new: Measured, kept: Measured, best: Measured) -> bool:
    """Whether `new` takes the place of `kept`; `best` has the highest mean of all so far, the new one included."""
    if clearly_below(new, best):
        return False
    return clearly_below(kept, best) or new.alone > kept.alone + HAIR


def stands(average: Measured, kept: Measured) -> bool:
    """Whether an average of weights is kept: dev is not sure that the kept ones are better, in either order."""
    return not any(
        stats.surely_positive(np.array(better) - np.array(worse), error=ERROR, draws=2000)
        for better, worse in ((kept.values, average.values), (kept.own, average.own))
    )


def clearly_below(one: Measured, best: Measured) -> bool:
    """Whether its mean is lower by more than a standard error of the paired differences."""
    behind = np.array(best.values) - np.array(one.values)
    return bool(behind.mean() > behind.std() / np.sqrt(len(behind)) + HAIR)
