"""H1, H1b, H2, H9 and H10: each fires on a case with its fault, is quiet on one without, and says what it lacks."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from rankwright import sections
from rankwright.core import Collection, Group, Run
from rankwright.rooms.diagnose import training
from rankwright.rooms.diagnose.case import Case

CHECKS = [
    training.relevance,
    training.asymmetry,
    training.easy_negatives,
    training.overtrained,
    training.false_negatives,
]
NAN = float("nan")


def number(finding, limit):
    return next(own for own in finding.numbers if own.limit == limit)


def valid(finding):
    """The remedy is YAML that an experiment takes."""
    change = yaml.safe_load(finding.remedy)
    base = {"data": {}, "retrieve": {"b": {"kind": "bm25"}}}
    sections.Experiment.model_validate({**base, **change})
    return change


def world(queries=12, given=True):
    """Query i has one relevant document (two others are given as negatives) in a corpus of 60 texts."""
    documents = {f"d{place:02d}": f"subject {place} told at length" for place in range(60)}
    texts = {f"q{place}": f"subject {place}" for place in range(queries)}
    qrels = {
        f"q{place}": {f"d{place:02d}": 1} | ({f"d{place + 20:02d}": 0, f"d{place + 40:02d}": 0} if given else {})
        for place in range(queries)
    }
    return Collection(documents, texts, {"test": qrels}), qrels


def knows(pairs):
    """1 for a document that begins as the query, 0 for others: what a good model says."""
    return np.array([float(f"{document} ".startswith(f"{query} ")) for query, document in pairs], dtype=np.float32)


def knows_ids(pairs):
    return np.array([float(int(q[1:]) == int(d[1:])) for q, d in pairs], dtype=np.float32)


def against(scorer):
    return lambda pairs: -scorer(pairs)


def case(given=True, **changes):
    collection, qrels = world(given=given)
    ids = sorted(collection.documents)
    run = Run.from_scores({q: {d: -float(place) for place, d in enumerate(ids)} for q in qrels})
    plain = {"retrieved": run, "reranked": run, "qrels": qrels, "depth": 60, "collection": collection}
    return Case(**{**plain, **changes})


def test_a_model_of_another_relevance_loses_on_the_closed_pool():
    finding = training.relevance(case(score=against(knows), retriever=knows_ids))
    # The relevant document first of three against last of three.
    assert number(finding, "H1.map").value == pytest.approx(1 / 3 - 1)
    assert finding.fires
    assert finding.severity == pytest.approx((2 / 3) / 0.02)
    assert "12 queries" in finding.reading
    assert "base" in valid(finding)["train"]["finetuned"]


def test_a_model_of_the_same_relevance_is_quiet_and_still_says_its_numbers():
    finding = training.relevance(case(score=knows, retriever=knows_ids))
    assert not finding.fires
    assert number(finding, "H1.map").value == 0
    assert finding.reading
    assert not finding.remedy


def test_a_loss_that_may_be_chance_does_not_fire():
    def wrong_once(pairs):
        signs = np.array([-1 if query == "subject 0" else 1 for query, _ in pairs])
        return signs * knows(pairs)

    finding = training.relevance(case(score=wrong_once, retriever=knows_ids))
    assert number(finding, "H1.map").value == pytest.approx(-2 / 3 / 12)
    assert number(finding, "H1.map").bad
    assert not finding.fires


def test_without_given_negatives_twenty_random_documents_stand_in():
    seen = []

    def watched(pairs):
        seen.extend(pairs)
        return knows_ids(pairs)

    own = case(given=False, retriever=watched, score=against(knows))
    texts = own.collection.documents
    texts |= {"d58": "subject 0", "d59": texts["d00"]}  # a copy of a query, and of its relevant document
    finding = training.relevance(own)
    assert number(finding, "H1.map").value == pytest.approx(1 / 21 - 1)
    lists = {query: [d for q, d in seen if q == query] for query, _ in seen}
    assert {len(found) for found in lists.values()} == {21}
    assert all(len(set(found)) == 21 for found in lists.values())
    assert not {"d58", "d59"} & set(lists["q0"])
    again = training.relevance(own)
    assert again == finding


def test_at_most_the_sample_is_scored():
    seen = set()

    def watched(pairs):
        seen.update(query for query, _ in pairs)
        return knows_ids(pairs)

    training.relevance(case(score=knows, retriever=watched, sample=5))
    assert len(seen) == 5


def test_documents_that_the_retriever_cannot_score_leave_the_pool_of_both():
    def half(pairs):
        return np.array([NAN if int(d[1:]) >= 40 else s for (_, d), s in zip(pairs, knows_ids(pairs), strict=True)])

    finding = training.relevance(case(score=against(knows), retriever=half))
    assert number(finding, "H1.map").value == pytest.approx(1 / 2 - 1)
    none = training.relevance(case(score=knows, retriever=lambda pairs: np.full(len(pairs), NAN)))
    assert none.lacks
    assert not none.fires


def first_counts(pairs):
    """Scores by the text that stands first: about as asymmetric as can be."""
    return np.array([float(sum(map(ord, first)) % 97) for first, _ in pairs])


def both_count(pairs):
    return np.array([float(sum(map(ord, first + second)) % 97) for first, second in pairs])


def alike(query="subject {} told in full", **changes):
    own = case(**changes)
    texts = {q: query.format(place) for place, q in enumerate(own.collection.queries)}
    return replace(own, collection=replace(own.collection, queries=texts))


def test_an_asymmetric_model_on_texts_of_one_kind_fires():
    finding = training.asymmetry(alike(score=first_counts))
    assert finding.fires
    assert number(finding, "H1b.questions").value == 0
    assert yaml.safe_load(finding.remedy) == {"rerank": {"both_orders": True}}


@pytest.mark.parametrize(
    "own",
    [
        alike(score=both_count),
        alike("what is subject {} told at length", score=first_counts),
        alike("subject {} told at length?", score=first_counts),
        alike("{}", score=first_counts),
    ],
    ids=["symmetric model", "question words", "question marks", "short queries"],
)
def test_a_symmetric_model_questions_or_short_queries_are_quiet(own):
    finding = training.asymmetry(own)
    assert not finding.fires
    assert not finding.lacks
    assert len(finding.numbers) == 3
    assert finding.reading


def test_the_asymmetry_is_in_standard_deviations_of_the_served_scores():
    documents = {"d1": "aa", "d2": "bbbb"}
    run = Run.from_scores({"q": {"d1": 2.0, "d2": 1.0}})
    own = Case(run, run, {"q": {"d1": 1}}, 2, collection=Collection(documents, {"q": "ccc"}, {}))
    finding = training.asymmetry(replace(own, score=lambda pairs: np.array([float(len(d)) for _, d in pairs])))
    # s is 2 and 4 (deviation 1), the other order 3 and 3: both move by 1.
    assert number(finding, "H1b.asymmetry").value == pytest.approx(1.0)
    assert number(finding, "H1b.length").value == pytest.approx(1.0)


def test_three_candidates_a_query_are_scored_in_each_order():
    calls = []

    def watched(pairs):
        calls.append(list(pairs))
        return first_counts(pairs)

    training.asymmetry(alike(score=watched, sample=4))
    assert [len(pairs) for pairs in calls] == [12, 12]
    assert calls[1] == [(document, query) for query, document in calls[0]]


def group(query, documents, labels, teacher, origins=None):
    origins = origins or ["positive" if label > 0 else "mined" for label in labels]
    return Group(query, f"text of {query}", documents, [f"text {d}" for d in documents], labels, teacher, origins)


def trained(documents, teacher, queries=6, **changes):
    """Served for each training query: p (relevant) and s1 to s4, of scores 9 and 8, 6, 4, 2."""
    names = [f"t{place}" for place in range(queries)]
    served = {"p": 9.0, "s1": 8.0, "s2": 6.0, "s3": 4.0, "s4": 2.0}
    groups = [group(q, ["p", *documents], [1] + [0] * len(documents), [9.0, *teacher]) for q in names]
    own = case(train_run=Run.from_scores(dict.fromkeys(names, served)), groups=groups, **changes)
    return replace(own, collection=replace(own.collection, qrels={"train": {q: {"p": 1} for q in names}}))


def test_random_negatives_fire():
    finding = training.easy_negatives(trained(["r1", "r2"], [0.0, 1.0]))
    assert finding.fires
    assert number(finding, "H2.easier").value == 1
    assert number(finding, "H2.inside").value == 0
    assert valid(finding)["mine"] == {"negatives": 6, "window": [1, 50], "drop_above": 0.95, "random": 2}


def test_negatives_from_the_candidates_are_quiet_and_counted_exactly():
    finding = training.easy_negatives(trained(["s2", "r1"], [6.0, 3.0]))
    # s2 lies below s1 of the three others; r1 below three of four.
    assert number(finding, "H2.easier").value == pytest.approx((1 / 3 + 3 / 4) / 2)
    assert number(finding, "H2.inside").value == 0.5
    assert not finding.fires
    assert "50.0%" in finding.reading


def test_a_negative_is_not_compared_with_itself_nor_with_the_relevant():
    finding = training.easy_negatives(trained(["s1"], [8.0 - 1e-6]))
    assert number(finding, "H2.easier").value == 0


def test_candidates_that_are_all_easy_fire_even_when_they_are_served():
    finding = training.easy_negatives(trained(["s4"], [2.0]))
    assert number(finding, "H2.easier").value == 1
    assert number(finding, "H2.inside").value == 1
    assert finding.fires


def test_without_teacher_scores_the_share_inside_stands_alone():
    outside, inside = (training.easy_negatives(trained([name], [NAN])) for name in ("r1", "s1"))
    assert [own.limit for own in outside.numbers] == ["H2.inside"]
    assert outside.fires
    assert not inside.fires


def test_groups_without_labels_are_no_training_negatives():
    own = trained(["s1"], [8.0])
    blind = [group(f"t{place}", ["r1", "r2"], [0, 0], [0.0, 0.0]) for place in range(6)]
    assert training.easy_negatives(replace(own, groups=[*own.groups, *blind])) == training.easy_negatives(own)
    assert training.easy_negatives(replace(own, groups=blind)).lacks


def test_accuracy_is_measured_on_each_sides_own_scale_and_does_not_fire_alone():
    own = trained(["s2", "r1"], [6.0, 3.0], score=lambda pairs: 100 * knows(pairs), retriever=knows_ids)
    # Served, every document scores above the relevant one; in the pool none does.
    scores = {
        q: {d: -1.0 if grades.get(d, 0) > 0 else 0.0 for d in own.collection.documents}
        for q, grades in own.qrels.items()
    }
    finding = training.easy_negatives(replace(own, reranked=Run.from_scores(scores)))
    assert number(finding, "H2.accuracy").value == pytest.approx(1.0)
    assert number(finding, "H2.accuracy").bad
    assert not finding.fires


def log(*values, each=True, spread=0.0):
    """Evaluations of 40 dev queries with these means."""
    wave = spread * np.resize([-1.0, 1.0], 40)
    return [
        {"step": 5, "loss": 1.0},
        *(
            {"step": 10 * (place + 1), "dev": {"mrr@10": value}, "kept": True}
            | ({"values": (value + wave * (-1) ** place).tolist()} if each else {})
            for place, value in enumerate(values)
        ),
    ]


def test_dev_values_of_before_the_rounding_are_not_held_against_those_since():
    since = [{**record, "rounded": True} for record in log(0.4, 0.45)]
    finding = training.overtrained(case(log=[*log(0.3, 0.6), *since]))
    assert not finding.fires
    assert "Dev's best is 0.4500" in finding.reading


def test_training_past_its_best_fires():
    finding = training.overtrained(case(log=log(0.3, 0.5, 0.4)))
    assert finding.fires
    assert number(finding, "H9.last").value == pytest.approx(0.1)
    assert "0.5000" in finding.reading
    assert "0.4000" in finding.reading
    assert "step 20" in finding.reading
    assert valid(finding)["train"] == {"finetuned": {"keep": "best", "epochs": 1}}


def average(value, *, kept):
    return {"step": 30, "averaged_dev": {"mrr@10": value}, "average": 3, "kept": kept, "values": [value] * 40}


def test_training_past_its_best_whose_average_was_kept_is_quiet_and_says_so():
    finding = training.overtrained(case(log=[*log(0.3, 0.5, 0.4), average(0.55, kept=True)]))
    assert not finding.fires
    assert number(finding, "H9.last").value == pytest.approx(-0.05)
    assert "the mean of the last checkpoints, 0.5500, was kept" in finding.reading


def test_an_average_that_was_tried_and_not_kept_changes_nothing():
    tried = training.overtrained(case(log=[*log(0.3, 0.5, 0.4), average(0.45, kept=False)]))
    assert tried == training.overtrained(case(log=log(0.3, 0.5, 0.4)))
    assert tried.fires


def test_training_that_ends_at_its_best_is_quiet():
    finding = training.overtrained(case(log=log(0.3, 0.4, 0.5)))
    assert not finding.fires
    assert number(finding, "H9.last").value == 0


def test_a_loss_on_dev_within_its_interval_is_quiet():
    finding = training.overtrained(case(log=log(0.5, 0.49, spread=0.3)))
    assert number(finding, "H9.last").low < 0 < number(finding, "H9.last").value
    assert not finding.fires


def test_without_values_for_each_query_a_loss_counts_from_a_hundredth_on():
    small, large = (training.overtrained(case(log=log(0.5, last, each=False))) for last in (0.495, 0.485))
    assert number(small, "H9.last").low is None
    assert not small.fires
    assert large.fires


def test_a_general_collection_that_was_forgotten_fires_and_noise_does_not():
    before = np.full(50, 0.6)
    lost = training.overtrained(case(general=(before, before - 0.05)))
    assert lost.fires
    assert number(lost, "H9.general").value == pytest.approx(-0.05)
    assert lost.severity == pytest.approx(5)
    assert valid(lost)
    noise = np.resize([0.5, -0.54], 50)
    assert not training.overtrained(case(general=(before, before + noise))).fires
    assert not training.overtrained(case(general=(before, before - 0.005))).fires
    assert training.overtrained(case(general=(np.zeros(0), np.zeros(0)))).lacks


def doubtful(*rows):
    return case(groups=[group(f"t{place}", list("pqrs"), [1, 1, 0, 0], row) for place, row in enumerate(rows)])


def test_mined_negatives_that_score_as_positives_fire():
    finding = training.false_negatives(doubtful([1.0, 0.8, 0.9, 0.1], [1.0, 0.8, 0.2, 0.1]))
    # The positives' mean is 0.9: one of four reaches 0.855.
    assert number(finding, "H10.doubtful").value == 0.25
    assert finding.fires
    assert finding.severity == pytest.approx(2.5)
    assert valid(finding) == {"mine": {"drop_above": 0.95}}


def test_mined_negatives_well_below_are_quiet():
    finding = training.false_negatives(doubtful([1.0, 0.8, 0.85, 0.1], [1.0, 0.8, 0.2, NAN]))
    assert not finding.fires
    assert number(finding, "H10.doubtful").value == 0
    assert finding.reading


def test_the_share_of_a_negative_score_lies_below_it():
    finding = training.false_negatives(doubtful([-1.0, -1.0, -1.04, -1.06]))
    assert number(finding, "H10.doubtful").value == 0.5


def test_only_mined_negatives_can_be_falsely_mined():
    given = group("t", ["p", "r"], [1, 0], [1.0, 1.0], ["positive", "random"])
    assert training.false_negatives(case(groups=[given])).lacks
    assert training.false_negatives(doubtful([NAN, NAN, 1.0, 1.0])).lacks


def test_every_check_says_what_it_lacks_and_then_does_not_fire():
    bare = replace(case(), collection=Collection({}, {}, {}))
    scoring = replace(bare, score=knows, retriever=knows_ids)
    for check in CHECKS:
        for own in (bare, scoring):
            finding = check(own)
            assert finding.lacks
            assert not finding.fires
            assert not finding.numbers
    assert training.relevance(case(score=knows)).lacks
    assert training.easy_negatives(replace(trained(["s1"], [8.0]), train_run=None)).lacks


def test_the_same_case_gives_the_same_findings():
    own = trained(["s2", "r1"], [6.0, 3.0], score=knows, retriever=knows_ids, log=log(0.5, 0.4), sample=7)
    assert [check(own) for check in CHECKS] == [check(own) for check in CHECKS]
