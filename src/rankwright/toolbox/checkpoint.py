"""Training state on disk: kill the process at any moment and the newest whole checkpoint is there.

    checkpoints/step-000120/   weights.safetensors, state.pt (optimiser, random state), state.json (counters)
    checkpoints/best-000090.safetensors
    checkpoints/recent-000060.safetensors      what an average is made of

A checkpoint is written under another name and renamed; the one before it goes only afterwards. Hence one that takes
the place of another of the same step gets a name of its own (step-000120-1). What the counters mean is the training
loop's business.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwright.toolbox import mixing

if TYPE_CHECKING:
    import torch

Counters = dict[str, Any]
RandomState = dict[str, Any]


def save(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write the checkpoint of `step` and remove the older ones. `scaler` is fp16's, which has a state too."""
    import torch
    from safetensors.torch import save_model

    made = folder / ".new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    save_model(model, str(made / "weights.safetensors"))
    scaled = {"scaler": scaler.state_dict()} if scaler else {}
    torch.save({"optimizer": optimizer.state_dict(), "random": random_state(), **scaled}, made / "state.pt")
    (made / "state.json").write_text(json.dumps(counters))
    before = [_place(other) for other in folder.glob("step-*")]
    again = 1 + max((number for saved, number in before if saved == step), default=-1)
    done = folder / (f"step-{step:06d}-{again}" if again else f"step-{step:06d}")
    made.rename(done)
    for other in folder.glob("step-*"):
        if other != done:
            shutil.rmtree(other)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return max(folder.glob("step-*"), key=_place, default=None)


def load(
    checkpoint: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> Counters:
    """Put weights, optimiser and random state back, and return the counters."""
    import torch
    from safetensors.torch import load_model

    load_model(model, str(checkpoint / "weights.safetensors"), device=str(next(model.parameters()).device))
    state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    if scaler and "scaler" in state:
        scaler.load_state_dict(state["scaler"])
    set_random_state(state["random"])
    counters: Counters = json.loads((checkpoint / "state.json").read_text())
    return counters


def save_best(folder: Path, step: int, model: torch.nn.Module) -> None:
    """Keep the weights of `step`. Older bests stay until `forget_bests`: a checkpoint may still count on them."""
    _keep(folder, f"best-{step:06d}", model)


def load_best(folder: Path, step: int, model: torch.nn.Module) -> None:
    """Put the kept weights of `step` into the model."""
    _put(folder / f"best-{step:06d}.safetensors", model)


def forget_bests(folder: Path, but: int) -> None:
    """Remove all kept weights but those of one step."""
    _forget(folder, "best", {but})


def save_recent(folder: Path, step: int, model: torch.nn.Module) -> None:
    """Keep the weights of `step` for an average. They stay until `forget_recent`, as bests do."""
    _keep(folder, f"recent-{step:06d}", model)


def forget_recent(folder: Path, but: Collection[int]) -> None:
    """Remove the weights kept for an average but those of some steps."""
    _forget(folder, "recent", but)


def load_average(folder: Path, steps: Sequence[int], model: torch.nn.Module) -> None:
    """Put the mean of the weights that `save_recent` kept of `steps` into the model, tensor by tensor."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    weights = [1 / len(steps)] * len(steps)
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(str(folder / f"recent-{step:06d}.safetensors"), "pt")) for step in steps]
        mean = {name: _mean([file.get_tensor(name) for file in files], weights) for name in files[0].keys()}  # noqa: SIM118
    made = folder / ".mean.new"  # by way of a file, since reading one knows how to treat shared weights
    save_file(mean, str(made))
    _put(made, model)
    made.unlink()


def _mean(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Their weighted mean in the first one's dtype; of whole numbers, which a training leaves alone, the first."""
    import torch

    first = tensors[0]
    if not first.is_floating_point():
        return first
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    arrays = [tensor.to(wide).numpy() for tensor in tensors]
    return torch.from_numpy(mixing.mixed("linear", arrays, weights)).to(first.dtype)


def _keep(folder: Path, name: str, model: torch.nn.Module) -> None:
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    kind = name.partition("-")[0]
    made = folder / f".{kind}.new"
    save_model(model, str(made))
    made.rename(folder / f"{name}.safetensors")


def _put(file: Path, model: torch.nn.Module) -> None:
    from safetensors.torch import load_model

    load_model(model, str(file), device=str(next(model.parameters()).device))


def _forget(folder: Path, kind: str, but: Collection[int]) -> None:
    kept = {f"{kind}-{step:06d}.safetensors" for step in but}
    for file in folder.glob(f"{kind}-*.safetensors"):
        if file.name not in kept:
            file.unlink()


def _place(checkpoint: Path) -> tuple[int, int]:
    """A checkpoint's step, and how often that step had been saved before."""
    _, step, *again = checkpoint.name.split("-")
    return int(step), int(again[0]) if again else 0


def random_state() -> RandomState:
    """Where torch's random generators stand, on every device that is in use."""
    import torch

    state: RandomState = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # asking would begin it, for a training on the CPU too
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: RandomState) -> None:
    """Put the generators back where they stood; those of GPUs that are not here any more are left out."""
    import torch

    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
