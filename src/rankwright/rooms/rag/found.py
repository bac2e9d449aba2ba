"""What was found: values, means with their coverage, and paired intervals against the first arm.

In come values a query, arm and metric with reasons, out goes a `Rag`: arrays, a table of plain values, texts. It
does not know how a value came about.

Rows that failed are never dropped silently: a mean is over the rows that were judged, and beside it stand how many
those are and what it were with every failed row as 0 and as 1. Rows to which a metric does not apply (no reference
answer, no passages) count in neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankwright.rooms.rag.contexts import FAILED, NOT_SAMPLED, Values, missing
from rankwright.sections import RagSection
from rankwright.toolbox import ragtable, stats
from rankwright.toolbox.ragtable import RagCell, RagColumn, RagTable
from rankwright.toolbox.table import Change

if TYPE_CHECKING:
    import pyarrow

Numbers = NDArray[np.float64]

_LEAST = 2  # pairs of an interval


@dataclass(frozen=True)
class Column:
    """One arm in one metric: `numbers`, float64 (queries,), NaN where there is none, and `reasons`, parallel to it:
    empty, ``failed``, or why the metric does not apply to that query.
    """

    numbers: Numbers
    reasons: tuple[str, ...]

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Which rows have a number: bool (queries,)."""
        return ~np.isnan(self.numbers)

    @property
    def failed(self) -> int:
        """How many rows were asked for and not answered."""
        return self.reasons.count(FAILED)

    @property
    def of(self) -> int:
        """How many rows the metric applies to: those judged and those failed."""
        return int(self.judged.sum()) + self.failed


@dataclass(frozen=True)
class Rag:
    """What the order does to the answers. ``columns[metric][arm]`` is a Column, parallel to `queries`.

    `asked` are the metrics that a model judged, over the queries of `sample`. `verdicts` are (query id, document id,
    relevant or not) of every passage that was judged; ``responses[arm][query id]`` is the answer from that arm's
    passages. `spent` is what asking took, by name.
    """

    arms: tuple[str, ...]
    queries: tuple[str, ...]
    sample: tuple[str, ...]
    columns: dict[str, dict[str, Column]]
    asked: tuple[str, ...]
    section: RagSection
    seed: int
    verdicts: tuple[tuple[str, str, bool], ...] = ()
    responses: dict[str, dict[str, str]] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns, in order."""
        return tuple(self.columns)

    def values(self) -> RagTable:
        """The table as plain values: what JSON holds, what `toolbox.ragtable` and the report show."""
        endpoint = self.section.endpoint
        return {
            "arms": list(self.arms),
            "k": self.section.k,
            "queries": len(self.queries),
            "sampled": len(self.sample),
            "model": endpoint.model if self.asked and endpoint else None,
            "columns": self._columns(),
            "coverage": self.section.coverage,
            "confidence": self.section.confidence,
            "resamples": self.section.resamples,
            "notes": list(self.notes),
            "spent": dict(self.spent),
        }

    def lines(self) -> list[str]:
        """The table for a terminal."""
        return ragtable.lines(self.values())

    def markdown(self) -> str:
        """The table as GitHub's Markdown."""
        return ragtable.markdown(self.values())

    def per_query_table(self) -> pyarrow.Table:
        """A row for each query, arm and metric: query_id, arm, metric, value (null: none), reason (null: has one)."""
        import pyarrow

        rows = [
            (query, arm, metric, float(number) if not reason else None, reason or None)
            for metric, arms in self.columns.items()
            for arm, column in arms.items()
            for query, number, reason in zip(self.queries, column.numbers, column.reasons, strict=True)
        ]
        kinds = (pyarrow.string(), pyarrow.string(), pyarrow.string(), pyarrow.float64(), pyarrow.string())
        names = ("query_id", "arm", "metric", "value", "reason")
        schema = pyarrow.schema(list(zip(names, kinds, strict=True)))
        columns = [[row[place] for row in rows] for place in range(len(names))]
        return pyarrow.table(columns, schema=schema)

    def _columns(self) -> list[RagColumn]:
        usable = {metric: self._usable(metric) for metric in self.columns}
        changes = {arm: self._changes(arm, [name for name in usable if usable[name]]) for arm in self.arms[1:]}
        return [
            RagColumn(
                metric=metric,
                kind="model" if metric in self.asked else "context",
                usable=usable[metric],
                cells=[_cell(arm, column, changes.get(arm, {}).get(metric)) for arm, column in arms.items()],
            )
            for metric, arms in self.columns.items()
        ]

    def _usable(self, metric: str) -> bool:
        """Whether enough rows of every arm were judged: a comparison is as good as its poorer half."""
        found = self.columns[metric].values()
        return all(int(column.judged.sum()) >= self.section.coverage * column.of for column in found)

    def _changes(self, arm: str, metrics: list[str]) -> dict[str, Change]:
        """The mean differences of `arm` from the baseline over the rows that both have, with intervals.

        The draws depend on the seed, the arm's name and those rows alone: another metric moves no number here.
        """
        by_rows: dict[bytes, list[str]] = {}
        for metric in metrics:
            by_rows.setdefault(self._both(arm, metric).tobytes(), []).append(metric)
        found = {}
        for names in by_rows.values():
            rows = self._both(arm, names[0])
            if rows.sum() < _LEAST:
                continue
            gaps = [self.columns[name][arm].numbers - self.columns[name][self.arms[0]].numbers for name in names]
            differences = np.stack([gap[rows] for gap in gaps], axis=1)
            low, high = stats.paired_bootstrap(
                differences,
                resamples=self.section.resamples,
                confidence=self.section.confidence,
                rng=_rng(self.seed, "rag", self.arms[0], arm),
            )
            for place, name in enumerate(names):
                mean = float(np.ascontiguousarray(differences[:, place]).mean())
                found[name] = Change(value=mean, low=float(low[place]), high=float(high[place]))
        return found

    def _both(self, arm: str, metric: str) -> NDArray[np.bool_]:
        arms = self.columns[metric]
        return arms[arm].judged & arms[self.arms[0]].judged


def column(queries: tuple[str, ...], values: Values) -> Column:
    """Values by query id as a Column; a query that has none was not sampled."""
    found = [values.get(query, missing(NOT_SAMPLED)) for query in queries]
    return Column(np.array([value.number for value in found]), tuple(value.reason for value in found))


def applies(columns: Mapping[str, Column]) -> bool:
    """Whether a metric applies to any row of any arm."""
    return any(column.of for column in columns.values())


def _cell(arm: str, column: Column, change: Change | None) -> RagCell:
    judged, of = int(column.judged.sum()), column.of
    total = float(column.numbers[column.judged].sum())
    return RagCell(
        arm=arm,
        mean=total / judged if judged else None,
        judged=judged,
        of=of,
        worst=total / of if of else None,
        best=(total + column.failed) / of if of else None,
        difference=change,
    )


def _rng(seed: int, *words: str) -> np.random.Generator:
    """A generator of its own for each comparison, so that the order of work does not matter."""
    digest = hashlib.blake2b("\0".join((str(seed), *words)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
