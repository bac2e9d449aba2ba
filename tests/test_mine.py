"""Mining: what may never stand in a group, how many of what do, and why the others were set aside."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rankwright.core import Collection, Run, canonical, relevant
from rankwright.errors import DataError
from rankwright.rooms.mine import mine
from rankwright.sections import MineSection


def section(**options):
    return MineSection(**{"negatives": 3, "random": 2, "given": 1, "window": (1, 20), "drop_above": None, **options})


def teacher_of(run):
    """The run's own scores; NaN for a pair that it lacks."""

    def score(pairs):
        return np.array([run.scores(query).get(document, math.nan) for query, document in pairs], dtype=np.float32)

    return score


def mined(collection, run, made=None, **options):
    return mine(collection, run, made or section(), **{"teacher": teacher_of(run), **options})


def random_case(seed, *, mirrored=True):
    """A small collection with copies, self-matches, held-out queries as documents and mirrored relations."""
    rng = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(14 if mirrored else 60)]
    documents = {f"d{number:02}": str(rng.choice(words)) for number in range(40)}
    documents = {document: text if rng.random() < 0.7 else f"  {text}\n" for document, text in documents.items()}
    choices = words if mirrored else [f"query{number}" for number in range(40)]
    texts = rng.choice(choices, size=12, replace=False).tolist()
    queries = {f"q{number:02}": text for number, text in enumerate(texts)}
    splits = {"train": list(queries)[:8], "dev": list(queries)[8:10], "test": list(queries)[10:]}
    qrels = {split: {query: random_grades(rng, documents) for query in names} for split, names in splits.items()}
    scores = {}
    for query in queries:
        found = rng.choice(list(documents), size=rng.integers(3, 30), replace=False).tolist()
        scores[query] = dict(zip(found, rng.normal(size=len(found)).tolist(), strict=True))
    return Collection(documents, queries, qrels), Run.from_scores(scores)


def random_grades(rng, documents):
    judged = rng.choice(list(documents), size=rng.integers(1, 8), replace=False).tolist()
    return {document: int(rng.integers(0, 3)) if place else 1 for place, document in enumerate(judged)}


def forbidden(collection, query, document):
    """Whether a document may never be a negative of a training query, worked out from the texts anew."""
    text = canonical(collection.documents[document])
    own = canonical(collection.queries[query])
    train = collection.qrels["train"]
    texts_of = {q: {canonical(collection.documents[d]) for d in relevant(grades)} for q, grades in train.items()}
    held_out = [collection.queries[q] for split in ("dev", "test") for q in collection.qrels[split]]
    mirrored = any(canonical(collection.queries[q]) == text and own in found for q, found in texts_of.items())
    return text in texts_of[query] or text == own or text in map(canonical, held_out) or mirrored


CASES = range(40)


# ---------------------------------------------------------------------------------- what is never a negative


@pytest.mark.parametrize("seed", CASES)
def test_no_negative_is_a_positive_a_copy_the_query_a_held_out_query_or_mirrored(seed):
    collection, run = random_case(seed)
    found = mined(collection, run, section(given=3, random=4))
    for group in found.groups:
        assert len(set(group.document_ids)) == len(group)
        for document, label, origin in zip(group.document_ids, group.labels, group.origins, strict=True):
            assert (label > 0) == (origin == "positive")
            if origin != "positive":
                assert label == 0
                assert not forbidden(collection, group.query_id, document)


def test_the_random_cases_hold_every_kind_of_trap():
    reasons = {dropped.reason for seed in CASES for dropped in mined(*random_case(seed)).dropped}
    assert reasons == {
        "a copy of a relevant document",
        "relevant the other way round",
        "the query itself",
        "the text of a dev or test query",
    }


