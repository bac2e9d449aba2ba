"""An append-only store of float32 rows by 64-bit content key, for embeddings and for scores.

Two plain files in a folder: `keys.u64` and `rows.f32`, row i of one belonging to row i of the other. Rows are
written and synced before their keys, so that a process killed at any moment leaves a store that opens
cleanly and lacks at most the chunk in flight. Rows are memory-mapped when read.

It does not know what a row means, nor whose key it is: callers put everything that determines the row
(model, prompt, lengths, precision) into the folder's name, and the content into the key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Rows = NDArray[np.float32]


def content_keys(texts: Iterable[str | tuple[str, ...]]) -> Keys:
    """The keys of texts, or of tuples of texts: 64 bits of BLAKE2b."""
    raw = b"".join(
        hashlib.blake2b((text if isinstance(text, str) else "\0".join(text)).encode(), digest_size=8).digest()
        for text in texts
    )
    return np.frombuffer(raw, dtype="<u8")


class RowStore:
    """The store in `folder`, of rows `width` wide; made when it does not exist."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder = folder
        self.width = width
        folder.mkdir(parents=True, exist_ok=True)
        self._keys_path = folder / "keys.u64"
        self._rows_path = folder / "rows.f32"
        self._keys_path.touch()
        self._rows_path.touch()
        self._order: NDArray[np.int64] | None = None
        self._load_keys()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def rows(self) -> Rows:
        """All rows, memory-mapped: float32 (count, width)."""
        if not len(self):
            return np.zeros((0, self.width), dtype=np.float32)
        return np.memmap(self._rows_path, dtype=np.float32, mode="r", shape=(len(self), self.width))

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """The row number of each key, -1 where the store lacks it."""
        if not len(self):
            return np.full(len(keys), -1, dtype=np.int64)
        if self._order is None:
            self._order = np.argsort(self._keys, kind="stable")
        order = self._order
        place = np.searchsorted(self._keys, keys, sorter=order).clip(max=len(self) - 1)
        return np.where(self._keys[order[place]] == keys, order[place], -1)

    def append(self, keys: Keys, rows: Rows) -> None:
        """Add rows; a key that is there already keeps its first row."""
        with FileLock(str(self.folder / ".lock")):
            count = self._whole()  # not the keys alone: damage from outside may have cut the rows
            _write_at(self._rows_path, count * self.width * 4, np.ascontiguousarray(rows, dtype=np.float32))
            _write_at(self._keys_path, count * 8, np.ascontiguousarray(keys))
        self._load_keys()

    def _load_keys(self) -> None:
        self._keys: Keys = np.fromfile(self._keys_path, dtype=np.uint64, count=self._whole())
        self._order = None  # sorted when something is looked for, not with every chunk

    def _whole(self) -> int:
        """How many entries have both their key and their row."""
        return min(self._keys_path.stat().st_size // 8, self._rows_path.stat().st_size // (4 * self.width))


def fill(
    store: RowStore,
    keys: Keys,
    compute: Callable[[Sequence[int]], Rows],
    *,
    chunk: int,
    on_chunk: Callable[[int], None] = lambda count: None,
) -> NDArray[np.int64]:
    """Make sure that the store has every key, and return the row number of each.

    `compute` gets positions in `keys`, at most `chunk` at a time, and returns their rows (count, width).
    Each chunk is on disk before the next is computed, and the chunks of a second attempt are those that the
    first would have gone on with: a killed run computes the same batches as one that was not killed.
    `on_chunk` hears how many rows came to be there (first those found or repeated, then each chunk).
    """
    missing = np.flatnonzero(store.find(keys) < 0)
    _, first = np.unique(keys[missing], return_index=True)
    todo = missing[np.sort(first)]
    on_chunk(len(keys) - len(todo))
    for start in range(0, len(todo), chunk):
        positions = todo[start : start + chunk]
        rows = compute(positions.tolist())
        if rows.shape != (len(positions), store.width):
            raise ValueError(f"rows of shape {rows.shape}, not {(len(positions), store.width)}")
        store.append(keys[positions], rows)
        on_chunk(len(positions))
    return store.find(keys)


def _write_at(path: Path, offset: int, data: NDArray[np.float32] | Keys) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data.tobytes())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
