"""Reference answers come by a query's id or its text, and a bad line is told with its place."""

import json

import pytest

from rankwright.errors import DataError
from rankwright.toolbox.formats.answers import read_answers

QUERIES = {"q1": "how many legs has a spider", "q2": "who wrote it"}


@pytest.fixture
def written(tmp_path):
    def write(*lines):
        path = tmp_path / "answers.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


def test_a_line_names_its_query_by_id_or_by_text(written):
    path = written({"query_id": "q2", "answer": "Anon"}, {"query": QUERIES["q1"], "answer": "eight"})
    assert read_answers(path, QUERIES) == {"q2": "Anon", "q1": "eight"}


def test_answers_to_queries_of_another_split_are_passed_over(written):
    path = written({"query_id": "q1", "answer": "eight"}, {"query_id": "q9", "answer": "no"})
    assert read_answers(path, QUERIES) == {"q1": "eight"}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{"], "answers.jsonl:1: not JSON"),
        ([{"query_id": "q1"}], "answers.jsonl:1: a line needs query_id"),
        ([{"answer": "eight"}], "answers.jsonl:1: a line needs query_id"),
        (
            [{"query_id": "q1", "answer": "8"}, {"query_id": "q1", "answer": "9"}],
            "answers.jsonl:2: query q1 has another",
        ),
        ([{"query_id": "q9", "answer": "8"}], "no line names a query of this collection"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(written, lines, told):
    with pytest.raises(DataError, match=told):
        read_answers(written(*lines), QUERIES)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "none.jsonl", QUERIES)