@pytest.mark.parametrize("seed", CASES)
def test_every_candidate_of_the_window_is_a_negative_or_set_aside_with_its_rank_score_and_reason(seed):
    collection, run = random_case(seed)
    found = mined(collection, run, section(negatives=99, random=0, given=0, window=(2, 9), drop_above=0.5))
    groups = {group.query_id: group for group in found.groups}
    for query, grades in collection.qrels["train"].items():
        window = dict(enumerate(run.documents(query)[1:9], start=2))
        aside = {dropped.rank: dropped for dropped in found.dropped if dropped.query_id == query}
        taken = set(groups[query].document_ids if query in groups else []) - set(relevant(grades))
        for rank, document in window.items():
            assert [grades.get(document, 0) > 0, document in taken, rank in aside].count(True) == 1
        for rank, dropped in aside.items():
            assert dropped.document_id == window[rank]
            assert dropped.query == collection.queries[query]
            assert dropped.document == collection.documents[window[rank]]
            assert dropped.score == pytest.approx(run.scores(query)[window[rank]])
            known = dropped.reason.startswith("scores at least")
            assert known or forbidden(collection, query, dropped.document_id)
        assert set(aside) <= set(window)


@pytest.mark.parametrize("seed", CASES)
def test_groups_have_the_counts_asked_for_or_all_that_there_is(seed):
    collection, run = random_case(seed)
    wanted = section(window=(3, 12))
    found = mined(collection, run, wanted)
    for group in found.groups:
        grades = collection.qrels["train"][group.query_id]
        by_origin = {
            origin: {d for d, o in zip(group.document_ids, group.origins, strict=True) if o == origin}
            for origin in ("positive", "mined", "given", "random")
        }
        allowed = {d for d in collection.documents if not forbidden(collection, group.query_id, d)}
        window = allowed & set(run.documents(group.query_id)[2:12])
        given = (allowed & {d for d, grade in grades.items() if grade <= 0}) - by_origin["mined"]
        others = allowed - by_origin["mined"] - by_origin["given"]
        assert by_origin["positive"] == set(relevant(grades))
        for origin, there, count in (("mined", window, 3), ("given", given, 1), ("random", others, 2)):
            assert by_origin[origin] <= there
            assert len(by_origin[origin]) == min(count, len(there))


# ------------------------------------------------------------------------------------- a case laid out by hand


DOCUMENTS = {f"d{number}": f"text {number}" for number in range(8)}


def by_hand(scores, positives=("d0",), extra=None):
    """One query whose candidates d1, d2, … have these scores; d0 … are relevant and hold `extra` scores."""
    candidates = {f"d{number}": score for number, score in enumerate(scores, start=1)}
    collection = Collection(
        {**DOCUMENTS, "p1": "second positive", "p2": "third positive"},
        {"q": "the query"},
        {"train": {"q": dict.fromkeys(positives, 1)}, "dev": {}, "test": {}},
    )
    return collection, Run.from_scores({"q": {**candidates, **(extra or {})}})


def kept_and_dropped(collection, run, scores, **options):
    made = section(negatives=9, random=0, given=0, **options)
    found = mine(collection, run, made, teacher=scores or teacher_of(run))
    names = found.groups[0].document_ids if found.groups else []
    kept = {d for d, o in zip(names, found.groups[0].origins, strict=True) if o == "mined"} if names else set()
    return kept, {dropped.document_id: dropped for dropped in found.dropped}, found


def test_a_candidate_that_reaches_its_share_of_the_positive_is_set_aside_and_says_so():
    case = by_hand([0.76, 0.5, 0.375, 0.25], extra={"d0": 0.75})
    kept, dropped, _ = kept_and_dropped(*case, None, drop_above=0.5)  # 0.75 - 0.5 x 0.75 = 0.375
    assert kept == {"d4"}
    assert set(dropped) == {"d1", "d2", "d3"}
    assert dropped["d3"].reason == "scores at least 0.5 of the positives"
    assert (dropped["d3"].rank, dropped["d3"].score, dropped["d3"].positive_score) == (4, 0.375, 0.75)
    assert (dropped["d1"].rank, dropped["d2"].rank) == (1, 3)


