"""The packed forward pass: the model's own logits and gradients, without a padded token."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.toolbox.engine import packed
from rankwright.toolbox.engine.forward import collate
from rankwright.toolbox.engine.pairs import Tokens, stacked

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 90,
    "num_labels": 1,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def made(family):
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    pad = 0 if family == "bert" else 1
    kinds = 2 if family == "bert" else 1
    config = AutoConfig.for_model(family, **SHAPE, pad_token_id=pad, type_vocab_size=kinds)
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(config).double().eval()


@pytest.fixture(params=["bert", "roberta", "xlm-roberta"], scope="module")
def model(request):
    return made(request.param)


def batch_of(model, lengths, seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.sort(np.asarray(lengths))[::-1]
    ids = rng.integers(4, SHAPE["vocab_size"], lengths.sum()).astype(np.int32)
    types = rng.integers(0, 2, lengths.sum()).astype(np.int32) if model.config.model_type == "bert" else None
    return Tokens(ids, types, stacked(lengths))


def own(model, batch):
    """What transformers gives for the batch, padded and masked."""
    return model(**collate(batch, int(model.config.pad_token_id), "cpu")).logits.reshape(-1)


def lengths_like(kind, seed=0):
    rng = np.random.default_rng(seed)
    return {"mixed": rng.integers(3, 60, 30), "equal": np.full(6, 9), "one": np.array([5])}[kind]


@pytest.mark.parametrize("kind", ["mixed", "equal", "one"])
def test_scores_are_the_models_own(model, kind):
    import torch

    batch = batch_of(model, lengths_like(kind))
    with torch.inference_mode():
        expected = own(model, batch)
        found = packed.Packed(model, torch.float64)(batch)
    assert len(batch) == 1 or expected.std() > 0.05
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)  # the head is in fp32


@pytest.mark.parametrize("anew", [False, True])
def test_gradients_are_the_models_own(model, anew):
    import torch

    batch = batch_of(model, lengths_like("mixed"), seed=1)
    weights = torch.linspace(-1, 1, len(batch), dtype=torch.float64)

    def gradients(logits):
        model.zero_grad()
        (logits * weights).sum().backward()
        return {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}

    model.train()
    try:
        expected = gradients(own(model, batch))
        if anew:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        found = gradients(packed.logits(model, batch).double())
    finally:
        model.gradient_checkpointing_disable()
        model.zero_grad()
        model.eval()
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name].numpy(), gradient.numpy(), atol=1e-6 * largest, err_msg=name)


def test_dropout_is_drawn_in_training_and_only_there(model):
    import torch

    batch = batch_of(model, lengths_like("mixed"))
    dropouts = [part for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    for part in dropouts:
        part.p = 0.3
    try:
        still = [packed.logits(model, batch).detach() for _ in range(2)]
        model.train()
        moved = [packed.logits(model, batch).detach() for _ in range(2)]
    finally:
        model.eval()
        for part in dropouts:
            part.p = 0.0
    assert torch.equal(*still)
    assert not torch.equal(*moved)


def test_many_draws_of_dropout_average_to_the_models_own_average():
    """Attention's dropout too, which stands nowhere else than in the packed attention."""
    import torch

    model = made("bert")
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    model.train()
    batch = batch_of(model, [12, 12, 11, 7])
    torch.manual_seed(0)
    with torch.no_grad():
        ours = torch.stack([packed.logits(model, batch) for _ in range(600)]).double()
        theirs = torch.stack([own(model, batch) for _ in range(600)])
    error = (ours.var(0) / 600 + theirs.var(0) / 600).sqrt()
    assert float(ours.std(0).min()) > 0.01
    assert float(((ours.mean(0) - theirs.mean(0)).abs() / error).max()) < 4


def test_bf16_is_near(model):
    import torch

    batch = batch_of(model, lengths_like("mixed"))
    single = made(model.config.model_type).float()
    with torch.inference_mode():
        expected = packed.Packed(single, torch.float32)(batch)
        found = packed.Packed(single, torch.bfloat16)(batch)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 0.1 * float(expected.std() + 1)


def test_a_model_that_only_looks_alike_is_not_packed():
    from transformers import AutoConfig, AutoModelForSequenceClassification

    electra = AutoConfig.for_model("electra", **SHAPE, embedding_size=24)
    assert not packed.supported(AutoModelForSequenceClassification.from_config(electra))
    causal = AutoConfig.for_model("bert", **SHAPE, is_decoder=True)
    assert not packed.supported(AutoModelForSequenceClassification.from_config(causal))


def test_adapters_are_trained_through(model):
    import torch
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        made(model.config.model_type), LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query", "dense"])
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    batch = batch_of(model, lengths_like("mixed"))
    found = packed.logits(wrapped, batch)
    np.testing.assert_allclose(found.detach().numpy(), own(wrapped, batch).detach().numpy(), atol=1e-5)
    found.sum().backward()
    assert all(own.grad is not None for name, own in wrapped.named_parameters() if "query.lora_A" in name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padding_gets_no_share_by_what_is_added(dtype):
    import torch

    dtype = getattr(torch, dtype)
    mask = torch.tensor([[True, True, True], [True, False, False]])[:, None, None, :]
    logits = torch.randn(2, 4, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    added = packed.bias(mask, dtype)
    assert added.dtype == dtype
    assert added.shape == mask.shape
    assert torch.equal(logits + added, logits.masked_fill(~mask, -torch.inf))


@pytest.mark.parametrize(("level", "slack"), [(1.0, 0), (0.7, 0), (0.3, 0), (0.7, 20), (0.7, 100)])
def test_stretches_cover_a_batch_and_differ_no_more_than_said(level, slack):
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = np.sort(rng.integers(1, 80, rng.integers(1, 40)))[::-1]
        cut = packed.stretches_of(lengths, level=level, slack=slack)
        assert np.concatenate([part.lengths for part in cut]).tolist() == lengths.tolist()
        assert [part.start for part in cut] == [0, *(part.stop for part in cut[:-1])]
        assert all(part.stop - part.start == part.lengths.sum() for part in cut)
        least = [min(level * part.longest, part.longest - slack) for part in cut]
        assert all(part.lengths.min() >= bound for part, bound in zip(cut, least, strict=True))
        assert all(other.longest < bound for other, bound in zip(cut[1:], least, strict=False))
