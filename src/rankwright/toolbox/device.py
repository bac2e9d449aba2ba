"""Which device and which precision to compute in, chosen once and said aloud with the reason.

    cuda        bf16 where the hardware has it
    mps         fp32
    cpu         bf16 only where a matrix product of the right size is measured to be faster with it: some
                processors have the instructions and gain nothing

A CPU's measurement is kept in a small file of the cache, so that a resumed run computes as the first one did.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rankwright.errors import ConfigError

if TYPE_CHECKING:
    import torch

_WORTH_IT = 1.3


def choose_device(wanted: str) -> str:
    """``auto`` becomes cuda, mps or cpu; anything else is checked.

    Raises:
        ConfigError: the device is not there.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted.split(":")[0], False):
        raise ConfigError(f"device {wanted!r} is not available here", hint="device: auto, or cpu")
    return wanted


def choose_precision(wanted: str, device: str, cache: Path | None = None) -> tuple[str, str]:
    """``auto`` becomes fp32 or bf16; returns the word and the reason.

    Raises:
        ConfigError: fp16 on a CPU, which cannot train in it.
    """
    import torch

    if wanted == "fp16" and device == "cpu":
        raise ConfigError("precision: fp16 needs a GPU", hint="precision: auto")
    if wanted != "auto":
        return wanted, "as the experiment says"
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):  # which older cards do, slowly
            return "bf16", f"{torch.cuda.get_device_name(device)} has it"
        return "fp32", f"{torch.cuda.get_device_name(device)} has no bf16"
    if device != "cpu":
        return "fp32", f"the reference on {device}"
    gain = _cpu_gain(cache)
    if gain >= _WORTH_IT:
        return "bf16", f"a matrix product is {gain:.1f}x as fast in bf16 as in fp32 on this CPU"
    return "fp32", f"a matrix product is {gain:.1f}x as fast in bf16 as in fp32 on this CPU: not worth it"


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context to run a forward pass in; fp32 leaves things as they are."""
    import torch

    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.split(":")[0], dtype=torch.float16 if precision == "fp16" else torch.bfloat16)


def _cpu_gain(cache: Path | None) -> float:
    """How many times faster bf16 is than fp32 on this CPU, in torch."""
    import torch

    what = f"torch {torch.__version__} {torch.get_num_threads()} threads, in turn"
    return measured(cache, what, partial(_gain, torch.float32, torch.bfloat16))


def measured(cache: Path | None, what: str, measure: Callable[[], float]) -> float:
    """A number of this CPU, measured once and then read from the cache, to two digits.

    `what` names the library with its version and all else, beside the processor, that the number depends on.
    """
    from rankwright.workspace import write_json

    file = cache / "precision.json" if cache else None
    name = f"{platform.machine()} {_cpu_name()} {what}"
    known = _remembered(file)
    if name not in known:
        known[name] = round(measure(), 2)
        if file:
            write_json(file, known)
    return float(known[name])


def _remembered(file: Path | None) -> dict[str, float]:
    """The measurements of earlier runs; a file that is not there, or damaged, remembers nothing."""
    try:
        return dict(json.loads(file.read_text())) if file else {}
    except (OSError, ValueError):
        return {}


def _gain(slow: torch.dtype, fast: torch.dtype) -> float:
    """How many times as fast a linear layer of a small encoder's size is in `fast`, forward and backward.

    Both in turn, the best of a dozen of each: a machine that is busy for a moment would make either look slow.
    """
    seconds: dict[torch.dtype, list[float]] = {slow: [], fast: []}
    for _ in range(12):
        for dtype, known in seconds.items():
            known.append(_seconds(dtype))
    return min(seconds[slow]) / min(seconds[fast])


def _seconds(dtype: torch.dtype) -> float:
    """How long the layer takes once, with weights that are cast from float32 as in training."""
    import torch

    layer = torch.nn.Linear(384, 1536)
    states = torch.ones(1024, 384, dtype=dtype, requires_grad=True)
    gradient = torch.ones(1024, 1536, dtype=dtype)
    started = time.perf_counter()
    made = torch.nn.functional.linear(states, layer.weight.to(dtype), layer.bias.to(dtype))
    made.backward(gradient)
    return time.perf_counter() - started


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "cpu"
