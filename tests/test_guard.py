"""The guard: how lower precisions are compared with fp32, which are admitted, and what is said of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import ir_measures
import numpy as np
import pytest
from ir_measures import nDCG

from rankwright.toolbox.engine import guard
from rankwright.toolbox.engine.guard import Agreement, Decision, Judged, Sample, choose

LADDER = ["int8", "bf16", "torch fp32"]


def agreement(**figures):
    """Good in every way but for the figures given."""
    good = {"queries": 30, "pairs": 1500, "overlap": 0.99, "tau": 0.99, "labelled": 30, "change": 0.0, "error": 0.001}
    return Agreement(**{**good, "difference": 0.01, **figures})


def unlabelled(**figures):
    return agreement(labelled=0, change=None, error=None, **figures)


def run_of(queries, candidates):
    return [(f"query {query}", f"document {query} {place}") for query in range(queries) for place in range(candidates)]


def scores_of(pairs, noise=0.0):
    """Scores that the texts decide, and noise that they decide too."""
    exact = np.array([np.random.default_rng([*document.encode()]).normal() for _, document in pairs])
    shifts = np.array([np.random.default_rng([1, *document.encode()]).normal() for _, document in pairs])
    return (exact + noise * shifts).astype(np.float32)


# -------------------------------------------------------------------------------------------------------- agreement


def test_the_same_scores_agree_in_everything():
    scores = [np.array([3.0, 1.0, 2.0, 0.0, -1.0], dtype=np.float32)] * 10
    found = Agreement.of(scores, scores, [Judged([0, 1, 0, 0, 0], [1])] * 10)
    assert replace(found, tau=1.0) == Agreement(10, 50, 1.0, 1.0, 10, 0.0, 0.0, 0.0)
    assert found.tau == pytest.approx(1.0)
    assert found.admits("balanced")
    assert found.admits("fast")


def test_of_twelve_candidates_the_top_six_are_compared_and_of_a_hundred_the_top_ten():
    twelve = np.arange(12, dtype=np.float32)
    low = twelve.copy()
    low[[5, 6]] = low[[6, 5]]  # the sixth and the seventh change places
    assert Agreement.of([twelve], [low], [None]).overlap == pytest.approx(5 / 6)
    hundred = np.arange(100, dtype=np.float32)
    low = hundred.copy()
    low[[89, 90]] = low[[90, 89]]
    assert Agreement.of([hundred], [low], [None]).overlap == pytest.approx(9 / 10)


def test_ten_candidates_can_disagree():
    ten = np.arange(10, dtype=np.float32)
    assert Agreement.of([ten], [-ten], [None]).overlap == 0.0


def test_what_fp32_scores_alike_may_stand_in_for_each_other():
    exact = np.array([5.0, 1.0, 1.0, 0.0], dtype=np.float32)
    lower = np.array([5.0, 1.0, 1.1, 0.0], dtype=np.float32)
    assert Agreement.of([exact], [lower], [None]).overlap == 1.0


def test_tau_is_the_mean_over_the_lists_that_have_an_order():
    exact = [np.array([3, 2, 1], np.float32), np.array([3, 2, 1], np.float32), np.zeros(3, np.float32)]
    lower = [np.array([3, 2, 1], np.float32), np.array([3, 1, 2], np.float32), np.ones(3, np.float32)]
    assert Agreement.of(exact, lower, [None] * 3).tau == pytest.approx((1 + 1 / 3) / 2)
    assert Agreement.of(exact[2:], lower[2:], [None]).tau is None


def test_the_change_of_ndcg_is_that_of_ir_measures_with_relevant_documents_that_were_not_found():
    rng = np.random.default_rng(0)
    exact = [rng.normal(size=20).astype(np.float32) for _ in range(12)]
    lower = [(scores + rng.normal(size=20)).astype(np.float32) for scores in exact]
    grades = [rng.integers(0, 3, size=20) for _ in range(12)]
    judged = [Judged(own.tolist(), sorted([*own[own > 0].tolist(), 2, 1], reverse=True)) for own in grades]
    found = Agreement.of(exact, lower, judged)
    qrels = {
        str(query): {**{str(place): int(grade) for place, grade in enumerate(own)}, "far": 2, "away": 1}
        for query, own in enumerate(grades)
    }

    def values(lists):
        run = {str(q): {str(place): float(s) for place, s in enumerate(scores)} for q, scores in enumerate(lists)}
        return np.array([m.value for m in sorted(ir_measures.iter_calc([nDCG @ 10], qrels, run), key=lambda m: m[0])])

    change = values(lower) - values(exact)
    assert found.change == pytest.approx(change.mean())
    assert found.error == pytest.approx(change.std(ddof=1) / math.sqrt(12))
    assert found.labelled == 12


def test_the_change_over_fewer_than_ten_labelled_queries_is_not_told():
    scores = [np.arange(5, dtype=np.float32)] * 12
    judged = [Judged([1, 0, 0, 0, 0], [1])] * 9 + [None, None, Judged([0] * 5, [])]
    found = Agreement.of(scores, scores, judged)
    assert (found.labelled, found.change, found.error) == (9, None, None)
    assert "nDCG" not in found.said()


def test_a_score_that_is_not_finite_is_never_admitted():
    exact = [np.arange(5, dtype=np.float32)] * 2
    lower = [exact[0], np.array([0, 1, 2, np.nan, 4], np.float32)]
    found = Agreement.of(exact, lower, [None, None])
    assert found.difference == math.inf
    assert not found.admits("fast")
    assert found.refused("balanced") == "scores are not finite"


def test_lists_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="same lists"):
        Agreement.of([np.zeros(3, np.float32)], [np.zeros(2, np.float32)], [None])
    with pytest.raises(ValueError, match="same lists"):
        Agreement.of([], [], [])


# ------------------------------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize(
    ("found", "balanced", "fast"),
    [
        (agreement(overlap=0.95, change=-0.002), True, True),
        (agreement(overlap=0.949), False, True),
        (agreement(change=0.0021, error=1e-5), False, True),
        (agreement(change=-0.0021, error=1e-5), False, True),
        (agreement(change=0.005, overlap=0.9), False, True),
        (agreement(change=0.0, overlap=0.899), False, False),
        (agreement(change=-0.0051, error=1e-5), False, False),
        (unlabelled(overlap=0.95), True, True),
        (unlabelled(overlap=0.90), False, True),
        (unlabelled(overlap=0.899), False, False),
    ],
)
def test_each_word_has_its_thresholds_and_they_are_within(found, balanced, fast):
    assert (found.admits("balanced"), found.admits("fast")) == (balanced, fast)


@pytest.mark.parametrize(("word", "clear", "over"), [("balanced", 0.97, 0.003), ("fast", 0.95, 0.006)])
def test_what_chance_may_have_changed_counts_only_below_a_high_overlap(word, clear, over):
    for change in (over, -over):
        assert agreement(change=change, error=0.001, overlap=clear).admits(word)
        assert not agreement(change=change, error=0.0004, overlap=clear).admits(word)  # beyond chance
        below = agreement(change=change, error=0.001, overlap=clear - 0.001)
        assert not below.admits(word)
        assert below.unclear(word)


def test_only_a_change_near_its_threshold_is_unclear_and_only_where_nothing_else_refuses():
    assert agreement(change=0.004, error=0.001, overlap=0.96).unclear("balanced")
    assert not agreement(change=0.0041, error=0.001, overlap=0.96).unclear("balanced")
    assert not agreement(change=0.001, error=0.1, overlap=0.96).unclear("balanced")  # admitted
    assert not agreement(change=0.004, error=0.001, overlap=0.98).unclear("balanced")  # admitted
    assert not agreement(change=0.003, error=0.1, overlap=0.9).unclear("balanced")  # refused for another reason
    assert not unlabelled(overlap=0.9).unclear("balanced")


# ----------------------------------------------------------------------------------------------------------- sample


def test_the_sample_is_drawn_by_the_texts_and_not_by_their_order():
    pairs = run_of(60, 20)
    lists = [pairs[start : start + 20] for start in range(0, len(pairs), 20)]
    turned = [pair for one in reversed(lists) for pair in one]
    assert Sample.of(pairs) == Sample.of(turned)
    assert [ranking.query for ranking in Sample.of(pairs).rankings[:5]] != [one[0][0] for one in lists[:5]]


def test_candidates_are_the_first_fifty_as_asked_for_and_copies_count_once():
    pairs = run_of(40, 70)
    sample = Sample.of([*pairs, *pairs])
    assert sample.pairs == 2800
    first = sample.rankings[0]
    assert list(first.documents) == [document for query, document in pairs if query == first.query][:50]


def test_short_lists_are_not_compared():
    pairs = run_of(40, 4)
    assert not Sample.of(pairs).rankings
    assert not Sample.of(pairs).worth
    assert (
        len(Sample.of([*pairs, *((f"other {q}", f"text {q} {p}") for q in range(12) for p in range(5))]).rankings) == 12
    )


def test_queries_with_labels_come_first_and_know_their_relevant_documents_that_were_not_found():
    pairs = run_of(60, 20)
    labels = {f"query {q}": {f"document {q} 3": 2, "elsewhere": 1, f"document {q} 4": 0} for q in range(0, 60, 4)}
    sample = Sample.of(pairs, {**labels, "query 1": {"document 1 1": 0}})
    assert {ranking.query for ranking in sample.rankings[:15]} == set(labels)
    assert sample.rankings[0].judged == Judged([-1] * 3 + [2, 0] + [-1] * 15, [2, 1])
    assert all(ranking.judged is None for ranking in sample.rankings[15:])


def test_a_run_pays_for_a_sample_from_four_times_its_size():
    assert Sample.of(run_of(120, 20)).worth  # 30 x 20 of 2,400
    assert not Sample.of(run_of(119, 20)).worth
    assert Sample.of(run_of(12, 200)).worth  # 12 x 50 of 2,400
    assert not Sample.of(run_of(9, 500)).worth  # too few queries, however many candidates
    assert Sample.of(run_of(300, 20)).larger(30, 4) == 60
    assert Sample.of(run_of(120, 20)).larger(30, 4) is None


# ----------------------------------------------------------------------------------------------------------- choice


class Scorer:
    """Scores by the noise of each backend; what it has no noise for cannot be made. Remembers what it was asked."""

    def __init__(self, **noise):
        self.noise = {"torch fp32": 0.0, **noise}
        self.asked = []

    def __call__(self, backend, pairs):
        self.asked.append((backend, len(pairs)))
        return scores_of(pairs, self.noise[backend]) if backend in self.noise else "no such family"


PAIRS = run_of(480, 20)


def test_the_first_way_that_is_admitted_is_taken():
    scorer = Scorer(int8=0.001, bf16=0.0)
    found = choose("balanced", LADDER, Sample.of(PAIRS), scorer)
    assert (found.backend, found.exact) == ("int8", False)
    assert scorer.asked == [("int8", 600), ("torch fp32", 600)]
    assert "top-10 overlap" in found.why
    assert found.lines() == [found.said()]


@pytest.mark.parametrize(
    ("word", "queries", "tried"),
    [("balanced", 479, ["bf16"]), ("balanced", 480, ["int8", "bf16"]), ("fast", 120, ["int8", "bf16"])],
)
def test_balanced_tries_int8_before_bf16_on_large_runs_alone(word, queries, tried):
    found = choose(word, LADDER, Sample.of(run_of(queries, 20)), Scorer(int8=1.0, bf16=0.0))
    assert [one.backend for one in found.tried] == tried


def test_where_bf16_is_refused_int8_is_tried_on_smaller_runs_too():
    found = choose("balanced", LADDER, Sample.of(run_of(120, 20)), Scorer(int8=0.0, bf16=1.0))
    assert [one.backend for one in found.tried] == ["bf16", "int8"]
    assert found.backend == "int8"


def test_pairs_that_will_be_scored_later_count():
    assert Sample.of(run_of(40, 20), total=2_400).worth
    assert not Sample.of(run_of(40, 20), total=2_399).worth
    assert Sample.of(run_of(120, 20), total=100).pairs == 2_400


def test_a_way_that_is_refused_falls_back_one_step_and_says_so():
    found = choose("balanced", LADDER, Sample.of(PAIRS), Scorer(int8=1.0, bf16=0.001))
    assert found.backend == "bf16"
    left, taken = found.lines()
    assert left.startswith("int8 is left: top-10 overlap below 0.95 (top-10 overlap 0.")
    assert "600 pairs" in left
    assert taken.startswith("bf16 (top-10 overlap")


def test_when_nothing_is_admitted_it_is_fp32():
    found = choose("fast", LADDER, Sample.of(PAIRS), Scorer(int8=1.0, bf16=1.0))
    assert (found.backend, found.exact) == ("torch fp32", True)
    assert [one.backend for one in found.tried] == ["int8", "bf16"]
    assert len(found.lines()) == 3


def test_a_way_that_cannot_be_made_is_left_with_the_reason():
    found = choose("fast", LADDER, Sample.of(PAIRS), Scorer(bf16=0.0))
    assert found.backend == "bf16"
    assert found.lines()[0] == "int8 is left: no such family"


@pytest.mark.parametrize(
    ("word", "ladder", "pairs", "why"),
    [
        ("exact", LADDER, PAIRS, "as asked"),
        ("fast", LADDER[-1:], PAIRS, "this machine has no faster way"),
        ("balanced", LADDER, PAIRS[:200], "200 pairs are too few to try a faster way on"),
    ],
)
def test_where_there_is_nothing_to_compare_it_is_fp32_and_the_reason_is_told(word, ladder, pairs, why):
    scorer = Scorer(int8=0.0, bf16=0.0)
    found = choose(word, ladder, Sample.of(pairs), scorer)
    assert found == Decision(word, "torch fp32", True, why)
    assert not scorer.asked


def nudge(pairs, queries):
    """fp32's scores, but for some queries whose two best change places."""
    scores = scores_of(pairs).reshape(-1, 20)
    for row, (query, _) in zip(scores, pairs[::20], strict=True):
        if query in queries:
            best, second = np.argsort(-row)[:2]
            row[[best, second]] = row[[second, best]]
    return scores.ravel()


