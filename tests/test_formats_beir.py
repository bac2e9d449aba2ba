"""BEIR folders: what is written is read again; traps of the wild are told or repaired."""

from __future__ import annotations

import json

import pytest

from rankwright.core import Collection
from rankwright.errors import DataError
from rankwright.toolbox.formats import beir
from rankwright.toolbox.formats.source import Splits

COLLECTION = Collection(
    {"d1": "red apple", "d 2": "grün\u2028 zwei\nZeilen ", "d3": "\ttabs"},
    {"q1": "fruit?", "q2": "  spaces  kept "},
    {"train": {"q1": {"d1": 2, "d 2": 0}}, "test": {"q2": {"d3": 1}}},
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    put(tmp_path, "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": f"text {n}"} for n in range(300)])
    put(tmp_path, "queries.jsonl", [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}])
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return tmp_path


def put(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def repairs(source):
    return {repair.what: repair.count for repair in source.repairs}


def test_a_collection_is_read_as_it_was_written(tmp_path):
    beir.write(COLLECTION, tmp_path)
    source = beir.read(tmp_path)
    assert source.collection == COLLECTION
    assert list(source.collection.documents) == list(COLLECTION.documents)
    assert source.repairs == ()


def test_the_same_collection_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        beir.write(COLLECTION, tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_qrels_of_an_older_collection_do_not_stay(tmp_path):
    beir.write(COLLECTION, tmp_path)
    less = Collection(COLLECTION.documents, {"q1": "fruit?"}, {"train": COLLECTION.qrels["train"]})
    beir.write(less, tmp_path)
    assert beir.read(tmp_path).collection == less


def test_an_id_that_qrels_cannot_hold_is_not_written(tmp_path):
    with pytest.raises(DataError, match="tab or a line break"):
        beir.write(Collection({"d\t1": "a"}, {}, {}), tmp_path)


def test_title_and_text_make_the_document(folder):
    rows = [
        {"_id": "d1", "title": "T", "text": "x"},
        {"_id": "d2", "title": "T", "text": ""},
        {"_id": "d3", "text": "x"},
    ]
    put(folder, "corpus.jsonl", rows)
    assert beir.read(folder).collection.documents == {"d1": "T x", "d2": "T", "d3": "x"}


def test_only_judged_queries_are_kept(folder):
    assert beir.read(folder).collection.queries == {"q1": "one"}


def test_numeric_ids_become_strings_and_are_counted(folder):
    put(folder, "corpus.jsonl", [{"_id": 1, "text": "x"}, {"_id": 2.0, "text": "y"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t1\t1\nq1\t2\t1\n")
    source = beir.read(folder)
    assert source.collection.qrels == {"test": {"q1": {"1": 1, "2": 1}}}
    assert repairs(source) == {"ids that were numbers": 2}


@pytest.mark.parametrize(
    ("text", "count"),
    [("q1\td1\t1\n", 1), ("q1 0 d1 1\n", 1), ("q1\t0\td1\t1\r\n", 1), ("query\tdoc\trelevance\nq1\td1\t1.0\n", 0)],
)
def test_qrels_without_a_header_or_with_four_columns_are_read(folder, text, count):
    (folder / "qrels" / "test.tsv").write_bytes(text.encode())
    source = beir.read(folder)
    assert source.collection.qrels == {"test": {"q1": {"d1": 1}}}
    assert repairs(source).get("qrels files without a header", 0) == count


def test_a_first_line_with_half_a_grade_is_no_header(folder):
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t0.5\nq1\td2\t1\tx\ty\nq1\td3\tyes\n")
    with pytest.raises(DataError, match="3 lines cannot be read") as caught:
        beir.read(folder)
    assert "test.tsv:1: the grade must be a whole number, not '0.5'" in str(caught.value)
    assert "test.tsv:2: 3 or 4 columns" in str(caught.value)


def test_grades_below_zero_are_zero_and_the_higher_grade_counts(folder):
    (folder / "qrels" / "test.tsv").write_text("q\td\tscore\nq1\td1\t-2\nq1\td2\t1\nq1\td2\t0\n")
    source = beir.read(folder)
    assert source.collection.qrels["test"] == {"q1": {"d1": 0, "d2": 1}}
    assert repairs(source) == {"grades below 0 read as 0": 1, "pairs graded twice (the higher grade counts)": 1}


def test_a_few_judgements_of_unknown_ids_are_left_out_and_counted(folder):
    lines = [f"q1\td{n}\t1" for n in range(200)] + ["q1\tlost\t1"]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines))
    source = beir.read(folder)
    assert len(source.collection.qrels["test"]["q1"]) == 200
    (repair,) = source.repairs
    assert repair.count == 1
    assert "document lost has no text" in repair.examples[0]


def test_many_judgements_of_unknown_ids_are_refused(folder):
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\tlost\t1\nq9\td1\t1\n")
    with pytest.raises(DataError, match="2 of 3 judgements name ids without a text") as caught:
        beir.read(folder)
    assert "query q9 has no text" in str(caught.value)


def test_empty_texts_are_left_out_with_their_judgements(folder):
    put(folder, "corpus.jsonl", [{"_id": "d1", "text": " "}, {"_id": "d2", "text": None}, {"_id": "d3", "text": "x"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td3\t1\n")
    source = beir.read(folder)
    assert source.collection.documents == {"d3": "x"}
    assert source.collection.qrels == {"test": {"q1": {"d3": 1}}}
    assert repairs(source) == {"empty texts left out": 2, "judgements of empty texts left out": 1}


def test_lines_that_cannot_be_read_are_gathered(folder):
    more = [
        '{"_id": "d1", "text": "other"}',
        '{"_id": "d2", "text": "text 2"}',
        '{"text": "x"}',
        '{"_id": null, "text": "x"}',
        "{",
    ]
    with (folder / "corpus.jsonl").open("a") as file:
        file.write("\n".join(more))
    with pytest.raises(DataError, match="4 lines cannot be read") as caught:
        beir.read(folder)
    for told in (
        "301: id d1 stands twice",
        "303: _id and text are expected; found text",
        "304: an id is",
        "305: not JSON",
    ):
        assert told in str(caught.value)


def test_missing_files_and_splits_are_told(folder):
    with pytest.raises(DataError, match="no split 'train'; found test"):
        beir.read(folder, Splits(train="train"))
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"queries\.jsonl missing"):
        beir.read(folder)
    with pytest.raises(DataError, match="no such folder"):
        beir.read(folder / "none")
