"""Training state on disk: kill the process at any moment and the newest whole checkpoint is there.

    checkpoints/step-000120/   weights.safetensors, state.pt (optimiser, random state), state.json (counters)
    checkpoints/best-000090.safetensors

A checkpoint is written under another name and renamed; the one before it goes only afterwards. Hence one that takes
the place of another of the same step gets a name of its own (step-000120-1). What the counters mean is the training
loop's business.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Counters = dict[str, Any]


def save(folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, counters: Counters) -> None:
    """Write the checkpoint of `step` and remove the older ones."""
    import torch
    from safetensors.torch import save_model

    made = folder / ".new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    save_model(model, str(made / "weights.safetensors"))
    torch.save({"optimizer": optimizer.state_dict(), "random": _random_state()}, made / "state.pt")
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


def load(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Counters:
    """Put weights, optimiser and random state back, and return the counters."""
    import torch
    from safetensors.torch import load_model

    load_model(model, str(checkpoint / "weights.safetensors"), device=str(next(model.parameters()).device))
    state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    counters: Counters = json.loads((checkpoint / "state.json").read_text())
    return counters


def save_best(folder: Path, step: int, model: torch.nn.Module) -> None:
    """Keep the weights of `step`. Older bests stay until `forget_bests`: a checkpoint may still count on them."""
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    made = folder / ".best.new"
    save_model(model, str(made))
    made.rename(folder / f"best-{step:06d}.safetensors")


def load_best(folder: Path, step: int, model: torch.nn.Module) -> None:
    """Put the kept weights of `step` into the model."""
    from safetensors.torch import load_model

    device = str(next(model.parameters()).device)
    load_model(model, str(folder / f"best-{step:06d}.safetensors"), device=device)


def forget_bests(folder: Path, but: int) -> None:
    """Remove all kept weights but those of one step."""
    for file in folder.glob("best-*.safetensors"):
        if file.name != f"best-{but:06d}.safetensors":
            file.unlink()


def _place(checkpoint: Path) -> tuple[int, int]:
    """A checkpoint's step, and how often that step had been saved before."""
    _, step, *again = checkpoint.name.split("-")
    return int(step), int(again[0]) if again else 0


def _random_state() -> dict[str, Any]:
    import torch

    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state
