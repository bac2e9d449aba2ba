"""The nouns, the errors, and the front page of the package."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest

import rankwright
from rankwright import errors
from rankwright.core import Collection, Group, Run, canonical, content_hash, count_pairs, relevant, text_id
from rankwright.errors import RankwrightError, problems_error

QRELS = {"train": {"q1": {"a": 1, "b": 0}}, "dev": {"q2": {"c": 2}}, "test": {"q3": {"d": 1}}}
COLLECTION = Collection(
    {"a": "one", "b": "two", "c": "three", "d": "four", "e": "judged nowhere"},
    {"q1": "first", "q2": "second", "q3": "third"},
    QRELS,
)


def test_copies_are_recognised_across_white_space_and_unicode_forms_but_not_across_case():
    composed, decomposed = "Café  au\tlait ", unicodedata.normalize("NFD", "Café au lait")
    assert composed != decomposed
    assert canonical(composed) == canonical(decomposed) == "Café au lait"
    assert text_id(composed) == text_id(decomposed)
    assert text_id("apple") != text_id("Apple")
    assert len(text_id("apple")) == 16


def test_a_content_hash_sees_order_and_boundaries():
    hashes = {content_hash(parts) for parts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], ["abc", ""], [])}
    assert len(hashes) == 6


def test_ties_are_broken_by_document_id_and_the_depth_cuts_after_that():
    run = Run.from_scores({"q": {"c": 1.0, "b": 1.0, "a": 0.5, "d": 2.0}}, depth=3)
    assert run.documents("q") == ["d", "b", "c"]
    assert run.scores("q") == {"d": 2.0, "b": 1.0, "c": 1.0}
    assert run.top(1).rankings == {"q": (("d", 2.0),)}
    assert run.documents("unknown") == []
    assert run.scores("unknown") == {}


def test_each_split_searches_all_documents_or_its_own_and_dev_searches_what_train_does():
    assert COLLECTION.split_documents("test", per_split=False) == COLLECTION.documents
    assert set(COLLECTION.split_documents("test", per_split=True)) == {"d"}
    for split in ("train", "dev"):
        assert set(COLLECTION.split_documents(split, per_split=True)) == {"a", "b", "c"}
    assert COLLECTION.split_queries("dev") == {"q2": "second"}
    assert COLLECTION.split_queries("nowhere") == {}


def test_a_query_finds_all_documents_that_are_its_own_text():
    collection = Collection({"a": "red  car", "b": "red car", "c": "Red car"}, {"q": "red car ", "r": "blue"}, {})
    assert collection.self_matches() == {"q": {"a", "b"}}


def test_relevant_pairs_are_those_above_grade_zero():
    assert relevant({"a": 0, "b": 2, "c": -1, "d": 1}) == ["b", "d"]
    assert count_pairs({"q": {"a": 0, "b": 2}, "r": {"c": 1, "d": 1}, "s": {}}) == 3


def test_a_group_is_as_long_as_its_candidates():
    assert len(Group("q", "text", ["a"], ["one"], [1], [0.5], ["positive"])) == 1


def test_an_error_says_what_where_and_what_to_try():
    assert str(RankwrightError("bad", where="exp.yaml:3", hint="good")) == "exp.yaml:3: bad\n  try: good"
    assert str(RankwrightError("bad")) == "bad"


def test_every_family_of_errors_has_an_exit_code_of_its_own():
    families = RankwrightError.__subclasses__()
    assert sorted(family.exit_code for family in families) == [2, 3, 4, 5, 6, 7]
    for family in families:
        drawn = next(line for line in errors.__doc__.splitlines() if family.__name__ in line)
        assert drawn.split(family.__name__)[1].split()[0] == str(family.exit_code)


def test_many_problems_become_one_error_with_their_count_and_the_first_few():
    error = problems_error([f"rows.jsonl:{line}: empty" for line in range(1, 9)], "rows cannot be read", hint="look")
    assert str(error).splitlines() == [
        "8 rows cannot be read:",
        *[f"  - rows.jsonl:{line}: empty" for line in range(1, 6)],
        "  … and 3 more",
        "  try: look",
    ]
    assert "more" not in str(problems_error(["one"], "row cannot be read"))


@pytest.mark.parametrize("name", rankwright.__all__)
def test_every_public_name_is_there(name):
    assert getattr(rankwright, name) is not None
    assert name in dir(rankwright)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rankwright.nonsense


def test_importing_the_package_or_asking_for_help_loads_nothing_heavy():
    heavy = "{'torch', 'pydantic', 'transformers', 'numpy', 'pandas', 'datasets', 'yaml'}"
    for statement in (
        "import rankwright",
        "import sys, contextlib, io; sys.argv = ['rankwright', '--help']\n"
        "from rankwright.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main()",
    ):
        code = f"{statement}\nimport sys; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", statement


def test_a_query_below_a_title_is_its_own_document_where_the_ids_are_equal():
    text = "the argument goes on for a while"
    documents = {"q": f"A title {text}", "other": f"A title {text}", "1": "a long text about boats and a red apple"}
    collection = Collection(documents, {"q": text, "1": "red apple"}, {"test": {"q": {"other": 1}, "1": {"1": 1}}})
    assert collection.self_matches() == {"q": {"q"}}, "ids may be equal by chance"
