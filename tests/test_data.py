"""The data room: copies, self matches, leaks, cuts and samples, and the report of them."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from rankwright.core import Collection
from rankwright.errors import DataError
from rankwright.rooms.data import data
from rankwright.sections import DataSection
from rankwright.toolbox.formats import beir


def room(tmp_path, collection, seed=0, **options):
    beir.write(collection, tmp_path)
    return data(DataSection(source=f"beir:{tmp_path}", **options), seed)


def three(train, dev=None, test=None, *, documents=(), queries=()):
    """A collection whose ids are texts themselves, save those that `documents` and `queries` give other texts."""
    qrels = {"train": train, "dev": dev or {"d?": {"D": 1}}, "test": test or {"t?": {"T": 1}}}
    named = {document: document for own in qrels.values() for grades in own.values() for document in grades}
    asked = {query: query for own in qrels.values() for query in own}
    return Collection({**named, **dict(documents)}, {**asked, **dict(queries)}, qrels)


def many(count, splits=("train",), swap=False):
    """`count` queries a split, each with a document of its own (or, with `swap`, with another query's text)."""
    qrels = {
        split: {
            f"{split} query {n}": {f"{split} query {n + 1}" if swap else f"{split} document {n}": 1}
            for n in range(count)
        }
        for split in splits
    }
    asked = {query: query for own in qrels.values() for query in own}
    return Collection({d: d for own in qrels.values() for g in own.values() for d in g}, asked, qrels)


def test_a_clean_collection_passes_unchanged(tmp_path):
    collection = three({"q?": {"A": 2, "B": 0}})
    got, report = room(tmp_path, collection)
    assert got == collection
    train = report.splits["train"]
    assert (train.queries, train.relevant_pairs, train.given_negatives) == (1, 1, 1)
    assert report.lines() == [
        f"beir:{tmp_path}  4 documents",
        "train: 1 queries, 1 relevant pairs, 1 given negatives",
        "dev: 1 queries, 1 relevant pairs",
        "test: 1 queries, 1 relevant pairs",
    ]


def test_copies_of_documents_merge_and_their_labels_unite(tmp_path):
    train = {"q?": {"A2": 1, "A1": 0, "B": 2}, "r?": {"A2": 1}}
    collection = three(train, documents={"A1": "same  text", "A2": "same text"})
    got, report = room(tmp_path, collection)
    assert got.documents == {"A2": "same text", "B": "B", "D": "D", "T": "T"}
    assert got.qrels["train"] == {"q?": {"A2": 1, "B": 2}, "r?": {"A2": 1}}
    assert (report.copies_merged, report.labelled_both_ways) == (1, 1)


def test_twin_queries_of_a_split_unite(tmp_path):
    collection = three({"q1": {"A": 1}, "q2": {"B": 1, "A": 0}}, queries={"q1": "cafe\u0301", "q2": " café "})
    got, report = room(tmp_path, collection)
    assert got.qrels["train"] == {"q1": {"A": 1, "B": 1}}
    assert "q2" not in got.queries
    assert (report.twins_united, report.labelled_both_ways) == (1, 1)


def test_without_dedupe_copies_and_twins_stay(tmp_path):
    collection = three({"q1": {"A": 1}, "q2": {"B": 1}}, queries={"q1": "q", "q2": "q"}, documents={"A": "x", "B": "x"})
    got, report = room(tmp_path, collection, dedupe=False)
    assert got == collection
    assert (report.copies_merged, report.twins_united) == (0, 0)


@pytest.mark.parametrize(("choice", "left"), [("drop", {"A": 1}), ("keep", {"A": 1, "Q": 1})])
def test_a_document_that_is_the_query_itself_is_dropped_or_kept(tmp_path, choice, left):
    collection = three({"q": {"A": 1, "Q": 1}}, queries={"q": "the text"}, documents={"Q": "the  text"})
    got, report = room(tmp_path, collection, self_matches=choice)
    assert got.qrels["train"] == {"q": left}
    assert "Q" in got.documents
    assert report.self_matches == 1
    assert any("the query itself" in line for line in report.lines())


def test_queries_to_which_nothing_is_relevant_are_left_out_and_counted(tmp_path):
    collection = three({"q?": {"A": 1}, "r?": {"A": 0}}, test={"t?": {"T": 1}, "u?": {"T": 0}})
    got, report = room(tmp_path, collection)
    assert list(got.queries) == ["q?", "d?", "t?"]
    assert {split: counts.without_relevant for split, counts in report.splits.items()} == {
        "train": 1,
        "dev": 0,
        "test": 1,
    }


def test_an_empty_split_is_refused_by_its_name(tmp_path):
    with pytest.raises(DataError, match=r"split test is empty \(1 queries have no relevant document\)"):
        room(tmp_path, three({"q?": {"A": 1}}, test={"t?": {"T": 0}}))


def test_a_source_without_training_is_refused(tmp_path):
    with pytest.raises(DataError, match="no train split; there is dev and test"):
        room(tmp_path, many(3, ("dev", "test")))
    with pytest.raises(DataError, match="no train split; there is test"):
        room(tmp_path, many(3, ("test",)), test="test")


# leaks ------------------------------------------------------------------------------------------------------------

SHARED = three({"q1": {"A": 1}, "x": {"A": 1}}, test={"q2": {"A": 1}, "t": {"T": 1}}, queries={"q1": "q", "q2": "q "})
SWAPPED = three({"q?": {"t.": 1, "A": 1}, "x": {"A": 1}}, test={"t?": {"q.": 1}}, queries={"q?": "q", "t?": "t"})
SWAPPED = Collection({**SWAPPED.documents, "t.": "t", "q.": "q"}, SWAPPED.queries, SWAPPED.qrels)


def test_leaks_are_refused_with_counts_and_examples(tmp_path):
    with pytest.raises(DataError, match=r"train and test share 1 queries and 1 relevant pairs \(query 'q'\)") as caught:
        room(tmp_path, SHARED)
    assert "leaks: drop" in caught.value.hint
    with pytest.raises(
        DataError, match=r"0 queries and 1 relevant pairs \(1 the other way round\) \(pair 'q' and 't'\)"
    ):
        room(tmp_path, SWAPPED)


def test_leaks_that_are_reported_are_kept_and_counted(tmp_path):
    got, report = room(tmp_path, SHARED, leaks="report")
    assert got == SHARED
    (leak,) = report.leaks
    assert (leak.splits, leak.queries, leak.pairs, leak.swapped) == (("train", "test"), 1, 1, 0)
    assert not report.leaks_dropped


def test_leaks_that_are_dropped_leave_the_training_side(tmp_path):
    got, report = room(tmp_path, SHARED, leaks="drop")
    assert got.qrels == {**SHARED.qrels, "train": {"x": {"A": 1}}}
    assert report.leaks[0].queries == 1
    got, report = room(tmp_path, SWAPPED, leaks="drop")
    assert got.qrels == {**SWAPPED.qrels, "train": {"q?": {"A": 1}, "x": {"A": 1}}}
    assert report.leaks[0].swapped == 1


def test_dev_gives_way_to_test(tmp_path):
    collection = three({"q?": {"A": 1}}, dev={"d?": {"D": 1}, "s1": {"A": 1}}, test={"s2": {"A": 1}})
    collection.queries.update(s1="same", s2="same")
    got, _ = room(tmp_path, collection, leaks="drop")
    assert got.qrels == {**collection.qrels, "dev": {"d?": {"D": 1}}}


def test_the_same_id_in_two_splits_is_a_leak(tmp_path):
    collection = three({"q?": {"A": 1}, "t?": {"A": 1}})
    with pytest.raises(DataError, match="share 1 queries and 0 relevant pairs"):
        room(tmp_path, collection)
    got, _ = room(tmp_path, collection, leaks="drop")
    assert got.qrels == {**collection.qrels, "train": {"q?": {"A": 1}}}


def test_texts_that_are_no_relevant_pair_in_both_splits_are_no_leak(tmp_path):
    collection = three({"q?": {"T": 0, "A": 1}, "r?": {"D": 1}})
    got, report = room(tmp_path, collection)
    assert got == collection
    assert report.leaks == ()


# cuts -------------------------------------------------------------------------------------------------------------


def sizes(collection):
    return {split: len(qrels) for split, qrels in collection.qrels.items()}


def test_missing_splits_are_cut_from_the_only_one(tmp_path):
    for split in ("train", "test", "dev"):
        collection = many(1000, (split,))
        got, report = room(tmp_path / split, collection)
        size = sizes(got)
        assert sum(size.values()) == 1000
        assert 160 < size["test"] < 240
        assert 55 < size["dev"] < 105
        assert [name for name, counts in report.splits.items() if counts.cut_from_train] == ["dev", "test"]
        assert {**got.qrels["train"], **got.qrels["dev"], **got.qrels["test"]} == collection.qrels[split]


def test_dev_alone_is_cut_where_there_is_a_test(tmp_path):
    collection = many(300, ("train", "test"))
    got, _ = room(tmp_path, collection, dev_share=0.3)
    assert got.qrels["test"] == collection.qrels["test"]
    assert 60 < sizes(got)["dev"] < 120


def test_the_cut_depends_on_seed_and_text_and_not_on_the_other_queries(tmp_path):
    whole = many(200)
    half = {query: whole.qrels["train"][query] for query in reversed(list(whole.qrels["train"])[::2])}
    got, _ = room(tmp_path / "a", whole)
    part, _ = room(tmp_path / "b", Collection(whole.documents, whole.queries, {"train": half}))
    for split in ("train", "dev", "test"):
        assert set(part.qrels[split]) == set(got.qrels[split]) & set(half)
    other, _ = room(tmp_path / "a", whole, seed=1)
    assert set(other.qrels["dev"]) != set(got.qrels["dev"])


def test_twins_are_cut_together_also_without_dedupe(tmp_path):
    queries = {f"{copy}{n}": f"query {n}" for n in range(50) for copy in "ab"}
    collection = Collection({"A": "A"}, queries, {"train": {query: {"A": 1} for query in queries}})
    got, _ = room(tmp_path, collection, dedupe=False)
    texts = [{queries[query] for query in qrels} for qrels in got.qrels.values()]
    assert all(not first & second for first, second in zip(texts, texts[1:] + texts[:1], strict=True))


def test_a_small_source_gets_at_least_one_query_a_split(tmp_path):
    assert all(sizes(room(tmp_path, many(count))[0]).values() for count in (6, 8, 10))
    with pytest.raises(DataError, match="the split dev is empty") as caught:
        room(tmp_path, many(2))
    assert "dev_share" in caught.value.hint


def test_pairs_that_a_cut_split_holds_the_other_way_round_leave_train(tmp_path):
    chain = {f"q{n}": {f"d{m}": 1 for m in (n - 1, n + 1) if 0 <= m < 100} for n in range(100)}
    texts = {f"d{n}": f"text {n}" for n in range(100)}
    collection = Collection(texts, {f"q{n}": f"text {n}" for n in range(100)}, {"train": chain})
    got, report = room(tmp_path, collection)
    pairs = {
        split: {(q[1:], d[1:]) for q, grades in qrels.items() for d in grades} for split, qrels in got.qrels.items()
    }
    swapped = {split: {(d, q) for q, d in own} for split, own in pairs.items()}
    assert not pairs["train"] & (swapped["dev"] | swapped["test"])
    assert not pairs["dev"] & swapped["test"]
    assert report.mirrored_pairs == 198 - sum(map(len, pairs.values())) > 0


# samples and the report ---------------------------------------------------------------------------------------------


def test_a_sample_is_seeded_and_keeps_the_documents(tmp_path):
    collection = many(100, ("train", "dev", "test"))
    got, report = room(tmp_path, collection, max_queries={"train": 10, "dev": 200})
    assert sizes(got) == {"train": 10, "dev": 100, "test": 100}
    assert got.documents == collection.documents
    assert len(got.queries) == 210
    assert (report.splits["train"].sampled_from, report.splits["dev"].sampled_from) == (100, None)
    again, _ = room(tmp_path, collection, max_queries={"train": 20})
    assert set(got.qrels["train"]) < set(again.qrels["train"])
    other, _ = room(tmp_path, collection, seed=1, max_queries={"train": 10})
    assert set(other.qrels["train"]) != set(got.qrels["train"])


def test_the_same_input_gives_the_same_bytes_through_the_stored_folder(tmp_path):
    got, _ = room(tmp_path / "a", many(50, swap=True))
    beir.write(got, tmp_path / "b")
    assert beir.read(tmp_path / "b").collection == got
    again, report = room(tmp_path / "b", got)
    assert again == got
    assert report.mirrored_pairs == 0


def test_rows_of_texts_tell_their_merged_copies_in_the_report(tmp_path):
    rows = [
        {"query": f"q{n // 2}", "positive": ["a", f"b{n}"], "negative": ["n", "a" if n == 3 else "m"]}
        for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"query": "x", "positive": []}])
    )
    got, report = data(DataSection(source=f"rows:{tmp_path / 'rows.jsonl'}"), 0)
    assert (report.documents, report.copies_merged, report.twins_united) == (63, 240 - 63, 30)
    assert report.labelled_both_ways == 1
    assert sum(sizes(got).values()) == 30
    (repair,) = report.repairs
    assert repair.examples == (f"{tmp_path / 'rows.jsonl'}:61",)
    assert any("rows without a positive skipped" in line for line in report.lines())


def test_the_report_is_json(tmp_path):
    _, report = room(tmp_path, SHARED, leaks="report")
    told = json.loads(json.dumps(asdict(report)))
    assert told["splits"]["train"]["queries"] == 2
    assert told["leaks"][0]["splits"] == ["train", "test"]


def test_a_judgement_of_the_query_itself_below_a_title_is_dropped_too(tmp_path):
    text = "the argument goes on for a while"
    collection = three({"q": {"q": 1, "B": 1}}, documents={"q": f"Title {text}"}, queries={"q": text})
    got, report = room(tmp_path, collection)
    assert got.qrels["train"] == {"q": {"B": 1}}
    assert report.self_matches == 1
