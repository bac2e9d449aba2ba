"""Base, then rivals by successive halving, then a second round: what dev says beyond its noise is chosen.

In: a Case (the collection, its candidates, how they are scored) and a training that says `recipe: auto`. Out: Found:
plain trainings, and a table of what was tried and why what was chosen was chosen.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): all that the purse can pay for get a small
training; the better half gets one of twice the pairs. The first recipe is never dropped, and it stays unless the best
rival is above it by more than the paired interval on dev: among many rivals the best looks better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.auto.purse import PASSES, Purse, purse, training_pairs_per_second
from rankwright.auto.recipes import Facts, Recipe, distillation, first, rivals
from rankwright.auto.trials import Result, Trials
from rankwright.core import Collection, Run
from rankwright.rooms.mine import PairScorer
from rankwright.sections import BUDGET, DevSection, Training
from rankwright.toolbox import stats
from rankwright.toolbox.devset import DevSet, Score
from rankwright.toolbox.model import has_head
from rankwright.toolbox.progress import say
from rankwright.toolbox.schedule import count_pairs
from rankwright.toolbox.weights import fingerprint, locate

CONFIDENCE = 0.9
"""Of the paired interval that a rival must be above: 95% one-sided."""
SMALLEST = 1500
"""Pairs below which a training says nothing about a longer one."""
DISTILL_SHARE, DISTILL_MOST = 0.15, 10_000
"""What a plain encoder's distillation may take of the budget, and how many pairs are enough."""
MOST_EPOCHS = 4.0
"""Times that the last training sees each group, at most."""
_DEV_SHARE = 0.25
_RESAMPLES = 2000


@dataclass(frozen=True)
class Case:
    """What a search looks at: train and dev only.

    `runs` are the retrievers' candidates for training queries, `dev` those of dev queries that are served; `scorer`
    gives a retriever's own scores; `scores_of` a model's, as serving would.
    """

    collection: Collection
    runs: Mapping[str, Run]
    dev: Run
    served: str
    scorer: Callable[[str], PairScorer]
    scores_of: Callable[[Path], Score]
    depth: int
    seed: int
    device: str = "auto"
    cache: Path | None = None
    per_split: bool = False


