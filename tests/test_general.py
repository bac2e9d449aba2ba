"""The general room: the same candidates, put in order by every arm."""

import numpy as np
import pytest

from rankwright.core import Collection
from rankwright.errors import DataError
from rankwright.rooms.general import General, general, held_out
from rankwright.sections import DevSection, EvaluateSection, GeneralSection
from rankwright.toolbox.devset import DevSet

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


# ---------------------------------------------------------------------------------------- held-out queries

MANY = {f"d{number}": f"thing number{number}" for number in range(8)}
ASKED = {f"q{number}": f"number{number}" for number in range(8)}


def asking(*splits):
    """A collection whose splits judge these queries, each its own document."""
    return Collection(MANY, ASKED, {split: {f"q{n}": {f"d{n}": 1} for n in own} for split, own in splits})


def measured(collection, section):
    return set(general(collection, {}, section).queries)


def test_without_a_dev_split_the_next_test_queries_are_held_out():
    section = GeneralSection(queries=3, depth=4)
    whole = asking(("test", range(8)))
    held, run = held_out(whole, section, 10)
    assert set(held.qrels) == {"dev"}
    assert set(held.qrels["dev"]) | measured(whole, section) == set(ASKED)
    assert not set(held.qrels["dev"]) & measured(whole, section)
    assert set(run.rankings) == set(held.queries) == set(held.qrels["dev"])
    assert all(run.documents(query) == [query.replace("q", "d")] for query in held.queries)


def test_the_held_out_are_those_that_a_larger_sample_would_measure_next():
    whole = asking(("test", range(8)))
    held, _ = held_out(whole, GeneralSection(queries=3), 2)
    wider = measured(whole, GeneralSection(queries=5))
    assert set(held.qrels["dev"]) == wider - measured(whole, GeneralSection(queries=3))


def test_a_dev_split_is_preferred_and_cut_to_the_count():
    held, run = held_out(asking(("dev", range(5)), ("test", range(5, 8))), GeneralSection(queries=1), 3)
    assert len(held.queries) == len(run.rankings) == 3
    assert set(held.queries) <= {f"q{number}" for number in range(5)}


def test_a_dev_query_with_the_text_of_a_measured_one_is_not_held_out():
    collection = Collection(MANY, {**ASKED, "copy": "number1"}, {"dev": {"copy": {"d1": 1}}, "test": {"q1": {"d1": 1}}})
    with pytest.raises(DataError, match="no queries to choose"):
        held_out(collection, GeneralSection(), 10)


def test_dev_queries_without_a_relevant_document_do_not_count():
    collection = Collection(MANY, ASKED, {"dev": {"q0": {"d0": 0}}, "test": {"q1": {"d1": 1}, "q2": {"d2": 1}}})
    held, _ = held_out(collection, GeneralSection(queries=1), 10)
    assert len(held.queries) == 1
    assert "q0" not in held.queries


def test_nothing_left_to_choose_on_is_refused_with_what_to_try():
    with pytest.raises(DataError, match=r"every test query is measured[\s\S]*try: general: \{queries"):
        held_out(asking(("test", range(3))), GeneralSection(queries=3), 10)


def test_a_dev_set_watches_the_held_out_queries():
    held, run = held_out(asking(("test", range(8))), GeneralSection(queries=3), 4)
    devset = DevSet.of(held, run, DevSection(queries=4, depth=2))
    assert {query for query, _ in devset.ids} == set(held.queries)
    assert devset.measure(lambda pairs: np.ones(len(pairs), dtype=np.float32)) == 1.0


def judged(**values):
    own = {arm: np.array(numbers, dtype=np.float64) for arm, numbers in values.items()}
    return General("ndcg@10", tuple(f"q{place}" for place in range(len(own["retrieval"]))), own)


def tabled(found, against="base", seed=0):
    section = EvaluateSection(bootstrap=500, confidence=0.9)
    return found.table(against, section, source="docstrings:", beside="map", seed=seed)


def test_the_table_holds_every_arm_against_the_one_before_training():
    found = judged(retrieval=[0.5, 0.7, 0.9], base=[0.2, 0.4, 0.6], tuned=[0.1, 0.3, 0.5])
    table = tabled(found)
    assert (table["metric"], table["source"], table["beside"]) == ("ndcg@10", "docstrings:", "map")
    assert (table["queries"], table["against"], table["bootstrap"], table["confidence"]) == (3, "base", 500, 0.9)
    retrieval, base, tuned = table["cells"]
    assert [cell["arm"] for cell in table["cells"]] == ["retrieval", "base", "tuned"]
    assert base["change"] is None
    assert base["mean"] == pytest.approx(0.4)
    assert base["low"] < base["mean"] < base["high"]
    assert tuned["change"] == pytest.approx({"value": -0.1, "low": -0.1, "high": -0.1})  # paired: each lost as much
    assert retrieval["change"]["value"] == pytest.approx(0.3)
    assert table == tabled(found)
    assert table["cells"][0]["low"] != tabled(judged(retrieval=[0.1, 0.7, 0.9]), None)["cells"][0]["low"]


@pytest.mark.parametrize("against", [None, "merged"])
def test_where_nothing_came_before_training_arms_are_held_against_retrieval(against):
    table = tabled(judged(retrieval=[0.5, 0.7], tuned=[0.6, 0.7]), against)
    assert table["against"] == "retrieval"
    assert table["cells"][0]["change"] is None
    assert table["cells"][1]["change"]["value"] == pytest.approx(0.05)
