from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rankwright.core import Collection, Run
from rankwright.rooms.diagnose.case import Case, Chosen
from rankwright.rooms.diagnose.crossfit import blend_settings, crossfit
from rankwright.rooms.diagnose.ladder import Ladder, Rung, ladder


def made(retrieved, reranked, qrels, documents=None, queries=None, **more):
    """Lists of document ids, best first, for each query."""
    runs = [
        Run.from_scores({q: {d: float(-place) for place, d in enumerate(row)} for q, row in run.items()})
        for run in (retrieved, reranked)
    ]
    depth = max(len(row) for row in retrieved.values())
    return Case(*runs, qrels, **{"depth": depth, "metric": "mrr@10", **more}, collection=_texts(documents, queries))


def _texts(documents, queries):
    return Collection(documents or {}, queries or {}, {})


def random_case(seed=0, queries=40, width=30, **more):
    rng = np.random.default_rng(seed)
    ids = [f"d{n}" for n in range(width)]
    retrieved = {f"q{q}": list(rng.permutation(ids)) for q in range(queries)}
    reranked = {q: list(rng.permutation(row)) for q, row in retrieved.items()}
    qrels = {q: {d: int(rng.random() < 0.3) for d in row if rng.random() < 0.4} for q, row in retrieved.items()}
    documents = {d: f"text {n // 2 if n < 8 else n}" for n, d in enumerate(ids)}
    texts = {q: f"text {n}" if n < 20 else f"query {n // 2}" for n, q in enumerate(retrieved)}
    return made(retrieved, reranked, qrels, documents, texts, **more)


def copies_only():
    """Each relevant document stands behind two copies of itself that are not labelled, in the reranked list only."""
    retrieved = {f"q{n}": [f"q{n}-good", f"q{n}-copy", f"q{n}-twin", f"q{n}-other"] for n in range(10)}
    reranked = {q: [row[1], row[2], row[0], row[3]] for q, row in retrieved.items()}
    qrels = {q: {row[0]: 1} for q, row in retrieved.items()}
    documents = {d: q if d != row[3] else d for q, row in retrieved.items() for d in row}
    return made(retrieved, reranked, qrels, documents, {q: f"what is {q}" for q in retrieved})


def holes_only():
    """The reranker lifts what nobody has judged, and is right among what is."""
    retrieved = {f"q{n}": ["good", "bad", "worse", "hole1", "hole2"] for n in range(10)}
    reranked = {q: ["hole1", "hole2", "good", "bad", "worse"] for q in retrieved}
    qrels = {q: {"good": 1, "bad": 0, "worse": 0} for q in retrieved}
    documents = {d: d for d in retrieved["q0"]}
    return made(retrieved, reranked, qrels, documents, {q: f"query {q}" for q in retrieved})


def bad_tail_only():
    """The reranker is right among the first five and lifts worthless documents from below."""
    retrieved = {f"q{n}": [f"d{k}" for k in range(12)] for n in range(10)}
    reranked = {q: [*row[9:], *row[:9]] for q, row in retrieved.items()}
    return made(retrieved, reranked, {q: {"d0": 1} for q in retrieved})


