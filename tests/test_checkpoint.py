"""Training state on disk: what comes back is what was put there, and a kill costs one checkpoint at most."""

from __future__ import annotations

import shutil

import pytest
import torch

from rankwright.toolbox import checkpoint


def trainee(seed=0, steps=0):
    """A small model with dropout and its optimiser, some steps on."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model, optimizer, steps):
    for _ in range(steps):
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def test_a_loaded_checkpoint_goes_on_bit_for_bit_dropout_included(tmp_path):
    model, optimizer = trainee(steps=3)
    checkpoint.save(tmp_path, 3, model, optimizer, {"step": 3, "best": 0.25})
    advance(model, optimizer, 4)
    other, its_optimizer = trainee(seed=9, steps=1)
    counters = checkpoint.load(checkpoint.newest(tmp_path), other, its_optimizer)
    assert counters == {"step": 3, "best": 0.25}
    advance(other, its_optimizer, 4)
    assert torch.equal(weights(model), weights(other))


def test_counters_keep_every_digit_and_infinity(tmp_path):
    model, optimizer = trainee()
    counters = {"best": 0.1 + 0.2, "none": -float("inf"), "stopped": True}
    checkpoint.save(tmp_path, 0, model, optimizer, counters)
    assert checkpoint.load(checkpoint.newest(tmp_path), model, optimizer) == counters


def test_only_the_newest_is_kept(tmp_path):
    model, optimizer = trainee()
    assert checkpoint.newest(tmp_path) is None
    for step in (0, 9, 10, 999_999, 1_000_000):
        checkpoint.save(tmp_path, step, model, optimizer, {"step": step})
        there = checkpoint.newest(tmp_path)
        assert checkpoint.load(there, model, optimizer) == {"step": step}
        assert list(tmp_path.iterdir()) == [there]


def test_of_two_that_a_kill_left_the_later_step_counts(tmp_path):
    model, optimizer = trainee()
    for step in (999_999, 1_000_000):
        checkpoint.save(tmp_path / str(step), step, model, optimizer, {"step": step})
        (there,) = (tmp_path / str(step)).iterdir()
        shutil.move(there, tmp_path / there.name)
    assert checkpoint.load(checkpoint.newest(tmp_path), model, optimizer) == {"step": 1_000_000}


def test_the_same_step_can_be_saved_again_and_the_later_one_counts(tmp_path):
    model, optimizer = trainee()
    for fallbacks in range(3):
        checkpoint.save(tmp_path, 7, model, optimizer, {"fallbacks": fallbacks})
        assert checkpoint.load(checkpoint.newest(tmp_path), model, optimizer) == {"fallbacks": fallbacks}
        assert len(list(tmp_path.iterdir())) == 1


class Killed(BaseException):
    """Stands for a kill: nothing below a test catches it."""


@pytest.mark.parametrize("again", [3, 4])
@pytest.mark.parametrize("where", ["save_model", "save", "write_text", "rename", "rmtree"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, where, again):
    """The write of step `again` dies when it calls `where`; removals die half-way."""
    model, optimizer = trainee(steps=3)
    checkpoint.save(tmp_path, 3, model, optimizer, {"step": 3, "first": True})
    kept = weights(model)
    advance(model, optimizer, 1)

    def die(*arguments, **_):
        if where == "rmtree" and (files := [file for file in arguments[0].glob("*") if file.is_file()]):
            files[0].unlink()
            raise Killed
        if where != "rmtree":
            raise Killed

    import safetensors.torch

    place = {"save_model": safetensors.torch, "save": torch, "rmtree": shutil}.get(where, type(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(place, where, die)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, again, model, optimizer, {"step": again, "first": False})
    there = checkpoint.newest(tmp_path)
    other, its_optimizer = trainee(seed=9)
    counters = checkpoint.load(there, other, its_optimizer)
    expected = kept if counters["first"] else weights(model)
    assert torch.equal(weights(other), expected)
    checkpoint.save(tmp_path, 5, model, optimizer, {"step": 5})
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [checkpoint.newest(tmp_path)]
    assert not list(tmp_path.glob(".*"))


def test_best_weights_come_back_and_are_forgotten_but_for_one(tmp_path):
    model, optimizer = trainee(steps=1)
    first = weights(model)
    checkpoint.save_best(tmp_path / "new", 1, model)
    advance(model, optimizer, 1)
    checkpoint.save_best(tmp_path / "new", 2, model)
    second = weights(model)
    for step, expected in ((1, first), (2, second)):
        checkpoint.load_best(tmp_path / "new", step, model)
        assert torch.equal(weights(model), expected)
    checkpoint.forget_bests(tmp_path / "new", but=1)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["best-000001.safetensors"]
    checkpoint.load_best(tmp_path / "new", 1, model)
    assert torch.equal(weights(model), first)


def test_bests_outlive_the_saving_of_checkpoints(tmp_path):
    model, optimizer = trainee()
    checkpoint.save_best(tmp_path, 0, model)
    checkpoint.save(tmp_path, 1, model, optimizer, {})
    checkpoint.save(tmp_path, 2, model, optimizer, {})
    checkpoint.load_best(tmp_path, 0, model)


def test_an_average_is_the_mean_of_the_steps_asked_for(tmp_path):
    model, optimizer = trainee(steps=1)
    seen = {}
    for step in (1, 2, 3):
        checkpoint.save_recent(tmp_path, step, model)
        seen[step] = weights(model)
        advance(model, optimizer, 1)
    checkpoint.load_average(tmp_path, [1, 3], model)
    torch.testing.assert_close(weights(model), (seen[1] + seen[3]) / 2)
    checkpoint.load_average(tmp_path, [2], model)
    assert torch.equal(weights(model), seen[2])
    assert not list(tmp_path.glob(".*"))


def test_recent_weights_are_forgotten_but_for_some_and_bests_stay(tmp_path):
    model, _ = trainee()
    checkpoint.save_best(tmp_path, 1, model)
    for step in (1, 2, 3):
        checkpoint.save_recent(tmp_path, step, model)
    checkpoint.forget_recent(tmp_path, but=[2, 3])
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {f"{name}.safetensors" for name in ("best-000001", "recent-000002", "recent-000003")}
    checkpoint.forget_bests(tmp_path, but=9)
    assert {file.name for file in tmp_path.iterdir()} == names - {"best-000001.safetensors"}


def test_an_average_keeps_shared_weights_shared(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    for step, value in ((1, 1.0), (2, 2.0)):
        with torch.no_grad():
            model["a"].weight.fill_(value)
        checkpoint.save_recent(tmp_path, step, model)
    checkpoint.load_average(tmp_path, [1, 2], model)
    assert model["a"].weight is model["b"].weight
    assert torch.equal(model["b"].weight, torch.full((3, 3), 1.5))


def test_shared_weights_are_saved_once_and_come_back_shared(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save(tmp_path, 0, model, optimizer, {})
    with torch.no_grad():
        model["a"].weight.zero_()
    checkpoint.load(checkpoint.newest(tmp_path), model, optimizer)
    assert model["a"].weight is model["b"].weight
    assert float(model["b"].weight.detach().abs().sum()) > 0


def test_the_scale_of_fp16_goes_on_where_it_was(tmp_path):
    model, optimizer = trainee()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    checkpoint.save(tmp_path, 1, model, optimizer, {}, scaler)
    other = torch.amp.GradScaler("cpu")
    checkpoint.load(checkpoint.newest(tmp_path), model, optimizer, other)
    assert other.get_scale() == 1024.0


def test_random_states_of_gpus_that_are_gone_are_left_out(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    checkpoint.set_random_state({"cpu": torch.get_rng_state(), "cuda": ["first", "second"]})
    assert given == ["first"]
