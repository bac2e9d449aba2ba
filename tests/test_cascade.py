"""A cascade: the exit head costs the model nothing, and only candidates that matter go through all layers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import rankwright
from rankwright.core import Collection, Group, Run
from rankwright.errors import ConfigError, ModelError
from rankwright.rooms import train as room
from rankwright.rooms.train import Workbench, train
from rankwright.sections import CascadeSection, LoraSection, RerankSection, Training
from rankwright.toolbox import cascaded, exits
from rankwright.toolbox.cascaded import Calibrated, CascadeScorer, calibrate, measure
from rankwright.toolbox.engine import cascade as stairs
from rankwright.toolbox.engine import packed
from rankwright.toolbox.engine.cascade import Cascade, joined, survivors
from rankwright.toolbox.exits import ExitHead
from rankwright.toolbox.lists import Lists
from rankwright.toolbox.model import Reranker

from .conftest import WORDS, tiny_bert


def groups(count, seed=0):
    """Groups in which the document with the word apple is relevant."""
    rng = np.random.default_rng(seed)
    texts = [[" ".join([*rng.choice(WORDS[3:], 3), end]) for end in ("apple", "boat", "red")] for _ in range(count)]
    queries = [" ".join(rng.choice(WORDS, 3)) for _ in range(count)]
    origins = ["positive", "mined", "mined"]
    return [
        Group(f"q{n}", query, [f"d{n}-{place}" for place in range(3)], own, [1, 0, 0], [0.9, 0.1, 0.1], origins)
        for n, (query, own) in enumerate(zip(queries, texts, strict=True))
    ]


def run(folder, base, **options):
    plain = {"loss": "listwise", "learning_rate": 3e-3, "batch": 4, "max_length": 32, "precision": "fp32"}
    section = Training(**{**plain, "dev": None, "keep": "last", "epochs": 2, **options})
    return train(groups(32), section, base=base, dev=None, bench=Workbench(folder, device="cpu", seed=5))


def state(folder):
    return Reranker.load(folder, device="cpu").model.state_dict()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("models") / "lively", labels=1, spread=0.15)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A model with an exit after the first of its two layers."""
    return run(tmp_path_factory.mktemp("trained"), base, exit=1).model


@pytest.fixture(scope="module")
def reranker(trained):
    return Reranker.load(trained, device="cpu", max_length=32)


def lists_of_pairs(widths, seed=1):
    rng = np.random.default_rng(seed)
    queries = [f"{WORDS[number]} {number}" for number in range(len(widths))]
    return [
        (query, " ".join(rng.choice(WORDS, rng.integers(1, 12))))
        for query, width in zip(queries, widths, strict=True)
        for _ in range(width)
    ]


def slices(widths):
    ends = np.cumsum(widths)
    return [slice(int(end - width), int(end)) for end, width in zip(ends, widths, strict=True)]


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("options", [{}, {"lora": LoraSection(rank=2, alpha=4), "gradient_checkpointing": True}])
def test_a_model_trained_with_an_exit_is_bit_for_bit_the_one_without(base, tmp_path, options):
    with_exit, without = run(tmp_path / "a", base, exit=1, **options), run(tmp_path / "b", base, **options)
    found, expected = state(with_exit.model), state(without.model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["classifier.weight"], state(base)["classifier.weight"])
    assert (with_exit.model / exits.FILE).exists()
    assert not (without.model / "exit").exists()


def test_the_head_learns_to_order_as_the_model_does(trained, reranker):
    unseen = [(group.query, text) for group in groups(40, seed=9) for text in group.documents]
    own, logits = Cascade(reranker.model, ExitHead.read(trained))(
        reranker.encoder(unseen), [slice(0, len(unseen))], 1, np.inf
    )
    best = own.reshape(-1, 3).argmax(1) == logits.reshape(-1, 3).argmax(1)
    assert best.mean() > 0.8


