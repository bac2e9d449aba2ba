"""The general room: the same candidates, put in order by every arm."""

import numpy as np
import pytest

from rankwright.core import Collection
from rankwright.errors import DataError
from rankwright.rooms.general import general
from rankwright.sections import GeneralSection

TEXTS = {"a": "red apple pie", "b": "red plum tart", "c": "green pear", "d": "blue boat"}


def collection(**qrels):
    return Collection(TEXTS, {"q": "red apple", "r": "red plum"}, qrels)


def test_an_arm_that_reads_the_answer_gets_one_and_its_opposite_less():
    def by_length(sign):
        return lambda pairs: np.array([sign * len(document) for _, document in pairs], dtype=np.float32)

    found = general(
        collection(test={"q": {"a": 1}, "r": {"b": 1}}),
        {"wise": lambda pairs: np.array([q.split()[1] in d for q, d in pairs], dtype=np.float32), "long": by_length(1)},
        GeneralSection(queries=2, depth=3),
    )
    assert found.values["wise"].tolist() == [1.0, 1.0]
    assert found.values["retrieval"].tolist() == [1.0, 1.0]
    assert found.values["long"].mean() < 1
    assert found.lines()[0].startswith("general, nDCG@10 over 2 queries: retrieval 1.0000")


def test_at_most_so_many_queries_are_scored():
    scored = []

    def scorer(pairs):
        scored.extend(pairs)
        return np.zeros(len(pairs), dtype=np.float32)

    general(collection(test={"q": {"a": 1}, "r": {"b": 1}}), {"arm": scorer}, GeneralSection(queries=1, depth=2))
    assert len({query for query, _ in scored}) == 1
    assert len(scored) == 2


def test_a_collection_without_test_queries_is_refused():
    with pytest.raises(DataError, match="no test queries"):
        general(collection(train={"q": {"a": 1}}), {}, GeneralSection())
