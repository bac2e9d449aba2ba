from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from rankwright import sections
from rankwright.core import Collection, Run
from rankwright.rooms.diagnose import orders
from rankwright.rooms.diagnose.case import Case, Chosen

CHECKS = [orders.discarded, orders.too_deep, orders.ties, orders.cut, orders.nothing_to_win, orders.too_few]


def case(retrieved, reranked, grades, depth=None, **more):
    """Arrays (queries, candidates) of scores, the retriever's descending; grades -1 are not judged."""
    ids = [f"d{column:03d}" for column in range(len(retrieved[0]))]
    both = [
        Run.from_scores({f"q{q}": dict(zip(ids, map(float, row), strict=True)) for q, row in enumerate(scores)})
        for scores in (retrieved, reranked)
    ]
    qrels = {f"q{q}": {d: int(g) for d, g in zip(ids, row, strict=True) if g >= 0} for q, row in enumerate(grades)}
    return Case(*both, qrels, depth=depth or len(ids), metric="mrr@10", resamples=200, **more)


def drawn(queries=60, width=100, seed=0):
    rng = np.random.default_rng(seed)
    retrieved = np.tile(np.arange(width, 0, -1.0), (queries, 1))
    grades = np.full((queries, width), -1)
    return rng, retrieved, grades


def texts(queries, width=100, words="text"):
    return Collection(
        {f"d{column:03d}": f"{words} {column}" for column in range(width)},
        {f"q{q}": f"query {q}" for q in range(queries)},
        {},
    )


def like_retrieval(queries=60, width=100, place=0):
    _, retrieved, grades = drawn(queries, width)
    grades[:, place] = 1
    return case(retrieved, retrieved, grades)


def noisy_halves(queries=200):
    """Two noisy views of relevance: their mean is better than either."""
    rng, _, grades = drawn(queries, 20)
    grades[:, 0] = 1
    truth = np.where(grades > 0, 2.0, 0.0)
    views = [truth + rng.normal(0, 1.0, truth.shape) for _ in range(2)]
    order = np.argsort(-views[0], axis=1)
    return case(*(np.take_along_axis(a, order, axis=1) for a in (*views, grades)))


def valid(finding):
    """The remedy is YAML that an experiment takes."""
    change = yaml.safe_load(finding.remedy)
    base = {"data": {}, "retrieve": {"b": {"kind": "bm25"}}}
    sections.Experiment.model_validate({**base, **change})
    return change


def test_a_blend_that_beats_the_reranked_order_fires_and_says_its_weight():
    finding = orders.discarded(noisy_halves())
    assert finding.fires
    assert finding.numbers[0].low > 0
    assert valid(finding) == {"blend": {}}
    assert "weight 0." in finding.remedy
    assert "each query by itself" in finding.reading


def test_a_worthless_reranker_is_not_to_rerank():
    rng, retrieved, grades = drawn()
    grades[:, 0] = 1
    finding = orders.discarded(case(retrieved, rng.normal(size=retrieved.shape), grades))
    assert finding.fires
    assert valid(finding) == {"rerank": None}
    assert "do not rerank" in finding.reading
    assert finding.severity == pytest.approx(min(100, finding.numbers[0].value / 0.01))


def test_what_dev_chose_is_taken_before_anything_is_fitted():
    at = replace(noisy_halves(), chosen=Chosen(0.4, 5, 0.02, 0.01, 0.03))
    finding = orders.discarded(at)
    assert finding.fires
    assert finding.numbers[0].value == 0.02
    assert "weight 0.40 at depth 5" in finding.reading
    assert not orders.discarded(replace(at, chosen=Chosen(0.4, 5, 0.02, -0.01, 0.05))).fires
    assert not orders.discarded(replace(at, chosen=Chosen(1.0, 5, 0.02, 0.01, 0.03))).fires


def test_a_reranker_that_needs_no_blend_is_quiet():
    rng, retrieved, grades = drawn()
    for row in grades:
        row[rng.integers(0, 30)] = 1
    finding = orders.discarded(case(retrieved, np.where(grades > 0, 5.0, 0.0) + retrieved / 1e3, grades))
    assert not finding.fires
    assert finding.reading
    assert not finding.remedy


