"""A reranker's scores, cached by the model's content and the pair's text: nothing is scored twice.

The cache is one `store.RowStore` a (model, length, precision). The model is loaded only when a pair is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import content_hash
from rankwright.toolbox import engine
from rankwright.toolbox.device import choose_device, choose_precision
from rankwright.toolbox.model import Reranker, has_head
from rankwright.toolbox.progress import bar, say
from rankwright.toolbox.store import RowStore, content_keys, fill
from rankwright.toolbox.weights import fingerprint, locate


class CachedScorer:
    """Calls like a function: (query text, document text) pairs -> logits, float32 (len(pairs),).

    Raises, when it is made:
        ModelError: the folder or hub id holds no reranker.
        ConfigError: a precision that the device has not.
    """

    def __init__(
        self,
        reference: str | Path,
        *,
        cache: Path,
        device: str = "auto",
        max_length: int = 512,
        precision: str = "auto",
    ) -> None:
        self.folder = locate(str(reference))
        self.device = device
        self.max_length = max_length
        # Not measured where `auto` is asked for: a cached score must not depend on the machine's mood.
        self.precision = "fp32" if precision == "auto" else choose_precision(precision, choose_device(device))[0]
        if not has_head(self.folder):
            Reranker.load(self.folder)  # raises, and says what to do
        self.fingerprint = fingerprint(self.folder)
        name = content_hash([self.fingerprint, str(max_length), self.precision])
        self.store = RowStore(cache / "scores" / name, width=1)
        self._reranker: Reranker | None = None

    def __call__(self, pairs: Sequence[tuple[str, str]], *, what: str = "score") -> NDArray[np.float32]:
        """Score the pairs that the cache lacks, in chunks that survive a kill, and return all."""
        keys = content_keys(pairs)
        with bar(what, len(pairs), "pairs") as advance:
            rows = fill(
                self.store,
                keys,
                lambda positions: self._compute([pairs[position] for position in positions]),
                chunk=engine.WINDOW,
                on_chunk=advance,
            )
        return np.array(self.store.rows[rows, 0])

    def _compute(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        if self._reranker is None:
            self._reranker = Reranker.load(self.folder, device=self.device, max_length=self.max_length)
            if self._reranker.max_length < self.max_length:
                say(f"pairs are cut at {self._reranker.max_length} tokens, the most that this model reads")
        return self._reranker.score(pairs, precision=self.precision)[:, None]


def both_orders(scorer: Callable[..., NDArray[np.float32]]) -> Callable[..., NDArray[np.float32]]:
    """A scorer that averages (query, document) and (document, query): for tasks where either order means the same."""

    def score(pairs: Sequence[tuple[str, str]], **options: Any) -> NDArray[np.float32]:
        swapped = [(document, query) for query, document in pairs]
        both = scorer([*pairs, *swapped], **options)
        return ((both[: len(pairs)] + both[len(pairs) :]) / 2).astype(np.float32)

    return score


def pair_lengths(reference: str | Path) -> Callable[[Sequence[tuple[str, str]]], NDArray[np.int64]]:
    """A function that counts the tokens of pairs by a model's own tokenizer, uncut: int64 (len(pairs),)."""
    folder = locate(str(reference))

    def lengths(pairs: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = dict.fromkeys(text for pair in pairs for text in pair)
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        counts = dict(zip(texts, map(len, encoded), strict=True))
        special = tokenizer.num_special_tokens_to_add(pair=True)
        return np.array([counts[query] + counts[document] + special for query, document in pairs], dtype=np.int64)

    return lengths


def tokens_read(reference: str | Path, max_length: int) -> int:
    """How many tokens of a pair a model reads when it is asked for `max_length`: its own limit may be smaller."""
    from transformers import AutoConfig, AutoTokenizer

    folder = locate(str(reference))
    longest = engine.longest_input(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    return min(max_length, longest)
