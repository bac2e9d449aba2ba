"""How far scores of a lower precision may be from fp32's: a sample drawn, compared, and the way chosen.

In come the pairs of a run and the names of the ways to score on this machine, from what was asked down to fp32; out
comes a Decision: the first way whose order of the run's own queries is fp32's for practical purposes, with the figures
of every way tried. Scores come from a callable. It does not know how they are computed, cached or kept.

    balanced   top-10 overlap >= 0.95 and, with labels, |change of nDCG@10| <= 0.002; from 0.97 on a change
               that chance may have made does not count
    fast       top-10 overlap >= 0.90 and, with labels, |change of nDCG@10| <= 0.005; likewise from 0.95 on

Chance may have made a change that is over its threshold by at most `_UNCLEAR` standard errors: one relevant document
that moves from the first to the second rank changes the mean over 30 queries by 0.012. A MiniLM's bf16 (overlap 0.995)
changed 880 queries of `seealso:` by -0.0002 and its int8 (0.984) by +0.0009, while 26% of samples of 30, and 23% of
120, were beyond 0.002 for bf16, and 63% and 58% for int8: labels of so few queries say nothing that the overlap has not
said better. Below those overlaps an unclear change counts, but first the sample is doubled, as long as the run pays for
it: it is `RATIO` times as large. ``balanced`` asks for `RATIO_INT8` times for int8 where bf16 is there too, nearly as
fast. Looking again after each doubling favours the lower precision a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rankwright.core import text_id
from rankwright.toolbox.lists import measure_grades

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pairs = Sequence[tuple[str, str]]
Labels = Mapping[str, Mapping[str, int]]
"""Query text -> document text -> grade."""

QUERIES = 30
"""Queries of the first sample."""
CANDIDATES = 50
"""Candidates of a query that are compared, the first that were asked for."""
FEWEST = 10
"""Queries that a mean needs, not to be one of chance."""
RATIO = 4
"""So many times the pairs of a sample a run must have, for the sample to be worth its time."""
RATIO_INT8 = 16
"""The same for a way that saves little over the next one: int8 before bf16, which score about 2.5 and 1.9 times as
fast as fp32. A pair of the sample then costs 1 + 1 / 2.5 of a pair in fp32, and one of the run saves 1 / 8 of it:
it pays from 11 times on."""

_SHORTEST = 5  # candidates: the order of fewer says next to nothing
_UNCLEAR = 2.0
_TOP = 10


class Judged(NamedTuple):
    """The grades of a list's candidates, in their order, and all relevant grades of its query, the highest first."""

    grades: Sequence[int]
    ideal: Sequence[int]


