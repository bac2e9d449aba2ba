"""What a search has tried and why it chose: rows with their intervals, and sentences.

In: Results. Out: a table as JSON takes it and as a terminal shows it. Among many rivals the best looks better than it
is, so an interval is the wider the more there are (Bonferroni). It does not know what a recipe or a base is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rankwright.auto.trials import Result
from rankwright.toolbox import stats

ERROR = 0.1
"""What a paired interval leaves out, both ends together, divided among the rivals: 95% one-sided for a single one."""
_RESAMPLES = 5000


def beyond(gains: Any, seed: int, rivals: int = 1) -> tuple[float, float]:
    """The paired interval of a mean gain over dev queries, of one among so many rivals."""
    low, high = stats.paired_bootstrap(
        np.asarray(gains), resamples=_RESAMPLES, confidence=1 - ERROR / rivals, rng=np.random.default_rng(seed)
    )
    return float(low), float(high)


def surely(gains: Any, seed: int, rivals: int = 1) -> bool:
    """Whether a mean gain over dev queries is above 0 beyond the noise, of one among so many rivals."""
    return stats.surely_positive(np.asarray(gains), error=ERROR / rivals, draws=_RESAMPLES, seed=seed)


@dataclass
class Record:
    """The rows and the reasons, in the order of what happened; `seed` is of the intervals."""

    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, result: Result, against: Any, name: str, note: str = "", rivals: int = 1) -> None:
        """A trial, held against the values of another; no interval where they are the same."""
        gains = result.array() - np.asarray(against)
        low, high = beyond(gains, self.seed, rivals) if np.any(gains) else (None, None)
        self.rows.append(
            {
                **{"name": name, "pairs": result.pairs, "mean": result.mean, "weight": result.weight},
                **{"gain": float(gains.mean()), "low": low, "high": high, "note": note},
                "values": list(result.values),
            }
        )

    def failed(self, name: str, pairs: int, why: str) -> None:
        """A trial that could not be made."""
        nothing = dict.fromkeys(("mean", "weight", "gain", "low", "high"))
        self.rows.append({"name": name, "pairs": pairs, **nothing, "note": f"dropped: {why}", "values": []})


def shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table as lines, with its heading."""
    cells = [("recipe", "pairs", "dev", "against the first", "")]
    for row in rows:
        mean = "–" if row["mean"] is None else f"{row['mean']:.4f}"
        interval = "–" if row["low"] is None else f"{row['gain']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        cells.append((row["name"], f"{row['pairs']:,}", mean, interval, row["note"]))
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
