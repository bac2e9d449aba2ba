"""The engine's OpenVINO backend: a batch of `Tokens` to logits on a CPU, in fp32, bf16 or int8.

In: a loaded classifier (or a cache that knows it). Out: a callable over `Tokens`. int8 keeps each weight matrix as int8
with one scale an output row, and OpenVINO rounds the activations at run time, in groups of `INT8_GROUP` values: no
calibration, and a better ranking than activations with fixed scales. All that is no product with weights is computed in
fp32 beside it (int8), or in bf16 (int8+bf16). Knows nothing of texts, tokenizers or guards.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache as remembered
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rankwright.errors import ModelError
from rankwright.toolbox.device import measured
from rankwright.toolbox.engine.exported import (
    INT8_GROUP,
    INT8_INPUTS,
    INT8_ROWS,
    MASK,
    TOKEN_BUDGET,
    cached_folder,
    chunks,
    feed,
    keep_folder,
    reason,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rankwright.toolbox.engine.pairs import Tokens

Precision = Literal["fp32", "bf16", "int8", "int8+bf16"]

_WORTH_IT = 1.1
"""So many times faster than fp32, or int8 than bf16, a precision must be to be a way of its own."""
_PROBE = (256, 768, 3072)


def available() -> bool:
    """Whether OpenVINO is installed and has a CPU plugin. Never raises."""
    try:
        return "CPU" in _openvino().Core().available_devices
    except Exception:  # a broken installation is as good as none
        return False


def bf16_supported() -> bool:
    """Whether the CPU plugin computes in bf16 here. That it is faster does not follow: see `bf16_pays`."""
    try:
        return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except Exception:  # as above
        return False


def bf16_pays(cache: Path | None = None) -> bool:
    """Whether a product of a layer's size is faster in bf16 than in fp32 here.

    Tried once a process, in a fraction of a second; with a `cache` folder, once. Without AMX some processors do bf16 no
    faster than fp32, and the conversions come on top. Never raises.
    """
    return bf16_supported() and _pays("bf16", cache)


def int8_pays(cache: Path | None = None, *, beside_bf16: bool = False) -> bool:
    """The same for int8, than fp32 or, `beside_bf16`, than bf16.

    A CPU without products of int8 numbers (VNNI, AMX) turns the weights into floats each time. With AMX bf16 may be the
    faster one, since activations need no rounding. Never raises, of an installation that is `available`.
    """
    return _pays("int8+bf16", cache, than="bf16") if beside_bf16 else _pays("int8", cache)


def _pays(precision: Precision, cache: Path | None, than: Precision = "fp32") -> bool:
    what = f"openvino {_openvino().get_version()} {precision}" + (f" than {than}" if than != "fp32" else "")
    return measured(cache, what, partial(_gain, precision, than)) >= _WORTH_IT


@remembered
def _gain(precision: Precision, than: Precision) -> float:
    """How many times faster a product is than in another precision; 0 where it cannot be tried."""
    try:
        slow, fast = _product_seconds(than, precision)
        return slow / fast
    except Exception:  # as above
        return 0.0


def build(
    model: Any,
    pad_id: int,
    *,
    precision: Precision,
    cache: Path | None,
    fingerprint: str,
    threads: int | None = None,
) -> OpenVinoBackend:
    """A backend for `model`, an `AutoModelForSequenceClassification` with one label, on the CPU.

    The converted graph is kept in `cache`, under `fingerprint` (which must change with the weights), the kind of
    precision and OpenVINO's version; from there it is read without touching the model or torch, so `model` may then be
    None. `threads` None: all cores. Raises ModelError where the model cannot be converted or compiled.
    """
    ov = _openvino()
    kind = "int8" if precision.startswith("int8") else "float"
    kept = cached_folder(cache, "openvino", fingerprint, kind, ov.get_version())
    core, options = ov.Core(), _options(precision, threads)
    if kept and (kept / "model.xml").exists():
        try:
            return OpenVinoBackend(
                core.compile_model(core.read_model(kept / "model.xml"), "CPU", options), precision, pad_id
            )
        except RuntimeError as error:
            if model is None:
                raise ModelError(f"OpenVINO cannot read its graph: {reason(error)}", where=str(kept)) from error
            shutil.rmtree(kept, ignore_errors=True)  # damaged: converted anew
    try:
        graph = _converted(model, kind)
        compiled = core.compile_model(graph, "CPU", options)
    except Exception as error:  # whatever a foreign architecture makes torch or OpenVINO raise
        raise ModelError(f"OpenVINO cannot run this model in {precision}: {reason(error)}") from error
    if kept:
        with keep_folder(kept) as made:
            ov.save_model(graph, made / "model.xml", compress_to_fp16=False)
    return OpenVinoBackend(compiled, precision, pad_id)


class OpenVinoBackend:
    """Scores a batch of `Tokens`: `name`, `token_budget` tokens a call, and whether it wants `padded` batches (no).

    Known families run in chunks of pairs of one length, without a mask; others in padded chunks.
    """

    padded = False

    def __init__(self, compiled: Any, precision: Precision, pad_id: int) -> None:
        self.name = f"openvino {precision}"
        self.token_budget = TOKEN_BUDGET
        self._inputs: list[str] = [port.get_any_name() for port in compiled.inputs]
        self._pad_id = pad_id
        self._queue = _openvino().AsyncInferQueue(compiled)
        self._lock = threading.Lock()  # the queue has one callback: of one call

    def __call__(self, batch: Tokens) -> NDArray[np.float32]:
        """The logits of the pairs, float32 (count,), in their order, which should be longest first."""
        logits = np.empty(len(batch), dtype=np.float32)

        def keep(request: Any, positions: NDArray[np.int64]) -> None:
            logits[positions] = request.get_output_tensor(0).data.reshape(-1)

        with self._lock:
            self._queue.set_callback(keep)
            for positions in chunks(batch.lengths, padded=MASK in self._inputs):
                self._queue.start_async(feed(batch, positions, self._inputs, self._pad_id), positions)
            self._queue.wait_all()
        return logits


def _openvino() -> Any:
    """The library, kept from reporting its use.

    It asks its telemetry package to send an event at the first conversion, and to leave a file in the home folder.
    An entry of None makes the import of that package fail, which OpenVINO takes as: not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _product_seconds(*precisions: Precision) -> list[float]:
    """Seconds of one product of the size `_PROBE` in each of them: in turn, the best of a few."""
    rows, inner, outer = _PROBE
    values = np.random.default_rng(0).standard_normal((rows + outer, inner)).astype(np.float32)
    requests = [_product(values[rows:], precision) for precision in precisions]
    seconds: list[list[float]] = [[] for _ in requests]
    for _ in range(12):
        for request, known in zip(requests, seconds, strict=True):
            started = time.perf_counter()
            request.infer([values[:rows]])
            known.append(time.perf_counter() - started)
    return [min(known) for known in seconds]


