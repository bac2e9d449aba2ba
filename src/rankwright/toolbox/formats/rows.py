"""`rows:PATH`: one query, its positives and its negatives a row, as JSONL, Parquet or CSV.

In: a file, or a folder with SPLIT.jsonl, SPLIT.parquet or SPLIT.csv (also ``.jsonl.gz``, and the shards and
the data/ folder of a hub download). A cell holds a text or a list of them. Texts get their ids here, since rows
have none. `hub` and `flag` share the second half of this module. It does not know what a good negative is.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.core import Collection, Qrels, text_id
from rankwright.errors import DataError
from rankwright.toolbox.formats.files import existing, json_lines, lines
from rankwright.toolbox.formats.source import BOTH_WAYS, COPIES, TWINS, Notes, Source, Splits
from rankwright.toolbox.formats.texts import EMPTY, is_nothing, text_of

# sentence-transformers, Tevatron and Cohere call the same three things by other names
_QUERY = ("query", "anchor")
_POSITIVE = ("positive", "positives", "positive_passages", "relevant_passages")
_NEGATIVE = ("negative", "negatives", "negative_passages", "hard_negatives")
_NUMBERED_NEGATIVE = re.compile(r"negative[_-]?\d+")
_SPLIT_FILE = re.compile(r"(?P<split>.+?)(-\d{5}-of-\d{5})?(?P<suffix>\.jsonl|\.jsonl\.gz|\.parquet|\.csv)")
_SUFFIXES = "SPLIT.jsonl, SPLIT.parquet or SPLIT.csv"

Numbered = Iterator[tuple[str, dict[str, Any]]]
"""place (``train.jsonl:17``) and columns of each row."""


@dataclass(frozen=True)
class Row:
    """One row: its number from 0 (rows that are skipped count), and its texts, none of which is empty."""

    number: int
    query: str
    positives: list[str]
    negatives: list[str]


def read(location: str | Path, splits: Splits, *, dedupe: bool = True) -> Source:
    """Read rows from a file (one split) or a folder; see `build` for their ids.

    Raises:
        DataError: missing files, splits or columns, and rows that cannot be read.
    """
    path = existing(location)
    notes = Notes()
    rows = {split: list(_rows_of(files, notes)) for split, files in split_files(path, splits).items()}
    notes.refuse("rows cannot be read")
    return Source(build(rows, dedupe=dedupe, notes=notes), notes.repairs())


def split_files(path: Path, splits: Splits) -> dict[str, list[Path]]:
    """Our split -> its files, in order; a file by itself is training.

    Raises:
        DataError: no file of a known kind, a split in two kinds of file, or no such split.
    """
    if path.is_file():
        if splits.named():
            hint = f"leave data.train, dev and test out, or give a folder with {_SUFFIXES}"
            raise DataError("one file has no named splits", where=str(path), hint=hint)
        return {"train": [path]}
    found: dict[str, list[Path]] = {}
    for file in sorted([*path.glob("*"), *path.glob("data/*")]):
        if (match := _SPLIT_FILE.fullmatch(file.name)) and file.is_file():
            found.setdefault(match["split"], []).append(file)
    if not found:
        raise DataError("no rows here", where=str(path), hint=f"the folder should hold {_SUFFIXES}")
    chosen = splits.resolve(sorted(found), str(path))
    for name in chosen.values():
        sharded = all("-of-" in file.name for file in found[name])
        if len(found[name]) > 1 and not (sharded and len({file.suffix for file in found[name]}) == 1):
            both = " and ".join(file.name for file in found[name])
            raise DataError(f"the split {name} is there more than once: {both}", where=str(path), hint="keep one")
    return {split: found[name] for split, name in chosen.items()}


def has_columns(names: Container[str]) -> bool:
    """Whether columns of these names make rows: a query and a positive."""
    return any(name in names for name in _QUERY) and any(name in names for name in _POSITIVE)


def parse(rows: Numbered, notes: Notes) -> Iterator[Row]:
    """Rows of columns; what is empty is left out and counted, what is no text is a problem."""
    for number, (place, columns) in enumerate(rows):
        named = _columns(columns, place, notes)
        if named is None:
            continue
        query, *lists = named
        positives, negatives = ([text for cell in cells for text in _texts(cell, place, notes)] for cells in lists)
        text = None if is_nothing(query) else text_of(query, place, notes)
        if row := checked(Row(number, text or "", positives, negatives), place, notes):
            yield row


def checked(row: Row, place: str, notes: Notes) -> Row | None:
    """The row, or None (counted) if it has no query or nothing relevant to it."""
    if not row.query:
        notes.repair("rows without a query skipped", place)
        return None
    if not row.positives:
        notes.repair("rows without a positive skipped", place)
        return None
    return row


def build(rows: Mapping[str, Iterable[Row]], *, dedupe: bool, notes: Notes) -> Collection:
    """Make ids, and a Collection in which a row's negatives are judged 0.

    With `dedupe`, ids are `core.text_id` of the texts: copies merge, and rows with the same query unite, a
    text that is positive anywhere for a query being positive. Without it each row is a query of its own
    (``test-17``) and each of its texts a document of its own (``test-17-p0``, ``test-17-n3``).
    """
    collection = Collection({}, {}, {split: {} for split in rows})
    for split, own in rows.items():
        for row in own:
            if dedupe:
                _add_united(collection, collection.qrels[split], row, f"{split} row {row.number}", notes)
            else:
                _add_apart(collection, split, row, notes)
    return collection


def _add_united(collection: Collection, qrels: Qrels, row: Row, place: str, notes: Notes) -> None:
    query = text_id(row.query)
    if query in qrels:
        notes.repair(TWINS, place)
    collection.queries.setdefault(query, row.query)
    grades = qrels.setdefault(query, {})
    both = 0
    before = len(collection.documents)
    for texts, grade in ((row.positives, 1), (row.negatives, 0)):
        for text in texts:
            document = text_id(text)
            collection.documents.setdefault(document, text)
            both += grades.get(document, grade) != grade
            grades[document] = max(grade, grades.get(document, 0))
    notes.repair(COPIES, count=len(row.positives) + len(row.negatives) - (len(collection.documents) - before))
    if both:
        notes.repair(BOTH_WAYS, place, count=both)


def _add_apart(collection: Collection, split: str, row: Row, notes: Notes) -> None:
    query = f"{split}-{row.number}"
    collection.queries[query] = row.query
    grades = collection.qrels[split][query] = {}
    for texts, letter, grade in ((row.positives, "p", 1), (row.negatives, "n", 0)):
        for position, text in enumerate(texts):
            document = f"{query}-{letter}{position}"
            collection.documents[document] = text
            grades[document] = grade
    if both := set(row.positives) & set(row.negatives):
        notes.repair(BOTH_WAYS, f"{split} row {row.number}", count=len(both))


def _columns(columns: Mapping[str, Any], place: str, notes: Notes) -> tuple[Any, list[Any], list[Any]] | None:
    """The cell of the query, those of positives and of negatives; None, and a problem, where a column is missing."""
    query = [columns[name] for name in _QUERY if name in columns][:1]
    positives = [columns[name] for name in _POSITIVE if name in columns]
    negatives = [columns[name] for name in columns if name in _NEGATIVE or _NUMBERED_NEGATIVE.fullmatch(name)]
    if query and positives:
        return query[0], positives, negatives
    missing = " and ".join(name for name, cells in (("query", query), ("positive", positives)) if not cells)
    found = ", ".join(map(str, columns)) or "nothing"
    flag = "; that is flag:, not rows:" if "pos" in columns else ""
    notes.problem(f"{place}: no column {missing}; found {found}{flag}")
    return None


def _texts(cell: object, place: str, notes: Notes) -> list[str]:
    """The texts of a cell: one, or a list of them, also when a CSV holds the list as JSON."""
    if isinstance(cell, str) and cell.startswith("[") and cell.endswith("]"):
        cell = _unpacked(cell, place, notes)
    texts: list[str] = []
    for value in cell if isinstance(cell, list | tuple) else [cell]:
        if is_nothing(value):
            if isinstance(cell, list | tuple):
                notes.repair(EMPTY, place)
        elif text := text_of(value, place, notes):
            texts.append(text)
    return texts


def _unpacked(cell: str, place: str, notes: Notes) -> object:
    try:
        value = json.loads(cell)
    except ValueError:
        if cell[1:2] in ("'", '"'):
            notes.problem(f"{place}: a list printed as text, which cannot be read back safely: {cell[:60]}")
        return cell
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        notes.repair("lists that were written as JSON in a text cell", place)
        return value
    return cell


def _rows_of(files: Iterable[Path], notes: Notes) -> Iterator[Row]:
    """The rows of a split's files, numbered through."""
    return parse((row for file in files for row in numbered(file, notes)), notes)


