"""Sources whose texts have ids, which `beir` and `trec` share: texts, qrels, and the check of one against the other.

In: files of texts and of judgements. Out: dictionaries, and the Collection that they make together. It does not
know how a folder is laid out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rankwright.core import Collection, Qrels
from rankwright.toolbox.formats.files import json_lines, lines
from rankwright.toolbox.formats.source import Notes
from rankwright.toolbox.formats.texts import EMPTY, id_of, is_nothing, titled

_TOLERATED_SHARE = 0.01


def read_json_texts(path: Path, notes: Notes) -> dict[str, str]:
    """Id -> text of a JSONL file with ``_id`` (or ``id``), ``title`` and ``text``; "" where there is none."""
    texts: dict[str, str] = {}
    for number, row in json_lines(path, notes):
        place = f"{path}:{number}"
        if not ({"_id", "id"} & row.keys() and {"text", "title"} & row.keys()):
            notes.problem(f"{place}: _id and text are expected; found {', '.join(row) or 'nothing'}")
            continue
        name = id_of(row["_id"] if "_id" in row else row["id"], place, notes)
        text = titled(row, place, notes)
        if name is not None and text is not None:
            _put(texts, name, text, place, notes)
    return texts


def read_tab_texts(path: Path, notes: Notes) -> dict[str, str]:
    """Id -> text of a file with ``id TAB text`` in each line; "" where there is none."""
    texts: dict[str, str] = {}
    for number, line in lines(path, notes):
        place = f"{path}:{number}"
        name, tab, text = line.partition("\t")
        if not tab:
            notes.problem(f"{place}: id, tab and text are expected, found no tab: {line[:60]}")
        elif (identity := id_of(name, place, notes)) is not None:
            _put(texts, identity, "" if is_nothing(text) else text, place, notes)
    return texts


def read_judgements(path: Path, notes: Notes, *, header: bool) -> Qrels:
    """Qrels of a file with 3 columns (query, document, grade) or TREC's 4 (query, 0, document, grade).

    Columns are split at tabs where a line has any, else at white space. A first line without a grade is a
    header; with `header`, a file that lacks one is a counted repair. Grades below 0 become 0, and the highest
    grade of a repeated pair counts.
    """
    qrels: Qrels = {}
    first = True
    for number, line in lines(path, notes):
        place = f"{path}:{number}"
        columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
        grade = _grade(columns[-1])
        was_first, first = first, False
        if was_first and not _is_number(columns[-1]):
            continue
        if was_first and header:
            notes.repair("qrels files without a header", str(path))
        if len(columns) not in (3, 4) or not columns[0] or not columns[-2]:
            notes.problem(f"{place}: 3 or 4 columns are expected (query, document, grade), not: {line[:60]}")
        elif grade is None:
            notes.problem(f"{place}: the grade must be a whole number, not {columns[-1]!r}")
        else:
            _judge(qrels.setdefault(columns[0], {}), columns[-2], grade, place, notes)
    return qrels


def assemble(
    documents: Mapping[str, str], queries: Mapping[str, str], qrels: Mapping[str, Qrels], notes: Notes
) -> Collection:
    """The Collection of texts and judgements; queries that no split judges and empty texts are left out.

    Judgements of ids without a text are left out and counted while they are below 1%.

    Raises:
        DataError: all problems noted so far, and too many judgements of ids without a text.
    """
    notes.refuse("lines cannot be read")
    full_documents = _without_empty(documents, "document", notes)
    full_queries = _without_empty(queries, "query", notes)
    kept: dict[str, Qrels] = {split: {} for split in qrels}
    unknown: list[str] = []
    total = 0
    for split, query, document, grade in _entries(qrels):
        total += 1
        if query in full_queries and document in full_documents:
            kept[split].setdefault(query, {})[document] = grade
        elif query in queries and document in documents:
            notes.repair("judgements of empty texts left out", f"{split}: {query} {document}")
        else:
            lost = f"query {query}" if query not in queries else f"document {document}"
            unknown.append(f"{split}: {lost} has no text (pair {query} {document})")
    if len(unknown) < _TOLERATED_SHARE * total:
        for problem in unknown:
            notes.repair("judgements of ids without a text left out", problem)
    else:
        notes.problems.extend(unknown)
        notes.refuse(f"of {total} judgements name ids without a text", "do the qrels belong to these texts?")
    judged = {query for grades in kept.values() for query in grades}
    return Collection(full_documents, {q: text for q, text in full_queries.items() if q in judged}, kept)


def _entries(qrels: Mapping[str, Qrels]) -> Iterator[tuple[str, str, str, int]]:
    for split, by_query in qrels.items():
        for query, grades in by_query.items():
            for document, grade in grades.items():
                yield split, query, document, grade


def _put(texts: dict[str, str], name: str, text: str, place: str, notes: Notes) -> None:
    if texts.setdefault(name, text) is text:
        return
    if texts[name] == text:
        notes.repair("lines repeated word for word", place)
    else:
        notes.problem(f"{place}: id {name} stands twice, with different texts")


def _without_empty(texts: Mapping[str, str], what: str, notes: Notes) -> dict[str, str]:
    full = {name: text for name, text in texts.items() if not is_nothing(text)}
    if len(full) < len(texts):
        for name in texts:
            if name not in full:
                notes.repair(EMPTY, f"{what} {name}")
    return full


def _is_number(column: str) -> bool:
    try:
        float(column)
    except ValueError:
        return False
    return True


def _grade(column: str) -> int | None:
    value = float(column) if _is_number(column) else 0.5
    return int(value) if value.is_integer() else None


def _judge(grades: dict[str, int], document: str, grade: int, place: str, notes: Notes) -> None:
    if grade < 0:
        notes.repair("grades below 0 read as 0", place)
        grade = 0
    if document in grades and grades[document] != grade:
        notes.repair("pairs graded twice (the higher grade counts)", place)
    grades[document] = max(grade, grades.get(document, 0))
