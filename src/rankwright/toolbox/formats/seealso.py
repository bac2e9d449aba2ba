"""The offline collection `seealso:`: which functions do the authors of a library point to from this one?

In: the docstrings of installed packages, imported for the purpose. Out: a Collection. Each public object is the
text of its summary sentence; a query is the text of an object that has a "See Also" section, and relevant to it
are the texts of the objects named there. Copies of a text are one document with all labels united. It has
what real collections have: copies, queries that stand in the corpus themselves, and relevant texts that nobody named.

It does not know of files or networks, and keeps no cache: `versions()` says what its content depends on.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping

from rankwright.core import Collection, text_id
from rankwright.errors import DataError
from rankwright.toolbox.formats import doctext
from rankwright.toolbox.formats.source import COPIES, Source, Splits

BUILDER = 1
"""Raise it with every change here or in `doctext` that changes the collection."""

PACKAGES = {"networkx": "networkx", "numpy": "numpy", "pandas": "pandas", "scipy": "scipy", "sklearn": "scikit-learn"}
"""Import name -> the name it is installed by."""

WHERE = "seealso:"

_WORDS = (3, 40)
_SHORT_NAMES = {"np": "numpy", "pd": "pandas", "nx": "networkx"}
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_DESCRIPTION = re.compile(r"\s*:(?:\s|$)|\s+--?\s")


def versions(location: str = "") -> dict[str, str]:
    """What determines the collection at `location`: the packages' versions, Python's and this builder's."""
    chosen = doctext.chosen(location, PACKAGES, WHERE)
    installed = {package: doctext.version(PACKAGES[package]) for package in chosen}
    return {**installed, "python": doctext.python(), "builder": str(BUILDER)}


def read(location: str, splits: Splits) -> Source:
    """`build`, with the splits that are asked for (its own names are train, dev and test)."""
    return doctext.renamed(build(location), splits, WHERE)


def build(location: str = "") -> Source:
    """The collection of the packages in `location` (comma-separated; empty: all five).

    Ids are those of the texts, of documents and queries alike. About 65 % of the queries are train, 12 % dev and
    23 % test. Builds in a few seconds and leaves the packages imported.

    Raises:
        DataError: a package that is not one of `PACKAGES`, is not installed, or has no docstrings (python -OO).
    """
    packages = [name for name in versions(location) if name in PACKAGES]
    docs = doctext.collect(packages, lambda module: module.partition(".")[0] in packages)
    summaries = {doc: _summary(doc) for doc in dict.fromkeys(docs.texts.values())}
    texts = {name: summaries[doc] for name, doc in docs.texts.items() if summaries[doc]}
    relevant = _relations(docs.texts, texts)
    if not relevant:
        raise DataError(
            f"no See Also sections in the docstrings of {', '.join(packages)}",
            where=WHERE,
            hint=doctext.STRIPPED,
        )
    notes = docs.notes()
    copies = sum(map(bool, summaries.values())) - len({*texts.values()})
    notes.repair(COPIES, count=copies)
    documents = doctext.by_id(texts.values())
    qrels = doctext.rows(relevant, documents, seed=f"seealso {BUILDER}")
    queries = {query: documents[query] for split in qrels.values() for query in split}
    return Source(Collection(documents, queries, qrels), notes.repairs())


def names_in(see_also: list[str]) -> Iterator[str]:
    """The names that the lines of a See Also section list, as written there, without markup and descriptions.

    >>> list(names_in(["dot, :func:`~numpy.inner` : Products.", "    Not einsum."]))
    ['dot', 'numpy.inner']
    """
    lines = textwrap.dedent("\n".join(see_also)).splitlines()
    for line in (line for line in lines if line.strip() and not line[0].isspace()):
        head = _DESCRIPTION.split(doctext.plain(line).lstrip("-* "), maxsplit=1)[0]
        names = [part.strip().removesuffix("()").strip(".") for part in head.split(",") if part.strip()]
        if all(map(_NAME.fullmatch, names)):  # else it is a sentence
            yield from names


def resolve(name: str, owner: str, texts: Mapping[str, str], by_last: Mapping[str, list[str]]) -> str | None:
    """The text of the object that `owner` (a qualified name) calls `name`; None if there is none.

    Tried in this order: the name as it stands, the owner's class, module, and packages from inside out, and
    then any object of the owner's package whose qualified name ends so, if all of these have one text.
    `by_last` maps the last part of a name to the qualified names that end with it.
    """
    short, dot, rest = name.partition(".")
    name = f"{_SHORT_NAMES.get(short, short)}{dot}{rest}"
    if name in texts:
        return texts[name]
    scope = owner
    while scope := scope.rpartition(".")[0]:
        if (inside := f"{scope}.{name}") in texts:
            return texts[inside]
    root = owner.partition(".")[0] + "."
    endings = (full for full in by_last.get(name.rpartition(".")[2], ()) if full.endswith(f".{name}"))
    found = {texts[full] for full in endings if full.startswith(root)}
    return found.pop() if len(found) == 1 else None


def _relations(docs: Mapping[str, str], texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Text id of each object with a See Also section -> text ids of what it names, itself excepted."""
    by_last: dict[str, list[str]] = {}
    for full in texts:
        by_last.setdefault(full.rpartition(".")[2], []).append(full)
    names = {doc: tuple(names_in(doctext.sections(doc).get("see also", []))) for doc in dict.fromkeys(docs.values())}
    relevant: dict[str, set[str]] = {}
    for owner, text in texts.items():
        named = {found for name in names[docs[owner]] if (found := resolve(name, owner, texts, by_last))}
        if targets := named - {text}:
            relevant.setdefault(text_id(text), set()).update(map(text_id, targets))
    return relevant


def _summary(docstring: str) -> str:
    """The summary sentence, or nothing if it is too short or too long for a title."""
    summary, _ = doctext.split_summary(docstring)
    return summary if _WORDS[0] <= len(summary.split()) <= _WORDS[1] else ""
