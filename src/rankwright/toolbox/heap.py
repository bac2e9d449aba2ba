"""When freed memory goes back: kept at hand while a training makes the same tensors in every step, else given back.

In: nothing, or a device. Out: nothing but what the process holds. glibc gives large blocks back to the system as soon
as they are freed, and has to ask for their pages, zeroed, when the next tensor wants them: a tenth of a training step
with XLM-R's shape. Without glibc nothing is done on a CPU. It does not know what the memory is used for.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = 1 << 30


def hold() -> None:
    """From here on, for the whole process: keep freed memory for the next tensors, up to 1 GiB at the heap's end."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            libc.mallopt(threshold, _KEPT)


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
