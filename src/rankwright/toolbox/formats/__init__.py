"""Readers of the formats that the field already uses: `KIND:LOCATION` in, a Collection out.

A new format is one module with a `read`, and one line in `READERS`. It does not know how a collection is
cleaned or split.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path

from rankwright.errors import ConfigError, DataError
from rankwright.toolbox.formats import beir, flag, hub, rows, trec
from rankwright.toolbox.formats.source import Notes, Repair, Source, Splits

__all__ = ["READERS", "Repair", "Source", "Splits", "read", "refuse_absent", "sniff"]

Reader = Callable[[str, Splits, bool], Source]


def _seealso(location: str, splits: Splits, dedupe: bool) -> Source:
    from rankwright.toolbox.formats import seealso

    return seealso.read(location, splits)


def _docstrings(location: str, splits: Splits, dedupe: bool) -> Source:
    from rankwright.toolbox.formats import docstrings

    return docstrings.read(location, splits)


READERS: dict[str, Reader] = {
    "beir": lambda location, splits, dedupe: beir.read(location, splits),
    "rows": lambda location, splits, dedupe: rows.read(location, splits, dedupe=dedupe),
    "hub": lambda location, splits, dedupe: hub.read(location, splits, dedupe=dedupe),
    "flag": lambda location, splits, dedupe: flag.read(location, splits, dedupe=dedupe),
    "trec": lambda location, splits, dedupe: trec.read(location, splits),
    "seealso": _seealso,
    "docstrings": _docstrings,
}


_LOCAL = ("beir", "rows", "flag", "trec")
"""The kinds whose location is a path."""


def read(source: str, splits: Splits, *, dedupe: bool) -> Source:
    """Read ``KIND:LOCATION``. Kinds whose texts have ids of their own pass over `dedupe`.

    Raises:
        ConfigError: no such kind.
        DataError: what is there cannot be read; all problems of a kind are told at once.
    """
    kind, colon, location = source.partition(":")
    if colon and kind in READERS:
        return READERS[kind](location, splits, dedupe)
    guess = None if colon else sniff(source)
    if guess is None:
        close = difflib.get_close_matches(kind.lower(), READERS, n=1)
        guess = f"{close[0]}:{location}" if close else f"KIND:LOCATION, where KIND is one of {', '.join(READERS)}"
    fault = f"unknown kind of source {kind!r}" if colon else f"a source is KIND:LOCATION, not {source!r}"
    raise ConfigError(f"data.source: {fault}", hint=guess)


def refuse_absent(source: str, where: str) -> None:
    """Raise, before there is a need for it, where ``KIND:LOCATION`` cannot be read: no such kind, nothing there.

    Raises:
        ConfigError: no such kind.
        DataError: no such file or folder.
    """
    kind, _, location = source.partition(":")
    if kind not in READERS:
        read(source, Splits(), dedupe=True)  # raises, and says what was meant
    if kind in _LOCAL and not Path(location).expanduser().exists():
        raise DataError(f"{where}: there is no {location!r}", hint="a path is relative to where the command is run")


def sniff(path: str | Path) -> str | None:
    """Guess the ``KIND:LOCATION`` of a folder or file by its layout and first row; None if it looks like none."""
    place = Path(path).expanduser()
    if place.is_dir():
        if (
            (place / "corpus.jsonl").is_file()
            and (place / "queries.jsonl").is_file()
            and any(place.glob("qrels/*.tsv"))
        ):
            return f"beir:{path}"
        if any(place.glob("qrels*")):
            return f"trec:{path}"
    try:
        files = rows.split_files(place, Splits()).values() if place.exists() else ()
        columns = _first_columns(file for own in files for file in own)
    except (DataError, ConfigError):
        return None
    if "pos" in columns:
        return f"flag:{path}"
    return f"rows:{path}" if rows.has_columns(columns) else None


def _first_columns(files: Iterable[Path]) -> set[str]:
    for file in files:
        for _, columns in rows.numbered(file, Notes()):
            return set(columns)
    return set()
