"""The offline collection `seealso:` and the texts and rows that it shares with `docstrings:`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest

from rankwright.core import SPLITS, canonical, relevant, text_id
from rankwright.errors import DataError
from rankwright.toolbox.formats import doctext, seealso
from rankwright.toolbox.formats.source import COPIES, Splits

NETWORKX = (
    "import json, sys; from rankwright.toolbox.formats import seealso; c = seealso.build('networkx').collection; "
)
PRINT = "sys.stdout.write(json.dumps([c.documents, c.queries, c.qrels]))"

LIBRARY = '''
from json import loads            # another library's: no object of this one
CONSTANT = 3

def sort_words(words):
    """sort_words(words)

    Sorts the words of a list. It takes a while.

    See Also
    --------
    reverse : The other way round.
    deep.Tree.grow, :func:`~tinylib.deep.plant` : Two on one line.
    unknown_name
    For all of this see reverse.
    """

def reverse(words):
    """Reverses the words
    of a list.

    See Also
    --------
    sort_words
    """

def same():
    """Returns the same again.

    See Also
    --------
    again
    """

def again():
    """Returns the same again."""

def address():
    """Lives at <object at 0x7f00deadbeef> for now."""

def short():
    """Too short."""
'''
DEEP = '''
class Tree:
    """A tree of many words."""

    def grow(self):
        """Grows the tree by one word.

        See Also
        --------
        shrink : In the same class.
        plant : In the same module.
        reverse : In the package above.
        """

    @property
    def shrink(self):
        """Whether the tree loses words."""

    def _hidden(self):
        """Nobody should read this text."""

def plant():
    """Plants a tree of words."""
'''


@pytest.fixture
def tinylib(tmp_path, monkeypatch):
    """A package of our own in the place of numpy and the others."""
    folder = tmp_path / "tinylib"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(LIBRARY)
    (folder / "deep.py").write_text(DEEP)
    (folder / "broken.py").write_text("import warnings, no_such_module_anywhere")
    (folder / "_private.py").write_text("raise SystemExit('private modules are not imported')")
    (folder / "tests" / "__init__.py").write_text("raise SystemExit('tests are not imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(seealso, "PACKAGES", {"tinylib": "tinylib"})
    monkeypatch.setattr(doctext, "version", lambda distribution: "1.0")
    yield seealso.build()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tinylib"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def networkx():
    return seealso.build("networkx").collection


def tiny_relations(source):
    """Query text -> relevant texts of all splits together."""
    collection = source.collection
    return {
        collection.queries[query]: {collection.documents[document] for document in relevant(grades)}
        for qrels in collection.qrels.values()
        for query, grades in qrels.items()
    }


def test_the_corpus_is_the_summaries_of_public_objects(tinylib):
    assert sorted(tinylib.collection.documents.values()) == [
        "A tree of many words.",
        "Grows the tree by one word.",
        "Plants a tree of words.",
        "Returns the same again.",
        "Reverses the words of a list.",
        "Sorts the words of a list.",
        "Whether the tree loses words.",
    ]


def test_names_are_resolved_in_class_module_and_package(tinylib, monkeypatch):
    monkeypatch.setattr(doctext, "_split", lambda query, seed: "test")
    assert tiny_relations(seealso.build()) == {
        "Sorts the words of a list.": {
            "Reverses the words of a list.",
            "Grows the tree by one word.",
            "Plants a tree of words.",
        },
        "Reverses the words of a list.": {"Sorts the words of a list."},
        "Grows the tree by one word.": {
            "Whether the tree loses words.",
            "Plants a tree of words.",
            "Reverses the words of a list.",
        },
    }


def test_copies_and_modules_that_fail_are_counted(tinylib):
    counts = {repair.what: repair.count for repair in tinylib.repairs}
    assert counts == {"modules left out that cannot be imported": 1, COPIES: 1}
    assert tinylib.repairs[0].examples[0].startswith("tinylib.broken: ModuleNotFoundError")


def test_a_text_of_two_objects_is_one_document_and_no_relation_to_itself(tinylib):
    assert list(tinylib.collection.documents.values()).count("Returns the same again.") == 1
    assert "Returns the same again." not in tinylib.collection.queries.values()


def test_what_is_imported_from_elsewhere_is_no_object_of_the_package(tinylib):
    docs = doctext.collect(["tinylib"], lambda module: module.startswith("tinylib"))
    assert "tinylib.loads" not in docs.texts
    assert "tinylib.CONSTANT" not in docs.texts
    assert "tinylib.deep.Tree.grow" in docs.texts
    assert list(docs.texts) == sorted(docs.texts)


def test_a_lazy_name_counts_whether_or_not_it_was_used_before():
    def plant():
        """Plants a tree of words."""

    plant.__module__ = "lazylib"
    module = types.ModuleType("lazylib")
    module.__all__ = ["plant", "missing"]
    module.__getattr__ = {"plant": plant}.__getitem__
    assert [name for name, _ in doctext._module_docs(module, lambda home: home == "lazylib")] == ["lazylib.plant"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("dot : Product.", ["dot"]),
        ("dot, inner, vdot", ["dot", "inner", "vdot"]),
        (":func:`~numpy.linalg.norm` : Norm.", ["numpy.linalg.norm"]),
        (":func:`dot`, :meth:`Series.str.split`", ["dot", "Series.str.split"]),
        ("`dot`: Product.", ["dot"]),
        ("dot() - product", ["dot"]),
        ("dot -- product, and so on", ["dot"]),
        ("* dot", ["dot"]),
        (".ngroup : Number the groups.", ["ngroup"]),
        (":py:obj:`the norm <numpy.linalg.norm>`", ["numpy.linalg.norm"]),
        ("For more see dot, inner", []),
        (":ref:`ufuncs-output-type`", []),
    ],
)
def test_names_are_read_from_a_line_of_see_also(line, names):
    assert list(seealso.names_in([line])) == names


def test_descriptions_below_a_name_are_not_names():
    lines = ["    dot", "        inner", "", "    outer : Not", "        vdot"]
    assert list(seealso.names_in(lines)) == ["dot", "outer"]


def test_a_name_far_away_counts_only_if_it_is_the_only_one_of_its_package():
    texts = {"np.a.f": "F of a", "np.b.g": "G of b", "np.c.g": "Another g", "sp.d.h": "H of d", "np.x.q": "Q of x"}
    by_last = {"f": ["np.a.f"], "g": ["np.b.g", "np.c.g"], "h": ["sp.d.h"]}
    assert seealso.resolve("f", "np.x.q", texts, by_last) == "F of a"
    assert seealso.resolve("g", "np.x.q", texts, by_last) is None
    assert seealso.resolve("b.g", "np.x.q", texts, by_last) == "G of b"
    assert seealso.resolve("h", "np.x.q", texts, by_last) is None
    assert seealso.resolve("sp.d.h", "np.x.q", texts, by_last) == "H of d"


def test_the_nearest_name_is_meant():
    texts = {"p.m.C.f": "method", "p.m.f": "function", "p.f": "root"}
    by_last = {"f": list(texts)}
    assert seealso.resolve("f", "p.m.C.g", texts, by_last) == "method"
    assert seealso.resolve("f", "p.m.g", texts, by_last) == "function"
    assert seealso.resolve("f", "p.other.g", texts, by_last) == "root"


def test_short_names_of_packages_are_understood():
    texts = {"numpy.linalg.norm": "Norm", "scipy.linalg.norm": "Other norm"}
    assert seealso.resolve("np.linalg.norm", "scipy.linalg.svd", texts, {}) == "Norm"


@pytest.mark.parametrize(
    ("docstring", "summary", "rest"),
    [
        ("sin(x, /, out=None)\n\nSine,\nelement-wise.\n\nMore `text`.", "Sine, element-wise.", "More text."),
        ("array(object, dtype=None,\n      order='K')\n\nMake an array.", "Make an array.", ""),
        ("dict() -> new\ndict(map) -> new\n\nA mapping type.", "A mapping type.", ""),
        ("x, info = solve(a, b)\nSolve it.", "Solve it.", ""),
        ("Sorts e.g. Lists. Not more.\n\nEnd.", "Sorts e.g. Lists.", "Not more. End."),
        ("Use :class:`~a.B` instead of ``c``.", "Use a.B instead of c.", ""),
        ("Parameters\n----------\nx : int", "", "Parameters ---------- x : int"),
        (".. deprecated:: 1.0", "", ".. deprecated:: 1.0"),
        ("f(x)", "", ""),
        ("", "", ""),
    ],
)
def test_a_docstring_is_split_into_summary_and_rest(docstring, summary, rest):
    assert doctext.split_summary(docstring) == (summary, rest)


def test_half_characters_do_not_reach_the_texts():
    assert doctext._clean("a \ud800 b") == "a ? b"


def test_sections_end_where_the_next_begins():
    doc = "Sum.\n\nSee Also\n--------\na\nb\n\nNotes\n=====\nLong.\n"
    assert doctext.sections(doc) == {"see also": ["a", "b", ""], "notes": ["Long."]}


def test_ids_are_those_of_the_texts(networkx):
    assert all(text_id(text) == document for document, text in networkx.documents.items())
    assert all(networkx.documents[query] == text for query, text in networkx.queries.items())
    assert all(canonical(text) == text and 3 <= len(text.split()) <= 40 for text in networkx.documents.values())


def test_each_query_has_relations_and_25_negatives_and_never_itself(networkx):
    rows = [(query, grades) for qrels in networkx.qrels.values() for query, grades in qrels.items()]
    assert len(rows) == len(networkx.queries) > 300
    for query, grades in rows:
        assert query not in grades
        assert list(grades.values()).count(0) == 25
        assert relevant(grades)
        assert set(grades) <= set(networkx.documents)


def test_no_split_holds_the_text_of_a_later_splits_query(networkx):
    train, dev, test = (networkx.qrels[split] for split in SPLITS)
    assert not {document for grades in train.values() for document in grades} & ({*dev} | {*test})
    assert not {document for grades in dev.values() for document in grades} & {*test}
    assert not {*train} & {*dev} | {*train} & {*test} | {*dev} & {*test}


def test_a_pair_and_its_mirror_image_do_not_stand_in_two_splits(networkx):
    pairs = {
        split: {(query, document) for query, grades in qrels.items() for document in relevant(grades)}
        for split, qrels in networkx.qrels.items()
    }
    mirrored = {split: {(document, query) for query, document in found} for split, found in pairs.items()}
    assert pairs["test"] & mirrored["test"], "without such pairs this test shows nothing"
    for one, other in [("train", "dev"), ("train", "test"), ("dev", "test")]:
        assert not pairs[one] & mirrored[other]
        assert not pairs[one] & pairs[other]


def test_mirrored_relations_stay_with_the_later_split(monkeypatch):
    split = {"a": "train", "b": "test", "c": "dev", "d": "train", "e": "train"}
    monkeypatch.setattr(doctext, "_split", lambda query, seed: split[query])
    related = {"a": {"b", "d"}, "b": {"a"}, "c": {"b", "a"}, "d": {"c"}, "e": {"e", "z"}}
    qrels = doctext.rows(related, ["a", "b", "c", "d", "e", "z"], "seed")
    assert {name: {query: relevant(grades) for query, grades in rows.items()} for name, rows in qrels.items()} == {
        "train": {"a": ["d"], "e": ["z"]},
        "dev": {"c": ["a"]},
        "test": {"b": ["a"]},
    }
    # A removed relation is no negative either, nor is the query itself.
    assert set(qrels["train"]["a"]) == {"d", "e", "z"}
    assert set(qrels["train"]["e"]) == {"a", "d", "z"}
    assert set(qrels["dev"]["c"]) == {"a", "d", "e", "z"}


def test_negatives_are_drawn_per_query_from_the_whole_pool():
    pool = [f"{number:03}" for number in range(200)]
    qrels = doctext.rows({query: {pool[0]} for query in pool[1:60]}, pool, "seed")
    rows = {query: [d for d, grade in g.items() if not grade] for q in qrels.values() for query, g in q.items()}
    assert len({tuple(negatives) for negatives in rows.values()}) == len(rows)
    assert len({document for negatives in rows.values() for document in negatives}) > 180
    assert doctext.rows({query: {pool[0]} for query in pool[1:60]}, pool, "other seed") != qrels


def test_shares_of_the_splits_are_about_65_12_and_23_percent():
    counts = dict.fromkeys(SPLITS, 0)
    for number in range(20_000):
        counts[doctext._split(text_id(str(number)), "seed")] += 1
    shares = {split: count / 20_000 for split, count in counts.items()}
    assert shares == pytest.approx({"train": 0.65, "dev": 0.12, "test": 0.23}, abs=0.015)


def test_two_processes_build_the_same_bytes():
    outputs = set()
    for seed, first in [("1", "import scipy.stats, pandas; "), ("2", "")]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", first + NETWORKX + PRINT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())[0]) > 500


def test_python_without_docstrings_is_told():
    command = [sys.executable, "-OO", "-c", NETWORKX]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "DataError: seealso:: no See Also sections" in done.stderr
    assert "run without them" in done.stderr


def test_splits_can_be_named_otherwise(networkx):
    source = seealso.read("networkx", Splits(test="dev"))
    assert source.collection.qrels["test"] == networkx.qrels["dev"]
    assert seealso.read("networkx", Splits()).collection == networkx
    with pytest.raises(DataError, match="no split 'validation'"):
        seealso.read("networkx", Splits(dev="validation"))


def test_versions_name_what_determines_the_content():
    import networkx

    found = seealso.versions("networkx, numpy")
    assert list(found) == ["networkx", "numpy", "python", "builder"]
    assert found["networkx"] == networkx.__version__
    assert set(seealso.versions()) == {*seealso.PACKAGES, "python", "builder"}


def test_an_unknown_package_is_refused_with_a_guess():
    with pytest.raises(DataError, match=r"(?s)no sklearns in this collection.*seealso:sklearn$"):
        seealso.build("sklearns")


def test_a_package_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(seealso, "PACKAGES", {"numpie": "numpie-of-nowhere"})
    with pytest.raises(DataError, match=r"(?s)numpie-of-nowhere is not installed.*pip install"):
        seealso.build()


def test_methods_of_accessors_and_functions_written_in_c_have_texts():
    docs = doctext.collect(["numpy", "pandas"], lambda module: module.partition(".")[0] in ("numpy", "pandas"))
    summaries = {name: doctext.split_summary(docs.texts[name])[0] for name in ("numpy.sin", "pandas.Series.str.split")}
    assert summaries == {
        "numpy.sin": "Trigonometric sine, element-wise.",
        "pandas.Series.str.split": "Split strings around given separator/delimiter.",
    }
    assert not docs.failures
