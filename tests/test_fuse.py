"""Fusion, against the formulas worked out by hand and against pandas."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from rankwright.core import Run
from rankwright.toolbox.fuse import min_max, rrf, scale, simplex, standardised, weighted


def run_of(**queries):
    return Run.from_scores(queries)


@pytest.fixture
def random_runs():
    rng = np.random.default_rng(0)
    return [
        run_of(
            **{
                f"q{query}": {
                    f"d{document}": float(rng.normal()) for document in rng.choice(40, size=15, replace=False)
                }
                for query in range(5)
            }
        )
        for _ in range(3)
    ]


def table(run, query):
    return pd.Series(run.scores(query))


def test_rrf_adds_one_over_k_plus_rank():
    fused = rrf([run_of(q={"a": 9, "b": 5}), run_of(q={"b": 0.3, "c": 0.1})], k=60)
    assert fused.scores("q") == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62})
    assert fused.documents("q") == ["b", "a", "c"]


def test_rrf_equals_pandas_ranks(random_runs):
    fused = rrf(random_runs, k=10)
    for query in random_runs[0].rankings:
        ranks = pd.concat([table(run, query).rank(ascending=False) for run in random_runs], axis=1)
        expected = (1 / (10 + ranks)).sum(axis=1)
        assert fused.scores(query) == pytest.approx(expected.to_dict())


def test_documents_with_the_same_ranks_in_other_runs_tie_exactly_and_stand_by_id():
    names = ["c", "a", "b"]
    turned = [names[turn:] + names[:turn] for turn in range(3)]
    for order in itertools.permutations(turned):
        runs = [run_of(q={document: float(-rank) for rank, document in enumerate(ids)}) for ids in order]
        fused = rrf(runs, k=5)  # where plain sums differ by a bit, 1/6 + 1/7 + 1/8 by the order
        assert len(set(fused.scores("q").values())) == 1
        assert fused.documents("q") == ["a", "b", "c"]


def test_weighted_equals_pandas_min_max(random_runs):
    weights = [0.5, 0.2, 0.3]
    fused = weighted(random_runs, weights)
    for query in random_runs[0].rankings:
        scaled = [
            (scores - scores.min()) / (scores.max() - scores.min())
            for scores in (table(run, query) for run in random_runs)
        ]
        expected = pd.concat(scaled, axis=1).fillna(0).mul(weights).sum(axis=1)
        assert fused.scores(query) == pytest.approx(expected.to_dict())


def test_a_document_that_a_run_lacks_gets_nothing_from_it():
    fused = weighted([run_of(q={"a": 2, "b": 1}), run_of(q={"c": 7, "a": 3})], [1, 10])
    assert fused.scores("q") == {"c": 10.0, "a": 1.0, "b": 0.0}


def test_equal_scores_scale_to_one_each():
    assert min_max({"a": 4.0, "b": 4.0}) == {"a": 1.0, "b": 1.0}
    assert min_max({}) == {}


def test_a_query_that_one_run_lacks_is_fused_from_the_others():
    one, other = run_of(p={"a": 1}, q={"a": 1}), run_of(r={"b": 1}, q={"b": 2})
    for fused in (rrf([one, other]), weighted([one, other], [1, 1])):
        assert list(fused.rankings) == ["p", "q", "r"]
        assert fused.documents("r") == ["b"]
        assert fused.documents("q") == ["a", "b"]


def test_only_the_first_depth_documents_are_kept(random_runs):
    for fuse in (
        lambda depth: rrf(random_runs, depth=depth),
        lambda depth: weighted(random_runs, [1, 1, 1], depth=depth),
    ):
        assert fuse(4) == fuse(None).top(4)


def test_a_weight_too_few_is_a_mistake(random_runs):
    with pytest.raises(ValueError, match="argument"):
        weighted(random_runs, [1, 1])


def test_scores_are_standardised_by_their_own_scales():
    scales = [scale([1.0, 3.0]), scale([1.0, 3.0]), scale([0.1, 0.1, 0.1]), scale([])]
    assert scales[0] == (2.0, 1.0, 1.0)
    scores = np.array([4.0, np.nan, 0.1, 7.0], dtype=np.float32)
    assert standardised(scores, np.array(scales)).tolist() == [2.0, -1.0, 0.0, 0.0]
    assert standardised(np.zeros(0), np.zeros((0, 3))).shape == (0,)


def test_equal_scores_have_no_spread_whatever_rounding_leaves_of_them():
    own = [0.1 + 1e-17 * place for place in range(7)] + [np.nextafter(0.1, 1)]
    assert scale(own).spread == 0


@pytest.mark.parametrize(("parts", "steps"), [(1, 10), (2, 10), (3, 10), (4, 5)])
def test_the_simplex_holds_all_weights_that_sum_to_1_in_order(parts, steps):
    grid = itertools.product(range(steps + 1), repeat=parts)
    assert simplex(parts, steps) == [tuple(one / steps for one in some) for some in grid if sum(some) == steps]
