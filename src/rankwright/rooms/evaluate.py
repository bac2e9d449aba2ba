"""Did it help? Each arm's metrics, query by query, and paired tests against retrieval and against base.

In come Runs of the same queries (the first one is the baseline, retrieval), Qrels and the `evaluate` section;
out comes an Evaluation. It does not know how a run was made, nor where tables are written or shown.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Qrels, Run
from rankwright.errors import ConfigError, DataError
from rankwright.sections import EvaluateSection
from rankwright.toolbox import metrics, stats
from rankwright.toolbox.table import Cell, Difference, Row, Table, stars

if TYPE_CHECKING:
    import pyarrow

Values = NDArray[np.float64]
BASE = "base"
"""The arm that the arms after it are also compared with: the reranker before fine-tuning."""


@dataclass(frozen=True)
class Estimate:
    """A mean over queries and the bootstrap interval of it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """`arm` minus `against` in one metric: mean difference, interval, p, and p after Holm.

    Holm's family is the arms that are compared with the same arm in the same metric.
    """

    metric: str
    arm: str
    against: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def stars(self) -> str:
        """``*``, ``**`` or ``***`` for p after Holm below .05, .01 or .001."""
        return stars(self.p_holm)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. ``per_query[arm][metric]`` is float64 (queries,), parallel to `queries`.

    ``means[arm][metric]`` is an Estimate. `notes` are remarks about queries that could not count as the rest.
    """

    arms: tuple[str, ...]
    metrics: tuple[str, ...]
    queries: tuple[str, ...]
    per_query: dict[str, dict[str, Values]]
    means: dict[str, dict[str, Estimate]]
    comparisons: tuple[Comparison, ...]
    section: EvaluateSection
    seed: int
    notes: tuple[str, ...] = ()

    def comparison(self, metric: str, arm: str, against: str | None = None) -> Comparison:
        """The comparison of `arm` with `against` (default: the baseline).

        Raises:
            KeyError: these two were not compared.
        """
        wanted = (metric, arm, against or self.arms[0])
        for found in self.comparisons:
            if (found.metric, found.arm, found.against) == wanted:
                return found
        raise KeyError(wanted)

    def table(self, provenance: Mapping[str, str] | None = None) -> Table:
        """The table as plain values: what table.json holds and what `toolbox.table` and the report show."""
        return {
            "arms": list(self.arms),
            "rows": [
                Row(metric=metric, cells=[self._cell(arm, metric) for arm in self.arms]) for metric in self.metrics
            ],
            "queries": len(self.queries),
            "split": self.section.split,
            "confidence": self.section.confidence,
            "bootstrap": self.section.bootstrap,
            "permutations": self.section.permutations,
            "seed": self.seed,
            "notes": list(self.notes),
            "provenance": dict(provenance or {}),
        }

    def tests(self) -> list[dict[str, Any]]:
        """Every comparison as plain values, in order: what tests.json holds."""
        return [{**vars(comparison), "stars": comparison.stars} for comparison in self.comparisons]

    def per_query_table(self) -> pyarrow.Table:
        """One row per query and arm: query_id, arm, then a column per metric; what per_query.parquet holds."""
        import pyarrow

        columns: dict[str, Any] = {
            "query_id": [query for _ in self.arms for query in self.queries],
            "arm": [arm for arm in self.arms for _ in self.queries],
        }
        for metric in self.metrics:
            columns[metric] = np.concatenate([self.per_query[arm][metric] for arm in self.arms])
        return pyarrow.table(columns)

    def _cell(self, arm: str, metric: str) -> Cell:
        versus: dict[str, Difference] = {
            found.against: {
                "value": found.difference,
                "low": found.low,
                "high": found.high,
                "p": found.p,
                "p_holm": found.p_holm,
                "stars": found.stars,
            }
            for found in self.comparisons
            if (found.metric, found.arm) == (metric, arm)
        }
        own = self.means[arm][metric]
        return Cell(arm=arm, mean=own.mean, low=own.low, high=own.high, versus=versus)


def evaluate(runs: Mapping[str, Run], qrels: Qrels, section: EvaluateSection, seed: int) -> Evaluation:
    """Measure every arm and compare it with the first one and, where an arm is called base, with that.

    `runs` maps an arm to its Run, the baseline first. Means are over the queries with a relevant document.
    Draws depend on `seed` and on the two names compared alone: adding an arm or a metric moves no other number,
    except p after Holm.

    Raises:
        ConfigError: no runs, or an unknown metric.
        DataError: no query has a relevant document, or a run has none of those that do.
    """
    names = tuple(dict.fromkeys(section.metrics))
    queries = tuple(metrics.judged_queries(qrels))
    _refuse_nothing(runs, queries, section.split)
    per_query = {arm: metrics.per_query(run, qrels, names) for arm, run in runs.items()}
    values = {arm: np.stack([found[name] for name in names], axis=1) for arm, found in per_query.items()}
    means = {arm: _estimates(names, values[arm], section, _rng(seed, "mean", arm)) for arm in runs}
    pairs = _pairs(list(runs))
    compared = {pair: _compare(names, values, pair, section, seed) for pair in pairs}
    return Evaluation(
        arms=tuple(runs),
        metrics=names,
        queries=queries,
        per_query=per_query,
        means=means,
        comparisons=tuple(_corrected(compared)),
        section=section,
        seed=seed,
        notes=tuple(_notes(runs, qrels, queries)),
    )


def _refuse_nothing(runs: Mapping[str, Run], queries: tuple[str, ...], split: str) -> None:
    if not runs:
        raise ConfigError("nothing to evaluate: no run", hint="evaluate needs a retriever's run at least")
    if not queries:
        raise DataError(
            f"no query of the {split} split has a relevant document", hint="check data.test, or evaluate.split"
        )
    if empty := [arm for arm, run in runs.items() if not any(run.rankings.get(query) for query in queries)]:
        raise DataError(
            f"{', '.join(empty)}: the run has none of the {len(queries)} judged queries",
            hint="do its query ids belong to another split or to another collection?",
        )


def _rng(seed: int, *words: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that the order of work does not matter."""
    digest = hashlib.blake2b("\0".join((str(seed), *words)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _estimates(
    names: tuple[str, ...], values: Values, section: EvaluateSection, rng: np.random.Generator
) -> dict[str, Estimate]:
    low, high = stats.bootstrap_mean(values, resamples=section.bootstrap, confidence=section.confidence, rng=rng)
    columns = zip(_means(values), low.tolist(), high.tolist(), strict=True)
    return {name: Estimate(*column) for name, column in zip(names, columns, strict=True)}


def _means(values: Values) -> list[float]:
    """The mean of each column, summed by itself: its last bit does not depend on the other metrics."""
    return [float(np.ascontiguousarray(column).mean()) for column in values.T]


def _pairs(arms: list[str]) -> list[tuple[str, str]]:
    """(arm, against): each arm after the first with the first, then each arm after base with base."""
    pairs = [(arm, arms[0]) for arm in arms[1:]]
    if BASE in arms[1:]:
        pairs += [(arm, BASE) for arm in arms[arms.index(BASE) + 1 :]]
    return pairs


def _compare(
    names: tuple[str, ...], values: Mapping[str, Values], pair: tuple[str, str], section: EvaluateSection, seed: int
) -> list[Comparison]:
    """One comparison per metric; p after Holm is still p, for Holm needs the other arms."""
    arm, against = pair
    differences = values[arm] - values[against]
    low, high = stats.paired_bootstrap(
        differences,
        resamples=section.bootstrap,
        confidence=section.confidence,
        rng=_rng(seed, "bootstrap", arm, against),
    )
    p = stats.paired_randomisation(
        differences, permutations=section.permutations, rng=_rng(seed, "randomisation", arm, against)
    )
    columns = zip(_means(differences), low.tolist(), high.tolist(), p.tolist(), p.tolist(), strict=True)
    return [Comparison(name, arm, against, *column) for name, column in zip(names, columns, strict=True)]


def _corrected(compared: Mapping[tuple[str, str], list[Comparison]]) -> Iterable[Comparison]:
    """Holm within each metric and each arm compared against; sorted by family, then metric, then arm."""
    for _, pairs in itertools.groupby(compared, key=lambda pair: pair[1]):
        for family in zip(*(compared[pair] for pair in pairs), strict=True):
            adjusted = stats.holm([comparison.p for comparison in family])
            for comparison, p_holm in zip(family, adjusted, strict=True):
                yield Comparison(**{**vars(comparison), "p_holm": p_holm})


def _notes(runs: Mapping[str, Run], qrels: Qrels, queries: tuple[str, ...]) -> Iterable[str]:
    if left := len(qrels) - len(queries):
        yield f"{left:,} of {len(qrels):,} queries have no relevant document and are left out."
    for arm, run in runs.items():
        if missing := sum(not run.rankings.get(query) for query in queries):
            yield f"{arm} returned nothing for {missing:,} of {len(queries):,} queries; they score 0."
        if foreign := sum(query not in qrels for query in run.rankings):
            yield f"{arm} holds {foreign:,} queries that are not judged; they do not count."
