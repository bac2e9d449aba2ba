"""Files of (query, document) pairs, read in one go from front to end: JSONL or TSV, also gzipped.

    JSONL   query (or anchor) and document (or passage, or text), behind a title where there is one; query_id (qid) and
            document_id (doc_id, docid, passage_id, pid) where there are some
    TSV     two columns, query and document; or four, query_id, document_id, query, document, as MS MARCO has them; or
            any of these under a first line of their names; other columns are passed over

A suffix says which it is, else the first line. Memory is constant. It does not know what pairs are read for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rankwright.errors import DataError
from rankwright.toolbox.formats.files import existing, json_lines, lines
from rankwright.toolbox.formats.source import Notes, Repair
from rankwright.toolbox.formats.texts import id_of, is_nothing, text_of, titled

_QUERY = ("query", "anchor")
_DOCUMENT = ("document", "passage", "text")
_QUERY_ID = ("query_id", "qid")
_DOCUMENT_ID = ("document_id", "doc_id", "docid", "passage_id", "pid")
_NAMES = {*_QUERY, *_DOCUMENT, *_QUERY_ID, *_DOCUMENT_ID, "title"}
_BARE = {2: ("query", "document"), 4: ("query_id", "document_id", "query", "document")}
"""How many cells a TSV without names has -> what they are."""
_JSON = (".jsonl", ".json", ".ndjson")
_NOT_READ = (".csv", ".parquet")
_HINT = 'a line is {"query": "…", "document": "…"}, or in a TSV: query TAB document'
_MOST = 1000  # problems: a file of another kind has one in every line, and they are kept in memory


class Pair(NamedTuple):
    """A query and a document, with their ids where the file gives them."""

    query: str
    document: str
    query_id: str | None = None
    document_id: str | None = None


class PairFile:
    """Iterates over the pairs of a file; `count` and `digest` are of what has been read so far.

    `notes` gathers the lines that are no pairs, which are passed over, and what was repaired.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes = Notes()
        self.count = 0
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        """A hash (32 hexadecimal digits) of the pairs so far: of texts and ids, whatever the format."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Pair]:
        rows = _json_rows if _is_json(self.path) else _tsv_rows
        for place, columns in rows(self.path, self.notes):
            pair = _pair(columns, place, self.notes)
            if pair is not None:
                self.count += 1
                self._hash.update("\0".join([*map(str, pair), "\n"]).encode())
                yield pair


@dataclass(frozen=True)
class Survey:
    """What a first pass over a file has found: how many pairs, and which ids some of them have.

    `marks` are the digests after each `every` pairs and at the end: whoever reads the file again sees by them whether
    it still is the same.
    """

    pairs: int
    marks: tuple[str, ...]
    query_ids: bool
    document_ids: bool
    repairs: tuple[Repair, ...]

    @property
    def digest(self) -> str:
        """Of the whole file."""
        return self.marks[-1]


def survey(path: str | Path, *, every: int) -> Survey:
    """Read a file through once: check every line, count the pairs.

    Raises:
        DataError: no such file, or not one that can be read twice; lines that are no pairs, all told at once; no pair.
        DiskError: the file cannot be read.
    """
    file = PairFile(_readable(path))
    marks: list[str] = []
    ids = [False, False]
    for pair in file:
        ids = [ids[0] or pair.query_id is not None, ids[1] or pair.document_id is not None]
        if file.count % every == 0:
            marks.append(file.digest)
    file.notes.refuse("lines are no pairs", _HINT)
    if not file.count:
        raise DataError("no pairs here", where=str(path), hint=_HINT)
    if file.count % every:
        marks.append(file.digest)
    return Survey(file.count, tuple(marks), ids[0], ids[1], file.notes.repairs())


def _readable(path: str | Path) -> Path:
    place = existing(path)
    if not place.is_file():
        raise DataError("pairs are read from a file", where=str(path), hint="it is read twice: save what a pipe gives")
    if _kind(place) in _NOT_READ:
        raise DataError("pairs are read from JSONL and TSV", where=str(path), hint=_HINT)
    return place


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _is_json(path: Path) -> bool:
    if _kind(path) in (*_JSON, ".tsv"):
        return _kind(path) in _JSON
    return next((text.lstrip().startswith("{") for _, text in lines(path, Notes())), True)


def _json_rows(path: Path, notes: Notes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, columns in json_lines(path, notes):
        yield f"{path}:{number}", columns
        if len(notes.problems) >= _MOST:
            return


def _tsv_rows(path: Path, notes: Notes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Cells by their names; a line has as many as the first. Quotation marks are text like any other."""
    names: tuple[str, ...] | None = None
    for number, text in lines(path, notes, blank=True):  # a line of one tab is a pair of empty texts
        cells = text.split("\t")
        if len(cells) == 1 and is_nothing(text):
            continue
        if names is None:
            words = tuple(cell.strip().lower() for cell in cells)
            named = set(words) & _NAMES
            names = words if len(named) > 1 else _BARE.get(len(cells), _BARE[2])
            if names == words:
                continue
            if named & {"query", "anchor", "document", "passage"}:  # in a file without names, a pair of such words
                notes.problem(f"{path}:{number}: names, but not of a query and a document: {', '.join(words)}")
                return
        if len(cells) == len(names):
            yield f"{path}:{number}", dict(zip(names, cells, strict=True))
        else:
            notes.problem(f"{path}:{number}: {len(cells)} cells, not {len(names)} ({', '.join(names)}): {text[:40]}")
        if len(notes.problems) >= _MOST:
            return


def _pair(columns: Mapping[str, Any], place: str, notes: Notes) -> Pair | None:
    """The pair of a line; None, and a problem, where it is none."""
    keys = [next((name for name in names if name in columns), None) for names in (_QUERY, _DOCUMENT)]
    if None in keys:
        notes.problem(f"{place}: query and document are expected; found {', '.join(map(str, columns)) or 'nothing'}")
        return None
    known = len(notes.problems)
    query, document = (_text(columns, key, place, notes) for key in keys if key)
    ids = [_id(columns, names, place, notes) for names in (_QUERY_ID, _DOCUMENT_ID)]
    if len(notes.problems) > known or query is None or document is None:
        return None
    return Pair(query, document, *ids)


def _text(columns: Mapping[str, Any], key: str, place: str, notes: Notes) -> str | None:
    """A text; an empty one is one too, since each pair has its score."""
    value = columns[key]
    if key in _DOCUMENT and not is_nothing(columns.get("title")):
        return titled({"title": columns["title"], "text": value}, place, notes)
    if isinstance(value, str) and is_nothing(value):
        notes.repair("pairs with an empty text, scored as they are", place)
        return value
    if is_nothing(value):
        notes.problem(f"{place}: {key} is empty (null)")
        return None
    return text_of(value, place, notes)


def _id(columns: Mapping[str, Any], names: tuple[str, ...], place: str, notes: Notes) -> str | None:
    value = next((columns[name] for name in names if name in columns), None)
    return None if is_nothing(value) else id_of(value, place, notes)
