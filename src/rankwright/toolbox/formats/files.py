"""Text files, line by line with their numbers, and files that are written whole or not at all.

It knows encodings, line ends and JSON, and nothing of what the lines mean.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from rankwright.errors import DataError, DiskError
from rankwright.toolbox.formats.source import Notes

_BOM = b"\xef\xbb\xbf"


def existing(path: str | Path, *, folder: bool = False) -> Path:
    """`path` with ~ expanded.

    Raises:
        DataError: there is no such file (or folder).
    """
    path = Path(path).expanduser()
    if not (path.is_dir() if folder else path.exists()):
        raise DataError(f"no such {'folder' if folder else 'file'}", where=str(path), hint="check the path")
    return path


def lines(path: Path, notes: Notes, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text, without its end, of each line (`blank`: of blank ones too); ``.gz`` is unpacked.

    A byte order mark and CRLF line ends are taken away and counted; a line that is not UTF-8 is a problem.

    Raises:
        DataError: no such file.
        DiskError: the file cannot be read.
    """
    try:
        with _open(existing(path)) as file:
            for number, raw in enumerate(file, start=1):
                if number == 1 and raw.startswith(_BOM):
                    notes.repair("byte order mark taken away", str(path))
                    raw = raw[len(_BOM) :]
                if number == 1 and raw.endswith(b"\r\n"):
                    notes.repair("file with CRLF line ends", str(path))
                try:
                    text = raw.decode().rstrip("\r\n")
                except UnicodeDecodeError as error:
                    notes.problem(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start} of the line)")
                    continue
                if blank or (text and not text.isspace()):
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        raise DiskError(f"cannot read: {getattr(error, 'strerror', None) or error}", where=str(path)) from None


def json_lines(path: Path, notes: Notes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a JSONL file; lines that are no JSON object are problems."""
    for number, text in lines(path, notes):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            notes.problem(f"{path}:{number}: not JSON ({error}): {text[:60]}")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            notes.problem(f"{path}:{number}: a JSON object {{…}} is expected, not {type(value).__name__}")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to write to, that takes its name only when all of it is on disk.

    Raises:
        DiskError: no space or no permission; whatever stood at `path` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DiskError(f"cannot write: {error.strerror or error}", where=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