def test_the_threshold_reads_the_mean_of_all_positives():
    case = by_hand([0.6, 0.4, 0.3], positives=("d0", "p1"), extra={"d0": 1.0, "p1": 0.5})
    kept, dropped, _ = kept_and_dropped(*case, None, drop_above=0.5)  # mean 0.75, threshold 0.375
    assert kept == {"d3"}
    assert dropped["d2"].positive_score == 0.75


def test_negative_scores_have_their_threshold_below_the_positive():
    case = by_hand([-1.0, -3.0, -3.25, -9.0], extra={"d0": -2.0})
    kept, dropped, _ = kept_and_dropped(*case, None, drop_above=0.5)  # -2 - 0.5 x 2 = -3
    assert kept == {"d3", "d4"}
    assert set(dropped) == {"d1", "d2"}


def test_a_share_above_one_sets_aside_only_what_beats_the_positive():
    case = by_hand([0.9, 0.75, 0.5], extra={"d0": 0.5})
    assert kept_and_dropped(*case, None, drop_above=1.5)[0] == {"d3"}  # 0.5 + 0.5 x 0.5 = 0.75


def test_without_a_share_nothing_is_set_aside_for_its_score():
    case = by_hand([9.0, 0.5], extra={"d0": 0.1})
    kept, dropped, _ = kept_and_dropped(*case, None, drop_above=None)
    assert kept == {"d1", "d2"}
    assert not dropped


def test_a_candidate_without_a_score_is_kept_and_a_positive_without_one_does_not_count():
    case = by_hand([0.9, 0.8, 0.1], positives=("d0", "p1"))
    scores = {"d0": math.nan, "p1": 1.0, "d1": math.nan, "d2": 0.8, "d3": 0.1}
    known = lambda pairs: np.array([scores[d] for _, d in pairs], dtype=np.float32)  # noqa: E731
    kept, dropped, found = kept_and_dropped(*case, known, drop_above=0.5)
    assert kept == {"d1", "d3"}
    assert set(dropped) == {"d2"}
    assert not found.counts["queries not filtered: no positive has a score"]


def test_a_query_none_of_whose_positives_has_a_score_is_not_filtered_and_counted():
    case = by_hand([0.9, 0.8, 0.1])  # d0 is not in the run
    kept, dropped, found = kept_and_dropped(*case, None, drop_above=0.5)
    assert kept == {"d1", "d2", "d3"}
    assert not dropped
    assert found.counts["queries not filtered: no positive has a score"] == 1
    assert any("1 queries not filtered" in line for line in found.lines(section()))


def test_a_score_that_is_not_a_number_is_not_written_down_as_one():
    collection, run = by_hand([0.9, 0.1])
    collection.documents["d1"] = "The  query".lower()
    nothing = lambda pairs: np.full(len(pairs), np.nan, dtype=np.float32)  # noqa: E731
    _, dropped, _ = kept_and_dropped(collection, run, nothing, drop_above=0.5)
    assert dropped["d1"].reason == "the query itself"
    assert dropped["d1"].score is None
    assert dropped["d1"].positive_score is None


def test_the_filter_reads_its_own_scores_and_the_group_keeps_the_teachers():
    collection, run = by_hand([0.9, 0.8, 0.1], extra={"d0": 1.0})
    judge = {"d0": 4.0, "d1": -5.0, "d2": 3.9, "d3": -5.0}
    made = section(negatives=9, random=0, given=0, drop_above=0.9)
    scores = lambda pairs: np.array([judge[d] for _, d in pairs], dtype=np.float32)  # noqa: E731
    found = mine(collection, run, made, teacher=teacher_of(run), filter_scores=scores)
    (group,) = found.groups
    assert list(group.document_ids) == ["d0", "d1", "d3"]
    assert group.teacher == pytest.approx([1.0, 0.9, 0.1])


