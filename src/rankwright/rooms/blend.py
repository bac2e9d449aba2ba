"""How much of the reranker's score, and how deep? Chosen on dev for each arm; and the baselines that it must beat.

In: the retrievers' runs and each arm's on dev and on the measured split, dev's Qrels, the `blend` section. Out: each
arm's Choice with the whole grid behind it, the blended runs, and tuned fusion of the retrievers where there are
several. It does not know what is relevant on the measured split, nor which model made a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_WIDTH = 0.1
"""How far in weight the gains of neighbours count: the standard deviation of a Gaussian. (Chosen on halves of dev.)"""
_DEPTH = 4.0
"""How many guards a depth's gain over the whole one is counted less by. (On halves of dev of seven collections, one
chooses and the other is measured: with one guard, blends gained .0021 instead of .0030. See docs/recipes.md.)"""


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

    The best dev mean of many is partly luck. So each weight's gain over the retriever's order is averaged with those of
    its neighbours, and what counts is its lower bound: the mean less `section.guard` standard errors. Weight 0, which
    keeps the retriever's order, gains 0 for sure. Another depth than the whole one has to gain over that, and surely:
    its mean less four times as many standard errors, as depths are mostly chosen by luck.

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
    row, column = _surest(values, weights, depths.index(depth), section.guard)
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


def _surest(values: Values, weights: Sequence[float], whole: int, guard: float) -> tuple[int, int]:
    """Of `values` (weights, depths, queries): the place whose gain over the retriever has the highest lower bound.

    At the whole depth first; then wherever it surely gains over that.
    """
    smooth = _smoothed(values - values[:1], weights)
    row = int(np.argmax(_lower_bound(smooth[:, whole], guard)))
    beyond = _lower_bound(smooth - smooth[row, whole], _DEPTH * guard)
    place = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    return (int(place[0]), int(place[1])) if beyond[place] > 0 else (row, whole)


def _smoothed(gains: Values, weights: Sequence[float]) -> Values:
    """Each weight's gains (weights, depths, queries) averaged with its neighbours'; weight 0 is the retriever's own."""
    apart = np.subtract.outer(weights, weights) / _WIDTH
    kernel = np.exp(-0.5 * apart**2)
    kernel[0] = 0.0
    kernel[0, 0] = 1.0
    averaged: Values = np.einsum("vw,wdq->vdq", kernel / kernel.sum(axis=1, keepdims=True), gains)
    return averaged


def _lower_bound(gains: Values, guard: float) -> Values:
    """The mean over queries, the last axis, less so many standard errors; rounded, as a last bit must not choose."""
    error = gains.std(axis=-1) / np.sqrt(gains.shape[-1])
    bound: Values = np.round(gains.mean(axis=-1) - guard * error, 12)
    return bound


def _mean(lists: Lists, weight: float, depth: int, metric: str) -> Values:
    return lists.measure(lists.order(weight, depth), metric)
