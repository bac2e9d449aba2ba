"""How a walk computes its scores: by the word, judged on dev, told everywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

import rankwright as rw
from rankwright.pipeline import judging
from rankwright.toolbox.engine import guard
from rankwright.toolbox.engine.guard import Decision
from rankwright.toolbox.scorer import CachedScorer


@dataclass(frozen=True)
class Way:
    """fp32's scores, moved and stirred."""

    name: str
    off: float = 0.0
    noise: float = 0.0

    def build(self, reranker):
        def score(pairs, encoder=None):
            shifts = [np.random.default_rng([*document.encode()]).normal() for _, document in pairs]
            scores = reranker.score(pairs, precision="exact")
            return (scores + self.off + self.noise * np.array(shifts)).astype(np.float32)

        return score


@pytest.fixture
def ladder(monkeypatch):
    """A machine with two faster ways, the first of them bad, and samples small enough for the tiny experiment."""
    ways = [Way("int8", noise=9.0), Way("bf16", off=100.0), Way("torch fp32")]
    monkeypatch.setattr("rankwright.toolbox.scorer.backends", lambda word, device, cache, keep: ways)
    for name, value in {"QUERIES": 5, "RATIO": 1, "RATIO_INT8": 1, "FEWEST": 5}.items():
        monkeypatch.setattr(guard, name, value)
    return ways


@pytest.fixture
def begun(finished_copy, tiny_experiment, ladder):
    """Runs another experiment of the same trainings by a word; gives its result and its folder."""

    def run(word):
        shutil.rmtree(finished_copy / ".cache/scores")  # else all is there in fp32
        tiny_experiment["rerank"]["precision"] = word
        return rw.run(tiny_experiment, runs=finished_copy), finished_copy / "tiny"

    return run


def reranked(folder, split, arm="finetuned"):
    return [float(line.split()[4]) for line in (folder / f"rerank/{arm}.{split}.run").read_text().splitlines()]


def test_a_walk_scores_by_the_first_way_that_dev_admits_and_tells_what_it_found(begun):
    result, folder = begun("balanced")
    decided = json.loads((folder / "rerank/precision.json").read_text())
    assert set(decided) == {"base", "finetuned", "merged"}
    for arm, own in decided.items():
        assert (own["word"], own["backend"], own["exact"]) == ("balanced", "bf16", False)
        assert [one["backend"] for one in own["tried"]] == ["int8", "bf16"]
        assert own["tried"][1]["agreement"]["labelled"] == 5
        assert own["tried"][1]["agreement"]["change"] == 0.0
        assert max(reranked(folder, "test", arm)) > 50
        assert max(reranked(folder, "dev", arm)) > 50
    told = result.table["provenance"]["precision"]
    assert (
        told == judging._precisions("balanced", {arm: Decision.read(own) for arm, own in decided.items()})["precision"]
    )
    assert "bf16 (top-10 overlap 1.000" in told
    assert "against fp32 on 5 queries" in told
    assert "bf16 (top-10 overlap 1.000" in (folder / "report/index.html").read_text()
    lines = {outcome.stage: outcome.lines for outcome in result.outcomes}
    assert "bf16 (top-10 overlap 1.000" in lines["rerank"][0]
    findings = json.loads((folder / "diagnose/findings.json").read_text())["findings"]
    (ties,) = [finding for finding in findings if finding["id"] == "H11"]
    assert "low precision orders" in ties["reading"]


def test_arms_that_are_scored_in_different_ways_are_told_apart():
    lower, exact = Decision("fast", "int8", False, "good"), Decision("fast", "torch fp32", True, "few")
    told = judging._precisions("fast", {"base": lower, "finetuned": exact, "merged": lower})
    assert told == {"precision": "fast; base, merged: int8 (good); finetuned: torch fp32 (few)"}


def test_exact_is_fp32_and_its_scores_are_those_of_before(begun, finished):
    _, folder = begun("exact")
    assert reranked(folder, "test") == reranked(finished / "tiny", "test")
    decided = json.loads((folder / "rerank/precision.json").read_text())
    assert {(own["backend"], own["exact"]) for own in decided.values()} == {("torch fp32", True)}


def test_another_word_reranks_and_reuses_the_trainings(begun):
    result, _ = begun("fast")
    actions = {outcome.stage: (outcome.action, outcome.why) for outcome in result.outcomes}
    assert actions["rerank"] == ("ran", 'rerank.precision: "exact" -> "fast"')
    assert actions["train/finetuned"][0] == "reused"


def test_labels_of_what_is_measured_are_never_looked_at(begun, tiny_experiment):
    tiny_experiment["rerank"]["dev_queries"] = 0
    _, folder = begun("balanced")  # test is scored first, and alone
    for own in json.loads((folder / "rerank/precision.json").read_text()).values():
        assert own["tried"][-1]["agreement"]["queries"] == 5
        assert own["tried"][-1]["agreement"]["labelled"] == 0
        assert own["tried"][-1]["agreement"]["change"] is None


def test_where_dev_is_measured_its_labels_are_not_looked_at_either(begun, tiny_experiment):
    tiny_experiment["evaluate"]["split"], tiny_experiment["verdict"] = "dev", None
    _, folder = begun("balanced")
    for own in json.loads((folder / "rerank/precision.json").read_text()).values():
        assert own["tried"][-1]["agreement"]["labelled"] == 0


def test_a_run_that_is_smaller_than_its_sample_is_exact_and_says_so(begun, monkeypatch):
    monkeypatch.setattr(guard, "RATIO", 4)
    result, folder = begun("balanced")
    decided = json.loads((folder / "rerank/precision.json").read_text())["finetuned"]
    assert decided["exact"]
    assert result.table["provenance"]["precision"] == f"balanced; torch fp32 ({decided['why']})"
    assert "too few to try a faster way on" in decided["why"]


def general_ways(folder):
    found = json.loads((folder / "general/precision.json").read_text())
    return {own["backend"] for own in found.values()}


def test_general_computes_as_rerank_did(begun):
    _, folder = begun("balanced")
    assert general_ways(folder) == {"bf16"}


def test_where_arms_were_scored_in_different_ways_general_is_exact(begun, monkeypatch):
    decide = CachedScorer.decide

    def one_in_fp32(self, pairs, **options):
        found = decide(self, pairs, **options)
        if self.folder.parent.name == "finetuned":
            self._settled = found = replace(found, backend="torch fp32")
        return found

    monkeypatch.setattr(CachedScorer, "decide", one_in_fp32)
    _, folder = begun("balanced")
    own = json.loads((folder / "rerank/precision.json").read_text())
    assert {values["backend"] for values in own.values()} == {"bf16", "torch fp32"}
    assert general_ways(folder) == {"torch fp32"}


def test_a_diagnosis_on_a_machine_that_lacks_the_way_decides_for_itself(begun, ladder, tiny_experiment):
    _, folder = begun("balanced")
    ladder[:] = [Way("another", off=1.0), Way("torch fp32")]
    shutil.rmtree(folder / "diagnose")
    shutil.rmtree(folder.parent / ".cache/scores")
    rw.run(tiny_experiment, runs=folder.parent)  # by name the way that it lacks would raise
    assert json.loads((folder / "diagnose/findings.json").read_text())["findings"]


def test_a_way_that_this_machine_lacks_is_not_followed(begun, monkeypatch):
    monkeypatch.setattr(CachedScorer, "has", lambda self, way: False)
    _, folder = begun("balanced")
    assert general_ways(folder) == {"torch fp32"}