@pytest.mark.parametrize(
    ("against", "whose", "compared", "kept_ones"),
    [
        ("mean", "the positives", 0.75, {"d3", "d4"}),
        ("min", "the lowest positive", 0.5, {"d4"}),
        ("max", "the highest positive", 1.0, {"d2", "d3", "d4"}),
    ],
)
def test_the_filter_compares_with_the_positives_that_it_is_told_to(against, whose, compared, kept_ones):
    case = by_hand([0.6, 0.4, 0.3, 0.2], positives=("d0", "p1", "p2"), extra={"d0": 1.0, "p1": 0.5})
    kept, dropped, _ = kept_and_dropped(*case, None, drop_above=0.5, filter_against=against)
    assert kept == kept_ones
    assert {d.positive_score for d in dropped.values()} == {compared}
    assert {d.reason for d in dropped.values()} == {f"scores at least 0.5 of {whose}"}


# ------------------------------------------------------------------------------------------------ holes in labels


def holed(queries=60, width=20, *, seed=0):
    """Each query has five relevant documents at the top of its window, three of them labelled; and their ids."""
    rng = np.random.default_rng(seed)
    documents, texts, train, scores, relevant_ones = {}, {}, {}, {}, set()
    for number in range(queries):
        names = [f"q{number}-{place}" for place in range(width)]
        documents |= {name: f"text {name}" for name in names}
        texts[f"q{number}"] = f"query {number}"
        train[f"q{number}"] = {names[place]: 1 for place in rng.choice(5, 3, replace=False)}
        values = rng.normal(size=width) + 8 * (np.arange(width) < 5)
        scores[f"q{number}"] = dict(zip(names, (values * (1 + number) + number).tolist(), strict=True))
        relevant_ones |= set(names[:5])
    return Collection(documents, texts, {"train": train, "dev": {}, "test": {}}), Run.from_scores(scores), relevant_ones


def weights_of(found):
    return {
        (group.query_id, document): weight
        for group in found.groups
        for document, weight in zip(group.document_ids, group.weights, strict=True)
    }


def test_mined_negatives_that_look_like_the_labelled_count_less_when_holes_are_weighed():
    collection, run, truth = holed()
    found = mined(collection, run, section(negatives=20, random=3, holes="weigh"))
    looks, others = [], []
    for group in found.groups:
        for document, weight, origin in zip(group.document_ids, group.weights, group.origins, strict=True):
            if origin == "mined":
                (looks if document in truth else others).append(weight)
            else:
                assert weight == 1
        assert not any(label for label, o in zip(group.labels, group.origins, strict=True) if o != "positive")
    assert len(looks) > 50
    assert np.mean(looks) < 0.2
    assert np.mean(others) > 0.95
    mean = np.mean(looks + others)
    told = found.lines(section(holes="weigh"))
    assert f"a mined negative counts {mean:.3f} on average: the labels may have holes" in told


def test_holes_are_ignored_by_default_and_then_groups_are_the_same_but_for_their_weights():
    collection, run, _ = holed()
    plain, weighed = mined(collection, run), mined(collection, run, section(holes="weigh"))
    assert set(weights_of(plain).values()) == {1.0}
    bare = lambda group: repr(replace(group, weights=()))  # noqa: E731
    assert [bare(group) for group in plain.groups] == [bare(group) for group in weighed.groups]
    assert not any("on average" in line for line in plain.lines(section()))


def test_what_dev_and_test_judge_does_not_change_the_weights():
    collection, run, _ = holed()
    train = dict(list(collection.qrels["train"].items())[:40])
    rest = dict(list(collection.qrels["train"].items())[40:])
    made = section(holes="weigh")
    none, judged = ({"train": train, "dev": held, "test": {}} for held in ({}, rest))
    first, second = (mined(replace(collection, qrels=qrels), run, made) for qrels in (none, judged))
    assert repr(first.groups) == repr(second.groups)
    assert min(weights_of(first).values()) < 1


