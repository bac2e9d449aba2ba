"""The run folder: where each stage's box stands, what made it, and whether it can be used again.

A stage is done when its `stage.json` is there; that file is written last, by rename. It holds what the stage
was made of: its config, its inputs' keys, the room's version, the content of outside inputs. Their hash is the
stage's key. A stage is reused exactly when what it would be made of now is what it was made of then.

It does not know which stages there are, nor in which order they come.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rankwright.core import content_hash
from rankwright.errors import ArtefactError, DiskError

MadeOf = Mapping[str, Any]
"""Flat: dotted name -> plain JSON value, e.g. ``{"mine.negatives": 7, "input.retrieve": "9f…", "room": 1}``."""

_DONE = "stage.json"
_UNFINISHED = "unfinished"
_SCRATCH = ("checkpoints",)
"""What is only there to go on from; it goes when the stage is done."""
_ASIDE = ("tensorboard", "trials")
"""What may stay, or be deleted: no later stage needs it."""
_FREE = "free some space; the same command goes on"
_FULL = ("No space left", "PytorchStreamWriter failed", "unexpected pos")
"""What safetensors and (the last two) torch.save say on a full disk."""


@dataclass(frozen=True)
class Decision:
    """Whether a stage can be reused, and why, in words for the terminal."""

    reuse: bool
    why: str
    resume: bool = False


def stage_key(made_of: MadeOf) -> str:
    """The key of a stage: a hash (32 hexadecimal digits) of all that it is made of."""
    return content_hash(f"{name}={json.dumps(made_of[name], sort_keys=True)}" for name in sorted(made_of))


class RunFolder:
    """The stages below one folder. `cache` beside it is shared by all runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root.parent / ".cache"

    def stage(self, name: str) -> Path:
        """The folder of a stage (``train/finetuned``); it may not exist yet."""
        return self.root / name

    def decide(self, name: str, made_of: MadeOf) -> Decision:
        """Reuse, resume or run the stage, with the reason."""
        done = self.read(name)
        if done is None:
            left = self.stage(name) / _UNFINISHED
            if left.exists() and left.read_text() == stage_key(made_of):
                return Decision(False, "goes on where it was stopped", resume=True)
            return Decision(False, "not done yet")
        if changes := _changes(done["made_of"], made_of):
            return Decision(False, changes)
        if lost := [file for file, size in done["outputs"].items() if _size(self.stage(name) / file) != size]:
            return Decision(False, f"{lost[0]} is gone or changed")
        return Decision(True, "unchanged")

    def read(self, name: str) -> dict[str, Any] | None:
        """What `stage.json` says, or None when the stage is not done."""
        path = self.stage(name) / _DONE
        if not path.exists():
            return None
        try:
            done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            _ = done["made_of"], done["outputs"], done["key"], done["seconds"]
        except (ValueError, KeyError, TypeError):
            raise ArtefactError("not a stage file", where=str(path), hint="delete it and run again") from None
        return done

    @contextlib.contextmanager
    def making(self, name: str, made_of: MadeOf) -> Iterator[Path]:
        """Give the stage's folder to work in; mark the stage done when the work ends without an error.

        The folder is emptied first, unless it holds unfinished work of the same key, which the room may go on with.
        """
        folder = self.stage(name)
        if not self.decide(name, made_of).resume:
            _empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _UNFINISHED, stage_key(made_of))
        started = time.monotonic()
        yield folder
        outputs = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(_outputs(folder))}
        done = {"key": stage_key(made_of), "seconds": round(time.monotonic() - started, 2)}
        write_json(folder / _DONE, {**done, "made_of": dict(made_of), "outputs": outputs})
        self.tidy(name)

    def tidy(self, name: str) -> None:
        """Remove what a finished stage needs no longer, also after a kill that came just before this."""
        folder = self.stage(name)
        (folder / _UNFINISHED).unlink(missing_ok=True)
        for scratch in _SCRATCH:
            shutil.rmtree(folder / scratch, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second command out of this run folder. The lock goes with the process, however it dies."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ArtefactError("a file is where the run folder should be", where=str(self.root)) from None
        lock = FileLock(str(self.root / ".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            message = "another rankwright is at work in this run folder"
            raise ArtefactError(message, where=str(self.root), hint="wait for it, or use another name:") from None
        try:
            yield
        finally:
            lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: into a temporary sibling, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a DiskError; leave all other errors as they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR):
            raise
        place = str(error.filename or where)
        hint = _FREE if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see its permissions, or name another --runs"
        raise DiskError(str(error.strerror), where=place, hint=hint) from error
    except DiskError:
        raise
    except Exception as error:  # safetensors and torch have errors of their own
        if not any(sign in str(error) for sign in _FULL):
            raise
        raise DiskError("no space left on the disk", where=str(where), hint=_FREE) from error


def _changes(then: MadeOf, now: MadeOf, shown: int = 2) -> str:
    """The first differences as ``mine.negatives: 7 -> 3``, config before inputs; empty when there are none."""
    names = [name for name in {**now, **then} if then.get(name) != now.get(name) or (name in then) != (name in now)]
    names.sort(key=lambda name: (name.startswith(("input.", "content.")), name))
    told = [_change(name, then, now) for name in names[:shown]]
    return "; ".join(told) + (f"; and {len(names) - shown} more" if len(names) > shown else "")


def _change(name: str, then: MadeOf, now: MadeOf) -> str:
    if name.startswith("input."):
        return f"{name.removeprefix('input.')} is new"
    if name.startswith("content."):
        return f"{name.removeprefix('content.')} changed"
    if name == "room":
        return f"rankwright's own {name} version: {then.get(name)} -> {now.get(name)}"
    return f"{name}: {_short(then.get(name))} -> {_short(now.get(name))}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


def _outputs(folder: Path) -> Iterator[Path]:
    """The files that a later stage needs: not the checkpoints, nor what stands aside or is hidden."""
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith(".") or part in (*_SCRATCH, *_ASIDE) for part in parts)
        if file.is_file() and not hidden and file.name not in (_DONE, _UNFINISHED):
            yield file


def _empty(folder: Path) -> None:
    for mark in (_DONE, _UNFINISHED):  # first of all: what a kill leaves of the rest must not be gone on with
        (folder / mark).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else -1
