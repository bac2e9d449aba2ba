"""What did fine-tuning forget? Every arm reranks BM25's candidates of a collection of another kind.

In: that collection, each arm's scorer, the `general` section, a seed. Out: the metric of each query, arm by arm. It
does not know which arm came before training, nor how large a loss counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Collection, Run, text_id
from rankwright.errors import DataError
from rankwright.sections import EvaluateSection, GeneralSection
from rankwright.toolbox import metrics
from rankwright.toolbox.bm25 import Bm25
from rankwright.toolbox.stats import paired_bootstrap
from rankwright.toolbox.table import Change, GeneralCell, GeneralTable

TextScorer = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]
"""(query text, document text) pairs -> logits, float32 (len(pairs),)."""


@dataclass(frozen=True)
class General:
    """Per-query values of `metric`, retrieval's (BM25) and each arm's: float64 (queries,)."""

    metric: str
    queries: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]

    def lines(self) -> list[str]:
        """The means, for the terminal."""
        told = ", ".join(f"{arm} {values.mean():.4f}" for arm, values in self.values.items())
        return [f"general, {metrics.label(self.metric)} over {len(self.queries):,} queries: {told}"]

    def table(
        self, against: str | None, section: EvaluateSection, *, source: str, beside: str, seed: int
    ) -> GeneralTable:
        """Every arm's mean and its change from `against`, as plain values: the part `general` of a Table.

        `against` is the arm before fine-tuning (None, or no arm of these: retrieval), `source` what the collection is
        called, `beside` the in-domain metric to show with it. `section` gives confidence and resamples of the
        intervals: percentile bootstraps over queries (`stats.paired_bootstrap`) that share their resamples.
        """
        before = against if against in self.values else "retrieval"
        arms = list(self.values)
        own = np.column_stack([self.values[arm] for arm in arms])
        columns = np.hstack([own, own - self.values[before][:, None]])
        low, high = paired_bootstrap(
            columns, resamples=section.bootstrap, confidence=section.confidence, rng=np.random.default_rng(seed)
        )
        bounds = list(zip(columns.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True))
        changes = [Change(value=value, low=bottom, high=top) for value, bottom, top in bounds[len(arms) :]]
        cells = [
            GeneralCell(arm=arm, mean=mean, low=bottom, high=top, change=None if arm == before else change)
            for arm, (mean, bottom, top), change in zip(arms, bounds, changes, strict=False)
        ]
        return GeneralTable(
            metric=self.metric,
            source=source,
            queries=len(self.queries),
            against=before,
            confidence=section.confidence,
            bootstrap=section.bootstrap,
            beside=beside,
            cells=cells,
        )


def general(collection: Collection, scorers: Mapping[str, TextScorer], section: GeneralSection) -> General:
    """Rerank a sample of the collection's test queries with every arm.

    Raises:
        DataError: the collection has no test queries with a relevant document.
    """
    chosen = _in_order(collection, "test")[: section.queries]
    if not chosen:
        raise DataError("the general collection has no test queries", where=section.source, hint="general: {source: …}")
    found = _candidates(collection, chosen, section)
    qrels = {query: collection.qrels["test"][query] for query in chosen}
    pairs = [(query, document) for query in chosen for document in found[query]]
    runs = {"retrieval": Run.from_scores(found)}
    for arm, scorer in scorers.items():
        scores = scorer([(collection.queries[query], collection.documents[document]) for query, document in pairs])
        own: dict[str, dict[str, float]] = {query: {} for query in chosen}
        for (query, document), score in zip(pairs, scores.tolist(), strict=True):
            own[query][document] = score
        runs[arm] = Run.from_scores(own)
    values = {arm: metrics.per_query(run, qrels, [section.metric])[section.metric] for arm, run in runs.items()}
    return General(section.metric, tuple(metrics.judged_queries(qrels)), values)


def held_out(collection: Collection, section: GeneralSection, count: int) -> tuple[Collection, Run]:
    """Up to `count` queries that `general` does not measure, to choose a merge on: a dev split, and its candidates.

    They are the collection's dev queries; without any, the test queries that come next after the measured sample. A
    query whose text is measured is left out. The Collection has the same documents and these queries as its only split,
    ``dev``; the Run holds BM25's first `section.depth` candidates of each.

    Raises:
        DataError: no query is left.
    """
    measured = {text_id(collection.queries[query]) for query in _in_order(collection, "test")[: section.queries]}
    for split in ("dev", "test"):
        left = [q for q in _in_order(collection, split) if text_id(collection.queries[q]) not in measured][:count]
        if left:
            texts = {query: collection.queries[query] for query in left}
            qrels = {"dev": {query: collection.qrels[split][query] for query in left}}
            found = _candidates(collection, left, section)
            return Collection(collection.documents, texts, qrels), Run.from_scores(found)
    raise DataError(
        "the general collection has no queries to choose a merge on: no dev split, and every test query is measured",
        where=section.source,
        hint="general: {queries: …}, fewer than its test queries; or a source with a dev split",
    )


def _in_order(collection: Collection, split: str) -> list[str]:
    """The split's queries that have a relevant document, in the order of a hash of their texts."""
    judged = metrics.judged_queries(collection.qrels.get(split, {}))
    return sorted(judged, key=lambda query: text_id("general" + collection.queries[query]))


def _candidates(collection: Collection, queries: Sequence[str], section: GeneralSection) -> dict[str, dict[str, float]]:
    texts = {query: collection.queries[query] for query in queries}
    return Bm25(collection.documents).search(texts, section.depth, what="general, bm25")
