"""Linear layers on a CPU by oneDNN's own products, where torch has them; elsewhere by torch's.

In: a weight matrix, a bias, a precision. Out: rows multiplied by it. There are no gradients. `Linear` is for scoring:
its weights are laid out once, as torch's compiler makes them, 1.1 to 1.3 times as fast as torch's product, which lays
them out in every call; and GELU is applied before a result has left the cache. Later changes of the weights are not
seen. `linear` is for weights that change. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]


class Linear:
    """A linear layer in `dtype`, with the activation that follows it."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation | None = None) -> None:
        self._weight, self._bias, self._activation = weight.detach().to(dtype), bias.detach().to(dtype), activation
        self._laid_out = weight.device.type == "cpu" and _there(dtype)
        self._after = "none"
        if self._laid_out:
            self._weight = _lay_out(self._weight)
            if activation and exact_gelu(activation):
                self._after, self._activation = "gelu", None

    def __call__(self, rows: Tensor) -> Tensor:
        """``activation(rows @ weight.T + bias)``: (tokens, inputs) to (tokens, outputs), a new tensor."""
        if self._laid_out:
            made = _multiply(rows, self._weight, self._bias, self._after)
        else:
            made = functional.linear(rows, self._weight, self._bias)
        return self._activation(made) if self._activation else made


def linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``rows @ weight.T + bias``: (tokens, inputs) to (tokens, outputs), a new tensor; all three of one precision.

    In bf16 on a CPU the bias is added while a result is in the cache. Torch copies it to all rows beforehand.
    """
    if rows.device.type == "cpu" and rows.dtype == torch.bfloat16 and _there(rows.dtype):
        return _multiply(rows, weight, bias, "none")
    return functional.linear(rows, weight, bias)


def exact_gelu(activation: Activation) -> bool:
    """Whether a model's activation is GELU by the error function: transformers has it in a class of this name."""
    return type(activation).__name__ == "GELUActivation"


def _lay_out(weight: Tensor) -> Tensor:
    made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return made


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor, after: str) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, after, [], "none")
    return made


@cache
def _there(dtype: torch.dtype) -> bool:
    """Whether this torch has such products of this precision, and they are right. Never raises.

    Its names begin with an underscore: another version may have others, or take them otherwise.
    """
    draw = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(size, generator=draw).to(dtype) for size in ((5, 48), (32, 48), (32,)))
    try:
        found = [_multiply(rows, _lay_out(weight), bias, after) for after in ("none", "gelu")]
        found.append(_multiply(rows, weight, bias, "none"))
    except Exception:  # whatever a version or a build of torch raises that has no such thing
        return False
    plain = functional.linear(rows, weight, bias)
    near: Any = {"rtol": 0.02, "atol": 0.05} if dtype.itemsize < 4 else {"rtol": 1e-4, "atol": 1e-4}
    expected = plain, functional.gelu(plain), plain
    return all(torch.allclose(one, other, **near) for one, other in zip(found, expected, strict=True))
