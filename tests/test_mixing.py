from __future__ import annotations

import numpy as np
import pytest
import torch

from rankwright.toolbox import mixing
from rankwright.toolbox.mixing import METHODS, linear, relative_distance


def random(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def test_the_table_knows_linear():
    assert METHODS["linear"] is linear


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1.5, -0.5), (0.2, 0.3, 0.5), (0.1, 0.2, 0.3, 0.4)])
def test_linear_is_the_weighted_sum_of_numpy(weights):
    tensors = [random(3, 4, seed=seed) for seed in range(len(weights))]
    expected = sum(weight * tensor.double().numpy() for weight, tensor in zip(weights, tensors, strict=True))
    np.testing.assert_array_equal(linear(tensors, weights).numpy(), np.asarray(expected).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7), (0.1, 0.2, 0.7), (1 / 3, 1 / 3, 1 / 3), (2.0, -1.0)])
def test_a_tensor_mixed_with_itself_stays_bit_for_bit(dtype, weights):
    tensor = torch.cat([random(200, seed=1), torch.tensor([0.0, -0.0, torch.inf, -torch.inf])]).to(dtype)
    mixed = linear([tensor.clone() for _ in weights], weights)
    assert mixed.dtype == dtype
    assert bits(mixed) == bits(tensor)


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_weight_of_one_gives_that_tensor_bit_for_bit(chosen):
    tensors = [random(50, seed=seed) * 10.0 ** (12 * seed) for seed in range(3)]
    tensors[chosen][:2] = torch.tensor([-0.0, 1e-38])
    tensors[(chosen + 1) % 3][5] = torch.nan
    weights = [float(index == chosen) for index in range(3)]
    assert bits(linear(tensors, weights)) == bits(tensors[chosen])


def test_the_first_dtype_is_kept_and_the_rounding_happens_once():
    half, full = random(64, seed=1, dtype=torch.float16), random(64, seed=2)
    mixed = linear([half, full], (0.5, 0.5))
    assert mixed.dtype == torch.float16
    expected = (half.double().numpy() / 2 + full.double().numpy() / 2).astype(np.float16)
    np.testing.assert_array_equal(mixed.numpy(), expected)


def test_a_tensor_of_several_blocks_is_mixed_whole(monkeypatch):
    one, other = random(7, 3, seed=1), random(7, 3, seed=2)
    at_once, apart = linear([one, other], (0.4, 0.6)), relative_distance(one, other)
    monkeypatch.setattr(mixing, "_BLOCK", 4)
    assert torch.equal(linear([one, other], (0.4, 0.6)), at_once)
    assert relative_distance(one, other) == pytest.approx(apart)


def test_scalars_and_empty_tensors_keep_their_shape():
    assert linear([torch.tensor(1.0), torch.tensor(3.0)], (0.5, 0.5)).tolist() == 2.0
    assert linear([torch.empty(0, 4), torch.empty(0, 4)], (0.5, 0.5)).shape == (0, 4)


def test_the_inputs_are_left_alone():
    one, other = random(5, seed=1), random(5, seed=2)
    before = one.clone(), other.clone()
    linear([one, other], (1.0, 0.0)).zero_()
    assert torch.equal(one, before[0])
    assert torch.equal(other, before[1])


def test_equal_whole_numbers_are_passed_through():
    positions = torch.arange(6).reshape(1, 6)
    mixed = linear([positions, positions.int()], (0.5, 0.5))
    assert torch.equal(mixed, positions)
    assert mixed.dtype == torch.int64


def test_different_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        linear([torch.arange(3), torch.arange(3) + 1], (0.5, 0.5))


def test_weights_that_do_not_sum_to_one_are_refused():
    for weights in ((0.5, 0.6), (1.0,), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="sum to 1"):
            linear([torch.ones(2), torch.ones(2)], weights)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        linear([torch.ones(2), torch.ones(1)], (0.5, 0.5))


def test_relative_distance_is_symmetric_and_bounded():
    one, other = random(40, seed=1), random(40, seed=2)
    lengths = max(np.linalg.norm(one), np.linalg.norm(other))
    expected = np.linalg.norm(one.numpy() - other.numpy()) / lengths
    assert relative_distance(one, other) == relative_distance(other, one) == pytest.approx(float(expected), rel=1e-5)
    assert relative_distance(one, one) == 0
    assert relative_distance(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_distance(torch.zeros(40), one) == pytest.approx(1)
    assert relative_distance(-one, one) == pytest.approx(2)
