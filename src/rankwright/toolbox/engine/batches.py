"""Lengths to batches: which pairs run together, longest first, within a budget of tokens.

In: how many tokens each pair has. Out: positions of the pairs of each batch. Knows nothing of texts, ids or models.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SMALL_BATCH = 8
_LEVEL = 0.75


def token_batches(lengths: ArrayLike, token_budget: int, *, padded: bool) -> list[NDArray[np.int64]]:
    """Positions of all pairs, longest first (ties by position), cut into batches of at least one pair.

    Unpadded: the tokens of a batch add up to at most `token_budget`. Padded: count x longest is at most that, and a
    batch of some size also ends where its next pair is much shorter than its longest: in a training step, whose few
    pairs differ most, that takes padding from 43% to 16% of the real tokens (the demo's groups).
    A pair that is longer than the budget makes a batch of its own.
    """
    known = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-known, kind="stable").astype(np.int64)
    descending = known[order]
    cuts = _padded_cuts(descending, token_budget) if padded else _unpadded_cuts(descending, token_budget)
    return [order[start:stop] for start, stop in pairwise(cuts)]


def equal_runs(lengths_sorted: ArrayLike) -> list[tuple[int, int]]:
    """Start and stop of each group of equal neighbours: in a sorted batch, the pairs of one length."""
    known = np.asarray(lengths_sorted, dtype=np.int64)
    if not len(known):
        return []
    edges = [0, *(np.flatnonzero(known[1:] != known[:-1]) + 1).tolist(), len(known)]
    return list(pairwise(edges))


def _unpadded_cuts(descending: NDArray[np.int64], token_budget: int) -> list[int]:
    """Where batches start, and the end: each takes as many pairs as the budget has tokens for."""
    totals = np.cumsum(descending)
    cuts = [0]
    while cuts[-1] < len(descending):
        start = cuts[-1]
        before = totals[start] - descending[start]
        cuts.append(max(start + 1, int(np.searchsorted(totals, before + token_budget, side="right"))))
    return cuts


def _padded_cuts(descending: NDArray[np.int64], token_budget: int) -> list[int]:
    """The same where every pair takes as much room as the longest of its batch."""
    ascending = -descending
    cuts = [0]
    while cuts[-1] < len(descending):
        start = cuts[-1]
        longest = int(descending[start])
        # Up to here pairs are long enough to share a batch of any size; a small batch takes shorter ones too.
        level = int(np.searchsorted(ascending, -ceil(_LEVEL * longest), side="right"))
        room = token_budget // longest if longest else len(descending)
        cuts.append(max(start + 1, min(max(level, start + _SMALL_BATCH), start + room, len(descending))))
    return cuts
