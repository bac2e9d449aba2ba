"""One encoder layer of a training on a CPU, its way forward and its way back written out.

In: the hidden states of a packed batch, and a layer's weights. Out: its hidden states, and all gradients: what the
layer's own modules give, up to rounding. Through the modules every layer is a hundred small calls and a conversion
between fp32 and bf16 at most of them, which in a step of a small encoder took as long as the matrix products. Here all
states are in the precision of the products, and softmax is in fp32, which is also faster.

Knows BERT's post-norm layer with GELU, and nothing of embeddings, heads, losses or the optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rankwright.toolbox.engine.noise import Noise
from rankwright.toolbox.engine.products import exact_gelu, linear
from rankwright.toolbox.engine.stretches import Stretch, Stretches, bias

_aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Plan:
    """What a layer computes beside its weights: on which pairs, in which precision, with which dropout.

    `firsts` are the rows of the pairs' first tokens where they alone are wanted. Dropout is drawn from `seed`, so that
    a layer that is computed anew draws the same; `rates` are those of attention and of the two outputs.
    """

    stretches: Stretches
    heads: int
    dtype: torch.dtype
    firsts: Tensor | None
    seed: int
    rates: tuple[float, float, float]
    epsilons: tuple[float, float]

    @property
    def precise(self) -> torch.dtype:
        """What softmax is computed in."""
        return torch.promote_types(self.dtype, torch.float32)


def supported(layer: Any) -> bool:
    """Whether `forward` computes what a layer's modules do: plain linear layers and norms, and the exact GELU."""
    linears = all(type(one) is nn.Linear for one in _linears(layer))
    norms = all(type(one) is nn.LayerNorm for one in _norms(layer))
    return linears and norms and exact_gelu(layer.intermediate.intermediate_act_fn)


def pays(layer: Any) -> bool:
    """Whether it is supported, and attention draws: else the modules have the better kernel."""
    return _rate(layer.attention.self) > 0 and supported(layer)


def forward(layer: Any, hidden: Tensor, stretches: Stretches, firsts: Tensor | None, seed: int) -> Tensor:
    """The layer's hidden states, (tokens, hidden) or (pairs, hidden) of the first rows, with their graph.

    In the precision of the autocast that is on, else in that of `hidden`.
    """
    own = layer.attention.self
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    plan = Plan(
        stretches,
        own.num_attention_heads,
        dtype,
        firsts,
        seed,
        (_rate(own), _rate(layer.attention.output), _rate(layer.output)),
        (layer.attention.output.LayerNorm.eps, layer.output.LayerNorm.eps),
    )
    weights = [weight for part in (*_linears(layer), *_norms(layer)) for weight in (part.weight, part.bias)]
    with torch.autocast("cpu", enabled=False):
        found: Tensor = _Layer.apply(plan, hidden.to(dtype), *weights)  # type: ignore[no-untyped-call]
    return found


def _rate(part: Any) -> float:
    """The share that a module with a dropout drops, as it is now: 0 when it scores."""
    return float(part.dropout.p) if part.dropout.training else 0.0


def _linears(layer: Any) -> Iterator[Any]:
    own = layer.attention.self
    yield from (own.query, own.key, own.value, layer.attention.output.dense)
    yield from (layer.intermediate.dense, layer.output.dense)


def _norms(layer: Any) -> Iterator[Any]:
    yield from (layer.attention.output.LayerNorm, layer.output.LayerNorm)


@dataclass(frozen=True, eq=False)
class _Weights:
    """A layer's weights as its products take them: query, key and value joined."""

    mixing: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    widen: tuple[Tensor, Tensor]
    narrow: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, weights: Sequence[Tensor], dtype: torch.dtype) -> _Weights:
        """Cast them: anew for the way back, since keeping them would cost more memory than casting costs time."""
        mixing = weights[0].new_empty((3 * weights[0].shape[0], weights[0].shape[1]), dtype=dtype)
        for part, weight in zip(mixing.chunk(3), weights[0:6:2], strict=True):
            part.copy_(weight)
        output, output_bias, widen, widen_bias, narrow, narrow_bias = (weight.to(dtype) for weight in weights[6:12])
        mixing_bias = torch.cat(list(weights[1:6:2])).to(dtype)
        return cls((mixing, mixing_bias), (output, output_bias), (widen, widen_bias), (narrow, narrow_bias))


