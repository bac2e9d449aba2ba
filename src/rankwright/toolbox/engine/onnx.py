"""The engine's ONNX backend: a batch of `Tokens` to logits by onnxruntime on a CPU, in fp32.

For machines without OpenVINO. In: a loaded classifier (or a cache that knows it). Out: a callable over `Tokens`. There
is no int8: onnxruntime's dynamic int8 moves too much of the ranking. Knows nothing of texts, tokenizers or guards.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.errors import ModelError
from rankwright.toolbox.engine.exported import MASK, TOKEN_BUDGET, cached_folder, chunks, feed, keep_folder, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rankwright.toolbox.engine.pairs import Tokens

_FILE = "model.onnx"


def available() -> bool:
    """Whether onnxruntime is installed, and onnx, which the export needs. Never raises."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "onnx"))
    except (ImportError, ValueError):
        return False


def build(model: Any, pad_id: int, *, cache: Path | None, fingerprint: str, threads: int | None = None) -> OnnxBackend:
    """A backend for `model`, an `AutoModelForSequenceClassification` with one label, on the CPU.

    The exported graph is kept in `cache`, under `fingerprint` (which must change with the weights) and onnxruntime's
    version; from there it is read without touching the model or torch, so `model` may then be None. `threads` None:
    all cores. Raises ModelError where the model cannot be exported or loaded.
    """
    kept = cached_folder(cache, "onnx", fingerprint, _onnxruntime().__version__)
    try:
        if kept is None:
            with tempfile.TemporaryDirectory() as made:
                _export(model, Path(made) / _FILE)
                return OnnxBackend(_session(Path(made) / _FILE, threads), pad_id)
        if not (kept / _FILE).exists():
            with keep_folder(kept) as folder:
                _export(model, folder / _FILE)
        return OnnxBackend(_session(kept / _FILE, threads), pad_id)
    except OSError:  # of the cache
        raise
    except Exception as error:  # whatever a foreign architecture makes torch or onnxruntime raise
        raise ModelError(f"onnxruntime cannot run this model: {reason(error)}") from error


class OnnxBackend:
    """Scores a batch of `Tokens`: `name`, `token_budget` tokens a call, and whether it wants `padded` batches (no).

    Known families run in chunks of pairs of one length, without a mask; others in padded chunks.
    """

    name = "onnx fp32"
    token_budget = TOKEN_BUDGET
    padded = False

    def __init__(self, session: Any, pad_id: int) -> None:
        self._session = session
        self._inputs: list[str] = [port.name for port in session.get_inputs()]
        self._pad_id = pad_id

    def __call__(self, batch: Tokens) -> NDArray[np.float32]:
        """The logits of the pairs, float32 (count,), in their order, which should be longest first."""
        logits = np.empty(len(batch), dtype=np.float32)
        for positions in chunks(batch.lengths, padded=MASK in self._inputs):
            (found,) = self._session.run(None, feed(batch, positions, self._inputs, self._pad_id))
            logits[positions] = found.reshape(-1)
        return logits


def _onnxruntime() -> Any:
    """The library: an extra, so it may be missing."""
    return importlib.import_module("onnxruntime")


def _session(path: Path, threads: int | None) -> Any:
    """A graph on the CPU; it takes no more threads than it is given."""
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _export(model: Any, path: Path) -> None:
    """Write the graph of a model, (count, length) free.

    By torch's tracing exporter: the newer one needs onnxscript, and tracing is enough for one forward pass.
    """
    import torch

    from rankwright.toolbox.engine.firstrow import example, export_of

    export = export_of(model)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that the exporter is the older one; what a trace takes for constant
        torch.onnx.export(
            export.module,
            example(export.inputs),
            str(path),
            input_names=export.inputs,
            output_names=["logits"],
            dynamic_axes={name: {0: "count", 1: "length"} for name in export.inputs},
            dynamo=False,
        )
