"""The errors that are meant for people, and nothing else.

    RankwrightError                 exit code
    ├── ConfigError                 2   the YAML or a command-line option
    ├── DataError                   3   rows, ids, labels, splits
    ├── ModelError                  4   weights, tokenizer, head, hub
    ├── ArtefactError               5   the run folder: missing, foreign, locked
    ├── MissingExtraError           6   an optional dependency
    └── DiskError                   7   no space, no permission

Each says what went wrong, where, and what to try. They are caught once, in the
command line. Any other exception is a bug in rankwright and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class RankwrightError(Exception):
    """What went wrong (`message`), where (`where`, e.g. ``exp.yaml:12``) and what to try (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  try: {self.hint}" if self.hint else text


class ConfigError(RankwrightError):
    """The experiment file or a command-line option cannot be used as it stands."""

    exit_code = 2


class DataError(RankwrightError):
    """Rows, ids, labels or splits cannot be used as they stand."""

    exit_code = 3


class ModelError(RankwrightError):
    """Weights, a tokenizer or a head are missing or do not fit."""

    exit_code = 4


class ArtefactError(RankwrightError):
    """A run folder or a file in it is missing, locked or not what it should be."""

    exit_code = 5


class MissingExtraError(RankwrightError):
    """An optional dependency is not installed."""

    exit_code = 6


class DiskError(RankwrightError):
    """The disk is full or cannot be written to."""

    exit_code = 7


def problems_error(problems: Sequence[str], what: str, *, hint: str | None = None, shown: int = 5) -> DataError:
    """One DataError for many data problems: their count, and the first `shown` as examples.

    `problems` are one-line descriptions, each with its own place (``train.jsonl:17: …``).
    """
    examples = "".join(f"\n  - {problem}" for problem in problems[:shown])
    rest = f"\n  … and {len(problems) - shown} more" if len(problems) > shown else ""
    return DataError(f"{len(problems)} {what}:{examples}{rest}", hint=hint)


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line of at most 200 characters; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
