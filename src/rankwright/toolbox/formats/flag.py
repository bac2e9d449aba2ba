"""FlagEmbedding's JSONL: `flag:PATH` as a source, and training groups, written and read.

A line is ``{"query", "pos": [], "neg": [], "pos_scores"?, "neg_scores"?}``. Groups add query_id, pos_ids, neg_ids,
pos_grades, neg_origins and, where holes were weighed, neg_weights, which FlagEmbedding passes over. It does not know
how a group is mined or used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.core import Group, text_id
from rankwright.toolbox.formats.files import existing, json_lines, written_whole
from rankwright.toolbox.formats.rows import Row, build, checked, split_files
from rankwright.toolbox.formats.source import Notes, Source, Splits
from rankwright.toolbox.formats.texts import EMPTY, is_nothing, text_of

_HINT = 'a line is {"query": "…", "pos": ["…"], "neg": ["…"]}'
_PARALLEL = {"pos_ids": "pos", "pos_grades": "pos", "pos_scores": "pos"} | {
    "neg_ids": "neg",
    "neg_scores": "neg",
    "neg_origins": "neg",
    "neg_weights": "neg",
}


def read(location: str | Path, splits: Splits, *, dedupe: bool = True) -> Source:
    """Read a JSONL file (one split), or a folder with SPLIT.jsonl; ids as in `rows.build`.

    Raises:
        DataError: missing files or splits, and lines that are not FlagEmbedding's: a string where a list
            belongs would become negatives of one letter.
    """
    notes = Notes()
    files = split_files(existing(location), splits)
    rows = {split: list(_rows(paths, notes)) for split, paths in files.items()}
    notes.refuse("lines are not FlagEmbedding's", _HINT)
    return Source(build(rows, dedupe=dedupe, notes=notes), notes.repairs())


def write_groups(path: str | Path, groups: Iterable[Group]) -> None:
    """Write groups, positives (label above 0) before the rest, whole or not at all.

    A teacher's score that is NaN becomes null; weights that are all 1 are not written. `read_groups` gives back the
    same groups if positives came first, had the origin ``positive`` and the weight 1, and the other labels were 0.

    Raises:
        DiskError: no space or no permission; an older file stays as it was.
    """
    with written_whole(Path(path)) as file:
        for group in groups:
            file.write(json.dumps(_line(group), ensure_ascii=False, allow_nan=False) + "\n")


def read_groups(path: str | Path) -> list[Group]:
    """Read groups, also from a plain FlagEmbedding file.

    Its ids are then `core.text_id`, grades and weights 1, teachers NaN. The lists of a group are lists: positives,
    then negatives.

    Raises:
        DataError: no such file, and lines that are no groups; all are told at once.
    """
    notes = Notes()
    groups = []
    for number, columns in json_lines(Path(path), notes):
        problem = _problem(columns) or _group_problem(columns)
        if problem:
            notes.problem(f"{path}:{number}: {problem}")
        else:
            groups.append(_group(columns))
    notes.refuse("lines are no groups", _HINT)
    return groups


def _rows(paths: Iterable[Path], notes: Notes) -> Iterator[Row]:
    numbered = ((f"{path}:{line}", columns) for path in paths for line, columns in json_lines(path, notes))
    for number, (place, columns) in enumerate(numbered):
        if problem := _problem(columns):
            notes.problem(f"{place}: {problem}")
            continue
        if columns.get("pos_scores") or columns.get("neg_scores"):
            notes.repair("rows whose teacher scores are left aside", place)
        positives, negatives = (_full(columns.get(key) or [], place, notes) for key in ("pos", "neg"))
        query = None if is_nothing(columns["query"]) else text_of(columns["query"], place, notes)
        if row := checked(Row(number, query or "", positives, negatives), place, notes):
            yield row


def _full(texts: Sequence[object], place: str, notes: Notes) -> list[str]:
    full = []
    for value in texts:
        if is_nothing(value):
            notes.repair(EMPTY, place)
        elif text := text_of(value, place, notes):
            full.append(text)
    return full


def _problem(columns: Mapping[str, Any]) -> str | None:
    if "query" not in columns or "pos" not in columns:
        return f"query and pos are expected; found {', '.join(columns) or 'nothing'}"
    for key in ("pos", "neg"):
        if isinstance(columns.get(key), str):
            return f"{key} must be a list of texts, not a string: {columns[key][:40]!r}"
        if not isinstance(columns.get(key), list | None):
            return f"{key} must be a list of texts, not {columns[key]!r:.40}"
    return None


def _group_problem(columns: Mapping[str, Any]) -> str | None:
    for key in ("pos", "neg"):
        if not all(isinstance(text, str) for text in columns.get(key) or []):
            return f"{key} must be a list of texts"
    if not isinstance(columns["query"], str):
        return "query must be a text"
    for key, base in _PARALLEL.items():
        values = columns.get(key)
        wanted = len(columns.get(base) or [])
        if values is not None and (not isinstance(values, list) or len(values) != wanted):
            return f"{key} must be a list of {wanted} values, one for each text of {base}"
    scores = [*(columns.get("pos_scores") or []), *(columns.get("neg_scores") or [])]
    if not all(isinstance(score, int | float | None) for score in scores):
        return "scores must be numbers or null"
    if not all(isinstance(grade, int) and grade > 0 for grade in columns.get("pos_grades") or []):
        return "pos_grades must be whole numbers above 0"
    if not all(isinstance(weight, int | float) and 0 <= weight <= 1 for weight in columns.get("neg_weights") or []):
        return "neg_weights must be numbers from 0 to 1"
    return None


def _line(group: Group) -> dict[str, Any]:
    positive = [index for index, label in enumerate(group.labels) if label > 0]
    rest = [index for index, label in enumerate(group.labels) if label <= 0]
    teacher = [None if math.isnan(score) else float(score) for score in group.teacher]
    weights = [float(group.weights[index]) for index in rest]
    line = {
        "query": group.query,
        "pos": [group.documents[index] for index in positive],
        "neg": [group.documents[index] for index in rest],
        "pos_scores": [teacher[index] for index in positive],
        "neg_scores": [teacher[index] for index in rest],
        "query_id": group.query_id,
        "pos_ids": [group.document_ids[index] for index in positive],
        "neg_ids": [group.document_ids[index] for index in rest],
        "pos_grades": [int(group.labels[index]) for index in positive],
        "neg_origins": [group.origins[index] for index in rest],
    }
    return line if all(weight == 1 for weight in weights) else {**line, "neg_weights": weights}


def _group(columns: Mapping[str, Any]) -> Group:
    positives, negatives = list(columns["pos"] or []), list(columns.get("neg") or [])

    def parallel(key: str, default: list[Any]) -> list[Any]:
        values = columns.get(key)
        return default if values is None else values

    scores = parallel("pos_scores", [None] * len(positives)) + parallel("neg_scores", [None] * len(negatives))
    ids = parallel("pos_ids", [text_id(text) for text in positives])
    ids = ids + parallel("neg_ids", [text_id(text) for text in negatives])
    return Group(
        query_id=str(columns.get("query_id", text_id(columns["query"]))),
        query=columns["query"],
        document_ids=[str(name) for name in ids],
        documents=positives + negatives,
        labels=parallel("pos_grades", [1] * len(positives)) + [0] * len(negatives),
        teacher=[math.nan if score is None else float(score) for score in scores],
        origins=["positive"] * len(positives) + parallel("neg_origins", ["given"] * len(negatives)),
        weights=[1.0] * len(positives) + [float(weight) for weight in parallel("neg_weights", [1.0] * len(negatives))],
    )
