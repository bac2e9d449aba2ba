"""Rows of texts: their columns, their ids, and the traps of the wild."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from rankwright.core import text_id
from rankwright.errors import DataError
from rankwright.toolbox.formats import rows
from rankwright.toolbox.formats.source import BOTH_WAYS, COPIES, TWINS, Splits


def put(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path, *, dedupe=True, **splits):
    return rows.read(path, Splits(**splits), dedupe=dedupe)


def repairs(source):
    return {repair.what: repair.count for repair in source.repairs}


def by_text(collection, split="train"):
    """query text -> document text -> grade"""
    return {
        collection.queries[query]: {collection.documents[document]: grade for document, grade in grades.items()}
        for query, grades in collection.qrels[split].items()
    }


def test_copies_merge_and_rows_with_one_query_unite(tmp_path):
    put(
        tmp_path / "train.jsonl",
        [
            {"query": "q one", "positive": ["a"], "negative": ["b", "c"]},
            {"query": "q  one", "positive": ["d"], "negative": ["b ", "e"]},
        ],
    )
    source = read(tmp_path)
    assert by_text(source.collection) == {"q one": {"a": 1, "b": 0, "c": 0, "d": 1, "e": 0}}
    assert set(source.collection.documents) == {text_id(text) for text in "abcde"}
    assert repairs(source) == {COPIES: 1, TWINS: 1}


def test_a_text_both_positive_and_negative_is_positive_and_counted(tmp_path):
    put(
        tmp_path / "train.jsonl",
        [{"query": "q", "positive": ["a"], "negative": ["a", "b"]}, {"query": "q", "positive": ["b"], "negative": []}],
    )
    source = read(tmp_path)
    assert by_text(source.collection) == {"q": {"a": 1, "b": 1}}
    assert repairs(source)[BOTH_WAYS] == 2


def test_without_dedupe_each_row_and_each_text_stands_by_itself(tmp_path):
    row = {"query": "q", "positive": ["a"], "negative": ["a", "b"]}
    put(tmp_path / "test.jsonl", [row, {"query": "", "positive": ["x"]}, row])
    source = read(tmp_path, dedupe=False)
    assert source.collection.queries == {"test-0": "q", "test-2": "q"}
    assert source.collection.documents == {
        f"test-{row}-{name}": text for row in (0, 2) for name, text in (("p0", "a"), ("n0", "a"), ("n1", "b"))
    }
    assert source.collection.qrels["test"]["test-2"] == {"test-2-p0": 1, "test-2-n0": 0, "test-2-n1": 0}
    assert repairs(source) == {"rows without a query skipped": 1, BOTH_WAYS: 2}


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "positive": "a", "negative": "b"},
        {"anchor": "q", "positives": ["a"], "negatives": ["b"]},
        {"query": "q", "relevant_passages": ["a"], "hard_negatives": ["b"]},
        {
            "query_id": 3,
            "query": "q",
            "positive_passages": [{"docid": 1, "text": "a"}],
            "negative_passages": [{"text": "b"}],
        },
        {"anchor": "q", "positive": "a", "negative_1": "b", "negative_2": None},
    ],
)
def test_other_tools_names_of_the_columns_are_understood(tmp_path, row):
    source = read(put(tmp_path / "x.jsonl", [row]))
    assert by_text(source.collection) == {"q": {"a": 1, "b": 0}}


def test_titles_of_passages_stand_before_their_texts(tmp_path):
    source = read(put(tmp_path / "x.jsonl", [{"query": "q", "positive_passages": [{"title": "T", "text": "a"}]}]))
    assert by_text(source.collection) == {"q": {"T a": 1}}


def test_jsonl_parquet_csv_and_gzip_give_the_same(tmp_path):
    import pandas as pd

    table = [
        {"query": "q, 1", "positive": "a\n\nline", "negative": "n"},
        {"query": "r", "positive": "é", "negative": "n"},
    ]
    put(tmp_path / "x.jsonl", table)
    (tmp_path / "g").mkdir()
    with gzip.open(tmp_path / "g" / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in table)
    pd.DataFrame(table).to_parquet(tmp_path / "x.parquet")
    pd.DataFrame(table).to_csv(tmp_path / "x.csv", index=False)
    first, *others = (read(tmp_path / name).collection for name in ("x.jsonl", "x.parquet", "x.csv", "g"))
    assert by_text(first)["q, 1"] == {"a\n\nline": 1, "n": 0}
    assert all(other == first for other in others)


def test_nan_cells_are_empty_and_counted(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"query": ["q", None], "positive": [["a", None], ["b"]], "negative": [math.nan, ["c"]]})
    frame.to_parquet(tmp_path / "x.parquet")
    source = read(tmp_path / "x.parquet")
    assert by_text(source.collection) == {"q": {"a": 1}}
    assert repairs(source) == {"empty texts left out": 1, "rows without a query skipped": 1}
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfquery,positive,negative\r\nq,a,nan\r\nr,,c\r\n")
    source = read(tmp_path / "x.csv")
    assert by_text(source.collection) == {"q": {"a": 1}}
    assert repairs(source)["NaN cells read as empty"] == 1
    assert repairs(source)["rows without a positive skipped"] == 1


def test_a_list_in_a_csv_cell_is_read_as_json_and_refused_as_print(tmp_path):
    (tmp_path / "x.csv").write_text('query,positive\n[sic] [1],"[""a"", ""b""]"\n')
    source = read(tmp_path / "x.csv")
    assert by_text(source.collection) == {"[sic] [1]": {"a": 1, "b": 1}}
    (tmp_path / "x.csv").write_text("query,positive\nq,\"['a' 'b']\"\n")
    with pytest.raises(DataError, match=r"x\.csv:2: a list printed as text"):
        read(tmp_path / "x.csv")


def test_a_csv_row_with_too_many_cells_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("query,positive\nq,a,b\n")
    with pytest.raises(DataError, match=r"x\.csv:2: more cells"):
        read(tmp_path / "x.csv")


def test_missing_columns_are_told_with_those_that_were_found(tmp_path):
    put(tmp_path / "x.jsonl", [{"query": "q", "pos": ["a"]}, {"text": "x"}])
    with pytest.raises(DataError, match="2 rows cannot be read") as caught:
        read(tmp_path / "x.jsonl")
    assert "x.jsonl:1: no column positive; found query, pos; that is flag:, not rows:" in str(caught.value)
    assert "x.jsonl:2: no column query and positive; found text" in str(caught.value)


def test_cells_that_are_no_texts_are_refused(tmp_path):
    put(tmp_path / "x.jsonl", [{"query": ["q"], "positive": ["a"]}, {"query": "q", "positive": {"id": 1}}])
    with pytest.raises(DataError, match="2 rows cannot be read") as caught:
        read(tmp_path / "x.jsonl")
    assert "x.jsonl:1: a text is expected, not list" in str(caught.value)


def test_a_row_without_a_positive_is_skipped_and_counted(tmp_path):
    put(tmp_path / "x.jsonl", [{"query": "q", "positive": []}, {"query": "q", "positive": ["a", " "]}])
    source = read(tmp_path / "x.jsonl")
    assert by_text(source.collection) == {"q": {"a": 1}}
    assert source.repairs[0].examples == (f"{tmp_path / 'x.jsonl'}:1",)


def test_shards_in_a_data_folder_are_one_split(tmp_path):
    import pandas as pd

    (tmp_path / "data").mkdir()
    for shard, query in enumerate("qr"):
        frame = pd.DataFrame({"query": [query], "positive": [["a"]]})
        frame.to_parquet(tmp_path / "data" / f"validation-{shard:05d}-of-00002.parquet")
    put(tmp_path / "test.jsonl", [{"query": "s", "positive": ["a"]}])
    collection = read(tmp_path, train="validation", dedupe=False).collection
    assert collection.queries == {"train-0": "q", "train-1": "r", "test-0": "s"}


def test_folders_that_leave_a_doubt_are_refused(tmp_path):
    with pytest.raises(DataError, match="no rows here"):
        read(tmp_path)
    put(tmp_path / "train.jsonl", [{"query": "q", "positive": ["a"]}])
    with pytest.raises(DataError, match="one file has no named splits"):
        read(tmp_path / "train.jsonl", train="train")
    (tmp_path / "train.csv").write_text("query,positive\nq,a\n")
    with pytest.raises(DataError, match=r"more than once: train\.csv and train\.jsonl"):
        read(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "x.txt").write_text("q")
    with pytest.raises(DataError, match="not a file of rows"):
        read(tmp_path / "x.txt")
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path / "x.parquet")
