"""Dropout from a seed: the right share, the right mean, the right gradient, the same draws."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rankwright.toolbox.engine.noise import Noise, seeds  # noqa: E402


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.03])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_that_is_dropped_and_the_mean_are_dropouts(rate, dtype):
    found = Noise(1).drop(torch.ones(1000, 700, dtype=dtype), rate).float()
    assert float((found == 0).float().mean()) == pytest.approx(rate, abs=0.002)
    assert float(found.mean()) == pytest.approx(1, abs=0.005)
    assert sorted(found.unique().tolist()) == pytest.approx([0, 1 / (1 - rate)], rel=0.01)


def test_gradients_go_where_the_values_went():
    values = torch.rand(50, 40, requires_grad=True)
    found = Noise(3).drop(values, 0.4)
    found.sum().backward()
    assert torch.equal(values.grad == 0, found == 0)
    torch.testing.assert_close(values.grad * values, found)


def test_a_seed_gives_the_same_draws_and_goes_on_with_others():
    ones = torch.ones(64, 64)
    first, again = Noise(5), Noise(5)
    drawn = [first.drop(ones, 0.5) for _ in range(2)]
    assert torch.equal(drawn[0], again.drop(ones, 0.5))
    assert torch.equal(drawn[1], again.drop(ones, 0.5))
    assert not torch.equal(*drawn)
    assert not torch.equal(drawn[0], Noise(6).drop(ones, 0.5))


def test_neighbours_are_dropped_independently():
    dropped = (Noise(7).drop(torch.ones(2000, 500), 0.2) == 0).float()
    for shifted in (dropped.roll(1, 0), dropped.roll(1, 1), dropped.roll(4, 1)):
        assert float((dropped * shifted).mean()) == pytest.approx(0.04, abs=0.001)


def test_no_rate_drops_nothing_and_the_whole_all():
    values = torch.rand(5, 5)
    assert Noise(0).drop(values, 0.0) is values
    assert not Noise(0).drop(values, 1.0).any()


def test_seeds_follow_torchs_generator():
    torch.manual_seed(9)
    first = seeds(4)
    torch.manual_seed(9)
    assert seeds(4) == first
    assert len(set(first)) == 4
