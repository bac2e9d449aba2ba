"""Training: it learns, keeps what ranks best, falls back when it collapses, and goes on as if never stopped."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rankwright.core import Collection, Group, Run
from rankwright.errors import ConfigError, DataError, ModelError
from rankwright.rooms import train as room
from rankwright.rooms.train import DevSet, Workbench, train
from rankwright.sections import DevSection, LoraSection, SampleSection, Training, read_memory
from rankwright.toolbox import checkpoint, device, grouped
from rankwright.toolbox.grouped import pad_groups
from rankwright.toolbox.model import Reranker
from rankwright.toolbox.schedule import Schedule, count_pairs
from rankwright.toolbox.trainable import parameter_groups, with_lora
from rankwright.toolbox.traininglog import TrainingLog

WORDS = "red green blue pear plum car train array matrix linear graph node value fast slow big old"


def groups(count, seed=0, widths=(3, 5)):
    """Groups that can be learnt: a document with the word apple is relevant, others are not. The teacher knows."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        width = int(rng.integers(widths[0], widths[1] + 1))
        labels = [1, *([0] * (width - 1))]
        texts = [" ".join([*rng.choice(WORDS.split(), 3), "apple" if label else "boat"]) for label in labels]
        query = " ".join(rng.choice(WORDS.split(), 3))
        ids = [f"d{number}-{place}" for place in range(width)]
        teacher = [0.5 * label + 0.1 * rng.random() for label in labels]
        origins = ["positive" if label else "mined" for label in labels]
        made.append(Group(f"q{number}", query, ids, texts, labels, teacher, origins))
    return made


def dev_set(seed=100, metric="mrr@10", *, best_first=False):
    """A dev set of the same kind; `best_first` puts each relevant document before the others."""
    ids, pairs, qrels = [], [], {}
    for group in groups(12, seed, widths=(6, 6)):
        order = range(6) if best_first else [3, 1, 5, 0, 2, 4]
        qrels[group.query_id] = {group.document_ids[0]: 1}
        for place in order:
            ids.append((group.query_id, f"{group.query_id}:{(place * 5 + 2) % 6}:{group.document_ids[place]}"))
            pairs.append((group.query, group.documents[place]))
            if place == 0:
                qrels[group.query_id] = {ids[-1][1]: 1}
    return DevSet(pairs, ids, qrels, metric)


DEV = DevSection(metric="mrr@10", evaluations=2, patience=None)


def section(**options):
    plain = {
        "loss": "listwise",
        "learning_rate": 3e-3,
        "batch": 4,
        "max_length": 32,
        "precision": "fp32",
        "dev": None,
        "keep": "last",
        "checkpoints": 2,
    }
    return Training(**{**plain, **options})


def watched(**options):
    return section(**{"dev": DEV, "keep": "best", **options})


