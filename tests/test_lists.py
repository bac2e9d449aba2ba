"""Lists: arrays that must say what Runs and ir_measures say."""

import numpy as np
import pytest

from rankwright.core import Run
from rankwright.errors import ConfigError
from rankwright.toolbox.lists import Lists, blend_scores, measure_grades
from rankwright.toolbox.metrics import per_query


def worlds(seed=0, queries=40):
    """Runs with ties, gaps and empty queries, and graded qrels."""
    rng = np.random.default_rng(seed)
    first, second, qrels = {}, {}, {}
    for number in range(queries):
        ids = [f"d{place}" for place in rng.permutation(60)[: rng.integers(0, 30)]]
        first[f"q{number}"] = {document: float(rng.integers(0, 8)) for document in ids}
        second[f"q{number}"] = {document: float(rng.integers(0, 8)) for document in ids if rng.random() < 0.9}
        qrels[f"q{number}"] = {f"d{place}": int(rng.integers(0, 3)) for place in rng.permutation(60)[:12]}
    return Run.from_scores(first), Run.from_scores(second), qrels


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("depth", [5, 20, 100])
@pytest.mark.parametrize("metric", ["mrr@10", "mrr", "ndcg@10", "ndcg", "map", "recall@5", "precision@5", "success@3"])
def test_metrics_are_those_of_ir_measures_on_the_same_run(weight, depth, metric):
    retrieved, reranked, qrels = worlds()
    lists = Lists.of(retrieved, reranked, qrels, depth=20)
    own = lists.measure(lists.order(weight, depth), metric)
    np.testing.assert_allclose(own, per_query(lists.run(weight, depth), qrels, [metric])[metric], atol=1e-12)


def test_weight_0_is_the_retriever_and_weight_1_the_reranker():
    retrieved, reranked = (
        Run.from_scores({"q": {"a": 3, "b": 2, "c": 1}}),
        Run.from_scores({"q": {"a": 1, "b": 2, "c": 9}}),
    )
    lists = Lists.of(retrieved, reranked, {"q": {"a": 1}})
    assert lists.run(0, 3) == retrieved
    assert lists.run(1, 3).documents("q") == ["c", "b", "a"]
    assert lists.run(1, 2).documents("q") == ["b", "a", "c"]


def test_a_candidate_without_a_rerankers_score_stays_underneath_in_the_retrievers_order():
    retrieved = Run.from_scores({"q": {"a": 4, "b": 3, "c": 2, "d": 1}})
    reranked = Run.from_scores({"q": {"b": 0, "d": 5}})
    lists = Lists.of(retrieved, reranked, {"q": {"a": 1}})
    assert lists.run(1, 4).documents("q") == ["d", "b", "a", "c"]


def test_ties_go_by_document_id_as_in_a_run():
    retrieved = Run.from_scores({"q": {"b": 2, "a": 1}})
    lists = Lists.of(retrieved, Run.from_scores({"q": {"a": 5, "b": 5}}), {"q": {"a": 1}})
    assert lists.run(1, 2).documents("q") == ["a", "b"]


def test_scores_go_down_so_that_the_run_reads_back_in_the_same_order():
    retrieved, reranked, qrels = worlds(3)
    run = Lists.of(retrieved, reranked, qrels, depth=10).run(0.4, 10)
    again = Run.from_scores({query: run.scores(query) for query in run.rankings})
    assert again == run


def test_one_list_blends_as_many_do():
    retrieved, reranked = [5.0, 4.0, 1.0], [0.0, 3.0, 2.0]
    both = [(np.array(scores) - np.mean(scores)) / np.std(scores) for scores in (retrieved, reranked)]
    np.testing.assert_allclose(blend_scores(retrieved, reranked, 0.3), 0.7 * both[0] + 0.3 * both[1])


def test_equal_scores_have_no_spread_and_say_nothing():
    np.testing.assert_array_equal(blend_scores([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], 0.0), 0)


def test_some_queries_can_be_taken():
    retrieved, reranked, qrels = worlds()
    lists = Lists.of(retrieved, reranked, qrels)
    some = lists.take(np.array([3, 1]))
    whole = lists.measure(lists.order(0.5, 20), "map")
    np.testing.assert_array_equal(some.measure(some.order(0.5, 20), "map"), whole[[3, 1]])


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="unknown metric"):
        measure_grades(np.zeros((1, 1), dtype=int), np.zeros((1, 1), dtype=int), "bleu@4")
