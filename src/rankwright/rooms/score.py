"""A model and a file of pairs -> a folder of scores, in shards. Any number of pairs, in constant memory.

    scores-00000.parquet    row (int64, which pair of the file, from 0), query_id and document_id (where the file has
                            some), score (float32, a logit)
    scores.json             what the scores are made of, how they are computed and why

The file is read twice: once to check and count, once to score. Shards are written by rename; the same call again goes
on after what is there, computes as the first call had decided, and gives the same bytes. Batches never reach over the
border of a shard. It does not know what scores are for.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from rankwright.errors import ArtefactError, ConfigError, DataError, MissingExtraError, ModelError
from rankwright.toolbox import engine
from rankwright.toolbox.device import choose_device
from rankwright.toolbox.engine import choose, guard
from rankwright.toolbox.engine.guard import Decision, Sample
from rankwright.toolbox.engine.pairs import PairEncoder
from rankwright.toolbox.formats.files import existing
from rankwright.toolbox.formats.pairs import Pair, PairFile, Survey, survey
from rankwright.toolbox.model import Reranker, has_head
from rankwright.toolbox.progress import bar, say
from rankwright.toolbox.scorer import WORDS
from rankwright.toolbox.weights import fingerprint, locate
from rankwright.version import __version__
from rankwright.workspace import disk_errors, write_json

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray

SCORES = "scores.json"
HEAD = 20_000
"""Pairs at the file's beginning that the precision is decided on."""

_SHORTEST = 8  # tokens of a pair
_KEEP = 4_000_000  # tokens' worth of texts: those of one query's candidates come again soon, or not for long
_ELSEWHERE = "another --out, or delete that folder"

Stream = Callable[[Iterable[tuple[str, str]]], "Iterator[NDArray[np.float32]]"]


@dataclass(frozen=True)
class Options:
    """How to score: a word for the precision, the tokens of a pair, the device, and the pairs of a shard.

    Raises:
        ConfigError: no such word, or numbers too small.
    """

    precision: str = "balanced"
    max_length: int = 512
    device: str = "auto"
    shard: int = 100_000

    def __post_init__(self) -> None:
        if self.precision not in WORDS:
            raise ConfigError(f"precision: {self.precision!r} is not known", hint=f"one of {', '.join(WORDS)}")
        if self.max_length < _SHORTEST:
            raise ConfigError(f"max_length: {self.max_length} is too short for a pair", hint=f"{_SHORTEST} or more")
        if self.shard < 1:
            raise ConfigError(f"shard: {self.shard} pairs", hint="1 or more")


@dataclass(frozen=True)
class Scored:
    """What a call came to: all `pairs` have their scores, `scored` of them by this call, in `seconds`."""

    folder: Path
    shards: tuple[Path, ...]
    pairs: int
    scored: int
    seconds: float
    decision: Decision

    def values(self) -> dict[str, Any]:
        """As plain JSON."""
        shards = [str(path) for path in self.shards]
        return {**asdict(self), "folder": str(self.folder), "shards": shards, "decision": self.decision.values()}

    def lines(self) -> list[str]:
        """For people."""
        many = f"{len(self.shards)} shard{'s' if len(self.shards) > 1 else ''}"
        told = f"{self.pairs:,} pairs are scored, in {many} in {self.folder}"
        if not self.scored:
            return [f"{told}; nothing was left to do"]
        pace = f"{self.scored:,} of them now, {self.scored / max(self.seconds, 1e-9):,.0f} a second"
        return [told, f"{pace}, by {self.decision.backend}"]


def score(model: str | Path, file: str | Path, folder: str | Path, options: Options | None = None) -> Scored:
    """Score every pair of `file` (see `formats.pairs`) by `model`, a folder or hub id, into `folder`.

    Raises:
        ConfigError: the folder holds scores of another model, another file or other options. They stay.
        DataError: lines that are no pairs, before anything is scored; the file changes while it is read.
        ModelError: no reranker there, or it gives scores that are not finite.
        ArtefactError: another process scores into this folder.
        DiskError: no space, or no permission.
    """
    options = options or Options()
    weights, source, folder = locate(str(model)), existing(file), Path(folder).expanduser()
    if not has_head(weights):
        Reranker.load(weights)  # raises, and says what to do
    with disk_errors(folder), _alone(folder):
        known, made_of = _known(folder), _made_of(weights, options)
        _refuse_other(folder, known, made_of)  # all that can be told before a long file is read
        found = survey(source, every=options.shard)
        say(f"{source}: {found.pairs:,} pairs")
        for repair in found.repairs:
            say(f"{source}: {repair.count:,} {repair.what}")
        made_of["the file"] = found.digest
        _refuse_other(folder, known, made_of)
        return _Work(weights, source, found, folder, options).done(known, made_of)