def _product(weight: NDArray[np.float32], precision: Precision) -> Any:
    """What multiplies rows (any number, inputs) by a weight (outputs, inputs) in a thread of its own."""
    ov, op = _openvino(), _openvino().opset13

    given = op.parameter([-1, weight.shape[1]], np.float32)
    graph = ov.Model([op.matmul(given, op.constant(weight), False, True)], [given], "probe")
    if precision.startswith("int8"):
        _round_weights(graph)
    return ov.Core().compile_model(graph, "CPU", _options(precision, threads=1)).create_infer_request()


def _options(precision: Precision, threads: int | None) -> dict[str, Any]:
    """How the CPU plugin compiles a graph."""
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "bf16" if precision.endswith("bf16") else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": INT8_GROUP if precision.startswith("int8") else 0,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def _converted(model: Any, kind: str) -> Any:
    """The graph of a model, (count, length) free, inputs named; for int8 its weights are rounded."""
    import torch

    from rankwright.toolbox.engine.firstrow import example, export_of

    export = export_of(model)
    with torch.no_grad():
        graph = _openvino().convert_model(export.module, example_input=example(export.inputs))
    for port, name in zip(graph.inputs, export.inputs, strict=True):
        port.get_tensor().set_names({name})
    graph.reshape({name: [-1, -1] for name in export.inputs})
    _sum_single_outputs(graph)
    if kind == "int8":
        _round_weights(graph)
    return graph


def _linears(graph: Any) -> Iterator[tuple[Any, Any]]:
    """The products with a constant weight (outputs, inputs), and that weight."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        weight = node.input_value(1).get_node()
        if weight.get_type_name() == "Constant" and len(weight.shape) == 2:
            yield node, weight


def _sum_single_outputs(graph: Any) -> None:
    """Make a product of one output, the head's, a multiplication and a sum: OpenVINO leaves those in fp32.

    The result of a product is rounded to bf16, of which a score has 8 bits: 6% of the neighbours in the top ten were
    equal then, and their order was nobody's.
    """
    library = _openvino()
    op = library.opset13

    last = op.constant(np.array([-1], dtype=np.int64))
    for node, weight in _linears(graph):
        if weight.shape[0] == 1:
            products = op.multiply(node.input_value(0), op.constant(weight.data.reshape(-1)))
            library.utils.replace_node(node, op.reduce_sum(products, last, keep_dims=True))


def _round_weights(graph: Any) -> None:
    """Make the weights of linear layers int8, symmetric, with a scale an output row (its largest weight / 127).

    Layers of few outputs or inputs stay in float: they cost nothing.
    """
    op = _openvino().opset13

    for node, weight in _linears(graph):
        if weight.shape[0] < INT8_ROWS or weight.shape[1] < INT8_INPUTS:
            continue
        values = weight.data.astype(np.float32)
        scales = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12) / 127
        rounded = op.constant(np.rint(values / scales).astype(np.int8))
        node.input(1).replace_source_output(op.multiply(op.convert(rounded, "f32"), op.constant(scales)).output(0))
