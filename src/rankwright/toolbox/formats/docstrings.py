"""The offline collection `docstrings:`: which documentation belongs under this summary?

In: the docstrings of the standard library and of a few packages that `seealso` does not use. Out: a Source. A query is
a summary sentence; its one relevant document is the rest of that docstring. It is a second, general task: what a
reranker forgets while it is fine-tuned on something else shows here.

It does not know of files or networks, and keeps no cache: `versions()` says what its content depends on.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from rankwright.core import Collection, text_id
from rankwright.errors import DataError
from rankwright.toolbox.formats import doctext
from rankwright.toolbox.formats.source import Source, Splits

BUILDER = 1
"""Raise it with every change here or in `doctext` that changes the collection."""

WHERE = "docstrings:"

PACKAGES = {"huggingface_hub": "huggingface-hub", "jinja2": "jinja2", "pydantic": "pydantic", "rich": "rich"}
"""Import name -> the name it is installed by, of the packages beside the standard library."""

# These open windows or browsers, print, take hold of the terminal, are for one platform, or hold no documentation.
_SKIPPED = re.compile(
    r"_.*|antigravity|this|idlelib|turtle|turtledemo|tkinter|readline|rlcompleter|test|lib2to3|distutils|encodings"
    r"|pydoc_data|crypt|msilib|msvcrt|nis|nt|ossaudiodev|spwd|winreg|winsound"
)
STANDARD_LIBRARY = tuple(sorted(name for name in sys.stdlib_module_names if not _SKIPPED.fullmatch(name)))

_SUMMARY_WORDS = (3, 40)
_BODY_WORDS = (8, 150)


def versions(location: str = "") -> dict[str, str]:
    """What determines the collection at `location`: versions, Python's with its platform, and this builder's."""
    chosen = doctext.chosen(location, [*PACKAGES, *STANDARD_LIBRARY], WHERE)
    installed = {name: doctext.version(PACKAGES[name]) for name in chosen if name in PACKAGES}
    return {**installed, "python": doctext.python(), "builder": str(BUILDER)}


def read(location: str, splits: Splits) -> Source:
    """`build`, with the splits that are asked for (its own names are train, dev and test)."""
    return doctext.renamed(build(location), splits, WHERE)


def build(location: str = "") -> Source:
    """The collection of the modules and packages in `location` (comma-separated; empty: all).

    Ids are those of the texts. About 65 % of the queries are train, 12 % dev and 23 % test, each with one
    relevant document and 25 random negatives. A summary that heads several texts, or that stands word for word in
    its own, makes no query; the texts stay in the corpus.

    Raises:
        DataError: a name that is not offered or not installed, or no docstrings at all (python -OO).
    """
    names = doctext.chosen(location, [*PACKAGES, *STANDARD_LIBRARY], WHERE)
    roots = {*names, *(sys.stdlib_module_names if {*names} - {*PACKAGES} else ())}
    hidden = [name for name in names if name not in PACKAGES and _is_hidden(name)]
    docs = doctext.collect({*names} - {*hidden}, lambda module: module.partition(".")[0] in roots)
    bodies = _bodies(docs)
    if not bodies:
        raise DataError("no docstrings", where=f"{WHERE}{location}", hint=doctext.STRIPPED)
    notes = docs.notes()
    for name in hidden:
        notes.repair("standard modules left out, hidden by a file of the same name", name)
    relevant: dict[str, set[str]] = {}
    for summary, texts in bodies.items():
        if len(texts) > 1:
            notes.repair("summaries of several texts, no queries", summary)
        elif summary.rstrip(".").casefold() in texts[0].casefold():
            notes.repair("summaries that stand in their own text, no queries", summary)
        else:
            relevant[text_id(summary)] = {text_id(texts[0])}
    documents = doctext.by_id(text for texts in bodies.values() for text in texts)
    qrels = doctext.rows(relevant, documents, seed=f"docstrings {BUILDER}")
    summaries = doctext.by_id(bodies)
    queries = {query: summaries[query] for split in qrels.values() for query in split}
    return Source(Collection(documents, queries, qrels), notes.repairs())


def _is_hidden(name: str) -> bool:
    """Whether `import name` would run somebody's ``name.py`` beside their script, and not the standard library's."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.has_location or spec.origin is None:  # built-in, frozen, or not in this Python at all
        return False
    return not Path(spec.origin).resolve().is_relative_to(Path(sys.base_prefix).resolve())


def _bodies(docs: doctext.Docs) -> dict[str, list[str]]:
    """Summary -> the different texts that it heads, in the order of the objects' names."""
    bodies: dict[str, list[str]] = {}
    for docstring in dict.fromkeys(docs.texts.values()):
        summary, rest = doctext.split_summary(docstring)
        body = rest.split()[: _BODY_WORDS[1]]
        if _SUMMARY_WORDS[0] <= len(summary.split()) <= _SUMMARY_WORDS[1] and len(body) >= _BODY_WORDS[0]:
            texts = bodies.setdefault(summary, [])
            texts += [text] if (text := " ".join(body)) not in texts else []
    return bodies