def test_a_training_with_an_exit_goes_on_bit_for_bit(base, trained, tmp_path, monkeypatch):
    step, calls = room._Loop._step, []

    def stopped(loop):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        step(loop)

    monkeypatch.setattr(room._Loop, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, base, exit=1)
    resumed = run(tmp_path, base, exit=1).model
    assert 6 < len(calls) < 7 + 16  # not from the beginning
    np.testing.assert_array_equal(ExitHead.read(resumed).weight, ExitHead.read(trained).weight)
    assert ExitHead.read(trained).weight.std() > 0
    assert all(
        torch.equal(one, other) for one, other in zip(state(resumed).values(), state(trained).values(), strict=True)
    )


def test_the_tap_gives_each_pairs_mean_after_the_layer_in_the_order_asked_for(reranker):
    from rankwright.toolbox.engine.forward import forward_tokens

    pairs = lists_of_pairs([5])
    tap = packed.Tap(1)
    reranker.model.eval()
    forward_tokens(
        reranker.model, reranker.encoder(pairs), pad_id=reranker.pad_id, device="cpu", precision="fp32", tap=tap
    )
    for row, (query, document) in zip(tap.rows[0], pairs, strict=True):
        encoded = reranker.tokenizer(query, document, return_tensors="pt")
        expected = reranker.model.bert(**encoded, output_hidden_states=True).hidden_states[1][0].mean(0)
        torch.testing.assert_close(row, expected.detach(), atol=1e-5, rtol=0)
    assert not tap.rows[0].requires_grad


def test_an_exit_that_the_model_cannot_have_is_a_config_error(base, tmp_path):
    from transformers import AutoModelForSequenceClassification, ElectraConfig

    with pytest.raises(ConfigError, match="2 is not between 1 and 1"):
        run(tmp_path, base, exit=2)
    electra = ElectraConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=1, num_labels=1)
    with pytest.raises(ConfigError, match="ElectraForSequenceClassification cannot stop"):
        exits.attach(AutoModelForSequenceClassification.from_config(electra), 1)


def test_a_damaged_head_is_a_model_error(trained, tmp_path):
    (tmp_path / exits.FILE).parent.mkdir()
    (tmp_path / exits.FILE).write_bytes((trained / exits.FILE).read_bytes()[:-5])
    with pytest.raises(ModelError, match="cannot be read"):
        ExitHead.read(tmp_path)


# ------------------------------------------------------------------------------------------------------------- scoring


def test_those_that_go_on_get_the_logit_of_all_layers_and_the_others_none(trained, reranker, monkeypatch):
    monkeypatch.setattr(stairs, "_TOKENS", 200)  # several bundles
    widths = [12, 3, 30, 1]
    pairs = lists_of_pairs(widths)
    cascade, tokens = Cascade(reranker.model, ExitHead.read(trained)), reranker.encoder(pairs)
    cascade._budget = 60  # several batches
    own, all_logits = cascade(tokens, slices(widths), 4, np.inf)
    np.testing.assert_allclose(all_logits, reranker.score(pairs), atol=1e-5)
    again, logits = cascade(tokens, slices(widths), 4, 0.0)
    np.testing.assert_allclose(again, own, atol=1e-6)
    expected = np.concatenate([survivors(own[one], 4, 0.0) for one in slices(widths)])
    np.testing.assert_array_equal(~np.isnan(logits), expected)
    assert expected.sum() == 4 + 3 + 4 + 1
    np.testing.assert_allclose(logits[expected], all_logits[expected], atol=1e-5)


def test_only_the_tokens_of_those_that_go_on_pass_the_later_layers(trained, reranker, monkeypatch):
    pairs = lists_of_pairs([30])
    cascade, tokens, seen = Cascade(reranker.model, ExitHead.read(trained)), reranker.encoder(pairs), []
    onward = packed.Packed.onward

    def counted(own, batch, hidden, layers):
        seen.append((len(hidden), layers))
        return onward(own, batch, hidden, layers)

    monkeypatch.setattr(packed.Packed, "onward", counted)
    _, logits = cascade(tokens, [slice(0, 30)], 5, 0.0)
    assert sum(count for count, _ in seen) == tokens.lengths[~np.isnan(logits)].sum() < tokens.lengths.sum() / 2
    assert {layer for _, layer in seen} == {1}


