"""Reference answers: JSONL of a query and what the right answer to it is.

In come a file and the collection's queries; out comes query id -> answer. A line names its query by `query_id` or by
its text (`query`). It does not know what answers are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwright.core import text_id
from rankwright.toolbox.formats.files import json_lines
from rankwright.toolbox.formats.source import Notes


def read_answers(path: str | Path, queries: Mapping[str, str]) -> dict[str, str]:
    """The answers to those queries that the collection has; lines about others are passed over.

    Raises:
        DataError: no such file, lines without a query or an answer, two answers to one query, or none that fits.
    """
    file, notes = Path(path).expanduser(), Notes()
    by_text = {text_id(text): query for query, text in queries.items()}
    found: dict[str, str] = {}
    for number, line in json_lines(file, notes):
        answer, named = line.get("answer"), _named(line, queries, by_text)
        if not isinstance(answer, str) or named is None:
            notes.problem(f"{file}:{number}: a line needs query_id (or query) and answer, both texts")
        elif named in found and found[named] != answer:
            notes.problem(f"{file}:{number}: query {named} has another answer already")
        elif named in queries:
            found[named] = answer
    if not found and not notes.problems:
        notes.problem(f"{file}: no line names a query of this collection")
    notes.refuse("problems in the reference answers", hint='{"query_id": "q1", "answer": "…"} on each line')
    return found


def _named(line: Mapping[str, Any], queries: Mapping[str, str], by_text: Mapping[str, str]) -> str | None:
    """The query's id; empty where it is none of the collection's, None where none is named."""
    name, text = line.get("query_id"), line.get("query")
    named = isinstance(name, str | int) and not isinstance(name, bool)
    if named and str(name) in queries:
        return str(name)
    if isinstance(text, str):
        return by_text.get(text_id(text), "")
    return "" if named else None
