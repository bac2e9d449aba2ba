"""The exit head: says after a model's first layers already which candidates will rank high, learnt along in training.

In: a model in training and the means of its hidden states after some layers. Out: a loss of the head alone, and the
head in a file beside the model. It is one linear map without bias, since only differences within a query count, of
the mean of a pair's rows: on a MiniLM trained on `seealso:`, after two of six layers the first token's row could not
tell candidates apart, while the mean left out half of them at no loss. Hidden states come detached: the model is bit
for bit the one that is trained without an exit. It does not know how a cascade is computed, nor what it may lose.

    MODEL/exit/head.safetensors     `exit` (hidden,); the layer stands in its metadata

The folder keeps it away from loaders that read every safetensors file beside a config.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.errors import ConfigError, ModelError
from rankwright.toolbox.engine import packed

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

FILE = "exit/head.safetensors"
RATE = 1e-2
"""The head's learning rate at its peak, for Adam: a linear map of normalised rows, begun at 0, in few steps."""

_NAME = "rankwright_exit"  # of the module that holds the head in a model in training


@dataclass(frozen=True, eq=False)
class ExitHead:
    """Scores of pairs after `layer` layers: the means of their hidden states times `weight`, float32 (hidden,)."""

    layer: int
    weight: NDArray[np.float32]

    def save(self, model: Path) -> None:
        """Write the head into a model folder."""
        from safetensors.numpy import save_file

        file = model / FILE
        file.parent.mkdir(exist_ok=True)
        save_file({"exit": np.ascontiguousarray(self.weight)}, file, metadata={"layer": str(self.layer)})

    @classmethod
    def read(cls, model: Path) -> ExitHead | None:
        """The head in a model folder, or None where it has none.

        Raises:
            ModelError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        file = model / FILE
        if not file.exists():
            return None
        try:
            with safe_open(str(file), "np") as stored:
                return cls(int(stored.metadata()["layer"]), np.asarray(stored.get_tensor("exit"), dtype=np.float32))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"cannot be read: {error}", where=str(file), hint="train the model again") from None


def check(model: Any, layer: int, key: str) -> None:
    """Raise a ConfigError, which names the `key`, where a model cannot stop after `layer` layers."""
    if not packed.supported(model):
        kind = type(packed.bare(model)).__name__
        families = ", ".join(name.removesuffix("ForSequenceClassification") for name in packed.FAMILIES)
        raise ConfigError(f"{key}: {kind} cannot stop after some layers", hint=f"leave it out; {families} can")
    refuse_layer(layer, int(packed.bare(model).config.num_hidden_layers), key)


def refuse_layer(layer: int, layers: int, key: str) -> None:
    """Raise a ConfigError, which names the `key`, where a model of so many layers has none to leave out after one."""
    if not 1 <= layer < layers:
        raise ConfigError(f"{key}: {layer} is not between 1 and {layers - 1}: the model has {layers} layers")


def attach(model: Any, layer: int) -> list[dict[str, Any]]:
    """Put a new head into a model that is to be trained; returns its group of parameters, for the optimiser.

    As a part of the model it is in every checkpoint, best and average of weights, and so is its optimiser's state.

    Raises:
        ConfigError: the model cannot stop after `layer` layers.
    """
    import torch

    check(model, layer, "exit")
    inner = packed.bare(model)
    part = torch.nn.Linear(int(inner.config.hidden_size), 1, bias=False, device=inner.device)
    torch.nn.init.zeros_(part.weight)
    inner.add_module(_NAME, part)
    return [{"params": [part.weight], "lr": RATE, "weight_decay": 0.0}]


def detach(model: Any, layer: int) -> ExitHead:
    """Take the head out again, as the model's weights have it now."""
    inner = packed.bare(model)
    weight = getattr(inner, _NAME).weight.detach().float().cpu().numpy()[0].copy()
    delattr(inner, _NAME)
    return ExitHead(layer, weight)


def own_parameters(model: Any) -> Iterator[torch.nn.Parameter]:
    """The parameters of a model in training, without the head's: what its gradient's norm is made of."""
    return (parameter for name, parameter in model.named_parameters() if _NAME not in name.split("."))


def loss(model: Any, tap: packed.Tap, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum over groups of KL(softmax of the logits || softmax of the head's scores); only the head gets gradients.

    `logits` and `mask` are (groups, width); the tap's rows are the pairs under the mask, in order.
    """
    import torch

    head = getattr(packed.bare(model), _NAME)
    lowest = torch.finfo(torch.float32).min
    scores = torch.full(mask.shape, lowest, device=mask.device).masked_scatter(
        mask, torch.nn.functional.linear(torch.cat(tap.rows), head.weight.float()).reshape(-1)
    )
    wanted = logits.detach().float().masked_fill(~mask, lowest).log_softmax(1)
    return torch.nn.functional.kl_div(scores.log_softmax(1), wanted, reduction="sum", log_target=True)
