"""The offline collection `docstrings:`: a summary finds the rest of its docstring."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import textwrap
from importlib.metadata import version

import pytest

from rankwright.core import SPLITS, relevant, text_id
from rankwright.errors import DataError
from rankwright.toolbox.formats import docstrings, doctext, seealso
from rankwright.toolbox.formats.source import Splits

SOME = "json,textwrap,email,logging,rich,statistics,argparse"


@pytest.fixture(scope="module")
def source():
    return docstrings.build(SOME)


@pytest.fixture(scope="module")
def whole():
    return docstrings.build()


def pairs(collection):
    return [
        (collection.queries[query], collection.documents[document])
        for qrels in collection.qrels.values()
        for query, grades in qrels.items()
        for document in relevant(grades)
    ]


def test_a_summary_finds_the_rest_of_its_docstring(source):
    found = dict(pairs(source.collection))
    summary, rest = inspect.getdoc(textwrap.dedent).replace("`", "").split("\n\n", 1)
    assert found[summary] == " ".join(rest.split())


def test_each_query_has_one_relevant_document_and_25_negatives(source):
    for qrels in source.collection.qrels.values():
        assert all(sorted(grades.values()) == [0] * 25 + [1] for grades in qrels.values())
    assert set(source.collection.qrels) == set(SPLITS)


def test_texts_have_the_lengths_that_are_promised(source):
    assert all(8 <= len(text.split()) <= 150 for text in source.collection.documents.values())
    assert all(3 <= len(text.split()) <= 40 for text in source.collection.queries.values())
    assert any(len(text.split()) == 150 for text in source.collection.documents.values())


def test_no_summary_stands_word_for_word_in_its_document(whole):
    assert not [query for query, text in pairs(whole.collection) if query.rstrip(".").lower() in text.lower()]


def test_the_whole_collection_has_over_500_test_queries(whole):
    counts = {split: len(qrels) for split, qrels in whole.collection.qrels.items()}
    assert counts["test"] > 500
    assert counts["train"] > 2 * counts["test"]
    assert counts["dev"] > 200
    assert len(whole.collection.queries) == sum(counts.values())


def test_ids_are_those_of_the_texts(whole):
    collection = whole.collection
    assert all(
        text_id(text) == name for texts in (collection.documents, collection.queries) for name, text in texts.items()
    )
    assert list(collection.documents) == sorted(collection.documents)


def test_a_summary_of_several_texts_makes_no_query_but_its_texts_stay(monkeypatch):
    body = "and {} follows a text of more than eight words in all."
    docs = {
        "json.a": "Reads a file.\n\n" + body.format("here"),
        "json.b": "Reads a file.\n\n" + body.format("there"),
        "json.c": "Writes a file.\n\nIt writes a file " + body.format("then"),
        "json.d": "Closes a file.\n\n" + body.format("now"),
        "json.e": "Closes a file.\n\n" + body.format("now"),
        "json.f": "Opens a file.\n\nToo short.",
    }
    monkeypatch.setattr(doctext, "collect", lambda names, belongs: doctext.Docs(docs, {}))
    source = docstrings.build("json")
    assert pairs(source.collection) == [("Closes a file.", body.format("now"))]
    assert len(source.collection.documents) == 4
    assert [(repair.count, repair.examples) for repair in source.repairs] == [
        (1, ("Reads a file.",)),
        (1, ("Writes a file.",)),
    ]


def test_a_file_that_hides_a_standard_module_is_not_run(tmp_path):
    (tmp_path / "pyclbr.py").write_text("raise SystemExit('this is my own file')")
    code = "from rankwright.toolbox.formats import docstrings as d; print(d.build('pyclbr,json').repairs)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "hidden by a file of the same name" in done.stdout
    assert "pyclbr" in done.stdout
    assert "json" not in done.stdout


def test_two_processes_build_the_same_bytes():
    code = (
        "import json, sys; from rankwright.toolbox.formats import docstrings; c = docstrings.build().collection; "
        "sys.stdout.write(json.dumps([c.documents, c.queries, c.qrels]))"
    )
    outputs = set()
    for seed, first in [("1", "import huggingface_hub, sqlite3; huggingface_hub.HfApi; "), ("2", "")]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", first + code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())[0]) > 2000


def test_modules_that_open_windows_or_print_are_never_imported():
    assert not {"antigravity", "this", "turtle", "tkinter", "idlelib", "test"} & {*docstrings.STANDARD_LIBRARY}
    assert {"json", "os", "re", "builtins"} <= {*docstrings.STANDARD_LIBRARY}
    with pytest.raises(DataError, match="no antigravity in this collection"):
        docstrings.build("antigravity")


def test_no_package_serves_both_collections():
    assert not {*docstrings.PACKAGES, *docstrings.STANDARD_LIBRARY} & {*seealso.PACKAGES}


def test_versions_name_what_determines_the_content():
    assert docstrings.versions("rich,json") == {
        "rich": version("rich"),
        "python": doctext.python(),
        "builder": str(docstrings.BUILDER),
    }
    assert set(docstrings.versions()) == {*docstrings.PACKAGES, "python", "builder"}


def test_splits_can_be_named_otherwise(source):
    other = docstrings.read(SOME, Splits(test="train", train="test"))
    assert other.collection.qrels["test"] == source.collection.qrels["train"]
    assert docstrings.read(SOME, Splits()) == source
