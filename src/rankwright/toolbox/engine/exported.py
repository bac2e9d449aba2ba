"""What the backends of exported graphs share: cutting a batch into chunks, named inputs, and a cache of graphs.

In: `Tokens`; what a graph was made of. Out: int64 inputs by name; a folder in the cache. Knows neither torch nor the
libraries that run the graphs.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankwright.toolbox.engine.batches import equal_runs, token_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rankwright.toolbox.engine.pairs import Tokens

IDS, TYPES, MASK = "input_ids", "token_type_ids", "attention_mask"

CHUNK_TOKENS = 1024
"""Tokens of one inference; a batch is cut into such chunks, which can run side by side."""

TOKEN_BUDGET = 65_536
"""Tokens of one call: enough for full chunks of most lengths, and for chunks for every stream."""

INT8_GROUP = 128
"""Activations that share a scale in int8. Larger groups are faster and rank worse: top-10 overlap with fp32 0.987 (64),
0.986 (128), 0.973 (384, a whole row) on 200 dev queries of `seealso:`, by a MiniLM trained on it. A layer with fewer
inputs keeps its activations in float."""
INT8_ROWS, INT8_INPUTS = 16, 64
"""Outputs and inputs that a layer has at least, to be int8. Of 16 and 32 inputs OpenVINO 2026.4 computes garbage in
int8+bf16 on a CPU with AMX."""

_FORMAT = 4


def chunks(lengths: NDArray[np.int64], *, padded: bool) -> list[NDArray[np.int64]]:
    """Positions in chunks of at most `CHUNK_TOKENS` tokens, their padding included, or one pair; longest first.

    Not `padded`: the pairs of a chunk have one length.
    """
    if padded:
        return token_batches(lengths, CHUNK_TOKENS, padded=True)
    order = np.argsort(-lengths, kind="stable")
    cut = []
    for start, stop in equal_runs(lengths[order]):
        size = max(1, CHUNK_TOKENS // int(lengths[order[start]]))
        cut += [order[at : min(at + size, stop)] for at in range(start, stop, size)]
    return cut


def feed(batch: Tokens, positions: NDArray[np.int64], inputs: list[str], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """The named inputs of these pairs, int64 (count, longest), padded at the end."""
    lengths = batch.lengths[positions]
    real = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    chosen = batch.take(positions)
    made = {name: np.full(real.shape, pad_id if name == IDS else 0, dtype=np.int64) for name in inputs}
    made[IDS][real] = chosen.ids
    if TYPES in made and chosen.types is not None:
        made[TYPES][real] = chosen.types
    if MASK in made:
        made[MASK][real] = 1
    return made


def reason(error: Exception) -> str:
    """One line of an exception: those of the exporting libraries run over many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def cached_folder(cache: Path | None, library: str, *made_of: str) -> Path | None:
    """Where in the cache the graph lies that was made of this (fingerprint of the weights, kind, versions)."""
    if cache is None:
        return None
    key = hashlib.sha256("\n".join([str(_FORMAT), library, *made_of]).encode()).hexdigest()[:32]
    return cache / f"{library}-{key}"


@contextmanager
def keep_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` whole, by rename, or not at all.

    Where another process was faster, its folder stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        yield made
        try:
            made.replace(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
