"""A reranker's scores of whole lists by a cascade, cached, and how much of it dev allows.

In: a model folder with an exit head, dev's candidates and labels, then pairs query by query. Out: scores as
`scorer.CachedScorer` gives them; only those that can still reach the top are logits of all layers. How far behind a
candidate may be at the exit is measured on dev: the smallest margin at which, and at all larger ones, nDCG loses no
more than the tolerance against scoring everything in full. It does not know which split is measured, nor what a stage
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.core import Collection, Qrels, Run, content_hash
from rankwright.errors import ConfigError
from rankwright.sections import CascadeSection
from rankwright.toolbox.engine.cascade import Cascade, joined, survivors
from rankwright.toolbox.exits import ExitHead
from rankwright.toolbox.lists import Lists
from rankwright.toolbox.model import Reranker
from rankwright.toolbox.progress import bar
from rankwright.toolbox.store import Keys, RowStore, content_keys
from rankwright.toolbox.weights import fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Pairs = Sequence[tuple[str, str]]

_CHUNK = 1024
"""Pairs that are on disk before more are computed: whole lists, one at least."""
_STEPS = 50
"""Margins that are tried: quantiles of how far candidates are behind."""


@dataclass(frozen=True)
class Calibrated:
    """What dev allows. `margin` is infinite where only scoring everything loses no more than the tolerance.

    `share` of dev's candidates (by tokens) go on at that margin; `full` is nDCG with all layers for all and `loss` how
    much less it is in the cascade; `saved` is the part of the products that is not computed.
    """

    layer: int
    keep: int
    tolerance: float
    margin: float
    share: float
    full: float
    loss: float
    saved: float = 0.0

    @property
    def allows(self) -> bool:
        """Whether anything may stay behind; if not, scoring as if there were no cascade is faster."""
        return bool(np.isfinite(self.margin))

    def values(self) -> dict[str, Any]:
        """As plain JSON; an infinite margin is null."""
        return {**asdict(self), "margin": self.margin if np.isfinite(self.margin) else None}

    def said(self) -> str:
        """In a line, for the terminal."""
        if not self.allows:
            return f"no cascade: dev loses more than {self.tolerance:g} wherever candidates stay behind"
        return (
            f"cascade after layer {self.layer}: {self.share:.0%} of dev's candidates go on to all layers, "
            f"nDCG@{self.keep} on dev {self.full:.4f} -> {self.full - self.loss:.4f} "
            f"(loss {self.loss:.4f}, at most {self.tolerance:g}), {self.saved:.0%} of the products saved"
        )


def calibrate(lists: Lists, exits: NDArray[np.float64], section: CascadeSection) -> float:
    """The smallest margin at which, and at all larger ones tried, the loss on these lists is within the tolerance.

    `lists.reranked` are the logits of all candidates, `exits` their scores at the exit, NaN for the padding. Larger
    margins count too, since a loss that is small by chance at one margin says little.
    """
    full = float(np.mean(_measured(lists, lists.reranked, section.keep)))
    chosen = np.inf
    for margin in reversed(margins(exits, section.keep)):
        if full - measure(lists, exits, section.keep, margin) > section.tolerance:
            break
        chosen = margin
    return float(chosen)


def measure(lists: Lists, exits: NDArray[np.float64], keep: int, margin: float) -> float:
    """Mean nDCG@keep of a cascade's order, as `calibrate` has its arguments."""
    scores = lists.reranked.copy()
    for row, (own, there) in enumerate(zip(exits, ~np.isnan(exits), strict=True)):
        on = survivors(own[there], keep, margin)
        scores[row, there] = joined(own[there], np.where(on, lists.reranked[row, there], np.nan))
    return float(np.mean(_measured(lists, scores, keep)))


def _measured(lists: Lists, scores: NDArray[np.float64], keep: int) -> NDArray[np.float64]:
    laid = replace(lists, reranked=scores)
    return laid.measure(laid.order(1.0, laid.width), f"ndcg@{keep}")


def margins(exits: NDArray[np.float64], keep: int) -> list[float]:
    """The margins that are tried, ascending: 0, and how far candidates are behind the `keep`-th best, in quantiles."""
    found = [np.partition(own, -keep)[-keep] - own for own in (row[~np.isnan(row)] for row in exits) if len(own) > keep]
    behind = np.concatenate([np.empty(0), *found])
    behind = behind[behind > 0]
    return [0.0, *np.quantile(behind, np.linspace(0, 1, _STEPS + 1)[1:]).tolist()] if len(behind) else [0.0]