def numbered(path: Path, notes: Notes) -> Numbered:
    """Place and columns of each row of a file, by its suffix.

    Raises:
        DataError: no such file, or none that can be read.
    """
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix == ".csv":
        return _csv_rows(path, notes)
    if path.suffix in (".jsonl", ".gz", ".json"):
        return ((f"{path}:{number}", columns) for number, columns in json_lines(path, notes))
    raise DataError("not a file of rows", where=str(path), hint="rows are read from .jsonl, .parquet and .csv")


def _parquet_rows(path: Path) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):  # a file may be larger than memory
                for columns in batch.to_pylist():
                    yield f"{path}:row {number}", columns
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file that can be read ({error})", where=str(path)) from None


def _csv_rows(path: Path, notes: Notes) -> Numbered:
    csv.field_size_limit(2**31 - 1)  # the default refuses cells of more than 131,072 characters
    reader = csv.DictReader(_with_ends(path, notes), strict=True)
    try:
        for columns in reader:
            place = f"{path}:{reader.line_num}"
            if None in columns:
                notes.problem(f"{place}: more cells than the header has columns")
                continue
            nan = [name for name, cell in columns.items() if cell in ("nan", "NaN")]
            if nan:
                notes.repair("NaN cells read as empty", place)
            yield place, {name: None if name in nan else cell for name, cell in columns.items()}
    except csv.Error as error:
        notes.problem(f"{path}:{reader.line_num}: not CSV ({error})")


def _with_ends(path: Path, notes: Notes) -> Iterator[str]:
    return (f"{text}\n" for _, text in lines(path, notes, blank=True))  # cells may hold blank lines
