"""What a diagnosis looks at, what it finds, and the one table of its thresholds.

Plain values: a Case holds what is known of one reranked arm, much of it optional; a check takes a Case and gives a
Finding. Nothing here runs a check, reads a file or loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Collection, Group, Qrels, Run
from rankwright.toolbox import stats
from rankwright.toolbox.legible import ILLEGIBLE
from rankwright.toolbox.lists import Lists

Values = NDArray[np.float64]
TextScorer = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]
"""(query text, document text) pairs -> the arm's logits, float32 (len(pairs),)."""
PairScorer = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]
"""(query id, document id) pairs -> the retriever's scores, float32 (len(pairs),); NaN where there is none."""

Kind = Literal["cause", "serving", "measuring"]
"""A fault in model, training or data; in how scores are used; in what these numbers can tell."""


class Limit(NamedTuple):
    """A threshold: what the number is, and on which side of `value` it is bad."""

    says: str
    bad: Literal["above", "below"]
    value: float


LIMITS: dict[str, Limit] = {
    "H1.map": Limit("MAP on the closed pool, reranker minus retriever", "below", -0.02),
    "H1b.asymmetry": Limit("mean |s(q, d) - s(d, q)| in standard deviations of s", "above", 0.5),
    "H1b.questions": Limit("share of queries that are questions", "below", 0.05),
    "H1b.length": Limit("length of queries over length of documents, the smaller over the larger", "above", 0.5),
    "H2.easier": Limit("P(training negative scores below a served candidate), by the retriever", "above", 0.8),
    "H2.accuracy": Limit("pairwise accuracy on random or given minus on retrieved negatives", "above", 0.15),
    "H2.inside": Limit("share of training negatives among the retriever's candidates", "below", 0.05),
    "H3.gain": Limit("best blend minus reranked order", "above", 0.0),
    "H4.judged": Limit("judged share of the top 10, the lower of the two runs", "below", 0.5),
    "H4.bias": Limit("difference of that share between the runs", "above", 0.05),
    "H5.copies": Limit("share of documents that are copies of another", "above", 0.01),
    "H5.unique": Limit("unique texts per 100 candidates", "below", 95.0),
    "H6.queries": Limit("share of queries whose text is a document", "above", 0.01),
    "H6.first": Limit("share of queries with themselves at rank 1", "above", 0.01),
    "H7.twins": Limit("share of queries whose text another query has", "above", 0.001),
    "H7.both": Limit("share of judged pairs (by text) labelled both ways", "above", 0.001),
    "H8.loss": Limit("metric at the best depth minus at the served depth", "above", 0.0),
    "H9.last": Limit("dev metric, best minus last checkpoint", "above", 0.0),
    "H9.general": Limit("general collection, after minus before training", "below", -0.01),
    "H10.doubtful": Limit("share of mined negatives scored at least 0.95 of the positives", "above", 0.10),
    "H11.ties": Limit("share of neighbours in the top 10 with equal scores", "above", 0.005),
    "H11.tau": Limit("Kendall's tau of low precision against fp32", "below", 0.995),
    "H12.cut": Limit("share of pairs longer than the length limit", "above", 0.05),
    "H12.worse": Limit("reranker minus retriever, cut queries minus others", "below", 0.0),
    "H13.room": Limit("perfect order of the candidates minus retrieval, in widths of the interval", "below", 2.0),
    "H14.power": Limit("minimum detectable effect over the difference seen", "above", 1.0),
    "H15.queries": Limit("test queries that training has too, by text", "above", 0.0),
    "H15.near": Limit("test queries that training nearly has: same words", "above", 0.0),
    "H15.pairs": Limit("relevant test pairs that training has too, by text", "above", 0.0),
    "H16.queries": Limit("share of the queries' letters that the tokenizer cannot read", "above", ILLEGIBLE),
    "H16.documents": Limit("share of the documents' letters that the tokenizer cannot read", "above", ILLEGIBLE),
}
"""Every threshold, as docs/diagnose.md lists them."""


@dataclass(frozen=True)
class Number:
    """A measured number under its limit's name, with its interval where it has one."""

    limit: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def bad(self) -> bool:
        """Whether it lies beyond the limit (a limit below is reached at equality)."""
        limit = LIMITS[self.limit]
        return self.value > limit.value if limit.bad == "above" else self.value <= limit.value

    @property
    def sure(self) -> bool:
        """Whether the interval, where there is one, lies on the bad side of 0 as a whole."""
        if self.low is None or self.high is None:
            return True
        return self.low > 0 if LIMITS[self.limit].bad == "above" else self.high < 0


