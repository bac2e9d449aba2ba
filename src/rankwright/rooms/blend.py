"""How much of the reranker's score, and how deep? Chosen on dev for each arm; and the baselines that it must beat.

In: the retrievers' runs and each arm's on dev and on the measured split, dev's Qrels, the `blend` section. Out: each
arm's Choice with the whole grid behind it, the blended runs, and tuned fusion of the retrievers where there are
several. It does not know what is relevant on the measured split, nor which model made a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Qrels, Run
from rankwright.errors import DataError
from rankwright.sections import BlendSection
from rankwright.toolbox import metrics, stats
from rankwright.toolbox.fuse import rrf, simplex, weighted
from rankwright.toolbox.lists import NORMALISATION, Lists

Values = NDArray[np.float64]

SUFFIX = "-blend"
RRF, FUSED = "rrf", "fused"
_RESAMPLES = 1000


@dataclass(frozen=True)
class Choice:
    """What dev chose for an arm.

    `grid[i][j]` is the mean metric at `weights[i]`, `depths[j]`; `retrieval`, `reranked`, `blended` are dev means;
    `gain` is blended minus reranked with its interval [`low`, `high`] (optimistic, since chosen on the same queries).
    """

    weight: float
    depth: int
    metric: str
    queries: int
    weights: tuple[float, ...]
    depths: tuple[int, ...]
    grid: tuple[tuple[float, ...], ...]
    retrieval: float
    reranked: float
    blended: float
    gain: float
    low: float
    high: float

    def values(self) -> dict[str, Any]:
        """The choice as JSON takes it."""
        return {**asdict(self), "normalisation": NORMALISATION}


@dataclass(frozen=True)
class Fusion:
    """The retrievers fused without a reranker: weights that dev chose (of min-max scores), dev mean of each way."""

    weights: dict[str, float]
    rrf: float
    fused: float


def blend(retrieved: Run, reranked: Run, qrels: Qrels, section: BlendSection, *, depth: int) -> Choice:
    """Choose weight and depth for one arm on dev; `depth` candidates were reranked.

    The best dev mean of many is partly luck. So a simpler order is taken where it is within `section.guard` standard
    errors of the best one (of their paired differences): the whole depth before others, then the smallest weight, then
    the smallest depth. Weight 0 keeps the retriever's order.

    Raises:
        DataError: no dev query has a relevant document.
    """
    lists = Lists.of(retrieved, reranked, qrels, depth=depth)
    if not lists.queries:
        raise DataError("no dev query has a relevant document to choose a blend by", hint="blend: null, or another dev")
    weights = tuple(round(step / section.steps, 6) for step in range(section.steps + 1))
    depths = tuple(sorted({min(wanted, depth) for wanted in (*section.depths, depth)}))
    values = np.array([[_mean(lists, weight, at, section.metric) for at in depths] for weight in weights])
    grid = values.mean(axis=2)
    row, column = _simplest(values, depths.index(depth), section.guard)
    weight, chosen = weights[row], depths[column]
    own, served = (_mean(lists, *at, section.metric) for at in ((weight, chosen), (1.0, depth)))
    low, high = stats.paired_bootstrap(
        own - served, resamples=_RESAMPLES, confidence=0.95, rng=np.random.default_rng(0)
    )
    return Choice(
        weight,
        depths[0] if weight == 0 else chosen,
        section.metric,
        len(lists.queries),
        weights,
        depths,
        tuple(tuple(line) for line in grid.tolist()),
        float(_mean(lists, 0.0, depth, section.metric).mean()),
        float(served.mean()),
        float(own.mean()),
        float((own - served).mean()),
        float(low),
        float(high),
    )


def serving(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What serving needs of a choice's values: weight, depth and normalisation."""
    return {name: choice[name] for name in ("weight", "depth", "normalisation")}


def blended(retrieved: Run, reranked: Run, choice: Choice, *, depth: int) -> Run:
    """The measured split's run with what dev chose; every query of `retrieved` is there, judged or not."""
    everything: Qrels = {
        query: {document: 1 for document, _ in hits[:1]} for query, hits in retrieved.rankings.items() if hits
    }
    lists = Lists.of(retrieved, reranked, everything, depth=depth)
    return lists.run(choice.weight, choice.depth)


def fuse(dev: Mapping[str, Run], qrels: Qrels, metric: str) -> Fusion | None:
    """Tune the weighted fusion of several retrievers on dev; None where there is only one.

    Weights sum to 1 in steps of 0.1; the best dev mean wins, of equals the first.
    """
    if len(dev) < 2:
        return None
    names = list(dev)
    runs = [dev[name] for name in names]
    tried = [
        (float(metrics.per_query(weighted(runs, weights), qrels, [metric])[metric].mean()), weights)
        for weights in simplex(len(names))
    ]
    best = max(value for value, _ in tried)
    weights = next(weights for value, weights in tried if value == best)
    ranks = float(metrics.per_query(rrf(runs), qrels, [metric])[metric].mean())
    return Fusion(dict(zip(names, weights, strict=True)), ranks, best)


def fused(runs: Mapping[str, Run], fusion: Fusion) -> dict[str, Run]:
    """The measured split's runs of both fusions: ``rrf`` and ``fused``."""
    own = [runs[name] for name in fusion.weights]
    return {RRF: rrf(own), FUSED: weighted(own, list(fusion.weights.values()))}


def _simplest(values: Values, whole: int, guard: float) -> tuple[int, int]:
    """Of `values` (weights, depths, queries): the place of the simplest order that is as good as the best."""
    grid = values.mean(axis=2)
    best = values[np.unravel_index(int(np.argmax(np.round(grid, 12))), grid.shape)]
    behind = best - values
    # A last bit must not choose: equal to twelve digits is equal.
    near = behind.mean(axis=2) <= guard * behind.std(axis=2) / np.sqrt(values.shape[2]) + 1e-12
    if near[:, whole].any():
        return int(np.argmax(near[:, whole])), whole
    row = int(np.argmax(near.any(axis=1)))
    return row, int(np.argmax(near[row]))


def _mean(lists: Lists, weight: float, depth: int, metric: str) -> Values:
    return lists.measure(lists.order(weight, depth), metric)
