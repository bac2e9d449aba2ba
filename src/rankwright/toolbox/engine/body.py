"""An encoder's hidden states on a CPU without padding, for texts that another library pads and pools.

In: a BERT, RoBERTa or XLM-R encoder without a head, as a sentence-transformers model holds it. Out: the same object,
whose forward pass is `packed`'s: the hidden states that it gave before, up to rounding, and zeros where there is
padding. It does not know what becomes of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.toolbox.engine import packed
from rankwright.toolbox.engine.batches import token_batches
from rankwright.toolbox.engine.even import evened
from rankwright.toolbox.engine.forward import TOKEN_BUDGET
from rankwright.toolbox.engine.pairs import Tokens, stacked

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def unpad(body: Any, dtype: torch.dtype) -> bool:
    """Give `body` the packed forward pass, in `dtype`, with a copy of its weights; whether it can have it.

    What this pass does not give (attentions, all layers, a training, texts padded at the front) is left to the old one.
    """
    always = any(getattr(body.config, name, False) for name in _MORE)
    if always or not packed.supported_body(body) or body.device.type != "cpu":
        return False
    own, scorer = body.forward, packed.Packed(body, dtype)

    def forward(
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **others: Any,
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        asked = any(others.get(name) is not None for name in _OTHERS) or any(others.get(name) for name in _MORE)
        if body.training or asked or input_ids is None or attention_mask is None or not _at_the_end(attention_mask):
            given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return own(input_ids, **{name: value for name, value in given.items() if value is not None}, **others)
        states = _states(scorer, input_ids, attention_mask, token_type_ids)
        pooler = getattr(body, "pooler", None)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooler(states) if pooler else None)

    body.forward = forward
    return True


_OTHERS = ("position_ids", "inputs_embeds", "past_key_values", "encoder_hidden_states")
_MORE = ("output_attentions", "output_hidden_states")


def _at_the_end(mask: Tensor) -> bool:
    """Whether padding follows each text, and no text is empty."""
    return bool(mask[:, 0].all() and (mask[:, 1:] <= mask[:, :-1]).all())


def _states(scorer: packed.Packed, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
    """The hidden states after the last layer, float32 (texts, longest, hidden)."""
    import torch

    real = mask.bool().numpy()
    flat = [None if one is None else one.numpy()[real].astype(np.int32) for one in (ids, types)]
    assert flat[0] is not None
    tokens = Tokens(flat[0], flat[1], stacked(real.sum(1)))
    found: Tensor | None = None
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for positions in token_batches(tokens.lengths, TOKEN_BUDGET["cpu"], padded=False):
            batch, own = evened(tokens.take(positions))
            rows = scorer.states(batch)
            found = torch.zeros((*real.shape, rows.shape[1])) if found is None else found
            parts = rows.float().split(batch.lengths.tolist())
            for place, number in zip(positions, own, strict=True):
                found[place, : len(parts[number])] = parts[number]
    assert found is not None
    return found
