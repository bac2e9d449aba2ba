"""Context metrics: by hand, against a plain implementation, and against ragas itself where it is installed."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from rankwright.toolbox import ragmetrics as metrics

nan = pytest.approx(float("nan"), nan_ok=True)


def about(value):
    return pytest.approx(value, abs=1e-9)


# ---------------------------------------------------------------------------------------------- by hand


def test_id_precision_is_of_distinct_ids_in_any_order():
    assert metrics.id_precision(["a", "x", "a", "b"], {"a", "b", "c"}) == 2 / 3
    assert metrics.id_precision(["b", "a", "x"], ["c", "b", "a", "a"]) == 2 / 3
    assert metrics.id_precision(["x"], []) == 0
    assert metrics.id_precision([], ["a"]) == nan


def test_id_recall_is_of_distinct_references():
    assert metrics.id_recall(["a", "x", "a", "b"], ["a", "b", "c", "c", "d"]) == 0.5
    assert metrics.id_recall([], ["a"]) == 0
    assert metrics.id_recall(["a"], []) == nan


def test_hit_asks_for_one_reference():
    assert metrics.hit(["x", "a"], {"a", "b"}) == 1
    assert metrics.hit(["x", "y"], {"a", "b"}) == 0
    assert metrics.hit([], {"a"}) == 0
    assert metrics.hit(["a"], []) == nan


def test_average_precision_sees_the_order():
    assert metrics.average_precision([True, False, True]) == about((1 + 2 / 3) / 2)
    assert metrics.average_precision([False, True, True]) == about((1 / 2 + 2 / 3) / 2)
    assert metrics.average_precision([True, True, False]) == about(1)


def test_average_precision_has_the_small_number_of_ragas_in_its_denominator():
    assert metrics.average_precision([True]) == 1 / (1 + 1e-10) != 1
    assert metrics.average_precision([False, False]) == 0
    assert metrics.average_precision([]) == 0


def test_likeness_is_edits_over_the_longer_text():
    assert metrics.likeness("kitten", "sitting") == about(1 - 3 / 7)
    assert metrics.likeness("abcd", "") == 0
    assert metrics.likeness("", "") == 1
    assert metrics.likeness("Plum", "plum") == 0.75
    assert metrics.likeness("漢😀é", "漢😀e") == about(2 / 3)


def test_exactly_half_alike_counts_for_precision_and_not_for_recall():
    assert metrics.likeness("ab", "ax") == metrics.LIKE
    assert metrics.text_precision(["ab"], ["ax"]) == about(1)
    assert metrics.text_recall(["ab"], ["ax"]) == 0
    assert metrics.text_precision(["abcde"], ["abxyz"]) == 0
    assert metrics.text_recall(["abcde"], ["abcxy"]) == 1


def test_text_precision_sees_the_order_and_counts_every_copy():
    plum, pear = "plums are blue", "pears are green"
    assert metrics.text_precision(["0123456789", plum, pear], [pear, plum]) == about((1 / 2 + 2 / 3) / 2)
    assert metrics.text_precision([plum, "0123456789", plum], [plum]) == about((1 + 2 / 3) / 2)


def test_text_recall_counts_references_and_not_passages():
    assert metrics.text_recall(["plums", "plums", "0123"], ["plums", "pears are green"]) == 0.5
    assert metrics.text_recall(["plums"], ["plums", "plums", "pears are green"]) == about(2 / 3)


def test_texts_that_lack_on_one_side():
    assert metrics.text_precision([], ["a"]) == 0
    assert metrics.text_precision([], []) == 0
    assert metrics.text_precision(["a"], []) == nan
    assert metrics.text_recall(["a"], []) == nan
    assert metrics.text_recall([], []) == nan
    assert metrics.text_recall([], ["a"]) == 0


def test_a_cached_likeness_computes_each_pair_once_for_both_metrics_and_any_order():
    asked = []

    @functools.cache
    def alike(passage, reference):
        asked.append((passage, reference))
        return metrics.likeness(passage, reference)

    passages, references = ["abc", "xyz", "abd"], ["qqq", "www"]
    for order in (passages, passages[::-1], passages[1:]):
        for metric in (metrics.text_precision, metrics.text_recall):
            assert metric(order, references, alike) == metric(order, references) == 0
    assert sorted(asked) == sorted((passage, reference) for passage in passages for reference in references)


def test_repeated_counts_copies_by_their_canonical_text():
    assert metrics.repeated(["a  b", "c", " a b\n", "a b"]) == 0.5
    assert metrics.repeated(["e\u0301", "\u00e9", "x", "X"]) == 0.25
    assert metrics.repeated(["a", "b"]) == 0
    assert metrics.repeated([]) == nan


def edits(one, other):
    """Levenshtein's distance, row by row."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        above, row = row, [number]
        for place, wanted in enumerate(other, start=1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != wanted)))
    return row[-1]


