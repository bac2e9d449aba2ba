"""How sure a mean over queries is: bootstrap intervals, a paired randomisation test, Holm's correction.

In come arrays with one row per query, out go plain numbers. Nothing here knows metrics, arms or runs. Every
function that draws takes its own numpy Generator, so that the same seed gives the same bytes. Sums go through
einsum, not BLAS: their order, and so their last bit, does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_CELLS = 1 << 20  # of a block of draws x queries: 8 MiB of float64


def paired_bootstrap(
    differences: Values, *, resamples: int, confidence: float, rng: np.random.Generator
) -> tuple[Values, Values]:
    """The percentile interval of a mean difference: queries are drawn with replacement, pairs stay together.

    `differences` is (queries,) or (queries, columns); all columns share the same resamples. Low and high come
    back as () or (columns,). Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Raises:
        ValueError: no queries.
    """
    columns = _columns(differences)
    queries = columns.shape[1]
    means = np.concatenate([_product(counts, columns) for counts in _resampled(queries, resamples, rng)])
    low, high = np.quantile(means / queries, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low.reshape(differences.shape[1:]), high.reshape(differences.shape[1:])


bootstrap_mean = paired_bootstrap
"""The interval of one arm's own mean: the same arithmetic, on values instead of differences."""


def paired_randomisation(differences: Values, *, permutations: int, rng: np.random.Generator) -> Values:
    """Two-sided p of the paired randomisation test on the mean: how often do random signs do as well?

    `differences` is (queries,) or (queries, columns); all columns share the same signs; p comes back as () or
    (columns,). p = (1 + draws with |mean| >= the observed one) / (1 + permutations), so p is never 0: its least
    value is 1 / (1 + permutations). Smucker, Allan and Carterette, CIKM 2007; Phipson and Smyth, 2010.

    Raises:
        ValueError: no queries.
    """
    columns = _columns(differences)
    observed = np.abs(columns.sum(axis=1))
    # Sums of the same numbers in another order differ in their last bits: an equal draw must count as equal.
    bar = observed - 1e-12 * np.abs(columns).sum(axis=1)
    hits = np.zeros(len(columns))
    for signs in _signs(columns.shape[1], permutations, rng):
        hits += (np.abs(_product(signs, columns)) >= bar).sum(axis=0)
    p: Values = (1 + hits) / (1 + permutations)
    return p.reshape(differences.shape[1:])


def surely_positive(differences: Values, *, error: float, draws: int, seed: int = 0) -> bool:
    """Whether a mean difference over queries (queries,) is above 0 beyond the noise, in both ways to ask.

    The lower end of the paired 1 - `error` interval lies above 0, and so rarely do random signs do as well. The second
    because where few queries differ, hardly a resample has none of those that gain.

    Raises:
        ValueError: no queries.
    """
    low, _ = paired_bootstrap(differences, resamples=draws, confidence=1 - error, rng=np.random.default_rng(seed))
    if low <= 0:
        return False
    p = paired_randomisation(differences, permutations=draws, rng=np.random.default_rng(seed))
    return bool(p <= error)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given; they bound the family-wise error rate.

    Sorted p(1) <= … <= p(m) become max over j <= i of min(1, (m - j + 1) p(j)). Holm 1979.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _columns(values: Values) -> Values:
    """(columns, queries), each column in one stretch, so that no column's sum depends on how many others there are."""
    if len(values) == 0:
        raise ValueError("no queries: a mean over nothing has no interval and no test")
    return np.ascontiguousarray(values.reshape(len(values), -1).T, dtype=np.float64)


def _product(weights: Values, columns: Values) -> Values:
    product: Values = np.einsum("dq,cq->dc", weights, columns)
    return product


def _blocks(queries: int, draws: int) -> Iterator[int]:
    """Sizes of blocks that sum to `draws`, each small enough to keep memory constant."""
    size = max(1, _CELLS // queries)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _resampled(queries: int, resamples: int, rng: np.random.Generator) -> Iterator[Values]:
    """Blocks of resamples, each as how often it holds every query: (block, queries)."""
    for block in _blocks(queries, resamples):
        drawn = rng.integers(0, queries, size=(block, queries))
        drawn += np.arange(block)[:, None] * queries
        yield np.bincount(drawn.ravel(), minlength=block * queries).reshape(block, queries).astype(np.float64)


def _signs(queries: int, draws: int, rng: np.random.Generator) -> Iterator[Values]:
    """Blocks of random signs, -1 or 1: (block, queries)."""
    for block in _blocks(queries, draws):
        yield 2.0 * rng.integers(0, 2, size=(block, queries), dtype=np.int8).astype(np.float64) - 1.0
