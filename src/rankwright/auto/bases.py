"""Which model to start from: each as it would be served before any label is seen; a plain encoder is distilled first.

In: a Case, the trials, and the bases that a training names. Out: one Base, and rows that say why. Where two serve
equally well, closed pools tell which of them knows the task. It does not know recipes that learn from labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwright.auto.case import Case
from rankwright.auto.pool import Pool
from rankwright.auto.purse import MOST_EPOCHS
from rankwright.auto.recipes import Facts, Recipe, distillation
from rankwright.auto.record import Record, surely
from rankwright.auto.trials import Result, Trials
from rankwright.errors import ModelError, first_line
from rankwright.sections import Training
from rankwright.toolbox.model import has_head
from rankwright.toolbox.schedule import count_pairs
from rankwright.toolbox.weights import fingerprint, hub_name, locate

DISTILL_SHARE, DISTILL_MOST = 0.15, 10_000
"""What a plain encoder's distillation may take of the budget, and how many pairs are enough."""


@dataclass
class Base:
    """A base that can be trained: its folder, how a YAML names it, and the distillation behind it."""

    reference: str
    model: Path
    result: Result
    distilled: Recipe | None = None


def references(section: Training) -> list[str]:
    """The bases that a training names."""
    return list(section.bases or [section.base])


def learning_rate(section: Training, reference: str) -> float:
    """The peak learning rate of steps of 8 queries: the one that is written, else by size; small models bear more.

    Raises:
        ModelError: the base's configuration cannot be read.
    """
    if "learning_rate" in section.model_fields_set:
        return section.learning_rate
    from transformers import AutoConfig

    folder = locate(reference)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the base {reference!r}: {first_line(error)}", where=str(folder)) from error
    return 1e-4 if int(getattr(config, "hidden_size", 768)) <= 512 else 2e-5


@dataclass
class Bases:
    """The choice among them, out of the trials' purse."""

    case: Case
    section: Training
    facts: Facts
    trials: Trials
    record: Record

    def choose(self) -> Base:
        """The first named, unless another is better beyond dev's noise.

        Raises:
            ModelError: one of them cannot be loaded, or not be distilled.
        """
        found = [self._tried(reference) for reference in references(self.section)]
        rivals = max(1, len(found) - 1)
        before = self.trials.dev.choose(lambda pairs: np.zeros(len(pairs), dtype=np.float32))[1]
        pools = self._pools(found) if len(found) > 1 else [None]
        for one, pool in zip(found, pools, strict=True):
            note = "" if pool is None else f"MAP {float(pool.mean()):.4f} on closed pools"
            self.record.add(one.result, before, f"base {one.reference}", note, rivals)
        if len(found) == 1:
            return found[0]
        best, why = 0, "the first named"
        for other in range(1, len(found)):
            gains = found[other].result.array() - found[best].result.array()
            if surely(gains, self.case.seed, rivals):
                best, why = other, "above those named before it, served, beyond dev's noise"
            elif self._knows(pools[other], pools[best], rivals) and float(np.mean(gains)) >= 0:
                best, why = other, "it knows the task better (closed pools), and serves no worse"
        self.record.reasons.append(f"base: {found[best].reference}, {why}")
        return found[best]

    def _knows(self, mine: NDArray[np.float64] | None, theirs: NDArray[np.float64] | None, rivals: int) -> bool:
        """Whether one base orders closed pools better than another, beyond the noise."""
        if mine is None or theirs is None:
            return False
        return surely(mine - theirs, self.case.seed, rivals)

    def _pools(self, bases: list[Base]) -> list[NDArray[np.float64] | None]:
        """Each base's average precision on closed pools of the dev queries, where the purse still pays for it."""
        purse, case = self.trials.purse, self.case
        pool = Pool.of(case.collection, list(self.trials.dev.qrels), case.seed, per_split=case.per_split)
        scored = len(bases) * len(pool.pairs) * case.orders
        if not pool.pairs or purse.cost(scored=scored) > purse.left / 2:
            return [None for _ in bases]
        purse.pay(scored=scored)
        return [pool.values(case.scores_of(one.model)) for one in bases]

    def _tried(self, reference: str) -> Base:
        folder, origin = locate(reference), hub_name(reference)
        self.trials.origins[folder] = origin
        if has_head(folder):
            result = self.trials.ask(f"base {reference}", folder, fingerprint(folder)[:16])
            return Base(reference, folder, result)
        share = self.trials.purse.total * DISTILL_SHARE / len(references(self.section))
        wanted = math.ceil(min(share, DISTILL_MOST))
        rate = learning_rate(self.section, reference)
        recipe = distillation(self.case.served, self.facts, self.section, rate, wanted)
        groups = self.trials.groups(recipe.mine, "unlabelled")
        pairs = int(max(1, min(share, DISTILL_MOST, MOST_EPOCHS * count_pairs(groups, None))))
        # The fewer pairs, the higher the rate: by those that there are.
        paced = distillation(self.case.served, self.facts, self.section, rate, pairs).training
        recipe = replace(recipe, training=paced)
        result = self.trials.run(recipe, folder, pairs)
        model = self.trials.model(recipe, folder, pairs)
        self.trials.origins[model] = origin
        return Base(reference, model, result, recipe)