def run(made, training, base, folder, dev=None, **options):
    return train(made, training, base=base, dev=dev, bench=Workbench(folder, device="cpu", **options))


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder):
    return [record["loss"] for record in log(folder) if "loss" in record]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(first, second):
    """Whether two sets of weights are equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_close(first, second):
    """Two sets of weights are equal within 1e-5, but for those whose gradient is 0 in theory and noise in practice.

    Softmax over a group does not feel the head's bias, nor attention that of its keys; Adam makes steps of the noise.
    Elsewhere too an element whose gradient nearly vanishes may differ: one in a thousand, by 3% of a step of 3e-3.
    """
    assert first.keys() == second.keys()
    for name in first:
        if not name.endswith(("key.bias", "classifier.bias")):
            torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=0)
            apart = (first[name] - second[name]).abs() > 1e-5
            assert int(apart.sum()) <= math.ceil(apart.numel() / 1000), name


@pytest.fixture(scope="module")
def still(lively_encoder, tmp_path_factory):
    """The lively encoder without dropout."""
    folder = shutil.copytree(lively_encoder, tmp_path_factory.mktemp("models") / "still")
    config = json.loads((folder / "config.json").read_text())
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps({**config, **without}))
    return folder


@pytest.fixture(scope="module")
def learnt(lively_encoder, tmp_path_factory):
    """A training that went well: (its folder, what came of it)."""
    folder = tmp_path_factory.mktemp("learnt") / "good"
    return folder, run(groups(64), watched(epochs=2), lively_encoder, folder, dev_set())


# -------------------------------------------------------------------------------------------------- learning


def test_the_loss_goes_down_and_the_dev_metric_up(learnt):
    folder, trained = learnt
    told = losses_of(folder)
    assert len(told) == trained.steps == trained.planned == 32
    assert np.mean(told[-8:]) < 0.5 * np.mean(told[:4])
    assert trained.dev > trained.dev_before + 0.2
    assert trained.dev > 0.9
    assert f"dev {trained.dev_before:.4f} -> {trained.dev:.4f}" in trained.lines()[0]


def test_the_saved_model_is_the_one_that_ranks_dev_best(learnt):
    folder, trained = learnt
    told = {record["step"]: record["dev"]["mrr@10"] for record in log(folder) if "dev" in record}
    assert list(told) == [0, 8, 16, 24, 32]
    assert trained.dev == max(told.values())
    assert trained.kept_step == max(told, key=lambda step: (told[step], -step))  # of equals, the first
    again = dev_set().measure(Reranker.load(trained.model, device="cpu").score)
    assert again == pytest.approx(trained.dev, abs=1e-9)


def test_a_training_that_only_harms_gives_the_base_back(learnt, tmp_path):
    good = learnt[1].model
    wrong = [replace(group, labels=[0, 0, *group.labels[2:-1], 1]) for group in groups(16, seed=5)]
    trained = run(wrong, watched(learning_rate=2e-2, epochs=3), good, tmp_path, dev_set())
    assert trained.kept_step == 0
    assert trained.dev == trained.dev_before
    assert same(weights(trained.model), weights(good))


def test_an_absurd_learning_rate_gives_the_base_back_whatever_becomes_of_the_weights(learnt, tmp_path):
    good = learnt[1].model
    trained = run(groups(24), watched(learning_rate=1e30, warmup=0, clip=None), good, tmp_path, dev_set())
    assert trained.kept_step == 0
    assert same(weights(trained.model), weights(good))


def test_keep_last_keeps_the_last_step(learnt, tmp_path):
    wrong = [replace(group, labels=[0, *group.labels[1:-1], 1]) for group in groups(16, seed=5)]
    trained = run(wrong, watched(keep="last"), learnt[1].model, tmp_path, dev_set())
    assert trained.kept_step == trained.steps == 4
    assert trained.dev is None
    assert not same(weights(trained.model), weights(learnt[1].model))


def test_training_stops_early_when_dev_gets_no_better(learnt, tmp_path):
    dev = DEV.model_copy(update={"patience": 2, "evaluations": 4})
    trained = run(groups(64), watched(dev=dev, learning_rate=1e-9), learnt[1].model, tmp_path, dev_set())
    assert (trained.steps, trained.planned) == (8, 16)
    assert any("stopped at step 8" in note for note in trained.notes)


def test_steps_are_those_of_a_plain_loop_of_torch_and_transformers(still, tmp_path):
    """Three steps over ragged groups, against a loop that knows nothing of rankwright's batching."""
    made = groups(6)
    training = section(batch=2, warmup=0.4, weight_decay=0.1, clip=0.5, seed=3)
    trained = run(made, training, still, tmp_path)
    reranker = Reranker.start(still, seed=3, device="cpu", max_length=32)
    model = reranker.model.train()
    words = model.get_input_embeddings()
    before = words.weight.detach().clone()
    texts = [text for group in made for text in (group.query, *group.documents)]
    occurring = {
        *reranker.tokenizer.all_special_ids,
        *(id for ids in reranker.tokenizer(texts).input_ids for id in ids),
    }
    others = [id for id in range(len(before)) if id not in occurring]
    named = list(model.named_parameters())
    decayed = [p for _, p in named if p.ndim > 1]
    plain = [{"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([{"params": decayed}, *plain], lr=1.0, weight_decay=0.1)
    order = np.random.default_rng([3, 0]).permutation(6)
    for step, rate in enumerate([1.0, 1.0, 0.5]):  # a warm-up of one step, then 2 steps down to 0
        total = torch.zeros(())
        for place in order[2 * step : 2 * step + 2]:
            group = made[place]
            pairs = reranker.tokenizer([group.query] * len(group), group.documents, padding=True, return_tensors="pt")
            total = total - model(**pairs).logits[:, 0].log_softmax(0)[0] / 2
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for parameters in optimizer.param_groups:
            parameters["lr"] = 3e-3 * rate
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # words that do not occur are not decayed
            words.weight[others] = before[others]
        assert losses_of(tmp_path)[step] == pytest.approx(float(total.detach()), abs=1e-5)
    assert_close(weights(trained.model), dict(model.state_dict()))


# ------------------------------------------------------------------------------------------- plans and steps


def test_small_batches_accumulated_are_one_large_batch(still, tmp_path):
    made = groups(19)  # the last step has 3 groups: an uneven micro-batch
    whole = run(made, section(batch=8), still, tmp_path / "whole")
    parts = run(made, section(batch=4, accumulate=2), still, tmp_path / "parts")
    assert whole.steps == parts.steps == 3
    assert np.allclose(losses_of(tmp_path / "whole"), losses_of(tmp_path / "parts"), atol=1e-6)
    assert_close(weights(whole.model), weights(parts.model))


def test_the_micro_batch_changes_neither_loss_nor_gradient(still, tmp_path, monkeypatch):
    """One step of 7 ragged groups: whole, and in parts of every size."""
    made, found = groups(7), {}
    monkeypatch.setattr(room.TrainingLog, "to_tensorboard", lambda self: None)
    for size in (7, 4, 2, 1):
        monkeypatch.setattr(room.footprint, "choose", lambda *_, **__: room.footprint.Choice(size, False, 1.0, True))  # noqa: B023
        loop = room._Loop(made, section(batch=7, clip=None), still, None, Workbench(tmp_path / str(size), device="cpu"))
        loop._prepare()
        loop._go_on_or_begin()
        loss, parts = loop._gradients(made, [False] * 7)
        assert len(parts) == math.ceil(7 / size)
        found[size] = (loss, [p.grad.clone() for p in loop._bare().parameters() if p.grad is not None])
        loop.active.close()
    for loss, gradients in found.values():
        assert loss == pytest.approx(found[7][0], abs=1e-6)
        assert len(gradients) == len(found[7][1])
        for one, other in zip(gradients, found[7][1], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("free", "expected"), [(10**9, "8 of 8 queries at a time:"), (500_000, "2 of 8 queries")])
def test_a_micro_batch_is_as_large_as_memory_allows_and_is_told(still, tmp_path, monkeypatch, free, expected):
    monkeypatch.setattr(room.footprint, "room", lambda *_: free)
    trained = run(groups(8, widths=(4, 4)), section(batch=8), still, tmp_path)
    assert trained.steps == 1
    assert any(expected in note for note in trained.notes)


def test_a_budget_without_room_for_one_group_checkpoints_layers_warns_and_trains(still, tmp_path):
    trained = run(groups(8), section(batch=4, memory="0.3MB"), still, tmp_path / "small")
    (note,) = [note for note in trained.notes if "warning" in note]
    assert "1 of 4 queries at a time, layers computed anew" in note
    assert "memory: 0.3MB" in note
    whole = run(groups(8), section(batch=4), still, tmp_path / "whole")
    assert losses_of(tmp_path / "small") == pytest.approx(losses_of(tmp_path / "whole"), abs=1e-6)
    assert_close(weights(trained.model), weights(whole.model))


@pytest.mark.parametrize(
    ("text", "expected"), [("auto", None), ("4GB", 4e9), ("0.5 GB", 5e8), ("500MB", 5e8), (" 2 GB ", 2e9)]
)
def test_a_memory_budget_is_read(text, expected):
    assert read_memory(section(memory=text).memory) == expected


@pytest.mark.parametrize("text", ["4", "much", "0GB", "-1GB", "4 TB", "4gb", ""])
def test_a_memory_budget_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="memory is auto, or an amount"):
        section(memory=text)


def test_all_texts_are_encoded_once_before_the_first_step(still, tmp_path, monkeypatch):
    calls, encode = [], grouped.PairEncoder.__call__
    monkeypatch.setattr(grouped.PairEncoder, "__call__", lambda self, pairs: calls.append(pairs) or encode(self, pairs))
    made, dev = groups(8), dev_set()
    run(made, watched(epochs=2, both_orders=True), still, tmp_path, dev)
    (pairs,) = calls
    asked = {(group.query, document) for group in made for document in group.documents}
    assert Counter(pairs) == Counter(asked | {(second, first) for first, second in asked} | set(dev.pairs))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tokens_score_as_the_tokenizers_own_pairs_do(learnt, precision):
    reranker, pairs = Reranker.load(learnt[1].model, device="cpu"), dev_set().pairs
    texts = grouped.TextTokens(reranker.tokenizer, 32, pairs)
    with torch.inference_mode():
        chosen = [pairs[place] for place in (5, 0, 7, 5)]
        logits = room.forward_tokens(reranker.model, texts.of(chosen), pad_id=0, device="cpu", precision=precision)
    close = 1e-5 if precision == "fp32" else 0.1
    np.testing.assert_allclose(logits.numpy(), reranker.score(chosen), atol=close)
    assert logits.dtype == torch.float32


def test_the_longest_draw_of_a_group_is_what_may_have_to_fit(still):
    made = groups(3, widths=(5, 5))
    made[0] = replace(made[0], documents=["red", "red green blue", *made[0].documents[2:]])
    texts = grouped.TextTokens(
        Reranker.start(still, seed=0, device="cpu").tokenizer, 32, room.pairs_of(made, [False] * 3)
    )
    whole = grouped.longest_draws(texts, made, None)
    drawn = grouped.longest_draws(texts, made, SampleSection(positives=1, negatives=2))
    assert [lengths.tolist() for lengths in whole] == [[7, 9, 10, 10, 10], [10] * 5, [10] * 5]
    assert [lengths.tolist() for lengths in drawn] == [[10] * 3] * 3


@pytest.fixture
def cramped(monkeypatch):
    """Run out of memory in any forward pass of training with gradients over more than so many pairs."""

    def arrange(most, *, until=10**9):
        forward, calls = room.forward_tokens, Counter()

        def limited(model, tokens, **options):
            calls["all"] += torch.is_grad_enabled()
            logits = forward(model, tokens, **options)  # dropout has drawn by then
            if torch.is_grad_enabled() and calls["all"] > 4 and len(tokens) > most and calls["all"] <= until:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return logits

        monkeypatch.setattr(room, "forward_tokens", limited)

    return arrange


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(still, tmp_path, cramped):
    made = groups(16, widths=(4, 4))
    whole = run(made, section(batch=8), still, tmp_path / "whole")
    cramped(9)
    parts = run(made, section(batch=8), still, tmp_path / "parts")
    told = [note for note in parts.notes if "out of memory" in note]
    assert ["4 groups at a time" in note for note in told] == [True, False]
    assert "2 groups at a time" in told[1]
    assert parts.steps == whole.steps == 2
    assert losses_of(tmp_path / "parts") == pytest.approx(losses_of(tmp_path / "whole"), abs=1e-6)
    assert_close(weights(parts.model), weights(whole.model))


def test_a_step_begun_anew_draws_the_same_dropout(lively_encoder, tmp_path, cramped, monkeypatch):
    monkeypatch.setattr(room.footprint, "halved", lambda groups: groups)  # the same size again, which then has room
    made = groups(4, widths=(4, 4))
    whole = run(made, section(), lively_encoder, tmp_path / "whole")
    cramped(9, until=5)
    again = run(made, section(), lively_encoder, tmp_path / "again")
    assert any("out of memory" in note for note in again.notes)
    assert same(weights(again.model), weights(whole.model))


def test_one_group_without_room_checkpoints_layers_and_then_is_an_error(still, tmp_path, cramped):
    cramped(0)
    with pytest.raises(ModelError, match=r"out of memory[\s\S]*max_length"):
        run(groups(4), section(), still, tmp_path)


def test_an_error_that_is_not_about_memory_is_passed_on(still, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(room._Loop, "_accumulated", failing)
    with pytest.raises(RuntimeError, match="shapes"):
        run(groups(4), section(), still, tmp_path)


def test_a_training_that_goes_on_keeps_its_micro_batch_whatever_memory_is_free(still, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(room.footprint, "free_bytes", lambda device: 0)
        killed_at(patch, room._Loop, "_step", 2)
        with pytest.raises(Killed):
            run(groups(8), section(), still, tmp_path)
    state = json.loads((checkpoint.newest(tmp_path / "checkpoints") / "state.json").read_text())
    assert (state["micro"], state["checkpointing"]) == (1, True)
    sizes = []
    forward = room._Loop._forward
    monkeypatch.setattr(
        room._Loop, "_forward", lambda self, made, *rest: sizes.append(len(made)) or forward(self, made, *rest)
    )
    run(groups(8), section(), still, tmp_path)
    assert set(sizes) == {1}


def test_a_training_that_goes_on_with_less_memory_than_before_takes_smaller_parts(still, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(patch, room._Loop, "_step", 2)
        with pytest.raises(Killed):
            run(groups(8), section(), still, tmp_path)
    sizes = []
    forward = room._Loop._forward
    monkeypatch.setattr(
        room._Loop, "_forward", lambda self, made, *rest: sizes.append(len(made)) or forward(self, made, *rest)
    )
    run(groups(8), section(memory="0.3MB"), still, tmp_path)
    assert max(sizes) < 4


def test_words_that_no_text_uses_keep_their_embeddings_and_checkpoints_hold_only_the_others(
    still, tmp_path, monkeypatch
):
    from safetensors.torch import load_file

    name, seen, save = "bert.embeddings.word_embeddings.weight", [], checkpoint.save

    def watching(folder, step, model, optimizer, *others):
        save(folder, step, model, optimizer, *others)
        held = load_file(checkpoint.newest(folder) / "weights.safetensors")[name]
        moments = [state["exp_avg"].shape for state in optimizer.state_dict()["state"].values()]
        seen.append((held.shape, held.shape in moments, (116, 32) in moments))

    monkeypatch.setattr(checkpoint, "save", watching)
    trained = run(groups(8), section(weight_decay=0.1), still, tmp_path)
    assert seen[-1] == ((24, 32), True, False)
    before, after = weights(still)[name.removeprefix("bert.")], weights(trained.model)[name]
    assert int((before != after).any(1).sum()) == 23  # 24 but for the padding's row: no gradient, yet


def plan(count=100, **options):
    training = section(**options)
    return Schedule.of(count, training, pairs=5 * count, watching=training.dev is not None), training


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5, 1.0, *[1.0] * 8]),
        ("cosine", [0.5, 1.0, *[0.5 + 0.5 * math.cos(math.pi * place / 8) for place in range(8)]]),
    ],
)
def test_the_schedule_is_the_one_worked_out_by_hand(schedule, expected):
    made, training = plan(40, schedule=schedule, warmup=0.2)
    assert made.steps == 10
    assert [made.rate(step, training) for step in range(10)] == pytest.approx(expected)