@dataclass(frozen=True)
class _Work:
    weights: Path
    source: Path
    found: Survey
    folder: Path
    options: Options

    def done(self, known: Mapping[str, Any] | None, made_of: Mapping[str, Any]) -> Scored:
        """Compute the shards that are missing; `known` is what scores.json says."""
        missing = [number for number in range(len(self.found.marks)) if not self._whole(number)]
        if known and len(missing) < len(self.found.marks):
            say(f"{len(self.found.marks) - len(missing)} of {len(self.found.marks)} shards are there")
        decision = Decision.read(known["decision"]) if known else None
        seconds, told = 0.0, dict(known or {})
        if missing or decision is None:
            ways = _Ways(self._load())
            decision = decision or self._decide(ways)
            stream = ways.stream(decision.backend)
            del ways  # the other ones, and the model where a converted one is whole by itself
            if not known:
                told = self._told(decision, made_of)
                write_json(self.folder / SCORES, told)
            started = time.monotonic()
            self._fill(set(missing), stream)
            seconds = time.monotonic() - started
        if not told["done"]:
            write_json(self.folder / SCORES, {**told, "done": True})
        shards = tuple(self._shard(number) for number in range(len(self.found.marks)))
        return Scored(self.folder, shards, self.found.pairs, sum(map(self._rows, missing)), seconds, decision)

    def _told(self, decision: Decision, made_of: Mapping[str, Any]) -> dict[str, Any]:
        ids = [name for name, there in _columns(self.found).items() if there]
        shards = {"shards": len(self.found.marks), "columns": ["row", *ids, "score"]}
        names = {"model": str(self.weights), "file": str(self.source)}
        told = {"made_of": dict(made_of), "decision": decision.values(), **names, "pairs": self.found.pairs, **shards}
        return {"rankwright": __version__, **told, "done": False}

    def _rows(self, number: int) -> int:
        """How many pairs a shard has."""
        return min(self.options.shard, self.found.pairs - number * self.options.shard)

    def _shard(self, number: int) -> Path:
        return self.folder / f"scores-{number:05d}.parquet"

    def _whole(self, number: int) -> bool:
        """Whether a shard is there; one that was damaged from outside is computed again."""
        import pyarrow
        import pyarrow.parquet

        try:
            return bool(pyarrow.parquet.read_metadata(self._shard(number)).num_rows == self._rows(number))
        except (OSError, pyarrow.ArrowException):
            return False

    # -------------------------------------------------------------------------------------------------------- choosing

    def _load(self) -> Reranker:
        reranker = Reranker.load(self.weights, device=self.options.device, max_length=self.options.max_length)
        if reranker.max_length < self.options.max_length:
            say(f"pairs are cut at {reranker.max_length} tokens, the most that this model reads")
        return reranker

    def _decide(self, ways: _Ways) -> Decision:
        """Which way to compute, decided on the first pairs of the file; once, for all of its shards."""
        word = self.options.precision
        names = [step.name for step in choose.backends(word, ways.reranker.device)]
        if len(names) == 1:
            return guard.choose(word, names, Sample.of([]), ways.scores)
        head = [(pair.query, pair.document) for pair in islice(PairFile(self.source), HEAD)]
        sample = Sample.of(head, total=self.found.pairs)
        if len(sample.rankings) < guard.FEWEST:
            why = f"no order to compare: few of the first {len(head):,} pairs have a query in common"
            decision = Decision(word, names[-1], True, why)
        else:
            decision = guard.choose(word, names, sample, ways.scores)
        for line in decision.lines():
            say(f"{self.weights.name}: {line}")
        return decision

    # --------------------------------------------------------------------------------------------------------- scoring

    def _fill(self, missing: set[int], stream: Stream) -> None:
        """Read the file from its beginning, and score and write the shards that are missing."""
        file = PairFile(self.source)
        pairs = iter(file)
        with bar("score", sum(map(self._rows, missing)), "pairs") as advance:
            for number, mark in enumerate(self.found.marks):
                part = islice(pairs, self.options.shard)
                table = self._table(number, part, stream, advance) if number in missing else None
                deque(part, maxlen=0)  # the pairs of a shard that is there
                if file.digest != mark:
                    raise DataError(
                        "the file has changed while it was read", where=str(self.source), hint="the same command again"
                    )
                if table is not None:
                    _write(self._shard(number), table)

    def _table(
        self, number: int, part: Iterable[Pair], stream: Stream, advance: Callable[[int], None]
    ) -> pyarrow.Table | None:
        """The rows of a shard, None where the file has become too short for it.

        They are kept as arrays: Python's own strings take ten times the room.
        """
        import pyarrow

        names = [name for name, there in _columns(self.found).items() if there]
        ids: deque[tuple[str | None, ...]] = deque()

        def texts() -> Iterator[tuple[str, str]]:
            for pair in part:
                ids.append(tuple(getattr(pair, name) for name in names))
                yield pair[:2]

        parts, first = [], number * self.options.shard
        for scores in stream(texts()):
            self._refuse_unreal(scores, first)
            rows = np.arange(first, first + len(scores), dtype=np.int64)
            cells = zip(*(ids.popleft() for _ in scores), strict=True)
            columns = [pyarrow.array(column, pyarrow.string()) for column in cells]
            parts.append(pyarrow.table([rows, *columns, scores], names=["row", *names, "score"]))
            first += len(scores)
            advance(len(scores))
        return pyarrow.concat_tables(parts) if parts else None

    def _refuse_unreal(self, scores: NDArray[np.float32], first: int) -> None:
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise ModelError(
                f"scores are not finite, that of row {first + bad[0]:,} and {len(bad) - 1:,} near it",
                where=str(self.weights),
                hint="check the model's weights, or --precision exact",
            )


