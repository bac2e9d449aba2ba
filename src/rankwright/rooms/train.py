"""Groups -> a fine-tuned cross-encoder: a plain loop that watches a ranking metric and can be killed.

In: groups, a base model, the dev queries' own candidates. Out: a model folder, a log, and what happened.
While it trains it keeps the weights that dev prefers (`keeping`; the untrained base counts, so a training that
harms for sure gives the base back), stops early, and falls back when the scores collapse; at the end it may try the
mean of the last weights. It does not know where groups come from, how arms are compared, or what any dataset is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Group
from rankwright.errors import DataError, ModelError
from rankwright.sections import Training, read_memory
from rankwright.toolbox import checkpoint, engine, exits, footprint, heap, keeping, losses
from rankwright.toolbox.active import ActiveRows
from rankwright.toolbox.device import choose_device, choose_precision
from rankwright.toolbox.devset import DevSet as DevSet
from rankwright.toolbox.engine import packed
from rankwright.toolbox.engine.forward import TOKEN_BUDGET, TorchBackend, forward_tokens
from rankwright.toolbox.engine.pairs import Tokens
from rankwright.toolbox.grouped import TextTokens, longest_draws, pad_groups, pairs_of
from rankwright.toolbox.keeping import Measured
from rankwright.toolbox.legible import complaint
from rankwright.toolbox.model import Reranker
from rankwright.toolbox.progress import bar, say
from rankwright.toolbox.schedule import Schedule, count_pairs
from rankwright.toolbox.trainable import parameter_groups, with_lora
from rankwright.toolbox.trained import Trained as Trained
from rankwright.toolbox.trained import card
from rankwright.toolbox.traininglog import TrainingLog

if TYPE_CHECKING:
    import torch

COLLAPSED_SPREAD = 0.01
"""Logits that differ by less than this inside a group are one score."""
CHANCE_MARGIN = 0.02
"""How close to ln(group size), relatively, the listwise loss of a collapsed model stays."""
FALLBACKS = 2


@dataclass(frozen=True)
class Workbench:
    """Where a training works: its folder (``model/``, ``checkpoints/``, ``log.jsonl``), and on what.

    `name` is what it is called on the screen (default: the folder's), `base` what the model's card says that it comes
    from (default: the folder's name).
    """

    folder: Path
    device: str = "auto"
    cache: Path | None = None
    seed: int = 0
    name: str | None = None
    base: str | None = None

    @property
    def title(self) -> str:
        """What the training is called on the screen and in its model card."""
        return self.name or self.folder.name


@dataclass
class State:
    """The counters that a checkpoint carries.

    `micro` groups are in memory at a time, and `checkpointing` says whether layers are computed anew: both decide the
    order of sums and the draws of dropout, so a training that goes on keeps them whatever memory is free by then.
    `rounded` says whether the linear layers round as int8 scoring does, and `kept` was measured so: what dev says
    of the weights of `kept_step`. `top` is the highest that it has said so far.
    """

    step: int = 0
    kept: Measured | None = None
    top: Measured | None = None
    kept_step: int = 0
    stale: int = 0
    fallbacks: int = 0
    flat: int = 0
    stopped: bool = False
    log_bytes: int = 0
    micro: int = 0
    checkpointing: bool = False
    rounded: bool = False
    recent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept, self.top = (Measured(**one) if isinstance(one, dict) else one for one in (self.kept, self.top))


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
        self.rounds_after = self.plan.steps - math.ceil(section.rounded_share * self.plan.steps)
        self.checkpoints = bench.folder / "checkpoints"
        self.log = TrainingLog(bench.folder)
        self.state = State()
        self.notes: list[str] = []
        self.active: ActiveRows | None = None
        self.tap: packed.Tap | None = None
        self.scoring_budget: int | None = None
        self.loss = losses.combine(section.loss, temperature=section.kl_temperature)

    def run(self) -> Trained:
        try:
            return self._run()
        finally:
            heap.let_go()
            if self.active:
                self.active.close()

    def _run(self) -> Trained:
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
        self._read_texts()
        heap.hold()
        model: Any = self.reranker.model
        if self.section.lora:
            model = with_lora(model, self.section, self.seed)
        parameters = parameter_groups(model, self.section)
        if self.section.exit:
            parameters += exits.attach(model, self.section.exit)
        optimizer = torch.optim.AdamW(parameters, lr=self.section.learning_rate, fused=device != "mps")
        self.rates = [group["lr"] for group in optimizer.param_groups]
        AcceleratorState._reset_state(True)  # it is global: a second training may want another precision
        mixed = "no" if self.precision == "fp32" else self.precision
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.device = str(self.accelerator.device)

    def _read_texts(self) -> None:
        """Encode all texts once, and leave in the word embedding the rows that they use."""
        orders = [False, True] if self.section.both_orders else [False]
        pairs = [pair for turned in orders for pair in pairs_of(self.groups, [turned] * len(self.groups))]
        watched = self.dev.pairs if self.dev else []
        self.texts = TextTokens(self.reranker.tokenizer, self.reranker.max_length, [*pairs, *watched])
        sides = map(list, zip(*pairs, strict=True))
        if told := complaint(self.bench.base or self.base, self.reranker.tokenizer, *sides):
            self._note(f"{self.bench.title}: {told}")
        self.pad_id = self.reranker.pad_id
        self.active = ActiveRows.of(self.reranker.model, self.texts.used(self.pad_id), self.reranker.source)
        self.reranker.shelve_tokenizer()  # no other text will be read
        heap.release(self.bench.device)  # of the whole table, the tokenizer, and of reading texts
        if self.active:
            rows, size = len(self.active.rows), self.active.size
            self._note(f"{self.bench.title}: the texts use {rows} of {size} tokens; the others' embeddings stay as is")

    def _fitting(self) -> footprint.Choice:
        """How many groups are in memory at a time: `batch`, unless the budget has no room for them."""
        self.model.train()
        model = self._bare()
        self._round(on=self.section.rounded_share > 0)  # which takes more memory in bf16
        cost = footprint.measure(partial(self._logits, even=False), model, self.texts.tokens)
        self._round(on=False)
        heap.release(self.device)
        room = footprint.room(model, self.device, read_memory(self.section.memory))
        lengths = longest_draws(self.texts, self.groups, self.section.sample)
        can, must = bool(model.supports_gradient_checkpointing), self.section.gradient_checkpointing
        choice = footprint.choose(cost, lengths, self.section.batch, room, may=can, must=must)
        self._note(f"{self.bench.title}: {choice.said(self.section.batch, room, self.section.memory)}")
        return choice

    def _checkpoint_layers(self) -> None:
        self._bare().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.state.checkpointing = True

    def _go_on_or_begin(self) -> None:
        import torch

        there = checkpoint.newest(self.checkpoints)
        if there:
            # A budget that was written down since, perhaps because memory ran out, counts; free memory alone does not.
            least = self._fitting() if self.section.memory != "auto" else None
            self._load(there)
            if least:
                self.state.micro = min(self.state.micro, least.groups)
            if self.state.checkpointing or (least and least.checkpointing):
                self._checkpoint_layers()
            self.log.cut(self.state.log_bytes)
            self._note(f"{self.bench.title}: goes on from step {self.state.step} of {self.plan.steps}")
            return
        choice = self._fitting()
        self.state.micro = choice.groups
        if choice.checkpointing:
            self._checkpoint_layers()
        torch.manual_seed(self.seed)
        self.log.cut(0)
        if self.dev:
            self._evaluate()
        self._save()

    def _step(self) -> None:
        """One optimiser step over `batch` x `accumulate` groups, counted as one batch exactly."""
        import torch

        if self.state.step >= self.rounds_after and not self.state.rounded:
            self._begin_rounding()
        chosen = self.plan.groups_of(self.state.step, self.groups, self.section, self.seed)
        swapped = self.plan.swaps_of(self.state.step, self.section, self.seed)
        for rate, parameters in zip(self.rates, self.optimizer.param_groups, strict=True):
            parameters["lr"] = rate * self.plan.rate(self.state.step, self.section) * 0.5**self.state.fallbacks
        total, parts = self._gradients(chosen, swapped)
        if self.section.clip:
            self.accelerator.clip_grad_norm_(list(exits.own_parameters(self.model)), self.section.clip)
        self._optimise()
        self.state.step += 1
        spreads = torch.stack([losses.group_spread(scores, mask) for scores, _, mask, *_ in parts])
        spread = float(spreads.nanmean())  # groups of one candidate have none
        self._note_flatness(total, spread, parts)
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.log.write({"step": self.state.step, "loss": total, "lr": rate, "spread": spread})

    def _optimise(self) -> None:
        """Move the weights by the gradients. The first time makes the optimiser's own memory, twice the weights'."""
        if not self.optimizer.state:
            heap.release(self.device)  # else what the pass has left in pieces stays beside it
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not footprint.out_of_memory(error):
                raise
            message = "out of memory: the optimiser's two moments have no room beside weights and gradients"
            raise ModelError(message, hint="lora, a smaller base, or device: cpu") from None
        self.optimizer.zero_grad()

    def _gradients(self, chosen: Sequence[Group], swapped: Sequence[bool]) -> tuple[float, list[list[torch.Tensor]]]:
        """The step's loss and tensors, its gradients in place; begun anew with less at a time where memory runs out."""
        random = checkpoint.random_state()
        while True:
            try:
                return self._accumulated(chosen, swapped)
            except RuntimeError as error:
                if not footprint.out_of_memory(error):
                    raise
            self._take_less()  # outside of the except, whose traceback holds on to the tensors
            checkpoint.set_random_state(random)

    def _accumulated(self, chosen: Sequence[Group], swapped: Sequence[bool]) -> tuple[float, list[list[torch.Tensor]]]:
        self.model.train()
        parts, total = [], 0.0
        for batch in range(0, len(chosen), self.section.batch):
            end = min(batch + self.section.batch, len(chosen))
            for start in range(batch, end, self.state.micro):
                part = slice(start, min(start + self.state.micro, end))
                tensors = self._forward(chosen[part], swapped[part])
                loss = self.loss(*tensors)[0] / len(chosen)  # all groups, counting or not: known beforehand
                self.accelerator.backward(loss + self._exit_loss(tensors) / len(chosen))
                total += float(loss.detach())
                parts.append([tensor.detach() for tensor in tensors])
        return total, parts

    def _take_less(self) -> None:
        """After memory ran out: half as many groups at a time, or, of one, its layers computed anew."""
        self.optimizer.zero_grad()
        heap.release(self.device, cycles=True)
        where = f"{self.bench.title}: out of memory in step {self.state.step + 1}"
        if self.state.micro > 1:
            self.state.micro = footprint.halved(self.state.micro)
            self._note(f"{where}; from here on {self.state.micro} groups at a time, and steps as large as before")
        elif not self.state.checkpointing and self._bare().supports_gradient_checkpointing:
            self._checkpoint_layers()
            self._note(f"{where} with one group; from here on layers are computed anew (gradient checkpointing)")
        else:
            raise ModelError(
                "out of memory: not even one group has room", hint="a smaller max_length, fewer negatives, or lora"
            )

    def _forward(self, groups: Sequence[Group], swapped: Sequence[bool]) -> tuple[torch.Tensor, ...]:
        """Scores, labels, mask, teacher and weights of some groups, each (groups, width of the widest)."""
        return pad_groups(groups, self._logits(self.texts.of(pairs_of(groups, swapped))))

    def _exit_loss(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor | float:
        """What the exit head learns from the pass just made: a graph of its own, apart from the model's."""
        return exits.loss(self._bare(), self.tap, tensors[0], tensors[2]) if self.tap else 0.0

    def _logits(self, tokens: Tokens, budget: int | None = None, *, even: bool = True) -> torch.Tensor:
        """Logits (count,), with their graph; at most `budget` tokens at a time."""
        options: dict[str, Any] = {"pad_id": self.pad_id, "device": self.device, "precision": self.precision}
        if self.section.exit and self.model.training:
            self.tap = options["tap"] = packed.Tap(self.section.exit)
        return forward_tokens(self._bare(), tokens, budget=budget, even=even, **options)

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
        measured = self._measured()
        before, top = self.state.kept, self.state.top
        if first_or_higher := top is None or keeping.higher(measured, top):
            self.state.top = top = measured
        self.state.stale = 0 if first_or_higher else self.state.stale + 1
        kept = before is None or keeping.takes(measured, before, top, served=self.dev.watch == "served")
        if kept:
            self.state.kept, self.state.kept_step = measured, self.state.step
            checkpoint.save_best(self.checkpoints, self.state.step, self._bare())
        if self.section.average and self.state.step and self._finite():
            checkpoint.save_recent(self.checkpoints, self.state.step, self._bare())
            self.state.recent = [*self.state.recent, self.state.step][-self.section.average :]
        patience = self.section.dev.patience if self.section.dev else None
        told: dict[str, Any] = {"step": self.state.step, "dev": {self.dev.metric: measured.mean}, "kept": kept}
        told |= self._told(measured) | ({"rounded": True} if self.state.rounded else {})  # the two kinds do not compare
        self.log.write(told)
        begun = self.state.rounded or not self.section.rounded_share  # else it would stop before it has
        if patience is not None and self.state.stale >= patience and begun:
            self.state.stopped = True
            self._note(
                f"{self.bench.title}: stopped at step {self.state.step}, {self.state.stale} evaluations "
                f"without a better {self.dev.metric} than {top.mean:.4f}"
            )

    def _measured(self) -> Measured:
        """What dev says of the weights as they are."""
        assert self.dev
        scores = self._score(self.dev.pairs)
        values = self.dev.values(lambda pairs: scores)
        own = self.dev.reranked(lambda pairs: scores) if self.dev.watch == "served" else values
        return Measured(values.tolist(), own.tolist())

    def _told(self, measured: Measured) -> dict[str, Any]:
        """For the log: each query's value, which an interval needs; the own order's mean where it is not watched."""
        assert self.dev
        alone = {"alone": {self.dev.metric: measured.alone}} if self.dev.watch == "served" else {}
        return {**alone, "values": [round(value, 6) for value in measured.values]}

    def _score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """The logits of dev pairs, float32 (len(pairs),), in windows so that their length is level."""
        import torch

        self.model.eval()
        with torch.inference_mode():
            score = self._as_scoring_does() or self._scored
            windows = [pairs[start : start + engine.WINDOW] for start in range(0, len(pairs), engine.WINDOW)]
            return np.concatenate([score(self.texts.of(window)) for window in windows])

    def _as_scoring_does(self) -> Callable[[Tokens], NDArray[np.float32]] | None:
        """What scores tokens by a copy of the weights as they are now, on a CPU; None where layers are not plain."""
        model = self._bare()
        if self.device != "cpu" or not packed.plain(model):
            return None
        return partial(engine.score_tokens, TorchBackend(model, self.pad_id, self.precision))

    def _scored(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits, float32 (count,); with fewer tokens at a time from here on where memory runs out."""
        while True:
            try:
                return self._logits(tokens, self.scoring_budget).cpu().numpy()
            except RuntimeError as error:
                if not footprint.out_of_memory(error):
                    raise
            heap.release(self.device, cycles=True)
            before = self.scoring_budget or TOKEN_BUDGET[self.device.split(":")[0]]
            if before <= int(tokens.lengths.max()):
                raise ModelError("out of memory: not even one dev pair has room", hint="a smaller max_length, or lora")
            self.scoring_budget = before // 2
            self._note(f"{self.bench.title}: out of memory on dev; from here on {before // 2:,} tokens at a time")

    def _begin_rounding(self) -> None:
        """From here on linear layers round as int8 scoring does; the best checkpoint is measured anew under it."""
        self._round(on=True)
        self.state.rounded = True
        self._note(f"{self.bench.title}: after step {self.state.step} it sees the rounding of int8 scoring")
        if not self.dev:
            return
        assert self.state.kept
        model, before = self._bare(), self.state.kept.mean
        present = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        checkpoint.load_best(self.checkpoints, self.state.kept_step, model)
        measured = self._measured()
        model.load_state_dict(present)
        self.state.kept = self.state.top = measured
        self.state.stale = 0
        told = {"kept_step": self.state.kept_step, "before": before, "rounded_dev": {self.dev.metric: measured.mean}}
        self.log.write({"step": self.state.step, **told})

    def _round(self, *, on: bool) -> None:
        if self.section.rounded_share:
            from rankwright.toolbox import rounding

            rounding.switch(self._bare(), on=on)

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
        state = asdict(self.state)
        checkpoint.save(self.checkpoints, self.state.step, self._bare(), self.optimizer, state, self.accelerator.scaler)
        checkpoint.forget_bests(self.checkpoints, but=self.state.kept_step)
        checkpoint.forget_recent(self.checkpoints, but=self.state.recent)

    def _load(self, there: Path) -> None:
        before = self.state
        self.state = State(**checkpoint.load(there, self._bare(), self.optimizer, self.accelerator.scaler))
        if before.micro:  # gone back, perhaps to a time before memory ran out
            self.state.micro, self.state.checkpointing = min(before.micro, self.state.micro), before.checkpointing
        self._round(on=self.state.rounded)

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
            assert self.state.kept
            value = self.state.kept.mean
            checkpoint.load_best(self.checkpoints, self.state.kept_step, self._bare())
        if not self._finite():
            raise ModelError(
                "the weights are not finite any more",
                where=str(self.bench.folder),
                hint="a smaller learning_rate, or precision: fp32",
            )
        self._round(on=False)
        model = self._bare()
        del self.optimizer
        self.accelerator.free_memory()  # cycles too, before the whole table is back
        heap.release(self.device)
        if self.active:
            self.active.restore()
        self.reranker.unshelve_tokenizer()
        head = exits.detach(model, self.section.exit) if self.section.exit else None
        self.reranker.model = model.merge_and_unload() if self.section.lora else model
        kept = self.state.kept_step if best and not averaged else self.state.step
        if head and not kept and not averaged:
            head = None
            self._note(f"{self.bench.title}: the base was kept, for which no exit was trained: there is none")
        measured = [value for record in self.log.records() for value in record.get("dev", {}).values()]
        trained = Trained(
            model=self.bench.folder / "model",
            steps=self.state.step,
            planned=self.plan.steps,
            kept_step=kept,
            dev=value,
            dev_before=measured[0] if measured and not self.state.rounded else None,  # it was scored without rounding
            precision=self.precision,
            fallbacks=self.state.fallbacks,
            notes=self.notes,
            averaged=averaged,
        )
        told = card(self.bench.title, self.bench.base or self.base, self.section, trained)
        self.reranker.save(trained.model, card=told, head=head)
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
        measured = self._measured()
        assert self.state.kept
        kept = keeping.average_takes(measured, self.state.kept, served=self.dev.watch == "served")
        told = {"averaged_dev": {self.dev.metric: measured.mean}, "average": len(self.state.recent)}
        self.log.write({"step": self.state.step, **told, "kept": kept, **self._told(measured)})
        return measured.mean if kept else None

    def _note(self, text: str) -> None:
        self.notes.append(text)
        say(text)
