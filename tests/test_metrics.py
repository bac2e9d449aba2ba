"""Metrics against hand computations and scikit-learn; ties, missing queries and names."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from rankwright.core import Run
from rankwright.errors import ConfigError
from rankwright.toolbox import metrics

ALL = ["mrr@1", "mrr@10", "mrr", "recall@1", "recall@10", "ndcg@10", "ndcg", "map", "map@2", "precision@5", "success@5"]


def ranked(**queries):
    """A run that lists the documents as written, with scores that fall by one."""
    return Run({q: tuple((d, float(-rank)) for rank, d in enumerate(listed.split())) for q, listed in queries.items()})


def test_each_metric_is_what_a_hand_computes():
    qrels = {"q": {"b": 1, "d": 1, "z": 1, "a": 0}}
    found = metrics.per_query(ranked(q="a b c d e"), qrels, ALL)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    gain = (1 / math.log2(3) + 1 / math.log2(5)) / ideal
    expected = {
        "mrr@1": 0,
        "mrr@10": 1 / 2,
        "mrr": 1 / 2,
        "recall@1": 0,
        "recall@10": 2 / 3,
        "ndcg@10": gain,
        "ndcg": gain,
        "map": (1 / 2 + 2 / 4) / 3,
        "map@2": (1 / 2) / 3,
        "precision@5": 2 / 5,
        "success@5": 1,
    }
    assert {name: values[0] for name, values in found.items()} == pytest.approx(expected)


def test_a_cutoff_hides_what_comes_after_it():
    found = metrics.per_query(ranked(q="a b c d"), {"q": {"c": 1}}, ["mrr@2", "mrr@3", "recall@2", "recall@3"])
    assert {name: values[0] for name, values in found.items()} == pytest.approx(
        {"mrr@2": 0, "mrr@3": 1 / 3, "recall@2": 0, "recall@3": 1}
    )


def test_ndcg_equals_scikit_learn_with_grades():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    names = [f"d{number}" for number in range(30)]
    grades = rng.integers(0, 4, size=(25, 30))
    scores = rng.normal(size=(25, 30))
    grades[:, 0] = 1
    run = Run.from_scores({str(q): dict(zip(names, row.tolist(), strict=True)) for q, row in enumerate(scores)})
    qrels = {str(q): dict(zip(names, row.tolist(), strict=True)) for q, row in enumerate(grades)}
    found = metrics.per_query(run, qrels, ["ndcg@10"])["ndcg@10"]
    theirs = [ndcg_score(grades[[q]], scores[[q]], k=10) for q in range(25)]
    np.testing.assert_allclose(found, theirs, atol=1e-12)


def test_equal_scores_keep_the_order_of_the_run():
    run = Run.from_scores({"q": {"a": 1.0, "b": 1.0, "c": 1.0}})
    first, last = {"q": {"a": 1}}, {"q": {"c": 1}}
    for name in ("mrr@10", "map", "ndcg@10"):
        assert metrics.per_query(run, first, [name])[name][0] == 1.0
        assert metrics.per_query(run, last, [name])[name][0] < 1.0
    assert metrics.per_query(run, first, ["recall@1"])["recall@1"][0] == 1.0


def test_the_order_counts_even_where_it_disagrees_with_the_scores():
    run = Run({"q": (("a", 0.1), ("b", 0.9))})
    assert metrics.per_query(run, {"q": {"a": 1}}, ["mrr@10"])["mrr@10"][0] == 1.0


def test_a_query_that_the_run_lacks_scores_zero_in_its_place():
    qrels = {"x": {"a": 1}, "y": {"a": 1}, "z": {"a": 1}}
    run = Run({"z": (("a", 1.0),), "x": ()})
    assert {
        name: values.tolist() for name, values in metrics.per_query(run, qrels, ALL).items() if "n@" not in name
    } == {name: [0.0, 0.0, 1.0] for name in ALL if "n@" not in name}
    assert metrics.per_query(Run({}), qrels, ["map"])["map"].tolist() == [0.0, 0.0, 0.0]


def test_queries_without_a_relevant_document_are_not_measured():
    qrels = {"none": {"a": 0}, "some": {"a": 0, "b": 2}, "empty": {}}
    assert metrics.judged_queries(qrels) == ["some"]
    assert metrics.per_query(ranked(none="a", some="b", foreign="b"), qrels, ["map"])["map"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("mmr@10", "mrr@10"), ("NDCG@10", "ndcg@10"), ("rr@10", "mrr@10"), ("ap", "map"), ("recal@5", "recall@5")],
)
def test_an_unknown_metric_is_told_with_the_closest_one(wrong, meant):
    with pytest.raises(ConfigError, match=rf"{wrong}.*did you mean {meant}\?"):
        metrics.per_query(ranked(q="a"), {"q": {"a": 1}}, [wrong])


@pytest.mark.parametrize(
    "wrong", ["recall", "precision", "recall@", "mrr@0", "mrr@-1", "mrr@ten", "mrr@010", "map@1.5"]
)
def test_a_cutoff_that_is_missing_or_no_number_is_refused(wrong):
    with pytest.raises(ConfigError, match="needs a cutoff"):
        metrics.measure_name(wrong)


def test_labels_and_measures_carry_the_cutoff():
    assert [metrics.label(name) for name in ("mrr@10", "recall@100", "ndcg@10", "map")] == [
        "MRR@10",
        "Recall@100",
        "nDCG@10",
        "MAP",
    ]
    assert [metrics.measure_name(name) for name in ("mrr@10", "recall@5", "map")] == ["RR@10", "R@5", "AP"]


def test_a_repeated_metric_is_measured_once():
    assert list(metrics.per_query(ranked(q="a"), {"q": {"a": 1}}, ["map", "map"])) == ["map"]


def test_importing_loads_nothing_heavy():
    modules = "rankwright.rooms.evaluate, rankwright.rooms.report"
    heavy = "('ir_measures', 'scipy', 'pandas', 'pyarrow', 'torch', 'jinja2', 'rich')"
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
