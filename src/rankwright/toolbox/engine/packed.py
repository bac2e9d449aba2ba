"""The packed forward pass: pairs end to end, no padding, no mask, in torch.

In: a BERT, RoBERTa or XLM-R classifier with one label, and `Tokens`. Out: one logit a pair, the model's own up to
rounding (of an encoder without a head: hidden states). All linear layers run over (tokens, hidden); attention runs over
the pairs of one length together; in the last layer only the first token's row is computed, which is all that the head
reads. `Packed` is for scoring, with weights cast, joined and laid out once; `logits` is for training, with dropout and
gradients, through `layer` or the model's own modules.

Knows nothing of texts, tokenizers, windows or what the logits are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.toolbox.engine import ragged
from rankwright.toolbox.engine.even import evened
from rankwright.toolbox.engine.noise import Noise, seeds
from rankwright.toolbox.engine.stretches import LEVEL, ROUND, SLACK, Stretch, Stretches, bias, stretches_of

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from rankwright.toolbox.engine.pairs import Tokens
    from rankwright.toolbox.engine.products import Linear

FAMILIES = ("BertForSequenceClassification", "RobertaForSequenceClassification", "XLMRobertaForSequenceClassification")
"""Classes that are computed here; any other is padded and masked by the caller."""
BODIES = ("BertModel", "RobertaModel", "XLMRobertaModel")
"""The same without a head."""

_SMALL = 128
"""Tokens of a pair up to which attention is two products in bf16 on a CPU."""


def bare(model: Any) -> Any:
    """The classifier inside a wrapper of low-rank adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def supported(model: Any) -> bool:
    """Whether this module computes what the model does."""
    model = bare(model)
    return type(model).__name__ in FAMILIES and _reads_both_ways(model.config)


def supported_body(body: Any) -> bool:
    """Whether `Packed.states` are what this encoder gives."""
    return type(body).__name__ in BODIES and _reads_both_ways(body.config)


def _reads_both_ways(config: Any) -> bool:
    causal = getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False)
    return getattr(config, "position_embedding_type", None) in (None, "absolute") and not causal


def plain(model: Any) -> bool:
    """Whether `Packed` computes what the model does: supported, and no layer is wrapped (adapters) or rounds."""
    import torch

    if not supported(model) or bare(model) is not model:
        return False
    linears = (part for part in _body(model).encoder.modules() if isinstance(part, torch.nn.Linear))
    return all(type(part) is torch.nn.Linear for part in linears)


