"""Base, then rivals by successive halving, then a second round: what dev says beyond its noise is chosen.

In: a Case (the collection, its candidates, how they are scored) and a training that says `recipe: auto`. Out: Found:
plain trainings, and a table of what was tried and why what was chosen was chosen.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): all that the purse can pay for get a small
training; the better half gets one of twice the pairs. The first recipe is never dropped, and it stays unless the best
rival is above it by more than the paired interval on dev, which is the wider the more rivals have entered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.auto.bases import Base, Bases, learning_rate, references
from rankwright.auto.case import Case
from rankwright.auto.pace import training_pairs_per_second
from rankwright.auto.purse import MOST_EPOCHS, SEARCH_SHARE, Purse, purse
from rankwright.auto.recipes import FILTER, LEAST_HOLD, TOP, Facts, Recipe, first, most_queries, rivals, spread
from rankwright.auto.record import Record, beyond, shown, surely
from rankwright.auto.trials import Result, Trials
from rankwright.core import relevant
from rankwright.errors import ConfigError, DataError, ModelError
from rankwright.rooms.mine import PairScorer, drawn
from rankwright.sections import BUDGET, Training
from rankwright.toolbox.devset import DevSet
from rankwright.toolbox.progress import say
from rankwright.toolbox.schedule import Schedule, count_pairs, epoch_steps
from rankwright.workspace import write_text

SMALLEST, WORTHWHILE = 2000, 3000
"""Pairs below which a trial says nothing about a longer training; and those from which on more rivals say more.

Trials of 1,000 and 2,000 took half of the budgets of eight searches, and seven of them chose the first recipe. The
last training needs those pairs more: on dev of `seealso:` twice as many were worth +.017 of its own nDCG@10.
"""
ASK_SHARE = 0.04
"""Of the search's share that one scoring of the dev queries may cost."""
MOST_QUERIES, FEWEST_QUERIES = 300, 30
"""Dev queries that are asked: so many at most, and at least where they can be paid for."""
WATCHED_QUERIES, WATCH_SHARE = 150, 0.2
"""Dev queries that the last training is watched on, at most, and the share of its pairs that they may cost."""
FEW = 4
"""Recipes that are enough while trials are small, the first one counted."""
AVERAGED = 3
"""Checkpoints of the last training whose mean is tried; it is watched so often at least."""
_BESIDE = 2
"""Times that a training asks dev beside its evaluations: before the first step, and for the mean."""


@dataclass(frozen=True)
class Found:
    """The trainings to make, in order, by name; what was tried; and why, in sentences.

    `kept` are the keys of the trials whose models these trainings would only make again.
    """

    trainings: dict[str, dict[str, Any]]
    table: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    spent: float = 0.0
    total: float = 0.0
    kept: list[str] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {**self.__dict__, "lines": self.lines()}

    def lines(self) -> list[str]:
        """The table and the reasons, for the terminal."""
        share = f"the search took {self.spent / self.total:.0%} of the budget" if self.total else ""
        return [*shown(self.table), *self.reasons, *([share] if share else [])]


def search(case: Case, name: str, section: Training, folder: Path) -> Found:
    """Find the recipe for the training `name`; work that stands in the folder is not done again.

    The trials' models stay in the folder: `forget` them when what was found is safe.

    Raises:
        ModelError: a base cannot be loaded.
        DataError: there is no dev split to choose on, or mining makes no group.
        ConfigError: the budget does not pay for one dev query.
    """
    return _Search(case, name, section, folder).run()


