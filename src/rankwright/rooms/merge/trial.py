"""One weight tried: the models merged by it, and what dev and a general collection say of the merge.

In come model folders, the `merge:` section, and queries to ask; out comes a Trial. The merged model goes when it has
been asked; its scores stay in the cache, so that none is paid for twice. It does not know which weights are tried, nor
how one is chosen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwright.core import content_hash
from rankwright.rooms.merge import merge
from rankwright.sections import OF_DIFFERENCES, MergeSection
from rankwright.toolbox.devset import DevSet, Score
from rankwright.toolbox.engine.guard import Decision
from rankwright.toolbox.front import Trial
from rankwright.toolbox.model import has_head
from rankwright.toolbox.scorer import CachedScorer, both_orders


@dataclass(frozen=True)
class Point:
    """What is to be tried: weights as `MergeSection.weights` has them; `weight` is their place on the line, if any."""

    name: str
    weight: float | None
    weights: tuple[float, ...]

    @classmethod
    def at(cls, weight: float, section: MergeSection) -> Point:
        """The point so far from the first model towards the others."""
        return cls(f"weight {weight:g}", weight, tuple(section.at(weight)))


@dataclass(frozen=True)
class Bench:
    """How trials are made; it can be sent to another process, and called there.

    `dev` and `general` are asked in the order that each of them watches; lengths are in tokens of a pair. Merged models
    stand in `folder` while they are asked. All points are scored as `decision` says (default: in fp32), so that they
    compare.
    """

    models: tuple[Path, ...]
    section: MergeSection
    dev: DevSet
    general: DevSet | None
    folder: Path
    cache: Path
    device: str = "auto"
    max_length: int = 512
    general_length: int = 128
    decision: Decision | None = None
    both_orders: bool = False
    probe: Callable[[Path], NDArray[np.float32]] | None = None

    def __call__(self, point: Point) -> Trial:
        """Merge, score, and forget the model.

        Raises:
            ModelError: the models do not fit together.
            DiskError: there is no room for another model.
        """
        own = self.folder / content_hash([str(weight) for weight in point.weights])[:16]  # names may be paths
        model = self._alone(point) or self._merged(point, own)
        scorer = self._scorer(model)
        measured = [self.dev.values(self._asked(scorer, f"{point.name}, dev"))]
        if self.general:
            general = self._asked(scorer.cut_at(self.general_length), f"{point.name}, general")
            measured.append(self.general.values(general))
        shutil.rmtree(own, ignore_errors=True)
        return Trial(point.name, point.weight, point.weights, *(tuple(map(float, values)) for values in measured))

    def _alone(self, point: Point) -> Path | None:
        """The one model that these weights leave as it is; its scores may be known already.

        None for a plain encoder: it is merged, and so has the others' head.
        """
        weights: Sequence[float] = point.weights
        if self.section.method in OF_DIFFERENCES:
            left = None if any(weights) else self.models[0]
        else:
            left = self.models[weights.index(1.0)] if sorted(weights)[:-1] == [0.0] * (len(weights) - 1) else None
        return left if left and has_head(left) else None

    def _merged(self, point: Point, out: Path) -> Path:
        merge(self.models, self.section, out, weights=point.weights, probe=self.probe)
        return out

    def _scorer(self, model: Path) -> CachedScorer:
        return CachedScorer(
            model,
            cache=self.cache,
            device=self.device,
            max_length=self.max_length,
            decision=self.decision,
            keep_graphs=model in self.models,
        )

    def _asked(self, scorer: CachedScorer, what: str) -> Score:
        return partial(both_orders(scorer) if self.both_orders else scorer, what=what)
