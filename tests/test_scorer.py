"""The cached scorer: nothing is scored twice, and nothing is mistaken for something else."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from rankwright.errors import ConfigError, ModelError
from rankwright.toolbox import engine
from rankwright.toolbox.model import Reranker
from rankwright.toolbox.scorer import CachedScorer, both_orders, pair_lengths, tokens_read

PAIRS = [(f"query {number % 3} red", f"apple {number} green graph") for number in range(10)]


@pytest.fixture
def computed(monkeypatch):
    """The chunks of pairs that went through a model from here on."""
    chunks = []
    score = Reranker.score

    def watching(self, pairs, **options):
        chunks.append(list(pairs))
        return score(self, pairs, **options)

    monkeypatch.setattr(Reranker, "score", watching)
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


def test_other_weights_lengths_and_precisions_have_scores_of_their_own(tiny_reranker, tmp_path, computed):
    moved = shutil.copytree(tiny_reranker, tmp_path / "moved")
    cache = tmp_path / "cache"
    scorer(tiny_reranker, cache)(PAIRS)
    scorer(moved, cache)(PAIRS)  # the same content elsewhere is the same model
    scorer(moved, cache, precision="fp32")(PAIRS)
    assert len(computed) == 1
    scorer(moved, cache, max_length=9)(PAIRS)
    assert len(computed) == 2
    half = scorer(moved, cache, precision="bf16")(PAIRS)
    assert len(computed) == 3
    assert not np.array_equal(half, scorer(moved, cache)(PAIRS))
    reranker = Reranker.load(moved, device="cpu")
    reranker.model.classifier.bias.data += 1
    reranker.save(moved, card="")
    shifted = scorer(moved, cache)(PAIRS)
    assert len(computed) == 4
    np.testing.assert_allclose(shifted, scorer(tiny_reranker, cache)(PAIRS) + 1, atol=1e-5)


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
    watching = Reranker.score

    def dying(self, pairs, **options):
        if len(computed) == 2:
            raise Killed
        return watching(self, pairs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Reranker, "score", dying)
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


def test_fp16_is_refused_where_auto_turns_out_to_be_a_cpu(tiny_reranker, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="fp16"):
        CachedScorer(tiny_reranker, cache=tmp_path, device="auto", precision="fp16")


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