def close(one, other):
    """-1, 0, 1: less than half alike, exactly half, more; in whole numbers."""
    longest = max(len(one), len(other))
    return 1 if not longest else (longest > 2 * edits(one, other)) - (longest < 2 * edits(one, other))


def ranked(verdicts):
    return sum(sum(verdicts[: n + 1]) / (n + 1) for n, mark in enumerate(verdicts) if mark) / (sum(verdicts) or 1)


def draw(rng, letters, most):
    return "".join(rng.choice(list(letters), size=rng.integers(most)))


def test_texts_agree_with_a_plain_implementation_on_random_cases():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(300):
        passages = [draw(rng, "abc", 9) for _ in range(rng.integers(1, 6))]
        references = [draw(rng, "abcd", 9) for _ in range(rng.integers(1, 4))]
        table = np.array([[close(passage, known) for known in references] for passage in passages])
        for row, passage in zip(table, passages, strict=True):
            for sign, known in zip(row, references, strict=True):
                assert np.sign(metrics.likeness(passage, known) - 0.5) == sign
        assert metrics.text_precision(passages, references) == about(ranked([int(row.max() >= 0) for row in table]))
        assert metrics.text_recall(passages, references) == about((table.max(axis=0) > 0).mean())
        seen.update(table.max(axis=0).tolist())
    assert seen == {-1, 0, 1}


def test_ids_agree_with_a_plain_implementation_on_random_cases():
    rng = np.random.default_rng(2)
    for _ in range(300):
        sent, known = (list(draw(rng, "abcdef", 7)) for _ in range(2))
        both = [one for one in "abcdef" if one in sent and one in known]
        for metric, side in ((metrics.id_precision, sent), (metrics.id_recall, known)):
            number = sum(one in side for one in "abcdef")
            assert metric(sent, known) == (about(len(both) / number) if number else nan)
        assert metrics.hit(sent, known) == (float(len(both) > 0) if known else nan)
        marks = [one in known for one in sent]
        assert metrics.average_precision(marks) == about(ranked(marks))


# ---------------------------------------------------------------------------------------------- against ragas


@pytest.fixture
def benchmark():
    os.environ["RAGAS_DO_NOT_TRACK"] = "true"
    pytest.importorskip("ragas")
    path = Path(__file__).parents[1] / "benchmarks" / "rag.py"
    spec = importlib.util.spec_from_file_location("benchmark_rag", path)
    module = sys.modules["benchmark_rag"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_rag"]


@pytest.mark.filterwarnings("ignore")
def test_each_metric_equals_ragas_own_on_200_random_cases(benchmark):
    rows = benchmark.compare(200, seed=3)
    names = ["id_precision", "id_recall", "average_precision", "likeness", "text_precision", "text_recall"]
    assert [row.metric for row in rows] == names
    for row in rows:
        assert row.cases == 200
        assert row.different >= 5, row
        assert row.difference <= 1e-12, row


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("metric", "wrong"),
    [
        ("id_precision", lambda ids, known: sum(one in known for one in ids) / len(ids) if ids else math.nan),
        ("id_recall", lambda ids, known: len(set(known) & set(ids)) / len(set(known)) if known else 0.0),
        ("average_precision", lambda marks: sum(marks) / max(len(marks), 1)),
        ("text_precision", lambda texts, known: ranked([any(close(a, b) > 0 for b in known) for a in texts])),
        ("text_recall", lambda texts, known: np.mean([any(close(a, b) >= 0 for a in texts) for b in known or "a"])),
    ],
)
def test_the_comparison_with_ragas_sees_a_wrong_metric(benchmark, monkeypatch, metric, wrong):
    monkeypatch.setattr(metrics, metric, wrong)
    rows = {row.metric: row.difference for row in benchmark.compare(30, seed=4)}
    assert rows[metric] > 0.01
    assert rows["likeness"] <= 1e-12
