"""Ways to make one tensor of several that play the same part in different models.

In come tensors of one shape and one weight each; out comes a tensor of that shape and the first one's dtype.
Nothing here knows a model, a file, or a tensor's name. A new method is one function and one line in METHODS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Method: TypeAlias = "Callable[[Sequence[Tensor], Sequence[float]], Tensor]"

_BLOCK = 1 << 16  # entries in float64 at a time: half a megabyte fits a cache, and no copy of a whole tensor is made


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean ``sum of w_i t_i``, for weights that sum to 1.

    Computed in float64 as ``h + sum of w_i (t_i - h)`` from the tensor h of the largest weight, then rounded once. So
    entries on which all agree stay bit for bit, and weights like (1, 0) give that tensor bit for bit (in the first
    one's dtype); terms of weight 0 are not read. Tensors of whole numbers (position ids) must be equal.

    Raises:
        ValueError: the weights do not sum to 1, the shapes differ, or whole-number tensors differ.
    """
    import torch

    first = tensors[0]
    if len(tensors) != len(weights) or not abs(math.fsum(weights) - 1) <= 1e-6:
        raise ValueError(f"{len(tensors)} tensors need as many weights that sum to 1, not {list(weights)}")
    if any(tensor.shape != first.shape for tensor in tensors):
        raise ValueError(f"shapes differ: {[tuple(tensor.shape) for tensor in tensors]}")
    if not all(tensor.is_floating_point() for tensor in tensors):
        if any(bool((tensor != first).any()) for tensor in tensors[1:]):
            raise ValueError("whole numbers cannot be averaged, and they differ")
        return first.clone()
    heaviest = max(range(len(weights)), key=lambda index: weights[index])
    others = [index for index, weight in enumerate(weights) if weight and index != heaviest]
    mixed = torch.empty(first.numel(), dtype=first.dtype)
    for here, (home, *rest) in _blocks([tensors[heaviest], *(tensors[index] for index in others)]):
        mixed[here] = _move(home, rest, [weights[index] for index in others]).to(first.dtype)
    return mixed.reshape(first.shape)


METHODS: dict[str, Method] = {"linear": linear}


def relative_distance(first: Tensor, second: Tensor) -> float:
    """``|first - second| / max(|first|, |second|)`` with Euclidean norms: 0 is equal, at most 2; 1 against zeros."""
    squares = [0.0, 0.0, 0.0]
    for _, (one, other) in _blocks([first, second]):
        for place, values in enumerate((one - other, one, other)):
            squares[place] += float(values.square().sum())
    apart, *lengths = (math.sqrt(square) for square in squares)
    return apart / max(lengths) if apart else 0.0


def _move(home: Tensor, others: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    import torch

    shift = torch.zeros_like(home)
    for other, weight in zip(others, weights, strict=True):
        # Where both are -inf (attention biases), their difference would be NaN.
        shift += weight * (other - home).masked_fill(other == home, 0.0)
    # -0.0 + 0.0 is 0.0: an entry that does not move must not be added to.
    return torch.where(shift == 0, home, home + shift)


def _blocks(tensors: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), _BLOCK):
        here = slice(start, start + _BLOCK)
        yield here, [tensor[here].double() for tensor in flat]