class _Search:
    """One search. `run` is its table of contents."""

    def __init__(self, case: Case, name: str, section: Training, folder: Path) -> None:
        self.case, self.name, self.section, self.folder = case, name, section, folder
        if not any(case.runs[case.served].rankings.values()):
            raise DataError(
                f"retrieve.{case.served} has no candidates for any training query: there is nothing to search with",
                hint="candidates for train too, as in runs: {train: train.run}",
            )
        self.facts = Facts.of(case.collection, case.runs[case.served])
        self.record = Record(case.seed)
        whole = case.dev_set(MOST_QUERIES)
        self.purse = self._purse()
        there = len(case.collection.qrels["train"])
        self.facts = replace(self.facts, queries=most_queries(self.purse.total, section, there))
        self.dev = self._affordable(whole)
        seed = case.seed if section.seed is None else section.seed
        self.trials = Trials(case, self.dev, self.purse, folder / "trials", seed)

    def run(self) -> Found:
        if (asked := len(self.dev.qrels)) < FEWEST_QUERIES:
            there = len(self.case.collection.qrels["dev"])
            few = f"the budget pays for asking {asked} of {there:,}" if asked < there else f"there are only {there}"
            self.record.reasons.append(f"{few} dev queries: much of what they choose is chance")
        base = Bases(self.case, self.section, self.facts, self.trials, self.record).choose()
        rate = learning_rate(self.section, base.reference)
        start = self._first(rate)
        self.record.reasons.append(self._held(start))
        chosen, result = self._halve(start, base)
        again = self._second_round(chosen, result, base) if result else None
        trainings = self._written(chosen, base, again)
        kept = [base.result.key] if base.distilled else []
        spent, total = round(self.purse.spent), round(self.purse.total)
        return Found(trainings, self.record.rows, self.record.reasons, spent, total, kept)

    def _first(self, rate: float) -> Recipe:
        """The first recipe, for a last training of as many pairs and passes as budget and data allow.

        What the search will not have spent of its share is not known yet, and comes on top.
        """
        found = first(self.case.served, self.facts, self.section, rate)
        epoch = count_pairs(self.trials.groups(found.mine), found.training.sample)
        pairs = min(self.purse.total * (1 - SEARCH_SHARE), MOST_EPOCHS * epoch)
        return first(self.case.served, self.facts, self.section, rate, pairs, pairs / epoch)

    def _held(self, start: Recipe) -> str:
        """Why the first recipe holds on to the retriever's order as strongly as it does."""
        hold, doubt = start.training.loss.get("kl", 0.0), self.facts.doubt
        if "loss" in self.section.model_fields_set:
            return f"kl {hold:g}: as it is written"
        if np.isnan(doubt):
            return f"kl {hold:g}: too few labelled candidates to tell whether the labels have holes"
        least = f"{hold:g} is the least, and " if round(doubt, 1) < LEAST_HOLD else ""
        return (
            f"kl {hold:g}: {least}an unlabelled candidate of the first {TOP} is relevant with p {doubt:.2f} (estimated)"
        )

    # ---------------------------------------------------------------------------------------------------------- budget

    def _purse(self) -> Purse:
        """The purse, its pace measured once and kept, so that a search that goes on has the same."""
        kept = self.folder / "pairs.txt"
        if kept.exists():
            return Purse(float(kept.read_text()))
        found = purse(self.section.budget or BUDGET, self._pace)
        write_text(kept, f"{found.total:.0f}")
        return Purse(float(kept.read_text()))

    def _pace(self) -> float:
        """Training pairs a second of the slowest base: whichever is chosen, the time is enough."""
        folder, bases = self.folder / "pace", references(self.section)
        found = min(training_pairs_per_second(self.case, self.section, base, folder) for base in bases)
        say(f"{self.name}: a few steps of training took {found:,.0f} pairs a second")
        return found

    def _affordable(self, whole: DevSet) -> DevSet:
        """As many dev queries as leave most of the search's share for training: 30 where those can be paid for.

        Raises:
            ConfigError: the budget does not pay for one dev query.
        """
        share = self.purse.total * SEARCH_SHARE
        each = self.purse.cost(scored=len(whole.pairs) * self.case.orders) / max(len(whole.qrels), 1)
        # Each base is asked once, and the last training watches a few times: half of the share at most.
        asked = len(references(self.section)) + AVERAGED + _BESIDE
        fewest = min(FEWEST_QUERIES, share * 0.5 / (each * asked))
        queries = int(max(fewest, min(len(whole.qrels), share * ASK_SHARE / each)))
        if queries < 1:
            message = f"train.{self.name}.budget: {self.purse.total:,.0f} pairs do not pay for one dev query"
            raise ConfigError(message, hint="a larger budget; a smaller base or max_length makes a pair cheaper")
        return self.case.dev_set(queries)

    # ---------------------------------------------------------------------------------------------------------- rivals

    def _halve(self, start: Recipe, base: Base) -> tuple[Recipe, Result | None]:
        """The first recipe against as many rivals as the purse can pay for; None where it pays for none."""
        everyone = [start, *rivals(start, self.facts, self.section, self._others())]
        count, each = self._enter(start, len(everyone))
        if not count:
            left, least = max(0.0, self.purse.left), self._rungs(2, SMALLEST)
            what = f"a rival would take {least:,.0f} pairs, and the search has {left:,.0f} left"
            self.record.reasons.append(f"recipe: {start.name}; the budget pays for no rival: {what}")
            return start, None
        entered = everyone[:count]
        small = self._raced(entered, base, each)
        rested = sorted(
            (one for one in entered[1:] if one.name in small), key=lambda one: small[one.name].rank, reverse=True
        )
        best = rested[: _promoted(count)]
        against = small[start.name].array()
        for recipe in (start, *rested):
            note = "" if recipe in (start, *best) else "dropped"
            self.record.add(small[recipe.name], against, recipe.name, note, rivals=count - 1)
        large = self._raced([start, *best], base, 2 * each) if best else small
        best = [recipe for recipe in best if recipe.name in large]
        if not best:
            self.record.reasons.append(f"recipe: {start.name}; no rival could be trained")
            return start, large[start.name]
        return self._final(start, best, large, count - 1)

    def _others(self) -> dict[str, float]:
        """The retrievers beside the served one, and how far their scores spread."""
        return {name: spread(run) for name, run in self.case.runs.items() if name != self.case.served}

    def _rungs(self, count: int, each: int) -> float:
        """What two rungs cost: so many trainings of `each` pairs, then some of them of twice that; dev asked each."""
        longer = 1 + _promoted(count)
        return self.purse.cost((count + 2 * longer) * each, (count + longer) * self.trials.asked)

    def _raced(self, recipes: list[Recipe], base: Base, pairs: int) -> dict[str, Result]:
        """A trial of each recipe, by name. A rival that cannot be trained is told of and left out.

        Raises:
            RankwrightError: the first of them cannot be trained.
        """
        found = {recipes[0].name: self.trials.run(recipes[0], base.model, pairs)}
        for recipe in recipes[1:]:
            tried = self._tried_out(recipe, base, pairs)
            if isinstance(tried, str):
                self.record.failed(recipe.name, pairs, tried)
            else:
                found[recipe.name] = tried
        return found

    def _tried_out(self, recipe: Recipe, base: Base, pairs: int, teacher: PairScorer | None = None) -> Result | str:
        """A trial, or why it cannot be made."""
        try:
            return self.trials.run(recipe, base.model, pairs, teacher)
        except (ModelError, DataError) as error:
            return error.message

    def _final(
        self, start: Recipe, best: list[Recipe], results: dict[str, Result], entered: int
    ) -> tuple[Recipe, Result]:
        """The best rival, where it is above the first recipe beyond the noise of so many that have entered.

        Above in the order that is served; or, where no rival is, in its own order, if it serves no worse: short trials
        often leave the served order as it was.
        """
        first_result, seed = results[start.name], self.case.seed
        against = first_result.array()
        rival = max(best, key=lambda recipe: results[recipe.name].rank)
        gains = results[rival.name].array() - against
        low, high = beyond(gains, seed, entered)
        above = surely(gains, seed, entered)
        chosen, why = (rival, rival.why) if above else (start, "the first stays: no rival is above it")
        if chosen is start and (other := self._better_alone(first_result, best, results, entered)):
            chosen, why = other, f"{other.why}; it serves no worse, and its own order is better"
        for recipe in (start, *best):
            note = "chosen" if recipe is chosen else ""
            self.record.add(results[recipe.name], against, recipe.name, note, rivals=entered)
        gain = f"{float(np.mean(gains)):+.4f} [{low:+.4f}, {high:+.4f}]"
        what = f"{rival.name} against {start.name}: {gain} on {len(against)} dev queries"
        self.record.reasons.append(f"recipe: {chosen.name} ({why} beyond dev's noise; {what})")
        return chosen, results[chosen.name]

    def _better_alone(
        self, against: Result, best: list[Recipe], results: dict[str, Result], entered: int
    ) -> Recipe | None:
        """The rival whose own order is above the first recipe's beyond the noise, of those that serve no worse."""
        fair = [recipe for recipe in best if results[recipe.name].rank[0] >= against.rank[0]]
        if not fair:
            return None
        rival = max(fair, key=lambda recipe: results[recipe.name].rank[1])
        gains = np.array(results[rival.name].alone) - np.array(against.alone)
        return rival if surely(gains, self.case.seed, entered) else None

    def _enter(self, start: Recipe, everyone: int) -> tuple[int, int]:
        """How many recipes enter, the first one counted, and with how many pairs each; (0, 0) where two are too dear.

        First a few, with trials that grow with the purse; from WORTHWHILE pairs on, more of them.
        """
        groups = self.trials.groups(start.mine)
        epoch = count_pairs(groups, start.training.sample)
        step = epoch / epoch_steps(len(groups), start.training)
        most = MOST_EPOCHS / 2 * epoch

        def each(count: int) -> int:
            longer = 1 + _promoted(count)
            asked = self.purse.cost(scored=self.trials.asked * (count + longer))
            return int(int(min((self.purse.left - asked) / (count + 2 * longer), most) / step) * step)

        for count in range(everyone, 1, -1):
            pairs = each(count)
            if pairs and pairs >= min(WORTHWHILE if count > FEW else SMALLEST, most / 2) - step:
                return count, pairs
        return 0, 0

    # ---------------------------------------------------------------------------------------------------- second round

    def _second_round(self, chosen: Recipe, result: Result, base: Base) -> Recipe | None:
        """The recipe with candidates that the trained model took for relevant set aside, where dev prefers that.

        None where it does not, where nothing is mined, and where scoring all candidates would cost more than is left.
        """
        reasons = self.record.reasons
        if not chosen.mine.negatives:
            reasons.append(f"no second round: {chosen.name} mines no negatives, so none can be set aside")
            return None
        why = "false negatives set aside by the first round's model"
        again = chosen.but(f"{chosen.name}, second round", why, FILTER)
        scored, left = self._filtered(again), self.purse.left
        cost = self.purse.cost(result.pairs, scored + self.trials.asked)
        if cost > left:
            what = f"it would take {cost:,.0f} pairs, the scoring of all candidates included"
            reasons.append(f"no second round: {what}, and the search has {max(0.0, left):,.0f} left")
            return None
        self.purse.pay(scored=scored)
        teacher = self.case.filter_of(self.trials.model(chosen, base.model, result.pairs))
        tried = self._tried_out(again, base, result.pairs, teacher)
        if isinstance(tried, str):
            reasons.append(f"no second round: {tried}")
            return None
        gains = tried.array() - result.array()
        low, kept = beyond(gains, self.case.seed)[0], surely(gains, self.case.seed)
        self.record.add(tried, result.array(), again.name, "chosen" if kept else "")
        gain = f"{float(np.mean(gains)):+.4f}, lower end {low:+.4f}"
        reasons.append(f"second round: {'kept' if kept else 'not kept'} ({gain} against the first)")
        return again if kept else None

    def _filtered(self, recipe: Recipe) -> int:
        """Pairs that a model scores when it filters: each mined query's window and its positives."""
        assert recipe.mine.candidates
        start, last = recipe.mine.window
        run, qrels = self.case.runs[recipe.mine.candidates], self.case.collection.qrels["train"]
        queries = drawn(qrels, recipe.mine, self.case.seed)
        windows = sum(len(run.documents(query)[start - 1 : last]) for query in queries)
        return self.case.orders * (windows + sum(len(relevant(qrels[query])) for query in queries))

    # --------------------------------------------------------------------------------------------------------- written

    def _written(self, chosen: Recipe, base: Base, again: Recipe | None) -> dict[str, dict[str, Any]]:
        """The trainings, every key written out: the base's distillation, a first round, and the last training."""
        budget = self.purse.final
        if again:
            budget = (budget - self.purse.cost(scored=self._filtered(again))) / 2
        last = self._last(chosen, budget)
        found: dict[str, dict[str, Any]] = {}
        reference = base.reference
        if base.distilled:
            reference = f"{self.name}-base"
            found[reference] = _plain(base.distilled, base.reference, max_pairs=base.result.pairs)
        if again:
            found[f"{self.name}-first"] = _plain(chosen, reference, **last)
            chosen = again.but(again.name, again.why, {"filter_by": f"{self.name}-first"})
        found[self.name] = _plain(chosen, reference, **last)
        say(f"{self.name}: {chosen.name}, {last['max_pairs']:,} pairs")
        return found

    def _last(self, recipe: Recipe, budget: float) -> dict[str, Any]:
        """How long a last training is, and how it is watched: what the budget pays for, all askings of dev included."""
        groups = self.trials.groups(recipe.mine)
        epoch = count_pairs(groups, recipe.training.sample)
        asks = AVERAGED + _BESIDE
        asked = len(self.dev.qrels)
        each = self.purse.cost(scored=len(self.dev.pairs)) / asked
        # One checkpoint among few is chosen, by more queries than a trial is asked on, where they can be paid for.
        queries = max(
            asked,
            int(min(WATCHED_QUERIES, len(self.case.collection.qrels["dev"]), WATCH_SHARE * budget / (asks * each))),
        )
        while True:
            affordable = budget - asks * each * queries
            pairs = int(max(1, min(affordable, MOST_EPOCHS * epoch)))
            dev = self.case.watching(queries, math.ceil(AVERAGED / max(1.0, pairs / epoch)))
            section = Training(**{**recipe.training.model_dump(), "max_pairs": pairs, "dev": dev})
            planned = Schedule.of(len(groups), section, pairs=epoch, watching=True)
            if len(planned.evaluations) + _BESIDE <= asks:
                break
            asks = len(planned.evaluations) + _BESIDE
        return {"max_pairs": pairs, "dev": dev.model_dump(mode="json"), "keep": "best", "average": AVERAGED}


def _plain(recipe: Recipe, base: str, **more: Any) -> dict[str, Any]:
    values = recipe.training.model_dump(mode="json", exclude={"recipe", "budget", "bases", "mine", "base"})
    return {"base": base, "mine": recipe.mine.model_dump(mode="json"), **values, **more}


def _promoted(count: int) -> int:
    """How many rivals of so many recipes, the first one counted, get the larger training."""
    return max(1, count // 2 - 1)
