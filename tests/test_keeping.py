"""Which weights of a training are kept: no luck among near equals, and never what dev puts clearly below the best."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from rankwright.rooms.train import State
from rankwright.toolbox.keeping import Measured, clearly_below, stands


def followed(measured):
    """The places of what is kept after each of them."""
    state, kept = State(), []
    for place, one in enumerate(measured):
        if state.takes(one):
            state.kept, state.kept_step = one, place
        kept.append(state.kept_step)
    return kept


def order(mean, alone, *, noise=0.0, seed=0, queries=100):
    """A watched order with this mean; `noise` is how far its values stand apart from those of another seed."""
    values = np.random.default_rng(seed).normal(0, 1, queries)
    return Measured((mean + noise * (values - values.mean())).tolist(), [alone] * queries)


@pytest.mark.parametrize("seed", range(5))
def test_where_the_own_order_is_watched_the_highest_mean_is_kept_of_equals_the_first(seed):
    means = np.random.default_rng(seed).integers(0, 6, 12) / 10
    kept = followed([order(mean, mean, noise=1.0, seed=place) for place, mean in enumerate(means)])
    assert kept == [int(np.argmax(means[: count + 1])) for count in range(len(means))]


def test_among_served_orders_that_luck_tells_apart_the_better_reranker_is_kept():
    base = order(0.5764, 0.40, noise=0.03)
    trained = [
        order(mean, alone, noise=0.03, seed=1) for mean, alone in ((0.5750, 0.49), (0.5752, 0.52), (0.5758, 0.50))
    ]
    assert followed([base, *trained]) == [0, 1, 2, 2]


def test_what_dev_puts_clearly_below_the_best_is_not_kept_however_good_its_own_order_is():
    assert followed([order(0.58, 0.40, noise=0.03), order(0.55, 0.60, noise=0.03, seed=1)]) == [0, 0]


def test_what_is_kept_makes_way_once_it_is_clearly_below_the_best():
    near = order(0.575, 0.60, noise=0.03)
    assert followed([near, order(0.60, 0.50, noise=0.03, seed=1)]) == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_many_small_steps_down_lead_no_further_than_one(seed):
    rng = np.random.default_rng(seed)
    measured = [
        order(0.5 - 0.001 * place, 0.4 + 0.01 * place, noise=0.05, seed=int(rng.integers(1 << 30)))
        for place in range(30)
    ]
    for count, kept in enumerate(followed(measured)):
        best = max(measured[: count + 1], key=lambda one: one.mean)
        assert not clearly_below(measured[kept], best)


def test_scores_that_are_no_order_never_take_the_place_of_one():
    assert followed([order(0.3, 0.3, noise=0.1), Measured([0.0] * 100, [0.0] * 100)]) == [0, 0]


def test_a_state_that_was_written_down_is_read_again():
    state = State(kept=Measured([0.1, 0.2], [0.3, 0.0]), top=Measured([0.2, 0.2], [0.1, 0.1]))
    assert State(**json.loads(json.dumps(asdict(state)))) == state


@pytest.mark.parametrize(("mean", "alone", "kept"), [(0.57, 0.5, True), (0.54, 0.5, False), (0.58, 0.4, False)])
def test_an_average_stands_unless_dev_is_sure_that_it_is_worse_in_either_order(mean, alone, kept):
    best = order(0.575, 0.5, noise=0.05)
    assert stands(order(mean, alone, noise=0.05, seed=1), best) is kept
