"""A batch of tokens brought to a round number by pairs that nobody reads, so that it is computed as others were.

In: the `Tokens` of a batch, longest pair first. Out: the same with a few tokens more, and which pairs are its own.
oneDNN, by which torch multiplies on a CPU, makes a kernel for each shape that it meets and keeps the last thousand.
Batches of any number of tokens would have it make new ones all the time, for longer than some products take.
Knows nothing of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rankwright.toolbox.engine.pairs import Tokens, joined, stacked

if TYPE_CHECKING:
    from numpy.typing import NDArray

MULTIPLE = 32
"""What divides the number of tokens of a batch."""


def evened(batch: Tokens) -> tuple[Tokens, NDArray[np.int64]]:
    """The batch with its number of tokens a multiple of `MULTIPLE`, and the positions of its own pairs in it.

    What is added are pairs of one of its tokens, none longer than the longest; the longest still comes first.
    """
    missing = -len(batch.ids) % MULTIPLE
    if not missing:
        return batch, np.arange(len(batch))
    longest = int(batch.lengths[0])
    lengths = np.array([longest] * (missing // longest) + [missing % longest], dtype=np.int64)
    ids = np.full(missing, batch.ids[0])
    types = None if batch.types is None else np.zeros_like(ids)
    both = joined([batch, Tokens(ids, types, stacked(lengths[lengths > 0]))])
    order = np.argsort(-both.lengths, kind="stable")
    return both.take(order), np.flatnonzero(order < len(batch))