def test_a_candidate_judged_not_relevant_is_no_hole():
    collection, run, _ = holed()
    unlabelled = {q: [d for d in run.documents(q)[:5] if d not in g] for q, g in collection.qrels["train"].items()}
    for query in list(unlabelled)[:20]:
        collection.qrels["train"][query] |= dict.fromkeys(unlabelled[query], 0)
    weights = weights_of(mined(collection, run, section(negatives=20, random=0, given=0, holes="weigh")))
    for number, (query, documents) in enumerate(unlabelled.items()):
        for document in documents:
            assert (weights[query, document] == 1) == (number < 20)


def test_too_few_labelled_positives_in_the_windows_leave_weights_at_1_and_are_counted():
    collection, run, _ = holed(queries=6)
    found = mined(collection, run, section(holes="weigh"))
    assert set(weights_of(found).values()) == {1.0}
    told = found.lines(section(holes="weigh"))
    assert "holes not weighed: 18 labelled positives stand in the windows, 20 are needed" in told


def test_the_filter_sets_aside_before_holes_are_weighed_and_changes_no_weight():
    collection, run, _ = holed()
    made = section(negatives=20, random=0, given=0, holes="weigh")
    plain = weights_of(mined(collection, run, made))
    filtered = mined(collection, run, made.model_copy(update={"drop_above": 0.95}))
    dropped = {(each.query_id, each.document_id) for each in filtered.dropped}
    assert dropped
    assert weights_of(filtered) == {pair: weight for pair, weight in plain.items() if pair not in dropped}


def test_holes_are_weighed_by_the_filters_scores_and_candidates_without_one_count_in_full():
    collection, run, truth = holed()
    upside_down = lambda pairs: np.array(  # noqa: E731
        [math.nan if d.endswith("-19") else float(d in truth) + 0.01 * len(d) for _, d in pairs], dtype=np.float32
    )
    flat = lambda pairs: np.zeros(len(pairs), dtype=np.float32)  # noqa: E731
    made = section(negatives=20, random=0, given=0, holes="weigh")
    read = weights_of(mined(collection, run, made, teacher=flat, filter_scores=upside_down))
    assert min(read.values()) < 0.1
    assert {weight for (_, document), weight in read.items() if document.endswith("-19")} == {1.0}
    assert set(weights_of(mined(collection, run, made, teacher=flat)).values()) == {1.0}


# ------------------------------------------------------------------------------------------- counts and mixes


def test_too_few_candidates_make_a_smaller_group_that_is_counted_and_not_padded():
    collection, run = by_hand([0.5, 0.4])
    collection.documents.clear()
    collection.documents.update({f"d{number}": f"text {number}" for number in range(4)})
    found = mine(collection, run, section(negatives=5, random=3, given=2), teacher=teacher_of(run))
    (group,) = found.groups
    assert list(group.document_ids) == ["d0", "d1", "d2", "d3"]
    assert list(group.origins) == ["positive", "mined", "mined", "random"]
    for origin in ("mined", "given", "random"):
        assert found.counts[f"groups found fewer {origin} negatives than asked"] == 1
    told = "\n".join(found.lines(section()))
    assert "1 groups, 4 pairs: 2 mined, 1 positive, 1 random" in told
    assert "1 groups found fewer mined negatives than asked" in told


def test_a_query_without_any_negative_is_left_out_and_counted():
    collection, run = by_hand([0.5])
    collection.queries["r"] = "another"
    collection.qrels["train"]["r"] = {"d5": 1}
    found = mine(collection, run, section(random=0), teacher=teacher_of(run))
    assert [group.query_id for group in found.groups] == ["q"]
    assert found.counts["queries left out: no negative was found"] == 1


def test_a_query_without_a_relevant_document_makes_no_group_and_is_counted():
    collection, run = by_hand([0.5])
    collection.queries["r"] = "another"
    collection.qrels["train"]["r"] = {"d5": 0}
    found = mine(collection, run, section(given=1), teacher=teacher_of(run))
    assert [group.query_id for group in found.groups] == ["q"]
    assert found.counts["queries left out: nothing is relevant to them"] == 1


