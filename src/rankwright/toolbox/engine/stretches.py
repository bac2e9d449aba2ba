"""Which pairs of a packed batch attend in one call, and where their rows stand when some must be padded.

In: the lengths of a batch's pairs, longest first. Out: its stretches, neighbours of (nearly) one length. Attention is
computed a stretch at a time, everything else over all rows at once. Knows nothing of models, weights or texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from rankwright.toolbox.engine.batches import equal_runs

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

LEVEL, SLACK = 0.7, 32
"""In training a group of pairs is padded for attention alone, where its shortest has at least this share of the
longest's tokens, or is at most so many shorter: many small groups cost more in calls than the padding does."""
ROUND = 8
"""On a CPU its pairs are padded to a multiple of so many tokens: steps have groups of the same shape then (`even`)."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Pairs that attend in one call: neighbours of a batch, longest first, of these `lengths`; rows start..stop.

    Each takes `longest` tokens, padding included.
    """

    lengths: NDArray[np.int64]
    start: int
    stop: int
    longest: int

    @property
    def count(self) -> int:
        """How many pairs."""
        return len(self.lengths)

    @property
    def level(self) -> bool:
        """Whether all pairs have one length, so that nothing is padded."""
        return self.stop - self.start == self.count * self.longest

    @cached_property
    def _padding(self) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        real = np.arange(self.longest)[None, :] < self.lengths[:, None]
        places = np.zeros(real.shape, dtype=np.int64)
        places[real] = np.arange(self.stop - self.start)
        mask = torch.from_numpy(real)[:, None, None, :]
        return torch.from_numpy(places.reshape(-1)), mask, torch.from_numpy(np.flatnonzero(real))

    @cached_property
    def _there(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def padding(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Which row stands at each place of (count, longest), which places are real (a mask), and their numbers.

        Copied to a device once, and not in every layer: a GPU waits for each copy.
        """
        if device not in self._there:
            places, mask, real = self._padding
            self._there[device] = places.to(device), mask.to(device), real.to(device)
        return self._there[device]


class Stretches(list[Stretch]):
    """A batch, cut into stretches."""

    @cached_property
    def _there(self) -> dict[torch.device, Tensor]:
        return {}

    def ends(self, device: torch.device) -> Tensor:
        """Where each pair begins, and the end: int32 (pairs + 1,), copied to a device once."""
        import torch

        if device not in self._there:
            ends = np.concatenate([[0], np.cumsum(np.concatenate([one.lengths for one in self]))]).astype(np.int32)
            self._there[device] = torch.from_numpy(ends).to(device)
        return self._there[device]


def stretches_of(lengths: NDArray[np.int64], *, level: float, slack: int = 0, multiple: int = 1) -> Stretches:
    """Cut a batch, longest first, where a pair is shorter than `level` of its stretch's longest (1: of one length).

    Below 1 a pair that is at most `slack` tokens shorter than the longest belongs to the stretch too. Its pairs
    are padded to a `multiple` of tokens.
    """
    if level < 1:
        bounds = [0]
        while bounds[-1] < len(lengths):
            longest = lengths[bounds[-1]]
            least = min(level * longest, longest - slack)
            bounds.append(int(np.searchsorted(-lengths, -least, side="right")))
        cuts = list(pairwise(bounds))
    else:
        cuts = equal_runs(lengths)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return Stretches(
        Stretch(lengths[first:last], int(ends[first]), int(ends[last]), ceil(lengths[first] / multiple) * multiple)
        for first, last in cuts
    )


def bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's logits: 0 at tokens, -inf at padding; of the shape of the mask (1 at tokens).

    On a CPU logits that are filled by a mask of another shape take ten times as long.
    """
    import torch

    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
