"""Can a model read the texts at all? Words of a script that its tokenizer lacks come to it as [UNK], or in letters.

In: a tokenizer and texts. Out: the share of them that it cannot read, and a sentence about it. It looks at scripts, not
at languages: French in an English model's letters is read by this measure, whether or not the model has learned any.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

ILLEGIBLE = 0.2
"""An unread share above this is a fault. (An English encoder: 0.00 of English and German, 0.67 to 0.91 of Chinese,
Japanese, Russian, Arabic.)"""
_TEXTS, _CHARACTERS = 200, 500
"""Of a sample: how many, and how much of each."""
_SPACE = "▁Ġ"
"""What stands for a space in pieces, and may be a piece by itself."""
_PIECES, _SHORT = 4, 1.25
"""A word in so many pieces of so few characters each is spelled, not read. Not so one in ASCII, which is a rare name or
a number of an article, as no tokenizer lacks that script; ideographs are often pieces of their own, and spelled where
they are more pieces than characters."""


def unread(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """The share of the letters of a sample of `texts` that stand in words which the tokenizer cannot read, 0 to 1.

    Those are pieces that it has no token for, and words that it has to spell. 0 where there are no letters, and for a
    tokenizer that does not tell where its pieces come from (one without a Rust backend).
    """
    if not getattr(tokenizer, "is_fast", False):
        return 0.0
    some = [text[:_CHARACTERS] for text in texts[:: max(1, len(texts) // _TEXTS)]]
    encoded = tokenizer.backend_tokenizer.encode_batch(some, add_special_tokens=False)
    counts = [_counted(*each, tokenizer.unk_token_id) for each in zip(some, encoded, strict=True)]
    letters = sum(found for found, _ in counts)
    return sum(lost for _, lost in counts) / letters if letters else 0.0


def complaint(reference: str | Path, tokenizer: PreTrainedTokenizerBase, *sides: Sequence[str]) -> str:
    """A sentence on a model that cannot read one of some sides, such as queries and documents; empty where it can."""
    share = max(unread(tokenizer, texts) for texts in sides)
    if share <= ILLEGIBLE:
        return ""
    why = "its tokenizer lacks their script"
    return f"{reference} cannot read {share:.0%} of these texts, for {why}: take a model of their language"


def _counted(text: str, encoding: Encoding, unknown: int | None) -> tuple[int, int]:
    """How many characters of a text stand in words with letters, and how many of them are not read."""
    words: dict[int, list[tuple[int, int, bool]]] = {}
    pieces = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.word_ids, strict=True)
    for number, token, (start, end), place in pieces:
        if place is not None and token.strip(_SPACE):
            words.setdefault(place, []).append((start, end, number == unknown))
    letters = lost = 0
    for found in words.values():
        word = text[min(piece[0] for piece in found) : max(piece[1] for piece in found)].strip()
        if not any(map(str.isalpha, word)):
            continue
        letters += len(word)
        missing = sum(len(text[start:end].strip()) for start, end, missed in found if missed)
        lost += len(word) if _spelled(word, len(found)) else missing
    return letters, lost


def _spelled(word: str, pieces: int) -> bool:
    """Whether a word comes in letters, or in less than that."""
    if word.isascii() or pieces < _PIECES:
        return False
    if any(unicodedata.name(letter, "").startswith("CJK UNIFIED") for letter in word):
        return pieces > len(word)
    return len(word) <= _SHORT * pieces