def _columns(found: Survey) -> dict[str, bool]:
    return {"query_id": found.query_ids, "document_id": found.document_ids}


class _Ways:
    """A model, and the ways to score by it that have been made, by name: converting takes its time."""

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker
        self._encoder = PairEncoder(reranker.tokenizer, reranker.max_length, keep_tokens=_KEEP)
        self._made: dict[str, engine.Backend] = {}

    def stream(self, name: str) -> Stream:
        """Any number of pairs to their scores, window by window.

        Raises:
            MissingExtraError: what computes so, by an earlier call's decision, is not installed any longer.
        """
        try:
            return partial(engine.stream, self._backend(name), self._encoder)
        except MissingExtraError as error:
            hint = f"install it again, or score anew: {_ELSEWHERE}"
            raise MissingExtraError(f"the scores there were begun by {name}: {error.message}", hint=hint) from None

    def scores(self, name: str, pairs: guard.Pairs) -> NDArray[np.float32] | str:
        """The scores of some pairs, or why this way cannot be made of this model."""
        try:
            return engine.score(self._backend(name), self._encoder, pairs)
        except ModelError as error:
            return error.message

    def _backend(self, name: str) -> engine.Backend:
        if name not in self._made:
            self._made[name] = choose.step(name).backend(self.reranker)
        return self._made[name]


# ----------------------------------------------------------------------------------------------------------- the folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, keep other processes out, and clear away what a killed one was writing."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ArtefactError("another rankwright scores into it", where=str(folder), hint="wait for it") from None
    try:
        for left in folder.glob(".scores[-.]*"):
            left.unlink()
        yield
    finally:
        lock.release()


def _known(folder: Path) -> dict[str, Any] | None:
    """What scores.json says; None in a folder without scores."""
    place = folder / SCORES
    if not place.exists():
        if any(folder.glob("scores-*.parquet")):
            raise ConfigError(f"scores without their {SCORES}", where=str(folder), hint=_ELSEWHERE)
        return None
    try:
        known: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        Decision.read(known["decision"])
        _ = known["made_of"].items(), known["done"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError("it cannot be read", where=str(place), hint=_ELSEWHERE) from None
    return known


def _made_of(weights: Path, options: Options) -> dict[str, Any]:
    """All that the scores hang on, but for the file."""
    return {**asdict(options), "device": choose_device(options.device), "the model": fingerprint(weights)}


def _refuse_other(folder: Path, known: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Scores of another making stay, and are not gone on with."""
    if known is None:
        return
    then = known["made_of"]
    other = [name for name in now if then.get(name) != now[name]]
    content = ("the model", "the file")  # of which there are only digests
    told = [f"{name} has changed" if name in content else f"{name}: {then.get(name)} -> {now[name]}" for name in other]
    if told:
        raise ConfigError(f"the scores there are not these: {'; '.join(told)}", where=str(folder), hint=_ELSEWHERE)


def _write(path: Path, table: pyarrow.Table) -> None:
    """A Parquet file, whole or not at all."""
    import pyarrow.parquet

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as opened:
            repeated = [name for name in table.column_names if name == "query_id"]  # no other value comes twice
            pyarrow.parquet.write_table(table, opened, use_dictionary=repeated or False)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
