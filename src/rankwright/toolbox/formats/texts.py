"""What a cell holds: a text, an id, or nothing (null, NaN, blank), whatever its type on disk.

It knows no file and no column; what is repaired on the way is counted under the place that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankwright.toolbox.formats.source import Notes

EMPTY = "empty texts left out"


def is_nothing(value: object) -> bool:
    """Whether a cell is null, NaN or blank."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and value != value)


def text_of(value: object, place: str, notes: Notes) -> str | None:
    """The text of a cell that is not nothing: a string, a number, or a passage ``{title, text}``.

    None, and a problem, where it is something else. Half characters (lone surrogates, which no file can
    hold) are replaced.
    """
    if isinstance(value, str):
        return value if value.isascii() else _whole(value, place, notes)
    if isinstance(value, Mapping) and "text" in value:
        return titled(value, place, notes)
    if isinstance(value, int | float) and not isinstance(value, bool):
        notes.repair("numbers read as texts", place)
        return str(value)
    notes.problem(f"{place}: a text is expected, not {type(value).__name__} ({str(value)[:40]})")
    return None


def titled(row: Mapping[str, Any], place: str, notes: Notes) -> str | None:
    """Title, a space, and text; the one where the other is nothing; "" where both are."""
    parts = [text_of(row[key], place, notes) for key in ("title", "text") if not is_nothing(row.get(key))]
    return None if None in parts else " ".join(part for part in parts if part is not None)


def id_of(value: object, place: str, notes: Notes) -> str | None:
    """An id as a string; numbers become strings and are counted. None, and a problem, where there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        notes.repair("ids that were numbers", place)
        return str(value)
    if isinstance(value, str) and (name := value.strip()):
        if name.isascii() and name.isprintable():
            return name
        if not set(name) & set("\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"):
            return _whole(name, place, notes)
    notes.problem(f"{place}: an id is expected, not {value!r}")
    return None


def _whole(text: str, place: str, notes: Notes) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        notes.repair("half characters replaced", place)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
