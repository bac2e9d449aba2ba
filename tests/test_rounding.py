"""Quantisation-aware training: the rounding is the int8 backend's, begins when it should, and leaves plain weights."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from rankwright.core import Group
from rankwright.rooms import train as room
from rankwright.rooms.train import DevSet, Workbench, train
from rankwright.sections import DevSection, LoraSection, Training
from rankwright.toolbox import checkpoint, rounding
from rankwright.toolbox.engine import openvino
from rankwright.toolbox.engine.exported import INT8_INPUTS, INT8_ROWS
from rankwright.toolbox.engine.forward import forward_tokens
from rankwright.toolbox.engine.pairs import Tokens, stacked
from rankwright.toolbox.keeping import Measured
from rankwright.toolbox.model import Reranker
from rankwright.toolbox.trainable import with_lora

WORDS = "red green blue pear plum car train array matrix linear graph node value fast slow big old".split()


def values(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def classifier(width=128):
    """A BERT in which every product but the last is rounded on both sides."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.15,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).eval()


def tokens(count=40):
    rng = np.random.default_rng(1)
    starts = stacked(np.sort(rng.integers(4, 30, count))[::-1].astype(np.int64))
    return Tokens(rng.integers(1, 100, starts[-1]).astype(np.int32), None, starts)


def logits(model, precision="fp32"):
    return forward_tokens(model, tokens(), pad_id=0, device="cpu", precision=precision)


# ------------------------------------------------------------------------------------------------- the rounding


@pytest.mark.parametrize(("width", "group"), [(128, 64), (100, 64), (40, 64), (96, 96)])
def test_values_become_whole_multiples_of_their_groups_largest_by_127(width, group):
    given = values(5, 3, width)
    given[0, 0] = 0
    found = rounding.rounded(given, group)
    assert found.shape == given.shape
    for start in range(0, width, group):
        own, made = given[..., start : start + group], found[..., start : start + group]
        scale = own.abs().amax(-1, keepdim=True) / 127
        steps = made / scale.clamp(min=1e-12)
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert ((made - own).abs() <= scale * 0.5001).all()
        torch.testing.assert_close(made.abs().amax(-1), own.abs().amax(-1))


def test_the_gradients_are_those_of_the_plain_layer():
    layer, given, towards = nn.Linear(100, 30), values(2, 7, 100).requires_grad_(), values(2, 7, 30, seed=1)

    def gradients():
        found = torch.autograd.grad(layer(given), [given, *layer.parameters()], towards)
        return layer(given).detach(), found

    plain, expected = gradients()
    rounding.switch(layer, on=True)
    coarse, found = gradients()
    assert 0 < float((coarse - plain).abs().max()) < 0.05
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other)


def test_off_again_a_model_is_what_it_was_to_the_last_bit():
    model = classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = logits(model)
    rounding.switch(model, on=True)
    coarse = logits(model)
    rounding.switch(model, on=False)
    assert not torch.equal(coarse, plain)
    assert torch.equal(logits(model), plain)
    assert {type(part) for part in model.modules() if isinstance(part, nn.Linear)} == {nn.Linear}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def gradients_of(model, precision="fp32"):
    model.zero_grad()
    logits(model, precision).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_layers_computed_anew_round_as_they_did_the_first_time():
    model = classifier().train()
    rounding.switch(model, on=True)
    once = gradients_of(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, once[name])


def test_under_autocast_weights_still_get_gradients_of_their_own_kind():
    model = classifier().train()
    rounding.switch(model, on=True)
    exact, lower = gradients_of(model), gradients_of(model, "bf16")
    assert exact.keys() == lower.keys()
    for name, gradient in lower.items():
        assert gradient.dtype == torch.float32
        if not name.endswith(("key.bias", "token_type_embeddings.weight")):
            assert float(functional.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0)) > 0.95, name


