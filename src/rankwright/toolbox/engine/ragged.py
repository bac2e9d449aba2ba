"""Attention over pairs of any lengths in one call, where a GPU has the kernel for it.

In: query, key and value of all tokens, end to end, and the pairs' lengths. Out: what attention makes of them. The
kernel is torch's own door to FlashAttention (`torch.nn.attention.varlen`). Knows nothing of layers or models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_WIDEST_HEAD = 256
_OLDEST = (8, 0)
"""The oldest kind of NVIDIA GPU that FlashAttention runs on."""


def usable(mixed: Tensor, heads: int) -> bool:
    """Whether the kernel takes these tensors, (tokens, 3 x hidden): a recent GPU, half precision, heads of its size."""
    import torch

    width = mixed.shape[1] // 3 // heads
    if mixed.device.type != "cuda" or mixed.dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return False  # a build without the kernel imports its door all the same
    fits = width % 8 == 0 and width <= _WIDEST_HEAD
    return fits and torch.cuda.get_device_capability(mixed.device) >= _OLDEST and _kernel() is not None


def attend(mixed: Tensor, ends: Tensor, longest: int, heads: int, *, first_only: bool) -> Tensor:
    """Softmax(QKᵀ/√d)V within each pair: (tokens, hidden), or (pairs, hidden) of the first tokens' rows.

    `mixed` (tokens, 3 x hidden) holds query, key and value side by side; `ends` int32 (pairs + 1,) says where each
    pair begins, and the end; `longest` is the longest pair's length.
    """
    import torch

    kernel = _kernel()
    assert kernel is not None
    query, key, value = mixed.view(len(mixed), 3, heads, -1).unbind(1)
    asked = ends
    if first_only:
        query = query[ends[:-1].long()].contiguous()
        asked = torch.arange(len(ends), dtype=torch.int32, device=ends.device)
    found: Tensor = kernel(query, key, value, asked, ends, 1 if first_only else longest, longest)
    return found.reshape(len(query), -1)


def _kernel() -> torch.nn.Module | None:  # a function in truth; torch gives it no better type
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn  # type: ignore[return-value]
