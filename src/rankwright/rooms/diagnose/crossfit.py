"""Choose a blend weight and a depth without letting any query choose its own.

In: settings (weight, depth) and their value for each query. Out: each query's value under the setting that the other
half of the queries chose. It does not know what is measured, nor why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Setting = tuple[float, int]
"""Weight of the reranker and depth."""

DEPTHS = (5, 10, 20, 50, 100)
WEIGHTS = tuple(round(step / 20, 2) for step in range(20, -1, -1))


@dataclass(frozen=True)
class Fitted:
    """`values`: one a query, by the setting that the other half chose; `best`: the setting that all queries choose.

    `grid` holds the values of every setting: (settings, queries).
    """

    values: Values
    best: Setting
    grid: Values


def crossfit(settings: Sequence[Setting], measure: Callable[[float, int], Values], rng: np.random.Generator) -> Fitted:
    """Choose on one half of the queries, apply to the other, both ways; the halves are drawn by `rng`.

    The first setting is what is served: it wins among equals and stays where a half has no query to choose by.
    """
    grid = np.array([measure(*setting) for setting in settings], dtype=np.float64)
    queries = grid.shape[1]
    first = np.zeros(queries, dtype=bool)
    first[rng.permutation(queries)[: queries // 2]] = True
    values = np.empty(queries)
    values[first] = grid[_choose(grid[:, ~first]), first]
    values[~first] = grid[_choose(grid[:, first]), ~first]
    return Fitted(values, settings[_choose(grid)], grid)


def depth_settings(depth: int) -> list[Setting]:
    """The reranker's own order at the served `depth`, then at the common depths below it."""
    return [(1.0, depth), *((1.0, at) for at in DEPTHS if at < depth)]


def weight_settings(depth: int) -> list[Setting]:
    """Weights from 1 to 0 at the served `depth`."""
    return [(weight, depth) for weight in WEIGHTS]


def blend_settings(depth: int) -> list[Setting]:
    """Weights from 1 to 0 at the served depth and the common ones below it; weight 0 knows no depth, so once."""
    mixed = [(weight, at) for weight in WEIGHTS if weight > 0 for _, at in depth_settings(depth)]
    return [*mixed, (0.0, depth)]


def _choose(grid: Values) -> int:
    """The setting with the best mean. A last bit must not choose: equal to twelve digits is equal."""
    return int(np.argmax(np.round(grid.mean(axis=1), 12))) if grid.shape[1] else 0
