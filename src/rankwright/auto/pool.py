"""The closed pool: does a base know this relevance at all, whatever the retriever serves?

In: a collection and some dev queries. Out: pairs of each query's relevant documents, its judged negatives and some
random ones, and the average precision of a base's order of them. Where two bases serve equally well after the blend,
the pool tells which of them knew the task: the blend hides that by leaving the retriever in charge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Collection, Qrels, Run, relevant
from rankwright.toolbox.devset import Score
from rankwright.toolbox.metrics import judged_queries, per_query

QUERIES, RANDOM, POSITIVES = 50, 8, 4


@dataclass(frozen=True)
class Pool:
    """`ids` and `pairs` run parallel; `qrels` hold what of the pool is relevant."""

    ids: list[tuple[str, str]]
    pairs: list[tuple[str, str]]
    qrels: Qrels

    @classmethod
    def of(cls, collection: Collection, queries: list[str], seed: int, *, per_split: bool = False) -> Pool:
        """The pools of the first QUERIES of the dev queries given: at most POSITIVES relevant documents each.

        Random documents are of those that dev searches; `per_split`: that it judges itself.
        """
        corpus, ids, qrels = list(collection.split_documents("dev", per_split=per_split)), [], {}
        for place, query in enumerate(queries[:QUERIES]):
            grades = collection.qrels["dev"][query]
            drawn = np.random.default_rng([seed, place]).choice(
                len(corpus), size=min(RANDOM, len(corpus)), replace=False
            )
            wanted = relevant(grades)[:POSITIVES]
            judged = [document for document, grade in grades.items() if grade <= 0][:RANDOM]
            others = [corpus[number] for number in drawn if corpus[number] not in grades]
            ids += [(query, document) for document in dict.fromkeys((*wanted, *judged, *others))]
            qrels[query] = dict.fromkeys(wanted, 1)
        pairs = [(collection.queries[query], collection.documents[document]) for query, document in ids]
        return cls(ids, pairs, qrels)

    def values(self, score: Score) -> NDArray[np.float64]:
        """Average precision of each query's pool in the order of `score`; all 0 when a score is not finite."""
        found = score(self.pairs)
        if not np.isfinite(found).all():
            return np.zeros(len(judged_queries(self.qrels)))
        scores: dict[str, dict[str, float]] = {}
        for (query, document), value in zip(self.ids, found.tolist(), strict=True):
            scores.setdefault(query, {})[document] = value
        return per_query(Run.from_scores(scores), self.qrels, ["map"])["map"]
