"""How much work an experiment is, before any of it is done: pairs, seconds and memory for each stage.

Reads the collection and models' configurations; times one small batch of a model of the right shape with random
weights, padded and in fp32. Estimates are rough (a factor of two), and say so; scoring in a lower precision, where the
run finds that its order is the same, takes a third of what is told.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rankwright.core import Collection, count_pairs, relevant
from rankwright.errors import ModelError
from rankwright.plan import MINE, Model, Plan
from rankwright.sections import BUDGET, DenseRetriever, Experiment, MineSection, Training, read_budget
from rankwright.toolbox import engine
from rankwright.toolbox.device import choose_device
from rankwright.toolbox.engine.forward import TOKEN_BUDGET
from rankwright.toolbox.legible import complaint
from rankwright.toolbox.schedule import PASSES, count_steps, epoch_steps
from rankwright.toolbox.weights import locate

_SAMPLE = 200  # texts
_HEAPS = 0.5
"""A text n times as long has n to this power as many different words (Heaps 1978; 0.4 to 0.6 in English)."""


@dataclass(frozen=True)
class Work:
    """One line of the forecast. `seconds` and `gigabytes` are None where they cannot be told, and `note` says why.

    `warning` is what speaks against the stage's model; the same for all stages of one model.
    """

    stage: str
    amount: int
    unit: str
    seconds: float | None = None
    gigabytes: float | None = None
    note: str = ""
    warning: str = ""


@dataclass(frozen=True)
class _Shape:
    """What a model costs: forward passes a second, parameters, and floats of activations that a pair keeps."""

    per_second: float
    parameters: int
    unused: int
    """Of them, rows of the word embedding that the texts do not use: they are not trained."""
    activations: float
    illegible: str = ""
    """What there is to say of texts that it cannot read."""


def forecast(experiment: Experiment, collection: Collection, plan: Plan | None = None) -> list[Work]:
    """The work of each stage that computes with a model, in order, by the walk's plan or the experiment's own.

    Raises:
        ModelError: a model is not there. One on a hub that cannot be reached is noted only.
    """
    plan, told = plan or Plan.of(experiment), []
    shapes = _Shapes(experiment, collection)
    for name, retriever in experiment.retrieve.items():
        if isinstance(retriever, DenseRetriever):
            texts = len(collection.documents) + len(collection.queries)
            told.append(shapes.work(f"retrieve {name}", texts, "texts", Model("outside", retriever.model)))
    if experiment.mine:
        told += _mining_work("mine", experiment.mine, MINE, experiment, collection, plan, shapes)
    for name in plan.trainings:
        section = experiment.train[name]
        if name in plan.searches:
            told.append(_search_work(name, section, shapes))
            continue
        if section.mine:
            told += _mining_work(f"mine for {name}", section.mine, name, experiment, collection, plan, shapes)
        told.append(_training_work(name, experiment, collection, plan, shapes))
    if experiment.merge and experiment.merge.weight == "sweep":
        told.append(_sweep_work(experiment, collection, plan, shapes))
    if experiment.rerank:
        own = collection.split_documents(plan.split, per_split=experiment.data.corpus == "per_split")
        depth = min(experiment.rerank.depth, experiment.retrieve[plan.rerank_from].depth, len(own))
        watched = min(experiment.rerank.dev_queries, len(collection.qrels.get("dev", {})))
        on_dev = watched if experiment.blend and plan.split != "dev" else 0
        pairs = (len(collection.qrels.get(plan.split, {})) + on_dev) * depth
        longest = experiment.rerank.max_length
        lower = experiment.rerank.precision != "exact" and shapes.device == "cpu"
        note = "in fp32; int8, where it is as good, takes a third" if lower else ""
        for arm, model in plan.arms.items():
            work = shapes.work(f"rerank {arm}", pairs, "pairs", plan.root(model), longest)
            told.append(work if work.note else replace(work, note=note))
    return told


def _mining_work(
    stage: str,
    section: MineSection,
    place: str,
    experiment: Experiment,
    collection: Collection,
    plan: Plan,
    shapes: _Shapes,
) -> list[Work]:
    pairs = round(_queries(collection, section) * _group_width(collection, section))
    told = [Work(stage, pairs, "pairs at most", 0.0)]
    if place in plan.filters:
        scored = _filter_pairs(collection, section, experiment.retrieve[plan.mine_from[place]].depth)
        scored *= 2 if experiment.rerank and experiment.rerank.both_orders else 1
        told.append(shapes.work(f"{stage}, filter", scored, "pairs", plan.root(plan.filters[place])))
    return told


def _search_work(name: str, section: Training, shapes: _Shapes) -> Work:
    """A search and the training after it cost what the budget says, and the memory of the largest base."""
    amount, unit = read_budget(section.budget or BUDGET)
    stage, pairs = f"recipe and train {name}", round(amount) if unit == "pairs" else section.batch * 10
    bases = [Model("outside", reference) for reference in section.bases or [section.base]]
    works = [shapes.training(stage, pairs, 0.0, base, section) for base in bases]
    if unit == "pairs":
        return max(works, key=lambda work: work.gigabytes or 0.0)
    memory = max((work.gigabytes for work in works if work.gigabytes is not None), default=None)
    warning = "; ".join(dict.fromkeys(work.warning for work in works if work.warning))
    return Work(stage, round(amount), "seconds at most", amount, memory, "the budget", warning)


def _sweep_work(experiment: Experiment, collection: Collection, plan: Plan, shapes: _Shapes) -> Work:
    """Each weight is scored on dev and on the general collection: the line's, two beside the best, and each alone."""
    merge, general = experiment.merge, experiment.general
    assert merge
    trials = merge.steps + 3 + (len(merge.models) - 1 if len(merge.models) > 2 else 0)
    pairs = min(merge.queries, len(collection.qrels.get("dev", {}))) * merge.depth
    pairs += merge.queries * general.depth if general else 0
    return shapes.work("merge, sweep", trials * pairs, "pairs at most", plan.root(plan.merged[-1]))


