"""The forward pass in torch: packed where the family is known, else padded with a mask; for scoring and for training.

In: a classifier with one label and `Tokens`. Out: logits. `TorchBackend` scores; `forward_tokens` keeps the graph.
Knows nothing of texts, tokenizers or losses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.toolbox.device import autocast
from rankwright.toolbox.engine import packed
from rankwright.toolbox.engine.batches import token_batches

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from rankwright.toolbox.engine.pairs import Tokens

TOKEN_BUDGET = {"cpu": 2048, "cuda": 32768, "mps": 8192}
"""Tokens of a batch, padding included."""


class TorchBackend:
    """Scores batches of tokens with a torch model on its own device, in fp32, bf16 or fp16.

    The model is left as it is: in its mode, in its precision. Weights of a lower precision are a copy.
    """

    def __init__(self, model: PreTrainedModel | Any, pad_id: int, precision: str) -> None:
        import torch

        self.name = f"torch {precision}"
        self.model, self.pad_id, self.precision = model, pad_id, precision
        self.device = str(model.device)
        self.token_budget = TOKEN_BUDGET[self.device.split(":")[0]]
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._packed = packed.Packed(model, dtype) if packed.supported(model) else None
        self.padded = self._packed is None

    def __call__(self, batch: Tokens) -> NDArray[np.float32]:
        """The logits of the pairs, float32 (count,), in their order, which must be longest first."""
        import torch

        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                found = self._packed(batch) if self._packed else self._padded(batch)
        finally:
            self.model.train(training)
        return found.float().cpu().numpy()

    def _padded(self, batch: Tokens) -> torch.Tensor:
        with autocast(self.device, self.precision):
            return _padded(self.model, batch, self.pad_id, self.device)


def forward_tokens(
    model: Any,
    tokens: Tokens,
    *,
    pad_id: int,
    device: str,
    precision: str,
    tap: packed.Tap | None = None,
    budget: int | None = None,
    even: bool = True,
) -> torch.Tensor:
    """Logits float32 (len(tokens),), in their order, with their graph where gradients are on.

    At most `budget` tokens at a time, padding included (default: the device's), or one pair.
    A `tap`, for families that are packed, gets one tensor more: the rows of these tokens, in their order. Not `even`:
    without the tokens that may be added to a batch, so that what one more pair takes can be measured.
    """
    import torch

    ours = None if tap is None else packed.Tap(tap.layer)
    known = packed.supported(model)
    budget = budget or TOKEN_BUDGET[device.split(":")[0]]
    parts, batches = [], token_batches(tokens.lengths, budget, padded=not known)
    for positions in batches:
        batch = tokens.take(positions)
        with autocast(device, precision):
            found = packed.logits(model, batch, ours, even=even) if known else _padded(model, batch, pad_id, device)
        parts.append(found.float())
    order = torch.from_numpy(np.argsort(np.concatenate(batches))).to(parts[0].device)
    if tap and ours:
        tap.rows.append(torch.cat(ours.rows)[order])
    return torch.cat(parts)[order]


def _padded(model: Any, batch: Tokens, pad_id: int, device: str) -> torch.Tensor:
    logits: torch.Tensor = model(**collate(batch, pad_id, device)).logits
    return logits.reshape(-1)


def collate(batch: Tokens, pad_id: int, device: str) -> dict[str, torch.Tensor]:
    """Padded tensors (count, longest) of a batch, with their attention mask."""
    import torch

    lengths = batch.lengths
    real = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    made = {"attention_mask": real.astype(np.int64), "input_ids": np.full(real.shape, pad_id, dtype=np.int64)}
    made["input_ids"][real] = batch.ids
    if batch.types is not None:
        made["token_type_ids"] = np.zeros(real.shape, dtype=np.int64)
        made["token_type_ids"][real] = batch.types
    return {name: torch.from_numpy(rows).to(device) for name, rows in made.items()}
