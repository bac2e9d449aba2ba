"""Docstrings of installed packages as texts, and the rows that are made of them.

In: names of packages or modules. Out: qualified name -> docstring, a docstring's summary and body, and the
qrels of three splits without a leak. It does not know what makes two objects relevant to each other: that is
`seealso`'s and `docstrings`' business. Nothing depends on the order of imports, on addresses or on hash seeds.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import inspect
import pkgutil
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from types import ModuleType

import numpy as np

from rankwright.core import SPLITS, Qrels, canonical, text_id
from rankwright.errors import DataError
from rankwright.toolbox.formats.source import Notes, Source, Splits

GIVEN_NEGATIVES = 25
STRIPPED = "python -OO and PYTHONOPTIMIZE=2 strip docstrings: run without them"
_TRAIN_BELOW, _DEV_BELOW = 0.65, 0.77

# Parts of module names that are left out: what is private, tests, build helpers, vendored code, modules that only
# some platforms have, and `experimental`, whose import switches features on for the whole process.
_SKIPPED_MODULE = re.compile(
    r"_.*|test_.*|tests?|testutils|conftest|setup|distutils|f2py|externals|experimental|mypy_plugin"
    r"|gnu|ndbm|popen_spawn_win32|windows_events|windows_utils"
)
_ROLE = re.compile(r":[A-Za-z][\w+:.-]*:`(?:[^`<]*<)?[~.!]*([^`>]+)>?`")
_SIGNATURE = re.compile(r"(?:[\w, ]+ = )?[A-Za-z_][\w.]*\(")
_UNDERLINE = re.compile(r"\s*([-=~^])\1{2,}\s*$")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?<!cf\.)\s+(?=[A-Z])")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")


@dataclass(frozen=True)
class Docs:
    """`texts`: qualified name -> cleaned docstring, sorted by name; `failures`: module -> why it was not imported."""

    texts: dict[str, str]
    failures: dict[str, str]

    def notes(self) -> Notes:
        """A reader's account that starts with the failures."""
        notes = Notes()
        for module, reason in sorted(self.failures.items()):
            notes.repair("modules left out that cannot be imported", f"{module}: {reason}")
        return notes


def collect(packages: Iterable[str], belongs: Callable[[str], bool]) -> Docs:
    """The docstrings of all public objects of `packages` and of their public submodules.

    `belongs` says of a module's name whether objects defined there count: without it every module would also
    hold what it imports from others. An object stands under each name by which it can be reached.
    """
    modules: list[ModuleType] = []
    failures: dict[str, str] = {}
    with warnings.catch_warnings():  # stderr is left alone: a logger made at import would keep what stands there
        warnings.simplefilter("ignore")
        for package in sorted(packages):
            modules += _import_tree(package, failures)
        found = {name: raw for module in modules for name, raw in _module_docs(module, belongs)}
    # One docstring stands under ten names on average: it is cleaned once.
    cleaned = {raw: _clean(raw) for raw in dict.fromkeys(found.values()) if not _ADDRESS.search(raw)}
    return Docs({name: cleaned[found[name]] for name in sorted(found) if found[name] in cleaned}, failures)


