"""The cached scorer: nothing is scored twice, and nothing is mistaken for something else."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest

from rankwright.errors import ConfigError, ModelError
from rankwright.toolbox import engine
from rankwright.toolbox.engine import guard
from rankwright.toolbox.model import Reranker
from rankwright.toolbox.scorer import CachedScorer, both_orders, pair_lengths, tokens_read

PAIRS = [(f"query {number % 3} red", f"apple {number} green graph") for number in range(10)]


@pytest.fixture
def computed(monkeypatch):
    """The chunks of pairs that went through a model from here on."""
    chunks = []
    score = engine.score

    def watching(backend, encoder, pairs, **options):
        chunks.append(list(pairs))
        return score(backend, encoder, pairs, **options)

    monkeypatch.setattr(engine, "score", watching)
    return chunks


@pytest.fixture
def loads(monkeypatch):
    """The models loaded from here on."""
    loaded = []
    load = Reranker.load.__func__

    def watching(cls, reference, **options):
        loaded.append(reference)
        return load(cls, reference, **options)

    monkeypatch.setattr(Reranker, "load", classmethod(watching))
    return loaded


def scorer(folder, cache, **options):
    return CachedScorer(folder, cache=cache, device="cpu", **options)


def test_scores_are_those_of_the_reranker(tiny_reranker, tmp_path):
    found = scorer(tiny_reranker, tmp_path)(PAIRS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, Reranker.load(tiny_reranker, device="cpu").score(PAIRS), atol=1e-6)


def test_what_was_scored_once_is_never_scored_again_not_even_by_another_process(tiny_reranker, tmp_path, computed):
    first = scorer(tiny_reranker, tmp_path)
    expected = first(PAIRS[:6])
    assert computed == [PAIRS[:6]]
    np.testing.assert_array_equal(first(PAIRS[2:6][::-1]), expected[2:6][::-1])
    again = scorer(tiny_reranker, tmp_path)
    found = again(PAIRS)
    assert computed == [PAIRS[:6], PAIRS[6:]]
    np.testing.assert_array_equal(found[:6], expected)


def test_the_model_is_not_loaded_when_the_cache_has_all(tiny_reranker, tmp_path, loads):
    scorer(tiny_reranker, tmp_path)(PAIRS)
    assert len(loads) == 1
    scorer(tiny_reranker, tmp_path)(PAIRS)
    assert len(loads) == 1


def test_copies_within_a_call_are_scored_once_and_each_gets_its_score(tiny_reranker, tmp_path, computed):
    pairs = [PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[2], PAIRS[1], PAIRS[0]]
    found = scorer(tiny_reranker, tmp_path)(pairs)
    assert computed == [PAIRS[:3]]
    assert found[0] == found[2] == found[5]
    assert found[1] == found[4]
    assert len(set(found.tolist())) == 3


def test_no_pairs_give_an_empty_array_and_load_nothing(tiny_reranker, tmp_path, loads):
    found = scorer(tiny_reranker, tmp_path)([])
    assert found.shape == (0,)
    assert found.dtype == np.float32
    assert not loads


def test_query_and_document_do_not_run_into_each_other(tiny_reranker, tmp_path, computed):
    scorer(tiny_reranker, tmp_path)([("red apple", "pear"), ("red", "apple pear"), ("pear", "red apple")])
    assert len(computed[0]) == 3


def test_other_weights_and_lengths_have_scores_of_their_own(tiny_reranker, tmp_path, computed):
    moved = shutil.copytree(tiny_reranker, tmp_path / "moved")
    cache = tmp_path / "cache"
    scorer(tiny_reranker, cache)(PAIRS)
    scorer(moved, cache)(PAIRS)  # the same content elsewhere is the same model
    scorer(moved, cache, precision="balanced")(PAIRS)  # so few are exact
    assert len(computed) == 1
    scorer(moved, cache, max_length=9)(PAIRS)
    assert len(computed) == 2
    reranker = Reranker.load(moved, device="cpu")
    reranker.model.classifier.bias.data += 1
    reranker.save(moved, card="")
    shifted = scorer(moved, cache)(PAIRS)
    assert len(computed) == 3
    np.testing.assert_allclose(shifted, scorer(tiny_reranker, cache)(PAIRS) + 1, atol=1e-5)


def test_the_same_cut_at_another_length_needs_no_second_model(tiny_reranker, tmp_path, computed, loads):
    whole = scorer(tiny_reranker, tmp_path / "one")
    short = whole.cut_at(9)
    found = [whole(PAIRS), short(PAIRS)]
    assert len(loads) == 1
    assert len(computed) == 2
    np.testing.assert_array_equal(whole(PAIRS), found[0])
    for scores, length in zip(found, (512, 9), strict=True):
        np.testing.assert_allclose(scores, scorer(tiny_reranker, tmp_path / "two", max_length=length)(PAIRS), atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-5


def test_a_readme_does_not_make_another_model(tiny_reranker, tmp_path, computed):
    moved = shutil.copytree(tiny_reranker, tmp_path / "moved")
    scorer(moved, tmp_path / "cache")(PAIRS)
    (moved / "README.md").write_text("# words")
    scorer(moved, tmp_path / "cache")(PAIRS)
    assert len(computed) == 1


class Killed(BaseException):
    """Stands for a kill: nothing below a test catches it."""


def test_a_killed_scoring_goes_on_with_the_same_chunks(tiny_reranker, tmp_path, computed, monkeypatch):
    monkeypatch.setattr(engine, "WINDOW", 3)
    whole = scorer(tiny_reranker, tmp_path / "whole")(PAIRS)
    chunks = [PAIRS[0:3], PAIRS[3:6], PAIRS[6:9], PAIRS[9:]]
    assert computed == chunks
    computed.clear()
    watching = engine.score

    def dying(backend, encoder, pairs, **options):
        if len(computed) == 2:
            raise Killed
        return watching(backend, encoder, pairs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "score", dying)
        with pytest.raises(Killed):
            scorer(tiny_reranker, tmp_path / "killed")(PAIRS)
    found = scorer(tiny_reranker, tmp_path / "killed")(PAIRS)
    assert computed == chunks
    np.testing.assert_array_equal(found, whole)


def test_what_cannot_score_is_refused_when_the_scorer_is_made(tiny_encoder, tmp_path):
    with pytest.raises(ModelError, match="without a classification head"):
        scorer(tiny_encoder, tmp_path)
    with pytest.raises(ModelError, match="no model folder"):
        scorer(tmp_path / "nowhere", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_precision_that_is_no_word_is_refused(tiny_reranker, tmp_path):
    with pytest.raises(ConfigError, match="one of exact, balanced, fast"):
        scorer(tiny_reranker, tmp_path, precision="fp16")


def test_a_pair_that_is_cut_shorter_than_asked_is_said_aloud(tiny_reranker, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("rankwright.toolbox.scorer.say", said.append)
    scorer(tiny_reranker, tmp_path, max_length=64)(PAIRS)
    assert not said
    scorer(tiny_reranker, tmp_path, max_length=512)(PAIRS)
    assert len(said) == 1
    assert "64 tokens" in said[0]


def test_both_orders_are_averaged(tiny_reranker, tmp_path):
    scorer = CachedScorer(tiny_reranker, cache=tmp_path, device="cpu", max_length=32)
    forth, back = scorer([("red", "old boat")]), scorer([("old boat", "red")])
    np.testing.assert_allclose(both_orders(scorer)([("red", "old boat")]), (forth + back) / 2)


def test_pair_lengths_are_those_of_the_models_own_tokenizer(tiny_reranker):
    from transformers import AutoTokenizer

    pairs = [("red apple", "old boat of a plum"), ("red apple", "a " * 80)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_reranker)
    wanted = [len(tokenizer(*pair, truncation=False)["input_ids"]) for pair in pairs]
    assert pair_lengths(tiny_reranker)(pairs).tolist() == wanted


def test_a_model_reads_no_more_tokens_than_it_has_places_for(tiny_reranker):
    assert tokens_read(tiny_reranker, 512) == Reranker.load(tiny_reranker, device="cpu").max_length == 64
    assert tokens_read(tiny_reranker, 32) == 32


# -------------------------------------------------------------------------------------------------------- precision

RUN = [(f"red {query} car", f"document {query} {place}") for query in range(120) for place in range(10)]
"""120 queries of ten candidates: just enough to pay for a sample of 30."""


def truth(pairs):
    return np.array([np.random.default_rng([*document.encode()]).normal() for _, document in pairs], np.float32)


@dataclass
class Way:
    """Scores that the texts decide, off by a constant (which tells the ways apart) and by noise."""

    name: str
    off: float = 0.0
    noise: float = 0.0
    fails: str = ""
    built: list = field(default_factory=list)
    scored: list = field(default_factory=list)

    def build(self, reranker):
        assert isinstance(reranker, Reranker)
        if self.fails:
            raise ModelError(self.fails)
        self.built.append(reranker)

        def score(pairs, encoder=None):
            self.scored.append(list(pairs))
            rng = np.random.default_rng(len(pairs))
            return (truth(pairs) + self.off + self.noise * rng.normal(size=len(pairs))).astype(np.float32)

        return score


@pytest.fixture
def ladder(monkeypatch):
    """int8 that is good, bf16 that is too, fp32: as on a machine that has them."""
    ways = [Way("int8", 2.0), Way("bf16", 1.0), Way("torch fp32")]
    monkeypatch.setattr("rankwright.toolbox.scorer.backends", lambda word, device, cache, keep: ways)
    monkeypatch.setattr(guard, "RATIO_INT8", guard.RATIO)
    return ways


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("rankwright.toolbox.scorer.say", lambda line: lines.append(line))
    return lines


def close(found, pairs, off):
    np.testing.assert_allclose(found, truth(pairs) + off, atol=1e-5)


def test_the_first_way_that_agrees_scores_all_and_fp32_no_more_than_the_sample(tiny_reranker, tmp_path, ladder, said):
    int8, bf16, fp32 = ladder
    fast = scorer(tiny_reranker, tmp_path, precision="fast", max_length=64)
    assert fast.decision is None
    close(fast(RUN), RUN, 2.0)
    assert fast.decision.backend == "int8"
    assert sum(map(len, fp32.scored)) == 30 * 10
    assert sum(map(len, int8.scored)) == len(RUN)  # the sample's scores are not computed twice
    assert not bf16.built
    assert len(said) == 1
    assert "int8 (top-10 overlap 1.000" in said[0]


def test_a_way_that_changes_the_order_is_left_for_the_next_and_so_is_one_that_cannot_be_made(
    tiny_reranker, tmp_path, ladder, said
):
    int8, bf16, fp32 = ladder
    int8.noise, bf16.fails = 2.0, "no such family"
    fast = scorer(tiny_reranker, tmp_path, precision="fast", max_length=64)
    close(fast(RUN), RUN, 0.0)
    assert fast.decision.exact
    assert sum(map(len, fp32.scored)) == len(RUN)  # the sample is part of it
    assert [line.split(": ", 1)[1].split(" (")[0] for line in said] == [
        "int8 is left: top-10 overlap below 0.9",
        "bf16 is left: no such family",
        "torch fp32",
    ]


def test_a_few_pairs_are_exact_and_decide_nothing_for_more(tiny_reranker, tmp_path, ladder, said):
    balanced = scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)
    close(balanced(RUN[:200]), RUN[:200], 0.0)
    assert "200 pairs are too few" in balanced.decision.why
    close(balanced(RUN), RUN, 2.0)
    close(balanced(RUN[:200]), RUN[:200], 2.0)  # what was decided holds
    assert len(said) == 1


def test_a_run_that_is_scored_in_parts_is_decided_on_as_a_whole(tiny_reranker, tmp_path, ladder, said):
    balanced = scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)
    assert balanced.decide(RUN).backend == "int8"
    close(balanced(RUN[:200]), RUN[:200], 2.0)
    again = scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)
    assert again.decide(RUN) == balanced.decision
    few = scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)
    assert few.decide(RUN[:200]).exact
    close(few(RUN), RUN, 0.0)  # settled, though these would be enough
    assert len(said) == 1


def test_what_another_rule_decided_is_decided_anew(tiny_reranker, tmp_path, ladder, said, monkeypatch):
    def decided():
        shutil.rmtree(tmp_path / "scores", ignore_errors=True)
        return scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64).decide(RUN).backend

    ladder[0].noise = 9.0
    assert decided() == "bf16"
    ladder[0].noise = 0.0
    assert decided() == "bf16"
    monkeypatch.setitem(guard._RULES, "balanced", guard._RULES["balanced"]._replace(clear=0.98))
    assert decided() == "int8"


def test_a_decision_of_another_time_is_followed_without_a_comparison(tiny_reranker, tmp_path, ladder, said):
    made = scorer(tiny_reranker, tmp_path / "a", precision="balanced", max_length=64).decide(RUN)
    ladder[0].noise = 1e-6
    given = scorer(tiny_reranker, tmp_path / "b", precision="balanced", max_length=64, decision=made)
    close(given(RUN[:7]), RUN[:7], 2.0)
    assert given.decision == made
    assert len(said) == 1


def test_the_words_share_the_scores_of_a_way(tiny_reranker, tmp_path, ladder):
    scorer(tiny_reranker, tmp_path, precision="balanced")(RUN)
    before = sum(map(len, ladder[0].scored))
    close(scorer(tiny_reranker, tmp_path, precision="fast")(RUN), RUN, 2.0)
    assert sum(map(len, ladder[0].scored)) == before == len(RUN)


def test_what_could_not_be_made_is_tried_again_another_time(tiny_reranker, tmp_path, ladder):
    ladder[0].fails = "garbage, today"
    close(scorer(tiny_reranker, tmp_path, precision="balanced")(RUN), RUN, 1.0)
    ladder[0].fails = ""
    close(scorer(tiny_reranker, tmp_path, precision="balanced")(RUN), RUN, 2.0)


def test_what_was_decided_is_remembered_for_the_pairs_the_model_the_length_the_word_and_the_labels(
    tiny_reranker, tmp_path, ladder, said
):
    made = scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)
    made(RUN)
    (file,) = (tmp_path / "precision").glob("*.json")
    assert json.loads(file.read_text())["backend"] == "int8"
    ladder[0].noise = 9.0  # who would decide anew would leave it
    again = scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)
    close(again(RUN), RUN, 2.0)
    assert again.decision == made.decision
    assert len(said) == 1
    others = [(query, f"{document} more") for query, document in RUN]
    close(scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)(others), others, 1.0)
    before = len(list((tmp_path / "precision").glob("*.json")))
    for more, other in enumerate(
        ({"max_length": 32}, {"precision": "fast"}, {"labels": {RUN[0][0]: {RUN[0][1]: 1}}}), 1
    ):
        scorer(tiny_reranker, tmp_path, **{"precision": "balanced", "max_length": 64, **other})(RUN)
        assert len(list((tmp_path / "precision").glob("*.json"))) == before + more


def test_other_ways_and_versions_are_another_machine(tiny_reranker, tmp_path, ladder, monkeypatch):
    close(scorer(tiny_reranker, tmp_path, precision="balanced")(RUN), RUN, 2.0)
    ladder[0].noise = 9.0
    with monkeypatch.context() as patch:
        patch.setattr("rankwright.toolbox.scorer._machine", lambda: ["another"])
        close(scorer(tiny_reranker, tmp_path, precision="balanced")(RUN), RUN, 1.0)
    del ladder[0]
    close(scorer(tiny_reranker, tmp_path, precision="balanced")(RUN), RUN, 1.0)


def test_a_damaged_memory_is_none(tiny_reranker, tmp_path, ladder, said):
    scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)(RUN)
    (file,) = (tmp_path / "precision").glob("*.json")
    for damage in ("{half", "[]", '{"decision": {}}'):
        file.write_text(damage)
        close(scorer(tiny_reranker, tmp_path, precision="balanced", max_length=64)(RUN), RUN, 2.0)
    assert len(said) == 4


def test_labels_are_asked_where_they_are_given(tiny_reranker, tmp_path, ladder):
    queries = dict.fromkeys(query for query, _ in RUN)
    labels = {query: {f"document {place} 3": 1} for place, query in enumerate(queries)}
    judged = scorer(tiny_reranker, tmp_path, precision="balanced", labels=labels)
    judged(RUN)
    assert judged.decision.tried[0].agreement.labelled == 30
    assert judged.decision.tried[0].agreement.change == 0.0
    plain = scorer(tiny_reranker, tmp_path, precision="balanced")
    plain(RUN)
    assert plain.decision.tried[0].agreement.change is None


def test_exact_looks_at_no_other_way_and_reuses_the_samples_scores(tiny_reranker, tmp_path, ladder):
    int8, _, fp32 = ladder
    scorer(tiny_reranker, tmp_path, precision="fast")(RUN)
    before = len(int8.scored)
    exact = scorer(tiny_reranker, tmp_path, precision="exact")
    close(exact(RUN), RUN, 0.0)
    assert sum(map(len, fp32.scored)) == len(RUN)
    assert len(int8.scored) == before
    assert (exact.decision.backend, exact.decision.why) == ("torch fp32", "as asked")


def test_what_is_all_there_in_fp32_is_not_scored_again(tiny_reranker, tmp_path, ladder, loads):
    scorer(tiny_reranker, tmp_path)(RUN)
    assert len(loads) == 1
    balanced = scorer(tiny_reranker, tmp_path, precision="balanced")
    close(balanced(RUN), RUN, 0.0)
    assert balanced.decision.why == "all these scores are there in fp32"
    assert len(loads) == 1


def test_a_comparison_that_is_killed_anywhere_ends_as_if_it_was_not(tiny_reranker, tmp_path, ladder, monkeypatch):
    monkeypatch.setattr(engine, "WINDOW", 200)
    int8, *_ = ladder
    int8.noise = 1e-4
    expected = scorer(tiny_reranker, tmp_path / "whole", precision="fast")(RUN)
    steps = sum(len(way.scored) for way in ladder)
    assert steps == 2 + 2 + 5
    for alive in range(steps):
        left = alive

        def dying(pairs, _score=truth):
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return _score(pairs)

        with monkeypatch.context() as patch:
            patch.setitem(globals(), "truth", dying)
            with pytest.raises(Killed):
                scorer(tiny_reranker, tmp_path / f"killed {alive}", precision="fast")(RUN)
        found = scorer(tiny_reranker, tmp_path / f"killed {alive}", precision="fast")(RUN)
        np.testing.assert_array_equal(found, expected)
