"""Probing: groups and pairs drawn from a collection, and one loss a model."""

import math

import numpy as np
import pytest

from rankwright.core import Collection, Group, Run
from rankwright.errors import DataError, ModelError
from rankwright.toolbox import probe

DOCUMENTS = {f"d{number}": f"red apple {word}" for number, word in enumerate("car train boat plum pear".split())}
QUERIES = {"q": "red apple", "r": "fast boat", "s": "old car"}
QRELS = {"q": {"d0": 2, "d1": 1, "d2": 0}, "r": {"d3": 1, "d4": 0}, "s": {"d0": 0}}
COLLECTION = Collection(DOCUMENTS, QUERIES, {"dev": QRELS})


def run_of(**rankings):
    return Run(
        {query: tuple((doc, float(-place)) for place, doc in enumerate(docs)) for query, docs in rankings.items()}
    )


def group(query="red apple", labels=(1, 0), weights=()):
    documents = [f"red {word}" for word in "car train boat plum pear".split()[: len(labels)]]
    unknown = [math.nan] * len(labels)
    return Group("q", query, documents, documents, list(labels), unknown, ["given"] * len(labels), list(weights))


def test_a_group_is_one_relevant_and_the_first_that_are_not():
    run = run_of(q=["d1", "d4", "d2", "d0", "d3"], r=["d3", "d1", "d0", "d2"])
    groups = {found.query_id: found for found in probe.groups_of(COLLECTION, run, "dev", 10, negatives=2)}
    assert groups["q"].document_ids == ["d0", "d4", "d2"]
    assert groups["q"].labels == [2, 0, 0]
    assert groups["q"].documents[1] == "red apple pear"
    assert groups["r"].document_ids == ["d3", "d1", "d0"]
    assert "s" not in groups


def test_without_a_run_the_given_negatives_are_taken():
    groups = {found.query_id: found.document_ids for found in probe.groups_of(COLLECTION, None, "dev", 10)}
    assert groups == {"q": ["d0", "d2"], "r": ["d3", "d4"]}


def test_the_count_holds_and_does_not_depend_on_the_order_of_the_qrels():
    turned = Collection(DOCUMENTS, QUERIES, {"dev": dict(reversed(QRELS.items()))})
    one, other = (probe.groups_of(collection, None, "dev", 1) for collection in (COLLECTION, turned))
    assert len(one) == 1
    assert [found.query_id for found in one] == [found.query_id for found in other]


def test_a_split_without_anything_to_compare_is_refused():
    with pytest.raises(DataError, match="no test query"):
        probe.groups_of(COLLECTION, None, "test", 5)
    with pytest.raises(DataError, match="no dev query"):
        probe.groups_of(COLLECTION, run_of(), "dev", 5)


def test_pairs_are_half_relevant_and_no_more_than_asked_for():
    groups = [group(f"query {number}", (0, 1, 0)) for number in range(5)]
    pairs = probe.pairs_of(groups, 6)
    assert pairs[:2] == [("query 0", "red train"), ("query 0", "red car")]
    assert len(pairs) == 6


def test_logits_are_those_of_the_model(tiny_reranker):
    from rankwright import Reranker

    pairs = [("red apple", "fast car"), ("what is", "a boat")]
    found = probe.logits_of(tiny_reranker, pairs, device="cpu")
    assert found.dtype == np.float32
    assert found.tolist() == Reranker.load(tiny_reranker, device="cpu").score(pairs).tolist()


def test_the_loss_is_the_listwise_cross_entropy_of_each_group(tiny_reranker, monkeypatch):
    logits = np.array([1.0, 0.0, -1.0, 0.5, 2.0], dtype=np.float32)
    monkeypatch.setattr(probe, "logits_of", lambda *_, **__: logits)
    groups = [group(labels=(1, 0, 0)), group(labels=(0, 1))]
    one = -(1 - math.log(math.e + 1 + 1 / math.e))
    other = -(2 - math.log(math.exp(0.5) + math.exp(2)))
    assert probe.loss_of(tiny_reranker, groups) == pytest.approx((one + other) / 2, rel=1e-6)


def test_the_weights_of_negatives_count_and_groups_without_a_contrast_do_not(monkeypatch):
    monkeypatch.setattr(probe, "logits_of", lambda model, pairs, **_: np.zeros(len(pairs), dtype=np.float32))
    groups = [group(labels=(1, 0, 0), weights=(1, 0.5, 0.5)), group(labels=(0, 0)), group(labels=(1,))]
    assert probe.loss_of("m", groups) == pytest.approx(math.log(2))


def test_a_model_is_scored_at_the_asked_length(tiny_reranker):
    long = group("red apple " * 8)
    short, full = (probe.loss_of(tiny_reranker, [long], device="cpu", max_length=size) for size in (8, 64))
    assert short != full


def test_nothing_to_compare_is_refused_before_a_model_is_loaded():
    with pytest.raises(DataError, match="no group holds"):
        probe.loss_of("/nowhere", [group(labels=(1,)), group(labels=(0, 0))])


def test_a_broken_model_is_no_loss(monkeypatch):
    monkeypatch.setattr(probe, "logits_of", lambda model, pairs, **_: np.full(len(pairs), np.nan, dtype=np.float32))
    with pytest.raises(ModelError, match="not finite"):
        probe.loss_of("m", [group()])


def test_importing_it_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, rankwright.toolbox.probe; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
