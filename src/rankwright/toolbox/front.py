"""Of several models, each measured on two collections, which to take: trials in, the front and the choice out.

In come Trials (per-query values in domain and on a general collection), the first model's first; out goes a Sweep:
what no other trial dominates, what the stated rule chooses, and by how much each differs from the first model. It
does not know how a model was made or measured, nor who asks for the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwright.toolbox import metrics
from rankwright.toolbox.stats import paired_bootstrap
from rankwright.toolbox.table import Change, interval

CONFIDENCE = 0.95
RESAMPLES = 2000
MOST = 0.9  # of the gain of weight 1: what one hopes to keep

_DIGITS = 12  # means of the same numbers in another order differ in the last bits


@dataclass(frozen=True)
class Trial:
    """A model that was measured. `weight` is its place on the line from the first model; None: beside the line.

    `weights` is what the merge was given. `in_domain` and `general` hold a value of the metric for each query, every
    trial's in one order; `general` is empty where there is no general collection.
    """

    name: str
    weight: float | None
    weights: tuple[float, ...]
    in_domain: tuple[float, ...]
    general: tuple[float, ...] = ()

    @classmethod
    def at(
        cls, weight: float, weights: Sequence[float], in_domain: Sequence[float], general: Sequence[float] = ()
    ) -> Trial:
        """A trial on the line, named by its weight: ``weight 0.25``."""
        return cls(f"weight {weight:g}", weight, *(tuple(map(float, own)) for own in (weights, in_domain, general)))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Trial:
        """A trial read back from what `values` gave."""
        parts = (tuple(map(float, values[name])) for name in ("weights", "in_domain", "general"))
        return cls(str(values["name"]), None if values["weight"] is None else float(values["weight"]), *parts)

    def values(self) -> dict[str, Any]:
        """Plain JSON: a line of trials.jsonl."""
        return {
            "name": self.name,
            "weight": self.weight,
            **{part: list(getattr(self, part)) for part in ("weights", "in_domain", "general")},
        }

    @property
    def in_domain_mean(self) -> float:
        """The mean over the in-domain queries."""
        return float(np.mean(self.in_domain))

    @property
    def general_mean(self) -> float | None:
        """The mean over the general queries; None without any."""
        return float(np.mean(self.general)) if self.general else None

    @property
    def point(self) -> tuple[float, float]:
        """Both means to 12 digits, in domain first; 0 in general where that was not measured."""
        return round(self.in_domain_mean, _DIGITS), round(self.general_mean or 0.0, _DIGITS)


@dataclass(frozen=True)
class Sweep:
    """Trials with what was made of them; `front`, `chosen`, `gains` and `changes` go by a trial's place.

    `gains` are differences from the first trial in domain, `changes` those in general (empty without a general
    collection), each with its paired bootstrap interval. `rule` says how it was chosen, `said` what came of it.
    """

    trials: tuple[Trial, ...]
    metric: str
    tolerance: float
    front: tuple[int, ...]
    chosen: int
    gains: tuple[Change, ...]
    changes: tuple[Change, ...]
    rule: str
    said: str

    @property
    def choice(self) -> Trial:
        """The trial that was chosen."""
        return self.trials[self.chosen]

    def marks(self, place: int) -> str:
        """``front, chosen``, or what of it holds for a trial."""
        return ", ".join([*(["front"] if place in self.front else []), *(["chosen"] if place == self.chosen else [])])

    def kept(self) -> str:
        """How much of the in-domain gain of weight 1 the choice keeps, and at what price; empty without weight 1."""
        whole = next((gain for gain, trial in zip(self.gains, self.trials, strict=True) if trial.weight == 1), None)
        if whole is None:
            return ""
        if round(whole["value"], _DIGITS) <= 0:
            return f"weight 1 gains nothing in domain over the first model ({whole['value']:+.4f})"
        share = self.gains[self.chosen]["value"] / whole["value"]
        told = f"{self.choice.name} keeps {share:.0%} of the in-domain gain of weight 1 ({whole['value']:+.4f})"
        if not self.changes:
            return told
        change = self.changes[self.chosen]
        told += f", with a general change of {change['value']:+.4f} {interval(change['low'], change['high'])}"
        few = f"; nothing tried keeps {MOST:.0%} of it within the tolerance"
        return told + (few if share < MOST else "")

    def lines(self) -> list[str]:
        """A table for the terminal, the rule, what it chose, and how much of the gain that keeps."""
        header = ["merge", "in domain", "gain over the first"] + (["general", "change"] if self.changes else []) + [""]
        rows = [header, *(self._row(place) for place in range(len(self.trials)))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        told = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [*told, f"rule: {self.rule}", *filter(None, (self.said, self.kept()))]

    def values(self) -> dict[str, Any]:
        """Plain JSON: the trials with their per-query values and everything that was made of them."""
        return {
            "metric": self.metric,
            "tolerance": self.tolerance,
            "trials": [trial.values() for trial in self.trials],
            "front": list(self.front),
            "chosen": self.chosen,
            "gains": [dict(gain) for gain in self.gains],
            "changes": [dict(change) for change in self.changes],
            "rule": self.rule,
            "said": self.said,
            "kept": self.kept(),
        }

    def _row(self, place: int) -> list[str]:
        trial = self.trials[place]
        cells = [trial.name, f"{trial.in_domain_mean:.4f}", _difference(self.gains[place], place)]
        if self.changes:
            cells += [f"{trial.general_mean:.4f}", _difference(self.changes[place], place)]
        return [*cells, self.marks(place)]


def pareto(trials: Sequence[Trial]) -> list[int]:
    """The places of the trials that no other dominates: none is as good in both means and better in one."""
    points = [trial.point for trial in trials]
    return [
        place
        for place, (inside, outside) in enumerate(points)
        if not any(a >= inside and b >= outside and (a, b) != (inside, outside) for a, b in points)
    ]


def admissible(trials: Sequence[Trial], tolerance: float) -> list[int]:
    """The places of the trials whose general mean is at least the first one's less `tolerance`; all without one."""
    floor = (trials[0].general_mean or 0.0) - tolerance
    return [place for place, trial in enumerate(trials) if round((trial.general_mean or 0.0) - floor, _DIGITS) >= 0]


