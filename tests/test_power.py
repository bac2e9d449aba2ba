from __future__ import annotations

import numpy as np
import pytest

from rankwright.toolbox.power import detectable, queries_needed


def differences(count, seed=0):
    return np.random.default_rng(seed).normal(0.02, 0.2, count)


def test_the_detectable_effect_is_2_8_standard_errors():
    values = differences(100)
    assert detectable(values) == pytest.approx(2.8016 * values.std(ddof=1) / 10, rel=1e-4)


def test_four_times_the_queries_detect_half_the_effect():
    values = differences(400)
    needed = queries_needed(values, detectable(values))
    assert needed in (400, 401)
    assert queries_needed(values, detectable(values) / 2) == pytest.approx(4 * needed, abs=4)


def test_a_negative_effect_needs_as_many_queries_as_a_positive_one():
    values = differences(50)
    assert queries_needed(values, -0.05) == queries_needed(values, 0.05)


def test_a_detectable_effect_is_found_in_four_of_five_draws():
    rng = np.random.default_rng(1)
    draws = rng.normal(0, 1, (4000, 200))
    effect = detectable(draws[0] / draws[0].std(ddof=1))
    found = np.abs((draws + effect).mean(axis=1)) > 1.96 / np.sqrt(200)
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_no_spread_and_no_effect_are_refused():
    with pytest.raises(ValueError, match="spread"):
        detectable(np.array([0.1]))
    with pytest.raises(ValueError, match="effect of 0"):
        queries_needed(differences(10), 0.0)
