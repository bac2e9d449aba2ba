"""Pairs of texts to token ids, end to end and without padding.

In: (query, document) texts and a tokenizer. Out: `Tokens`, equal to the tokenizer's own pair encoding. Each unique
text is tokenised once and the pairs are joined from ids. Knows nothing of models, batches or devices.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

KEEP_TOKENS = 16_000_000
"""Tokens' worth of texts seen lately that an encoder keeps, of 4 bytes each: at most about 64 MB."""

_CHUNK_TEXTS = 4096
_CHUNK_CHARACTERS = 4_000_000
_WINDOW = 65_536
_OVERHEAD = 64

# Truncation and padding are state of the tokenizer, shared by all who hold it.
_LOCK = threading.RLock()

_PROBES = ("", " ", "a", "a b", "Red apples, 2 green pears!", "naïve  CAFÉ 東京 🙂", "x" * 12 + " y z" * 4, "\n")


def spread(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions start, start + 1, ... of every stretch, one stretch after the other: int64 (sum of lengths,)."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    shifts: NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths)
    return shifts + np.arange(total, dtype=np.int64)


@dataclass(frozen=True)
class Tokens:
    """Encoded pairs end to end, no padding.

    `ids` int32 (total,); `types` int32 (total,), or None where the tokenizer gives none; `starts` int64 (count + 1,):
    pair i is ids[starts[i] : starts[i + 1]].
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int32] | None
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens each pair has, int64 (count,)."""
        return np.diff(self.starts)

    def take(self, positions: Sequence[int] | NDArray[np.int64]) -> Tokens:
        """The pairs at these positions, in their order; a position may come more than once."""
        chosen = np.asarray(positions, dtype=np.int64)
        lengths = self.lengths[chosen]
        where = spread(self.starts[chosen], lengths)
        types = None if self.types is None else self.types[where]
        return Tokens(self.ids[where], types, stacked(lengths))


def joined(parts: Iterable[Tokens]) -> Tokens:
    """The pairs of all parts, in their order."""
    there = list(parts)
    typed = [part.types for part in there if part.types is not None]
    starts = stacked(np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in there)]))
    ids = np.concatenate([np.zeros(0, np.int32), *(part.ids for part in there)])
    return Tokens(ids, np.concatenate(typed) if typed else None, starts)