def _training_work(name: str, experiment: Experiment, collection: Collection, plan: Plan, shapes: _Shapes) -> Work:
    section = experiment.train[name]
    mine = section.mine or experiment.mine
    assert mine
    labelled = section.groups == "labelled"
    groups = _queries(collection, mine) if labelled else min(len(collection.qrels["train"]), mine.unlabelled)
    width = _group_width(collection, mine) if labelled else 1 + mine.negatives + mine.random
    if section.sample:
        width = min(width, section.sample.positives + section.sample.negatives)
    step_groups = section.batch * section.accumulate
    epoch = epoch_steps(groups, section)
    steps = count_steps(groups, groups * width, section)
    whole, rest = divmod(steps, epoch)  # an epoch's last step is short where the groups do not fill it
    pairs = round((whole * groups + rest * step_groups) * width)
    dev_passes = 0.0
    if section.dev:
        evaluations = 1 + section.dev.evaluations * max(1.0, steps / epoch)
        dev_passes = evaluations * min(section.dev.queries, len(collection.qrels.get("dev", {}))) * section.dev.depth
    return shapes.training(f"train {name}", pairs, dev_passes, plan.root(plan.bases[name]), section)


def _queries(collection: Collection, mine: MineSection) -> int:
    """Of how many training queries groups are made."""
    there = len(collection.qrels["train"])
    return there if mine.queries is None else min(mine.queries, there)


def _group_width(collection: Collection, mine: MineSection) -> float:
    qrels = collection.qrels["train"].values()
    counts = [len(relevant(grades)) for grades in qrels]
    positives = np.minimum(counts, mine.positives or max(counts))
    given = [min(mine.given, len(grades) - count) for grades, count in zip(qrels, counts, strict=True)]
    return float(np.mean(positives) + np.mean(given)) + mine.negatives + mine.random


def _filter_pairs(collection: Collection, mine: MineSection, depth: int) -> int:
    """What the filter's reranker scores: each training query's window, and its positives."""
    if (mine.drop_above is None and mine.holes == "ignore") or not mine.negatives:
        return 0
    qrels = collection.qrels["train"]
    first, last = mine.window
    window = max(0, min(last, depth, len(collection.documents)) - first + 1)
    queries = _queries(collection, mine)
    return queries * window + round(count_pairs(qrels) * queries / len(qrels))