@dataclass(frozen=True)
class Found:
    """The trainings to make, in order, by name; what was tried; and why, in sentences."""

    trainings: dict[str, dict[str, Any]]
    table: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    spent: float = 0.0
    total: float = 0.0

    def values(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {**self.__dict__, "lines": self.lines()}

    def lines(self) -> list[str]:
        """The table and the reasons, for the terminal."""
        rows = [("recipe", "pairs", "dev", "against the first", "")]
        for row in self.table:
            interval = "" if row["low"] is None else f"{row['gain']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
            rows.append((row["name"], f"{row['pairs']:,}", f"{row['mean']:.4f}", interval, row["note"]))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        told = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        share = f"the search took {self.spent / self.total:.0%} of the budget" if self.total else ""
        return [*told, *self.reasons, *([share] if share else [])]


def search(case: Case, name: str, section: Training, folder: Path) -> Found:
    """Find the recipe for the training `name`; work that stands in the folder is not done again.

    Raises:
        ModelError: a base cannot be loaded.
        DataError: there is no dev split to choose on, or mining makes no group.
    """
    return _Search(case, name, section, folder).run()


@dataclass
class _Base:
    """A base that can be trained: its folder, how a YAML names it, and the distillation behind it."""

    reference: str
    model: Path
    result: Result
    distilled: Recipe | None = None
    pairs: int = 0


class _Search:
    """One search. `run` is its table of contents."""

    def __init__(self, case: Case, name: str, section: Training, folder: Path) -> None:
        self.case, self.name, self.section, self.folder = case, name, section, folder
        self.facts = Facts.of(case.collection, case.runs[case.served])
        self.table: list[dict[str, Any]] = []
        self.reasons: list[str] = []
        whole = DevSet.of(case.collection, case.dev, DevSection(queries=200, depth=min(30, case.depth), watch="served"))
        self.purse = self._purse(whole)
        self.dev = self._affordable(whole)
        self.trials = Trials(
            collection=case.collection,
            train_runs=case.runs,
            scorer=case.scorer,
            dev=self.dev,
            scores_of=case.scores_of,
            folder=folder / "trials",
            purse=self.purse,
            seed=case.seed if section.seed is None else section.seed,
            device=case.device,
            cache=case.cache,
            per_split=case.per_split,
        )

    def run(self) -> Found:
        base = self._base()
        start = first(self.case.served, self.facts, self.section, self._rate(base.reference))
        chosen, _ = self._halve(start, base)
        trainings = self._written(chosen, base)
        self.trials.forget(but=[base.model] if base.distilled else [])
        return Found(trainings, self.table, self.reasons, round(self.purse.spent), round(self.purse.total))

    # ---------------------------------------------------------------------------------------------------------- budget

    def _purse(self, dev: DevSet) -> Purse:
        """The purse, its pace measured once and kept, so that a search that goes on has the same."""
        kept = self.folder / "pairs.txt"
        if kept.exists():
            return Purse(float(kept.read_text()))
        found = purse(self.section.budget or BUDGET, lambda: self._pace(dev))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(f"{found.total:.0f}")
        return found

    def _pace(self, dev: DevSet) -> float:
        from rankwright.toolbox.model import Reranker

        model = Reranker.start(self._bases()[0], seed=0, device=self.case.device, max_length=self.section.max_length)
        return training_pairs_per_second(model.score, dev.pairs)

    def _affordable(self, whole: DevSet) -> DevSet:
        """As many dev queries as leave most of the search's share for training: at least 30."""
        each = len(whole.pairs) / max(len(whole.qrels), 1)
        rounds = 6  # a base, a few rivals
        most = int(self.purse.total * 0.5 * _DEV_SHARE * PASSES / max(each * rounds, 1))
        queries = max(30, min(len(whole.qrels), most))
        return DevSet.of(
            self.case.collection,
            self.case.dev,
            DevSection(queries=queries, depth=min(30, self.case.depth), watch="served"),
        )

    def _bases(self) -> list[str]:
        return list(self.section.bases or [self.section.base])

    # ------------------------------------------------------------------------------------------------------------ base

    def _base(self) -> _Base:
        """Each base as it would be served before any label is seen; a plain encoder is distilled first."""
        found = [self._tried(reference) for reference in self._bases()]
        before = self.dev.choose(lambda pairs: np.zeros(len(pairs), dtype=np.float32))[1]
        for one in found:
            self._row(one.result, before, f"base {one.reference}")
        best = found[0]
        for other in found[1:]:
            if _beyond(other.result.array() - best.result.array(), self.case.seed)[0] > 0:
                best = other
        if len(found) > 1:
            why = "the first named" if best is found[0] else "above those named before it beyond dev's noise"
            self.reasons.append(f"base: {best.reference}, {why}")
        return best

    def _tried(self, reference: str) -> _Base:
        folder = locate(reference)
        if has_head(folder):
            result = self.trials.ask(f"base {reference}", folder, fingerprint(folder)[:16])
            return _Base(reference, folder, result)
        recipe = distillation(self.case.served, self.facts, self.section, self._rate(reference))
        groups = self.trials.groups(recipe.mine, "unlabelled")
        share = self.purse.total * DISTILL_SHARE / len(self._bases())
        pairs = int(min(share, DISTILL_MOST, MOST_EPOCHS * count_pairs(groups, None)))
        result, model = self.trials.run(recipe, folder, pairs)
        return _Base(reference, model, result, recipe, pairs)

    def _rate(self, reference: str) -> float:
        """The peak learning rate by size: small models bear more."""
        if "learning_rate" in self.section.model_fields_set:
            return self.section.learning_rate
        from transformers import AutoConfig

        return 1e-4 if int(getattr(AutoConfig.from_pretrained(locate(reference)), "hidden_size", 768)) <= 512 else 2e-5

    # ---------------------------------------------------------------------------------------------------------- rivals

    def _halve(self, start: Recipe, base: _Base) -> tuple[Recipe, Path | None]:
        """The first recipe against as many rivals as the purse can pay for."""
        everyone = [start, *rivals(start, self.facts)]
        each = self._trial_pairs(start)
        dev = len(self.dev.pairs) / PASSES
        # Two rungs: n trainings of `each`, then half of them of twice that.
        count = int(self.purse.left // (2 * each + 1.5 * dev))
        if count < 2:
            self.reasons.append(f"recipe: {start.name}; the budget pays for no rival")
            return start, None
        entered = everyone[: min(count, len(everyone))]
        small = {recipe.name: self.trials.run(recipe, base.model, each)[0] for recipe in entered}
        best = sorted(entered[1:], key=lambda recipe: -small[recipe.name].mean)[: max(1, len(entered) // 2 - 1)]
        for recipe in entered:
            note = "" if recipe in (start, *best) else "dropped"
            self._row(small[recipe.name], small[start.name].array(), recipe.name, note)
        return self._final(start, best, base, 2 * each)

    def _final(self, start: Recipe, best: list[Recipe], base: _Base, pairs: int) -> tuple[Recipe, Path | None]:
        large = {recipe.name: self.trials.run(recipe, base.model, pairs) for recipe in (start, *best)}
        against = large[start.name][0].array()
        rival = max(best, key=lambda recipe: large[recipe.name][0].mean)
        low, high = _beyond(large[rival.name][0].array() - against, self.case.seed)
        chosen = rival if low > 0 else start
        for recipe in (start, *best):
            note = "chosen" if recipe is chosen else ""
            self._row(large[recipe.name][0], against, recipe.name, note)
        gain = float(np.mean(large[rival.name][0].array() - against))
        what = f"{rival.name} against {start.name}: {gain:+.4f} [{low:+.4f}, {high:+.4f}] on {len(against)} dev queries"
        why = chosen.why if chosen is rival else "the first stays: no rival is above it beyond dev's noise"
        self.reasons.append(f"recipe: {chosen.name} ({why}; {what})")
        return chosen, large[chosen.name][1]

    def _trial_pairs(self, start: Recipe) -> int:
        """Pairs of a first-rung trial: an eighth of what is left, within an epoch."""
        epoch = count_pairs(self.trials.groups(start.mine), None)
        return int(max(SMALLEST, min(self.purse.left / 8, epoch)))

    def _row(self, result: Result, against: Any, name: str, note: str = "") -> None:
        gains = result.array() - np.asarray(against)
        same = not np.any(gains)
        low, high = (None, None) if same else _beyond(gains, self.case.seed)
        self.table.append(
            {
                **{"name": name, "pairs": result.pairs, "mean": result.mean, "weight": result.weight},
                **{"gain": float(gains.mean()), "low": low, "high": high, "note": note},
            }
        )

    # --------------------------------------------------------------------------------------------------------- written

    def _written(self, chosen: Recipe, base: _Base) -> dict[str, dict[str, Any]]:
        """The trainings, every key written out: the base's distillation, and the last training."""
        groups = self.trials.groups(chosen.mine)
        watched = len(self.dev.pairs) / PASSES
        evaluations = 3
        pairs = self.purse.final - (evaluations + 2) * watched
        pairs = int(max(SMALLEST, min(pairs, MOST_EPOCHS * count_pairs(groups, chosen.training.sample))))
        epochs = max(1.0, pairs / count_pairs(groups, chosen.training.sample))
        dev = DevSection(
            queries=len(self.dev.qrels),
            depth=min(30, self.case.depth),
            watch="served",
            evaluations=max(1, round(evaluations / epochs)),
            patience=None,
        )
        last = {"max_pairs": pairs, "dev": dev.model_dump(mode="json"), "keep": "best", "average": 3}
        found: dict[str, dict[str, Any]] = {}
        reference = base.reference
        if base.distilled:
            reference = f"{self.name}-base"
            found[reference] = _plain(base.distilled, base.reference, max_pairs=base.pairs)
        found[self.name] = _plain(chosen, reference, **last)
        say(f"{self.name}: {chosen.name}, {pairs:,} pairs")
        return found


def _plain(recipe: Recipe, base: str, **more: Any) -> dict[str, Any]:
    values = recipe.training.model_dump(mode="json", exclude={"recipe", "budget", "bases", "mine", "base"})
    return {"base": base, "mine": recipe.mine.model_dump(mode="json"), **values, **more}


def _beyond(gains: Any, seed: int) -> tuple[float, float]:
    """The paired interval of a mean gain over dev queries."""
    low, high = stats.paired_bootstrap(
        np.asarray(gains), resamples=_RESAMPLES, confidence=CONFIDENCE, rng=np.random.default_rng(seed)
    )
    return float(low), float(high)
