"""FlagEmbedding's JSONL as a source, and training groups that go to disk and come back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from rankwright.core import Group, text_id
from rankwright.errors import DataError
from rankwright.toolbox.formats import flag
from rankwright.toolbox.formats.source import Splits

LABELLED = Group(
    query_id="q 1",
    query="wie viel?\u2028",
    document_ids=["a", "b", "c", "d"],
    documents=["A", "B", "C\n", 'D"'],
    labels=[2, 1, 0, 0],
    teacher=[0.1 + 0.2, -1e-300, float(np.float32(0.3)), 5e200],
    origins=["positive", "positive", "mined", "random"],
)
UNLABELLED = replace(LABELLED, labels=[0] * 4, origins=["mined"] * 4)


def put(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_groups_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "groups.jsonl"
    flag.write_groups(path, iter([LABELLED, UNLABELLED]))
    assert flag.read_groups(path) == [LABELLED, UNLABELLED]
    assert json.loads(path.read_text().split("\n")[1])["pos"] == []


def test_weights_of_negatives_come_back_and_stand_in_the_file_only_when_one_is_not_1(tmp_path):
    weighed = replace(LABELLED, weights=[1.0, 1.0, 0.1 + 0.2, 0.0])
    flag.write_groups(tmp_path / "x", [LABELLED, weighed])
    plain, told = map(json.loads, (tmp_path / "x").read_text().split("\n")[:2])
    assert "neg_weights" not in plain
    assert told["neg_weights"] == [0.1 + 0.2, 0.0]
    assert flag.read_groups(tmp_path / "x") == [LABELLED, weighed]
    assert LABELLED.weights == [1.0] * 4


def test_what_is_read_and_written_again_has_the_same_bytes(tmp_path):
    group = replace(LABELLED, teacher=[math.nan, np.float32(0.1), math.nan, 1])
    flag.write_groups(tmp_path / "a", [group])
    flag.write_groups(tmp_path / "b", flag.read_groups(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text())["pos_scores"] == [None, float(np.float32(0.1))]


def test_positives_stand_before_negatives_on_disk(tmp_path):
    mixed = replace(LABELLED, labels=[0, 1, 0, 2], origins=["given", "positive", "mined", "positive"])
    flag.write_groups(tmp_path / "x", [mixed])
    (group,) = flag.read_groups(tmp_path / "x")
    assert group.document_ids == ["b", "d", "a", "c"]
    assert group.labels == [1, 2, 0, 0]
    assert group.teacher == [mixed.teacher[index] for index in (1, 3, 0, 2)]


def test_a_file_of_flag_embedding_gives_groups(tmp_path):
    (group,) = flag.read_groups(put(tmp_path / "x", {"query": "q", "pos": ["a"], "neg": ["b"], "neg_scores": [0.5]}))
    assert (group.query_id, group.document_ids) == (text_id("q"), [text_id("a"), text_id("b")])
    assert (group.labels, group.origins) == ([1, 0], ["positive", "given"])
    assert math.isnan(group.teacher[0])
    assert group.teacher[1] == 0.5


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"query": "q", "pos": ["a"], "neg": "abc"}, "neg must be a list of texts, not a string: 'abc'"),
        ({"query": "q", "pos": ["a"], "pos_scores": []}, "pos_scores must be a list of 1 values"),
        ({"query": "q", "pos": ["a"], "pos_scores": ["1"]}, "scores must be numbers or null"),
        ({"query": "q", "pos": ["a"], "pos_grades": [0]}, "pos_grades must be whole numbers above 0"),
        ({"query": "q", "pos": [], "neg": ["a"], "neg_weights": []}, "neg_weights must be a list of 1 values"),
        ({"query": "q", "pos": [], "neg": ["a"], "neg_weights": [1.5]}, "neg_weights must be numbers from 0 to 1"),
        ({"query": "q", "pos": [], "neg": ["a"], "neg_weights": [math.nan]}, "neg_weights must be numbers from 0 to 1"),
        ({"query": "q", "pos": [], "neg": ["a"], "neg_weights": [None]}, "neg_weights must be numbers from 0 to 1"),
        ({"query": "q", "pos": [1]}, "pos must be a list of texts"),
        ({"query": 1, "pos": []}, "query must be a text"),
        ({"query": "q", "positive": []}, "query and pos are expected; found query, positive"),
    ],
)
def test_lines_that_are_no_groups_are_told_with_their_numbers(tmp_path, line, told):
    path = put(tmp_path / "x.jsonl", {"query": "q", "pos": ["a"], "neg": []}, line)
    with pytest.raises(DataError) as caught:
        flag.read_groups(path)
    assert f"{path}:2: {told}" in str(caught.value)


def test_a_broken_write_leaves_the_older_file(tmp_path):
    flag.write_groups(tmp_path / "x", [LABELLED])

    def breaks():
        yield UNLABELLED
        raise RuntimeError

    with pytest.raises(RuntimeError):
        flag.write_groups(tmp_path / "x", breaks())
    assert flag.read_groups(tmp_path / "x") == [LABELLED]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_source_has_the_ids_of_its_texts(tmp_path):
    path = put(
        tmp_path / "x.jsonl",
        {"query": "q", "pos": ["a", ""], "neg": ["b"], "pos_scores": [1, 2], "neg_scores": [0]},
        {"query": "r", "pos": [], "neg": ["b"]},
        {"query": None, "pos": ["a"]},
    )
    source = flag.read(path, Splits())
    assert source.collection.qrels == {"train": {text_id("q"): {text_id("a"): 1, text_id("b"): 0}}}
    assert {repair.what: repair.count for repair in source.repairs} == {
        "rows whose teacher scores are left aside": 1,
        "empty texts left out": 1,
        "rows without a positive skipped": 1,
        "rows without a query skipped": 1,
    }


def test_a_folder_has_splits(tmp_path):
    for split in ("train", "test"):
        put(tmp_path / f"{split}.jsonl", {"query": split, "pos": ["a"]})
    collection = flag.read(tmp_path, Splits(), dedupe=False).collection
    assert collection.qrels == {"train": {"train-0": {"train-0-p0": 1}}, "test": {"test-0": {"test-0-p0": 1}}}


@pytest.mark.parametrize(("pos", "neg"), [("a", []), (["a"], "bcd"), ({"a": 1}, []), (["a"], 3), ([["a"]], [])])
def test_a_string_where_a_list_belongs_is_refused(tmp_path, pos, neg):
    path = put(tmp_path / "x.jsonl", {"query": "q", "pos": pos, "neg": neg})
    with pytest.raises(DataError, match=r"x\.jsonl:1: ") as caught:
        flag.read(path, Splits())
    assert '"pos": ["…"]' in caught.value.hint
