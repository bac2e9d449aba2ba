"""Groups -> a fine-tuned cross-encoder: a plain loop that watches a ranking metric and can be killed.

In: groups, a base model, the dev queries' own candidates. Out: a model folder, a log, and what happened.
While it trains it keeps the checkpoint that ranks dev best (the untrained base counts, so a training that only
does harm gives the base back), stops early, and falls back when the scores collapse; at the end it may try the mean
of the last weights. It does not know where groups come from, how arms are compared, or what any dataset is.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Group
from rankwright.errors import ConfigError, DataError, ModelError
from rankwright.sections import Training
from rankwright.toolbox import checkpoint, engine, losses
from rankwright.toolbox.device import choose_device, choose_precision
from rankwright.toolbox.devset import DevSet as DevSet
from rankwright.toolbox.model import Reranker, model_card
from rankwright.toolbox.progress import bar, say
from rankwright.toolbox.schedule import Schedule, count_pairs

if TYPE_CHECKING:
    import torch

COLLAPSED_SPREAD = 0.01
"""Logits that differ by less than this inside a group are one score."""
CHANCE_MARGIN = 0.02
"""How close to ln(group size), relatively, the listwise loss of a collapsed model stays."""
FALLBACKS = 2
HAIR = 1e-9
"""By how much more than the best checkpoint's an average's dev metric must be at least, to be kept."""


@dataclass(frozen=True)
class Workbench:
    """Where a training works: its folder (``model/``, ``checkpoints/``, ``log.jsonl``), and on what.

    `name` is what it is called on the screen (default: the folder's).
    """

    folder: Path
    device: str = "auto"
    cache: Path | None = None
    seed: int = 0
    name: str | None = None

    @property
    def title(self) -> str:
        """What the training is called on the screen and in its model card."""
        return self.name or self.folder.name


@dataclass
class State:
    """The counters that a checkpoint carries."""

    step: int = 0
    best: float = -math.inf
    alone: float = -math.inf
    best_step: int = 0
    stale: int = 0
    fallbacks: int = 0
    flat: int = 0
    stopped: bool = False
    log_bytes: int = 0
    recent: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    model: Path
    steps: int
    planned: int
    kept_step: int
    dev: float | None
    dev_before: float | None
    precision: str
    fallbacks: int
    notes: list[str] = field(default_factory=list)
    averaged: tuple[int, ...] = ()
    """The steps whose mean was kept; empty where one checkpoint was."""

    @property
    def kept(self) -> str:
        """Which weights were kept, in words."""
        if self.averaged:
            return f"the mean of steps {', '.join(map(str, self.averaged))}"
        return f"step {self.kept_step}"

    def lines(self) -> list[str]:
        """What happened, for the terminal."""
        told = f"{self.steps} of {self.planned} steps; kept {self.kept}"
        if self.dev is not None and self.dev_before is not None:
            told += f", dev {self.dev_before:.4f} -> {self.dev:.4f}"
        return [told]


def train(
    groups: Sequence[Group], section: Training, *, base: str | Path, dev: DevSet | None, bench: Workbench
) -> Trained:
    """Train `base` on the groups; write ``model/``, ``log.jsonl`` and ``tensorboard/`` into the bench's folder.

    A second call on the same folder goes on from its newest checkpoint and, on a CPU, ends with the same weights
    bit for bit as a call that was never stopped.

    Raises:
        ModelError: the base cannot be loaded, or the loss is not finite even after falling back.
        DataError: there is no group to train on.
    """
    if not groups:
        raise DataError("there are no groups to train on", hint="mine: {negatives: …} makes them")
    return _Loop(groups, section, base, dev, bench).run()


class _Loop:
    """One training. The steps of `run` are its table of contents."""

    def __init__(
        self, groups: Sequence[Group], section: Training, base: str | Path, dev: DevSet | None, bench: Workbench
    ) -> None:
        self.groups, self.section, self.dev, self.bench = groups, section, dev, bench
        self.seed = bench.seed if section.seed is None else section.seed
        self.base = base
        pairs = count_pairs(groups, section.sample)
        self.plan = Schedule.of(len(groups), section, pairs=pairs, watching=dev is not None)
        self.checkpoints = bench.folder / "checkpoints"
        self.log = _Log(bench.folder)
        self.state = State()
        self.notes: list[str] = []
        self.loss = losses.combine(section.loss, temperature=section.kl_temperature)

    def run(self) -> Trained:
        self._prepare()
        self._go_on_or_begin()
        with bar(f"train {self.bench.title}", self.plan.steps, "steps") as advance:
            advance(self.state.step)
            while self.state.step < self.plan.steps and not self.state.stopped:
                before = self.state.step
                self._step()
                self._watch()
                advance(self.state.step - before)
        return self._finish()

    def _prepare(self) -> None:
        """Load the base, choose device and precision, make the optimiser; hand all to accelerate."""
        import torch
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        device = choose_device(self.bench.device)
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # accelerate knows cuda alone, and takes the current one
        self.precision, why = choose_precision(self.section.precision, device, self.bench.cache)
        self._note(f"{self.bench.title}: {self.precision} on {device} ({why})")
        self.reranker = Reranker.start(self.base, seed=self.seed, device=device, max_length=self.section.max_length)
        if self.reranker.new_head:
            self._note(f"{self.bench.title}: {self.base} is a plain encoder; it gets a new head")
        model: Any = self.reranker.model
        if self.section.lora:
            model = _with_lora(model, self.section, self.seed)
        if self.section.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, self.section), lr=self.section.learning_rate, fused=device != "mps"
        )
        self.rates = [group["lr"] for group in optimizer.param_groups]
        AcceleratorState._reset_state(True)  # it is global: a second training may want another precision
        mixed = "no" if self.precision == "fp32" else self.precision
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.device = str(self.accelerator.device)

    def _go_on_or_begin(self) -> None:
        import torch

        there = checkpoint.newest(self.checkpoints)
        if there:
            self._load(there)
            self.log.cut(self.state.log_bytes)
            self._note(f"{self.bench.title}: goes on from step {self.state.step} of {self.plan.steps}")
            return
        torch.manual_seed(self.seed)
        self.log.cut(0)
        if self.dev:
            self._evaluate()
        self._save()

    def _step(self) -> None:
        """One optimiser step over `batch` x `accumulate` groups, counted as one batch exactly."""
        import torch

        chosen = self.plan.groups_of(self.state.step, self.groups, self.section, self.seed)
        swapped = self.plan.swaps_of(self.state.step, self.section, self.seed)
        for rate, parameters in zip(self.rates, self.optimizer.param_groups, strict=True):
            parameters["lr"] = rate * self.plan.rate(self.state.step, self.section) * 0.5**self.state.fallbacks
        self.model.train()
        parts, total = [], 0.0
        for start in range(0, len(chosen), self.section.batch):
            micro = chosen[start : start + self.section.batch]
            tensors = self._forward(micro, swapped[start : start + self.section.batch])
            loss = self.loss(*tensors)[0] / len(chosen)  # all groups of the step, counting or not: known beforehand
            self.accelerator.backward(loss)
            total += float(loss.detach())
            parts.append([tensor.detach() for tensor in tensors])
        if self.section.clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.section.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        spread = float(torch.stack([losses.group_spread(scores, mask) for scores, _, mask, *_ in parts]).mean())
        self._note_flatness(total, spread, parts)
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.log.write({"step": self.state.step, "loss": total, "lr": rate, "spread": spread})

    def _forward(self, groups: Sequence[Group], swapped: Sequence[bool]) -> tuple[torch.Tensor, ...]:
        """Scores, labels, mask, teacher and weights of some groups, each (groups, width of the widest)."""
        pairs = _pairs(groups, swapped)
        encoded = engine.encode(self.reranker.tokenizer, pairs, self.reranker.max_length)
        logits = engine.forward(
            self.model, self.reranker.tokenizer, encoded, device=self.device, precision="fp32"
        )  # accelerate has wrapped the model in its own autocast
        return pad_groups(groups, logits)

    def _note_flatness(self, loss: float, spread: float, parts: Sequence[Sequence[torch.Tensor]]) -> None:
        """Count the steps in a row that look collapsed: one score for all candidates, and the loss at chance."""
        chance = listwise = 0.0
        for scores, labels, mask, teacher, weights in parts:
            chance += float(losses.chance_loss(mask, labels, weights).nan_to_num())
            listwise += float(losses.mean(losses.listwise(scores, labels, mask, teacher, weights)))
        at_chance = chance == 0 or abs(listwise - chance) <= CHANCE_MARGIN * chance
        flat = (spread < COLLAPSED_SPREAD and at_chance) or not math.isfinite(loss)
        self.state.flat = self.state.flat + 1 if flat else 0

    def _watch(self) -> None:
        """Fall back, evaluate, stop, save: whatever is due after this step."""
        step = self.state.step
        if self.state.flat >= self.plan.patience_flat and step > self.plan.warmup + self.plan.patience_flat:
            self._fall_back()
            return
        if self.dev and step in self.plan.evaluations:
            self._evaluate()
        if step in self.plan.checkpoints and self.state.flat == 0 and self._finite():
            self._save()

    def _evaluate(self) -> None:
        assert self.dev
        scores = self._score(self.dev.pairs)
        values = self.dev.values(lambda pairs: scores)
        value = float(np.mean(values))
        # A served order often is the retriever's own at every step: of equals, the better reranker is kept.
        alone = float(np.mean(self.dev.reranked(lambda pairs: scores)))
        equal = abs(value - self.state.best) <= HAIR
        kept = value > self.state.best + (HAIR if self.dev.watch == "served" else 0) or (
            equal and alone > self.state.alone
        )
        if kept:
            self.state.best, self.state.best_step, self.state.stale = value, self.state.step, 0
            self.state.alone = alone
            checkpoint.save_best(self.checkpoints, self.state.step, self._bare())
        else:
            self.state.stale += 1
        if self.section.average and self.state.step and self._finite():
            checkpoint.save_recent(self.checkpoints, self.state.step, self._bare())
            self.state.recent = [*self.state.recent, self.state.step][-self.section.average :]
        patience = self.section.dev.patience if self.section.dev else None
        each = _rounded(values)  # what an interval of best against last needs
        self.log.write({"step": self.state.step, "dev": {self.dev.metric: value}, "kept": kept, "values": each})
        if patience is not None and self.state.stale >= patience:
            self.state.stopped = True
            self._note(
                f"{self.bench.title}: stopped at step {self.state.step}, {self.state.stale} evaluations "
                f"without a better {self.dev.metric} than {self.state.best:.4f} of step {self.state.best_step}"
            )

    def _score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        tokenizer, length = self.reranker.tokenizer, self.reranker.max_length
        return engine.score(self._bare(), tokenizer, pairs, max_length=length, precision=self.precision)

    def _fall_back(self) -> None:
        """Back to the last checkpoint that was not flat, with half the learning rate, at most twice."""
        name, step, fallbacks = self.bench.title, self.state.step, self.state.fallbacks + 1
        there = checkpoint.newest(self.checkpoints)
        assert there is not None
        self._load(there)
        self.log.write({"step": step, "collapsed": True, "back_to": self.state.step})
        told = (
            f"{name}: collapsed at step {step} (no spread of scores, or no finite loss); back to step {self.state.step}"
        )
        if fallbacks > FALLBACKS:
            self.state.stopped = True
            self._note(f"{told} for the third time: stopped")
        else:
            self.state.fallbacks = fallbacks
            self._note(f"{told} with {0.5**fallbacks:g} of the learning rate")
        self._save()

    def _save(self) -> None:
        self.state.log_bytes = self.log.size
        checkpoint.save(self.checkpoints, self.state.step, self._bare(), self.optimizer, asdict(self.state))
        checkpoint.forget_bests(self.checkpoints, but=self.state.best_step)
        checkpoint.forget_recent(self.checkpoints, but=self.state.recent)

    def _load(self, there: Path) -> None:
        self.state = State(**checkpoint.load(there, self._bare(), self.optimizer))

    def _bare(self) -> Any:
        # With its autocast: taking that off takes it off the model in training too.
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=True)

    def _finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self._bare().parameters())

    def _finish(self) -> Trained:
        """Put the kept weights in place, merge adapters, save the model folder."""
        best = self.section.keep == "best" and self.dev is not None
        value = self._try_average() if best else None
        averaged = tuple(self.state.recent) if value is not None else ()
        if best and not averaged:
            value = self.state.best
            checkpoint.load_best(self.checkpoints, self.state.best_step, self._bare())
        if not self._finite():
            raise ModelError(
                "the weights are not finite any more",
                where=str(self.bench.folder),
                hint="a smaller learning_rate, or precision: fp32",
            )
        model = self._bare()
        self.reranker.model = model.merge_and_unload() if self.section.lora else model
        kept = self.state.best_step if best and not averaged else self.state.step
        measured = [value for record in self.log.records() for value in record.get("dev", {}).values()]
        trained = Trained(
            model=self.bench.folder / "model",
            steps=self.state.step,
            planned=self.plan.steps,
            kept_step=kept,
            dev=value,
            dev_before=measured[0] if measured else None,
            precision=self.precision,
            fallbacks=self.state.fallbacks,
            notes=self.notes,
            averaged=averaged,
        )
        self.reranker.save(trained.model, card=_card(self.bench.title, self.base, self.section, trained))
        self.log.to_tensorboard()
        return trained

    def _try_average(self) -> float | None:
        """Load the mean of the weights evaluated last; its dev metric, or None where it is not to be kept.

        Its record has keys of its own: it is no evaluation of a step.
        """
        if len(self.state.recent) < 2:
            return None
        assert self.dev
        checkpoint.load_average(self.checkpoints, self.state.recent, self._bare())
        values = self.dev.values(self._score)
        value = float(np.mean(values))
        kept = value > self.state.best + HAIR
        told = {"averaged_dev": {self.dev.metric: value}, "average": len(self.state.recent)}
        self.log.write({"step": self.state.step, **told, "kept": kept, "values": _rounded(values)})
        return value if kept else None

    def _note(self, text: str) -> None:
        self.notes.append(text)
        say(text)


def pad_groups(groups: Sequence[Group], logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Lay flat logits (pairs,) out as the five tensors of a loss, of shape (groups, widest), on logits' device."""
    import torch

    widths = torch.tensor([len(group) for group in groups], device=logits.device)
    mask = torch.arange(int(widths.max()), device=logits.device)[None, :] < widths[:, None]
    flat_labels = [label for group in groups for label in group.labels]
    flat_teacher = [score for group in groups for score in group.teacher]
    flat_weights = [weight for group in groups for weight in group.weights]

    def laid(values: torch.Tensor, filling: float) -> torch.Tensor:
        return torch.full(mask.shape, filling, device=logits.device, dtype=values.dtype).masked_scatter(mask, values)

    labels = laid(torch.tensor(flat_labels, device=logits.device), 0)
    teacher = laid(torch.tensor(flat_teacher, device=logits.device, dtype=torch.float32), float("nan"))
    weights = laid(torch.tensor(flat_weights, device=logits.device, dtype=torch.float32), 1.0)
    return laid(logits, 0.0), labels, mask, teacher, weights


class _Log:
    """`log.jsonl`: one record a line, cut back to the checkpoint's length when a training goes on."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "log.jsonl"
        self.path.touch()

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def cut(self, size: int) -> None:
        with self.path.open("r+b") as file:
            file.truncate(size)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record; a number that is not finite becomes null, since JSON has none of its kind."""
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        lost = {name: None for name, value in numbers.items() if not math.isfinite(value)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, **lost}, allow_nan=False) + "\n")

    def records(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)

    def to_tensorboard(self) -> None:
        """The same records for TensorBoard. Written from the log at the end, so that a resumed training has no gap."""
        from tensorboardX import SummaryWriter

        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
        with SummaryWriter(str(self.folder / "tensorboard")) as writer:
            for record in self.records():
                values = {name: value for name, value in record.items() if isinstance(value, float)}
                for kind in ("dev", "averaged_dev"):
                    values |= {f"{kind}/{name}": value for name, value in record.get(kind, {}).items()}
                for name, value in values.items():
                    writer.add_scalar(name, value, record["step"])


