"""KIND:LOCATION, names of splits, guesses, and the lines that all readers read."""

from __future__ import annotations

import json

import pytest

from rankwright.core import Collection
from rankwright.errors import ConfigError, DataError, DiskError
from rankwright.toolbox import formats
from rankwright.toolbox.formats import beir, flag, trec
from rankwright.toolbox.formats.files import json_lines, lines, written_whole
from rankwright.toolbox.formats.source import Notes, Splits

SMALL = Collection({"d": "a"}, {"q": "b"}, {"train": {"q": {"d": 1}}})


def test_the_kind_chooses_the_reader(tmp_path):
    beir.write(SMALL, tmp_path)
    assert formats.read(f"beir:{tmp_path}", Splits(), dedupe=True).collection == SMALL


@pytest.mark.parametrize(
    ("source", "hint"),
    [("bier:data/x", "beir:data/x"), ("nothing-like-it:x", "KIND is one of beir, rows"), ("words", "KIND:LOCATION")],
)
def test_an_unknown_kind_is_refused_with_a_guess(source, hint):
    with pytest.raises(ConfigError) as caught:
        formats.read(source, Splits(), dedupe=True)
    assert hint in caught.value.hint


def test_a_bare_path_is_refused_with_the_kind_it_looks_like(tmp_path):
    beir.write(SMALL, tmp_path)
    with pytest.raises(ConfigError, match=f"try: beir:{tmp_path}"):
        formats.read(str(tmp_path), Splits(), dedupe=True)


def test_data_are_recognised_by_layout_and_first_row(tmp_path):
    beir.write(SMALL, tmp_path / "beir")
    trec.write_qrels(tmp_path / "trec" / "qrels.test.txt", {"q": {"d": 1}})
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"query": "a", "positive": ["b"]}\n')
    (tmp_path / "flag.jsonl").write_text('{"query": "a", "pos": ["b"], "neg": []}\n')
    (tmp_path / "triplets.csv").write_text("anchor,positive,negative\na,b,c\n")
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    guesses = {name: formats.sniff(tmp_path / name) for name in ("beir", "trec", "rows", "flag.jsonl", "triplets.csv")}
    assert [guess.partition(":")[0] for guess in guesses.values()] == ["beir", "trec", "rows", "flag", "rows"]
    assert formats.sniff(tmp_path / "other.csv") is None
    assert formats.sniff(tmp_path / "missing") is None
    assert formats.sniff(tmp_path) is None


def test_usual_names_of_splits_are_found():
    assert Splits().resolve(["test", "train", "validation"], "x") == {
        "train": "train",
        "dev": "validation",
        "test": "test",
    }


def test_a_split_named_outright_is_not_taken_twice():
    assert Splits(train="validation").resolve(["validation", "test"], "x") == {"train": "validation", "test": "test"}
    assert Splits(train="test").resolve(["test"], "x") == {"train": "test"}


def test_one_split_of_an_unusual_name_is_training():
    assert Splits().resolve(["everything"], "x") == {"train": "everything"}


def test_split_names_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="did you mean validation"):
        Splits(dev="validaton").resolve(["train", "validation"], "x")
    with pytest.raises(DataError, match="the splits are en, fr"):
        Splits().resolve(["en", "fr"], "x")
    with pytest.raises(ConfigError, match="the same split"):
        Splits(train="a", test="a").resolve(["a"], "x")


def test_byte_order_mark_and_crlf_are_taken_away_and_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\r\n')
    notes = Notes()
    assert list(json_lines(path, notes)) == [(1, {"a": 1}), (3, {"a": 2})]
    assert {repair.what: repair.count for repair in notes.repairs()} == {
        "byte order mark taken away": 1,
        "file with CRLF line ends": 1,
    }


def test_lines_that_are_no_json_objects_are_gathered_with_their_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n\xff\n')
    notes = Notes()
    assert list(json_lines(path, notes)) == [(1, {"a": 1})]
    assert [problem.split(": ")[0] for problem in notes.problems] == [f"{path}:2", f"{path}:3", f"{path}:4"]
    with pytest.raises(DataError, match="3 lines cannot be read"):
        notes.refuse("lines cannot be read")


def test_a_missing_file_and_a_folder_in_its_place_are_told(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(lines(tmp_path / "none", Notes()))
    with pytest.raises(DiskError, match="cannot read"):
        list(lines(tmp_path, Notes()))


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with written_whole(path) as file:
        file.write("one\n")

    def fail():
        with written_whole(path) as file:
            file.write("two\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "one\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_a_disk_error(tmp_path):
    def fill():
        with written_whole(tmp_path / "x.jsonl"):
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left"):
        fill()


def test_examples_of_repairs_stop_at_three():
    notes = Notes()
    for number in range(5):
        notes.repair("spots", f"x:{number}")
    (repair,) = notes.repairs()
    assert (repair.count, repair.examples) == (5, ("x:0", "x:1", "x:2"))


def test_half_characters_and_numbers_become_texts(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"query": 1945, "pos": ["bad \\ud800 half", "d\\u00e9j\\u00e0"]}\n')
    source = flag.read(path, Splits())
    assert list(source.collection.documents.values()) == ["bad � half", "déjà"]
    assert list(source.collection.queries.values()) == ["1945"]
    assert [repair.what for repair in source.repairs] == ["half characters replaced", "numbers read as texts"]
    json.dumps(source.collection.documents, ensure_ascii=False).encode()