def test_adapters_stay_plain_and_their_bases_round():
    model = with_lora(classifier(), Training(lora=LoraSection(rank=2)), 0)
    rounding.switch(model, on=True)
    kinds = {name: type(part) for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {nn.Linear}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {rounding.RoundedLinear}
    gradients = gradients_of(model)
    assert [name for name in gradients if "lora_B" in name]
    rounding.switch(model, on=False)
    assert rounding.RoundedLinear not in map(type, model.modules())


# ------------------------------------------------------------------------------------- against the int8 backend

needs_openvino = pytest.mark.skipif(not openvino.available(), reason="OpenVINO is not installed")
HAS_INT8_PRODUCTS = torch.cpu._is_vnni_supported()
"""With them the backend rounds activations too. Without, weights alone; but AVX2 has such products as well, untold."""


@needs_openvino
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(128, 96), (384, 128), (100, 7), (48, 64), (64, 48), (128, 1), (312, 64), (192, 32), (256, 16)],
)
def test_a_layer_rounds_as_the_int8_backend_does(inputs, outputs):
    ov, op = openvino._openvino(), openvino._openvino().opset13
    torch.manual_seed(0)
    layer, given = nn.Linear(inputs, outputs, bias=False), values(20, inputs) + 0.5
    place = op.parameter([-1, inputs], np.float32)
    graph = ov.Model([op.matmul(place, op.constant(layer.weight.detach().numpy()), False, True)], [place], "layer")
    openvino._round_weights(graph)
    expected = ov.Core().compile_model(graph, "CPU", openvino._options("int8", 1))([given.numpy()])[0]
    plain = layer(given).detach().numpy()
    weight = layer.weight.detach()
    rounds = outputs >= INT8_ROWS and inputs >= INT8_INPUTS
    weights_alone = (given @ (rounding.rounded(weight, inputs) if rounds else weight).T).numpy()
    rounding.switch(layer, on=True)
    both = layer(given).detach().numpy()
    # A tie may fall to the other side: the mean hardly feels it.
    limit = 0.02 * np.abs(plain - expected).mean() + 1e-6
    allowed = [both] if HAS_INT8_PRODUCTS else [both, weights_alone]
    assert any(np.abs(found - expected).mean() < limit for found in allowed)


@needs_openvino
@pytest.mark.skipif(not HAS_INT8_PRODUCTS, reason="this CPU has no products of int8 numbers")
def test_the_scores_of_a_rounded_model_are_nearer_to_the_int8_backends_than_the_plain_ones_are():
    model = classifier()
    expected = openvino.build(model, 0, precision="int8", cache=None, fingerprint="", threads=1)(tokens())
    with torch.inference_mode():
        plain = logits(model).numpy()
        rounding.switch(model, on=True)
        coarse = logits(model).numpy()
    assert np.abs(coarse - expected).mean() < 0.6 * np.abs(plain - expected).mean()


# --------------------------------------------------------------------------------------------------- in training


