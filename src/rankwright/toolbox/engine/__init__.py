"""Pairs to logits, fast: the one path of all scoring.

Unique texts are tokenised once, in a thread beside the forward pass (`pairs`); pairs are sorted by length over a large
window and cut by a budget of tokens (`batches`); a backend turns a batch into logits, without padding where it can
(`packed`, `openvino`), which are scattered back in order. Memory is constant whatever the number of pairs.
Which backends a machine has is `choose`'s business; whether one ranks as fp32 does, `guard`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rankwright.errors import ModelError
from rankwright.toolbox.engine.batches import token_batches
from rankwright.toolbox.engine.pairs import PairEncoder, Tokens
from rankwright.toolbox.footprint import out_of_memory
from rankwright.toolbox.heap import release

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    Pair = tuple[str, str]

WINDOW = 4096
"""Pairs that are tokenised and sorted together."""

_COUNTS_FROM_PADDING = ("roberta", "camembert", "mpnet", "data2vec-text", "ibert", "longformer")


class Backend(Protocol):
    """Turns a batch of tokens, longest pair first, into logits float32 (count,)."""

    name: str
    """As ``openvino int8``."""
    token_budget: int
    """Tokens of a batch, padding included where it pads."""
    padded: bool

    def __call__(self, batch: Tokens) -> NDArray[np.float32]:
        """The logits of the pairs, in their order."""
        ...


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens of a pair the model can read.

    RoBERTa's kind counts positions from the padding id on, so two of its 514 positions are never used.
    """
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    if positions and any(kind in str(config.model_type) for kind in _COUNTS_FROM_PADDING):
        positions -= int(config.pad_token_id or 0) + 1
    limits = [limit for limit in (positions, int(tokenizer.model_max_length)) if 0 < limit < 1_000_000]
    return min(limits, default=512)


def score_tokens(backend: Backend, tokens: Tokens) -> NDArray[np.float32]:
    """The logit of each pair, float32 (count,), in the order given."""
    scores = np.empty(len(tokens), dtype=np.float32)
    for positions in token_batches(tokens.lengths, backend.token_budget, padded=backend.padded):
        scores[positions] = _with_room(backend, tokens.take(positions))
    return scores


def _with_room(backend: Backend, batch: Tokens) -> NDArray[np.float32]:
    """A batch's logits; where memory runs out, those of its halves.

    Raises:
        ModelError: not even one pair has room.
    """
    try:
        return backend(batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(batch) == 1:
            message = f"out of memory: not even one pair of {len(batch.ids)} tokens has room"
            raise ModelError(message, hint="a smaller max_length, or device: cpu") from None
    # Outside of the except, whose traceback holds on to the tensors. A backend that names no device is a CPU's.
    release(getattr(backend, "device", "cpu"), cycles=True)
    half = (len(batch) + 1) // 2
    parts = (range(half), range(half, len(batch)))
    return np.concatenate([_with_room(backend, batch.take(list(part))) for part in parts])


def stream(backend: Backend, encoder: PairEncoder, pairs: Iterable[Pair]) -> Iterator[NDArray[np.float32]]:
    """The logits of any number of pairs, a window at a time, in the order given.

    The next window is tokenised while this one is in the forward pass; no more than two are in memory.
    """
    source = iter(pairs)
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as beside:
        coming = beside.submit(encoder, list(islice(source, WINDOW)))
        while len(tokens := coming.result()):
            coming = beside.submit(encoder, list(islice(source, WINDOW)))
            yield score_tokens(backend, tokens)


def score(
    backend: Backend,
    encoder: PairEncoder,
    pairs: Sequence[Pair],
    *,
    on_window: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float32]:
    """The logit of each pair, float32 (len(pairs),), in the order given."""
    parts = [np.empty(0, dtype=np.float32)]
    for part in stream(backend, encoder, pairs):
        parts.append(part)
        on_window(len(part))
    return np.concatenate(parts)