class Packed:
    """Scores batches of `Tokens` with a copy of the model's linear weights in `dtype`, made once.

    Embeddings, normalisation of the first hidden state and the head stay in fp32: they cost little.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        import torch

        self.model, self.dtype = bare(model), dtype
        with torch.inference_mode():
            layers = _body(self.model).encoder.layer
            self.layers = [_Layer.of(layer, dtype) for layer in layers]

    def __call__(self, batch: Tokens) -> Tensor:
        """The logits of the pairs, float32 (count,), in their order, which must be longest first."""
        batch, own = evened(batch) if _on_cpu(self.model) else (batch, slice(None))
        return self.onward(batch, self.begin(batch), 0)[own]

    def states(self, batch: Tokens) -> Tensor:
        """The hidden states after the last layer, (tokens, hidden), which need no head."""
        return self.begin(batch, len(self.layers))

    def begin(self, batch: Tokens, layers: int = 0) -> Tensor:
        """The hidden states after the first `layers`, (tokens, hidden); for `onward`, of not all of them."""
        return self._through(self.layers[:layers], batch, embed(self.model, batch).to(self.dtype))

    def onward(self, batch: Tokens, hidden: Tensor, layers: int) -> Tensor:
        """The logits, float32 (count,), of pairs whose hidden states after the first `layers` these are."""
        *between, last = self.layers[layers:]
        hidden = self._through(between, batch, hidden)
        stretches = stretches_of(batch.lengths, level=_level(hidden))
        context = attend(last.mixing(hidden), stretches, self._heads, first_only=True)
        rows = last.rest(context, hidden[_firsts(batch, hidden)])
        return head(self.model, rows.to(_body(self.model).embeddings.word_embeddings.weight.dtype)).float()

    def _through(self, layers: Sequence[_Layer], batch: Tokens, hidden: Tensor) -> Tensor:
        stretches = stretches_of(batch.lengths, level=_level(hidden))
        for layer in layers:
            hidden = layer.rest(attend(layer.mixing(hidden), stretches, self._heads), hidden)
        return hidden

    @property
    def _heads(self) -> int:
        return int(self.model.config.num_attention_heads)


@dataclass(frozen=True)
class _Layer:
    """One layer's weights, query, key and value joined, in the precision that it is computed in."""

    mixing: Linear
    output: Linear
    widen: Linear
    narrow: Linear
    norms: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]

    @classmethod
    def of(cls, layer: Any, dtype: torch.dtype) -> _Layer:
        import torch

        from rankwright.toolbox.engine.products import Linear

        own = layer.attention.self
        parts = (own.query, own.key, own.value)
        mixing = torch.cat([part.weight.detach() for part in parts]), torch.cat([part.bias.detach() for part in parts])
        dense = (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
        output, widen, narrow = ((part.weight, part.bias) for part in dense)
        return cls(
            Linear(*mixing, dtype),
            Linear(*output, dtype),
            Linear(*widen, dtype, layer.intermediate.intermediate_act_fn),
            Linear(*narrow, dtype),
            (_norm(layer.attention.output.LayerNorm, dtype), _norm(layer.output.LayerNorm, dtype)),
        )

    def rest(self, context: Tensor, rows: Tensor) -> Tensor:
        """What comes after attention, for these rows."""
        attended = self.norms[0](self.output(context).add_(rows))
        return self.norms[1](self.narrow(self.widen(attended)).add_(attended))


@dataclass
class Tap:
    """Collects the means of the pairs' hidden states after the first `layer` layers, float32 (count, hidden), detached.

    Means, since after a few layers the first token does not yet hold what the pair says.
    """

    layer: int
    rows: list[Tensor] = field(default_factory=list)


def logits(model: Any, batch: Tokens, tap: Tap | None = None, *, even: bool = True) -> Tensor:
    """The logits of the pairs, float32 (count,), in their order, which must be longest first; for training.

    A `tap` gets this batch's rows added. On a CPU the batch gets a round number of tokens, unless not `even`. Runs in
    the autocast that is on, in the model's mode (train or eval), through adapters if there are some, and computes
    layers anew where the model's gradient checkpointing is on.
    """
    from torch.utils.checkpoint import checkpoint

    model = bare(model)
    on_cpu = _on_cpu(model)
    batch, own = evened(batch) if even and on_cpu else (batch, slice(None))
    stretches = stretches_of(batch.lengths, level=LEVEL, slack=SLACK, multiple=ROUND if on_cpu else 1)
    hidden = embed(model, batch)
    layers = _body(model).encoder.layer
    anew = model.training and any(getattr(layer, "gradient_checkpointing", False) for layer in layers)
    draws = seeds(len(layers)) if model.training else [0] * len(layers)
    for number, (layer, seed) in enumerate(zip(layers, draws, strict=True)):
        firsts = _firsts(batch, hidden) if number == len(layers) - 1 else None
        if anew:
            hidden = checkpoint(_trained_layer, layer, hidden, stretches, firsts, seed, use_reentrant=False)
        else:
            hidden = _trained_layer(layer, hidden, stretches, firsts, seed)
        if tap and tap.layer == number + 1:
            tap.rows.append(means(batch, hidden.detach())[own])
    return head(model, hidden)[own].float()


def _trained_layer(layer: Any, hidden: Tensor, stretches: Stretches, firsts: Tensor | None, seed: int) -> Tensor:
    """One layer, written out or through its own modules; of the last one the rows of `firsts` alone, where there are.

    Dropout is drawn from a seed, so that a layer computed anew draws the same.
    """
    import torch

    from rankwright.toolbox.engine import layer as written_out

    # Without dropout of attention, or gradients, torch has a kernel that keeps no shares: faster with long pairs.
    if hidden.device.type == "cpu" and torch.is_grad_enabled() and written_out.pays(layer):
        return written_out.forward(layer, hidden, stretches, firsts, seed)
    own = layer.attention.self
    noise = Noise(seed)
    drop = (noise, own.dropout.p) if own.training and own.dropout.p else None
    context = attend(_mixed(own, hidden), stretches, own.num_attention_heads, first_only=firsts is not None, drop=drop)
    rows = hidden if firsts is None else hidden[firsts]
    attended = _added(layer.attention.output, context, rows, noise)
    return _added(layer.output, layer.intermediate(attended), attended, noise)


def _added(output: Any, rows: Tensor, beside: Tensor, noise: Noise) -> Tensor:
    """What a layer's output module does: a product, dropout, the residual, normalisation."""
    dropped = noise.drop(output.dense(rows), output.dropout.p if output.training else 0.0)
    added: Tensor = output.LayerNorm(dropped + beside)
    return added


def _mixed(own: Any, hidden: Tensor) -> Tensor:
    """Query, key and value side by side: one product where they are plain linear layers, else (adapters) three."""
    import torch

    parts = (own.query, own.key, own.value)
    if all(type(part) is torch.nn.Linear for part in parts):
        weight = torch.cat([part.weight for part in parts])
        return torch.nn.functional.linear(hidden, weight, torch.cat([part.bias for part in parts]))
    return torch.cat([part(hidden) for part in parts], dim=-1)


def attend(
    mixed: Tensor,
    stretches: Stretches,
    heads: int,
    *,
    first_only: bool = False,
    drop: tuple[Noise, float] | None = None,
) -> Tensor:
    """Softmax(QKᵀ/√d)V within each pair: (tokens, 3 x hidden) to (tokens, hidden), or (pairs, hidden) of first rows.

    `drop` is the dropout of the softmax: its draws and its rate.
    """
    import torch

    hidden = mixed.shape[1] // 3
    if drop is None and ragged.usable(mixed, heads):
        return ragged.attend(mixed, stretches.ends(mixed.device), stretches[0].longest, heads, first_only=first_only)
    parts = [_attend_one(mixed, stretch, heads, first_only, drop) for stretch in stretches]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(-1, hidden)


def _attend_one(
    mixed: Tensor, stretch: Stretch, heads: int, first_only: bool, drop: tuple[Noise, float] | None
) -> Tensor:
    """Attention of one stretch: its rows, or its pairs' first rows, (…, hidden)."""
    import torch
    from torch.nn import functional

    rows = mixed[stretch.start : stretch.stop]
    mask = real = None
    if not stretch.level:
        places, mask, real = stretch.padding(mixed.device)
        rows = functional.embedding(places, rows)  # whose backward pass is the fastest of all ways to gather rows
    laid = rows.view(stretch.count, stretch.longest, 3, heads, -1).permute(2, 0, 3, 1, 4)
    small = drop is None and _small(mixed, stretch)
    query, key, value = laid.contiguous() if small else laid
    if first_only:
        query = query[:, :, :1]
    if small or (drop and mixed.device.type == "cpu"):
        precise = torch.promote_types(mixed.dtype, torch.float32)
        logits = (query @ key.transpose(-1, -2)).to(precise) * query.shape[-1] ** -0.5
        shares = (logits if mask is None else logits + bias(mask, precise)).softmax(-1)
        context = (drop[0].drop(shares, drop[1]) if drop else shares).to(value.dtype) @ value
    else:  # a GPU's kernel draws by itself, and keeps no shares
        rate = drop[1] if drop else 0.0
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    found = context.transpose(1, 2).reshape(-1, mixed.shape[1] // 3)
    return found if real is None or first_only else functional.embedding(real, found)


def _small(mixed: Tensor, stretch: Stretch) -> bool:
    """Whether two products are faster than torch's kernel, which on a CPU is slow in bf16, and best with long pairs.

    Measured on 2,048 tokens with heads of 32 and 64: 1.3 to 2.6 times as fast up to 128 tokens a pair, slower from 256.
    """
    import torch

    on_cpu = mixed.device.type == "cpu" and mixed.dtype == torch.bfloat16
    return on_cpu and stretch.longest <= _SMALL and not torch.is_grad_enabled()


def embed(model: Any, batch: Tokens) -> Tensor:
    """The hidden states before the first layer, (tokens, hidden)."""
    import torch

    tables = _body(model).embeddings
    device = tables.word_embeddings.weight.device
    lengths = batch.lengths
    # RoBERTa counts positions from the padding id on; the table's own one, since ids may be renumbered in training.
    first = 0 if model.config.model_type == "bert" else int(model.config.pad_token_id) + 1
    places = np.arange(len(batch.ids)) - np.repeat(batch.starts[:-1], lengths) + first

    def rows(table: Any, ids: NDArray[Any]) -> Tensor:
        found: Tensor = table(torch.from_numpy(ids.astype(np.int64)).to(device))
        return found

    hidden = rows(tables.word_embeddings, batch.ids) + rows(tables.position_embeddings, places)
    if batch.types is None or tables.token_type_embeddings.num_embeddings < 2:
        hidden = hidden + tables.token_type_embeddings.weight[0]
    else:
        hidden = hidden + rows(tables.token_type_embeddings, batch.types)
    made: Tensor = tables.LayerNorm(hidden)
    rate = tables.dropout.p if tables.dropout.training else 0.0
    return Noise(*seeds(1)).drop(made, rate) if rate else made


def head(model: Any, first_rows: Tensor) -> Tensor:
    """The classifier's logits, (pairs,), of the pairs' first rows (pairs, hidden) after the last layer."""
    rows = first_rows[:, None]
    if model.config.model_type == "bert":
        found: Tensor = model.classifier(model.dropout(model.bert.pooler(rows)))
    else:
        found = model.classifier(rows)
    return found.reshape(-1)


def means(batch: Tokens, hidden: Tensor) -> Tensor:
    """The mean of each pair's rows: (tokens, hidden) to float32 (count, hidden)."""
    import torch

    lengths = torch.from_numpy(batch.lengths).to(hidden.device)
    return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, axis=0)


def _on_cpu(model: Any) -> bool:
    return bool(_body(model).embeddings.word_embeddings.weight.device.type == "cpu")


def _level(hidden: Tensor) -> float:
    """On a CPU the pairs of a stretch have one length; a GPU would rather make fewer calls."""
    return 1.0 if hidden.device.type == "cpu" else LEVEL


def _body(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, model)


def _firsts(batch: Tokens, like: Tensor) -> Tensor:
    """The rows of the pairs' first tokens, int64 (count,), on the device of `like`."""
    import torch

    return torch.from_numpy(batch.starts[:-1]).to(like.device)


def _norm(module: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    import torch

    weight, bias = module.weight.detach().to(dtype), module.bias.detach().to(dtype)
    return lambda rows: torch.nn.functional.layer_norm(rows, weight.shape, weight, bias, module.eps)