def _with_lora(model: Any, section: Training, seed: int) -> Any:
    """The model with low-rank adapters beside its encoder's linear layers; the head is trained in full.

    Raises:
        ConfigError: the model has none of the layers in `lora.targets`.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    assert section.lora
    encoder = model.base_model_prefix
    head = [name for name, part in model.named_children() if name != encoder and list(part.parameters())]
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=section.lora.rank,
        lora_alpha=section.lora.alpha,
        lora_dropout=section.lora.dropout,
        target_modules=section.lora.targets,
        modules_to_save=head,
        exclude_modules=rf"({'|'.join(map(re.escape, head))})(\..*)?",
    )
    linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError:
            message = f"lora.targets: the model has no layer {' or '.join(section.lora.targets)}"
            raise ConfigError(message, hint=f"its linear layers: {', '.join(sorted(linear))}") from None


def _parameter_groups(model: Any, section: Training) -> list[dict[str, Any]]:
    """No weight decay on biases and norms; the head (all outside the encoder) may have a rate of its own."""
    encoder = f"{model.base_model_prefix}."
    found: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 else section.weight_decay
        head = not name.removeprefix("base_model.model.").startswith(encoder)  # the prefix is peft's
        rate = section.head_learning_rate if head and section.head_learning_rate else section.learning_rate
        found.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in found.items()]


def _pairs(groups: Sequence[Group], swapped: Sequence[bool]) -> list[tuple[str, str]]:
    """Each group's (query, document), or (document, query) where it is swapped."""
    return [
        (document, group.query) if turned else (group.query, document)
        for group, turned in zip(groups, swapped, strict=True)
        for document in group.documents
    ]


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(own, 6) for own in values.tolist()]


def _card(name: str, base: str | Path, section: Training, trained: Trained) -> str:
    loss = " + ".join(f"{weight:g} x {term}" for term, weight in section.loss.items())
    lines = [
        f"A cross-encoder reranker, trained by rankwright from `{Path(str(base)).name}`.",
        "",
        f"* loss: {loss}; learning rate {section.learning_rate:g}; {trained.precision}",
        f"* kept {trained.kept} of {trained.planned} planned",
    ]
    if trained.dev is not None and section.dev:
        lines.append(
            f"* {section.dev.metric} on dev candidates: {trained.dev_before:.4f} before, {trained.dev:.4f} after"
        )
    return model_card(name, Path(str(base)).name, lines)
