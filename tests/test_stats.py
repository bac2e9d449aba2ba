"""Intervals and tests against scipy, exact enumeration, theory and worked examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rankwright.toolbox import stats


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_bootstrap_agrees_with_scipy():
    from scipy.stats import bootstrap

    differences = rng(1).exponential(size=80) - 0.8
    low, high = stats.paired_bootstrap(differences, resamples=20_000, confidence=0.9, rng=rng())
    theirs = bootstrap(
        (differences,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=rng(2)
    ).confidence_interval
    assert (float(low), float(high)) == pytest.approx(theirs, abs=0.006)


def test_the_bootstrap_equals_the_quantiles_of_plain_resamples():
    differences = rng(1).normal(size=50)
    drawn = rng(7).integers(0, 50, size=(400, 50))
    plain = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    low, high = stats.paired_bootstrap(differences, resamples=400, confidence=0.95, rng=rng(7))
    assert (float(low), float(high)) == pytest.approx(plain.tolist(), abs=1e-12)


def test_columns_share_their_resamples_and_do_not_disturb_each_other():
    both = rng(1).normal(size=(40, 2))
    low, high = stats.paired_bootstrap(both, resamples=300, confidence=0.95, rng=rng(3))
    p = stats.paired_randomisation(both, permutations=300, rng=rng(3))
    for column in range(2):
        alone = stats.paired_bootstrap(both[:, column], resamples=300, confidence=0.95, rng=rng(3))
        assert (low[column], high[column]) == (float(alone[0]), float(alone[1]))
        assert p[column] == stats.paired_randomisation(both[:, column], permutations=300, rng=rng(3))
    twin = np.stack([both[:, 0], both[:, 0]], axis=1)
    low, high = stats.paired_bootstrap(twin, resamples=300, confidence=0.95, rng=rng(3))
    assert low[0] == low[1]
    assert high[0] == high[1]


def test_the_same_seed_gives_the_same_bytes_in_blocks_of_any_size(monkeypatch):
    differences = rng(1).normal(size=(30, 3))
    whole = stats.paired_bootstrap(differences, resamples=500, confidence=0.95, rng=rng())
    monkeypatch.setattr(stats, "_CELLS", 64)
    parts = stats.paired_bootstrap(differences, resamples=500, confidence=0.95, rng=rng())
    assert [part.tobytes() for part in whole] == [part.tobytes() for part in parts]
    assert (
        stats.paired_bootstrap(differences, resamples=500, confidence=0.95, rng=rng(9))[0].tolist() != whole[0].tolist()
    )


def test_no_difference_anywhere_is_an_empty_interval_and_a_p_of_one():
    nothing = np.zeros(20)
    low, high = stats.paired_bootstrap(nothing, resamples=100, confidence=0.95, rng=rng())
    assert (float(low), float(high)) == (0.0, 0.0)
    assert stats.paired_randomisation(nothing, permutations=100, rng=rng()) == 1.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draws, covered = rng(5), 0
    for _ in range(300):
        low, high = stats.bootstrap_mean(draws.normal(1.0, size=60), resamples=400, confidence=0.9, rng=draws)
        covered += low <= 1.0 <= high
    assert 0.84 < covered / 300 < 0.95


def exact_p(differences):
    """All sign patterns; the observed one is among them."""
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in _all_signs(len(differences))]
    return sum(value >= observed - 1e-12 for value in sums) / len(sums)


def _all_signs(count):
    return itertools.product((-1, 1), repeat=count)


@pytest.mark.parametrize(
    "differences", [[0.3, 0.1, -0.2, 0.5, 0.4, 0.0, 0.2, 0.1], [1, 1, 1, 1, 1, 1, 1, -1], [0.1] * 9]
)
def test_the_randomisation_test_agrees_with_exact_enumeration(differences):
    p = float(stats.paired_randomisation(np.array(differences), permutations=40_000, rng=rng()))
    exact = exact_p(differences)
    assert p == pytest.approx(exact, abs=4 * math.sqrt(exact / 40_000) + 1e-4)


def test_the_randomisation_test_agrees_with_scipy():
    from scipy.stats import permutation_test

    differences = rng(3).normal(0.25, size=60)
    theirs = permutation_test(
        (differences, np.zeros(60)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=rng(4),
    ).pvalue
    ours = float(stats.paired_randomisation(differences, permutations=20_000, rng=rng()))
    assert ours == pytest.approx(theirs, abs=0.01)


def test_p_is_two_sided_and_never_zero():
    gain = np.full(60, 0.5)
    assert stats.paired_randomisation(gain, permutations=999, rng=rng()) == 1 / 1000
    assert stats.paired_randomisation(-gain, permutations=999, rng=rng()) == 1 / 1000


def test_without_an_effect_p_is_spread_evenly():
    draws = rng(6)
    p = stats.paired_randomisation(draws.normal(size=(80, 1000)), permutations=400, rng=draws)
    assert abs((p < 0.05).mean() - 0.05) < 0.03
    assert abs(p.mean() - 0.5) < 0.06


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # as R's p.adjust(method = "holm") gives
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm_gives_the_worked_examples(raw, adjusted):
    assert stats.holm(raw) == pytest.approx(adjusted)


def test_holm_equals_its_formula_in_any_order():
    raw = rng(8).random(7) ** 3
    order = np.argsort(raw)
    formula = np.minimum(1, np.maximum.accumulate(raw[order] * np.arange(7, 0, -1)))
    np.testing.assert_allclose(np.array(stats.holm(raw.tolist()))[order], formula)


def test_a_gain_is_sure_where_an_interval_and_random_signs_both_say_so():
    many = np.random.default_rng(0).normal(0.1, 0.3, 200)
    assert stats.surely_positive(many, error=0.05, draws=2000)
    assert not stats.surely_positive(-many, error=0.05, draws=2000)
    assert not stats.surely_positive(np.zeros(50), error=0.05, draws=2000)
    few = np.array([0.3, 0.3, 0.3] + [0.0] * 97)  # by the interval alone, yes
    assert stats.paired_bootstrap(few, resamples=2000, confidence=0.9, rng=np.random.default_rng(0))[0] > 0
    assert not stats.surely_positive(few, error=0.1, draws=2000)


def test_no_queries_are_refused():
    with pytest.raises(ValueError, match="no queries"):
        stats.paired_bootstrap(np.zeros(0), resamples=100, confidence=0.95, rng=rng())
    with pytest.raises(ValueError, match="no queries"):
        stats.paired_randomisation(np.zeros((0, 3)), permutations=100, rng=rng())
