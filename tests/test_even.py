"""Batches of a round number of tokens: the pairs' own logits, states and gradients, as without what is added."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from rankwright.toolbox.engine import even, packed
from rankwright.toolbox.engine.even import evened
from rankwright.toolbox.engine.pairs import Tokens, stacked


def tokens_of(lengths, *, typed=True):
    rng = np.random.default_rng(0)
    total = int(sum(lengths))
    types = (np.arange(total) % 2).astype(np.int32) if typed else None
    return Tokens(rng.integers(1, 50, total).astype(np.int32), types, stacked(np.asarray(lengths, dtype=np.int64)))


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("lengths", [[9], [40, 30, 30, 5], [3, 3, 2], [32], [20, 12], [33, 32], [1] * 5])
def test_tokens_are_a_multiple_and_a_batchs_own_pairs_stay_in_their_order(lengths, typed):
    batch = tokens_of(lengths, typed=typed)
    filled, own = evened(batch)
    assert len(filled.ids) % even.MULTIPLE == 0
    assert len(filled.ids) - len(batch.ids) < even.MULTIPLE
    assert list(filled.lengths) == sorted(filled.lengths, reverse=True)
    assert filled.lengths.max() == max(lengths)
    assert filled.lengths.min() > 0
    back = filled.take(own)
    np.testing.assert_array_equal(back.ids, batch.ids)
    np.testing.assert_array_equal(back.starts, batch.starts)
    assert (back.types is None) is (not typed)
    if typed:
        np.testing.assert_array_equal(back.types, batch.types)


def test_a_batch_that_is_round_already_stays_as_it_is():
    batch = tokens_of([20, 12])
    filled, own = evened(batch)
    assert filled is batch
    assert list(own) == [0, 1]


@pytest.fixture(params=[0.0, 1e-9], ids=["modules", "written out"])
def model(request):
    """In training, with a dropout that drops nothing: where attention has some, layers are written out."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 1}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": request.param}
    config = BertConfig(**sizes, intermediate_size=64, max_position_embeddings=64, initializer_range=0.2)
    return BertForSequenceClassification(config).train()


def both(monkeypatch, compute):
    """What it computes with batches made round, as it does by itself, and as they are."""
    made = []
    monkeypatch.setattr(packed, "evened", lambda batch: made.append(evened(batch)) or made[-1])
    found = compute()
    assert [len(filled.ids) for filled, _ in made] == [160]
    monkeypatch.setattr(packed, "evened", lambda batch: (batch, np.arange(len(batch))))
    return found, compute()


LENGTHS = [41, 30, 30, 17, 9, 8, 3]


def test_scores_are_those_without_what_is_added(model, monkeypatch):
    with torch.inference_mode():
        found, plain = both(monkeypatch, lambda: packed.Packed(model, torch.float32)(tokens_of(LENGTHS)))
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


def test_gradients_and_what_a_tap_collects_are_those_without_what_is_added(model, monkeypatch):
    def compute():
        model.zero_grad()
        tap = packed.Tap(2)
        logits = packed.logits(model, tokens_of(LENGTHS), tap)
        (logits * torch.arange(1, len(LENGTHS) + 1)).sum().backward()
        return [logits.detach(), *tap.rows, *(one.grad.clone() for one in model.parameters())]

    found, plain = both(monkeypatch, compute)
    assert found[1].shape == (len(LENGTHS), 32)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