def bad_tail(queries=60):
    """Right in the first 20, and lifting worthless documents from the tail."""
    rng, retrieved, grades = drawn(queries)
    scores = rng.normal(0, 1, retrieved.shape)
    scores[:, 20:] += 3
    for q, row in enumerate(grades):
        row[place := int(rng.integers(0, 15))] = 1
        scores[q, place] = 4.0
    scores[:, 60:] += 2
    return case(retrieved, scores, grades)


def test_worthless_documents_from_the_tail_fire_the_depth_check():
    finding = orders.too_deep(bad_tail())
    assert finding.fires
    assert finding.numbers[0].low > 0
    assert valid(finding) == {"rerank": {"depth": 20}}
    assert "from below rank 50" in finding.reading
    assert "0.0% are relevant" in finding.reading


def test_a_reranker_that_finds_what_lies_deep_is_quiet():
    rng, retrieved, grades = drawn()
    for row in grades:
        row[rng.integers(0, 100)] = 1
    finding = orders.too_deep(case(retrieved, np.where(grades > 0, 9.0, 0) + retrieved / 1e3, grades))
    assert not finding.fires
    assert finding.numbers[0].value == 0


def test_a_shallow_depth_has_nothing_below_it():
    at = like_retrieval(width=5)
    assert not orders.too_deep(at).fires
    assert "lifts no document from below rank 10" in orders.too_deep(at).reading


def test_equal_scores_of_neighbours_fire():
    rng, retrieved, grades = drawn()
    grades[:, 0] = 1
    finding = orders.ties(case(retrieved, np.round(rng.normal(size=retrieved.shape), 1), grades))
    assert finding.fires
    assert valid(finding) == {"rerank": {"precision": "exact"}}
    assert "precision was not compared" in finding.reading


def test_copies_may_share_a_score():
    _, retrieved, grades = drawn(5, 4)
    grades[:, 0] = 1
    scores = np.tile([4.0, 4.0, 2.0, 1.0], (5, 1))
    same = Collection({"d000": "a  b", "d001": "a b ", "d002": "c", "d003": "d"}, {}, {})
    at = case(retrieved, scores, grades)
    assert orders.ties(at).numbers[0].value == pytest.approx(1 / 3)
    quiet = orders.ties(replace(at, collection=same))
    assert not quiet.fires
    assert "0 of 10 neighbours" in quiet.reading


def test_ties_below_the_depth_do_not_count():
    _, retrieved, grades = drawn(5, 8)
    grades[:, 0] = 1
    scores = np.tile([8.0, 7, 6, 5, 1, 1, 1, 1], (5, 1))
    assert orders.ties(case(retrieved, scores, grades)).fires
    assert not orders.ties(case(retrieved, scores, grades, depth=4)).fires


def exact(pairs):
    return np.array([float(document.split()[-1]) for _, document in pairs], dtype=np.float32)


def test_low_precision_that_changes_the_order_fires():
    asked = []

    def coarse(pairs):
        asked.append(len(pairs))
        return np.round(exact(pairs) / 7)

    at = replace(like_retrieval(30), collection=texts(30), exact=exact)
    finding = orders.ties(replace(at, score=coarse))
    assert finding.fires
    assert finding.numbers[1].value < 0.995
    assert asked == [100] * 20
    assert not orders.ties(replace(at, score=exact)).fires
    none = orders.ties(replace(at, score=lambda pairs: np.zeros(len(pairs), np.float32)))
    assert not none.fires
    assert "not compared" in none.reading


def long_and_bad(harm, queries=40):
    """The relevant candidate of every other query is long; reranking moves it down by `harm` ranks."""
    _, retrieved, grades = drawn(queries, 10)
    grades[0::2, 0] = 1
    grades[1::2, 1] = 1
    scores = retrieved.copy()
    scores[0::2, 0] -= harm + 0.5 if harm else 0
    collection = texts(queries, 10)
    collection.documents["d000"] = "long " * 50
    count = lambda pairs: np.array([len(f"{q} {d}".split()) for q, d in pairs])  # noqa: E731
    return replace(case(retrieved, scores, grades), collection=collection, tokens=count, max_length=20)