def test_no_group_at_all_is_an_error():
    collection, run = by_hand([])
    with pytest.raises(DataError, match="no group"):
        mine(collection, run, section(random=0), teacher=teacher_of(run))


def test_a_query_that_the_run_lacks_still_gets_given_and_random_negatives():
    collection, _ = by_hand([])
    collection.qrels["train"]["q"] |= {"d1": 0, "d2": 0}
    (group,) = mined(collection, Run({}), section(given=2, random=2)).groups
    assert list(group.origins) == ["positive", "given", "given", "random", "random"]
    assert all(math.isnan(score) for score in group.teacher)


def test_given_negatives_are_the_sources_own_and_random_ones_any_other():
    documents = {f"d{number}": f"text {number}" for number in range(300)}
    grades = {"d0": 2, **{f"d{number}": 0 for number in range(1, 26)}}
    collection = Collection(documents, {"q": "the query"}, {"train": {"q": grades}, "dev": {}, "test": {}})
    (group,) = mined(collection, Run({}), section(negatives=0, given=5, random=20)).groups
    by_origin = {
        o: [d for d, x in zip(group.document_ids, group.origins, strict=True) if x == o] for o in group.origins
    }
    assert group.labels[0] == 2
    assert len(by_origin["given"]) == 5
    assert set(by_origin["given"]) <= set(grades) - {"d0"}
    assert len(set(by_origin["random"])) == 20
    assert sum(document not in grades for document in by_origin["random"]) > 10


def test_positives_are_a_draw_of_at_most_so_many_and_the_rest_are_no_negatives():
    collection, run = by_hand([0.5, 0.4], positives=("d0", "d1", "p1", "p2"))
    (group,) = mined(collection, run, section(positives=2, random=20)).groups
    chosen = group.document_ids[:2]
    assert sum(label > 0 for label in group.labels) == 2
    assert set(chosen) <= {"d0", "d1", "p1", "p2"}
    assert not set(group.document_ids[2:]) & {"d0", "d1", "p1", "p2"}


def test_random_negatives_of_a_split_corpus_come_from_the_training_splits_own_documents():
    documents = {f"d{number}": f"text {number}" for number in range(60)}
    queries = {"q": "one", "t": "two"}
    train, test = {f"d{number}": int(number == 0) for number in range(9)}, {f"d{number}": 1 for number in range(20, 60)}
    collection = Collection(documents, queries, {"train": {"q": train}, "dev": {}, "test": {"t": test}})
    made = section(negatives=0, given=0, random=30)
    assert set(mined(collection, Run({}), made, per_split=True).groups[0].document_ids) == set(train)
    assert len(mined(collection, Run({}), made, per_split=False).groups[0]) == 31


def test_random_draws_from_a_large_corpus_are_different_documents():
    documents = {f"d{number}": f"text {number}" for number in range(1500)}
    collection = Collection(documents, {"q": "query"}, {"train": {"q": {"d0": 1}}, "dev": {}, "test": {}})
    (group,) = mined(collection, Run({}), section(random=40)).groups
    assert len(set(group.document_ids)) == 41


# ------------------------------------------------------------------------------- determinism and independence


def by_query(groups):
    return {group.query_id: repr(group) for group in groups}


def test_the_same_input_gives_the_same_groups_and_another_seed_others():
    case = random_case(1)
    made = section(unlabelled=5)
    first, second, other = (mined(*case, made, seed=seed) for seed in (7, 7, 8))
    assert repr(first.groups) == repr(second.groups)
    assert repr(first.unlabelled) == repr(second.unlabelled)
    assert repr(first.groups) != repr(other.groups)
    assert repr(first.unlabelled) != repr(other.unlabelled)


