"""How often is a document relevant, whatever is asked? A score from training labels alone.

In come the training split's labels; out comes a scorer of (query id, document id) pairs, like a retriever's. What is
cited, bought or clicked often is likelier to be so again: a document prior, as in Kraaij, Westerveld and Hiemstra 2002
("The importance of prior probabilities for entry page search"). It does not know texts, nor how much it should count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Qrels, relevant

NAME = "prior"
"""What it is called beside the retrievers that it is fused with."""


def prior_scorer(train: Qrels) -> Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]:
    """A scorer: ln(1 + the training queries that a document is relevant to), float32 (pairs,).

    A training query's own label never counts for it, so that its positives look as those of an unseen query do.
    """
    counts = Counter(document for grades in train.values() for document in relevant(grades))

    def score(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        others = [counts[document] - (train.get(query, {}).get(document, 0) > 0) for query, document in pairs]
        return np.log1p(np.array(others, dtype=np.float32))

    return score
