"""When freed memory goes back: kept at hand while a training makes the same tensors in every step, else given back.

In: nothing, or a device. Out: nothing but what the process holds. glibc gives the end of its heap back to the system
as soon as it is free, and has to ask for the pages, zeroed, when the next tensor wants them: a tenth of a training
step with XLM-R's shape. Without glibc nothing is done on a CPU. It does not know what the memory is used for.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_BLOCK = 1 << 25
"""Bytes from which on a block has pages of its own, which always go back: the most that glibc comes to by itself."""


def hold() -> None:
    """From here on, for the whole process: keep up to 1 GiB of freed memory for the next tensors."""
    _keep(1 << 30)


def let_go() -> None:
    """From here on keep twice the largest block, as glibc does by itself; what is held so far goes with `release`."""
    _keep(2 * _BLOCK)


def _keep(most: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, most)
        libc.mallopt(_MMAP_THRESHOLD, _BLOCK)


def release(device: str, *, cycles: bool = False) -> None:
    """Give memory that is held for later back: to the device and, where there is glibc, to the system.

    `cycles` also frees what only refers to itself, as what an exception left behind may; that takes up to half a
    second, with the libraries' million objects.
    """
    import torch

    if cycles:
        gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device.startswith("mps"):
        torch.mps.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