def test_without_a_warm_up_the_first_step_has_the_full_rate():
    made, training = plan(40, warmup=0)
    assert made.rate(0, training) == 1.0


def test_the_log_holds_the_learning_rate_of_each_step(still, tmp_path):
    training = section(warmup=0.5, learning_rate=1e-3)
    run(groups(16), training, still, tmp_path)
    assert [record["lr"] for record in log(tmp_path)] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])


@pytest.mark.parametrize(
    ("count", "options", "steps"),
    [
        (100, {}, 25),
        (101, {}, 26),
        (100, {"epochs": 2}, 50),
        (100, {"epochs": 0.5}, 12),
        (100, {"epochs": 0.001}, 1),
        (100, {"max_steps": 7}, 7),
        (100, {"max_steps": 700}, 25),
        (100, {"accumulate": 3}, 9),
        (1, {}, 1),
        (1, {"epochs": 3}, 3),
    ],
)
def test_epochs_steps_and_accumulation_make_so_many_steps(count, options, steps):
    assert plan(count, **options)[0].steps == steps


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_pairs": 20}, 1),  # groups of 5 pairs, 4 groups a step
        ({"max_pairs": 21}, 2),
        ({"max_pairs": 1}, 1),
        ({"max_pairs": 1000, "epochs": 0.01}, 50),
        ({"max_pairs": 200, "epochs": 7}, 10),
        ({"max_pairs": 200, "accumulate": 2}, 6),  # an epoch is 12.5 steps of 8 groups: 13, of 38.5 pairs on average
        ({"max_pairs": 200, "max_steps": 3}, 3),
    ],
)
def test_max_pairs_decides_the_steps_and_epochs_is_ignored(options, steps):
    assert plan(100, **options)[0].steps == steps


@pytest.mark.parametrize("sample", [None, SampleSection(positives=1, negatives=2)])
def test_with_max_pairs_recipes_see_about_the_same_number_of_pairs(sample):
    everything = groups(10, widths=(3, 9))
    training = section(max_pairs=300, sample=sample)
    made = Schedule.of(10, training, pairs=count_pairs(everything, sample), watching=False)
    seen = [sum(map(len, made.groups_of(step, everything, training, 0))) for step in range(made.steps)]
    assert sum(seen) == pytest.approx(300, abs=1.5 * max(seen))


def test_the_pairs_of_an_epoch_are_counted_as_they_are_drawn():
    few, many = groups(1, widths=(2, 2))[0], groups(1, widths=(9, 9))[0]
    twice = replace(many, labels=[1, 1, *[0] * 7])
    assert count_pairs([few, many, twice], None) == 2 + 9 + 9
    assert count_pairs([few, many, twice], SampleSection(positives=2, negatives=4)) == 2 + 5 + 6


