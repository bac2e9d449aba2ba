"""The footprint: what is counted is what a training takes, and a choice fits its budget without need for less."""

from __future__ import annotations

import multiprocessing
import sys
import weakref

import numpy as np
import pytest
import torch

from rankwright.toolbox import footprint
from rankwright.toolbox.engine.forward import forward_tokens
from rankwright.toolbox.engine.pairs import Tokens, stacked
from rankwright.toolbox.footprint import PairCost, choose, measure, saved_bytes


def classifier(hidden=32, layers=2):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64),
        intermediate_size=4 * hidden,
        num_labels=1,
    )
    return BertForSequenceClassification(config).train()


def tokens(*lengths):
    starts = stacked(np.array(lengths))
    return Tokens(np.random.default_rng(0).integers(5, 50, int(starts[-1])).astype(np.int32), None, starts)


def forward_of(model):
    return lambda some: forward_tokens(model, some, pad_id=0, device="cpu", precision="fp32", even=False)


@pytest.mark.parametrize(("hidden", "layers"), [(32, 2), (128, 4)])
def test_the_count_foretells_what_a_larger_batch_keeps(hidden, layers):
    model = classifier(hidden, layers)
    forward = forward_of(model)
    cost = measure(forward, model, tokens(40, 20, 30, 100, 60))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    batch = tokens(*[80] * 12, *[50] * 8)
    kept = saved_bytes(lambda: forward(batch), own)
    expected = cost.bytes_of(batch.lengths).sum() / footprint.MARGIN
    assert expected == pytest.approx(kept, rel=0.15)


def test_saved_bytes_counts_each_storage_once_and_no_parameter():
    weight = torch.nn.Parameter(torch.ones(1000, 10))
    states = torch.ones(7, 10, requires_grad=True)
    assert saved_bytes(lambda: states @ weight.T, {weight.untyped_storage().data_ptr()}) == 7 * 10 * 4
    assert saved_bytes(lambda: (states * 2).exp() * (states * 2).exp(), set()) >= 2 * 7 * 10 * 4


def test_counting_leaves_nothing_behind():
    states, seen = torch.ones(7, 10, requires_grad=True), []

    def work() -> torch.Tensor:
        shares = states.softmax(-1)  # which its own node saves
        seen.append(weakref.ref(shares))
        return shares.sum()

    assert saved_bytes(work, set()) >= 7 * 10 * 4
    assert seen[0]() is None


def test_pairs_of_one_length_are_enough_to_count():
    model = classifier()
    cost = measure(forward_of(model), model, tokens(16, 16))
    assert cost.quadratic == 0
    assert cost.linear > 10 * 32 * 4


def test_a_checkpointed_layer_keeps_its_input_and_one_layer_is_whole():
    cost = PairCost(linear=1000.0, quadratic=2.0, boundary=100.0, layers=10)
    lengths = np.array([10, 20])
    whole = footprint.MARGIN * (1000 * lengths + 2 * lengths**2)
    assert cost.bytes_of(lengths).tolist() == pytest.approx(whole.tolist())
    anew = footprint.MARGIN * 100 * lengths + whole / 10
    assert cost.bytes_of(lengths, checkpointing=True).tolist() == pytest.approx(anew.tolist())


COST = PairCost(linear=100 / footprint.MARGIN, quadratic=0.0, boundary=10 / footprint.MARGIN, layers=10)
EVEN = [np.array([10, 10])] * 20
"""Each group takes 2,000 bytes, and 400 with checkpointing."""


@pytest.mark.parametrize(
    ("budget", "groups", "checkpointing", "fits"),
    [
        (16_000, 8, False, True),
        (15_999, 4, False, True),
        (4_500, 2, False, True),
        (2_000, 1, False, True),
        (1_999, 4, True, True),
        (399, 1, True, False),
        (-5, 1, True, False),
    ],
)
def test_the_largest_micro_batch_that_fits_is_chosen(budget, groups, checkpointing, fits):
    made = choose(COST, EVEN, 8, budget, may=True)
    assert (made.groups, made.checkpointing, made.fits) == (groups, checkpointing, fits)
    assert (made.needed <= budget) == fits