@pytest.mark.parametrize("chosen", [None, Chosen(0.3, 10, 0.0, 0.0, 0.0), Chosen(0.0, 5, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("metric", ["mrr@10", "ndcg@10", "map"])
def test_the_rungs_and_what_is_left_add_up_to_the_gap(chosen, metric):
    told = ladder(random_case(chosen=chosen, metric=metric, depth=25))
    assert [rung.name for rung in told.rungs] == ["cleaned", "condensed", "best depth", "blended"]
    assert sum(rung.gap for rung in told.rungs) + told.residual == pytest.approx(told.gap, abs=1e-12)
    assert sum(rung.share for rung in told.rungs) + told.residual / told.gap == pytest.approx(1)
    assert any(abs(rung.gap) > 1e-3 for rung in told.rungs[:2])


def test_the_gap_is_reranked_minus_retrieved_as_served():
    told = ladder(copies_only())
    assert told.gap == pytest.approx(1 / 3 - 1)


@pytest.mark.parametrize(
    ("case", "name"),
    [(copies_only(), "cleaned"), (holes_only(), "condensed"), (bad_tail_only(), "best depth")],
    ids=["copies", "holes", "tail"],
)
def test_a_planted_cause_lands_on_its_rung(case, name):
    told = ladder(case)
    assert told.gap < -0.1
    assert {rung.name: round(rung.share, 9) for rung in told.rungs if abs(rung.gap) > 1e-12} == {name: 1.0}
    assert told.residual == pytest.approx(0, abs=1e-12)


def test_a_document_that_is_the_query_explains_the_gap():
    retrieved = {"q1": ["good", "self", "other"]}
    reranked = {"q1": ["self", "good", "other"]}
    documents = {"good": "a b", "self": "the  query", "other": "c"}
    told = ladder(made(retrieved, reranked, {"q1": {"good": 1}}, documents, {"q1": "the query"}))
    assert told.gap == -0.5
    assert told.rungs[0].share == 1


def test_labels_of_twin_queries_are_united():
    retrieved = {"q1": ["a", "b"], "q2": ["b", "a"]}
    reranked = {"q1": ["b", "a"], "q2": ["b", "a"]}
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}}
    told = ladder(made(retrieved, reranked, qrels, {"a": "x", "b": "y"}, {"q1": "same  text", "q2": "same text"}))
    assert told.gap == -0.25
    assert told.rungs[0].share == 1


def test_what_only_a_blend_can_mend_lands_on_the_blend():
    told = ladder(replace(random_case(), chosen=Chosen(0.0, 5, 0.0, 0.0, 0.0)))
    assert told.rungs[-1].name == "blended"
    assert told.residual == pytest.approx(0, abs=1e-12)  # weight 0 is retrieval
    assert "weight 0 for the reranker (chosen on dev)" in told.rungs[-1].said


def test_what_dev_chose_is_used():
    told = ladder(replace(bad_tail_only(), chosen=Chosen(1.0, 10, 0.0, 0.0, 0.0)))
    assert "10 (chosen on dev) instead of 12" in told.rungs[0].said
    assert told.rungs[0].share == pytest.approx((1 / 2 - 1 / 4) / (1 - 1 / 4))


def test_a_negative_grade_is_a_judgement():
    holes = holes_only()
    worse = {q: {d: grade or -2 for d, grade in grades.items()} for q, grades in holes.qrels.items()}
    assert ladder(replace(holes, qrels=worse)).rungs == ladder(holes).rungs


def test_skipped_rungs_say_why():
    told = ladder(bad_tail_only())
    assert [rung.name for rung in told.rungs] == ["best depth", "blended"]
    assert any("cleaned: it needs the texts" in why for why in told.skipped)
    assert any("condensed: 0.00 candidates a query" in why for why in told.skipped)
    assert all(f"not on the ladder: {why}" in told.lines() for why in told.skipped)


def test_the_closed_pool_stands_beside_the_ladder():
    told = ladder(copies_only(), closed=0.0123)
    assert told.closed_pool == 0.0123
    assert told.lines()[1].endswith("on the closed pool: +0.0123")
    assert not any("closed pool" in why for why in told.skipped)
    assert any("closed pool" in why for why in ladder(copies_only()).skipped)


def test_a_run_equal_to_retrieval_has_no_gap_and_no_shares():
    case = random_case()
    told = ladder(replace(case, reranked=case.retrieved))
    assert told.gap == 0
    assert all(rung.share is None for rung in told.rungs)
    assert all("of no gap in MRR@10" in line for line in told.lines()[1 : len(told.rungs) + 2])


def test_lines_and_json_tell_the_same():
    told = ladder(copies_only())
    assert any(line.startswith("of the gap of -0.6667 MRR@10, 100% is copies") for line in told.lines())
    values = json.loads(json.dumps(told.values(), allow_nan=False))
    assert values["gap"] == told.gap
    assert values["rungs"][0]["share"] == told.rungs[0].share
    assert values["residual_share"] == told.residual / told.gap


def test_without_judged_queries_there_is_no_gap():
    told = ladder(replace(copies_only(), qrels={"q1": {"d": 0}}))
    assert (told.gap, told.rungs) == (0.0, ())
    assert len(told.skipped) == 5


def test_the_same_case_gives_the_same_ladder():
    assert ladder(random_case()) == ladder(random_case())


def test_no_query_chooses_its_own_weight():
    """One query alone likes weight 0: it must not get it, and the other half must not keep its own choice."""
    liking = {(1.0, 5): [0.5, 0.5], (0.0, 5): [1.0, 0.0]}
    fitted = crossfit([(1.0, 5), (0.0, 5)], lambda w, k: np.array(liking[w, k]), np.random.default_rng(0))
    assert fitted.values.tolist() == [0.5, 0.0]


def test_one_query_keeps_what_is_served_and_equals_do_too():
    only = crossfit([(1.0, 5), (0.0, 5)], lambda w, _: np.array([1 - w]), np.random.default_rng(0))
    assert only.values.tolist() == [0.0]
    assert only.best == (0.0, 5)
    equal = crossfit(blend_settings(20), lambda w, _: np.array([0.3, 0.1 + 0.2]), np.random.default_rng(0))
    assert equal.best == (1.0, 20)
    assert len(blend_settings(20)) == 61


def test_a_gap_that_prints_as_nothing_has_no_shares():
    told = ladder(random_case())
    assert replace(told, gap=4e-5).values()["residual_share"] is None
    assert replace(told, gap=6e-5).values()["residual_share"] is not None


def test_a_lead_is_told_in_numbers_without_shares():
    told = Ladder("ndcg@10", 0.01, (Rung("blended", -0.02, -2.0, "the retriever's score"),), 0.03, None, ()).lines()
    assert "of the lead, -0.0200 is the retriever's score" in told
    assert not any("%" in line for line in told)