def swaps(made, training, epoch, seed=0):
    """Group -> whether it is swapped, in one epoch of 100 groups, 25 steps."""
    everything, found = groups(100), {}
    for step in range(25 * epoch, 25 * epoch + 25):
        chosen = made.groups_of(step, everything, training, seed)
        swapped = made.swaps_of(step, training, seed)
        found |= {group.query_id: turned for group, turned in zip(chosen, swapped, strict=True)}
    return found


def test_both_orders_swap_a_seeded_half_of_the_groups_another_in_every_epoch():
    made, training = plan(100, epochs=2, both_orders=True)
    first, second, other = swaps(made, training, 0), swaps(made, training, 1), swaps(made, training, 0, seed=1)
    assert all(35 <= sum(found.values()) <= 65 for found in (first, second, other))
    assert first != second
    assert first != other
    assert first == swaps(made, training, 0)
    assert not any(swaps(*plan(100), 0).values())


def test_a_swapped_group_is_read_as_document_and_query_and_mining_stays_as_it_was(still, tmp_path, monkeypatch):
    read, of = [], room.TextTokens.of
    monkeypatch.setattr(room.TextTokens, "of", lambda self, pairs: read.append(pairs) or of(self, pairs))
    made = groups(8)
    run(made, section(both_orders=True, batch=2, accumulate=2), still, tmp_path)
    asked, turned = {group.query: group for group in made}, Counter()
    for first, second in (pair for pairs in read for pair in pairs):
        turned[second in asked] += 1
        assert (first in asked[second].documents) if second in asked else (second in asked[first].documents)
    assert turned.total() == sum(map(len, made))
    assert min(turned[True], turned[False]) > 0
    assert made == groups(8)


def test_every_epoch_sees_every_group_once_in_an_order_of_its_own():
    made, training = plan(10, epochs=3)
    everything = groups(10)
    orders = []
    for epoch in range(3):
        seen = [made.groups_of(epoch * 3 + step, everything, training, 0) for step in range(3)]
        assert [len(step) for step in seen] == [4, 4, 2]
        orders.append([group.query_id for step in seen for group in step])
        assert sorted(orders[-1]) == sorted(group.query_id for group in everything)
    assert len({tuple(order) for order in orders}) == 3
    assert [group.query_id for group in made.groups_of(0, everything, training, 1)] != orders[0][:4]


def test_evaluations_and_checkpoints_are_spread_evenly_and_end_with_the_last_step():
    made, _ = plan(100, dev=DevSection(evaluations=4), checkpoints=1)
    assert sorted(made.evaluations) == [6, 12, 19, 25]
    assert made.checkpoints >= made.evaluations
    twice, _ = plan(100, epochs=2, dev=DevSection(evaluations=4))
    assert len(twice.evaluations) == 8
    few, _ = plan(8, dev=DevSection(evaluations=4))
    assert sorted(few.evaluations) == [1, 2]
    blind, _ = plan(100, dev=None, checkpoints=2)
    assert not blind.evaluations
    assert sorted(blind.checkpoints) == [12, 25]


def test_sample_draws_anew_in_every_epoch_and_keeps_labels_beside_documents():
    (group,) = groups(1, widths=(9, 9))
    group = replace(group, labels=[1, 1, 1, *[0] * 6], weights=[1.0, 1.0, 1.0, *(place / 8 for place in range(6))])
    made, training = plan(1, epochs=20, sample=SampleSection(positives=2, negatives=3))
    drawn = [made.groups_of(step, [group], training, 0)[0] for step in range(20)]
    known = zip(group.labels, group.documents, group.teacher, group.weights, strict=True)
    truth = dict(zip(group.document_ids, known, strict=True))
    for each in drawn:
        assert Counter(each.labels) == {1: 2, 0: 3}
        assert len(set(each.document_ids)) == 5
        for place, document in enumerate(each.document_ids):
            own = (each.labels[place], each.documents[place], each.teacher[place], each.weights[place])
            assert truth[document] == own
    assert len({tuple(each.document_ids) for each in drawn}) > 10
    assert {document for each in drawn for document in each.document_ids} == set(group.document_ids)
    assert drawn == [made.groups_of(step, [group], training, 0)[0] for step in range(20)]


def test_sample_takes_all_there_is_where_a_group_has_less():
    (group,) = groups(1, widths=(3, 3))
    made, training = plan(1, sample=SampleSection(positives=2, negatives=7))
    (drawn,) = made.groups_of(0, [group], training, 0)
    assert list(drawn.document_ids) == list(group.document_ids)


def test_ragged_groups_are_laid_out_with_a_mask():
    made = [replace(group, labels=[2, *[0] * (len(group) - 1)]) for group in groups(3, widths=(2, 4))]
    flat = torch.arange(sum(map(len, made)), dtype=torch.float32, requires_grad=True)
    made[0] = replace(made[0], weights=[1.0, *[0.25] * (len(made[0]) - 1)])
    scores, labels, mask, teacher, weights = pad_groups(made, flat)
    assert mask.sum(-1).tolist() == [len(group) for group in made]
    for row, group in enumerate(made):
        there = mask[row]
        assert there[: len(group)].all()
        assert labels[row][there].tolist() == list(group.labels)
        assert teacher[row][there].tolist() == pytest.approx(list(group.teacher))
        assert weights[row][there].tolist() == list(group.weights)
        assert not labels[row][~there].any()
        assert teacher[row][~there].isnan().all()
    assert scores[mask].tolist() == flat.tolist()
    scores.sum().backward()
    assert flat.grad.tolist() == [1.0] * len(flat)


@pytest.mark.parametrize("loss", ["listwise", "bce", "ranknet", "lambda", "margin-mse", "kl"])
def test_every_loss_trains(still, tmp_path, loss):
    run(groups(8), section(loss=loss, epochs=6, warmup=0, schedule="constant"), still, tmp_path)
    told = losses_of(tmp_path)
    assert all(math.isfinite(value) for value in told)
    assert np.mean(told[-3:]) < 0.8 * np.mean(told[:2])


def test_losses_are_added_by_their_weights(still, tmp_path):
    first = {}
    for name, loss in {"a": "listwise", "b": "kl", "both": {"listwise": 2.0, "kl": 0.5}}.items():
        run(groups(4), section(loss=loss), still, tmp_path / name)
        first[name] = losses_of(tmp_path / name)[0]
    assert first["both"] == pytest.approx(2 * first["a"] + 0.5 * first["b"], rel=1e-5)


def test_unlabelled_groups_teach_the_teachers_order(lively_encoder, tmp_path):
    made = [replace(group, labels=[0] * len(group)) for group in groups(48)]
    training = watched(groups="unlabelled", loss="kl", epochs=2)
    trained = run(made, training, lively_encoder, tmp_path, dev_set())
    assert trained.dev > trained.dev_before + 0.2
    assert trained.fallbacks == 0


def test_a_single_group_is_enough(still, tmp_path):
    trained = run(groups(1), watched(epochs=2, dev=DEV), still, tmp_path, dev_set())
    assert trained.steps == 2
    assert trained.model.is_dir()


def test_no_group_is_an_error_that_says_where_groups_come_from(still, tmp_path):
    with pytest.raises(DataError, match=r"no groups[\s\S]*mine"):
        run([], section(), still, tmp_path)


