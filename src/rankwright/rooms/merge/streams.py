"""Several models' tensors in, one file out: a block at a time, on two threads.

In come the parts of the merged model (where each tensor is read, and how it is mixed); out come the file and how far
apart the tensors were. It knows neither what a model is nor how weights were chosen. While one thread waits for the
disk the other computes, and blocks are written in order; a few are under way at a time, so memory holds no tensor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from rankwright.errors import ModelError
from rankwright.rooms.merge.report import listed
from rankwright.toolbox import mixing, progress
from rankwright.toolbox.tensors import Form, Raw, Tensor, Writer, stored

_T = TypeVar("_T")

_THREADS = 2
_AHEAD = 4
"""Blocks that are read and mixed before the first of them is written; tensors that are looked at ahead."""


@dataclass(frozen=True)
class Part:
    """One tensor of the merged model.

    `sources` read it in the models that hold it, whose folders and numbers are in `folders` and `models`; `sources` are
    mixed, while `raw` are the tensors as they lie in the files.
    """

    name: str
    form: Form
    models: tuple[int, ...]
    folders: tuple[Path, ...]
    raw: tuple[Tensor, ...]
    sources: tuple[mixing.Source, ...]
    method: str
    weights: tuple[float, ...]
    settings: mixing.Settings


def write(parts: Sequence[Part], file: Path) -> dict[str, list[mixing.Distance]]:
    """Mix and write every tensor; returns for each how far its further holders are from the first.

    Raises:
        ModelError: a tensor holds NaN, whole numbers differ, or a file cannot be read to its end.
        OSError: the file cannot be written.
    """
    distances = {part.name: [mixing.Distance() for _ in part.sources[1:]] for part in parts}
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        Writer(file, {part.name: part.form for part in parts}) as writer,
        progress.bar("merge", sum(part.form.size for part in parts), "numbers") as advance,
    ):
        looked = _begun(((part, pool.submit(_mix, part)) for part in parts), _AHEAD)
        blocks = _begun(
            (
                (part.name, pool.submit(_block, part, mix.result(), distances[part.name], start))
                for part, mix in looked
                for start in range(0, part.form.size, mixing.BLOCK)
            ),
            _AHEAD,
        )
        for name, block in blocks:
            mixed = block.result()
            writer.write(name, mixed)
            advance(mixed.size)
    return distances


def _begun(jobs: Iterable[_T], ahead: int) -> Iterator[_T]:
    """The same in the same order, but so many are begun (by asking for them) before the first is given."""
    waiting: deque[_T] = deque()
    for job in jobs:
        waiting.append(job)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _mix(part: Part) -> mixing.Mix | None:
    """What mixes a block, after a look at the whole tensors where the method needs it; None for whole numbers."""
    floats = [tensor.form.is_float for tensor in part.raw]
    if not any(floats):
        return None
    if not all(floats):
        raise _impossible(part, "whole numbers cannot be averaged with others")
    try:
        return mixing.METHODS[part.method](part.sources, part.weights, part.settings)
    except ValueError as error:
        raise _nan(part) or _impossible(part, str(error)) from None


def _block(part: Part, mix: mixing.Mix | None, distances: Sequence[mixing.Distance], start: int) -> Raw:
    """The mixed block as it is stored; how far apart its sources are is added to the distances."""
    stop = min(start + mixing.BLOCK, part.form.size)
    if mix is None:
        return _same(part, start, stop)
    blocks = [source.read(start, stop) for source in part.sources]
    mixed = mix(start, blocks)
    with np.errstate(over="ignore"):
        nan = bool(np.isnan(mixed @ mixed))  # a sum of squares is NaN by a NaN alone: much faster than looking at each
    if nan:
        raise _nan(part) or _impossible(part, "the mixture is not a number; are there infinities in them?")
    for distance, other in zip(distances, blocks[1:], strict=True):
        distance.add(blocks[0], other)
    return stored(mixed, part.form.dtype)


def _same(part: Part, start: int, stop: int) -> Raw:
    """A block of whole numbers, which must be equal."""
    first, *others = (tensor.raw(start, stop) for tensor in part.raw)
    if not all(np.array_equal(first, other) for other in others):
        raise _impossible(part, "whole numbers cannot be averaged, and they differ")
    kept = next(tensor for tensor in part.raw if tensor.form.dtype == part.form.dtype)
    return kept.raw(start, stop)


def _nan(part: Part) -> ModelError | None:
    """The error for models that hold NaN in a tensor, if any does."""
    guilty = [
        str(folder)
        for folder, source in zip(part.folders, part.sources, strict=True)
        if any(
            bool(np.isnan(source.read(start, min(start + mixing.BLOCK, source.size))).any())
            for start in range(0, source.size, mixing.BLOCK)
        )
    ]
    if not guilty:
        return None
    return ModelError(f"NaN in {part.name} of {listed(guilty)}", hint="a training went wrong; train again")


def _impossible(part: Part, why: str) -> ModelError:
    return ModelError(f"{part.name} of {listed([str(folder) for folder in part.folders])}: {why}")
