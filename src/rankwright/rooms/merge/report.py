"""What a merge tells: the recipe, how far apart the models were, and what is odd about their heads.

In come the recipe and what was measured; out come lines for people and plain values. It knows no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

from rankwright.rooms.merge.heads import Logits
from rankwright.rooms.merge.recipe import Recipe

ByModel: TypeAlias = "dict[str, tuple[float | None, ...]]"
"""A tensor's name -> one number for each model after the first, None for one that lacks the tensor."""


@dataclass(frozen=True)
class MergeReport:
    """What was merged, and how far apart the models were.

    `distances` and `cosines` map each tensor to one number for each model after the first: its relative distance
    (``|a - b| / max(|a|, |b|)``) and its cosine to the first model's. None stands for a model that lacks the tensor (a
    head); then the first model that has it is what others are compared with. `left_out` are counters that only some
    models hold and that loaders make anew. `logits` are empty, or one for each model: None if it has no head.
    `remarks` are on heads and scales.
    """

    models: tuple[str, ...]
    recipe: Recipe
    distances: ByModel
    cosines: ByModel
    left_out: tuple[str, ...] = ()
    logits: tuple[Logits | None, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name."""
        return self.recipe.method

    @property
    def weights(self) -> tuple[float, ...]:
        """One for each model, or (methods of differences) for each after the first."""
        return self.recipe.weights

    def lines(self) -> list[str]:
        """A few lines for people: the recipe, how many tensors differ, which differ most, and what is odd."""
        differing = self._differing()
        told = [self.recipe.told(self.models), f"{len(differing)} of {len(self.distances)} tensors differ"]
        if differing:
            most = ", ".join(f"{name} {apart:.2g}" for name, apart in differing[:3])
            middle = median(apart for _, apart in differing)
            told[1] += f", by {middle:.2g} of their length (median); most: {most}"
        if self.left_out:
            told.append(
                f"left out, since only some models hold them and loaders make them anew: {listed(self.left_out)}"
            )
        return [*told, *self.remarks]

    def table(self, count: int) -> list[str]:
        """A headline, and the tensors that differ most, at most `count`: distance and cosine to the first model's."""
        differing = self._differing()[:count]
        width = max((len(name) for name, _ in differing), default=0)
        rows = [f"{'tensor':<{width}}  distance  cosine"] if differing else []
        for name, apart in differing:
            cosine = min((found for found in self.cosines[name] if found is not None), default=1.0)
            rows.append(f"{name:<{width}}  {apart:>8.4f}  {cosine:>6.4f}")
        return rows

    def values(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "models": list(self.models),
            "method": self.method,
            "weights": list(self.weights),
            "layers": {pattern: list(own) for pattern, own in self.recipe.layers},
            "density": self.recipe.density,
            "seed": self.recipe.seed,
            "chosen": self.recipe.chosen,
            "distances": {name: _plain(found) for name, found in self.distances.items()},
            "cosines": {name: _plain(found) for name, found in self.cosines.items()},
            "left_out": list(self.left_out),
            "logits": [own and {"mean": own.mean, "spread": own.spread} for own in self.logits],
            "remarks": list(self.remarks),
        }

    def _differing(self) -> list[tuple[str, float]]:
        """Tensors that differ with their largest distance, the farthest first."""
        farthest = {
            name: max((apart for apart in found if apart is not None), default=0.0)
            for name, found in self.distances.items()
        }
        return sorted(((name, far) for name, far in farthest.items() if far), key=lambda row: (-row[1], row[0]))


def _plain(numbers: Sequence[float | None]) -> list[float | None]:
    """JSON has no NaN, which is the cosine of what holds infinities."""
    return [None if number is None or not math.isfinite(number) else number for number in numbers]


def listed(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