def chosen(location: str, allowed: Iterable[str], where: str) -> list[str]:
    """The names in `location` (comma-separated; empty: all that are allowed), sorted.

    Raises:
        DataError: a name that is not allowed.
    """
    known = sorted(allowed)
    wanted = sorted({part.strip() for part in location.split(",") if part.strip()}) or known
    if unknown := [name for name in wanted if name not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        some = close[0] if close else ",".join(known[:5])
        raise DataError(
            f"no {', '.join(unknown)} in this collection",
            where=f"{where}{location}",
            hint=f"`{where}` for everything, or names with commas between them, such as {where}{some}",
        )
    return wanted


def version(distribution: str) -> str:
    """The installed version of a package.

    Raises:
        DataError: it is not installed.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise DataError(f"{distribution} is not installed", hint=f"pip install {distribution}") from None


def python() -> str:
    """Python's version and its platform, which decide about the modules that there are."""
    return f"{platform.python_version()} {sys.platform}"


def renamed(source: Source, splits: Splits, where: str) -> Source:
    """The same source with the splits that `splits` asks for.

    Raises:
        DataError: a split other than train, dev and test is asked for.
    """
    names = splits.resolve(SPLITS, where)
    qrels = {split: source.collection.qrels[name] for split, name in names.items()}
    return replace(source, collection=replace(source.collection, qrels=qrels))


def split_summary(docstring: str) -> tuple[str, str]:
    """The summary sentence of a cleaned docstring and what follows it, both without markup and white space folded.

    Signature lines at the top, as of functions written in C, belong to neither. The summary is empty
    where the docstring starts with a section heading or a directive.
    """
    lines = _without_signatures(docstring.splitlines())
    end = next((number for number, line in enumerate(lines) if not line.strip()), len(lines))
    head = lines[:end]
    if not head or head[0].lstrip().startswith((".. ", ":", ">>>")) or any(map(_UNDERLINE.match, head)):
        return "", plain("\n".join(lines))
    first, *others = _SENTENCE_END.split(plain("\n".join(head)), maxsplit=1)
    return first, canonical(" ".join([*others, plain("\n".join(lines[end:]))]))


def sections(docstring: str) -> dict[str, list[str]]:
    """Lower-case heading -> lines, of a cleaned docstring whose headings are underlined (numpydoc)."""
    lines = docstring.splitlines()
    starts = [
        number for number in range(len(lines) - 1) if lines[number].strip() and _UNDERLINE.match(lines[number + 1])
    ]
    ends = [*starts[1:], len(lines)]
    return {lines[start].strip().lower(): lines[start + 2 : end] for start, end in zip(starts, ends, strict=False)}


def plain(text: str) -> str:
    """Text without reStructuredText roles and quotes, in canonical form: ``:func:`~a.b` `` is ``a.b``."""
    return canonical(_ROLE.sub(r"\1", text).replace("`", ""))


def rows(relevant: Mapping[str, set[str]], documents: Iterable[str], seed: str) -> dict[str, Qrels]:
    """The qrels of train, dev and test: each query's relevant documents, and 25 random negatives of grade 0.

    `relevant` maps query id to document ids; ids are those of texts, so a document may be a query as well. A
    query's split follows from a hash of its id. No split holds the text of a later split's query, neither
    as relevant nor as negative; a query that is left without a relevant document drops out.
    """
    split_of = {query: _split(query, seed) for query in sorted(relevant)}
    pool = sorted(documents)
    qrels: dict[str, Qrels] = {}
    for number, split in enumerate(SPLITS):
        later = {query for query, other in split_of.items() if SPLITS.index(other) > number}
        allowed = [document for document in pool if document not in later]
        qrels[split] = {}
        for query in (query for query in split_of if split_of[query] == split):
            if positives := sorted(relevant[query] - later - {query}):
                negatives = _draw(allowed, relevant[query] | {query}, f"{seed}\0{query}")
                qrels[split][query] = dict.fromkeys(positives, 1) | dict.fromkeys(negatives, 0)
    return qrels


def by_id(texts: Iterable[str]) -> dict[str, str]:
    """Id -> text, sorted by id; copies of a text are one entry."""
    return dict(sorted((text_id(text), text) for text in texts))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _split(query: str, seed: str) -> str:
    share = _hash(f"{seed}\0split\0{query}") / 2**64
    return "train" if share < _TRAIN_BELOW else "dev" if share < _DEV_BELOW else "test"


def _draw(pool: list[str], barred: set[str], seed: str) -> list[str]:
    """`GIVEN_NEGATIVES` of `pool` (fewer if it has fewer), without the barred ones, in the order drawn."""
    wanted = min(len(pool), GIVEN_NEGATIVES + len(barred))
    drawn = np.random.default_rng(_hash(seed)).choice(len(pool), size=wanted, replace=False)
    return [pool[place] for place in drawn if pool[place] not in barred][:GIVEN_NEGATIVES]


def _import_tree(name: str, failures: dict[str, str]) -> list[ModuleType]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever a foreign module raises, it is only left out
        failures[name] = f"{type(error).__name__}: {error}"
        return []
    parts = sorted(found.name for found in pkgutil.iter_modules(getattr(module, "__path__", [])))
    wanted = [part for part in parts if not _SKIPPED_MODULE.fullmatch(part)]
    return [module, *(below for part in wanted for below in _import_tree(f"{name}.{part}", failures))]


def _module_docs(module: ModuleType, belongs: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    for name in _public_names(module):
        try:
            value = getattr(module, name)
        except Exception:  # a lazy name whose optional dependency is missing
            continue
        if isinstance(value, ModuleType) or not _is_documented(value, belongs):
            continue
        qualified = f"{module.__name__}.{name}"
        yield from _doc(qualified, value)
        if inspect.isclass(value):
            yield from _class_docs(qualified, value, belongs)


def _public_names(module: ModuleType) -> list[str]:
    """The names in a module and in its `__all__`: whether a lazy name was used before makes no difference."""
    names = {*vars(module), *getattr(module, "__all__", ())}
    return sorted(name for name in names if not name.startswith("_"))


def _class_docs(
    qualified: str, owner: type, belongs: Callable[[str], bool], depth: int = 1
) -> Iterator[tuple[str, str]]:
    """Methods and properties, inherited ones too, and those of accessors (``Series.str.split``)."""
    names = {name for base in owner.__mro__ if belongs(base.__module__) for name in vars(base)}
    for name in sorted(name for name in names if not name.startswith("_")):
        with contextlib.suppress(Exception):  # a foreign descriptor may raise anything
            value = getattr(owner, name)
            if isinstance(value, property) or _is_documented(value, belongs):
                yield from _doc(f"{qualified}.{name}", value)
            if inspect.isclass(value) and depth:
                yield from _class_docs(f"{qualified}.{name}", value, belongs, depth - 1)


def _is_documented(value: object, belongs: Callable[[str], bool]) -> bool:
    """Whether an object's docstring is its own, and it is defined where `belongs` says."""
    home = getattr(value, "__module__", None)
    if isinstance(home, str) and not belongs(home):
        return False
    if inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, np.ufunc):
        return True
    return belongs(type(value).__module__)


def _doc(qualified: str, value: object) -> Iterator[tuple[str, str]]:
    text = getattr(value, "__doc__", None)
    if isinstance(text, str) and text.strip():
        yield qualified, text


def _clean(raw: str) -> str:
    """Without common indentation, and without half characters (lone surrogates), which no file can hold."""
    return inspect.cleandoc(raw).encode("utf-8", "replace").decode()


def _without_signatures(lines: list[str]) -> list[str]:
    """Drop leading lines such as ``name(x, /, out=None,`` up to their closing bracket, and blank ones."""
    while lines and (not lines[0].strip() or _SIGNATURE.match(lines[0])):
        depth = 0
        while lines:
            depth += lines[0].count("(") - lines[0].count(")")
            lines = lines[1:]
            if depth <= 0 or not lines or not lines[0].strip():
                break
    return lines