def groups(count, seed=0):
    """Groups that can be learnt: the document with the word apple is relevant."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        texts = [" ".join([*rng.choice(WORDS, 3), "boat" if place else "apple"]) for place in range(4)]
        ids = [f"d{number}-{place}" for place in range(4)]
        origins = ["positive", "mined", "mined", "mined"]
        made.append(
            Group(f"q{number}", " ".join(rng.choice(WORDS, 3)), ids, texts, [1, 0, 0, 0], [0.5, 0.1, 0.1, 0.1], origins)
        )
    return made


def dev_set():
    ids, pairs, qrels = [], [], {}
    for group in groups(12, 100):
        qrels[group.query_id] = {group.document_ids[0]: 1}
        for place in (2, 1, 3, 0):
            ids.append((group.query_id, group.document_ids[place]))
            pairs.append((group.query, group.documents[place]))
    return DevSet(pairs, ids, qrels, "mrr@10")


def section(**options):
    plain = {"loss": "listwise", "learning_rate": 3e-3, "batch": 4, "max_length": 32, "precision": "fp32"}
    dev = DevSection(metric="mrr@10", evaluations=4, patience=None)
    return Training(**{**plain, "epochs": 2, "dev": dev, "quantization_aware": True, "checkpoints": 3, **options})


def run(training, base, folder, dev=None):
    return train(groups(16), training, base=base, dev=dev or dev_set(), bench=Workbench(folder, device="cpu"))


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder):
    return [record["loss"] for record in log(folder) if "loss" in record]


@pytest.fixture(scope="module")
def aware(lively_encoder, tmp_path_factory):
    """A training of 8 steps, the last two of them with rounding: (its folder, what came of it)."""
    folder = tmp_path_factory.mktemp("aware") / "t"
    return folder, run(section(), lively_encoder, folder)


def test_the_last_quarter_of_the_steps_sees_the_rounding_and_the_others_do_not(aware, lively_encoder, tmp_path):
    run(section(quantization_aware=False), lively_encoder, tmp_path / "plain")
    found, plain = losses_of(aware[0]), losses_of(tmp_path / "plain")
    assert found[:6] == plain[:6]
    assert all(own != other for own, other in zip(found[6:], plain[6:], strict=True))
    assert [note for note in aware[1].notes if "after step 6 it sees the rounding" in note]


def test_a_share_of_one_rounds_from_the_first_step_on(lively_encoder, tmp_path):
    seen, step = [], room._Loop._accumulated
    with pytest.MonkeyPatch.context() as patch:
        kinds = lambda self: {type(part) for part in self._bare().modules() if isinstance(part, nn.Linear)}  # noqa: E731
        patch.setattr(room._Loop, "_accumulated", lambda self, *rest: seen.append(kinds(self)) or step(self, *rest))
        run(section(quantization_aware=1.0, max_steps=3), lively_encoder, tmp_path)
    assert seen == [{rounding.RoundedLinear}] * 3


def test_the_weights_that_are_saved_are_plain_and_chosen_as_they_rank_under_rounding(aware):
    folder, trained = aware
    reranker = Reranker.load(trained.model, device="cpu", max_length=32)
    assert rounding.RoundedLinear not in map(type, reranker.model.modules())
    rounding.switch(reranker.model, on=True)

    def score(pairs):
        return logits_of(reranker, pairs)

    assert dev_set().measure(score) == pytest.approx(trained.dev)
    (measured,) = [record for record in log(folder) if "rounded_dev" in record]
    assert measured["step"] == 6
    later = [record["dev"]["mrr@10"] for record in log(folder) if "dev" in record and record["step"] > 6]
    assert trained.dev == max([measured["rounded_dev"]["mrr@10"], *later])


def logits_of(reranker, pairs):
    with torch.inference_mode():
        encoded = reranker.encoder(pairs)
        return forward_tokens(reranker.model, encoded, pad_id=0, device="cpu", precision="fp32").numpy()


def test_the_best_checkpoint_so_far_is_measured_anew_when_rounding_begins(lively_encoder, tmp_path, monkeypatch):
    """And the training goes on from the weights that it had, not from those."""
    seen, begin = {}, room._Loop._begin_rounding

    def watching(self):
        before = {name: tensor.clone() for name, tensor in self._bare().state_dict().items()}
        self.state.kept, self.state.kept_step = Measured([2.0], [2.0]), 0  # as if nothing could be better than the base
        begin(self)
        seen["same"] = all(torch.equal(tensor, before[name]) for name, tensor in self._bare().state_dict().items())
        seen["best"], seen["stale"] = self.state.kept.mean, self.state.stale
        checkpoint.load_best(self.checkpoints, 0, self._bare())
        seen["base"] = self.dev.measure(self._score)
        self._bare().load_state_dict(before)

    monkeypatch.setattr(room._Loop, "_begin_rounding", watching)
    monkeypatch.setattr(checkpoint, "forget_bests", lambda folder, but: None)
    run(section(), lively_encoder, tmp_path)
    assert seen["same"]
    assert seen["best"] == seen["base"] <= 1
    assert seen["stale"] == 0


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize(
    ("owner", "name", "nth"),
    [
        (room._Loop, "_step", 6),
        (room._Loop, "_step", 8),
        (checkpoint, "load_best", 1),
    ],
)
def test_a_killed_training_goes_on_with_the_same_bytes(aware, lively_encoder, tmp_path, owner, name, nth):
    original, calls = getattr(owner, name), []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == nth:
            raise Killed
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            run(section(), lively_encoder, tmp_path / "t")
    torch.manual_seed(1)
    run(section(), lively_encoder, tmp_path / "t")
    for file in ("model/model.safetensors", "log.jsonl"):
        assert (tmp_path / "t" / file).read_bytes() == (aware[0] / file).read_bytes(), file


def test_going_back_after_a_collapse_takes_the_rounding_off_until_it_is_due_again(lively_encoder, tmp_path):
    bench = Workbench(tmp_path, device="cpu")
    loop = room._Loop(groups(16), section(), lively_encoder, dev_set(), bench)
    loop._prepare()
    loop._go_on_or_begin()
    loop.state.step = 6
    loop._step()
    assert rounding.RoundedLinear in map(type, loop._bare().modules())
    loop._fall_back()
    assert (loop.state.step, loop.state.rounded) == (0, False)
    assert rounding.RoundedLinear not in map(type, loop._bare().modules())


def test_patience_does_not_end_a_training_before_the_rounding_has_begun(lively_encoder, tmp_path):
    dev = DevSection(metric="mrr@10", evaluations=8, patience=1)
    stuck = {"learning_rate": 1e-9, "dev": dev}
    plain = run(section(quantization_aware=False, **stuck), lively_encoder, tmp_path / "plain")
    assert plain.steps < 6
    assert run(section(**stuck), lively_encoder, tmp_path / "aware").steps > 6


def test_a_training_without_dev_rounds_too(lively_encoder, tmp_path):
    trained = run(section(dev=None, keep="last", max_steps=2), lively_encoder, tmp_path)
    assert [note for note in trained.notes if "after step 1 it sees the rounding" in note]


def test_adapters_are_merged_into_plain_weights(lively_encoder, tmp_path):
    trained = run(section(lora=LoraSection(rank=2)), lively_encoder, tmp_path)
    reranker = Reranker.load(trained.model, device="cpu", max_length=32)
    assert np.isfinite(logits_of(reranker, dev_set().pairs)).all()


def test_the_key_takes_a_word_or_a_share():
    shares = [Training(quantization_aware=given).rounded_share for given in (False, True, 0.5, 1.0)]
    assert shares == [0, 0.25, 0.5, 1]
    for wrong in (1.5, -0.1, "often"):
        with pytest.raises(ValidationError):
            Training(quantization_aware=wrong)