class _Layer(torch.autograd.Function):
    """Forward and backward of the whole layer. All that the way back needs is saved by autograd's own means."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, hidden: Tensor, *weights: Tensor) -> Tensor:
        cast, noise = _Weights.of(weights, plan.dtype), Noise(plan.seed)
        mixed = linear(hidden, *cast.mixing)
        attended = [_attend(mixed[one.start : one.stop], one, plan, noise) for one in plan.stretches]
        context = torch.cat([rows for rows, _ in attended]) if len(attended) > 1 else attended[0][0]
        rows = hidden if plan.firsts is None else hidden[plan.firsts]
        first, dropped_first = _added(linear(context, *cast.output), rows, noise, plan.rates[1])
        between, *first_stats = _normed(first, weights[12:14], plan.epsilons[0])
        wide = linear(between, *cast.widen)
        active = functional.gelu(wide)
        second, dropped_second = _added(linear(active, *cast.narrow), between, noise, plan.rates[2])
        found, *second_stats = _normed(second, weights[14:16], plan.epsilons[1])
        ctx.plan = plan
        kept = [tensor for _, parts in attended for tensor in parts]
        ctx.save_for_backward(
            hidden, context, first, *first_stats, dropped_first, between, wide, active,
            second, *second_stats, dropped_second, *weights, *kept,
        )  # fmt: skip
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        hidden, context, first, mean, scale, dropped, between, wide, active, *others = ctx.saved_tensors
        second, second_mean, second_scale, second_dropped, *others = others
        weights, kept = tuple(others[:16]), others[16:]
        cast = _Weights.of(weights, plan.dtype)
        back: list[Tensor | None] = [None] * 16
        wanted = ctx.needs_input_grad[2:]

        def products(place: int, gradient: Tensor, rows: Tensor) -> None:
            """The gradients of a linear layer's weight and bias, in the weights' own precision."""
            if wanted[place]:
                back[place] = (gradient.t() @ rows).to(weights[place].dtype)
            if wanted[place + 1]:
                back[place + 1] = gradient.sum(0).to(weights[place + 1].dtype)

        def through_norm(place: int, gradient: Tensor, rows: Tensor, *stats: Tensor) -> Tensor:
            masks = [True, wanted[place], wanted[place + 1]]
            shape = rows.shape[1:]
            found = _aten.native_layer_norm_backward.default(
                gradient, rows, shape, *stats, weights[place], weights[place + 1], masks
            )
            onward: Tensor = found[0]
            back[place : place + 2] = found[1:]
            return onward

        gradient = through_norm(14, gradients[0], second, second_mean, second_scale)
        narrow = gradient if second_dropped is None else gradient * second_dropped
        products(10, narrow, active)
        widened = _aten.gelu_backward.default(narrow @ cast.narrow[0], wide)
        products(8, widened, between)
        gradient = torch.addmm(gradient, widened, cast.widen[0])
        gradient = through_norm(12, gradient, first, mean, scale)
        output = gradient if dropped is None else gradient * dropped
        products(6, output, context)
        mixed = _attend_back(output @ cast.output[0], kept, plan)
        if any(wanted[:6]):
            joined = (mixed.t() @ hidden).chunk(3), mixed.sum(0).chunk(3)
            back[:6] = [part.to(weights[0].dtype) for pair in zip(*joined, strict=True) for part in pair]
        onward = None
        if ctx.needs_input_grad[1]:
            if plan.firsts is None:
                onward = torch.addmm(gradient, mixed, cast.mixing[0])
            else:
                onward = (mixed @ cast.mixing[0]).index_add_(0, plan.firsts, gradient)
        return (None, onward, *back)


def _normed(rows: Tensor, weights: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalisation, and the means and inverse deviations that the way back needs."""
    weight, bias = weights
    return torch.native_layer_norm(rows, rows.shape[1:], weight, bias, epsilon)


def _added(rows: Tensor, beside: Tensor, noise: Noise, rate: float) -> tuple[Tensor, Tensor | None]:
    """Dropout of a new tensor and the residual, in place; and what dropout multiplied by."""
    kept = noise.mask(rows.shape, rate, rows.dtype)
    return (rows if kept is None else rows.mul_(kept)).add_(beside), kept