@pytest.mark.parametrize("seed", range(5))
def test_a_query_taken_away_leaves_the_other_groups_as_they_were(seed):
    collection, run = random_case(seed, mirrored=False)
    made = section(unlabelled=99, drop_above=0.9)
    whole = mined(collection, run, made)
    for gone in list(collection.qrels["train"]):
        train = {query: grades for query, grades in collection.qrels["train"].items() if query != gone}
        found = mined(replace(collection, qrels={**collection.qrels, "train": train}), run, made)
        for before, after in ((whole.groups, found.groups), (whole.unlabelled, found.unlabelled)):
            assert by_query(after) == {query: text for query, text in by_query(before).items() if query != gone}


@pytest.mark.parametrize("seed", range(5))
def test_of_some_queries_only_the_groups_are_what_they_are_of_all(seed):
    collection, run = random_case(seed, mirrored=False)
    whole = by_query(mined(collection, run, section(unlabelled=99)).groups)
    before = {}
    for count in range(1, len(collection.qrels["train"]) + 3):
        found = mined(collection, run, section(queries=count, unlabelled=99))
        some = by_query(found.groups)
        assert some.items() <= whole.items()
        assert before.items() <= some.items()
        assert len(some) == min(count, len(whole))
        assert len(found.unlabelled) == len(mined(collection, run, section(unlabelled=99)).unlabelled)
        before = some


def test_queries_with_nothing_relevant_are_the_last_to_be_drawn():
    collection, run = random_case(3, mirrored=False)
    train = collection.qrels["train"]
    for query in list(train)[:-2]:
        train[query] = dict.fromkeys(train[query], 0)
    assert set(by_query(mined(collection, run, section(queries=2)).groups)) == set(list(train)[-2:])


def test_which_queries_are_unlabelled_hardly_depends_on_the_others():
    collection, run = random_case(2, mirrored=False)
    made = section(unlabelled=4)
    chosen = {group.query_id for group in mined(collection, run, made).unlabelled}
    assert len(chosen) == 4
    for gone in collection.qrels["train"]:
        train = {query: grades for query, grades in collection.qrels["train"].items() if query != gone}
        found = mined(replace(collection, qrels={**collection.qrels, "train": train}), run, made)
        assert chosen - {gone} <= {group.query_id for group in found.unlabelled}


@pytest.mark.parametrize("seed", CASES)
def test_unlabelled_groups_do_not_depend_on_labels(seed):
    collection, run = random_case(seed)
    made = section(unlabelled=99)
    train = collection.qrels["train"]
    shuffled = dict(zip(train, list(train.values())[::-1], strict=True))
    without = replace(collection, qrels={**collection.qrels, "train": shuffled})
    first, second = mined(collection, run, made), mined(without, run, made)
    assert repr(first.groups) != repr(second.groups)
    assert repr(first.unlabelled) == repr(second.unlabelled)


@pytest.mark.parametrize("seed", CASES)
def test_unlabelled_groups_hold_no_labels_no_held_out_query_and_never_the_query_itself(seed):
    collection, run = random_case(seed)
    made = section(negatives=5, random=2, unlabelled=99)
    held_out = {canonical(collection.queries[q]) for split in ("dev", "test") for q in collection.qrels[split]}
    for group in mined(collection, run, made).unlabelled:
        texts = [canonical(text) for text in group.documents]
        assert not held_out & set(texts)
        assert canonical(group.query) not in texts
        assert set(group.labels) == {0}
        assert len(set(group.document_ids)) == len(group)
        assert group.origins.count("mined") <= 6
        assert group.origins.count("random") <= 2


@pytest.mark.parametrize("seed", range(10))
def test_teacher_scores_and_texts_stand_beside_their_documents(seed):
    collection, run = random_case(seed)
    found = mined(collection, run, section(unlabelled=99))
    for group in (*found.groups, *found.unlabelled):
        assert group.query == collection.queries[group.query_id]
        assert list(group.documents) == [collection.documents[document] for document in group.document_ids]
        expected = [np.float32(run.scores(group.query_id).get(document, np.nan)) for document in group.document_ids]
        np.testing.assert_array_equal(np.array(group.teacher, dtype=np.float32), expected)
