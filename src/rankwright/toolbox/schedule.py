"""Which groups each step of a training sees, in which order of a pair, and at which steps what is due.

In come groups, a Training section and a seed; out come counts, learning-rate factors and draws, the same for a step
whenever asked, so that a training that was stopped goes on as if it had not been. It knows no model and no loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.core import Group
from rankwright.sections import SampleSection, Training

PASSES = 3.3
"""Scored pairs that cost as much as one pair of training: a forward pass, two backward ones, and the optimiser."""
_SWAP = 1
"""Sets the coins of `swaps_of` apart from the draws of the same seed, epoch and group."""


@dataclass(frozen=True)
class Schedule:
    """The steps of one training."""

    groups: int
    step_groups: int
    steps: int
    warmup: int
    evaluations: frozenset[int]
    checkpoints: frozenset[int]

    @classmethod
    def of(cls, groups: int, section: Training, *, pairs: int, watching: bool) -> Schedule:
        """The schedule for so many groups, which have so many pairs in an epoch (`count_pairs`)."""
        epoch = epoch_steps(groups, section)
        steps = count_steps(groups, pairs, section)
        epochs = max(1.0, steps / epoch)
        wanted = section.dev.evaluations if watching and section.dev else 0
        evaluations = _spaced(steps, round(wanted * epochs)) if wanted else frozenset()
        saves = evaluations | _spaced(steps, round(section.checkpoints * epochs))
        step_groups = section.batch * section.accumulate
        return cls(groups, step_groups, steps, round(section.warmup * steps), evaluations, saves)

    @property
    def patience_flat(self) -> int:
        """Steps in a row that must look collapsed before the alarm goes."""
        return max(5, min(50, self.steps // 20))

    def rate(self, step: int, section: Training) -> float:
        """The factor of the learning rate for the step after `step` steps: linear warm-up, then decay to 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if section.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * done)) if section.schedule == "cosine" else 1 - done

    def groups_of(self, step: int, groups: Sequence[Group], section: Training, seed: int) -> list[Group]:
        """The groups of the step after `step` steps: a new seeded order every epoch, its short last batch kept."""
        epoch, places = self._places(step, seed)
        if section.sample is None:
            return [groups[place] for place in places]
        return [_drawn(groups[place], section.sample, np.random.default_rng([seed, epoch, place])) for place in places]

    def swaps_of(self, step: int, section: Training, seed: int) -> list[bool]:
        """For each of `groups_of`: is it read as (document, query)? A new coin for each group in every epoch."""
        epoch, places = self._places(step, seed)
        if not section.both_orders:
            return [False] * len(places)
        return [bool(np.random.default_rng([seed, epoch, place, _SWAP]).random() < 0.5) for place in places]

    def _places(self, step: int, seed: int) -> tuple[int, list[int]]:
        """The epoch, and which of the groups."""
        epoch, within = divmod(step, math.ceil(self.groups / self.step_groups))
        order = np.random.default_rng([seed, epoch]).permutation(self.groups)
        return epoch, order[within * self.step_groups : (within + 1) * self.step_groups].tolist()


def epoch_steps(groups: int, section: Training) -> int:
    """Steps in which each group is seen once, the short last one counted."""
    return math.ceil(groups / (section.batch * section.accumulate))


def count_steps(groups: int, pairs: float, section: Training) -> int:
    """Steps of a training on so many groups with so many pairs in an epoch, at least 1.

    `max_pairs` counts in whole steps of the epoch's mean size, the last one begun included.
    """
    epoch = epoch_steps(groups, section)
    if section.max_pairs is None:
        steps = max(1, round(epoch * section.epochs))
    else:
        steps = math.ceil(section.max_pairs * epoch / pairs)
    return min(steps, section.max_steps or steps)


def count_pairs(groups: Sequence[Group], sample: SampleSection | None) -> int:
    """The pairs of one epoch: all of each group or, with a sample, as many as are drawn."""
    if sample is None:
        return sum(map(len, groups))
    positives = [sum(label > 0 for label in group.labels) for group in groups]
    return sum(
        min(sample.positives, count) + min(sample.negatives, len(group) - count)
        for group, count in zip(groups, positives, strict=True)
    )


def _drawn(group: Group, sample: SampleSection, rng: np.random.Generator) -> Group:
    """A draw of positives and negatives from a group, in the group's order."""
    places: list[int] = []
    for wanted, positive in ((sample.positives, True), (sample.negatives, False)):
        there = [place for place, label in enumerate(group.labels) if (label > 0) == positive]
        places += rng.choice(there, size=min(wanted, len(there)), replace=False).tolist() if there else []
    kept = sorted(places)
    parts = {
        name: [getattr(group, name)[place] for place in kept]
        for name in ("document_ids", "documents", "labels", "teacher", "origins", "weights")
    }
    return Group(group.query_id, group.query, **parts)


def _spaced(steps: int, count: int) -> frozenset[int]:
    """`count` steps spread evenly, the last among them."""
    count = max(1, min(count, steps))
    return frozenset(round(steps * (place + 1) / count) for place in range(count))