class Ranking(NamedTuple):
    """A query with its candidates, and what is known of them."""

    query: str
    documents: tuple[str, ...]
    judged: Judged | None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The (query, document) pairs to score."""
        return [(self.query, document) for document in self.documents]


# -------------------------------------------------------------------------------------------------------- agreement


@dataclass(frozen=True)
class Agreement:
    """How scores of a lower precision agree with fp32's over some queries.

    `overlap`: mean share of the top k that is also fp32's top k, k = min(10, half the candidates). `tau`: mean Kendall
    tau-b, None where every list is constant. `change`: mean nDCG@10 less fp32's over the `labelled` queries and its
    paired standard error, both None for fewer than 10 of those. `difference`: the largest of a score, inf where a
    score is not finite.
    """

    queries: int
    pairs: int
    overlap: float
    tau: float | None
    labelled: int
    change: float | None
    error: float | None
    difference: float

    @classmethod
    def of(
        cls,
        exact: Sequence[NDArray[np.float32]],
        lower: Sequence[NDArray[np.float32]],
        judged: Sequence[Judged | None],
    ) -> Agreement:
        """Compare query by query; each list holds the scores of the same candidates, in the same order.

        Raises:
            ValueError: no lists, or lists of different sizes.
        """
        if not exact or [len(one) for one in exact] != [len(one) for one in lower]:
            raise ValueError("the two precisions have not scored the same lists")
        changes = [
            _ndcg(low, known) - _ndcg(high, known)
            for high, low, known in zip(exact, lower, judged, strict=True)
            if known and any(grade > 0 for grade in known.ideal)
        ]
        enough = len(changes) >= FEWEST
        apart = np.abs(np.concatenate(lower).astype(np.float64) - np.concatenate(exact))
        return cls(
            queries=len(exact),
            pairs=len(apart),
            overlap=float(np.mean([_overlap(*both) for both in zip(exact, lower, strict=True)])),
            tau=_tau(exact, lower),
            labelled=len(changes),
            change=float(np.mean(changes)) if enough else None,
            error=float(np.std(changes, ddof=1) / math.sqrt(len(changes))) if enough else None,
            difference=float(apart.max()) if np.isfinite(apart).all() else math.inf,
        )

    def refused(self, word: str) -> str:
        """Why the word does not admit a precision that agrees so far; empty where it does."""
        if not math.isfinite(self.difference):
            return "scores are not finite"
        rule = _RULES[word]
        if self.overlap < rule.overlap:
            return f"top-{_TOP} overlap below {rule.overlap:g}"
        if self.change is not None and abs(self.change) > rule.change:
            if self.overlap >= rule.clear and self._by_chance(rule.change):
                return ""
            return f"nDCG@10 changes by more than {rule.change:g}"
        return ""

    def admits(self, word: str) -> bool:
        """Whether ``balanced`` or ``fast`` admits a precision that agrees so far."""
        return not self.refused(word)

    def unclear(self, word: str) -> bool:
        """Whether only the change is over its threshold, and by no more than chance may have done."""
        return not self.admits(word) and replace(self, change=0.0).admits(word) and self._by_chance(_RULES[word].change)

    def _by_chance(self, most: float) -> bool:
        """Whether the change may be within `most`, and over it by chance."""
        if self.change is None or self.error is None:
            return False
        return abs(self.change) - most <= _UNCLEAR * self.error

    def said(self) -> str:
        """The figures, for people."""
        told = [f"top-{_TOP} overlap {self.overlap:.3f}"]
        told += [f"Kendall's tau {self.tau:.3f}"] if self.tau is not None else []
        if self.change is not None:
            told.append(f"nDCG@10 {self.change:+.4f} ± {self.error:.4f} on {self.labelled} labelled queries")
        return f"{', '.join(told)}, against fp32 on {self.queries} queries, {self.pairs:,} pairs"


class _Rule(NamedTuple):
    overlap: float
    change: float  # with labels
    clear: float  # the overlap from which on a change that chance may have made does not count


_RULES = {"balanced": _Rule(0.95, 0.002, 0.97), "fast": _Rule(0.90, 0.005, 0.95)}


def rule(word: str) -> str:
    """All that a decision by this word hangs on beside the scores: what was decided by another rule is none."""
    return repr((_RULES.get(word), QUERIES, CANDIDATES, RATIO, RATIO_INT8, _UNCLEAR))


def _order(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(-scores.astype(np.float64), kind="stable")
    return order


def _overlap(exact: NDArray[np.float32], lower: NDArray[np.float32]) -> float:
    """Of ten candidates or fewer all are in the top ten in any order: so the top half is looked at.

    What fp32 scores as high as its last of the top is of the top.
    """
    top = min(_TOP, math.ceil(len(exact) / 2))
    least = exact[_order(exact)[top - 1]]
    return float(np.mean(exact[_order(lower)[:top]] >= least))


def _tau(exact: Sequence[NDArray[np.float32]], lower: Sequence[NDArray[np.float32]]) -> float | None:
    from scipy.stats import kendalltau

    both = zip(exact, lower, strict=True)
    taus = [float(kendalltau(high, low).statistic) for high, low in both if np.ptp(high) > 0 and np.ptp(low) > 0]
    known = [tau for tau in taus if math.isfinite(tau)]
    return float(np.mean(known)) if known else None


def _ndcg(scores: NDArray[np.float32], judged: Judged) -> float:
    ranked = np.asarray(judged.grades, dtype=np.int64)[_order(scores)]
    return float(measure_grades(ranked[None, :], np.asarray([judged.ideal], dtype=np.int64), "ndcg@10")[0])


# --------------------------------------------------------------------------------------------------------- decision


class Tried(NamedTuple):
    """A way that was compared with fp32, or could not be made (no `agreement`), and why it was left; empty: taken."""

    backend: str
    agreement: Agreement | None
    left: str


@dataclass(frozen=True)
class Decision:
    """Which way scores are computed, why, and what was tried; `exact` where it is fp32, the reference."""

    word: str
    backend: str
    exact: bool
    why: str
    tried: tuple[Tried, ...] = ()

    def values(self) -> dict[str, Any]:
        """As plain JSON. A difference that is not finite is null there."""
        return {**asdict(self), "tried": [_plain(one) for one in self.tried]}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Decision:
        """Back from `values`.

        Raises:
            KeyError, TypeError: these are no such values.
        """
        return cls(**{**values, "tried": tuple(_tried(one) for one in values["tried"])})

    def lines(self) -> list[str]:
        """For the terminal: each way that was left, with its figures, then the one taken."""
        left = [f"{one.backend} is left: {one.left}{_figures(one)}" for one in self.tried if one.left]
        return [*left, self.said()]

    def said(self) -> str:
        """The way that was taken and why, in a line."""
        return f"{self.backend} ({self.why})"


def _figures(tried: Tried) -> str:
    return f" ({tried.agreement.said()})" if tried.agreement else ""


def _plain(tried: Tried) -> dict[str, Any]:
    found = asdict(tried.agreement) if tried.agreement else None
    if found and not math.isfinite(found["difference"]):
        found["difference"] = None
    return {"backend": tried.backend, "agreement": found, "left": tried.left}


def _tried(values: Mapping[str, Any]) -> Tried:
    found = values["agreement"]
    if found:
        found = Agreement(**{**found, "difference": math.inf if found["difference"] is None else found["difference"]})
    return Tried(values["backend"], found, values["left"])


# ----------------------------------------------------------------------------------------------------------- choice


@dataclass(frozen=True)
class Sample:
    """A run's lists to compare, in an order of chance that the texts decide, those with labels first.

    `pairs` counts the whole run.
    """

    rankings: tuple[Ranking, ...]
    pairs: int

    @classmethod
    def of(cls, pairs: Pairs, labels: Labels | None = None, *, total: int = 0) -> Sample:
        """Draw from all the pairs of a run, whether their scores are known or not: a resumed run draws the same.

        `total` is how many will be computed, where that is more: by several models, or of texts not known yet.
        """
        lists: dict[str, dict[str, None]] = {}
        for query, document in pairs:
            lists.setdefault(query, {})[document] = None
        long = [query for query, documents in lists.items() if len(documents) >= _SHORTEST]
        known = {query: _judged(list(lists[query])[:CANDIDATES], (labels or {}).get(query, {})) for query in long}
        long.sort(key=lambda query: (known[query] is None, text_id("guard" + query), query))
        drawn = tuple(Ranking(query, tuple(lists[query])[:CANDIDATES], known[query]) for query in long)
        return cls(drawn, max(total, sum(map(len, lists.values()))))

    @property
    def worth(self) -> bool:
        """Whether the run is large enough to pay for the first sample, and the sample to tell something."""
        return len(self.rankings) >= FEWEST and self.pays(QUERIES, RATIO)

    def larger(self, queries: int, ratio: int) -> int | None:
        """Twice as many queries, or as many as there are; None where the run does not pay for more."""
        wanted = min(2 * queries, len(self.rankings))
        return wanted if wanted > queries and self.pays(wanted, ratio) else None

    def pays(self, queries: int, ratio: int) -> bool:
        """Whether the run has `ratio` times the pairs of so many of the sample's queries."""
        return self.pairs >= ratio * sum(len(ranking.documents) for ranking in self.rankings[:queries])