def stacked(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where stretches of these lengths start when they lie end to end, and the end: int64 (count + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def longest_first(
    first: NDArray[np.int64], second: NDArray[np.int64], room: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many tokens of each text stay when `room` tokens are left for both: int64 (count,) twice.

    The longer text is cut down to the shorter one's length, then both are; of an odd room the longer text gets the
    odd token, the second one if they are equally long. That is the rule `longest_first` of the `tokenizers` library.
    """
    shorter = np.minimum(np.minimum(first, second), room // 2)
    longer = np.minimum(np.maximum(first, second), room - shorter)
    swapped = first > second
    return np.where(swapped, longer, shorter), np.where(swapped, shorter, longer)


class PairEncoder:
    """Calls like a function: (query, document) pairs -> `Tokens`, as `tokenizer(queries, documents)` would give them.

    What the tokenizer writes around two texts is found out by probing it, and verified on probes. Where joining does
    not give the tokenizer's own encoding (`joins` is False), that encoding is used: the same result, more slowly.

    `max_length` counts the special tokens too; where it has no room for them, the tokenizer's own behaviour is kept.
    `keep_tokens` bounds the ids kept from call to call. Calls from several threads wait for each other while they
    tokenise; the tokenizer's truncation and padding are put back, but must not be used elsewhere at the same time.
    The tokenizer's threads obey TOKENIZERS_PARALLELISM, which is left alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, *, keep_tokens: int = KEEP_TOKENS) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._kept = _Kept(keep_tokens)
        self._left = tokenizer.truncation_side == "left"
        encoded = self._own([("a", "a b")], None)
        self._typed = "token_type_ids" in encoded
        self._template = self._verified(_template_of(encoded) if tokenizer.is_fast else None)

    @property
    def joins(self) -> bool:
        """Whether pairs are joined from the ids of their texts, rather than encoded by the tokenizer one by one."""
        return self._template is not None

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Tokens:
        """The pairs' tokens, in their order; the longer text of a pair is cut first."""
        if self._template is None:
            return self._encode_itself(pairs, self.max_length)
        return self._join(pairs, self._template, self.max_length)

    def lengths(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
        """How many tokens each pair has uncut, special tokens included: int64 (len(pairs),)."""
        # In windows, so that the ids of all texts are never held at once.
        windows = (pairs[start : start + _WINDOW] for start in range(0, len(pairs), _WINDOW))
        return np.concatenate([np.zeros(0, np.int64), *(self._uncut(window) for window in windows)])

    def _uncut(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
        if self._template is None:
            return self._encode_itself(pairs, None).lengths
        texts, first, second = _index(pairs)
        counts = np.array([count for _, count in self._read(texts)], dtype=np.int64)
        return counts[first] + counts[second] + self._template.specials

    def _join(self, pairs: Sequence[tuple[str, str]], template: _Template, max_length: int) -> Tokens:
        if not pairs:
            return _laid_out([], [] if self._typed else None)
        texts, first, second = _index(pairs)
        read = self._read(texts)
        stored = np.array([len(ids) for ids, _ in read], dtype=np.int64)
        counts = np.array([count for _, count in read], dtype=np.int64)
        source = np.concatenate([template.ids, *(ids for ids, _ in read)])
        where = stacked(stored)[:-1] + len(template.ids)
        kept = longest_first(counts[first], counts[second], max_length - template.specials)
        slots = len(template.ids)
        starts = np.tile(np.arange(slots, dtype=np.int64), (len(pairs), 1))
        lengths = np.ones((len(pairs), slots), dtype=np.int64)
        for slot, text, keep in zip((template.first, template.second), (first, second), kept, strict=True):
            starts[:, slot] = where[text] + (stored[text] - keep if self._left else 0)
            lengths[:, slot] = keep
        ids = source[spread(starts.ravel(), lengths.ravel())]
        types = np.repeat(np.tile(template.types, len(pairs)), lengths.ravel()) if self._typed else None
        return Tokens(ids, types, stacked(lengths.sum(axis=1)))

    def _read(self, texts: Sequence[str]) -> list[_Text]:
        """Ids and true length of each of these unique texts, from those kept or by the tokenizer."""
        with _LOCK:
            found = {text: kept for text in texts if (kept := self._kept.get(text)) is not None}
            for chunk in _chunks([text for text in texts if text not in found]):
                with _uncut_backend(self.tokenizer) as backend:
                    encodings = backend.encode_batch_fast(chunk, add_special_tokens=False)
                for text, encoding in zip(chunk, encodings, strict=True):
                    ids = encoding.ids
                    # No pair has room for more; the true length still decides which text is the longer one.
                    part = ids[max(len(ids) - self.max_length, 0) :] if self._left else ids[: self.max_length]
                    found[text] = (np.array(part, dtype=np.int32), len(ids))
                    self._kept.put(text, found[text])
        return [found[text] for text in texts]

    def _encode_itself(self, pairs: Sequence[tuple[str, str]], max_length: int | None) -> Tokens:
        """The tokenizer's own encoding, cut at `max_length` tokens or uncut."""
        encoded: Any = {"input_ids": [], "token_type_ids": []} if not pairs else self._own(pairs, max_length)
        return _laid_out(encoded["input_ids"], encoded["token_type_ids"] if self._typed else None)

    def _own(self, pairs: Sequence[tuple[str, str]], max_length: int | None) -> Any:
        cut: dict[str, Any] = {} if max_length is None else {"truncation": "longest_first", "max_length": max_length}
        queries, documents = zip(*pairs, strict=True)
        with _LOCK, _settings_kept(self.tokenizer):
            return self.tokenizer(
                list(queries), list(documents), **cut, padding=False, return_attention_mask=False, verbose=False
            )

    def _verified(self, template: _Template | None) -> _Template | None:
        """The template if joining by it gives the tokenizer's own encoding of the probes, else None."""
        if template is None or template.specials > self.max_length:
            return None
        probes = [(first, second) for first in _PROBES for second in _PROBES]
        # Even and odd room: which text gets the odd token is part of the rule.
        cuts = {template.specials + 4, template.specials + 5, self.max_length}
        for cut in (cut for cut in cuts if cut <= self.max_length):
            if not _equal(self._join(probes, template, cut), self._encode_itself(probes, cut)):
                return None
        return template


_Text = tuple[NDArray[np.int32], int]
"""The ids of a text, those that a pair can have room for, and how many it has uncut."""


@dataclass(frozen=True)
class _Template:
    """What stands around two texts: a slot for each special token and for each text, in their order.

    `ids` and `types` int32 (slots,); the ids of the texts' own slots, `first` and `second`, mean nothing.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int32]
    first: int
    second: int

    @property
    def specials(self) -> int:
        return len(self.ids) - 2


class _Kept:
    """The texts seen lately, at most `most` tokens' worth of them.

    A text's own characters count too, four to a token, and `_OVERHEAD` for what Python keeps around it.

    Two generations: when the young one is half of `most`, it becomes the old one and the old one is forgotten, so a
    text that is asked for again and again stays.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0
        self.young: dict[str, _Text] = {}
        self.old: dict[str, _Text] = {}

    def get(self, text: str) -> _Text | None:
        found = self.young.get(text)
        if found is None and (found := self.old.pop(text, None)) is not None:
            self.put(text, found)
        return found

    def put(self, text: str, kept: _Text) -> None:
        weight = len(kept[0]) + len(text) // 4 + _OVERHEAD
        if 2 * weight > self.most:
            return
        if 2 * (self.size + weight) > self.most:
            self.old, self.young, self.size = self.young, {}, 0
        self.young[text] = kept
        self.size += weight


def _index(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The unique texts, and which of them each pair's first and second text is."""
    texts = list(dict.fromkeys(chain.from_iterable(pairs)))
    positions = dict(zip(texts, range(len(texts)), strict=True))
    first, second = (
        np.fromiter(map(positions.__getitem__, map(itemgetter(side), pairs)), np.int64, len(pairs)) for side in (0, 1)
    )
    return texts, first, second


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in parts that bound the memory of encoding them."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        if chunk and (len(chunk) == _CHUNK_TEXTS or characters + len(text) > _CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk


@contextmanager
def _settings_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Puts back what a call leaves behind in a fast tokenizer: truncation, padding, reading of special tokens."""
    if not tokenizer.is_fast:
        yield
        return
    backend = tokenizer.backend_tokenizer
    truncation, padding, special = backend.truncation, backend.padding, backend.encode_special_tokens
    try:
        yield
    finally:
        _set(backend, truncation, padding, special)


@contextmanager
def _uncut_backend(tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokenizer]:
    """The tokenizer's backend with truncation and padding off, while the block lasts."""
    with _settings_kept(tokenizer):
        backend: Tokenizer = tokenizer.backend_tokenizer
        _set(backend, None, None, tokenizer.split_special_tokens)
        yield backend


def _set(backend: Tokenizer, truncation: dict[str, Any] | None, padding: dict[str, Any] | None, special: bool) -> None:
    # Only what differs: a change while another thread encodes is an error.
    if backend.truncation != truncation:
        backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
    if backend.padding != padding:
        backend.no_padding() if padding is None else backend.enable_padding(**padding)
    if backend.encode_special_tokens != special:
        backend.encode_special_tokens = special


def _template_of(encoded: Any) -> _Template | None:
    """What a tokenizer wrote around the two texts of one encoded pair; None where a text is not in one piece."""
    ids = np.array(encoded["input_ids"][0], dtype=np.int32)
    types = np.array(encoded["token_type_ids"][0] if "token_type_ids" in encoded else np.zeros(len(ids)), np.int32)
    sequence = np.array([-1 if owner is None else owner for owner in encoded.sequence_ids(0)], dtype=np.int64)
    # A text's tokens become one slot: of each run of the same text only its first token stays.
    stays = (sequence < 0) | np.concatenate([[True], sequence[1:] != sequence[:-1]])
    slots = [np.flatnonzero(sequence[stays] == text) for text in (0, 1)]
    if any(len(slot) != 1 for slot in slots):
        return None
    return _Template(ids[stays], types[stays], int(slots[0][0]), int(slots[1][0]))


def _laid_out(rows: list[list[int]], types: list[list[int]] | None) -> Tokens:
    """Lists of ids (and types) end to end."""
    starts = stacked(np.array([len(row) for row in rows], dtype=np.int64))
    total = int(starts[-1])
    ids = np.fromiter(chain.from_iterable(rows), np.int32, total)
    return Tokens(ids, None if types is None else np.fromiter(chain.from_iterable(types), np.int32, total), starts)


def _equal(one: Tokens, other: Tokens) -> bool:
    if (one.types is None) != (other.types is None) or not np.array_equal(one.starts, other.starts):
        return False
    same_types = one.types is None or other.types is None or np.array_equal(one.types, other.types)
    return np.array_equal(one.ids, other.ids) and same_types
