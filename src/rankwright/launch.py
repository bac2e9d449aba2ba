"""Where work runs: one thing after the other in this process, or several at a time, each in a process of its own.

In come a function and what it is to be called with; out come its answers, in order. It does not know what the work
is. A function for other processes is one of a module's, and its items and answers can be pickled.
"""

from __future__ import annotations

import builtins
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from rankwright.toolbox import progress

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def map(function: Callable[[Item], Answer], items: Sequence[Item], workers: int = 1) -> Iterator[Answer]:
    """``function(item)`` of each item, in order; `workers` at a time, which share this machine's cores.

    The processes are started anew (`spawn`), so that none inherits torch's threads or a device. The first error of a
    worker is raised here, and work that has not begun is given up.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from builtins.map(function, items)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_quiet, initargs=(threads,)) as pool:
        try:
            yield from pool.map(function, items)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _quiet(threads: int) -> None:
    """A worker uses its share of the cores, and draws no bar across another's."""
    import torch

    torch.set_num_threads(threads)
    progress.hush()