def blur(scores, every):
    """The tenth and the eleventh change places in every so many-th list: its top ten is another, its nDCG is not."""
    rows = scores.reshape(-1, 20)
    for row in rows[::every]:
        tenth, next_one = np.argsort(-row)[9:11]
        row[[tenth, next_one]] = row[[next_one, tenth]]
    return rows.ravel()


def best_labels(pairs):
    """The document that fp32 has first is the relevant one."""
    scores = scores_of(pairs).reshape(-1, 20)
    return {pairs[20 * row][0]: {pairs[20 * row + int(own.argmax())][1]: 1} for row, own in enumerate(scores)}


def test_a_change_that_chance_may_have_made_is_measured_on_twice_the_queries():
    pairs = run_of(500, 20)
    sample = Sample.of(pairs, best_labels(pairs))
    asked = []

    def score(backend, some):
        asked.append((backend, len(some)))
        return blur(nudge(some, {sample.rankings[3].query}), 3) if backend == "int8" else scores_of(some)

    found = choose("balanced", ["int8", "torch fp32"], sample, score)
    assert found.tried[0].agreement.overlap == pytest.approx(1 - 0.1 / 3)
    # One of 30 changes the mean by 0.0123, one of 120 by 0.0031, and 250 are more than the run pays for.
    assert [count for backend, count in asked if backend == "int8"] == [600, 1200, 2400]
    assert found.tried[0].agreement.change == pytest.approx(-(1 - 1 / math.log2(3)) / 120)
    assert found.exact
    assert choose("fast", ["int8", "torch fp32"], sample, score).backend == "int8"


def test_a_change_that_is_no_chance_is_not_measured_again():
    pairs = run_of(500, 20)
    sample = Sample.of(pairs, best_labels(pairs))
    asked = []

    def score(backend, some):
        asked.append(len(some))
        return nudge(some, {query for query, _ in pairs}) if backend == "int8" else scores_of(some)

    found = choose("fast", ["int8", "torch fp32"], sample, score)
    assert asked == [600, 600]
    assert found.tried[0].left == "nDCG@10 changes by more than 0.005"


def test_a_decision_survives_json():
    found = choose("balanced", LADDER, Sample.of(PAIRS, best_labels(PAIRS)), Scorer(bf16=0.3))
    assert len(found.tried) == 2
    assert Decision.read(json.loads(json.dumps(found.values(), allow_nan=False))) == found
    worst = replace(found, tried=(guard.Tried("int8", agreement(difference=math.inf), "scores are not finite"),))
    assert Decision.read(json.loads(json.dumps(worst.values(), allow_nan=False))) == worst
