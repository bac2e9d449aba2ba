"""Training that sees the rounding of int8 scoring: linear layers that round as the int8 backend does.

In: a model in training. Out: the same model, its linear layers rounding or plain again; its weights are never changed.
The rounding is that of `engine/openvino.py`: weights have one scale an output row, activations one for each
`INT8_GROUP` neighbouring inputs of a row; a scale is the largest absolute value / 127, numbers are symmetric. Gradients
pass as if nothing were rounded (the straight-through estimator of Bengio, Léonard and Courville, 2013,
arXiv:1308.3432). Knows nothing of steps, losses or what scores the model later.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankwright.toolbox.engine.exported import INT8_GROUP, INT8_INPUTS, INT8_ROWS

LEVELS = 127
"""The largest whole number of symmetric int8."""


class RoundedLinear(nn.Linear):
    """A linear layer whose product is that of int8 numbers. Made by `switch` of a layer that is there."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs), as the layer that it was, but for the rounding."""
        found: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


def switch(model: nn.Module, *, on: bool) -> None:
    """Make all linear layers of a model round (`on`) or plain again, in place.

    Low-rank adapters stay plain: they are products of their own in training, and part of the weights afterwards.
    """
    before, after = (nn.Linear, RoundedLinear) if on else (RoundedLinear, nn.Linear)
    for name, part in model.named_modules():
        if type(part) is before and not any(word.startswith("lora_") for word in name.split(".")):
            part.__class__ = after


def rounded(values: Tensor, group: int) -> Tensor:
    """Each row's values, in groups of neighbours, as whole multiples of the group's largest / 127.

    Same shape, float32. The last group of a row may be smaller than the others.
    """
    width = values.shape[-1]
    short = -width % group
    wide = functional.pad(values.float(), (0, short)) if short else values.float()
    groups = wide.unflatten(-1, (-1, group))
    # Twenty times faster on a CPU than aminmax or the norm, and no copy as of abs().
    largest = torch.maximum(groups.amax(-1, keepdim=True), -groups.amin(-1, keepdim=True))
    scales = largest.clamp_(min=1e-12).div_(LEVELS)
    found: Tensor = (groups / scales).round_().mul_(scales).flatten(-2)
    return found[..., :width]


class _Product(torch.autograd.Function):
    """The product of the rounded operands on the way forward, of the plain ones on the way back.

    They differ by less than a hundredth there, and so the plain ones alone are kept in memory, as without rounding.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        outputs, inputs = weight.shape
        if outputs < INT8_ROWS or inputs < INT8_INPUTS:
            return functional.linear(rows, weight, bias)
        coarse = rounded(rows, INT8_GROUP) if inputs >= INT8_GROUP else rows
        return functional.linear(coarse, rounded(weight, inputs), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, weight = ctx.saved_tensors
        back: list[Tensor | None] = [None, None, None]  # adapters' bases want none for their weights
        flat = gradient.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            back[0] = (gradient @ weight.to(gradient.dtype)).to(rows.dtype)
        if ctx.needs_input_grad[1]:
            back[1] = (flat.T @ rows.flatten(0, -2).to(gradient.dtype)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            back[2] = flat.sum(0, dtype=weight.dtype)
        return tuple(back)
