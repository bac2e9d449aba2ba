"""What every reader gives back, and how it keeps account of what it repaired and what it refuses.

In: the names that a source gives its splits. Out: a `Source`, which is a Collection and the counted repairs.
Nothing here reads a file or knows a format.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from rankwright.core import SPLITS, Collection
from rankwright.errors import ConfigError, DataError, problems_error

COPIES = "copies of a document merged"
TWINS = "repeated queries united"
BOTH_WAYS = "texts labelled both relevant and not for one query"

_DEFAULT_NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
_EXAMPLES = 3


@dataclass(frozen=True)
class Splits:
    """The source's own names of the splits; None stands for the usual ones."""

    train: str | None = None
    dev: str | None = None
    test: str | None = None

    def named(self) -> dict[str, str]:
        """Our split -> the source's name, of those that are named outright."""
        return {split: name for split in SPLITS if (name := getattr(self, split)) is not None}

    def resolve(self, found: Sequence[str], where: str) -> dict[str, str]:
        """Our split -> the source's name, given the names that the source has.

        A usual name is not taken by default when another split is named so outright, and a source with one
        split of an unusual name is all training.

        Raises:
            DataError: a split that is named is not there, or there is none of a usual name.
            ConfigError: two splits are given the same name.
        """
        named = self.named()
        _refuse_twice(named)
        for split, name in named.items():
            if name not in found:
                raise _no_split(split, name, found, where)
        chosen = dict(named)
        for split in SPLITS:
            free = [name for name in _DEFAULT_NAMES[split] if name in found and name not in named.values()]
            if free:
                chosen.setdefault(split, free[0])
        if not chosen and len(found) == 1:
            chosen = {"train": found[0]}
        if not chosen:
            have = f"the splits are {', '.join(found)}" if found else "nothing is there"
            raise DataError(f"no split named train, dev or test: {have}", where=where, hint="name them: data.train …")
        return {split: chosen[split] for split in SPLITS if split in chosen}


@dataclass(frozen=True)
class Repair:
    """One kind of repair: what was done, how often, and the places of the first few (``train.jsonl:17``)."""

    what: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a reader gives back: a collection, and what had to be repaired to get it."""

    collection: Collection
    repairs: tuple[Repair, ...] = ()


@dataclass
class Notes:
    """A reader's account: repairs are counted by kind, problems are gathered and raised together."""

    problems: list[str] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, list[str]] = field(default_factory=dict)

    def repair(self, what: str, example: str | None = None, count: int = 1) -> None:
        """Count a repair; `example` is its place, and the first few are kept."""
        self._counts[what] = self._counts.get(what, 0) + count
        examples = self._examples.setdefault(what, [])
        if example is not None and len(examples) < _EXAMPLES:
            examples.append(example)

    def problem(self, problem: str) -> None:
        """Note what cannot be repaired, in one line with its place."""
        self.problems.append(problem)

    def refuse(self, what: str, hint: str | None = None) -> None:
        """Raise the problems, if there are any, as one DataError of so many `what`."""
        if self.problems:
            raise problems_error(self.problems, what, hint=hint)

    def repairs(self) -> tuple[Repair, ...]:
        """The repairs so far, in the order of their first appearance."""
        return tuple(Repair(what, count, tuple(self._examples[what])) for what, count in self._counts.items() if count)


def _refuse_twice(named: dict[str, str]) -> None:
    for split, name in named.items():
        others = [other for other in named if other != split and named[other] == name]
        if others:
            raise ConfigError(f"data.{split} and data.{others[0]} are the same split, {name!r}")


def _no_split(split: str, name: str, found: Sequence[str], where: str) -> DataError:
    close = difflib.get_close_matches(name, found, n=1)
    guess = f"did you mean {close[0]}?" if close else f"set data.{split} to a split that is there"
    return DataError(f"no split {name!r}; found {', '.join(found) or 'none'}", where=where, hint=guess)
