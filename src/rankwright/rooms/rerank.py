"""A run and a scorer -> the run in the scorer's order.

The first `depth` candidates of each query are reordered; those below keep the retriever's order, underneath. It does
not know which model scores, whether scores come from a cache, or what is relevant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Collection, Run
from rankwright.errors import ModelError

TextScorer = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]
"""(query text, document text) pairs -> scores, float32 (len(pairs),)."""


def pairs_of(collection: Collection, run: Run, *, depth: int) -> list[tuple[str, str]]:
    """The texts of the first `depth` candidates of each query, as they are scored."""
    return [(collection.queries[query], collection.documents[document]) for query, document in _ids(run, depth)]


def _ids(run: Run, depth: int) -> list[tuple[str, str]]:
    return [(query, document) for query in run.rankings for document in run.documents(query)[:depth]]


def rerank(collection: Collection, run: Run, scorer: TextScorer, *, depth: int) -> Run:
    """Reorder the first `depth` candidates of each query by `scorer`; ties are broken by document id.

    The candidates below get scores that go on downwards from the lowest reranked one, a whole step each, so that
    the run is in order by its scores. Scores that are not finite would make an order of chance.

    Raises:
        ModelError: the scorer returned NaN or infinity.
    """
    ids = _ids(run, depth)
    scores = scorer(pairs_of(collection, run, depth=depth))
    if not np.isfinite(scores).all():
        raise ModelError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite",
            hint="check the model's weights, or precision: exact",
        )
    reranked: dict[str, dict[str, float]] = {query: {} for query in run.rankings}
    for (query, document), score in zip(ids, scores.tolist(), strict=True):
        reranked[query][document] = score
    for query, documents in reranked.items():
        lowest = min(documents.values(), default=0.0)
        below = run.documents(query)[depth:]
        documents.update({document: lowest - step for step, document in enumerate(below, start=1)})
    return Run.from_scores(reranked)
