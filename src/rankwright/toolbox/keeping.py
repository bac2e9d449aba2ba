"""Which of a training's weights are kept, by what dev says of each.

In: the metric of every dev query, in the order that is watched and in the model's own. Out: whether weights take the
place of those that were kept. It does not know how an order is made, nor where weights lie.

Where the model's own order is watched, the highest mean is kept. A served order moves little while a model learns: on a
few dozen queries its highest is luck, often that of the base, whose served order is the retriever's. There, later
weights have learnt more: they take the place of earlier ones unless dev is sure that they are worse, in either order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.toolbox import stats

HAIR = 1e-9
"""Means that differ by less are equal."""
ERROR = 0.1
"""Of the test by which dev is sure."""


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


def higher(new: Measured, top: Measured) -> bool:
    """Whether the watched mean is higher."""
    return new.mean > top.mean + HAIR


def takes(new: Measured, kept: Measured, top: Measured, *, served: bool) -> bool:
    """Whether later weights take the place of those kept; `top` has the highest mean so far.

    Neither may be surely better than the new ones, so that many small steps down lead no further than one.
    """
    return not any(_surely(before, new) for before in (kept, top)) if served else higher(new, kept)


def average_takes(average: Measured, kept: Measured, *, served: bool) -> bool:
    """Whether a mean of several weights takes the place of those kept: of a served order, where dev is sure of it."""
    return _surely(average, kept) and not _surely(kept, average) if served else higher(average, kept)


def _surely(better: Measured, worse: Measured) -> bool:
    """Whether dev is sure that one is better, in either order."""
    return any(
        stats.surely_positive(np.array(one) - np.array(other), error=ERROR, draws=2000)
        for one, other in ((better.values, worse.values), (better.own, worse.own))
    )
