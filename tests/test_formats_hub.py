"""Data sets of the hub: the same rows, without network."""

from __future__ import annotations

import pytest

from rankwright.errors import DataError
from rankwright.toolbox.formats import hub, rows
from rankwright.toolbox.formats.source import Splits

ROWS = [{"query": f"q{n}", "positive": [f"a{n}"], "negative": ["b", "c"]} for n in range(3)]


@pytest.fixture
def asked(monkeypatch):
    import datasets

    asked = []

    def load(name, config):
        asked.append((name, config))
        parts = {"validation": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_splits_of_the_data_set_become_ours(asked):
    collection = hub.read("mteb/scidocs-reranking", Splits(train="validation"), dedupe=False).collection
    assert asked == [("mteb/scidocs-reranking", None)]
    assert list(collection.qrels) == ["train", "test"]
    assert collection.queries == {"train-0": "q0", "train-1": "q1", "train-2": "q2", "test-0": "q0"}
    assert collection.documents["train-2-n1"] == "c"


def test_the_configuration_stands_behind_an_at_sign(asked):
    hub.read("some/set@english", Splits(train="validation", test="test"))
    assert asked == [("some/set", "english")]


def test_a_data_set_gives_what_its_local_copy_gives(asked, tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).to_json(tmp_path / "validation.jsonl")
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(tmp_path / "test.parquet")
    splits = Splits(train="validation")
    assert hub.read("some/set", splits).collection == rows.read(tmp_path, splits).collection


def test_other_columns_are_told_with_the_place(monkeypatch):
    import datasets

    parts = datasets.DatasetDict({"train": datasets.Dataset.from_list([{"_id": "1", "text": "x"}])})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: parts)
    with pytest.raises(DataError, match="hub:some/set train row 0: no column query and positive; found _id, text"):
        hub.read("some/set", Splits())


def test_without_network_a_local_copy_is_proposed():
    with pytest.raises(DataError, match="cannot load the data set 'mteb/no-such-set'") as caught:
        hub.read("mteb/no-such-set", Splits())
    assert "rows:FOLDER" in caught.value.hint
