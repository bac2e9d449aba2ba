"""The ways to score that a machine has, from what a word asks for down to fp32, the reference.

In: ``exact``, ``balanced`` or ``fast``, and a device. Out: steps, the fastest first; `guard` decides which of them
ranks as fp32 does. It does not know whether one does, nor what is scored.

    CPU         openvino int8+bf16, where it is faster than bf16, and openvino bf16, where that is faster than fp32;
                else openvino int8, where that is; or without OpenVINO torch bf16 (likewise) and onnx; torch fp32
    cuda        torch bf16 where the hardware has it; torch fp32
    mps         torch fp32

int8 is OpenVINO's, with scales of the activations found at run time: it kept 0.98 of the top ten where static scales,
calibrated by NNCF, kept 0.96 (a MiniLM trained on `seealso:`). So ``balanced`` may take it too, by its own thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from rankwright.errors import MissingExtraError, ModelError
from rankwright.toolbox import engine
from rankwright.toolbox.device import choose_precision
from rankwright.toolbox.engine import onnx, openvino
from rankwright.toolbox.engine.forward import TorchBackend

if TYPE_CHECKING:
    from rankwright.toolbox.engine.pairs import PairEncoder
    from rankwright.toolbox.model import Reranker

FP32 = "torch fp32"
"""The reference, which every machine has."""
_FAR = 0.5
"""Scores that differ by more than that share of their size, or so much, are no rounding."""

_EXTRAS = "pip install 'rankwright[fast]' for openvino, 'rankwright[onnx]' for onnxruntime; or precision exact"

Pairs = Sequence[tuple[str, str]]


class Scorer(Protocol):
    """Scores pairs."""

    def __call__(self, pairs: Pairs, encoder: PairEncoder | None = None) -> NDArray[np.float32]:
        """Their logits, float32 (len(pairs),); of tokens by the `encoder`, where one is given."""
        ...


@dataclass(frozen=True)
class Step:
    """A way to score: its name, as ``openvino int8``, and what makes its backend for a loaded reranker."""

    name: str
    make: Callable[[Reranker], engine.Backend]

    def backend(self, reranker: Reranker) -> engine.Backend:
        """Its backend for this model, tried out where it is not torch itself.

        Raises:
            ModelError: the model's family cannot be computed so, or comes out wrong on this machine.
            MissingExtraError: its library is not installed.
        """
        try:
            backend = self.make(reranker)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{self.name} needs {error.name}", hint=_EXTRAS) from None
        if not isinstance(backend, TorchBackend):
            _refuse_wrong(backend, reranker)
        return backend

    def build(self, reranker: Reranker) -> Scorer:
        """A function of pairs that scores as this way does; raises like `backend`.

        It takes an encoder too, instead of the reranker's own: one that cuts pairs at another length.
        """
        backend = self.backend(reranker)
        return lambda pairs, encoder=None: engine.score(backend, encoder or reranker.encoder, pairs)


def backends(word: str, device: str, cache: Path | None = None, *, keep: bool = True) -> list[Step]:
    """The steps for a word on a device, the fastest first; the last is `FP32`.

    With a `cache` folder, what was measured of the processor is kept there and, where they are to `keep`, converted
    models. The latter only for models that are as their folder has them.
    """
    names = [FP32] if word == "exact" else [*_faster(device, cache), FP32]
    return [step(name, cache, keep=keep) for name in names]


def step(name: str, cache: Path | None = None, *, keep: bool = True) -> Step:
    """The way of this name, whether this machine is the faster with it or not.

    Raises:
        ValueError: there is no such way.
    """
    library, _, precision = name.partition(" ")
    if precision not in _PRECISIONS.get(library, ()):
        known = ", ".join(f"{library} {one}" for library, each in _PRECISIONS.items() for one in each)
        raise ValueError(f"{name!r} is no way to score; there are {known}")
    return Step(name, partial(_MAKERS[library], precision=precision, cache=cache if keep else None))


def _faster(device: str, cache: Path | None) -> list[str]:
    """What is faster than fp32 on this device."""
    if device != "cpu":
        return ["torch bf16"] if choose_precision("auto", device)[0] == "bf16" else []
    if openvino.available():
        if openvino.bf16_pays(cache):
            rounded = ["openvino int8+bf16"] if openvino.int8_pays(cache, beside_bf16=True) else []
            return [*rounded, "openvino bf16"]
        return ["openvino int8"] if openvino.int8_pays(cache) else []
    halved = ["torch bf16"] if choose_precision("auto", device, cache)[0] == "bf16" else []
    return [*halved, *(["onnx fp32"] if onnx.available() else [])]


def _torch(reranker: Reranker, precision: str, cache: Path | None) -> engine.Backend:
    return TorchBackend(reranker.model, reranker.pad_id, precision)


def _openvino(reranker: Reranker, precision: openvino.Precision, cache: Path | None) -> engine.Backend:
    kept, mark = _place(reranker, cache)
    return openvino.build(reranker.model, reranker.pad_id, precision=precision, cache=kept, fingerprint=mark)


def _onnx(reranker: Reranker, precision: str, cache: Path | None) -> engine.Backend:
    kept, mark = _place(reranker, cache)
    return onnx.build(reranker.model, reranker.pad_id, cache=kept, fingerprint=mark)


_MAKERS: dict[str, Callable[..., engine.Backend]] = {"torch": _torch, "openvino": _openvino, "onnx": _onnx}
_PRECISIONS = {"torch": ("fp32", "bf16", "fp16"), "openvino": get_args(openvino.Precision), "onnx": ("fp32",)}


def _refuse_wrong(backend: engine.Backend, reranker: Reranker) -> None:
    """Raise ModelError where a compiled graph gives scores far from the model's own.

    Whether it ranks well is the guard's business, once. This is against a library that computes garbage on some machine
    or in some process, long after that was decided.
    """
    tokens = reranker.encoder([("word " * count, "another text " * (5 - count)) for count in range(1, 5)])
    exact = engine.score_tokens(TorchBackend(reranker.model, reranker.pad_id, "fp32"), tokens)
    found = engine.score_tokens(backend, tokens)
    if not np.all(np.abs(found - exact) <= _FAR * (1 + np.abs(exact).max())):  # NaN is not either
        raise ModelError(
            f"{backend.name} comes out wrong here: {found[0]:.3g} where fp32 gives {exact[0]:.3g}",
            where=str(reranker.source),
            hint="precision exact; another version of the library may help",
        )


def _place(reranker: Reranker, cache: Path | None) -> tuple[Path | None, str]:
    """Where converted models are kept, and by which mark; nowhere without a cache."""
    from rankwright.toolbox.weights import fingerprint

    return (None, "") if cache is None else (cache / "graphs", fingerprint(reranker.source))
