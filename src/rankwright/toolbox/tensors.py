"""Safetensors files, read and written a block of a tensor at a time, in numpy alone.

In come model folders (one file, or shards with an index) and the layout of a file to write; out come `Tensor`s, which
read just the bytes that they are asked for, and a file that every loader takes. No whole tensor is ever held, no file
is mapped into memory (mapped pages count as the process's own), and neither torch nor safetensors is imported. Nothing
here knows what a tensor is for, nor how tensors are mixed.

The format (https://github.com/huggingface/safetensors#format): the header's length (8 bytes, little-endian), the
header as JSON, the tensors' bytes one after the other.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankwright.errors import ModelError

Floats: TypeAlias = "NDArray[np.float32] | NDArray[np.float64]"
Raw: TypeAlias = "NDArray[Any]"

_STORED = {
    **{"BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4"},
    **{"U32": "<u4", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8"},
}
"""How each dtype lies in a file, as numpy spells it, in the order in which safetensors ranks them."""
_FLOATS = ("F16", "BF16", "F32", "F64")
_RANK = {dtype: rank for rank, dtype in enumerate(_STORED)}
_LONGEST_HEADER = 100_000_000  # safetensors' own limit
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Form:
    """What a tensor is, without its numbers: dtype as safetensors spells it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return self.size * np.dtype(_STORED[self.dtype]).itemsize

    @property
    def is_float(self) -> bool:
        """Whether its entries can be averaged."""
        return self.dtype in _FLOATS


class Tensor:
    """One tensor in an open file; any number of threads may read it. A `mixing.Source`."""

    def __init__(self, form: Form, path: Path, file: int, offset: int) -> None:
        self.form = form
        self.size = form.size
        self._path, self._file, self._offset = path, file, offset
        self._stored = np.dtype(_STORED[form.dtype])

    def raw(self, start: int, stop: int) -> Raw:
        """The entries start:stop of the flattened tensor as they are stored (bf16: its bits, uint16).

        Raises:
            ModelError: they cannot be read: the file was cut off since it was opened, or the disk fails.
        """
        wanted = np.empty(stop - start, self._stored)
        view, offset = wanted.view(np.uint8).data, self._offset + start * self._stored.itemsize
        while view:
            try:
                count = os.preadv(self._file, [view], offset)
            except OSError as error:
                raise ModelError(f"cannot read the weights: {error.strerror}", where=str(self._path)) from None
            if not count:
                why = "cannot read the weights: the file ends in the middle of a tensor"
                raise ModelError(why, where=str(self._path))
            view, offset = view[count:], offset + count
        return wanted

    def read(self, start: int, stop: int) -> Floats:
        """The entries start:stop of the flattened tensor: float64 of a float64 tensor, else float32.

        Raises:
            ModelError: as `raw`.
            ValueError: the tensor holds whole numbers.
        """
        return floats(self.raw(start, stop), self.form.dtype)


