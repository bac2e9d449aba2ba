"""What a search looks at: train and dev only, never the measured split.

In: a collection, its candidates, and how retrievers and models score. Out: the same as one value, and dev queries to
ask. It does not know recipes, budgets, or the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rankwright.core import Collection, Run
from rankwright.rooms.mine import PairScorer
from rankwright.sections import DevSection
from rankwright.toolbox.devset import DevSet, Score

WATCHED = 20
"""Candidates a dev query that are looked at, at most: no more tell recipes apart."""


@dataclass(frozen=True)
class Case:
    """`runs` are the retrievers' candidates for training queries, `dev` those of dev queries that are served.

    `scorer` gives a retriever's own scores; `scores_of` a model's of texts, as its training computes, and `filter_of` a
    model's of ids, as a mine section's `filter_by` reads them. Both score a pair `orders` times. `made_by` names what
    else decides the weights of a training: the versions of its rooms, the device.
    """

    collection: Collection
    runs: Mapping[str, Run]
    dev: Run
    served: str
    scorer: Callable[[str], PairScorer]
    scores_of: Callable[[Path], Score]
    filter_of: Callable[[Path], PairScorer]
    depth: int
    seed: int
    orders: int = 1
    device: str = "auto"
    cache: Path | None = None
    per_split: bool = False
    made_by: str = ""

    def watching(self, queries: int, evaluations: int = 1) -> DevSection:
        """How so many dev queries are watched: in the order that is served, WATCHED candidates deep at most."""
        depth = max(2, min(WATCHED, self.depth))
        return DevSection(queries=queries, depth=depth, watch="served", evaluations=evaluations, patience=None)

    def dev_set(self, queries: int) -> DevSet:
        """So many dev queries at most, to be asked."""
        return DevSet.of(self.collection, self.dev, self.watching(queries))
