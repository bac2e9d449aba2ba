"""BM25 over texts: which documents share words with a query, and how much that counts.

In come documents (id -> text) and queries (id -> text); out go scores. The index is bm25s'; the words are ours,
because bm25s' tokenizer finds no words in scripts that write no spaces.

It does not know collections, splits or runs.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwright.toolbox.progress import bar

# Han, kana, Thai, Lao, Myanmar, Khmer: scripts that put no space between words.
_UNSPACED = (
    "\u3005\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59\u0e80-\u0eff\u1000-\u1049\u1050-\u109f\u1780-\u17d3"
)


def tokenize(text: str) -> list[str]:
    r"""The index terms of a text: words, casefolded after Unicode NFKC.

    A run of Chinese, Japanese, Thai, Lao, Burmese or Khmer becomes its single characters and its bigrams. Its
    words cannot be told without a dictionary: bigrams are the usual stand-in for them, and single characters let
    a word of one character match (as Lucene's CJKBigramFilter with outputUnigrams).
    """
    tokens: list[str] = []
    for match in _pattern().finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match[0]
        if match.lastgroup == "word":
            tokens.append(run)
        else:
            tokens.extend(run)
            tokens.extend(run[place : place + 2] for place in range(len(run) - 1))
    return tokens


class Bm25:
    r"""An index of `documents` with the parameters `k1` and `b`.

    score(q, d) = sum over the terms t of q, each as often as q has it, of
    ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 (1 - b + b |d| / avg)), which is Lucene's BM25 with exact
    lengths (Kamphuis et al., ECIR 2020). Scores are float32.
    """

    def __init__(self, documents: Mapping[str, str], k1: float = 0.9, b: float = 0.4) -> None:
        # In the order of ids, so that the sooner of two equal scores is also the smaller id, as in a Run.
        self._ids = sorted(documents)
        self._place = {document: place for place, document in enumerate(self._ids)}
        self._vocabulary: dict[str, int] = {}
        numbers = self._vocabulary
        terms = [
            [numbers.setdefault(token, len(numbers)) for token in tokenize(documents[document])]
            for document in self._ids
        ]
        self._index = self._build(terms, k1, b) if numbers else None

    def search(self, queries: Mapping[str, str], depth: int, what: str = "bm25") -> dict[str, dict[str, float]]:
        """Query id -> document id -> score, best first: the best `depth` documents that share a term with the query.

        Equal scores stand in the order of document ids. A query that shares no term with any document has an
        empty entry. `what` is the name on the progress bar.
        """
        found: dict[str, dict[str, float]] = {}
        with bar(what, len(queries), "queries") as advance:
            for query, text in queries.items():
                scores = self._all_scores(text)
                found[query] = {self._ids[place]: float(scores[place]) for place in _best(scores, depth)}
                advance(1)
        return found

    def scores(self, query: str, document_ids: Sequence[str]) -> NDArray[np.float32]:
        """The score of the text `query` with each document: float32 (count,), 0 without a shared term.

        NaN for a document that the index lacks.
        """
        known = [document in self._place for document in document_ids]
        result = np.full(len(document_ids), np.nan, dtype=np.float32)
        places = [self._place[document] for document in document_ids if document in self._place]
        result[known] = self._all_scores(query)[places]
        return result

    def _build(self, terms: list[list[int]], k1: float, b: float) -> Any:
        import bm25s

        index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        index.index((terms, self._vocabulary), create_empty_token=False, show_progress=False)
        return index

    def _all_scores(self, query: str) -> NDArray[np.float32]:
        terms = [number for token in tokenize(query) if (number := self._vocabulary.get(token)) is not None]
        if self._index is None or not terms:
            return np.zeros(len(self._ids), dtype=np.float32)
        scores: NDArray[np.float32] = self._index.get_scores_from_ids(terms)
        return scores


def _best(scores: NDArray[np.float32], depth: int) -> list[int]:
    """The places of the `depth` highest scores above 0, best first, equal ones in their order."""
    places = np.flatnonzero(scores > 0)
    if len(places) > depth:
        edge = np.partition(scores[places], len(places) - depth)[len(places) - depth]
        places = places[scores[places] >= edge]
    order = np.argsort(-scores[places], kind="stable")[:depth]
    return [int(place) for place in places[order]]


@functools.cache
def _pattern() -> re.Pattern[str]:
    r"""Runs of an unspaced script, or words.

    `\w` lacks the vowel signs and accents that are characters of their own (Hindi's, Tamil's), so that they
    are added, else they would cut words in two.
    """
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    return re.compile(rf"(?P<run>[{_UNSPACED}]+)|(?P<word>(?:[^\W{_UNSPACED}]+[{marks}]*)+)")
