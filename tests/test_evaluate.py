"""The evaluation room: means, families of tests, determinism, and queries that cannot count."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from rankwright.core import Run
from rankwright.errors import ConfigError, DataError
from rankwright.rooms.evaluate import Evaluation, evaluate
from rankwright.sections import EvaluateSection
from rankwright.toolbox import metrics, stats

SECTION = EvaluateSection(metrics=["mrr@10", "recall@1", "ndcg@10"], bootstrap=300, permutations=600)


def collection(queries=60, seed=0):
    """Runs of four arms, each better than the one before it, over ten documents a query."""
    rng = np.random.default_rng(seed)
    ids = [f"d{number}" for number in range(10)]
    qrels = {f"q{number}": {str(rng.choice(ids)): 1} for number in range(queries)}

    def run(gain):
        scores = {
            query: {d: gain * (d in grades) + float(x) for d, x in zip(ids, rng.normal(size=10), strict=True)}
            for query, grades in qrels.items()
        }
        return Run.from_scores(scores)

    return {"retrieval": run(0.5), "base": run(0.7), "finetuned": run(3.0), "merged": run(2.5)}, qrels


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(*collection(), SECTION, seed=0)


def test_means_and_per_query_values_are_the_metrics_own(found):
    runs, qrels = collection()
    for arm, run in runs.items():
        expected = metrics.per_query(run, qrels, SECTION.metrics)
        for name in SECTION.metrics:
            np.testing.assert_array_equal(found.per_query[arm][name], expected[name])
            estimate = found.means[arm][name]
            assert estimate.mean == pytest.approx(expected[name].mean())
            assert estimate.low <= estimate.mean <= estimate.high
    assert found.queries == tuple(qrels)


def test_every_arm_meets_retrieval_and_those_after_base_meet_base(found):
    pairs = {(comparison.arm, comparison.against) for comparison in found.comparisons}
    assert pairs == {
        ("base", "retrieval"),
        ("finetuned", "retrieval"),
        ("merged", "retrieval"),
        ("finetuned", "base"),
        ("merged", "base"),
    }
    assert len(found.comparisons) == len(pairs) * len(SECTION.metrics)


def test_a_difference_is_the_difference_of_the_means(found):
    for comparison in found.comparisons:
        means = [found.means[arm][comparison.metric].mean for arm in (comparison.arm, comparison.against)]
        assert comparison.difference == pytest.approx(means[0] - means[1])
        assert comparison.low <= comparison.difference <= comparison.high


def test_holm_counts_the_arms_of_one_metric_and_one_family(found):
    for metric in SECTION.metrics:
        for against in ("retrieval", "base"):
            family = [c for c in found.comparisons if (c.metric, c.against) == (metric, against)]
            assert [c.p_holm for c in family] == stats.holm([c.p for c in family])
    assert any(c.p_holm > c.p for c in found.comparisons)


def test_a_real_gain_has_stars_and_none_has_none(found):
    assert found.comparison("ndcg@10", "finetuned").stars == "**"  # 600 permutations: p is 1/601 at least, times 3
    assert found.comparison("ndcg@10", "finetuned", "base").difference > 0
    runs, qrels = collection()
    same = evaluate({"retrieval": runs["base"], "copy": runs["base"]}, qrels, SECTION, seed=0)
    comparison = same.comparison("ndcg@10", "copy")
    assert (comparison.difference, comparison.low, comparison.high, comparison.p) == (0, 0, 0, 1)
    assert comparison.stars == ""
    with pytest.raises(KeyError):
        same.comparison("ndcg@10", "retrieval")


def test_without_base_there_is_one_family(found):
    runs, qrels = collection()
    less = evaluate({arm: runs[arm] for arm in ("retrieval", "finetuned")}, qrels, SECTION, seed=0)
    assert {c.against for c in less.comparisons} == {"retrieval"}


def test_the_same_seed_gives_the_same_bytes_and_another_arm_or_metric_moves_nothing(found):
    again = evaluate(*collection(), SECTION, seed=0)
    assert json.dumps(again.table()) == json.dumps(found.table())
    assert json.dumps(again.tests()) == json.dumps(found.tests())
    runs, qrels = collection()
    fewer = {arm: runs[arm] for arm in ("retrieval", "merged", "base")}
    part = evaluate(fewer, qrels, SECTION.model_copy(update={"metrics": ["ndcg@10"]}), seed=0)
    one, other = part.comparison("ndcg@10", "merged"), found.comparison("ndcg@10", "merged")
    assert (one.low, one.high, one.p) == (other.low, other.high, other.p)
    assert part.means["base"]["ndcg@10"] == found.means["base"]["ndcg@10"]
    assert json.dumps(evaluate(*collection(), SECTION, seed=1).table()) != json.dumps(found.table())


def test_the_table_is_plain_json_with_both_families_in_its_cells(found):
    table = json.loads(json.dumps(found.table({"data": "abc"})))
    assert table == found.table({"data": "abc"})
    assert table["arms"] == ["retrieval", "base", "finetuned", "merged"]
    assert table["provenance"] == {"data": "abc"}
    cells = table["rows"][2]["cells"]
    assert [sorted(cell["versus"]) for cell in cells] == [[], ["retrieval"], *[["base", "retrieval"]] * 2]
    assert cells[2]["versus"]["base"]["p"] == found.comparison("ndcg@10", "finetuned", "base").p


def test_tests_are_plain_rows(found):
    row = found.tests()[0]
    assert row["metric"] == "mrr@10"
    assert sorted(row) == ["against", "arm", "difference", "high", "low", "metric", "p", "p_holm", "stars"]


def test_per_query_values_come_back_from_parquet(found):
    import pyarrow.parquet as parquet

    file = io.BytesIO()
    parquet.write_table(found.per_query_table(), file)
    frame = parquet.read_table(file).to_pandas()
    assert list(frame.columns) == ["query_id", "arm", *SECTION.metrics]
    assert len(frame) == 4 * 60
    merged = frame[frame.arm == "merged"]
    assert merged.query_id.tolist() == list(found.queries)
    np.testing.assert_array_equal(merged["ndcg@10"], found.per_query["merged"]["ndcg@10"])


def test_what_cannot_count_is_told():
    runs, qrels = collection(queries=10)
    short = Run({query: hits for query, hits in runs["base"].rankings.items() if query != "q3"} | {"foreign": ()})
    qrels = {**qrels, "barren": {"d1": 0}}
    notes = evaluate({"retrieval": runs["retrieval"], "base": short}, qrels, SECTION, seed=0).notes
    assert notes == (
        "1 of 11 queries have no relevant document and are left out.",
        "base returned nothing for 1 of 10 queries; they score 0.",
        "base holds 1 queries that are not judged; they do not count.",
    )


def test_a_metric_named_twice_is_one_row():
    section = SECTION.model_copy(update={"metrics": ["map", "map"]})
    assert evaluate(*collection(queries=5), section, seed=0).metrics == ("map",)


def test_one_query_is_enough_for_a_table_and_never_for_a_star():
    found = evaluate(*collection(queries=1), SECTION, seed=0)
    assert not any(comparison.stars for comparison in found.comparisons)


def test_nothing_to_measure_is_refused():
    runs, qrels = collection(queries=5)
    with pytest.raises(ConfigError, match="no run"):
        evaluate({}, qrels, SECTION, seed=0)
    with pytest.raises(DataError, match="no query of the test split has a relevant document"):
        evaluate(runs, {"q0": {"d1": 0}}, SECTION, seed=0)
    with pytest.raises(DataError, match="merged: the run has none of the 5 judged queries"):
        evaluate({**runs, "merged": Run({"other": (("d1", 1.0),)})}, qrels, SECTION, seed=0)
    with pytest.raises(ConfigError, match="did you mean ndcg@10"):
        evaluate(runs, qrels, SECTION.model_copy(update={"metrics": ["ndgc@10"]}), seed=0)
