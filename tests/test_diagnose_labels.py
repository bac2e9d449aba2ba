"""Each check of labels and texts on a tiny case that has its fault, and on one that has not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import yaml

from rankwright import sections
from rankwright.core import Collection, Run
from rankwright.rooms.diagnose import labels
from rankwright.rooms.diagnose.case import Case
from rankwright.toolbox.metrics import per_query


def ranked(**rankings):
    """A Run from lists of document ids, best first."""
    return Run({q: tuple((d, float(len(row) - place)) for place, d in enumerate(row)) for q, row in rankings.items()})


def case(retrieved, qrels, reranked=None, **more):
    return Case(retrieved, reranked or retrieved, qrels, depth=10, resamples=200, **more)


def texts(documents, queries, **qrels):
    return Collection(documents, queries, qrels)


def numbers(finding):
    return {number.limit: number.value for number in finding.numbers}


def change(finding):
    """The remedy as YAML that an experiment takes."""
    said = yaml.safe_load(finding.remedy)
    sections.Experiment.model_validate({"retrieve": {"b": {"kind": "bm25"}}, "data": {}, **said})
    return said


def quiet(finding):
    return not finding.fires and not finding.lacks and finding.reading and not finding.remedy and finding.severity == 0


TEN = [f"d{place}" for place in range(10)]
TWENTY = [f"d{place}" for place in range(20)]


# H4


def test_a_top_ten_that_hardly_anybody_judged_fires_with_both_bounds():
    found = labels.holes(case(ranked(q=TEN), {"q": {"d1": 1, "d2": 0}}, metric="mrr@10"))
    assert found.fires
    assert found.kind == "measuring"
    assert numbers(found) == pytest.approx({"H4.judged": 0.2, "H4.bias": 0.0})
    assert found.severity == pytest.approx(0.5 / 0.2)
    assert "0.5000 and 0.5000 if no unjudged" in found.reading
    assert "at most 1.0000 and 1.0000" in found.reading
    assert "judge the unjudged" in found.remedy


def test_a_reranker_that_lifts_unjudged_documents_fires_though_most_are_judged():
    judged = {document: int(place == 0) for place, document in enumerate(TEN)}
    found = labels.holes(case(ranked(q=TWENTY), {"q": judged}, ranked(q=["d10", *TEN[:9], *TWENTY[11:]])))
    assert not found.fires  # only ten were reranked: d10 stays below
    turned = Case(ranked(q=TWENTY), ranked(q=["d10", "d11", *TEN, *TWENTY[12:]]), {"q": judged}, depth=20)
    found = labels.holes(turned)
    assert found.fires
    assert numbers(found) == pytest.approx({"H4.judged": 0.8, "H4.bias": 0.2})
    assert "100.0% in retrieval and 80.0% in the reranked order" in found.reading
    assert found.severity == pytest.approx(4)


def test_the_bias_is_found_on_either_side():
    judged = {document: int(place == 0) for place, document in enumerate(TEN)}
    run = ranked(q=["d10", "d11", *TEN, *TWENTY[12:]])
    assert numbers(labels.holes(Case(run, ranked(q=TWENTY), {"q": judged}, depth=20)))["H4.bias"] == pytest.approx(0.2)


def test_a_given_negative_is_judged_and_a_fully_judged_top_ten_is_quiet():
    found = labels.holes(case(ranked(q=TEN), {"q": {document: int(document == "d3") for document in TEN}}))
    assert quiet(found)
    assert numbers(found) == {"H4.judged": 1.0, "H4.bias": 0.0}
    assert "at most" not in found.reading


def test_a_short_list_is_measured_by_the_documents_that_it_has():
    found = labels.holes(case(ranked(q=["a", "b"]), {"q": {"a": 1, "b": 0}}))
    assert numbers(found)["H4.judged"] == 1.0


@pytest.mark.parametrize("metric", ["ndcg@10", "mrr@10", "map", "recall@10", "precision@5"])
def test_no_labelling_of_the_unjudged_lies_above_the_upper_bound(metric):
    rng = np.random.default_rng(1)
    for _ in range(8):
        grades = {document: int(rng.integers(0, 3)) for document in rng.permutation(TEN[:8])[:3].tolist()}
        qrels = {"q": {"d7": 2, **grades, "not found": 1}}
        run = ranked(q=TEN[:8])
        low, most = labels._bounds(case(run, qrels, metric=metric), run)
        holes = [document for document in TEN[:8] if document not in qrels["q"]]
        every = [
            per_query(run, {"q": {**qrels["q"], **dict(zip(holes, ways, strict=True))}}, [metric])[metric][0]
            for ways in itertools.product([0, 1], repeat=len(holes))
        ]
        assert low == pytest.approx(every[0])
        assert most == pytest.approx(max(every))


def test_without_a_relevant_document_holes_cannot_be_measured():
    assert "relevant" in labels.holes(case(ranked(q=TEN), {"q": {"d0": 0}})).lacks


# H5


def test_copies_in_corpus_and_lists_fire():
    documents = {"a": "same text", "b": " same\ttext ", "c": "other", "d": "third"}
    run = ranked(p=["a", "b", "c", "d"], q=["c", "d"])
    found = labels.duplicates(case(run, {"p": {"a": 1}, "q": {"c": 1}}, collection=texts(documents, {})))
    assert found.fires
    assert found.kind == "cause"
    assert numbers(found) == pytest.approx({"H5.copies": 0.25, "H5.unique": (75 + 100) / 2})
    assert found.severity == pytest.approx(25)
    assert change(found) == {"data": {"dedupe": True}}
    assert "25.0% of 4 documents" in found.reading


def test_few_copies_that_fill_the_lists_fire_by_the_lists_alone():
    documents = {f"d{place}": f"text {place}" for place in range(1000)} | {"copy": "text 0"}
    found = labels.duplicates(case(ranked(q=["d0", "copy"]), {"q": {"d0": 1}}, collection=texts(documents, {})))
    assert found.fires
    assert [number.bad for number in found.numbers] == [False, True]
    assert numbers(found)["H5.unique"] == 50


def test_texts_that_differ_in_case_are_no_copies():
    found = labels.duplicates(case(ranked(q=["a", "b"]), {"q": {"a": 1}}, collection=texts({"a": "x", "b": "X"}, {})))
    assert quiet(found)
    assert numbers(found) == {"H5.copies": 0.0, "H5.unique": 100.0}


def test_without_documents_copies_cannot_be_counted():
    assert "documents" in labels.duplicates(case(ranked(q=["a"]), {"q": {"a": 1}})).lacks


# H6


def finding_itself(first):
    documents = {"a": "how to  sail", "b": "a boat", "c": "a sea"}
    queries = {"p": "how to sail", "q": "what is a sea"}
    run = ranked(p=first, q=["c", "b"])
    return labels.finds_itself(case(run, {"p": {"b": 1}, "q": {"c": 1}}, collection=texts(documents, queries)))


def test_queries_that_find_themselves_fire():
    found = finding_itself(["a", "b"])
    assert found.fires
    assert numbers(found) == {"H6.queries": 0.5, "H6.first": 0.5}
    assert found.numbers[0].low == 0
    assert found.numbers[0].high == 1
    assert found.severity == pytest.approx(50)
    assert change(found) == {"data": {"self_matches": "drop"}}


def test_queries_whose_own_text_was_dropped_from_the_lists_are_quiet():
    found = finding_itself(["b", "c"])
    assert quiet(found)
    assert numbers(found) == {"H6.queries": 0.5, "H6.first": 0.0}


def test_only_measured_queries_are_asked_whether_they_find_themselves():
    documents, queries = {"a": "x", "b": "y"}, {"p": "x", "q": "z"}
    run = ranked(p=["a"], q=["b"])
    found = labels.finds_itself(case(run, {"p": {"b": 0}, "q": {"b": 1}}, collection=texts(documents, queries)))
    assert quiet(found)
    assert numbers(found) == {"H6.queries": 0.0, "H6.first": 0.0}


@pytest.mark.parametrize(("documents", "queries"), [({}, {"q": "x"}), ({"a": "x"}, {})])
def test_without_texts_nobody_knows_whether_a_query_finds_itself(documents, queries):
    given = case(ranked(q=["a"]), {"q": {"a": 1}}, collection=texts(documents, queries))
    assert "texts" in labels.finds_itself(given).lacks


# H7


def colliding(qrels, queries):
    documents = {"a": "one", "b": "two", "copy": "one"}
    run = ranked(**{query: ["a", "b"] for query in qrels})
    return labels.collisions(case(run, qrels, collection=texts(documents, queries)))


def test_twin_queries_whose_labels_disagree_fire():
    found = colliding(
        {"p": {"a": 1, "b": 0}, "q": {"a": 0, "b": 0}, "r": {"b": 1}}, {"p": "same", "q": " same ", "r": "else"}
    )
    assert found.fires
    # Pairs by text: (same, one) both ways, (same, two) and (else, two) one way.
    assert numbers(found) == pytest.approx({"H7.twins": 2 / 3, "H7.both": 1 / 3})
    assert found.severity == 100
    assert change(found) == {"data": {"dedupe": True}}


def test_a_document_and_its_copy_labelled_both_ways_fire_without_twins():
    found = colliding({"p": {"a": 1, "copy": 0}}, {"p": "alone"})
    assert found.fires
    assert numbers(found) == {"H7.twins": 0.0, "H7.both": 1.0}


def test_a_grade_below_zero_collides_with_a_relevant_one_but_not_with_a_given_negative():
    assert numbers(colliding({"p": {"a": 2, "copy": -1}}, {"p": "x"}))["H7.both"] == 1
    assert numbers(colliding({"p": {"a": 0, "copy": -1, "b": 1}}, {"p": "x"}))["H7.both"] == 0


def test_different_queries_with_one_answer_are_quiet_and_so_is_a_twin_in_another_split():
    found = colliding({"p": {"a": 1}, "q": {"a": 1}}, {"p": "x", "q": "y", "training": "x"})
    assert quiet(found)
    assert numbers(found) == {"H7.twins": 0.0, "H7.both": 0.0}


def test_without_query_texts_collisions_cannot_be_seen():
    assert "queries" in labels.collisions(case(ranked(q=["a"]), {"q": {"a": 1}})).lacks


# H15


def leaking(queries, test, train, documents=None, split="test"):
    documents = {"a": "one", "b": "two", "copy": "one"} if documents is None else documents
    run = ranked(**{query: ["a", "b"] for query in test})
    given = texts(documents, queries, train=train, **({} if split == "train" else {split: test}))
    return labels.leakage(case(run, test, collection=given, split=split))


def test_queries_and_pairs_that_training_has_fire_as_counts():
    queries = {"t1": "same  query", "t2": "Boats, and sails!", "p": "same query", "q": "sails and boats", "r": "else"}
    found = leaking(queries, {"p": {"a": 1}, "q": {"b": 1}, "r": {"b": 1}}, {"t1": {"copy": 1, "b": 0}, "t2": {"b": 1}})
    assert found.fires
    assert numbers(found) == {"H15.queries": 1, "H15.near": 1, "H15.pairs": 1}
    assert found.severity == pytest.approx(math.log(2))
    assert change(found) == {"data": {"leaks": "drop"}}
    assert "'same query'" in found.reading


def test_nearly_the_same_query_alone_fires():
    found = leaking({"t": "HOW to sail?", "p": "how to sail"}, {"p": {"a": 1}}, {"t": {"b": 1}})
    assert found.fires
    assert numbers(found) == {"H15.queries": 0, "H15.near": 1, "H15.pairs": 0}


@pytest.mark.parametrize(
    "query", ["how to row", "how to sail sail", "sail"], ids=["other word", "word twice", "fewer words"]
)
def test_queries_of_other_words_are_quiet(query):
    found = leaking({"t": "how to sail", "p": query}, {"p": {"a": 1}}, {"t": {"a": 1}})
    assert quiet(found)
    assert numbers(found) == {"H15.queries": 0, "H15.near": 0, "H15.pairs": 0}


def test_queries_of_punctuation_alone_are_not_nearly_each_other():
    assert quiet(leaking({"t": "??", "p": "!"}, {"p": {"a": 1}}, {"t": {"a": 1}}))


def test_pairs_of_a_corpus_without_texts_are_told_by_document_id():
    assert numbers(leaking({"t": "x", "p": "x"}, {"p": {"a": 1}}, {"t": {"a": 1}}, {}))["H15.pairs"] == 1


def test_a_training_query_without_a_text_is_left_out():
    assert numbers(leaking({"t": "x", "p": "x"}, {"p": {"a": 1}}, {"t": {"a": 1}, "gone": {"a": 1}}))["H15.pairs"] == 1


def test_many_leaks_are_worse_than_few_but_not_without_bound():
    def leaks(count):
        queries = {f"{side}{n}": f"query {n}" for side in "tp" for n in range(count)}
        one = {"a": 1}
        return leaking(queries, {f"p{n}": one for n in range(count)}, {f"t{n}": one for n in range(count)})

    assert leaks(3).severity == pytest.approx(math.log(4))
    assert leaks(200).severity == pytest.approx(math.log(201))


def test_without_training_data_or_texts_leaks_cannot_be_seen():
    assert "training split" in leaking({"p": "x"}, {"p": {"a": 1}}, {}).lacks
    assert "training split" in leaking({"p": "x"}, {"p": {"a": 1}}, {"p": {"a": 1}}, split="train").lacks
    assert "texts" in leaking({}, {"p": {"a": 1}}, {"t": {"a": 1}}).lacks
