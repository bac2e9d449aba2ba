"""The layer that is written out: what its modules give, dropout included, and no more gradients than are wanted."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rankwright.toolbox.engine import layer as written_out  # noqa: E402
from rankwright.toolbox.engine import packed  # noqa: E402
from rankwright.toolbox.engine.stretches import LEVEL, stretches_of  # noqa: E402

HIDDEN = 24
LENGTHS = {"mixed": [30, 29, 26, 18, 17, 9, 8, 8, 3], "equal": [7, 7, 7, 7], "one": [5]}


def made(rate=0.0, activation="gelu", dtype=torch.float64):
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    torch.manual_seed(1)
    shape = {"hidden_size": HIDDEN, "intermediate_size": 40, "num_attention_heads": 3, "hidden_act": activation}
    rates = {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    layer = BertLayer(BertConfig(**shape, **rates)).to(dtype).train()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def computed(layer, lengths, first_only=False, bf16=False, modules=None):
    """Hidden states and all gradients of a layer, by name; of the hidden states too."""
    stretches = stretches_of(np.array(lengths), level=LEVEL)
    dtype = next(layer.parameters()).dtype
    hidden = torch.randn(sum(lengths), HIDDEN, dtype=dtype, generator=torch.Generator().manual_seed(2))
    hidden.requires_grad_()
    firsts = torch.from_numpy(np.cumsum([0, *lengths[:-1]])) if first_only else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found = (modules or written_out.forward)(layer, hidden, stretches, firsts, 5)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    layer.zero_grad()
    (found.double() * weights).sum().backward()
    gradients = {name: own.grad for name, own in layer.named_parameters() if own.grad is not None}
    return {"states": found.detach(), "hidden": hidden.grad, **gradients}


@pytest.fixture
def by_modules(monkeypatch):
    """The same by the layer's own modules."""
    monkeypatch.setattr(written_out, "pays", lambda layer: False)
    return partial(computed, modules=packed._trained_layer)


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("kind", LENGTHS)
def test_states_and_gradients_are_those_of_the_modules_with_the_same_dropout(kind, rate, first_only, by_modules):
    layer = made(rate)
    assert written_out.supported(layer)
    expected = by_modules(layer, LENGTHS[kind], first_only)
    found = computed(layer, LENGTHS[kind], first_only)
    assert found.keys() == expected.keys()
    assert len(found) == 2 + len(list(layer.parameters()))
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), atol=1e-10 * largest, err_msg=name)


def test_in_bf16_gradients_are_as_near_to_fp32s_as_those_of_the_modules(by_modules):
    layer = made(0.1, dtype=torch.float32)
    exact = by_modules(layer, LENGTHS["mixed"])
    apart = {}
    for name, compute in (("ours", computed), ("modules", by_modules)):
        found = compute(layer, LENGTHS["mixed"], bf16=True)
        assert {tensor.dtype for place, tensor in found.items() if place != "states"} == {torch.float32}
        errors = [float((found[place] - exact[place]).norm() / exact[place].norm()) for place in exact]
        apart[name] = np.median(errors)
    assert 0 < apart["ours"] < 1.5 * apart["modules"]
    assert apart["ours"] < 0.02


def test_what_is_frozen_gets_no_gradient_and_changes_no_other():
    layer = made(0.2)
    expected = computed(layer, LENGTHS["mixed"])
    frozen = [
        "attention.self.query.weight",
        "intermediate.dense.weight",
        "output.dense.bias",
        "output.LayerNorm.weight",
    ]
    for name in frozen:
        layer.get_parameter(name).requires_grad_(False)
    found = computed(layer, LENGTHS["mixed"])
    assert found.keys() == expected.keys() - set(frozen)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_layer_computed_anew_draws_the_same():
    from torch.utils.checkpoint import checkpoint

    layer, stretches = made(0.3), stretches_of(np.array(LENGTHS["mixed"]), level=LEVEL)
    hidden = torch.randn(sum(LENGTHS["mixed"]), HIDDEN, dtype=torch.float64, requires_grad=True)
    gradients = []
    for call in (written_out.forward, lambda *given: checkpoint(written_out.forward, *given, use_reentrant=False)):
        hidden.grad = None
        call(layer, hidden, stretches, None, 9).square().sum().backward()
        gradients.append(hidden.grad)
    assert torch.equal(*gradients)


def test_a_layer_that_scores_drops_nothing():
    layer = made(0.5).eval()
    assert torch.equal(computed(layer, [6, 5])["states"], computed(made(0.0).eval(), [6, 5])["states"])


def test_other_layers_are_left_to_their_modules():
    assert not written_out.supported(made(activation="relu"))
    assert not written_out.supported(made(activation="gelu_new"))
    adapted = made()
    adapted.output.dense = torch.nn.Sequential(adapted.output.dense)
    assert not written_out.supported(adapted)
    from rankwright.toolbox import rounding

    rounded = made()
    rounding.switch(rounded, on=True)
    assert not written_out.supported(rounded)


@pytest.mark.parametrize(
    ("rate", "training", "gradients", "expected"),
    [
        (0.1, True, True, 1),
        (0.0, True, True, 0),
        (0.1, False, True, 0),
        (0.1, True, False, 0),
    ],
)
def test_it_is_taken_for_training_with_dropout_alone(monkeypatch, rate, training, gradients, expected):
    forward, calls = written_out.forward, []
    monkeypatch.setattr(written_out, "forward", lambda *given: calls.append(1) or forward(*given))
    layer = made(rate).train(training)
    with torch.set_grad_enabled(gradients):
        packed._trained_layer(
            layer, torch.ones(5, HIDDEN, dtype=torch.float64), stretches_of(np.array([5]), level=1), None, 1
        )
    assert len(calls) == expected


def test_no_view_of_all_rows_is_kept_for_one_pair():
    from rankwright.toolbox.footprint import saved_bytes

    layer = made(0.1)
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}

    def saved(lengths):
        hidden = torch.ones(sum(lengths), HIDDEN, dtype=torch.float64, requires_grad=True)
        stretches = stretches_of(np.array(lengths), level=LEVEL)
        return saved_bytes(lambda: written_out.forward(layer, hidden, stretches, None, 1), own)

    assert saved([60] * 30 + [20]) < saved([60] * 30 + [20, 20])
