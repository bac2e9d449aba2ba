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
from numpy.typing import NDArray

from rankwright.auto.pool import Pool
from rankwright.auto.purse import PASSES, SEARCH_SHARE, Purse, purse, training_pairs_per_second
from rankwright.auto.recipes import Facts, Recipe, distillation, first, rivals
from rankwright.auto.trials import Result, Trials
from rankwright.core import Collection, Run
from rankwright.errors import ConfigError, DataError, ModelError
from rankwright.rooms.mine import PairScorer
from rankwright.sections import BUDGET, DevSection, Training
from rankwright.toolbox import stats
from rankwright.toolbox.devset import DevSet, Score
from rankwright.toolbox.model import has_head
from rankwright.toolbox.progress import say
from rankwright.toolbox.schedule import count_pairs, epoch_steps
from rankwright.toolbox.weights import fingerprint, locate
from rankwright.workspace import write_text

CONFIDENCE = 0.9
"""Of the paired interval that a rival must be above: 95% one-sided."""
SMALLEST, WORTHWHILE = 1000, 3000
"""Pairs below which a trial says nothing about a longer training; and those from which on more rivals say more."""
DISTILL_SHARE, DISTILL_MOST = 0.15, 10_000
"""What a plain encoder's distillation may take of the budget, and how many pairs are enough."""
MOST_EPOCHS = 4.0
"""Times that the last training sees each group, at most."""
ASK_SHARE = 0.04
"""Of the search's share that one scoring of the dev queries may cost."""
FEW = 4
"""Recipes that are enough while trials are small, the first one counted."""
_AGAIN = {"drop_above": 0.95, "filter_against": "max"}
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
        whole = DevSet.of(case.collection, case.dev, DevSection(queries=300, depth=_watched(case), watch="served"))
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
            mining_seed=case.seed,
            device=case.device,
            cache=case.cache,
            per_split=case.per_split,
        )

    def run(self) -> Found:
        base = self._base()
        start = first(self.case.served, self.facts, self.section, self._rate(base.reference))
        chosen, model = self._halve(start, base)
        again = self._second_round(chosen, model, base) if model else None
        trainings = self._written(chosen, base, again)
        self.trials.forget(but=[base.model] if base.distilled else [])
        return Found(trainings, self.table, self.reasons, round(self.purse.spent), round(self.purse.total))

    # ---------------------------------------------------------------------------------------------------------- budget

    def _purse(self, dev: DevSet) -> Purse:
        """The purse, its pace measured once and kept, so that a search that goes on has the same."""
        kept = self.folder / "pairs.txt"
        if kept.exists():
            return Purse(float(kept.read_text()))
        found = purse(self.section.budget or BUDGET, lambda: self._pace(dev))
        write_text(kept, f"{found.total:.0f}")
        return Purse(float(kept.read_text()))

    def _pace(self, dev: DevSet) -> float:
        from rankwright.toolbox.model import Reranker

        model = Reranker.start(self._bases()[0], seed=0, device=self.case.device, max_length=self.section.max_length)
        return training_pairs_per_second(model.score, dev.pairs)

    def _affordable(self, whole: DevSet) -> DevSet:
        """As many dev queries as leave most of the search's share for training: 30 where those can be paid for.

        Raises:
            ConfigError: the budget does not pay for one dev query.
        """
        each = len(whole.pairs) / max(len(whole.qrels), 1) / PASSES
        most = self.purse.total * SEARCH_SHARE * ASK_SHARE / each
        # Each base is asked once, and the last training watches a few times: half of the share at most.
        fewest = min(30, self.purse.total * SEARCH_SHARE * 0.5 / (each * (len(self._bases()) + 4)))
        queries = int(max(fewest, min(len(whole.qrels), most)))
        if queries < 1:
            message = f"train.{self.name}.budget: {self.purse.total:,.0f} pairs do not pay for one dev query"
            raise ConfigError(message, hint="budget: 10m")
        return DevSet.of(
            self.case.collection,
            self.case.dev,
            DevSection(queries=queries, depth=_watched(self.case), watch="served"),
        )

    def _bases(self) -> list[str]:
        return list(self.section.bases or [self.section.base])

    # ------------------------------------------------------------------------------------------------------------ base

    def _base(self) -> _Base:
        """Each base as it would be served before any label is seen; a plain encoder is distilled first."""
        found = [self._tried(reference) for reference in self._bases()]
        before = self.dev.choose(lambda pairs: np.zeros(len(pairs), dtype=np.float32))[1]
        pools = self._pools(found) if len(found) > 1 else [None]
        for one, pool in zip(found, pools, strict=True):
            note = "" if pool is None else f"MAP {float(pool.mean()):.4f} on closed pools"
            self._row(one.result, before, f"base {one.reference}", note)
        if len(found) == 1:
            return found[0]
        best, why = 0, "the first named"
        for other in range(1, len(found)):
            served = _beyond(found[other].result.array() - found[best].result.array(), self.case.seed)
            mine, theirs = pools[other], pools[best]
            knows = mine is not None and theirs is not None and _beyond(mine - theirs, self.case.seed)[0] > 0
            if served[0] > 0:
                best, why = other, "above those named before it, served, beyond dev's noise"
            elif knows and served[1] >= 0:
                best, why = other, "it knows the task better (closed pools), and serves no worse"
        self.reasons.append(f"base: {found[best].reference}, {why}")
        return found[best]

    def _pools(self, bases: list[_Base]) -> list[NDArray[np.float64] | None]:
        """Each base's average precision on closed pools of the dev queries, where the purse still pays for it."""
        pool = Pool.of(self.case.collection, list(self.dev.qrels), self.case.seed)
        if len(bases) * len(pool.pairs) / PASSES > self.purse.left / 2:
            return [None for _ in bases]
        self.purse.pay(scored=len(bases) * len(pool.pairs))
        return [pool.values(self.case.scores_of(one.model)) for one in bases]

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
        everyone = [start, *rivals(start, self.facts, self.section, self._others())]
        count, each = self._enter(start, len(everyone))
        if not count:
            left, least = max(0.0, self.purse.left), self._rungs(2, SMALLEST)
            what = f"a rival would take {least:,.0f} pairs, and the search has {left:,.0f} left"
            self.reasons.append(f"recipe: {start.name}; the budget pays for no rival: {what}")
            return start, None
        entered = everyone[:count]
        small = {name: result for name, (result, _) in self._raced(entered, base, each).items()}
        rested = sorted((one for one in entered[1:] if one.name in small), key=lambda one: -small[one.name].mean)
        best = rested[: _goes_on(count)]
        for recipe in (start, *rested):
            note = "" if recipe in (start, *best) else "dropped"
            self._row(small[recipe.name], small[start.name].array(), recipe.name, note)
        return self._final(start, best, base, 2 * each)

    def _others(self) -> dict[str, float]:
        """The retrievers beside the served one, and how far their scores spread."""
        return {
            name: Facts.of(self.case.collection, run).spread
            for name, run in self.case.runs.items()
            if name != self.case.served
        }

    def _rungs(self, count: int, each: int) -> float:
        """What two rungs cost: so many trainings of `each` pairs, then some of them of twice that; dev asked each."""
        asked = len(self.dev.pairs) / PASSES
        return count * (each + asked) + (1 + _goes_on(count)) * (2 * each + asked)

    def _raced(self, recipes: list[Recipe], base: _Base, pairs: int) -> dict[str, tuple[Result, Path]]:
        """A trial of each recipe, by name. A rival that cannot be trained is told of and left out.

        Raises:
            RankwrightError: the first of them cannot be trained.
        """
        found = {recipes[0].name: self.trials.run(recipes[0], base.model, pairs)}
        against = found[recipes[0].name][0].array()
        for recipe in recipes[1:]:
            tried = self._tried_out(recipe, base, pairs)
            if isinstance(tried, str):
                nothing = Result("", recipe.name, pairs, 0.0, (0.0,) * len(against))
                self._row(nothing, against, recipe.name, f"dropped: {tried}")
            else:
                found[recipe.name] = tried
        return found

    def _tried_out(
        self, recipe: Recipe, base: _Base, pairs: int, teacher: PairScorer | None = None
    ) -> tuple[Result, Path] | str:
        """A trial, or why it cannot be made."""
        try:
            return self.trials.run(recipe, base.model, pairs, teacher)
        except (ModelError, DataError) as error:
            return error.message

    def _final(self, start: Recipe, best: list[Recipe], base: _Base, pairs: int) -> tuple[Recipe, Path | None]:
        large = self._raced([start, *best], base, pairs) if best else {}
        best = [recipe for recipe in best if recipe.name in large]
        if not best:
            self.reasons.append(f"recipe: {start.name}; no rival could be trained")
            return start, None
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

    def _enter(self, start: Recipe, everyone: int) -> tuple[int, int]:
        """How many recipes enter, the first one counted, and with how many pairs each; (0, 0) where two are too dear.

        First a few, with trials that grow with the purse; from WORTHWHILE pairs on, more of them.
        """
        groups = self.trials.groups(start.mine)
        epoch = count_pairs(groups, start.training.sample)
        step = epoch / epoch_steps(len(groups), start.training)
        asked, most = len(self.dev.pairs) / PASSES, MOST_EPOCHS / 2 * epoch

        def each(count: int) -> int:
            goes_on = 1 + _goes_on(count)
            pairs = (self.purse.left - asked * (count + goes_on)) / (count + 2 * goes_on)
            return int(int(min(pairs, most) / step) * step)

        for count in range(everyone, 1, -1):
            if each(count) >= min(WORTHWHILE if count > FEW else SMALLEST, most / 2) - step:
                return count, each(count)
        return 0, 0

    def _row(self, result: Result, against: Any, name: str, note: str = "") -> None:
        gains = result.array() - np.asarray(against)
        same = not np.any(gains)
        low, high = (None, None) if same else _beyond(gains, self.case.seed)
        self.table.append(
            {
                **{"name": name, "pairs": result.pairs, "mean": result.mean, "weight": result.weight},
                **{"gain": float(gains.mean()), "low": low, "high": high, "note": note},
                "values": list(result.values),
            }
        )

    # ---------------------------------------------------------------------------------------------------- second round

    def _second_round(self, chosen: Recipe, model: Path, base: _Base) -> Recipe | None:
        """The recipe with candidates that the trained model took for relevant set aside, where dev prefers that.

        None where it does not, and where scoring all candidates would cost more than is left.
        """
        why = "false negatives set aside by the first round's model"
        again = chosen.but(f"{chosen.name}, second round", why, _AGAIN)
        first_round = next(row for row in reversed(self.table) if row["note"] == "chosen")
        scored = self._window_pairs(again)
        cost = first_round["pairs"] + (scored + len(self.dev.pairs)) / PASSES
        if not again.mine.negatives or cost > self.purse.left:
            self.reasons.append("no second round: its scoring of all candidates is more than the budget has left")
            return None
        score = self.case.scores_of(model)
        texts = self.case.collection
        self.purse.pay(scored=scored)

        def teacher(pairs: Any) -> Any:
            return score([(texts.queries[query], texts.documents[document]) for query, document in pairs])

        tried = self._tried_out(again, base, first_round["pairs"], teacher)
        if isinstance(tried, str):
            self.reasons.append(f"no second round: {tried}")
            return None
        result = tried[0]
        against = np.array(first_round["values"])
        low, _ = _beyond(result.array() - against, self.case.seed)
        self._row(result, against, again.name, "chosen" if low > 0 else "")
        gain = f"{float(np.mean(result.array() - against)):+.4f}, lower end {low:+.4f}"
        self.reasons.append(f"second round: {'kept' if low > 0 else 'not kept'} ({gain} against the first)")
        return again if low > 0 else None

    def _window_pairs(self, recipe: Recipe) -> int:
        """What a model scores when it filters: each training query's window and its positives."""
        start, last = recipe.mine.window
        run, qrels = self.case.runs[self.case.served], self.case.collection.qrels["train"]
        windows = sum(len(run.documents(query)[start - 1 : last]) for query in qrels)
        return windows + sum(grade > 0 for grades in qrels.values() for grade in grades.values())

    # --------------------------------------------------------------------------------------------------------- written

    def _written(self, chosen: Recipe, base: _Base, again: Recipe | None) -> dict[str, dict[str, Any]]:
        """The trainings, every key written out: the base's distillation, a first round, and the last training."""
        groups = self.trials.groups(chosen.mine)
        watched = len(self.dev.pairs) / PASSES
        evaluations = 3
        pairs = self.purse.final - (evaluations + 2) * watched
        if again:
            pairs = (pairs - self._window_pairs(again) / PASSES - (evaluations + 2) * watched) / 2
        pairs = int(max(1, min(pairs, MOST_EPOCHS * count_pairs(groups, chosen.training.sample))))
        epochs = max(1.0, pairs / count_pairs(groups, chosen.training.sample))
        dev = DevSection(
            queries=len(self.dev.qrels),
            depth=_watched(self.case),
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
        if again:
            found[f"{self.name}-first"] = _plain(chosen, reference, **last)
            chosen = again.but(again.name, again.why, {"filter_by": f"{self.name}-first"})
        found[self.name] = _plain(chosen, reference, **last)
        say(f"{self.name}: {chosen.name}, {pairs:,} pairs")
        return found


def _plain(recipe: Recipe, base: str, **more: Any) -> dict[str, Any]:
    values = recipe.training.model_dump(mode="json", exclude={"recipe", "budget", "bases", "mine", "base"})
    return {"base": base, "mine": recipe.mine.model_dump(mode="json"), **values, **more}


def _watched(case: Case) -> int:
    """Candidates a dev query: as deep as is served, but no deeper than tells recipes apart."""
    return min(20, case.depth)


def _goes_on(count: int) -> int:
    """How many rivals of so many recipes, the first one counted, get the larger training."""
    return max(1, count // 2 - 1)


def _beyond(gains: Any, seed: int) -> tuple[float, float]:
    """The paired interval of a mean gain over dev queries."""
    low, high = stats.paired_bootstrap(
        np.asarray(gains), resamples=_RESAMPLES, confidence=CONFIDENCE, rng=np.random.default_rng(seed)
    )
    return float(low), float(high)
