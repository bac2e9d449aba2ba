"""A training's texts as token ids, read once, and flat logits laid out group by group.

In come groups, dev pairs and a tokenizer; out come the `Tokens` of any of those pairs, and the tensors of a loss. It
knows neither the model nor the order in which a training asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Group
from rankwright.sections import SampleSection
from rankwright.toolbox.engine.pairs import PairEncoder, Tokens, joined

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Pair = tuple[str, str]


_WINDOW, _WINDOW_TOKENS = 65_536, 33_000_000
"""Pairs that are joined together, at most; and tokens, of which each takes some 30 bytes in passing."""


class TextTokens:
    """The tokens of all pairs that a training will ask for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, pairs: Iterable[Pair]) -> None:
        """Encode each different pair once; all of them stay in memory, 4 bytes a token (8 with token types)."""
        self._places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
        encoder, different = PairEncoder(tokenizer, max_length), list(self._places)
        size = max(1, min(_WINDOW, _WINDOW_TOKENS // max_length))
        windows = (different[start : start + size] for start in range(0, len(different), size))
        self.tokens = joined(encoder(window) for window in windows)  # joining takes ten times their memory
        self._lengths = self.tokens.lengths
        self._specials = list(tokenizer.all_special_ids)

    def of(self, pairs: Iterable[Pair]) -> Tokens:
        """The tokens of some pairs, in their order.

        Raises:
            KeyError: a pair that was not announced.
        """
        return self.tokens.take([self._places[pair] for pair in pairs])

    def lengths(self, pairs: Iterable[Pair]) -> NDArray[np.int64]:
        """How many tokens each of some pairs has."""
        return self._lengths[[self._places[pair] for pair in pairs]]

    def used(self, padding: int) -> NDArray[np.bool_]:
        """Which token ids occur, with the special ones and that of the padding: bool, up to the largest."""
        ids, always = self.tokens.ids, [*self._specials, padding]
        used = np.zeros(1 + max([int(ids.max(initial=0)), *always]), dtype=np.bool_)
        used[ids] = True
        used[always] = True
        return used


def pairs_of(groups: Sequence[Group], swapped: Sequence[bool]) -> list[Pair]:
    """Each group's (query, document), or (document, query) where it is swapped."""
    return [
        (document, group.query) if turned else (group.query, document)
        for group, turned in zip(groups, swapped, strict=True)
        for document in group.documents
    ]


def longest_draws(texts: TextTokens, groups: Sequence[Group], sample: SampleSection | None) -> list[NDArray[np.int64]]:
    """The token counts of each group's pairs: all, or with a sample as many as are drawn, the longest."""
    found = []
    for group in groups:
        lengths = np.sort(texts.lengths((group.query, document) for document in group.documents))
        most = len(lengths) if sample is None else sample.positives + sample.negatives
        found.append(lengths[-most:])
    return found


def pad_groups(groups: Sequence[Group], logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Lay flat logits (pairs,) out as the five tensors of a loss, of shape (groups, widest), on logits' device."""
    import torch

    widths = torch.tensor([len(group) for group in groups], device=logits.device)
    mask = torch.arange(int(widths.max()), device=logits.device)[None, :] < widths[:, None]
    flat_labels = [label for group in groups for label in group.labels]
    flat_teacher = [score for group in groups for score in group.teacher]
    flat_weights = [weight for group in groups for weight in group.weights]

    def laid(values: torch.Tensor, filling: float) -> torch.Tensor:
        return torch.full(mask.shape, filling, device=logits.device, dtype=values.dtype).masked_scatter(mask, values)

    labels = laid(torch.tensor(flat_labels, device=logits.device), 0)
    teacher = laid(torch.tensor(flat_teacher, device=logits.device, dtype=torch.float32), float("nan"))
    weights = laid(torch.tensor(flat_weights, device=logits.device, dtype=torch.float32), 1.0)
    return laid(logits, 0.0), labels, mask, teacher, weights