def test_gradient_checkpointing_changes_nothing_but_memory(lively_encoder, tmp_path):
    for name, on in {"on": True, "off": False}.items():
        run(groups(12), section(gradient_checkpointing=on), lively_encoder, tmp_path / name)
    assert losses_of(tmp_path / "on") == pytest.approx(losses_of(tmp_path / "off"), abs=1e-6)


# ------------------------------------------------------------------------------- the served order and averages


def served(made):
    """A dev set whose served order is watched: the retriever puts each relevant document first."""
    documents = {id: text for group in made for id, text in zip(group.document_ids, group.documents, strict=True)}
    scores = {group.query_id: {id: -float(place) for place, id in enumerate(group.document_ids)} for group in made}
    qrels = {group.query_id: {group.document_ids[0]: 1} for group in made}
    collection = Collection(documents, {group.query_id: group.query for group in made}, {"dev": qrels})
    section = DEV.model_copy(update={"watch": "served"})
    return section, DevSet.of(collection, Run.from_scores(scores), section)


def test_a_training_watches_the_served_order(learnt, tmp_path):
    """Whatever becomes of the model, the best blend keeps the retriever's order; what is sure is its own."""
    section, dev = served(groups(16, seed=9, widths=(4, 4)))
    wrong = [replace(group, labels=[0, 0, *group.labels[2:-1], 1]) for group in groups(16, seed=5)]
    training = watched(dev=section, learning_rate=2e-2, epochs=3)
    trained = run(wrong, training, learnt[1].model, tmp_path / "bad", dev)
    told = [record for record in log(tmp_path / "bad") if "dev" in record]
    assert {(record["dev"]["mrr@10"], len(record["values"])) for record in told} == {(1.0, 16)}
    assert told[0]["alone"]["mrr@10"] > max(record["alone"]["mrr@10"] for record in told[1:]) + 0.2
    assert trained.kept_step == 0
    trained = run(groups(4), watched(dev=section, learning_rate=1e-9), learnt[1].model, tmp_path / "same", dev)
    assert trained.kept_step == trained.steps


@pytest.fixture(scope="module")
def mean_won(still, tmp_path_factory):
    """A training that is told its dev values: the mean of the last three is best. (folder, result, weights seen)"""
    folder, seen, words = tmp_path_factory.mktemp("mean") / "t", [], "bert.embeddings.word_embeddings.weight"
    table = weights(still)[words.removeprefix("bert.")]

    class Told(DevSet):
        def values(self, score):
            state = {name: tensor.clone() for name, tensor in loop._bare().state_dict().items()}
            whole = table.clone()
            whole[torch.from_numpy(loop.active.rows)] = state[words]
            seen.append(state | {words: whole})
            return np.array([[0.1, 0.3, 0.2, 0.2, 0.3, 0.2, 0.2, 0.4][len(seen) - 1]])

    made = dev_set()
    dev = Told(made.pairs, made.ids, made.qrels, made.metric)
    training = watched(epochs=3, average=3)
    loop = room._Loop(groups(16), training, still, dev, Workbench(folder, device="cpu"))
    return folder, loop.run(), seen


def averaged_record(folder):
    (record,) = [record for record in log(folder) if "average" in record]
    return record


def test_the_mean_of_the_last_weights_is_kept_where_dev_ranks_better(mean_won):
    folder, trained, seen = mean_won
    assert trained.averaged == (8, 10, 12)
    assert trained.dev == 0.4
    assert trained.lines() == ["12 of 12 steps; kept the mean of steps 8, 10, 12, dev 0.1000 -> 0.4000"]
    assert "kept the mean of steps 8, 10, 12 of 12 planned" in (folder / "model" / "README.md").read_text()
    kept = weights(trained.model)
    for name, tensor in kept.items():
        expected = sum(each[name] for each in seen[4:7]) / 3
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)
    assert not same(kept, {name: seen[6][name] for name in kept})


def test_an_averages_record_has_keys_of_its_own(mean_won):
    folder, _, _ = mean_won
    record = averaged_record(folder)
    assert record == {"step": 12, "averaged_dev": {"mrr@10": 0.4}, "average": 3, "kept": True, "values": [0.4]}
    assert [record["step"] for record in log(folder) if "dev" in record] == [0, 2, 4, 6, 8, 10, 12]


def test_only_the_last_weights_are_kept_on_disk(mean_won):
    kept = sorted(file.name for file in (mean_won[0] / "checkpoints").glob("recent-*"))
    assert kept == [f"recent-{step:06d}.safetensors" for step in (8, 10, 12)]


def test_a_mean_that_is_no_better_than_the_best_checkpoint_is_not_kept(learnt, tmp_path):
    training = watched(learning_rate=1e-9, average=2)
    trained = run(groups(16), training, learnt[1].model, tmp_path, dev_set())
    assert averaged_record(tmp_path)["kept"] is False
    assert trained.averaged == ()
    assert (trained.kept_step, trained.dev) == (0, trained.dev_before)
    assert same(weights(trained.model), weights(learnt[1].model))


def test_the_base_is_no_part_of_a_mean_and_one_evaluation_makes_none(still, tmp_path):
    dev = DEV.model_copy(update={"evaluations": 1})
    run(groups(8), watched(dev=dev, average=5), still, tmp_path, dev_set())
    assert not [record for record in log(tmp_path) if "average" in record]


@pytest.mark.parametrize("dev", [DEV, None])
def test_an_average_needs_dev_to_decide(dev):
    with pytest.raises(ValueError, match="average needs a dev section"):
        section(average=3, keep="last", dev=dev)


# ----------------------------------------------------------------------------------- the optimiser and LoRA


def rates_and_decays(model, training):
    """Name of each parameter -> (learning rate, weight decay), as the optimiser gets them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, training)
        for parameter in group["params"]
    }


def tiny_model(family):
    """A reranker of a family whose encoder's prefix or head is out of the ordinary."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(family, **shape, vocab_size=30, num_labels=1, pad_token_id=0)
    return AutoModelForSequenceClassification.from_config(config)


HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"],
}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", HEADS)
def test_the_head_has_its_own_rate_and_biases_and_norms_no_decay(family, lora):
    training = section(head_learning_rate=0.5, weight_decay=0.1, lora=LoraSection(rank=2) if lora else None)
    model = tiny_model(family)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    if lora:
        model = with_lora(model, training, 0)
        shapes = {name: p.ndim for name, p in model.named_parameters() if p.requires_grad}
    found = rates_and_decays(model, training)
    assert found.keys() == shapes.keys()
    for name, (rate, decay) in found.items():
        inner = name.removeprefix("base_model.model.")
        head = any(inner.startswith(f"{part}.") for part in HEADS[family])
        assert (rate == 0.5) == head, name
        assert (decay == 0.1) == (shapes[name] > 1), name


def test_without_a_rate_of_its_own_the_head_has_the_common_one():
    assert {rate for rate, _ in rates_and_decays(tiny_model("bert"), section()).values()} == {3e-3}


@pytest.mark.parametrize("family", HEADS)
def test_lora_trains_its_adapters_and_the_whole_head_and_nothing_else(family):
    model = tiny_model(family)
    head = {name for name, _ in model.named_parameters() if name.split(".")[0] in HEADS[family]}
    model = with_lora(model, section(lora=LoraSection(rank=2)), 0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    assert adapters
    rest = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name in trained - adapters
    }
    assert rest == head


