"""How much memory a training's micro-batch takes, and how large one may be.

In come a forward pass and the encoded pairs of a training; out come the bytes that a pair leaves behind for the
backward pass, counted on a few pairs, and a choice of micro-batch and gradient checkpointing that fits a budget. It
does not know what a model is, beyond its parameters and number of layers, nor what its scores are for.

What autograd keeps of a pair of s tokens is ``linear * s + quadratic * s**2`` bytes: hidden states, and attention
where a kernel keeps its matrix. Both follow from counting the tensors that a forward pass saves
(`torch.autograd.graph.saved_tensors_hooks`) for one pair and two, short and long: whatever the family, the precision
and the adapters. With checkpointing a layer keeps its input alone, and one layer at a time is computed anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from rankwright.toolbox.engine.pairs import Tokens

Forward = Callable[["Tokens"], "torch.Tensor"]

MARGIN = 1.4
"""What is counted, times this, is what is reckoned with: gradients of activations, padding, the allocator's waste."""
SHARE = 0.7
"""Of the memory that is free, what a training may take if nothing is said."""
_LONGEST_PROBE = 256
"""Tokens of the longest pair that is tried out; longer ones are extrapolated."""
_TOLD = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class PairCost:
    """What a pair keeps in memory until the backward pass, in bytes, by its tokens."""

    linear: float
    quadratic: float
    boundary: float
    """Of `linear`, the inputs of the layers: what is kept with checkpointing."""
    layers: int

    def bytes_of(self, lengths: NDArray[np.int64], *, checkpointing: bool = False) -> NDArray[np.float64]:
        """Bytes of pairs of so many tokens each, float64 like `lengths`."""
        tokens = lengths.astype(np.float64)
        whole = MARGIN * (self.linear * tokens + self.quadratic * tokens**2)
        return MARGIN * self.boundary * tokens + whole / self.layers if checkpointing else whole


@dataclass(frozen=True)
class Choice:
    """How many groups a micro-batch has, whether layers are computed anew, and what that takes at most, in bytes."""

    groups: int
    checkpointing: bool
    needed: float
    fits: bool

    def said(self, batch: int, room: float, wanted: str) -> str:
        """The choice with its reason, of a `batch` and of bytes of `room` that the budget `wanted` leaves."""
        anew = ", layers computed anew" if self.checkpointing else ""
        size = f"{self.groups} of {batch} queries at a time{anew}"
        needs = f"about {told(self.needed)} for activations"
        left = f"{told(max(0.0, room))} that memory: {wanted} leaves for them"
        if self.fits:
            return f"{size}: they take {needs} of the {left}"
        return f"warning: {size} take {needs}, more than the {left}; trained all the same, and memory may run out"


def measure(forward: Forward, model: Any, tokens: Tokens) -> PairCost:
    """Count what pairs of `tokens` leave behind in a forward pass of the model as it is.

    Random numbers may be drawn: put the generators back afterwards.
    """
    lengths = tokens.lengths
    long = _nearest(lengths, min(int(lengths.max()), _LONGEST_PROBE))
    short = _nearest(lengths, int(lengths[long]) // 2)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def of_one(pair: int) -> float:
        # The second pair's share: what does not grow with pairs (weights cast to bf16, say) is no pair's.
        counts = [saved_bytes(lambda: forward(tokens.take([pair] * count)), own) for count in (1, 2)]  # noqa: B023
        return float(counts[1] - counts[0])

    tall, low = (of_one(pair) / lengths[pair] for pair in (long, short))
    apart = float(lengths[long] - lengths[short])
    quadratic = max(0.0, (tall - low) / apart) if apart else 0.0
    config = model.config
    layers = int(getattr(config, "num_hidden_layers", 0) or 1)
    boundary = 4.0 * layers * int(getattr(config, "hidden_size", 0) or 0)
    return PairCost(max(0.0, tall - quadratic * float(lengths[long])), quadratic, boundary, layers)


def saved_bytes(work: Callable[[], torch.Tensor], but: set[int]) -> int:
    """Bytes of all storages that autograd keeps after `work`, each once, but for those that begin at `but`.

    Nothing is saved for a backward pass: a node that is handed its own output back would hold it for ever.
    """
    import torch

    seen: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out twice

    def pack(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        result = work()
    count = sum(storage.nbytes() for place, storage in seen.items() if place not in but)
    del result
    return count


def choose(
    cost: PairCost, groups: Sequence[NDArray[np.int64]], batch: int, budget: float, *, may: bool, must: bool = False
) -> Choice:
    """The largest micro-batch of at most `batch` groups whose activations fit `budget` bytes, whatever the shuffle.

    `groups` are the token counts of each group's pairs. Halved until it fits; only where not even one group does,
    layers are computed anew (if the model `may`), in the largest micro-batch that then fits. What `must` be is.
    """
    choice = Choice(batch, must, 0.0, False)
    for checkpointing in [True] if must else [False, True] if may else [False]:
        costs = [float(cost.bytes_of(lengths, checkpointing=checkpointing).sum()) for lengths in groups]
        costs.sort(reverse=True)
        size = batch
        while True:
            needed = sum(costs[:size])
            choice = Choice(size, checkpointing, needed, needed <= budget)
            if choice.fits:
                return choice
            if size == 1:
                break
            size = halved(size)
    return choice


def halved(groups: int) -> int:
    """Half of a micro-batch, rounded up, so that the parts of a batch are level."""
    return (groups + 1) // 2


def room(model: Any, device: str, budget: float | None) -> float:
    """Bytes that are left for activations of a `budget` for the whole training, or of what is free on the device.

    Gradients and AdamW's two moments are set aside: none of them is there before the first step. So are the weights,
    which are there, of a budget.
    """
    parameters = list(model.parameters())
    states = 3 * sum(own.numel() * own.element_size() for own in parameters if own.requires_grad)
    if budget is None:
        return float(SHARE * free_bytes(device) - states)
    return float(budget - states - sum(own.numel() * own.element_size() for own in parameters))


def free_bytes(device: str) -> int:
    """Bytes that are free on a device: on a CPU what the machine, and the control group it works in, still allow."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    if device.startswith("mps"):
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    import psutil

    limits = (limit for folder in _groups(Path("/proc/self/cgroup")) for limit in _group_limit(folder))
    return min([int(psutil.virtual_memory().available), *limits])


def _groups(own: Path, root: Path = Path("/sys/fs/cgroup")) -> Iterator[Path]:
    """The folders of the control groups that this process is in, each above it included: all of them hold it back."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    for _, kind, path in (line for line in lines if len(line) == 3):
        if kind == "" or "memory" in kind.split(","):
            top = root / "memory" if kind else root  # version 1 has a tree for each kind
            below = top / path.lstrip("/")
            yield from (folder for folder in (below, *below.parents) if folder.is_relative_to(top))
    yield root  # what a container sees as its own, whatever its path outside is


_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use, and the page cache's line of memory.stat: of version 2, and of version 1."""


def _group_limit(folder: Path) -> list[int]:
    """What a control group's limit leaves; page cache counts as free."""
    for limit, used, cached in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # the word max where there is no limit
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            details = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return [max(0, most - now + int(details.get(cached, 0)))]
    return []


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _TOLD)


def told(size: float) -> str:
    """Bytes for people: ``1.5 GB``, ``20 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _nearest(lengths: NDArray[np.int64], wanted: int) -> int:
    return int(np.abs(lengths - wanted).argmin())