class CascadeScorer:
    """Calls like a `CachedScorer`, with the pairs of a query one after another: they are what is compared.

    A score depends on the whole list, so what is cached are the exit's scores and the logits, by pair.
    """

    def __init__(
        self,
        folder: Path,
        head: ExitHead,
        section: CascadeSection,
        *,
        cache: Path,
        device: str,
        max_length: int,
    ) -> None:
        self.folder, self.head, self.section = folder, head, section
        self.device, self.max_length = device, max_length
        name = [fingerprint(self.folder), str(max_length)]
        self._exits = RowStore(cache / "scores" / content_hash([*name, "exit"]), width=1)
        self._logits = RowStore(cache / "scores" / content_hash([*name, "cascade"]), width=1)
        self._loaded: tuple[Reranker, Cascade] | None = None
        self.calibrated: Calibrated | None = None

    def calibrate(self, collection: Collection, run: Run, qrels: Qrels, *, what: str) -> Calibrated:
        """Score dev's candidates in full and decide, by their labels, how far behind a candidate may be.

        Raises:
            ConfigError: no query has both labels and candidates, or the model cannot stop after some layers.
        """
        lists = Lists.of(run, None, qrels)
        if not lists.width:
            raise ConfigError("cascade: dev has no candidates to measure a loss on", hint="leave rerank.cascade out")
        pairs = [
            (collection.queries[query], collection.documents[document])
            for query, row in zip(lists.queries, lists.documents, strict=True)
            for document in row
        ]
        there = ~np.isnan(lists.retrieved)
        exits, logits = np.full(there.shape, np.nan), np.full(there.shape, np.nan)
        exits[there], logits[there] = self._scores(pairs, np.inf, what)
        lists = replace(lists, reranked=logits)
        margin = calibrate(lists, exits, self.section)
        on = [survivors(row[~np.isnan(row)], self.section.keep, margin) for row in exits]
        reranker, cascade = self._load()
        lengths = reranker.encoder(pairs).lengths
        share = float(lengths[np.concatenate(on)].sum() / lengths.sum())
        full = float(np.mean(_measured(lists, logits, self.section.keep)))
        loss = full - measure(lists, exits, self.section.keep, margin)
        self.calibrated = Calibrated(
            self.head.layer, self.section.keep, self.section.tolerance, margin, share, full, loss, cascade.saved(share)
        )
        return self.calibrated

    def __call__(self, pairs: Pairs, *, what: str = "score") -> Floats:
        """Scores, float32 (len(pairs),); `calibrate` comes first.

        Raises:
            ValueError: it did not.
        """
        if self.calibrated is None:
            raise ValueError("a cascade is calibrated before it scores")
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        exits, logits = self._scores(pairs, self.calibrated.margin, what)
        return np.concatenate([joined(exits[one], logits[one]) for one in _lists(pairs)])

    def _scores(self, pairs: Pairs, margin: float, what: str) -> tuple[Floats, Floats]:
        """The exit's scores and the logits, NaN for those that stay behind; computed where the cache lacks some."""
        keys = content_keys(pairs)
        exits, logits = np.empty(len(pairs), dtype=np.float32), np.full(len(pairs), np.nan, dtype=np.float32)
        with bar(what, len(pairs), "pairs") as advance:
            for chunk in _chunks(_lists(pairs)):
                place = slice(chunk[0].start, chunk[-1].stop)
                own = [slice(one.start - place.start, one.stop - place.start) for one in chunk]
                exits[place], logits[place] = self._chunk(pairs[place], keys[place], own, margin)
                advance(place.stop - place.start)
        return exits, logits

    def _chunk(self, pairs: Pairs, keys: Keys, lists: Sequence[slice], margin: float) -> tuple[Floats, Floats]:
        known = self._known(keys, lists, margin)
        if known is None:
            reranker, cascade = self._load()
            exits, logits = cascade(reranker.encoder(pairs), lists, self.section.keep, margin)
            went = ~np.isnan(logits)
            self._logits.append(keys[went], logits[went, None])
            self._exits.append(keys, exits[:, None])
            return exits, logits  # not what is stored: of a pair that other lists had too, its last bits may differ
        return known

    def _known(self, keys: Keys, lists: Sequence[slice], margin: float) -> tuple[Floats, Floats] | None:
        rows = self._exits.find(keys)
        if (rows < 0).any():
            return None
        exits = np.array(self._exits.rows[rows, 0])
        on = np.concatenate([survivors(exits[one], self.section.keep, margin) for one in lists])
        rows = self._logits.find(keys[on])
        if (rows < 0).any():
            return None
        logits = np.full(len(keys), np.nan, dtype=np.float32)
        logits[on] = self._logits.rows[rows, 0]
        return exits, logits

    def _load(self) -> tuple[Reranker, Cascade]:
        if self._loaded is None:
            reranker = Reranker.load(self.folder, device=self.device, max_length=self.max_length)
            self._loaded = reranker, Cascade(reranker.model, self.head)
        return self._loaded


def _lists(pairs: Pairs) -> list[slice]:
    """The neighbours that have one query."""
    starts = [place for place in range(len(pairs)) if not place or pairs[place][0] != pairs[place - 1][0]]
    return [slice(start, stop) for start, stop in pairwise([*starts, len(pairs)])]


def _chunks(lists: Sequence[slice]) -> Iterator[list[slice]]:
    """Neighbouring lists of no more than `_CHUNK` pairs together."""
    chunk: list[slice] = []
    for one in lists:
        if chunk and one.stop - chunk[0].start > _CHUNK:
            yield chunk
            chunk = []
        chunk.append(one)
    if chunk:
        yield chunk
