"""An encoder without padding gives the hidden states that it gave with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, XLMRobertaConfig, XLMRobertaModel

from rankwright.toolbox.engine.body import unpad

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LENGTHS = [3, 9, 1, 5, 9, 40]


def encoder(kind):
    torch.manual_seed(0)
    if kind == "bert":
        return BertModel(BertConfig(**SIZES, initializer_range=0.3)).eval()
    return XLMRobertaModel(XLMRobertaConfig(**SIZES, pad_token_id=1, initializer_range=0.3)).eval()


def padded(lengths=LENGTHS, *, front=False, types=False):
    real = np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]
    if front:
        real = real[:, ::-1].copy()
    draw = np.random.default_rng(0).integers(5, 50, real.shape)
    made = {"input_ids": np.where(real, draw, 1), "attention_mask": real.astype(np.int64)}
    if types:
        made["token_type_ids"] = np.where(real, draw % 2, 0)
    return {name: torch.from_numpy(values) for name, values in made.items()}


def states(body, given, **others):
    with torch.no_grad():
        return body(**given, **others).last_hidden_state


@pytest.mark.parametrize("budget", [16, 2048])
@pytest.mark.parametrize(("kind", "types"), [("bert", False), ("bert", True), ("xlmr", False)])
def test_hidden_states_are_the_encoders_own(kind, types, budget, monkeypatch):
    monkeypatch.setitem(unpad.__globals__["TOKEN_BUDGET"], "cpu", budget)
    body, given = encoder(kind), padded(types=types)
    with torch.no_grad():
        whole = body(**given)
    expected = whole.last_hidden_state
    assert unpad(body, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(body(**given).pooler_output, whole.pooler_output, atol=1e-5, rtol=0)
    found = states(body, given)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)
    assert not found[~real].any()


def test_bf16_is_near_and_in_single_precision():
    body, given = encoder("bert"), padded()
    expected = states(body, given)
    assert unpad(body, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = states(body, given)
    real = given["attention_mask"].bool()
    assert found.dtype == torch.float32
    assert 0 < (found[real] - expected[real]).abs().max() < 0.2


@pytest.mark.parametrize(
    ("given", "others"),
    [
        (padded(front=True), {}),
        (padded(), {"output_hidden_states": True}),
        (padded(), {"position_ids": torch.arange(40)[None].flip(1)}),
        ({"input_ids": padded([7, 7])["input_ids"]}, {}),
    ],
)
def test_what_it_does_not_give_is_left_to_the_encoder(given, others):
    body = encoder("bert")
    expected = body(**given, **others)
    assert unpad(body, torch.float32)
    found = body(**given, **others)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=0, rtol=0)
    assert (found.hidden_states is None) == (expected.hidden_states is None)


def test_a_training_has_its_gradients_and_the_weights_as_they_are():
    body, given = encoder("bert").train(), padded()
    assert unpad(body, torch.float32)
    assert body(**given).last_hidden_state.requires_grad


def test_other_families_stay_as_they_are():
    config = ModernBertConfig(**SIZES, pad_token_id=1, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
    assert not unpad(ModernBertModel(config), torch.float32)
    assert not unpad(BertModel(BertConfig(**SIZES, is_decoder=True)), torch.float32)
    assert not unpad(BertModel(BertConfig(**SIZES, output_hidden_states=True)), torch.float32)
