"""Putting candidates into a scorer's order, and what becomes of those below the depth."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.core import Collection, Run
from rankwright.errors import ModelError
from rankwright.rooms.rerank import rerank

COLLECTION = Collection(
    documents={f"d{number}": f"text {number}" for number in range(9)},
    queries={"q1": "one", "q2": "two", "q3": "three"},
    qrels={},
)
RUN = Run.from_scores(
    {
        "q1": {"d1": 0.9, "d2": 0.8, "d3": 0.7, "d4": 0.6, "d5": 0.5},
        "q2": {"d6": 3.0, "d1": 2.0},
        "q3": {},
    }
)


def scorer_of(scores):
    """A scorer that looks a document's text up, and the pairs that it was asked for."""
    asked = []

    def score(pairs):
        asked.append(list(pairs))
        return np.array([scores[document] for _, document in pairs], dtype=np.float32)

    return score, asked


def test_the_first_candidates_stand_in_the_scorers_order_with_its_scores():
    score, asked = scorer_of({f"text {number}": number / 4 for number in range(9)})
    run = rerank(COLLECTION, RUN, score, depth=5)
    assert run.rankings["q1"] == (("d5", 1.25), ("d4", 1.0), ("d3", 0.75), ("d2", 0.5), ("d1", 0.25))
    assert run.documents("q2") == ["d6", "d1"]
    assert asked[0][0] == ("one", "text 1")
    assert len(asked) == 1


def test_only_candidates_within_the_depth_are_scored():
    score, asked = scorer_of({f"text {number}": 0.0 for number in range(9)})
    rerank(COLLECTION, RUN, score, depth=2)
    assert asked == [[("one", "text 1"), ("one", "text 2"), ("two", "text 6"), ("two", "text 1")]]


def test_those_below_keep_the_retrievers_order_underneath_a_whole_step_each():
    score, _ = scorer_of({"text 1": -7.5, "text 2": 4.0, "text 6": 0.0})
    run = rerank(COLLECTION, RUN, score, depth=2)
    expected = (("d2", 4.0), ("d1", -7.5), ("d3", -8.5), ("d4", -9.5), ("d5", -10.5))
    assert run.rankings["q1"] == expected


def test_a_run_is_in_order_by_its_scores_whatever_they_are():
    rng = np.random.default_rng(0)
    documents = {f"d{number:03}": f"text {number}" for number in range(200)}
    collection = Collection(documents, {"q": "query"}, {})
    for depth in (1, 7, 200, 1000):
        run = Run.from_scores({"q": dict(zip(documents, rng.normal(size=200).tolist(), strict=True))})
        score, _ = scorer_of({text: float(rng.normal(0, 1e4)) for text in documents.values()})
        found = rerank(collection, run, score, depth=depth)
        values = [value for _, value in found.rankings["q"]]
        assert values == sorted(values, reverse=True)
        assert found.documents("q")[depth:] == run.documents("q")[depth:]
        assert set(found.documents("q")[:depth]) == set(run.documents("q")[:depth])


def test_ties_are_broken_by_document_id():
    score, _ = scorer_of({f"text {number}": float(number == 4) for number in range(9)})
    assert rerank(COLLECTION, RUN, score, depth=5).documents("q1") == ["d4", "d1", "d2", "d3", "d5"]
    assert rerank(COLLECTION, RUN, score, depth=5).documents("q2") == ["d1", "d6"]


def test_a_query_without_candidates_stays_and_stays_empty():
    score, _ = scorer_of({f"text {number}": 1.0 for number in range(9)})
    run = rerank(COLLECTION, RUN, score, depth=3)
    assert list(run.rankings) == ["q1", "q2", "q3"]
    assert run.rankings["q3"] == ()
    assert rerank(COLLECTION, Run({}), lambda pairs: np.zeros(len(pairs), np.float32), depth=3) == Run({})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_with_their_count(bad):
    scores = {f"text {number}": 1.0 for number in range(9)}
    score, _ = scorer_of({**scores, "text 1": bad})
    with pytest.raises(ModelError, match="2 of 7 scores are not finite") as caught:
        rerank(COLLECTION, RUN, score, depth=5)
    assert caught.value.hint


def test_the_run_that_comes_in_is_not_changed():
    before = dict(RUN.rankings)
    score, _ = scorer_of({f"text {number}": float(number) for number in range(9)})
    rerank(COLLECTION, RUN, score, depth=5)
    assert RUN.rankings == before
