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
from rankwright.sections import GeneralSection
from rankwright.toolbox import metrics
from rankwright.toolbox.bm25 import Bm25

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


def general(collection: Collection, scorers: Mapping[str, TextScorer], section: GeneralSection) -> General:
    """Rerank a sample of the collection's test queries with every arm.

    Raises:
        DataError: the collection has no test queries with a relevant document.
    """
    judged = {
        query: collection.qrels["test"][query] for query in metrics.judged_queries(collection.qrels.get("test", {}))
    }
    if not judged:
        raise DataError("the general collection has no test queries", where=section.source, hint="general: {source: …}")
    chosen = sorted(judged, key=lambda query: text_id("general" + collection.queries[query]))[: section.queries]
    texts = {query: collection.queries[query] for query in chosen}
    found = Bm25(collection.documents).search(texts, section.depth, what="general, bm25")
    qrels = {query: judged[query] for query in chosen}
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