def best(trials: Sequence[Trial], places: Sequence[int]) -> int:
    """Of these places the one of the best in-domain mean; of equals the smaller weight, the line before what is not."""

    def order(place: int) -> tuple[float, float, int]:
        weight = trials[place].weight
        return -trials[place].point[0], float("inf") if weight is None else weight, place

    return min(places, key=order)


def judge(trials: Sequence[Trial], metric: str, tolerance: float, *, order: str = "reranked", seed: int = 0) -> Sweep:
    """The front, the choice and the intervals of trials whose first is the first model, weight 0.

    The rule: the best in-domain mean among those whose general mean is at least the first one's less `tolerance`.
    `order` says which order on dev was measured: reranked, or served. Intervals are percentile bootstraps over
    queries (`stats.paired_bootstrap`), whose resamples all trials share.

    Raises:
        ValueError: no trials, the first is not weight 0, no in-domain values, numbers of values that differ between
            trials, or values that are not finite.
    """
    _check(trials)
    allowed = admissible(trials, tolerance)
    chosen = best(trials, allowed)
    measured = bool(trials[0].general)
    what = f"best in-domain {metrics.label(metric)} on dev" + (" of the served order" if order == "served" else "")
    rule = f"{what} subject to general >= that of the first model - {tolerance:g}"
    return Sweep(
        trials=tuple(trials),
        metric=metric,
        tolerance=tolerance,
        front=tuple(pareto(trials)),
        chosen=chosen,
        gains=_changes([trial.in_domain for trial in trials], seed),
        changes=_changes([trial.general for trial in trials], seed) if measured else (),
        rule=rule if measured else f"{what}; generality was not looked at, since there is no general collection",
        said=_said(trials, allowed, chosen),
    )


def _said(trials: Sequence[Trial], allowed: Sequence[int], chosen: int) -> str:
    if trials[chosen].weight != 0:
        return f"{trials[chosen].name} is chosen"
    if len(allowed) == 1 and len(trials) > 1:
        return f"{trials[chosen].name}, the first model, stays: every other loses more in general than the tolerance"
    return f"{trials[chosen].name}, the first model, stays: nothing that may be chosen is better in domain"


def _changes(values: Sequence[Sequence[float]], seed: int) -> tuple[Change, ...]:
    """Each trial's mean difference from the first, with its interval."""
    columns: NDArray[np.float64] = np.asarray(values, dtype=np.float64).T
    differences = columns - columns[:, :1]
    low, high = paired_bootstrap(
        differences, resamples=RESAMPLES, confidence=CONFIDENCE, rng=np.random.default_rng(seed)
    )
    means = differences.mean(axis=0)
    return tuple(
        Change(value=value, low=bottom, high=top)
        for value, bottom, top in zip(means.tolist(), low.tolist(), high.tolist(), strict=True)
    )


def _check(trials: Sequence[Trial]) -> None:
    if not trials or trials[0].weight != 0:
        raise ValueError("the first trial must be the first model: weight 0")
    if not trials[0].in_domain:
        raise ValueError("no in-domain queries: there is nothing to choose by")
    for trial in trials:
        for part in ("in_domain", "general"):
            own, wanted = getattr(trial, part), getattr(trials[0], part)
            if len(own) != len(wanted):
                raise ValueError(f"{trial.name} has {len(own)} values {part}, {trials[0].name} has {len(wanted)}")
            if not np.isfinite(own).all():
                raise ValueError(f"{trial.name} has values {part} that are not finite")


def _difference(change: Change, place: int) -> str:
    return "–" if place == 0 else f"{change['value']:+.4f} {interval(change['low'], change['high'])}"