def test_the_heaviest_groups_are_the_ones_that_must_fit():
    ragged = [*[np.array([1])] * 50, np.array([90]), np.array([60])]
    assert choose(COST, ragged, 4, 15_199, may=True).groups == 2
    assert choose(COST, ragged, 4, 15_200, may=True).groups == 4


def test_a_model_that_cannot_checkpoint_is_not_asked_to_and_one_that_must_does():
    made = choose(COST, EVEN, 8, 100, may=False)
    assert (made.groups, made.checkpointing, made.fits) == (1, False, False)
    assert choose(COST, EVEN, 8, 1e9, may=True, must=True).checkpointing


def test_a_choice_says_its_reason_and_warns_where_nothing_fits():
    made = choose(COST, EVEN, 8, 1.5e9, may=True)
    assert made.said(8, 1.5e9, "2GB") == (
        "8 of 8 queries at a time: they take about 1 MB for activations of the 1.5 GB that memory: 2GB leaves for them"
    )
    assert choose(COST, EVEN, 8, 0, may=True).said(8, -3.0, "1MB").startswith("warning: 1 of 8 queries")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_an_error_is_told_from_a_lack_of_memory(error, expected):
    assert footprint.out_of_memory(error) is expected


def test_gradients_moments_and_of_a_budget_the_weights_are_set_aside(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 5, bias=False))
    model[1].requires_grad_(False)
    monkeypatch.setattr(footprint, "free_bytes", lambda device: 10_000)
    assert footprint.room(model, "cpu", None) == pytest.approx(footprint.SHARE * 10_000 - 3 * 400)
    assert footprint.room(model, "cpu", 5_000.0) == 5_000 - 3 * 400 - 600


def test_a_control_groups_limit_counts_and_its_page_cache_is_free(tmp_path):
    for name, text in {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "anon 5\ninactive_file 100\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert footprint._group_limit(tmp_path) == [400]
    (tmp_path / "memory.max").write_text("max\n")
    assert footprint._group_limit(tmp_path) == []
    assert footprint._group_limit(tmp_path / "none") == []
    assert footprint.free_bytes("cpu") > 0


def take_a_step(answer):
    """In a process of its own: (estimate, how much the peak grew), in bytes."""
    import resource

    torch.set_num_threads(1)
    model = classifier(256, 4)
    forward, some = forward_of(model), tokens(*[96] * 8, 48, *[96] * 40)
    cost = measure(forward, model, some)
    forward(some.take([0])).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward(some).sum().backward()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send((float(cost.bytes_of(some.lengths).sum()), 1024.0 * (after - before)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is told in other units")
def test_the_estimate_is_what_a_process_really_takes_with_a_generous_margin():
    context = multiprocessing.get_context("fork")  # which spares the seconds of importing torch
    here, there = context.Pipe()
    process = context.Process(target=take_a_step, args=(there,))
    process.start()
    assert here.poll(60)
    estimate, peak = here.recv()
    process.join()
    assert estimate > 2e8
    assert 0.6 < peak / estimate < 1.1


def test_all_control_groups_that_a_process_is_in_hold_it_back(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/slurm/job_7\n")
    root = tmp_path / "fs"
    folders = list(footprint._groups(own, root))
    assert folders == [root / "slurm/job_7", root / "slurm", root, root]
    own.write_text("9:cpu:/c\n5:memory:/docker/one\n")
    assert list(footprint._groups(own, root)) == [*(root / "memory" / p for p in ("docker/one", "docker", "")), root]
    assert list(footprint._groups(tmp_path / "none", root)) == [root]


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    for name, text in {
        "memory.limit_in_bytes": "1000",
        "memory.usage_in_bytes": "700",
        "memory.stat": "cache 5\ntotal_inactive_file 50\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert footprint._group_limit(tmp_path) == [350]
