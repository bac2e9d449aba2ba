"""The dev set that a training watches: the served order is the best blend of a coarse grid."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rankwright.core import Collection, Run
from rankwright.sections import DevSection
from rankwright.toolbox.devset import WEIGHTS, DevSet


def served_set(depth=30, **options):
    """Four dev queries whose retriever puts the relevant document second; and one dev query without candidates."""
    documents = {f"d{number}": f"text {number}" for number in range(4)}
    queries = {f"q{number}": f"query {number}" for number in range(5)}
    qrels = {"dev": {f"q{number}": {"d1": 1} for number in range(5)}}
    run = Run.from_scores({f"q{number}": {f"d{place}": 9.0 - place for place in range(4)} for number in range(4)})
    dev = DevSection(**{"watch": "served", "metric": "mrr@10", "depth": depth, **options})
    return DevSet.of(Collection(documents, queries, qrels), run, dev)


def scored(by_document):
    return lambda pairs: np.array([by_document[int(text.split()[1])] for _, text in pairs], dtype=np.float32)


def random_set(**options):
    documents = {f"d{number}": f"text {number}" for number in range(8)}
    rng = np.random.default_rng(3)
    queries = {f"q{number}": f"query {number}" for number in range(9)}
    qrels = {"dev": {query: dict.fromkeys(rng.choice(list(documents), 2), 1) for query in queries}}
    qrels["dev"]["q4"] = {"d1": 0}  # nothing to be found: it is not measured
    run = Run.from_scores({query: {document: rng.random() for document in documents} for query in queries})
    dev = DevSet.of(Collection(documents, queries, qrels), run, DevSection(metric="ndcg@10", **options))
    good = np.array([document in dev.qrels[query] for query, document in dev.ids])
    scores = (rng.random(len(dev.pairs)) + 0.5 * good).astype(np.float32)  # some use, and not all
    return dev, lambda pairs: scores


def test_the_served_order_is_the_best_blend_of_the_grid():
    """The retriever wants d0 d1 d2 d3, the reranker d3 d1 d0 d2: only a blend puts d1 first."""
    dev, score = served_set(), scored([1.0, 2.0, 0.0, 2.1])
    weight, values = dev.choose(score)
    assert 0 < weight < 1
    assert values.tolist() == dev.values(score).tolist()
    assert sorted(values.tolist()) == [0.0, 1.0, 1.0, 1.0, 1.0]
    reranked = served_set(watch="reranked")
    assert sorted(reranked.values(score).tolist()) == [0.0, 0.5, 0.5, 0.5, 0.5]
    assert reranked.choose(score)[0] == weight


def test_of_equally_good_weights_the_smallest_is_chosen():
    assert served_set().choose(scored([3.0, 2.0, 1.0, 0.0]))[0] == 0.0  # the retriever's order once more
    weight, values = served_set().choose(scored([0.0, 9.0, 0.0, 0.0]))
    assert 0 < weight < 1
    assert values.sum() == 4.0


def test_a_served_order_is_never_below_the_retrievers():
    assert served_set().measure(scored([3.0, 0.0, 2.0, 1.0])) == pytest.approx(4 * 0.5 / 5)
    assert served_set(depth=2).measure(scored([0.0, 9.0, 99.0, 99.0])) == pytest.approx(4 / 5)


@pytest.mark.parametrize("watch", ["served", "reranked"])
def test_scores_that_are_no_numbers_are_no_order_even_where_the_retrievers_is_good(watch):
    dev = served_set(watch=watch)
    assert dev.values(scored([0.0, math.nan, 0.0, 0.0])).tolist() == [0.0] * 5
    weight, values = dev.choose(scored([0.0, math.inf, 0.0, 0.0]))
    assert (weight, values.tolist()) == (0.0, [0.0] * 5)


def test_the_last_weight_of_the_grid_is_the_rerankers_own_order():
    dev, score = random_set()
    lists = replace(dev.lists, reranked=dev._laid(score(dev.pairs), dev.lists))
    expected = lists.measure(lists.order(WEIGHTS[-1], lists.width), "ndcg@10")
    np.testing.assert_allclose(dev.values(score), expected, atol=1e-12)


def test_the_chosen_weight_is_the_best_of_all_tried_one_by_one():
    dev, score = random_set(watch="served", depth=5)
    lists = replace(dev.lists, reranked=dev._laid(score(dev.pairs), dev.lists))
    means = {weight: lists.measure(lists.order(weight, 5), "ndcg@10").mean() for weight in WEIGHTS}
    weight, values = dev.choose(score)
    assert len(values) == 8
    assert values.mean() == means[weight] == max(means.values()) > means[0.0]


def test_a_query_without_anything_relevant_counts_in_no_order_good_or_bad():
    dev, score = random_set()
    assert len(dev.values(score)) == len(dev.values(lambda pairs: np.full(len(pairs), math.nan))) == 8


def test_a_set_without_the_retrievers_scores_has_no_served_order():
    with pytest.raises(ValueError, match="no served order"):
        replace(served_set(), lists=None).values(scored([0.0, 1.0, 2.0, 3.0]))