@pytest.fixture(scope="module")
def adapted(lively_encoder, tmp_path_factory):
    """A LoRA training: (its result, the model in memory just before it was saved)."""
    folder = tmp_path_factory.mktemp("lora") / "lora"
    training = section(lora=LoraSection(rank=4, alpha=8), epochs=2, learning_rate=5e-3)
    loop = room._Loop(groups(24), training, lively_encoder, dev_set(), Workbench(folder, device="cpu"))
    finish, before = loop._finish, {}

    def scoring_first():
        before["scores"] = loop._score(dev_set().pairs)
        return finish()

    loop._finish = scoring_first
    return loop.run(), before["scores"]


def test_a_lora_model_is_saved_merged_with_its_trained_head(adapted, lively_encoder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    trained, scores = adapted
    assert np.ptp(scores) > 0.1
    names = set(weights(trained.model))
    assert not [name for name in names if "lora" in name or "modules_to_save" in name]
    assert not [file.name for file in trained.model.iterdir() if "adapter" in file.name]
    model = AutoModelForSequenceClassification.from_pretrained(trained.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    queries, documents = zip(*dev_set().pairs, strict=True)
    with torch.no_grad():
        logits = model(**tokenizer(list(queries), list(documents), padding=True, return_tensors="pt")).logits[:, 0]
    np.testing.assert_allclose(logits.numpy(), scores, atol=1e-5)
    fresh = Reranker.start(lively_encoder, seed=0, device="cpu").model
    assert not torch.equal(fresh.classifier.weight, model.classifier.weight)
    query = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(fresh.bert.get_parameter(query), model.bert.get_parameter(query))
    assert torch.equal(fresh.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)


def test_lora_and_gradient_checkpointing_go_together(still, tmp_path):
    training = section(lora=LoraSection(rank=2, dropout=0), gradient_checkpointing=True)
    run(groups(8), training, still, tmp_path / "on")
    run(groups(8), training.model_copy(update={"gradient_checkpointing": False}), still, tmp_path / "off")
    assert losses_of(tmp_path / "on") == pytest.approx(losses_of(tmp_path / "off"), abs=1e-6)


def test_lora_targets_that_the_model_has_not_are_told(still, tmp_path):
    with pytest.raises(ConfigError, match="no_such_layer"):
        run(groups(8), section(lora=LoraSection(targets=["no_such_layer"])), still, tmp_path)
    with pytest.raises(ConfigError, match="word_embeddings is no linear layer"):
        run(groups(8), section(lora=LoraSection(targets=["query", "word_embeddings"])), still, tmp_path)


# ---------------------------------------------------------------------------------------------- the alarm


@pytest.fixture
def spoil(monkeypatch):
    """Multiply the scores of training by a factor, from a step on, until so many fallbacks."""

    def arrange(factor, *, start=12, until=99):
        forward = room._Loop._forward

        def spoilt(self, *chosen):
            scores, *others = forward(self, *chosen)
            if self.state.step >= start and self.state.fallbacks < until:
                scores = scores * factor
            return (scores, *others)

        monkeypatch.setattr(room._Loop, "_forward", spoilt)

    return arrange


LONG = {"epochs": 2, "warmup": 0.1, "schedule": "constant", "checkpoints": 4}


def test_a_collapse_goes_back_to_the_last_good_checkpoint_with_half_the_rate_and_says_so(still, tmp_path, spoil):
    spoil(0.0, until=1)
    trained = run(groups(40), section(**LONG), still, tmp_path)
    assert trained.fallbacks == 1
    assert trained.steps == trained.planned == 20
    (note,) = [note for note in trained.notes if "collapsed" in note]
    assert "collapsed at step 17" in note
    assert "back to step 12" in note
    assert "0.5 of the learning rate" in note
    steps = [(record["step"], record.get("lr")) for record in log(tmp_path) if "lr" in record]
    again = [lr for step, lr in steps if step == 13]
    assert again == pytest.approx([3e-3, 1.5e-3])
    assert steps[-1] == (20, pytest.approx(1.5e-3))
    assert [record for record in log(tmp_path) if "collapsed" in record] == [
        {"step": 17, "collapsed": True, "back_to": 12}
    ]


def test_after_two_fallbacks_a_training_stops_with_its_best(still, tmp_path, spoil):
    spoil(0.0)
    trained = run(groups(40), watched(**LONG), still, tmp_path, dev_set())
    assert trained.fallbacks == 2
    assert any("stopped" in note for note in trained.notes)
    told = {record["step"]: record["dev"]["mrr@10"] for record in log(tmp_path) if "dev" in record}
    assert trained.dev == max(told.values())
    rates = [record["lr"] for record in log(tmp_path) if "lr" in record and record["step"] == 13]
    assert rates == pytest.approx([3e-3, 1.5e-3, 7.5e-4])


@pytest.mark.parametrize("factor", [0.0, math.nan])
def test_after_two_fallbacks_keep_last_keeps_the_last_good_checkpoint(still, tmp_path, spoil, factor):
    spoil(factor)
    trained = run(groups(40), section(**LONG), still, tmp_path / "spoilt")
    assert trained.fallbacks == 2
    assert trained.kept_step == 12
    good = section(**{**LONG, "warmup": 2 / 12}, max_steps=12)  # the same warm-up of two steps
    assert same(weights(trained.model), weights(run(groups(40), good, still, tmp_path / "good").model))


def test_a_loss_that_is_not_a_number_falls_back_too_and_never_counts_as_best(still, tmp_path, spoil):
    """A run whose relevant documents stand first: scores of NaN must not leave it in that order and win."""
    spoil(math.nan, until=1)
    trained = run(groups(40), watched(**LONG), still, tmp_path, dev_set(best_first=True))
    assert trained.fallbacks == 1
    assert trained.steps == 20
    assert all(bool(tensor.isfinite().all()) for tensor in weights(trained.model).values())
    assert trained.dev == dev_set(best_first=True).measure(Reranker.load(trained.model, device="cpu").score)
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    assert losses_of(tmp_path).count(None) == 5


def test_scores_that_stop_being_numbers_shortly_before_the_end_do_not_win(still, tmp_path, spoil):
    spoil(math.nan, start=17)
    trained = run(groups(40), watched(**LONG), still, tmp_path, dev_set(best_first=True))
    assert trained.kept_step <= 17
    assert all(bool(tensor.isfinite().all()) for tensor in weights(trained.model).values())


def test_weights_that_are_not_finite_at_the_end_are_an_error_not_a_model(still, tmp_path, spoil):
    spoil(math.nan, start=18)
    with pytest.raises(ModelError, match=r"not finite[\s\S]*learning_rate"):
        run(groups(40), section(**LONG), still, tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_is_never_made_of_weights_that_are_not_finite(still, tmp_path, monkeypatch):
    """The step before a checkpoint has a loss, and gradients that spoil the weights: the loss does not tell yet."""
    optimise, saved = torch.optim.AdamW.step, []

    def spoiling(self, *arguments, **options):
        result = optimise(self, *arguments, **options)
        spoiling.steps += 1
        if spoiling.steps == 15:
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        return result

    spoiling.steps = 0
    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    save = checkpoint.save

    def watching(folder, step, model, *others):
        saved.append(all(bool(parameter.isfinite().all()) for parameter in model.parameters()))
        save(folder, step, model, *others)

    monkeypatch.setattr(checkpoint, "save", watching)
    trained = run(groups(40), section(**LONG), still, tmp_path)
    assert trained.fallbacks == 1
    assert trained.steps == 20
    assert all(saved)


def test_equal_scores_with_a_loss_far_from_chance_are_no_collapse(still, tmp_path, spoil):
    spoil(1.0)
    assert run(groups(40), section(**LONG), still, tmp_path).fallbacks == 0


# ---------------------------------------------------------------------------------------------- going on


class Killed(BaseException):
    """Stands for a kill: nothing below a test catches it."""


def killed_at(monkeypatch, owner, name, nth, *, after=False):
    """Die when a function is called for the nth time (or when it has done its work)."""
    original, calls = getattr(owner, name), Counter()

    def dying(*arguments, **options):
        calls["all"] += 1
        if calls["all"] == nth and not after:
            raise Killed
        result = original(*arguments, **options)
        if calls["all"] == nth:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


RESUMED = {"epochs": 2, "learning_rate": 3e-3, "checkpoints": 3, "dev": DEV}


@pytest.fixture(scope="module")
def uninterrupted(lively_encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "t"
    run(groups(20), watched(**RESUMED), lively_encoder, folder, dev_set())
    return folder


KILLS = [
    *((room._Loop, "_step", nth, False) for nth in (1, 2, 6, 10)),
    *((room._Loop, "_evaluate", nth, after) for nth in (1, 3) for after in (False, True)),
    *((checkpoint, name, nth, True) for name in ("save", "save_best", "forget_bests") for nth in (1, 2)),
    *((torch, "save", nth, after) for nth in (1, 3) for after in (False, True)),
    (shutil, "rmtree", 3, False),
    (TrainingLog, "write", 5, True),
    (room._Loop, "_finish", 1, False),
    (Reranker, "_write", 1, True),
    (TrainingLog, "to_tensorboard", 1, False),
]


@pytest.mark.parametrize("kill", KILLS, ids=[f"{kill[1]}-{kill[2]}{'-after' * kill[3]}" for kill in KILLS])
def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(
    lively_encoder, tmp_path, monkeypatch, uninterrupted, kill
):
    folder = tmp_path / "t"
    owner, name, nth, after = kill
    with monkeypatch.context() as patch:
        killed_at(patch, owner, name, nth, after=after)
        with pytest.raises(Killed):
            run(groups(20), watched(**RESUMED), lively_encoder, folder, dev_set())
    np.random.seed(1)
    torch.manual_seed(1)
    run(groups(20), watched(**RESUMED), lively_encoder, folder, dev_set())
    for file in ("model/model.safetensors", "model/README.md", "log.jsonl"):
        assert (folder / file).read_bytes() == (uninterrupted / file).read_bytes(), file
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_a_training_killed_after_a_collapse_goes_on_with_the_same_bytes(lively_encoder, tmp_path, monkeypatch, spoil):
    spoil(0.0, until=1)
    whole = run(groups(40), watched(**LONG), lively_encoder, tmp_path / "a" / "t", dev_set())
    assert whole.fallbacks == 1
    for number, nth in enumerate((16, 18, 19)):  # before the alarm, and twice after it
        folder = tmp_path / str(number) / "t"
        with monkeypatch.context() as patch:
            killed_at(patch, room._Loop, "_step", nth)
            with pytest.raises(Killed):
                run(groups(40), watched(**LONG), lively_encoder, folder, dev_set())
        trained = run(groups(40), watched(**LONG), lively_encoder, folder, dev_set())
        assert trained.fallbacks == 1
        for file in ("model/model.safetensors", "log.jsonl"):
            assert (folder / file).read_bytes() == (tmp_path / "a" / "t" / file).read_bytes()


@pytest.fixture(scope="module")
def uninterrupted_mean(lively_encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole mean") / "t"
    run(groups(20), watched(**RESUMED, average=3, both_orders=True), lively_encoder, folder, dev_set())
    assert averaged_record(folder)["average"] == 3
    return folder


@pytest.mark.parametrize(
    ("owner", "name", "nth"),
    [
        (room._Loop, "_step", 6),
        (checkpoint, "save_recent", 3),
        (checkpoint, "forget_recent", 4),
        (checkpoint, "load_average", 1),
        (TrainingLog, "to_tensorboard", 1),
    ],
)
def test_a_killed_training_with_a_mean_and_both_orders_ends_with_the_same_bytes(
    lively_encoder, tmp_path, monkeypatch, uninterrupted_mean, owner, name, nth
):
    training, folder = watched(**RESUMED, average=3, both_orders=True), tmp_path / "t"
    with monkeypatch.context() as patch:
        killed_at(patch, owner, name, nth)
        with pytest.raises(Killed):
            run(groups(20), training, lively_encoder, folder, dev_set())
    run(groups(20), training, lively_encoder, folder, dev_set())
    for file in ("model/model.safetensors", "model/README.md", "log.jsonl"):
        assert (folder / file).read_bytes() == (uninterrupted_mean / file).read_bytes(), file


def test_a_lora_training_goes_on_with_the_same_bytes(lively_encoder, tmp_path, monkeypatch):
    training = watched(**RESUMED, lora=LoraSection(rank=2))
    whole = run(groups(20), training, lively_encoder, tmp_path / "a" / "t", dev_set())
    with monkeypatch.context() as patch:
        killed_at(patch, room._Loop, "_step", 7)
        with pytest.raises(Killed):
            run(groups(20), training, lively_encoder, tmp_path / "b" / "t", dev_set())
    again = run(groups(20), training, lively_encoder, tmp_path / "b" / "t", dev_set())
    assert again.notes[-1].endswith("of 10")
    for file in ("model.safetensors", "README.md"):
        assert (whole.model / file).read_bytes() == (again.model / file).read_bytes()


def test_a_finished_training_called_again_gives_the_same(lively_encoder, uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted, tmp_path / "t")
    trained = run(groups(20), watched(**RESUMED), lively_encoder, folder, dev_set())
    assert trained.steps == 10
    assert weights(folder / "model").keys() == weights(uninterrupted / "model").keys()
    assert (folder / "log.jsonl").read_bytes() == (uninterrupted / "log.jsonl").read_bytes()


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(lively_encoder, tmp_path):
    found = [
        weights(run(groups(8), section(), lively_encoder, tmp_path / str(number), seed=seed).model)
        for number, seed in enumerate((1, 1, 2))
    ]
    assert same(found[0], found[1])
    assert not same(found[0], found[2])
    own = run(groups(8), section(seed=2), lively_encoder, tmp_path / "own", seed=1)
    assert same(weights(own.model), found[2])


# ------------------------------------------------------------------------------- what is written, and precision


def test_tensorboard_gets_the_records_of_the_log(uninterrupted):
    (file,) = (uninterrupted / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents")
    content = file.read_bytes()
    for tag in (b"loss", b"lr", b"spread", b"dev/mrr_10"):
        assert tag in content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_full_when_tensorboard_gets_them_is_an_error(tmp_path, monkeypatch):
    log = TrainingLog(tmp_path)
    log.write({"step": 1, "loss": 0.5})
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        log.to_tensorboard()


def test_the_card_says_what_was_trained_and_what_came_of_it(learnt):
    folder, trained = learnt
    card = (trained.model / "README.md").read_text()
    assert f"kept step {trained.kept_step} of 32 planned" in card
    assert "1 x listwise" in card
    assert f"{trained.dev_before:.4f} before, {trained.dev:.4f} after" in card
    assert (folder / "model" / "config.json").is_file()


def test_an_automatic_precision_is_remembered_in_the_cache(still, tmp_path, monkeypatch):
    seconds = {torch.float32: 2.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(device, "_seconds", lambda dtype: seconds[dtype])
    cache = tmp_path / "cache"
    first = run(groups(4), section(precision="auto"), still, tmp_path / "a", cache=cache)
    assert first.precision == "bf16"
    assert "bf16 on cpu" in first.notes[0]
    assert list(json.loads((cache / "precision.json").read_text()).values()) == [2.0]
    seconds[torch.bfloat16] = 9.0
    assert run(groups(4), section(precision="auto"), still, tmp_path / "b", cache=cache).precision == "bf16"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_every_step_and_every_evaluation_computes_in_the_precision_chosen(still, tmp_path, monkeypatch, precision):
    logits, backend, steps, evaluations = room.packed.logits, room.TorchBackend, [], []

    def watching(model, *arguments, **options):
        steps.append((model.training, torch.is_autocast_enabled("cpu")))
        return logits(model, *arguments, **options)

    def scoring(model, pad_id, computed):
        evaluations.append((model.training, computed))
        return backend(model, pad_id, computed)

    monkeypatch.setattr(room.packed, "logits", watching)
    monkeypatch.setattr(room, "TorchBackend", scoring)
    trained = run(groups(16), watched(precision=precision), still, tmp_path, dev_set())
    assert set(steps) == {(True, precision == "bf16")}
    assert set(evaluations) == {(False, precision)}
    assert trained.precision == precision
    assert {tensor.dtype for tensor in weights(trained.model).values()} == {torch.float32}


@pytest.mark.parametrize("wrapped", [{}, {"lora": {"rank": 2}}, {"quantization_aware": True}])
def test_dev_is_scored_by_the_weights_as_they_are_through_whatever_wraps_them(still, tmp_path, wrapped):
    loop = room._Loop(groups(4), section(**wrapped), still, None, room.Workbench(tmp_path, device="cpu"))
    loop._prepare()
    loop._round(on=bool(loop.section.rounded_share))
    pairs = room.pairs_of(loop.groups, [False] * len(loop.groups))
    before = loop._score(pairs)
    with torch.no_grad():
        for parameter in loop._bare().parameters():
            parameter.add_(torch.randn_like(parameter) / 20)
    loop._bare().eval()
    with torch.no_grad():
        expected = loop._logits(loop.texts.of(pairs)).numpy()
    np.testing.assert_allclose(loop._score(pairs), expected, atol=1e-4)
    assert np.abs(before - expected).max() > 1e-3
    assert (loop._as_scoring_does() is None) == bool(wrapped)
    loop.active.close()


def test_one_training_after_another_may_have_another_precision(still, tmp_path):
    for precision in ("bf16", "fp32", "bf16"):
        trained = run(groups(4), section(precision=precision), still, tmp_path / precision)
        assert trained.precision == precision


# ------------------------------------------------------------------------------------------- the dev metric


def small_collection():
    queries = {f"q{number}": f"query {number}" for number in range(6)}
    documents = {f"d{number}": f"text {number}" for number in range(5)}
    collection = Collection(documents, queries, {"dev": {query: {"d3": 1} for query in queries}})
    run = Run.from_scores({query: {d: -float(d[1:]) for d in documents} for query in list(queries)[:5]})
    return collection, run


def test_the_dev_set_holds_the_first_candidates_of_some_queries_whatever_their_order():
    collection, candidates = small_collection()
    dev = DevSet.of(collection, candidates, DevSection(queries=3, depth=2, metric="mrr@10"))
    assert len(dev.qrels) == 3
    assert [document for _, document in dev.ids[:2]] == ["d0", "d1"]
    assert dev.pairs == [(collection.queries[query], collection.documents[document]) for query, document in dev.ids]
    backwards = replace(collection, qrels={"dev": dict(list(collection.qrels["dev"].items())[::-1])})
    assert DevSet.of(backwards, candidates, DevSection(queries=3, depth=2, metric="mrr@10")) == dev


def test_a_dev_query_without_candidates_counts_as_zero():
    collection, candidates = small_collection()
    dev = DevSet.of(collection, candidates, DevSection(queries=6, depth=5, metric="mrr@10"))
    by_number = dev.measure(lambda pairs: np.array([-float(text[-1]) for _, text in pairs], dtype=np.float32))
    assert by_number == pytest.approx(5 * (1 / 4) / 6)  # d3 is fourth of five queries, and missing in one
    best = dev.measure(lambda pairs: np.array([float("3" in text) for _, text in pairs], dtype=np.float32))
    assert best == pytest.approx(5 / 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_measure_nothing(bad):
    dev = dev_set(best_first=True)
    assert dev.measure(lambda pairs: np.full(len(pairs), bad, dtype=np.float32)) == 0
    scores = np.zeros(len(dev.pairs), dtype=np.float32)
    scores[3] = bad
    assert dev.measure(lambda pairs: scores) == 0


def test_a_dev_set_without_candidates_is_an_error():
    collection, _ = small_collection()
    with pytest.raises(DataError, match=r"no dev query[\s\S]*keep: last"):
        DevSet.of(collection, Run({}), DevSection())


def test_dev_pairs_without_room_are_scored_fewer_tokens_at_a_time(still, tmp_path, monkeypatch):
    forward = room.forward_tokens

    def limited(model, tokens, **options):
        if not torch.is_grad_enabled() and (options.get("budget") or 10**9) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(model, tokens, **options)

    monkeypatch.setattr(room, "forward_tokens", limited)
    monkeypatch.setattr(room._Loop, "_as_scoring_does", lambda loop: None)  # as on a GPU
    loop = room._Loop(groups(4), section(), still, None, room.Workbench(tmp_path, device="cpu"))
    loop._prepare()
    pairs = room.pairs_of(loop.groups, [False] * len(loop.groups))
    expected = forward(loop._bare().eval(), loop.texts.of(pairs), pad_id=loop.pad_id, device="cpu", precision="fp32")
    np.testing.assert_allclose(loop._score(pairs), expected.detach().numpy(), atol=1e-5)
    assert loop.scoring_budget <= 40
    assert "out of memory on dev" in loop.notes[-1]
    loop.active.close()


def test_moments_without_room_are_an_error_that_says_so(still, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(ModelError, match="the optimiser's two moments have no room"):
        run(groups(4), section(), still, tmp_path)


def test_the_card_names_the_model_that_it_goes_back_to(still, tmp_path):
    bench = room.Workbench(tmp_path, device="cpu", base="some/model")
    trained = room.train(groups(4), section(), base=still, dev=None, bench=bench)
    card = (trained.model / "README.md").read_text()
    assert 'base_model: "some/model"' in card
    assert "trained by rankwright from `some/model`" in card


def test_a_base_that_cannot_read_the_texts_is_told_of(lively_encoder, tmp_path):
    foreign = [replace(group, query="政府宣布改革") for group in groups(4)]
    notes = run(foreign, section(max_steps=1), lively_encoder, tmp_path / "foreign").notes
    assert any("cannot read 100%" in note for note in notes)
    notes = run(groups(4), section(max_steps=1), lively_encoder, tmp_path / "known").notes
    assert not any("cannot read" in note for note in notes)
