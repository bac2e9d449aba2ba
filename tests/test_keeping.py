"""Which weights of a training are kept: no luck among near equals, and never what dev is sure is worse."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from rankwright.rooms.train import State
from rankwright.toolbox.keeping import ERROR, Measured, average_takes, higher, takes
from rankwright.toolbox.stats import surely_positive


def followed(measured, *, served):
    """The places of what is kept after each of them."""
    kept, top, places = 0, measured[0], [0]
    for place, new in enumerate(measured[1:], start=1):
        top = new if higher(new, top) else top
        kept = place if takes(new, measured[kept], top, served=served) else kept
        places.append(kept)
    return places


def order(mean, alone, *, noise=0.0, blur=0.0, seed=0, queries=100):
    """What dev says, with these means; `noise` and `blur` are how far the values of two seeds stand apart in each."""
    values, own = np.random.default_rng(seed).normal(0, 1, (2, queries))
    return Measured((mean + noise * (values - values.mean())).tolist(), (alone + blur * (own - own.mean())).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_where_the_own_order_is_watched_the_highest_mean_is_kept_of_equals_the_first(seed):
    means = np.random.default_rng(seed).integers(0, 6, 12) / 10
    kept = followed([order(mean, mean, noise=1.0, seed=place) for place, mean in enumerate(means)], served=False)
    assert kept == [int(np.argmax(means[: count + 1])) for count in range(len(means))]


def test_among_served_orders_that_luck_tells_apart_the_last_is_kept():
    said = ((0.5764, 0.40), (0.5750, 0.49), (0.5752, 0.52), (0.5758, 0.50))
    measured = [order(mean, alone, noise=0.03, blur=0.3, seed=place) for place, (mean, alone) in enumerate(said)]
    assert followed(measured, served=True) == [0, 1, 2, 3]


@pytest.mark.parametrize(("mean", "alone"), [(0.55, 0.60), (0.58, 0.20)])
def test_what_dev_is_sure_is_worse_in_either_order_is_not_kept(mean, alone):
    measured = [order(0.58, 0.40, noise=0.03), order(mean, alone, noise=0.03, blur=0.3, seed=1)]
    assert followed(measured, served=True) == [0, 0]


@pytest.mark.parametrize("seed", range(10))
def test_many_small_steps_down_lead_no_further_than_one(seed):
    draws = np.random.default_rng(seed).integers(1 << 30, size=30).tolist()
    measured = [order(0.5 - 0.002 * place, 0.4, noise=0.05, seed=draw) for place, draw in enumerate(draws)]
    kept = followed(measured, served=True)[-1]
    best = np.array(max(measured, key=lambda one: one.mean).values)
    assert not surely_positive(best - np.array(measured[kept].values), error=ERROR, draws=2000)
    assert kept < 20


def test_scores_that_are_no_order_never_take_the_place_of_one():
    for served in (True, False):
        assert followed([order(0.3, 0.3, noise=0.1), Measured([0.0] * 100, [0.0] * 100)], served=served) == [0, 0]


def test_a_state_that_was_written_down_is_read_again():
    state = State(kept=Measured([0.1, 0.2], [0.3, 0.0]), top=Measured([0.2, 0.2], [0.1, 0.1]))
    assert State(**json.loads(json.dumps(asdict(state)))) == state


@pytest.mark.parametrize(
    ("mean", "alone", "served", "kept"),
    [
        (0.58, 0.5, True, False),
        (0.60, 0.5, True, True),
        (0.60, 0.3, True, False),  # in its own order it is worse
        (0.55, 0.5, True, False),
        (0.58, 0.58, False, True),
        (0.57, 0.57, False, False),
    ],
)
def test_an_average_of_served_orders_is_kept_where_dev_is_sure_of_it(mean, alone, served, kept):
    best = order(0.575, 0.5, noise=0.05)
    assert average_takes(order(mean, alone, noise=0.05, seed=1), best, served=served) is kept