@dataclass(frozen=True)
class Finding:
    """What a check found. `fires`: the fault is there. `lacks` says what it would need, if it could not run.

    `reading` is one plain sentence, `remedy` the YAML that mends it (empty unless it fires), `severity` how far the
    worst number lies beyond its limit, for the order only.
    """

    id: str
    name: str
    kind: Kind
    fires: bool = False
    numbers: tuple[Number, ...] = ()
    reading: str = ""
    remedy: str = ""
    lacks: str = ""
    severity: float = 0.0

    def values(self) -> dict[str, Any]:
        """The finding as JSON takes it, each number with its limit."""
        numbers = [
            {"says": LIMITS[n.limit].says, **vars(n), "bad": n.bad, "threshold": LIMITS[n.limit].value}
            for n in self.numbers
        ]
        return {**vars(self), "numbers": numbers}


@dataclass(frozen=True)
class Chosen:
    """What dev chose for the arm: weight of the reranker, depth, and dev's gain over the reranked order."""

    weight: float
    depth: int
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Case:
    """One arm (`reranked`) over the retriever's candidates, and what else is known. Only the first four are needed.

    `depth`: so many candidates were reranked. `collection` holds texts and the qrels of all splits (its documents and
    queries may be empty); `train_run` the retriever's candidates for training queries; `groups` and `log` what the arm
    was trained on and what its training told; `chosen` what dev chose; `general` per-query values of a general
    collection before and after training. `score` and `retriever` score pairs, and so does `exact`, in fp32, where
    `score` does not; `tokens` counts a pair's tokens, of which `max_length` are read; `unread` is the share of
    some texts that its tokenizer cannot read.
    """

    retrieved: Run
    reranked: Run
    qrels: Qrels
    depth: int
    metric: str = "ndcg@10"
    split: str = "test"
    collection: Collection = field(default_factory=lambda: Collection({}, {}, {}))
    train_run: Run | None = None
    groups: Sequence[Group] = ()
    log: Sequence[Mapping[str, Any]] = ()
    chosen: Chosen | None = None
    general: tuple[Values, Values] | None = None
    score: TextScorer | None = None
    exact: TextScorer | None = None
    retriever: PairScorer | None = None
    tokens: Callable[[Sequence[tuple[str, str]]], NDArray[np.int64]] | None = None
    unread: Callable[[Sequence[str]], float] | None = None
    max_length: int = 512
    sample: int = 100
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def reranked_served(self) -> Run:
        """The order that is served: `depth` candidates as reranked, those below as retrieved."""
        return Lists.of(self.retrieved, self.reranked, self.qrels, depth=self.depth).run(1.0, self.depth)

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator of its own for each purpose, so that checks do not depend on their order."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def mean(self, limit: str, values: Values) -> Number:
        """The mean of one value a query, with its bootstrap interval."""
        low, high = stats.bootstrap_mean(
            values, resamples=self.resamples, confidence=self.confidence, rng=self.rng(limit)
        )
        return Number(limit, float(values.mean()), float(low), float(high))


Check = Callable[[Case], Finding]

_WORST = 100.0


def between(number: Number) -> str:
    """A number and its interval in words."""
    if number.low is None or number.high is None:
        return f"{number.value:+.4f}"
    return f"{number.value:+.4f} [{number.low:+.4f}, {number.high:+.4f}]"


def told(finding: Finding, fires: bool, numbers: tuple[Number, ...], reading: str, remedy: str) -> Finding:
    """The finding with what was measured; a remedy and a severity only where it fires."""
    severity = max((_beyond(number) for number in numbers if number.bad), default=0.0) if fires else 0.0
    return replace(
        finding,
        fires=fires,
        numbers=numbers,
        reading=reading,
        remedy=remedy if fires else "",
        severity=severity,
    )


def _beyond(number: Number) -> float:
    """How many times its limit a bad number is; limits of 0 count in steps of 0.01."""
    limit = LIMITS[number.limit]
    if limit.value == 0:
        ratio = abs(number.value) / 0.01
    elif limit.bad == "below" and limit.value > 0:
        ratio = limit.value / number.value if number.value > 0 else _WORST
    else:
        ratio = number.value / limit.value
    return min(ratio, _WORST)
