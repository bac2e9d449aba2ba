"""The dev queries that a training watches: score their candidates, and say how good the order is.

In come a collection, the retriever's Run and a function that scores pairs; out come the metric query by query and,
for the served order, the blend's weight. It does not know what the scorer is, nor what is done with the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Collection, Qrels, Run, text_id
from rankwright.errors import DataError
from rankwright.sections import DevSection
from rankwright.toolbox.lists import Lists
from rankwright.toolbox.metrics import judged_queries, per_query

Values = NDArray[np.float64]
Score = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]

WEIGHTS = tuple(step / 10 for step in range(11))
"""The blend's weights that are tried: coarse, since each evaluation chooses anew on few queries."""


@dataclass(frozen=True)
class DevSet:
    """The retriever's candidates for some dev queries, to be put in order by the model in training.

    `pairs` and `ids` run parallel, in the retriever's order. `lists` are the same candidates with the retriever's
    scores; without them there is no served order.
    """

    pairs: list[tuple[str, str]]
    ids: list[tuple[str, str]]
    qrels: Qrels
    metric: str
    watch: str = "reranked"
    lists: Lists | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, collection: Collection, run: Run, section: DevSection) -> DevSet:
        """The first `depth` candidates of at most `queries` dev queries, drawn by a hash of their text."""
        qrels = collection.qrels.get("dev")
        if qrels is None:
            raise DataError("there is no dev split to watch", hint="data.dev_share, or dev: null with keep: last")
        chosen = sorted(qrels, key=lambda query: text_id("dev" + collection.queries[query]))[: section.queries]
        top = Run({query: run.rankings.get(query, ())[: section.depth] for query in chosen})
        ids = [(query, document) for query in chosen for document in top.documents(query)]
        pairs = [(collection.queries[query], collection.documents[document]) for query, document in ids]
        if not pairs:
            hint = "candidates for dev too, as in runs: {dev: dev.run}; of a fixed recipe, dev: null with keep: last"
            raise DataError("no dev query has candidates to watch while training", hint=hint)
        drawn = {query: qrels[query] for query in chosen}
        return cls(pairs, ids, drawn, section.metric, section.watch, Lists.of(top, None, drawn))

    def measure(self, score: Score) -> float:
        """The mean metric of the order that is watched."""
        return float(np.mean(self.values(score)))

    def values(self, score: Score) -> Values:
        """The same query by query; all 0 when a score is not finite: that is no order."""
        return self.choose(score)[1] if self.watch == "served" else self.reranked(score)

    def reranked(self, score: Score) -> Values:
        """The metric of the model's own order, whatever is watched."""
        scores = self._finite(score)
        if scores is None:
            return self._nothing()
        by_query: dict[str, dict[str, float]] = {}
        for (query, document), value in zip(self.ids, scores.tolist(), strict=True):
            by_query.setdefault(query, {})[document] = value
        return per_query(Run.from_scores(by_query), self.qrels, [self.metric])[self.metric]

    def choose(self, score: Score) -> tuple[float, Values]:
        """The weight of `WEIGHTS` whose blend is best on average, of equals the smallest, and its metric a query.

        Weight 0 is the retriever's own order. Where a score is not finite: 0 and all 0, as `values` has it.

        Raises:
            ValueError: made without `lists`, the retriever's scores.
        """
        if self.lists is None:
            raise ValueError("a DevSet without the retriever's scores has no served order")
        scores = self._finite(score)
        if scores is None:
            return 0.0, self._nothing()
        lists = replace(self.lists, reranked=self._laid(scores, self.lists))
        found = [lists.measure(lists.order(weight, lists.width), self.metric) for weight in WEIGHTS]
        # Rounded: the last bits of a mean must not count as a gain over a smaller weight.
        best = int(np.argmax([round(float(np.mean(values)), 12) for values in found]))
        return WEIGHTS[best], found[best]

    def _finite(self, score: Score) -> NDArray[np.float32] | None:
        scores = score(self.pairs)
        return scores if np.isfinite(scores).all() else None

    def _nothing(self) -> Values:
        return np.zeros(len(judged_queries(self.qrels)))

    def _laid(self, scores: NDArray[np.float32], lists: Lists) -> Values:
        """Flat scores as `lists` has its candidates: (queries, width), NaN for the padding."""
        known = dict(zip(self.ids, scores.tolist(), strict=True))
        laid = np.full(lists.retrieved.shape, np.nan)
        for place, (query, row) in enumerate(zip(lists.queries, lists.documents, strict=True)):
            laid[place, : len(row)] = [known[query, document] for document in row]
        return laid