class Weights:
    """The tensors of one model folder: ``weights["classifier.weight"]``. Close it (`with`) after use.

    `forms` maps each tensor's name to its form.
    """

    def __init__(self, folder: Path) -> None:
        """Open the files and check their headers; no tensor is read.

        Raises:
            ModelError: there is no safetensors file, or one is cut off or broken.
        """
        self.folder = folder
        self.forms: dict[str, Form] = {}
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._open: list[int] = []
        try:
            for file in weight_files(folder):
                self._add(file)
        except BaseException:
            self.close()
            raise

    def _add(self, file: Path) -> None:
        try:
            descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self._open.append(descriptor)
            found = _header(descriptor)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelError(f"cannot read the weights: {reason}", where=str(file)) from None
        for name, (form, offset) in found.items():
            self.forms[name] = form
            self._places[name] = file, descriptor, offset

    def __getitem__(self, name: str) -> Tensor:
        return Tensor(self.forms[name], *self._places[name])

    def close(self) -> None:
        """Close the files; the tensors cannot be read any more."""
        while self._open:
            os.close(self._open.pop())

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer:
    """A safetensors file, written in pieces, tensor after tensor in the order of its layout (see `in_order`).

    Gives the same bytes as `safetensors.torch.save_file`. A `with` block that ends well leaves the file on the disk
    (one fsync); nothing is promised of the file of one that does not.
    """

    def __init__(self, path: Path, layout: Mapping[str, Form]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, form in layout.items():
            header[name] = {"dtype": form.dtype, "shape": form.shape, "data_offsets": [end, end := end + form.nbytes]}
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)
        self._awaited = [(name, form.nbytes) for name, form in layout.items() if form.nbytes]
        self._awaited.reverse()
        self._file = path.open("wb")
        self._file.write(len(raw).to_bytes(8, "little") + raw)

    def write(self, name: str, piece: Raw) -> None:
        """Append the next entries of a tensor, as they are stored (see `stored`).

        Raises:
            ValueError: another tensor's turn it is, or this one has no room for so many bytes.
            OSError: the disk is full, or fails.
        """
        if not piece.nbytes:
            return
        awaited, left = self._awaited.pop() if self._awaited else ("nothing more", 0)
        if name != awaited or piece.nbytes > left:
            raise ValueError(f"{name} with {piece.nbytes} bytes came where {awaited} with {left} was announced")
        if left > piece.nbytes:
            self._awaited.append((name, left - piece.nbytes))
        self._file.write(np.ascontiguousarray(piece).view(np.uint8).data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                if self._awaited:
                    name, left = self._awaited[-1]
                    raise ValueError(f"{left} bytes of {name} were announced and never came")
                self._file.flush()
                os.fsync(self._file.fileno())


def in_order(layout: Mapping[str, Form]) -> dict[str, Form]:
    """The layout in safetensors' own order: wide dtypes first, so that every tensor is aligned; then by name."""
    return dict(sorted(layout.items(), key=lambda item: (-_RANK[item[1].dtype], item[0])))


def floats(raw: Raw, dtype: str) -> Floats:
    """Stored entries as float64 (of F64), else float32: exact.

    Raises:
        ValueError: they are whole numbers.
    """
    if dtype == "BF16":  # the upper half of a float32
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype not in _FLOATS:
        raise ValueError(f"{dtype} holds whole numbers")
    return raw.astype(np.float64, copy=False) if dtype == "F64" else raw.astype(np.float32, copy=False)


def stored(values: Floats, dtype: str) -> Raw:
    """Floats as entries of a dtype, rounded to the nearest, ties to even: what torch gives, bit for bit.

    fp16 and bf16 are rounded from float32, so float64 is rounded twice, as torch does it. What is too large becomes
    infinite.

    Raises:
        ValueError: the dtype is of whole numbers.
    """
    if dtype not in _FLOATS:
        raise ValueError(f"{dtype} holds whole numbers")
    with np.errstate(over="ignore"):
        if dtype in ("F64", "F32"):
            return values.astype(_STORED[dtype], copy=False)
        single = values.astype(np.float32, copy=False)
        if dtype == "F16":
            return single.astype(_STORED[dtype])
    bits = single.view(np.uint32)
    # Half of the last kept bit's worth, and at a tie only if that bit is odd; a carry goes into the exponent.
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    rounded[np.isnan(single)] = 0x7FC0
    return rounded.astype("<u2")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        ModelError: there are none, or the index of shards cannot be read.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickled = any((folder / name).is_file() for name in _PICKLES)
        hint = "load it in transformers and save_pretrained() it again" if pickled else "check the path"
        message = "no model.safetensors" + (", and a pickle is not read" if pickled else "")
        raise ModelError(message, where=str(folder), hint=hint)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read the index of shards: {error!r}", where=str(index)) from None
    return [folder / str(name) for name in names]


def refuse_pickles(folder: Path) -> None:
    """Raise where a folder's weights are there, and pickles alone; a folder without any may yet get some.

    Raises:
        ModelError: as `weight_files`.
    """
    if any((folder / name).is_file() for name in _PICKLES):
        weight_files(folder)


def _header(file: int) -> dict[str, tuple[Form, int]]:
    """Each tensor's form, and where in the file it begins. A ValueError tells what is wrong with the file."""
    length = os.fstat(file).st_size
    announced = int.from_bytes(os.pread(file, 8, 0), "little") if length >= 8 else -1
    if not 0 <= announced <= min(length - 8, _LONGEST_HEADER):
        raise ValueError("it is cut off, or no safetensors file")
    try:
        header = json.loads(os.pread(file, announced, 8))
        header.pop("__metadata__", None)
        found = {str(name): _entry(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is broken ({error!r})") from None
    end, begins = 0, 8 + announced
    for name, (form, start) in sorted(found.items(), key=lambda item: (item[1][1], item[1][0].nbytes)):
        if start != end:
            raise ValueError(f"its header is broken ({name} begins at {start}, not at {end})")
        end += form.nbytes
    if begins + end != length:
        raise ValueError(f"{begins + end} bytes are announced, and it has {length}")
    return {name: (form, begins + start) for name, (form, start) in found.items()}


def _entry(entry: Mapping[str, Any]) -> tuple[Form, int]:
    if entry["dtype"] not in _STORED:
        raise ValueError(f"dtype {entry['dtype']} is not known")
    form = Form(entry["dtype"], _shape(entry["shape"]))
    start, end = map(int, entry["data_offsets"])
    if end - start != form.nbytes:
        raise ValueError(f"{end - start} bytes for {form.dtype} {list(form.shape)}")
    return form, start


def _shape(shape: Sequence[Any]) -> tuple[int, ...]:
    lengths = tuple(map(int, shape))
    if any(length < 0 for length in lengths):
        raise ValueError(f"shape {list(lengths)}")
    return lengths