def test_the_candidates_that_stay_behind_stand_below_in_the_exits_order():
    own = np.array([0.1, 5.0, -2.0, 4.0, 0.2], dtype=np.float32)
    found = joined(own, np.array([np.nan, -1.0, np.nan, -9.0, np.nan], dtype=np.float32))
    assert np.argsort(-found).tolist() == [1, 3, 4, 0, 2]
    assert found[4] < found[3] == -9.0
    assert found[4] - found[2] == pytest.approx(2.2, abs=1e-5)


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 2), (1.0, 3), (np.inf, 4)])
def test_whoever_is_within_the_margin_of_the_last_place_kept_goes_on(margin, expected):
    assert survivors(np.array([1.0, 4.0, 3.0, 2.0]), 2, margin).sum() == expected


def made_lists(noise, seed=0, queries=40, width=50):
    """Lists whose logits follow the labels, and exits that follow the logits but for the noise."""
    rng = np.random.default_rng(seed)
    grades = (rng.random((queries, width)) < 0.1).astype(int)
    grades[:, 0] = 1
    ids = [[f"d{row}-{column}" for column in range(width)] for row in range(queries)]
    retrieved = Run(
        {f"q{row}": tuple((name, -float(place)) for place, name in enumerate(own)) for row, own in enumerate(ids)}
    )
    qrels = {f"q{row}": dict(zip(own, grades[row].tolist(), strict=True)) for row, own in enumerate(ids)}
    logits = 2.0 * grades + rng.normal(size=grades.shape)
    lists = Lists.of(retrieved, None, qrels)
    return cascaded.replace(lists, reranked=logits), logits + noise * rng.normal(size=logits.shape)


@pytest.mark.parametrize("tolerance", [0.0, 0.002, 0.02])
def test_the_margin_is_the_smallest_whose_loss_is_within_the_tolerance(tolerance):
    section = CascadeSection(tolerance=tolerance, keep=10)
    lists, own = made_lists(noise=1.0)
    full = measure(lists, own, 10, np.inf)
    margin = calibrate(lists, own, section)
    assert full - measure(lists, own, 10, margin) <= tolerance
    assert 0 < margin < np.inf
    losses = {tried: full - measure(lists, own, 10, tried) for tried in cascaded.margins(own, 10)}
    assert max(loss for tried, loss in losses.items() if tried >= margin) <= tolerance
    assert losses[max(tried for tried in losses if tried < margin)] > tolerance


def test_an_exit_that_agrees_lets_few_go_on_and_one_of_chance_lets_most():
    section = CascadeSection(tolerance=0.002)
    shares = []
    for noise in (0.0, 0.5, 30.0):
        lists, own = made_lists(noise)
        margin = calibrate(lists, own, section)
        shares.append(np.mean([survivors(row, 10, margin).mean() for row in own]))
    assert shares[0] == pytest.approx(0.2)
    assert shares[0] < shares[1] < 0.7 < 0.8 < shares[2]


def test_what_is_saved_counts_the_products_of_each_layer(trained, reranker):
    cascade = Cascade(reranker.model, ExitHead.read(trained))
    assert cascade.saved(1.0) == 0  # 2 layers, intermediate is twice hidden: 8 + 3 products, of which 3 can be saved
    assert cascade.saved(0.25) == pytest.approx(0.75 * 3 / 11)


# -------------------------------------------------------------------------------------------------------- cached, stage


def dev_of(widths, seed=3):
    pairs, runs, qrels, texts, queries = lists_of_pairs(widths, seed), {}, {}, {}, {}
    for number, one in enumerate(slices(widths)):
        own = {f"d{number}-{place}": text for place, (_, text) in enumerate(pairs[one])}
        texts |= own
        queries[f"q{number}"] = pairs[one][0][0]
        runs[f"q{number}"] = tuple((name, -float(place)) for place, name in enumerate(own))
        qrels[f"q{number}"] = dict.fromkeys(list(own)[:2], 1)
    return pairs, Collection(texts, queries, {"dev": qrels}), Run(runs), qrels