def _attend(rows: Tensor, stretch: Stretch, plan: Plan, noise: Noise) -> tuple[Tensor, list[Tensor | None]]:
    """Attention of one stretch: its rows, or its pairs' first rows, (…, hidden); and what the way back needs."""
    count, longest, heads = stretch.count, stretch.longest, plan.heads
    places, mask, real = (None, None, None) if stretch.level else stretch.padding(rows.device)
    if places is not None:
        rows = rows.index_select(0, places)
    laid = rows.view(count, longest, 3, heads, -1).permute(2, 0, 3, 1, 4).contiguous()  # no view of all rows is kept
    laid = laid.view(3, count * heads, longest, -1)
    query, key, value = laid.unbind()
    asked = query if plan.firsts is None else query[:, :1]
    logits = torch.bmm(asked, key.transpose(1, 2)).to(plan.precise).mul_(query.shape[-1] ** -0.5)
    if mask is not None:
        logits.view(count, heads, -1, longest).add_(bias(mask, logits.dtype))
    shares = logits.softmax(-1).to(plan.dtype)
    kept = noise.mask(shares.shape, plan.rates[0], shares.dtype)
    context = torch.bmm(shares if kept is None else shares * kept, value)
    found = context.view(count, heads, -1, context.shape[-1]).transpose(1, 2).reshape(-1, rows.shape[1] // 3)
    if real is not None and plan.firsts is None:
        found = found.index_select(0, real)
    return found, [laid, shares, kept]


def _attend_back(gradient: Tensor, kept: list[Tensor], plan: Plan) -> Tensor:
    """The gradient of query, key and value, (tokens, 3 x hidden), by that of attention's rows."""
    stretches = plan.stretches
    found = gradient.new_empty((stretches[-1].stop, 3 * gradient.shape[1]))
    pairs = 0
    for number, stretch in enumerate(stretches):
        rows = slice(stretch.start, stretch.stop) if plan.firsts is None else slice(pairs, pairs + stretch.count)
        pairs += stretch.count
        place = found[stretch.start : stretch.stop]
        _attend_one_back(gradient[rows], stretch, kept[3 * number : 3 * number + 3], plan, place)
    return found


def _attend_one_back(gradient: Tensor, stretch: Stretch, kept: list[Tensor], plan: Plan, found: Tensor) -> None:
    """The same of one stretch, written into `found`, its rows. Padded rows get no gradient, and so give none."""
    laid, shares, dropped = kept
    count, longest, heads, hidden = stretch.count, stretch.longest, plan.heads, gradient.shape[1]
    _, _, real = (None, None, None) if stretch.level else stretch.padding(gradient.device)
    if real is not None and plan.firsts is None:
        gradient = gradient.new_zeros((count * longest, hidden)).index_copy_(0, real, gradient)
    query, key, value = laid.unbind()
    asked = query if plan.firsts is None else query[:, :1]
    width = query.shape[-1]
    context = gradient.reshape(count, -1, heads, width).transpose(1, 2).reshape(count * heads, -1, width)
    onward = torch.bmm(context, value.transpose(1, 2))
    if dropped is not None:
        onward.mul_(dropped)
    onward = _aten._softmax_backward_data.default(onward.to(plan.precise), shares.to(plan.precise), -1, plan.precise)
    onward = onward.mul_(width**-0.5).to(plan.dtype)
    shares = shares if dropped is None else shares * dropped
    made = found if real is None else found.new_empty((count * longest, 3 * hidden))
    places = made.view(count, longest, 3, heads, width).permute(2, 0, 3, 1, 4)  # of query, key and value
    if plan.firsts is None:
        places[0].copy_(torch.bmm(onward, key).view(count, heads, longest, width))
    else:
        places[0].zero_()
        places[0][:, :, :1].copy_(torch.bmm(onward, key).view(count, heads, 1, width))
    places[1].copy_(torch.bmm(onward.transpose(1, 2), asked).view(count, heads, longest, width))
    places[2].copy_(torch.bmm(shares.transpose(1, 2), context).view(count, heads, longest, width))
    if real is not None:
        torch.index_select(made, 0, real, out=found)
