"""Pairs to logits: windows, batches and backends must change nothing but the speed."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.errors import ModelError
from rankwright.toolbox import engine
from rankwright.toolbox.engine import longest_input
from rankwright.toolbox.engine.forward import TorchBackend, collate, forward_tokens
from rankwright.toolbox.engine.pairs import PairEncoder, Tokens
from rankwright.toolbox.model import Reranker

WORDS = "red green blue apple pear plum car train boat sorts array matrix zq9 graph value the a of in and to"


def texts(count, seed, longest=70):
    """Random texts, of no word up to more than the model reads."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS.split(), size=rng.integers(longest + 1))) for _ in range(count)]


def random_pairs(count, seed):
    return list(zip(texts(count, seed, longest=40), texts(count, seed + 1), strict=True))


def louder(reranker):
    """The reranker with larger weights, so that scores differ."""
    import torch

    with torch.no_grad():
        for name, parameter in reranker.model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20.0 if name.startswith("classifier") else 6.0)
    return reranker


@pytest.fixture(scope="module")
def loud(tiny_reranker):
    """A tiny reranker of a family that is packed."""
    return louder(Reranker.load(tiny_reranker, device="cpu"))


@pytest.fixture(scope="module")
def foreign(tiny_reranker, tmp_path_factory):
    """A tiny reranker of a family that is padded."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, ElectraConfig

    folder = shutil.copytree(tiny_reranker, tmp_path_factory.mktemp("foreign") / "model")
    known = AutoConfig.from_pretrained(tiny_reranker)
    torch.manual_seed(1)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shape = {name: getattr(known, name) for name in (*names, "max_position_embeddings")}
    config = ElectraConfig(**shape, embedding_size=known.hidden_size, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return louder(Reranker.load(folder, device="cpu"))


@pytest.fixture(params=["loud", "foreign"])
def reranker(request):
    return request.getfixturevalue(request.param)


def plain_score(reranker, pair, max_length):
    """One pair by itself, without padding, through transformers alone."""
    import torch

    query, document = pair  # as lists of one: a bare empty text would be taken for none
    batch = reranker.tokenizer([query], [document], truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        return float(reranker.model(**batch).logits[0, 0])


def test_one_family_is_packed_and_the_other_padded(loud, foreign):
    assert not TorchBackend(loud.model, loud.pad_id, "fp32").padded
    assert TorchBackend(foreign.model, foreign.pad_id, "fp32").padded


def test_scores_equal_those_of_each_pair_alone_in_the_order_given(reranker):
    pairs = random_pairs(60, seed=0)
    found = reranker.score(pairs)
    assert found.shape == (60,)
    assert found.dtype == np.float32
    assert np.ptp(found) > 0.1
    np.testing.assert_allclose(found, [plain_score(reranker, pair, 64) for pair in pairs], atol=1e-5)


def test_scores_do_not_depend_on_windows_budgets_or_company(reranker, monkeypatch):
    pairs = random_pairs(50, seed=2)
    whole = reranker.score(pairs)
    monkeypatch.setattr(engine, "WINDOW", 7)
    backend = TorchBackend(reranker.model, reranker.pad_id, "fp32")
    backend.token_budget = 150
    heard = []
    parts = engine.score(backend, reranker.encoder, pairs, on_window=heard.append)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert heard == [7] * 7 + [1]
    np.testing.assert_allclose(reranker.score(pairs[::-1])[::-1], whole, atol=1e-5)


def test_the_same_pairs_give_the_same_scores_bit_for_bit(reranker):
    pairs = random_pairs(40, seed=4)
    np.testing.assert_array_equal(reranker.score(pairs), reranker.score(pairs))


def test_no_pairs_give_an_empty_array(reranker):
    found = reranker.score([])
    assert found.shape == (0,)
    assert found.dtype == np.float32


@pytest.mark.parametrize("pair", [("red apple", "green pear"), ("", "green"), ("red", ""), ("", ""), ("   ", "\n\t")])
def test_one_pair_is_scored_and_an_empty_text_is_a_text(reranker, pair):
    np.testing.assert_allclose(reranker.score([pair]), [plain_score(reranker, pair, 64)], atol=1e-5)


@pytest.mark.parametrize("max_length", [8, 13, 64])
def test_pairs_are_cut_where_the_model_is_told_to(reranker, max_length, monkeypatch):
    pairs = random_pairs(30, seed=6)
    monkeypatch.setattr(reranker, "max_length", max_length)
    np.testing.assert_allclose(
        reranker.score(pairs), [plain_score(reranker, pair, max_length) for pair in pairs], atol=1e-5
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode_and_is_scored_without_dropout(reranker, training):
    pairs = random_pairs(5, seed=8)
    expected = reranker.score(pairs)
    reranker.model.train(training)
    try:
        np.testing.assert_array_equal(reranker.score(pairs), expected)
        assert reranker.model.training is training
        assert all(not parameter.is_inference() for parameter in reranker.model.parameters())
    finally:
        reranker.model.eval()


def test_weights_that_change_change_the_scores(tiny_reranker):
    import torch

    reranker = louder(Reranker.load(tiny_reranker, device="cpu"))
    pairs = random_pairs(5, seed=9)
    before = reranker.score(pairs)
    with torch.no_grad():
        reranker.model.bert.encoder.layer[0].attention.self.query.weight.mul_(0.5)
    after = reranker.score(pairs)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, [plain_score(reranker, pair, 64) for pair in pairs], atol=1e-5)


def test_a_stream_reads_no_more_than_two_windows_ahead_of_what_is_taken(loud, monkeypatch):
    monkeypatch.setattr(engine, "WINDOW", 10)
    read = []

    def endless():
        number = 0
        while True:
            read.append(number)
            yield f"red {number}", "green apple"
            number += 1

    backend = TorchBackend(loud.model, loud.pad_id, "fp32")
    scores = engine.stream(backend, loud.encoder, endless())
    first = next(scores)
    assert len(first) == 10
    assert len(read) <= 20
    np.testing.assert_allclose(next(scores)[0], loud.score([("red 10", "green apple")])[0], atol=1e-5)
    scores.close()


def test_what_goes_wrong_while_tokenising_is_raised(loud):
    backend = TorchBackend(loud.model, loud.pad_id, "fp32")

    def broken(pairs):
        raise RuntimeError("no tokens today")

    with pytest.raises(RuntimeError, match="no tokens today"):
        engine.score(backend, broken, random_pairs(3, seed=1))


def test_batches_are_longest_first_and_within_the_budget(reranker):
    seen = []
    backend = TorchBackend(reranker.model, reranker.pad_id, "fp32")

    class Watching:
        name, padded, token_budget = "watching", backend.padded, 100

        def __call__(self, batch):
            seen.append(batch.lengths.tolist())
            return backend(batch)

    engine.score(Watching(), reranker.encoder, random_pairs(40, seed=10))
    assert len(seen) > 5
    for lengths in seen:
        assert lengths == sorted(lengths, reverse=True)
        taken = len(lengths) * lengths[0] if backend.padded else sum(lengths)
        assert len(lengths) == 1 or taken <= 100


# ------------------------------------------------------------------------------------------- with a graph


def test_forward_tokens_gives_the_scores_in_order_and_their_gradients(reranker):
    import torch

    pairs = random_pairs(20, seed=11)
    tokens = PairEncoder(reranker.tokenizer, 64)(pairs)
    reranker.model.eval()
    found = forward_tokens(reranker.model, tokens, pad_id=reranker.pad_id, device="cpu", precision="fp32")
    np.testing.assert_allclose(found.detach().numpy(), reranker.score(pairs), atol=1e-5)
    assert found.requires_grad
    with torch.no_grad():
        bare = forward_tokens(reranker.model, tokens, pad_id=reranker.pad_id, device="cpu", precision="fp32")
    assert not bare.requires_grad


def test_short_rows_are_padded_on_the_right_with_the_tokenizers_id_and_masked():
    ids = np.array([5, 6, 7, 8], dtype=np.int32)
    types = np.array([0, 1, 1, 0], dtype=np.int32)
    batch = collate(Tokens(ids, types, np.array([0, 3, 4])), 3, "cpu")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert "token_type_ids" not in collate(Tokens(ids, None, np.array([0, 3, 4])), 3, "cpu")


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
    full, half = loud.score(pairs), loud.score(pairs, precision="torch bf16")
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, atol=0.25)


class Cramped:
    """A backend without room for more than so many pairs."""

    name, token_budget, padded = "cramped", 10_000, False

    def __init__(self, most):
        self.most, self.calls = most, []

    def __call__(self, batch):
        self.calls.append(len(batch))
        if len(batch) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return batch.lengths.astype(np.float32)


def test_a_batch_without_room_is_scored_in_halves(loud):
    tokens = PairEncoder(loud.tokenizer, 64)(random_pairs(21, seed=3))
    cramped = Cramped(most=6)
    np.testing.assert_array_equal(engine.score_tokens(cramped, tokens), tokens.lengths)
    assert max(cramped.calls) == 21
    with pytest.raises(ModelError, match="not even one pair"):
        engine.score_tokens(Cramped(most=0), tokens)


def test_an_error_of_a_backend_that_is_not_about_memory_is_passed_on(loud):
    def broken(batch):
        raise RuntimeError("shapes do not match")

    broken.token_budget, broken.padded = 10_000, False
    with pytest.raises(RuntimeError, match="shapes"):
        engine.score_tokens(broken, PairEncoder(loud.tokenizer, 64)(random_pairs(3, seed=3)))
