"""Holes in labels: the estimate on made-up labels whose rate is known, and on inputs that say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.toolbox import holes


def made_up(*, apart, rate=0.4, share=0.3, count=20000, seed=0):
    """Scores of relevant and other candidates, so far apart; a share of the relevant, drawn blindly, is labelled."""
    rng = np.random.default_rng(seed)
    relevant = rng.random(count) < share
    scores = rng.normal(size=count) + apart * relevant
    return scores, relevant, relevant & (rng.random(count) < rate)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_the_holes_of_a_known_rate_are_found_again(rate):
    scores, relevant, labelled = made_up(apart=6, rate=rate)
    weights = holes.weights(scores, labelled)
    # Of all unlabelled ones, so many are relevant; and of those at a score, so many are.
    unlabelled = ~labelled
    assert (1 - weights[unlabelled]).sum() == pytest.approx(relevant[unlabelled].sum(), rel=0.05)
    between = unlabelled & (scores > 2.5) & (scores < 3.2)
    assert (1 - weights[between]).mean() == pytest.approx(relevant[between].mean(), abs=0.12)
    assert weights[unlabelled & relevant].mean() < 0.05
    assert weights[unlabelled & ~relevant].mean() > 0.97


def test_complete_labels_leave_negatives_their_weight():
    scores, relevant, _ = made_up(apart=8)
    assert holes.weights(scores, relevant).min() > 0.9


@pytest.mark.parametrize("apart", [0, 0.5, 2])
def test_where_scores_overlap_the_weights_still_fall_with_the_score_and_stay_between_0_and_1(apart):
    scores, _, labelled = made_up(apart=apart, count=3000)
    weights = holes.weights(scores, labelled)
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert (weights[labelled] == 1).all()
    falling = weights[~labelled][np.argsort(scores[~labelled])]
    assert (np.diff(falling) <= 0).all()
    assert falling[0] > falling[-1]


def test_the_estimate_errs_towards_relevant_where_scores_overlap():
    scores, relevant, labelled = made_up(apart=1.5)
    told = (1 - holes.weights(scores, labelled))[~labelled].sum()
    assert told > relevant[~labelled].sum()


def test_the_order_of_candidates_does_not_matter_and_equal_scores_weigh_the_same():
    scores, _, labelled = made_up(apart=2, count=2000)
    scores = scores.round(1)
    weights = holes.weights(scores, labelled)
    order = np.random.default_rng(1).permutation(len(scores))
    np.testing.assert_allclose(holes.weights(scores[order], labelled[order]), weights[order], rtol=0, atol=1e-12)
    for value in np.unique(scores):
        assert len(set(weights[(scores == value) & ~labelled].tolist())) <= 1


def test_too_few_labels_weigh_nothing():
    scores = np.linspace(-1, 1, 200)
    enough = np.arange(200) >= 200 - holes.ENOUGH - 5
    enough[-5:] = False
    fewer = enough & (np.cumsum(enough) > 1)
    assert (holes.weights(scores, fewer) == 1).all()
    assert (holes.weights(scores, enough)[-5:] < 1).all()


@pytest.mark.parametrize("count", [0, 1, 500])
def test_none_labelled_or_all_labelled_leaves_all_weights_at_1(count):
    scores = np.random.default_rng(0).normal(size=count)
    for labelled in (np.zeros(count, dtype=bool), np.ones(count, dtype=bool)):
        assert holes.weights(scores, labelled).tolist() == [1.0] * count


def test_scores_that_tell_nothing_apart_leave_all_weights_at_1():
    labelled = np.arange(100) < 50
    assert (holes.weights(np.zeros(100), labelled) == 1).all()
    assert (holes.weights(np.linspace(0, 1, 100), labelled) == 1).all()  # the labelled score lowest


def test_a_clean_cut_is_no_hole():
    scores = np.linspace(0, 1, 100)
    assert (holes.weights(scores, scores > 0.7) == 1).all()


def test_standardised_scores_have_mean_0_and_deviation_1_and_keep_their_order():
    scores = np.random.default_rng(0).normal(50, 3, size=40).astype(np.float32)
    made = holes.standardised(scores)
    assert made.dtype == np.float64
    assert made.mean() == pytest.approx(0, abs=1e-9)
    assert made.std() == pytest.approx(1)
    assert (np.argsort(made) == np.argsort(scores)).all()


@pytest.mark.parametrize("scores", [[], [3.0], [0.0, 0.0], [0.1, 0.1, 0.1]])
def test_equal_scores_are_all_standard(scores):
    assert holes.standardised(np.array(scores, dtype=np.float32)).tolist() == [0.0] * len(scores)
