"""Train only the rows of a word embedding that the texts in hand use; the others stay as they are.

In come a model, which token ids occur, and the folder that the model was read from; the model's embedding then holds
a compact table, and so do its gradient, the optimiser's moments and every checkpoint. `ActiveRows.restore` puts the
whole table back, the trained rows in their places.

A full training gives the rows that never occur no gradient: Adam moves them by weight decay alone. Hence the result
is that of a full training which does not decay them. Callers go on with the tokenizer's own ids: a hook on the
embedding translates them, so that whatever else a model reads from an id (positions, padding, the last token) holds.
It does not know what is trained, nor on what. A forward pass must call the embedding, not index its weight.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rankwright.errors import ModelError
from rankwright.toolbox.tensors import Tensor, Weights

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 22
"""Entries of the table that are read at a time."""


class _Table(Protocol):
    """The whole table as it was, float32 rows."""

    def read(self, start: int, stop: int) -> NDArray[Any]: ...

    def close(self) -> None: ...


class ActiveRows:
    """A model's word embedding cut down to the rows in use, until `restore` or `close`."""

    def __init__(self, embedding: torch.nn.Embedding, rows: NDArray[np.int64], table: _Table) -> None:
        """Cut the table down; `rows` are the ids in use, ascending. Call `of` instead, which checks the model."""
        import torch

        weight = embedding.weight
        self.rows, self.size = rows, embedding.num_embeddings
        self._embedding, self._table, self._padding = embedding, table, embedding.padding_idx
        lookup = torch.full((self.size,), -1, dtype=torch.long)
        lookup[torch.from_numpy(rows)] = torch.arange(len(rows))
        self._lookup = lookup.to(weight.device)
        kept = weight.detach()[torch.from_numpy(rows).to(weight.device)].clone()
        self._put(kept, len(rows), None if self._padding is None else int(lookup[self._padding]))
        self._hook = embedding.register_forward_pre_hook(self._translate)

    @classmethod
    def of(cls, model: Any, used: NDArray[np.bool_], folder: Path) -> ActiveRows | None:
        """Cut down the model's word embedding to the ids that are `used`, bool (at most vocabulary,).

        The whole table is let go where `folder` has it in safetensors, to be read again; else it is kept, on the CPU.
        None, and nothing done, where the word embedding cannot be told or is shared with another layer.
        """
        embedding = _word_embedding(model)
        if embedding is None or len(used) > embedding.num_embeddings:
            return None
        chosen = np.zeros(embedding.num_embeddings, dtype=np.bool_)
        chosen[: len(used)] = used
        if embedding.padding_idx is not None:
            chosen[embedding.padding_idx] = True
        weight = embedding.weight.detach()
        table: _Table = _InFile.find(folder, weight) or _Kept(weight.cpu())
        active = cls(embedding, np.flatnonzero(chosen), table)
        del weight
        _unmap(model)
        return active

    def restore(self) -> None:
        """Put the whole table back, with the rows in use as they are now; the model then stands on its own.

        Raises:
            ModelError: the folder's weights are others than they were.
        """
        import torch

        trained = self._embedding.weight.detach()
        whole = torch.empty((self.size, trained.shape[1]), dtype=trained.dtype)
        for start, stop in _blocks(*whole.shape):
            whole[start:stop] = torch.from_numpy(self._table.read(start, stop))
        self.close()
        whole[torch.from_numpy(self.rows)] = trained.cpu()
        self._put(whole.to(trained.device), self.size, self._padding)

    def close(self) -> None:
        """Let go of the folder's files and stop translating ids; again is no harm."""
        self._hook.remove()
        self._table.close()

    def _put(self, weight: torch.Tensor, size: int, padding: int | None) -> None:
        import torch

        wanted = self._embedding.weight.requires_grad
        self._embedding.weight = torch.nn.Parameter(weight, requires_grad=wanted)
        self._embedding.num_embeddings, self._embedding.padding_idx = size, padding

    def _translate(self, _: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        ids, *others = given
        places = self._lookup[ids]
        if bool((places < 0).any()):
            lost = ids[places < 0].unique().tolist()
            raise ModelError(
                f"{len(lost)} token ids (as {lost[0]}) are not among the {len(self.rows)} that are being trained",
                hint="a model in training reads its training and dev texts alone",
            )
        return (places, *others)


def _word_embedding(model: Any) -> torch.nn.Embedding | None:
    """The model's word embedding, if it is a plain one and nothing else holds its weights."""
    import torch

    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if type(embedding) is not torch.nn.Embedding or embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return None
    holders = [name for name, own in model.named_parameters(remove_duplicate=False) if own is embedding.weight]
    return embedding if len(holders) == 1 and embedding.weight.dtype == torch.float32 else None


def _unmap(model: Any) -> None:
    """Copy the weights out of the file that transformers maps them from.

    As long as one of them is mapped, all pages that were ever read count as the process's own: the table's too. The
    first step of a training would copy the pages one by one anyway.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


class _Kept:
    """The table in memory, where it cannot be read again."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight: torch.Tensor | None = weight

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        assert self._weight is not None
        block: NDArray[np.float32] = self._weight[start:stop].numpy()
        return block

    def close(self) -> None:
        self._weight = None


class _InFile:
    """The table in a model folder's safetensors.

    The file stays open: one that is replaced or deleted can still be read. A checksum tells one that was overwritten.
    """

    def __init__(self, weights: Weights, tensor: Tensor, width: int, checksum: int) -> None:
        self._weights, self._tensor, self._width, self._wanted = weights, tensor, width, checksum
        self._found = 0

    @classmethod
    def find(cls, folder: Path, weight: torch.Tensor) -> _InFile | None:
        """The tensor that holds exactly this table, whatever its name; None where there is none."""
        try:
            weights = Weights(folder)
        except ModelError:
            return None
        for name, form in weights.forms.items():
            if form.is_float and form.shape == tuple(weight.shape):
                checksum = _checksum_of(weights[name], weight)
                if checksum is not None:
                    return cls(weights, weights[name], form.shape[1], checksum)
        weights.close()
        return None

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start:stop; to be called over the whole table once, in order."""
        block = _rows(self._tensor, start, stop, self._width)
        self._found = zlib.crc32(block.data, self._found)
        if stop * self._width == self._tensor.size and self._found != self._wanted:
            raise ModelError(
                "the weights were overwritten while a model was trained from them",
                where=str(self._weights.folder),
                hint="put the old ones back, and run again: it goes on from the last checkpoint",
            )
        return block

    def close(self) -> None:
        self._weights.close()


def _checksum_of(tensor: Tensor, weight: torch.Tensor) -> int | None:
    """The CRC of a stored table, or None where it is not this very one."""
    checksum, (size, width) = 0, weight.shape
    for start, stop in _blocks(size, width):
        block = _rows(tensor, start, stop, width)
        if not np.array_equal(block, weight[start:stop].cpu().numpy()):
            return None
        checksum = zlib.crc32(block.data, checksum)
    return checksum


def _rows(tensor: Tensor, start: int, stop: int, width: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.read(start * width, stop * width), dtype=np.float32).reshape(-1, width)


def _blocks(size: int, width: int) -> list[tuple[int, int]]:
    step = max(1, _BLOCK // width)
    return [(start, min(start + step, size)) for start in range(0, size, step)]