class _Shapes:
    """The cost of each model that occurs, timed once."""

    def __init__(self, experiment: Experiment, collection: Collection) -> None:
        self.collection = collection
        self.device = choose_device(experiment.device)
        self.known: dict[tuple[str, bool, int], _Shape | str] = {}

    def work(self, stage: str, amount: int, unit: str, model: Model, longest: int = 512) -> Work:
        shape = self._of(model, longest, pairs=unit.startswith("pairs"))
        if isinstance(shape, str):
            return Work(stage, amount, unit, note=shape)
        gigabytes = shape.parameters * 4 / 1e9 + 0.5
        return Work(stage, amount, unit, amount / shape.per_second, gigabytes, warning=shape.illegible)

    def training(self, stage: str, pairs: int, dev_pairs: float, model: Model, section: Training) -> Work:
        shape = self._of(model, section.max_length, pairs=True)
        if isinstance(shape, str):
            return Work(stage, pairs, "pairs", note=shape)
        seconds = (pairs * PASSES + dev_pairs) / shape.per_second
        trained = 0.02 if section.lora else 1.0
        held = shape.parameters - shape.unused
        states = held * 4 * (1 + 3 * trained)  # weights; gradients and AdamW's two moments
        kept = 0.2 if section.gradient_checkpointing else 1.0
        activations = shape.activations * 4 * kept * pairs / max(1, math.ceil(pairs / (section.batch * 10)))
        return Work(stage, pairs, "pairs", seconds, (states + activations) / 1e9 + 0.5, warning=shape.illegible)

    def _of(self, model: Model, longest: int, *, pairs: bool) -> _Shape | str:
        key = (model.name, pairs, longest)
        if key not in self.known:
            try:
                self.known[key] = self._time(model.name, longest, pairs=pairs)
            except ModelError as error:
                if not error.message.startswith("cannot reach the hub"):
                    raise  # a run would stop here too, wherever it is
                self.known[key] = f"cannot be timed: {error.message.partition(' (')[0]}"
            except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
                self.known[key] = f"cannot be timed: {(str(error).splitlines() or [''])[0][:80]}"  # it may still run
        return self.known[key]

    def _time(self, reference: str, longest: int, *, pairs: bool) -> _Shape:
        """Build the model's shape with random weights, and time a batch of typical length."""
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        folder = locate(reference)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        shape = AutoConfig.from_pretrained(folder)
        model = AutoModel.from_config(shape).eval().to(self.device)
        tokens = self._typical_tokens(tokenizer, min(longest, engine.longest_input(shape, tokenizer)), pairs=pairs)
        count = max(1, TOKEN_BUDGET[self.device.split(":")[0]] // tokens)
        batch: Any = torch.zeros((count, tokens), dtype=torch.long, device=self.device)
        times = []
        with torch.inference_mode():
            for _ in range(4):
                started = time.perf_counter()
                float(model(input_ids=batch).last_hidden_state.sum())
                times.append(time.perf_counter() - started)
        layers, hidden = int(shape.num_hidden_layers), int(shape.hidden_size)
        table = model.get_input_embeddings().weight
        unused = round(table.numel() * (1 - self._share_used(tokenizer, len(table))))
        kept = 20.0 * layers * hidden * tokens
        sides = (list(texts.values()) for texts in (self.collection.documents, self.collection.queries))
        illegible = complaint(reference, tokenizer, *sides)
        return _Shape(count / min(times[1:]), model.num_parameters(), unused, kept, illegible)

    def _share_used(self, tokenizer: Any, vocabulary: int) -> float:
        """Which share of the vocabulary the documents use: of a sample, and as Heaps' law goes on from there."""
        texts = list(self.collection.documents.values())
        some = texts[:: max(1, len(texts) // _SAMPLE)]
        different = len({id for ids in tokenizer(some, verbose=False)["input_ids"] for id in ids})
        share: float = different * (len(texts) / len(some)) ** _HEAPS / vocabulary
        return min(1.0, share)

    def _typical_tokens(self, tokenizer: Any, longest: int, *, pairs: bool) -> int:
        """The mean length of a sample of the collection's texts, in tokens."""
        documents = _mean_length(tokenizer, list(self.collection.documents.values()))
        queries = _mean_length(tokenizer, list(self.collection.queries.values())) if pairs else 0
        return max(4, min(longest, round(documents + queries)))


def _mean_length(tokenizer: Any, texts: Sequence[str]) -> float:
    some = texts[:: max(1, len(texts) // _SAMPLE)]
    return float(np.mean([len(ids) for ids in tokenizer(list(some), verbose=False)["input_ids"]]))