def scorer_of(trained, cache):
    section = CascadeSection(keep=3, tolerance=0.01)
    return CascadeScorer(trained, ExitHead.read(trained), section, cache=cache, device="cpu", max_length=32)


def test_a_second_scorer_computes_nothing_and_says_the_same(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(cascaded, "_CHUNK", 20)
    pairs, collection, dev, qrels = dev_of([9, 15, 2, 11])
    first = scorer_of(trained, tmp_path)
    calibrated = first.calibrate(collection, dev, qrels, what="dev")
    others = lists_of_pairs([14, 6], seed=8)
    scores = first(others)
    assert calibrated.loss <= 0.01
    assert "of dev's candidates go on" in calibrated.said()
    monkeypatch.setattr(Cascade, "__call__", lambda *_: pytest.fail("it is known already"))
    second = scorer_of(trained, tmp_path)
    assert second.calibrate(collection, dev, qrels, what="dev") == calibrated
    np.testing.assert_array_equal(second(others), scores)
    np.testing.assert_array_equal(second(pairs)[:9], first(pairs)[:9])


def test_a_scorer_that_was_not_calibrated_refuses(trained, tmp_path):
    with pytest.raises(ValueError, match="calibrated"):
        scorer_of(trained, tmp_path)(lists_of_pairs([3]))


@pytest.mark.parametrize("other", [{"both_orders": True}, {"dev_queries": 0}])
def test_a_cascade_without_lists_or_dev_is_refused(other):
    with pytest.raises(ValueError, match="a cascade"):
        RerankSection(cascade=CascadeSection(), **other)


def plain(experiment, other, **options):
    """One training, and a reranker from outside as another arm."""
    for name in ("merge", "general", "diagnose", "verdict", "report"):
        experiment[name] = None
    tuned = experiment["train"]["finetuned"]
    experiment["train"] = {"finetuned": {**tuned, "base": str(other), "epochs": 1, **options}}
    experiment["rerank"] = {"depth": 10, "arms": {"other": str(other), "tuned": "finetuned"}}
    experiment["rerank"]["cascade"] = {"keep": 3, "tolerance": 0.05}
    return experiment


def test_the_stage_measures_the_cascade_on_dev_prints_it_and_scores_other_arms_in_full(tiny_experiment, base, tmp_path):
    rankwright.run(plain(tiny_experiment, base, exit=1), runs=tmp_path)
    out = tmp_path / "tiny" / "rerank"
    found = json.loads((out / "cascade.json").read_text())
    assert found.keys() == {"tuned"}
    assert found["tuned"]["loss"] <= 0.05
    assert 0.3 <= found["tuned"]["share"] <= 1
    precision = json.loads((out / "precision.json").read_text())
    assert "cascade after layer 1" in precision["tuned"]["why"]
    assert "cascade" not in precision["other"]["why"]


def test_a_cascade_without_any_exit_head_is_a_config_error(tiny_experiment, base, tmp_path):
    with pytest.raises(ConfigError, match="no arm's model has an exit head"):
        rankwright.run(plain(tiny_experiment, base), runs=tmp_path)


def test_where_the_base_was_kept_there_is_no_exit_and_all_is_scored_in_full(tiny_experiment, base, tmp_path):
    experiment = plain(tiny_experiment, base, exit=1, learning_rate=1e-30)  # no step ranks dev better
    result = rankwright.run(experiment, runs=tmp_path)
    assert not (tmp_path / "tiny/train/finetuned/model/exit").exists()
    assert json.loads((tmp_path / "tiny/rerank/cascade.json").read_text()) == {}
    lines = {outcome.stage: outcome.lines for outcome in result.outcomes}
    assert "no cascade: the trainings with an exit kept their base, which has none" in lines["rerank"]


def test_what_dev_does_not_allow_is_said():
    forbids = Calibrated(1, 10, 0.002, np.inf, 1.0, 0.5, 0.0)
    assert not forbids.allows
    assert "no cascade: dev loses more than 0.002" in forbids.said()
    assert replace(forbids, margin=0.5).allows
