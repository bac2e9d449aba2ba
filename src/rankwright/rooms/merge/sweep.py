"""Finding the weight of a merge: weights out, trials in, until the line is known well enough.

In: someone who measures the merges at given weights (many at a time, so that they may run in parallel), the `merge:`
section, and each model alone where three or more are merged. Out: a Sweep with the choice. It does not know how a
merge is made, measured or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rankwright.sections import MergeSection
from rankwright.toolbox.front import Sweep, Trial, admissible, best, judge

MeasureAll = Callable[[Sequence[float]], Sequence[Trial]]
"""Weights -> a Trial each, in their order."""


def sweep(measure_all: MeasureAll, section: MergeSection, *, ingredients: Sequence[Trial] = (), seed: int = 0) -> Sweep:
    """Measure weights 0, 1/steps, …, 1, then half-way on both sides of the best that may be chosen; judge them all.

    `ingredients` (each model alone; `weight` None) are judged beside the line: they stand on the front and may be
    chosen, but are not refined. `seed` is of the intervals. `measure_all` is asked twice.

    Raises:
        ValueError: trials that do not belong to the weights asked for, or that cannot be judged (`front.judge`).
    """
    weights = [step / section.steps for step in range(section.steps + 1)]
    trials = _measured(measure_all, weights)
    top = best(trials, admissible(trials, section.tolerance))
    further = halfway(weights, top)
    line = sorted([*trials, *_measured(measure_all, further)], key=lambda trial: trial.weight or 0.0)
    return judge([*line, *ingredients], section.choose_by, section.tolerance, order=section.watch, seed=seed)


def least_points(section: MergeSection) -> int:
    """How many weights a sweep measures at least: the best may lie at an end, which has one neighbour."""
    return section.steps + 2


def halfway(weights: Sequence[float], place: int) -> list[float]:
    """The middles between the weight at `place` and its neighbours: one at an end, else two."""
    neighbours = [*weights[max(place - 1, 0) : place], *weights[place + 1 : place + 2]]
    return [(weights[place] + neighbour) / 2 for neighbour in neighbours]


def _measured(measure_all: MeasureAll, weights: Sequence[float]) -> list[Trial]:
    trials = list(measure_all(weights))
    if [trial.weight for trial in trials] != list(weights):
        raise ValueError(f"asked for weights {list(weights)}, got {[trial.weight for trial in trials]}")
    return trials
