"""Texts -> vectors of a sentence-transformers encoder, each text encoded once and kept.

In come a model reference and texts; out go float32 rows, one a text. Vectors are cached by content: the folder's
name stands for the weights, the prompt, the length and the precision, the key for the text. The device and the batch
size are not part of it, though they move the last bits of a vector.

It does not know what a query or a document is, nor what is done with the vectors.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankwright.core import content_hash
from rankwright.errors import ModelError, first_line
from rankwright.toolbox import weights
from rankwright.toolbox.device import autocast, choose_device, choose_precision
from rankwright.toolbox.engine.body import unpad
from rankwright.toolbox.legible import complaint
from rankwright.toolbox.progress import bar, say
from rankwright.toolbox.store import Rows, RowStore, content_keys, fill
from rankwright.workspace import write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK = 2048
"""Texts computed between two writes: what a killed run loses at most, and the range that is sorted by length."""

_SCHEME = 2
"""Raised when vectors of a lower precision come out otherwise: those of fp32 are the model's own."""


class Encoder:
    """The encoder behind `reference` (a folder, a hub id or ``offline``), loaded when a text is new.

    Vectors are as the model's own pipeline makes them: unit length where it has a Normalize module, and not
    otherwise. `precision` is what its products are computed in, ``auto`` bf16 where that is faster; in less than fp32 a
    length may be off by a few thousandths. Without a `cache` folder every call computes all of its texts.

    Raises:
        ModelError: no such model, here or when it is loaded.
        ConfigError: in `encode`, a device that is not there or does not compute in that precision.
    """

    def __init__(
        self,
        reference: str,
        *,
        device: str = "auto",
        cache: Path | None = None,
        batch_size: int = 64,
        precision: str = "fp32",
    ) -> None:
        self.reference = reference
        self._wanted = precision
        self._folder = weights.locate(reference)
        self._device = device
        self._cache = cache
        self._batch_size = batch_size
        self._model: SentenceTransformer | None = None
        self._looked = False

    def encode(
        self, texts: Sequence[str], *, prompt: str = "", max_tokens: int | None = None, what: str = "embeddings"
    ) -> Rows:
        """The vectors of `texts`: float32 (count, width), in their order.

        `prompt` is put before each text; `max_tokens` cuts longer texts (None: the model's own limit); `what`
        is the name on the progress bar.

        Raises:
            ModelError: the model cannot be loaded, has fewer positions than `max_tokens`, or gives NaN.
        """

        def compute(positions: Sequence[int]) -> Rows:
            chosen = [texts[position] for position in positions]
            self._look(chosen)
            return self._compute(chosen, prompt, max_tokens)

        if self._cache is None:
            rows = np.empty((len(texts), self._width()), dtype=np.float32)
            with bar(what, len(texts), "texts") as advance:
                for start in range(0, len(texts), CHUNK):
                    chunk = range(start, min(start + CHUNK, len(texts)))
                    rows[chunk.start : chunk.stop] = compute(chunk)
                    advance(len(chunk))
            return rows
        store = self._store(self._cache, prompt, max_tokens)
        with bar(what, len(texts), "texts") as advance:
            numbers = fill(store, content_keys(texts), compute, chunk=CHUNK, on_chunk=advance)
        return np.asarray(store.rows[numbers])

    def _store(self, cache: Path, prompt: str, max_tokens: int | None) -> RowStore:
        """The store of these settings. `about.json` keeps the width, so that a full store needs no model."""
        settings = {"weights": weights.fingerprint(self._folder), "prompt": prompt, "max_tokens": max_tokens}
        if self._precision != "fp32":
            settings["precision"] = f"{self._precision}, {_SCHEME}"
        folder = cache / "embeddings" / content_hash([json.dumps(settings, sort_keys=True)])
        about = folder / "about.json"
        if not about.exists():
            write_json(about, {"model": self.reference, **settings, "width": self._width()})
        return RowStore(folder, int(json.loads(about.read_text())["width"]))

    @cached_property
    def _chosen(self) -> tuple[str, str]:
        """The precision and the reason; raises ConfigError where the device cannot."""
        if self._wanted == "fp32":
            return "fp32", "the reference"
        return choose_precision(self._wanted, choose_device(self._device), self._cache)

    @property
    def _precision(self) -> str:
        return self._chosen[0]

    def _width(self) -> int:
        return int(self._compute(["width"], "", None).shape[1])

    def _loaded(self) -> SentenceTransformer:
        if self._model is None:
            self._model = load_encoder(self._folder, self.reference, self._device)
            _unpad(self._model, self._precision)
        return self._model

    def _look(self, texts: Sequence[str]) -> None:
        """Say, once, in which precision, and that the texts cannot be read."""
        if self._looked:
            return
        self._looked = True
        if self._wanted != "fp32":
            say("{}: {} ({})".format(self.reference, *self._chosen))
        tokenizer = getattr(self._loaded(), "tokenizer", None)  # not every first module has one
        if tokenizer is not None and (told := complaint(self.reference, tokenizer, texts)):
            say(told)

    def _compute(self, texts: Sequence[str], prompt: str, max_tokens: int | None) -> Rows:
        model = self._loaded()
        with _cut_at(model, max_tokens, self.reference), autocast(str(model.device), self._precision):
            rows = model.encode(
                list(texts), prompt=prompt, batch_size=self._batch_size, show_progress_bar=False
            ).astype(np.float32, copy=False)
        if not np.isfinite(rows).all():
            raise ModelError(f"{self.reference} gives vectors that hold NaN or infinity", hint="check its weights")
        return rows


def _unpad(model: SentenceTransformer, precision: str) -> None:
    """Let the model compute without padding, where it is of a family that `engine.body` knows, on a CPU."""
    import torch

    body = getattr(model[0], "auto_model", None)
    if body is not None:
        unpad(body, torch.bfloat16 if precision == "bf16" else torch.float32)


def load_encoder(folder: Path, reference: str, device: str) -> SentenceTransformer:
    """Load a sentence-transformers folder in fp32 onto `device` (``auto``: cuda, then mps, then cpu).

    Raises:
        ModelError: it cannot be loaded.
        ConfigError: the device is not there.
    """
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    if not (folder / "modules.json").is_file():
        say(f"{reference} has no sentence-transformers modules: its token vectors are averaged (mean pooling)")
    chosen = choose_device(device)
    try:
        with _quiet_loading():
            return SentenceTransformer(
                str(folder),
                device=chosen,
                local_files_only=True,
                # transformers would otherwise take the checkpoint's own precision, half on many.
                model_kwargs={"dtype": torch.float32},
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the encoder {reference!r}: {first_line(error)}",
            where=str(folder),
            hint="give a folder that sentence_transformers.SentenceTransformer(folder) loads, or `offline`",
        ) from error


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers' own loading bar away from our progress lines."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _cut_at(model: SentenceTransformer, max_tokens: int | None, reference: str) -> Iterator[None]:
    """Let the model cut texts at `max_tokens`, special tokens included, for a while."""
    if max_tokens is None:
        yield
        return
    positions = _positions(model)
    if positions is not None and max_tokens > positions:
        raise ModelError(
            f"{reference} has {positions} positions; texts of {max_tokens} tokens do not fit",
            hint=f"a length of {positions} or less",
        )
    own = model.max_seq_length
    model.max_seq_length = max_tokens
    try:
        yield
    finally:
        model.max_seq_length = own


def _positions(model: SentenceTransformer) -> int | None:
    """How many tokens the table of learned positions serves; None for a model without one."""
    import torch

    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            # RoBERTa's family counts positions from the one after its padding.
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return None
