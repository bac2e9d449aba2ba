"""Dropout on a CPU at a third of torch's cost.

In: a tensor and a rate. Out: the tensor with entries set to 0 with that probability and the others scaled up, as
`torch.nn.functional.dropout` gives them. The bits come from numpy's SFC64 rather than from torch's serial generator,
seeded by torch's: a seed gives the same draws. Knows nothing of layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LEVELS = 65536


class Noise:
    """One stream of draws. On another device than the CPU torch's own dropout is used, and its generator."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.SFC64(seed)
        self._draw = np.random.Generator(self._bits)

    def drop(self, values: Tensor, rate: float) -> Tensor:
        """Dropout; the rate is kept to 1 / 65536, and the mean up to rounding."""
        import torch

        if rate > 0 and values.device.type != "cpu":
            return torch.nn.functional.dropout(values, rate)
        kept = self.mask(values.shape, rate, values.dtype)
        return values if kept is None else values * kept

    def mask(self, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor | None:
        """What dropout multiplies by, on a CPU: 0 with the probability `rate`, else what keeps the mean.

        None where the rate is 0.
        """
        import torch

        if rate <= 0:
            return None
        least, count = round(rate * _LEVELS), math.prod(shape)
        words = self._draw.integers(0, 2**64 - 1, size=-(-count // 4), dtype=np.uint64, endpoint=True)
        # A mask of numbers: bool ones are multiplied by at half the speed.
        drawn = torch.from_numpy((words.view(np.uint16)[:count] >= least).view(np.uint8))
        return drawn.view(*shape).to(dtype).mul_(_LEVELS / (_LEVELS - least) if least < _LEVELS else 0.0)


def seeds(count: int) -> list[int]:
    """So many seeds, drawn from torch's generator."""
    import torch

    return [int(seed) for seed in torch.randint(2**62, (count,))]