def test_long_pairs_that_fare_worse_fire_with_twice_the_limit():
    finding = orders.cut(long_and_bad(3))
    assert finding.fires
    assert finding.numbers[0].value == pytest.approx(0.1)
    assert finding.numbers[1].value == pytest.approx(1 / 4 - 1)
    assert valid(finding) == {"rerank": {"max_length": 40}}


def test_long_pairs_that_fare_no_worse_are_quiet():
    assert not orders.cut(long_and_bad(0)).fires
    short = orders.cut(replace(long_and_bad(3), max_length=100))
    assert not short.fires
    assert "no query has a relevant candidate that is cut" in short.reading


def test_the_cut_reads_no_more_queries_than_the_sample():
    asked = []

    def count(pairs):
        asked.append(len(pairs))
        return np.ones(len(pairs), dtype=np.int64)

    orders.cut(replace(long_and_bad(3), tokens=count, sample=7))
    assert asked == [70]


def test_the_cut_says_what_it_lacks():
    at = long_and_bad(3)
    assert "tokenizer" in orders.cut(replace(at, tokens=None)).lacks
    assert "texts" in orders.cut(replace(at, collection=Collection({}, {}, {}))).lacks


def test_relevant_documents_in_front_already_leave_nothing_to_win():
    rng, retrieved, grades = drawn()
    grades[:, 0] = 1
    finding = orders.nothing_to_win(case(retrieved, rng.normal(size=retrieved.shape), grades))
    assert finding.fires
    assert "fuse" in finding.remedy
    assert valid(finding)
    assert orders.nothing_to_win(like_retrieval()).fires  # no width and no room


def test_room_among_the_candidates_is_quiet():
    at = noisy_halves(400)
    assert not orders.nothing_to_win(at).fires
    same = orders.nothing_to_win(like_retrieval(place=7))  # no width but room
    assert not same.fires
    assert "+0.8750" in same.reading
    assert "+0.0000" in orders.nothing_to_win(replace(like_retrieval(place=7), depth=5)).reading


def test_a_difference_smaller_than_the_detectable_one_fires_with_how_many_more():
    at = noisy_halves(30)
    finding = orders.too_few(at)
    assert finding.fires
    assert finding.numbers[0].value > 1
    assert "more settle it" in finding.reading
    assert valid(finding)


def test_a_clear_difference_is_quiet_and_so_is_none_at_all():
    rng, retrieved, grades = drawn(200)
    for row in grades:
        row[rng.integers(0, 100)] = 1
    clear = orders.too_few(case(retrieved, np.where(grades > 0, 9.0, 0) + retrieved / 1e3, grades))
    assert not clear.fires
    assert clear.numbers[0].value < 1
    none = orders.too_few(like_retrieval())
    assert not none.fires
    assert none.reading


def test_differences_that_cancel_out_are_never_settled():
    _, retrieved, grades = drawn(2, 2)
    grades[0, 0] = grades[1, 1] = 1
    finding = orders.too_few(case(retrieved, retrieved[:, ::-1], grades))
    assert finding.fires
    assert np.isfinite(finding.numbers[0].value)
    assert "no number of queries" in finding.reading


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_without_a_judged_query_a_check_says_what_it_lacks(check):
    at = replace(long_and_bad(1), qrels={"q0": {"d000": 0}})
    finding = check(at)
    assert finding.lacks
    assert not finding.fires


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_is_deterministic_and_reads_one_query_too(check):
    at = replace(noisy_halves(50), collection=texts(50, 20), tokens=lambda pairs: np.ones(len(pairs)))
    assert check(at) == check(at)
    one = check(replace(at, qrels={"q3": at.qrels["q3"]}))
    assert one.reading or one.lacks
    assert not one.fires or check is orders.nothing_to_win