def _judged(documents: Sequence[str], grades: Mapping[str, int]) -> Judged | None:
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    return Judged([max(grades.get(document, -1), -1) for document in documents], ideal) if ideal else None


def choose(
    word: str, backends: Sequence[str], sample: Sample, score: Callable[[str, Pairs], NDArray[np.float32] | str]
) -> Decision:
    """Walk `backends` (from what was asked down to fp32, the last) and take the first that `word` admits.

    An int8 that the run does not pay for is tried after the others alone.

    `score(backend, pairs)` gives scores, or says why the backend cannot be made; fp32 is always made. Pairs that were
    asked for once are asked for again in a larger sample: the caller keeps their scores.
    """
    *lower, reference = backends
    if word == "exact" or not lower:
        why = "as asked" if word == "exact" else "this machine has no faster way"
        return Decision(word, reference, True, why)
    if not sample.worth:
        return Decision(word, reference, True, f"{sample.pairs:,} pairs are too few to try a faster way on")
    tried: list[Tried] = []
    dear = [one for one in lower[:-1] if word == "balanced" and "int8" in one]
    later = [] if sample.pays(QUERIES, RATIO_INT8) else dear  # than the next way, which may not be admitted
    for backend in [*(one for one in lower if one not in later), *later]:
        ratio = RATIO_INT8 if backend in dear and backend not in later else RATIO
        tried.append(_try(word, backend, reference, sample, score, ratio))
        if not tried[-1].left:
            found = tried[-1].agreement
            return Decision(word, backend, False, found.said() if found else "", tuple(tried))
    return Decision(word, reference, True, f"{word} admits no faster way here", tuple(tried))


def _try(
    word: str,
    backend: str,
    reference: str,
    sample: Sample,
    score: Callable[[str, Pairs], NDArray[np.float32] | str],
    ratio: int,
) -> Tried:
    """Compare one backend with the reference, on more queries for as long as chance may have decided."""
    queries: int | None = min(QUERIES, len(sample.rankings))
    while queries:
        rankings = sample.rankings[:queries]
        pairs = [pair for ranking in rankings for pair in ranking.pairs]
        lower = score(backend, pairs)
        if isinstance(lower, str):
            return Tried(backend, None, lower)
        exact = score(reference, pairs)
        assert not isinstance(exact, str)
        ends = np.cumsum([len(ranking.documents) for ranking in rankings])[:-1]
        judged = [ranking.judged for ranking in rankings]
        found = Agreement.of(np.split(exact, ends), np.split(lower, ends), judged)
        queries = sample.larger(queries, ratio) if found.unclear(word) else None
    return Tried(backend, found, found.refused(word))
