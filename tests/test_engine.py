"""Pairs to logits: batches must change nothing but the speed."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.toolbox import engine
from rankwright.toolbox.engine import encode, length_batches, longest_input, score
from rankwright.toolbox.model import Reranker

WORDS = "red green blue apple pear plum car train boat sorts array matrix zq9 graph value the a of in and to"


def texts(count, seed, longest=70):
    """Random texts, of no word up to more than the model reads."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS.split(), size=rng.integers(longest + 1))) for _ in range(count)]


def random_pairs(count, seed):
    return list(zip(texts(count, seed, longest=40), texts(count, seed + 1), strict=True))


@pytest.fixture(scope="module")
def loud(tiny_reranker):
    """A tiny reranker with larger weights, so that scores differ."""
    import torch

    reranker = Reranker.load(tiny_reranker, device="cpu")
    with torch.no_grad():
        for name, parameter in reranker.model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20.0 if name.startswith("classifier") else 6.0)
    return reranker


def plain_score(reranker, pair, max_length):
    """One pair by itself, without padding, through transformers alone."""
    import torch

    query, document = pair  # as lists of one: a bare empty text would be taken for none
    batch = reranker.tokenizer([query], [document], truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        return float(reranker.model(**batch).logits[0, 0])


@pytest.fixture
def batches(monkeypatch):
    """The shapes (count, longest) that went through the model, and how many tokens of each row were real."""
    seen = []
    collate = engine.collate

    def watching(*arguments):
        batch = collate(*arguments)
        seen.append((tuple(batch["input_ids"].shape), batch["attention_mask"].sum(-1).tolist()))
        return batch

    monkeypatch.setattr(engine, "collate", watching)
    return seen


def test_scores_equal_those_of_each_pair_alone_in_the_order_given(loud, batches):
    pairs = random_pairs(60, seed=0)
    found = score(loud.model, loud.tokenizer, pairs, max_length=64)
    assert found.shape == (60,)
    assert found.dtype == np.float32
    assert np.ptp(found) > 0.1
    assert any(len(set(real)) > 1 for _, real in batches)  # something was padded
    np.testing.assert_allclose(found, [plain_score(loud, pair, 64) for pair in pairs], atol=1e-5)


def test_scores_do_not_depend_on_windows_budgets_or_company(loud, monkeypatch):
    pairs = random_pairs(50, seed=2)
    whole = score(loud.model, loud.tokenizer, pairs, max_length=64)
    monkeypatch.setattr(engine, "WINDOW", 7)
    monkeypatch.setitem(engine.TOKEN_BUDGET, "cpu", 150)
    heard = []
    parts = score(loud.model, loud.tokenizer, pairs, max_length=64, on_window=heard.append)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert heard == [7] * 7 + [1]
    backwards = score(loud.model, loud.tokenizer, pairs[::-1], max_length=64)[::-1]
    np.testing.assert_allclose(backwards, whole, atol=1e-5)


def test_the_same_pairs_give_the_same_scores_bit_for_bit(loud):
    pairs = random_pairs(40, seed=4)
    first, second = (score(loud.model, loud.tokenizer, pairs, max_length=64) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_no_pairs_give_an_empty_array(loud):
    found = score(loud.model, loud.tokenizer, [], max_length=64)
    assert found.shape == (0,)
    assert found.dtype == np.float32
    assert loud.score([]).shape == (0,)


@pytest.mark.parametrize("pair", [("red apple", "green pear"), ("", "green"), ("red", ""), ("", ""), ("   ", "\n\t")])
def test_one_pair_is_scored_and_an_empty_text_is_a_text(loud, pair):
    found = score(loud.model, loud.tokenizer, [pair], max_length=64)
    np.testing.assert_allclose(found, [plain_score(loud, pair, 64)], atol=1e-5)


@pytest.mark.parametrize("max_length", [8, 13, 64])
def test_truncation_is_the_tokenizers_own(loud, max_length):
    pairs = random_pairs(30, seed=6)
    encoded = encode(loud.tokenizer, pairs, max_length)
    cut = 0
    for place, (query, document) in enumerate(pairs):
        alone = loud.tokenizer([query], [document], truncation=True, max_length=max_length)
        assert [encoded["input_ids"][place]] == alone["input_ids"]
        assert [encoded["token_type_ids"][place]] == alone["token_type_ids"]
        assert len(encoded["input_ids"][place]) <= max_length
        cut += len(loud.tokenizer([query], [document])["input_ids"][0]) > max_length
    assert cut


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode_and_is_scored_without_dropout(loud, training):
    pairs = random_pairs(5, seed=8)
    expected = score(loud.model, loud.tokenizer, pairs, max_length=64)
    loud.model.train(training)
    try:
        np.testing.assert_array_equal(score(loud.model, loud.tokenizer, pairs, max_length=64), expected)
        assert loud.model.training is training
        assert all(not parameter.is_inference() for parameter in loud.model.parameters())
    finally:
        loud.model.eval()


# ----------------------------------------------------------------------------------------------- batches


def test_batches_hold_every_position_once_and_stay_within_the_budget():
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(1, 80, size=rng.integers(0, 40)).tolist()
        budget = int(rng.integers(1, 400))
        cut = length_batches(lengths, budget)
        assert sorted(position for batch in cut for position in batch) == list(range(len(lengths)))
        for batch in cut:
            assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget


def test_batches_are_longest_first_with_ties_in_order_and_as_large_as_they_may_be():
    assert length_batches([3, 5, 3, 5, 1], 10) == [[1, 3], [0, 2, 4]]
    assert length_batches([4, 4, 4], 8) == [[0, 1], [2]]
    assert length_batches([30], 8) == [[0]]
    assert length_batches([], 8) == []


def test_short_rows_are_padded_on_the_right_with_the_tokenizers_id_and_masked():
    encoded = {"input_ids": [[5, 6, 7], [8], [9, 9]], "token_type_ids": [[0, 1, 1], [0], [1, 1]]}
    batch = engine.collate(encoded, [1, 0], 3, "cpu")
    assert batch["input_ids"].tolist() == [[8, 3, 3], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0], [0, 1, 1]]


def test_the_forward_pass_keeps_to_the_token_budget(loud, batches, monkeypatch):
    monkeypatch.setitem(engine.TOKEN_BUDGET, "cpu", 100)
    score(loud.model, loud.tokenizer, random_pairs(40, seed=10), max_length=64)
    assert len(batches) > 5
    for (count, longest), real in batches:
        assert count == 1 or count * longest <= 100
        assert max(real) == longest


# -------------------------------------------------------------------------------------------- how long


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30,
    "num_labels": 1,
    "max_position_embeddings": 20,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


class Unlimited:
    """Stands for a tokenizer that names no length."""

    model_max_length = int(1e30)


def reads(model, tokens):
    import torch

    with torch.no_grad():
        try:
            model(input_ids=torch.full((1, tokens), 7))
        except (IndexError, RuntimeError):
            return False
    return True


@pytest.mark.parametrize(
    ("family", "pad"),
    [
        *(("bert", 0), ("electra", 0), ("roberta", 1), ("roberta", 0), ("xlm-roberta", 1), ("camembert", 1)),
        *(("mpnet", 1), ("data2vec-text", 1), ("ibert", 1), ("longformer", 1)),
    ],
)
def test_the_longest_input_is_what_the_model_can_just_read(family, pad):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(family, **TINY, pad_token_id=pad)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    longest = longest_input(config, Unlimited())
    assert reads(model, longest)
    assert not reads(model, longest + 1)


def test_the_tokenizers_limit_counts_where_it_is_lower():
    from transformers import BertConfig

    class Short:
        model_max_length = 12

    assert longest_input(BertConfig(**TINY), Short()) == 12
    assert longest_input(BertConfig(**{**TINY, "max_position_embeddings": 9}), Short()) == 9


def test_a_model_without_any_limit_is_read_to_512_tokens():
    from transformers import BertConfig

    assert longest_input(BertConfig(**{**TINY, "max_position_embeddings": 0}), Unlimited()) == 512


def test_a_pair_longer_than_the_model_is_cut_to_what_it_reads(loud):
    pair = ("red " * 100, "apple " * 100)
    assert loud.max_length == 64
    np.testing.assert_allclose(loud.score([pair]), [plain_score(loud, pair, 64)], atol=1e-5)


def test_bf16_stays_near_fp32_and_comes_back_as_float32(loud):
    pairs = random_pairs(10, seed=12)
    full = score(loud.model, loud.tokenizer, pairs, max_length=64)
    half = score(loud.model, loud.tokenizer, pairs, max_length=64, precision="bf16")
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, atol=0.25)
