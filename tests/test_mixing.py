from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rankwright.toolbox import mixing
from rankwright.toolbox.mixing import BLOCK, METHODS, Distance, Settings, cocktail_weights, mixed

LONG = 2 * BLOCK + 4321
DIFFERENCES = ("task-arithmetic", "ties", "dare")
INF = np.inf
# What each method may be asked for, between two tensors and between three.
TWO = {"linear": (0.3, 0.7), "slerp": (0.3, 0.7), "task-arithmetic": (0.7,), "ties": (0.7,), "dare": (0.7,)}
THREE = {"linear": (0.2, 0.3, 0.5), "task-arithmetic": (0.6, -0.3), "ties": (0.6, 0.3), "dare": (0.6, 0.3)}


def random(*shape, seed, dtype=np.float32, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def family(*shape, members, seed=0, dtype=np.float32):
    """A start and its fine-tunings: differences are small, and of all sizes."""
    start = random(*shape, seed=seed)
    tuned = [start + 0.1 * random(*shape, seed=seed + place) ** 3 for place in range(1, members)]
    return [array.astype(dtype) for array in (start, *tuned)]


def bits(array):
    return array.tobytes()


class Counting:
    """A source that knows what was read of it, and may refuse."""

    def __init__(self, array, readable=True):
        self.array, self.readable, self.read_entries, self.longest = array, readable, 0, 0

    @property
    def size(self):
        return self.array.size

    def read(self, start, stop):
        assert self.readable, "this source must not be read"
        self.read_entries += stop - start
        self.longest = max(self.longest, stop - start)
        return self.array[start:stop]


class Untouchable(np.ndarray):
    """A block whose entries may not be looked at."""

    def __array_ufunc__(self, *_, **__):
        raise AssertionError("a term of weight 0 was read")


def by_blocks(method, arrays, weights, settings, cuts):
    """Mixed by blocks that end at `cuts`, the last one first."""
    mix = METHODS[method]([Counting(array) for array in arrays], weights, settings)
    result = np.empty_like(arrays[0])
    for start, stop in reversed(list(zip((0, *cuts), (*cuts, arrays[0].size), strict=True))):
        result[start:stop] = mix(start, [array[start:stop] for array in arrays])
    return result


# The formulas, by hand, on whole arrays in float64.


def by_hand_slerp(first, other, t):
    angle = np.arccos(first @ other / np.linalg.norm(first) / np.linalg.norm(other))
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * other) / np.sin(angle)


def by_hand_trimmed(difference, density):
    count = max(1, round(density * difference.size))
    least = np.sort(np.abs(difference))[::-1][count - 1]
    return np.where(np.abs(difference) >= least, difference, 0)


def by_hand_ties(first, others, weights, density):
    trimmed = [by_hand_trimmed(other - first, density) for other in others]
    result = np.array(first, np.float64)
    for entry in range(first.size):
        elected = np.sign(sum(weight * float(d[entry]) for weight, d in zip(weights, trimmed, strict=True)))
        agreeing = [
            (weight, float(d[entry]))
            for weight, d in zip(weights, trimmed, strict=True)
            if d[entry] and np.sign(d[entry]) == elected
        ]
        if agreeing:
            share = sum(weight for weight, _ in agreeing)
            result[entry] += sum(weights) * sum(weight * d for weight, d in agreeing) / share
    return result


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1.5, -0.5), (0.2, 0.3, 0.5), (0.1, 0.2, 0.3, 0.4)])
def test_linear_is_the_weighted_sum_of_numpy(weights):
    arrays = [random(301, 17, seed=seed) for seed in range(len(weights))]
    expected = sum(weight * array.astype(np.float64) for weight, array in zip(weights, arrays, strict=True))
    home = arrays[int(np.argmax(weights))].astype(np.float64)
    moved = sum(np.abs(weight * (home - array)) for weight, array in zip(weights, arrays, strict=True))
    bound = (np.abs(expected) + (len(weights) + 1) * moved) / 2**24
    result = mixed("linear", arrays, weights)
    assert result.dtype == np.float32
    assert (np.abs(result - expected) <= bound * 1.000001 + 1e-45).all()


def test_an_average_in_float32_is_nearly_always_the_nearest_float32():
    first, other = family(100_000, members=2)
    exact = (0.7 * first.astype(np.float64) + 0.3 * other.astype(np.float64)).astype(np.float32)
    off = np.abs(mixed("linear", [first, other], (0.7, 0.3)) - exact) / np.spacing(np.abs(exact))
    assert np.mean(off > 0) < 0.1
    alike = np.sign(first) == np.sign(other)
    assert off[alike].max() <= 4


def test_float64_is_mixed_in_float64():
    arrays = [random(1000, seed=seed, dtype=np.float64) for seed in range(3)]
    result = mixed("linear", arrays, (0.2, 0.3, 0.5))
    np.testing.assert_allclose(result, 0.2 * arrays[0] + 0.3 * arrays[1] + 0.5 * arrays[2], rtol=1e-13, atol=1e-15)
    assert (
        mixing.METHODS["linear"]([Counting(a) for a in arrays], (0.2, 0.3, 0.5), Settings())(0, arrays).dtype == float
    )


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_slerp_is_the_arc_between_the_vectors_at_their_own_lengths(t):
    first, other = random(LONG, seed=1), random(LONG, seed=2, scale=3.0)
    expected = by_hand_slerp(first.astype(np.float64), other.astype(np.float64), t)
    np.testing.assert_allclose(mixed("slerp", [first, other], (1 - t, t)), expected, rtol=3e-7, atol=1e-6)


def test_slerp_of_unit_vectors_stays_on_the_sphere():
    first, other = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    result = mixed("slerp", [first, other], (2 / 3, 1 / 3))
    np.testing.assert_allclose(result, [math.cos(math.pi / 6), math.sin(math.pi / 6), 0], atol=1e-15)


@pytest.mark.parametrize("other", [np.zeros(500), "parallel", "opposed", "infinite"])
def test_slerp_is_linear_where_there_is_no_arc(other):
    first = random(500, seed=1)
    noise = random(500, seed=2, scale=0.02)
    others = {"parallel": 2 * first + noise, "opposed": noise - first, "infinite": np.append(noise[1:], -INF)}
    other = (others[other] if isinstance(other, str) else other).astype(np.float32)
    assert bits(mixed("slerp", [first, other], (0.4, 0.6))) == bits(mixed("linear", [first, other], (0.4, 0.6)))


def test_just_beyond_the_bound_slerp_is_an_arc():
    first = np.array([1.0, 0.0])
    for cosine, same in ((0.9996, True), (0.9994, False)):
        other = np.array([cosine, math.sqrt(1 - cosine**2)])
        line = mixed("linear", [first, other], (0.5, 0.5))
        assert np.array_equal(mixed("slerp", [first, other], (0.5, 0.5)), line) is same


@pytest.mark.parametrize("weights", [(0.4,), (1.7,), (-1.0,), (0.4, 0.8), (0.5, -0.2, 0.3)])
def test_task_arithmetic_adds_the_weighted_differences(weights):
    first, *others = family(5000, members=1 + len(weights))
    expected = first.astype(np.float64)
    for weight, other in zip(weights, others, strict=True):
        expected = expected + weight * (other.astype(np.float64) - first)
    result = mixed("task-arithmetic", [first, *others], weights)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("weights", [(1.0,), (0.4,), (0.5, 0.5), (0.7, 0.2, 0.4)])
def test_ties_is_what_it_says_entry_by_entry(weights, density):
    first, *others = family(2000, members=1 + len(weights))
    expected = by_hand_ties(first, others, weights, density)
    result = mixed("ties", [first, *others], weights, Settings(density))
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("density", [1e-6, 0.001, 0.2, 0.7])
def test_ties_finds_the_exact_threshold_of_a_long_tensor(density):
    first, other = np.zeros(LONG, np.float32), random(LONG, seed=3) ** 5
    kept = mixed("ties", [first, other], (1.0,), Settings(density)) != 0
    assert kept.sum() == max(1, round(density * LONG))
    assert np.abs(other[kept]).min() > np.abs(other[~kept]).max()


def test_ties_keeps_all_that_are_as_large_as_the_last_kept():
    other = np.array([1, -2, 2, 3, -2, 0.5, 0, 0, 0, 0], np.float32)
    result = mixed("ties", [np.zeros(10, np.float32), other], (1.0,), Settings(0.2))
    assert result.tolist() == [0, -2, 2, 3, -2, 0, 0, 0, 0, 0]


def test_ties_keeps_at_least_one_entry():
    assert mixed("ties", [np.zeros(1), np.ones(1)], (1.0,), Settings(0.1)).tolist() == [1]


def test_ties_lets_the_minority_of_a_sign_drop_out():
    first = np.zeros(4, np.float32)
    one, two, three = (np.array(row, np.float32) for row in ([3, 1, 0, 1], [1, -4, 2, -1], [-2, 1, 4, 0]))
    result = mixed("ties", [first, one, two, three], (1 / 3, 1 / 3, 1 / 3), Settings(1.0))
    np.testing.assert_allclose(result, [2, -4, 3, 0], rtol=1e-6)


def test_ties_with_a_negative_weight_takes_a_task_away():
    first, one, two = family(400, members=3)
    mirrored = (2 * first.astype(np.float64) - two).astype(np.float64)
    expected = mixed("ties", [first.astype(np.float64), one.astype(np.float64), mirrored], (0.6, 0.3), Settings(0.5))
    result = mixed("ties", [array.astype(np.float64) for array in (first, one, two)], (0.6, -0.3), Settings(0.5))
    np.testing.assert_allclose(result, expected, atol=1e-7)


@pytest.mark.parametrize("method", ["ties", "dare"])
@pytest.mark.parametrize("weight", [0.7, 1.0])
def test_at_density_one_a_single_difference_is_task_arithmetic(method, weight):
    arrays = family(3000, members=2)
    assert bits(mixed(method, arrays, (weight,), Settings(1.0))) == bits(mixed("task-arithmetic", arrays, (weight,)))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_drops_the_share_it_should_and_makes_up_for_it(density):
    first, other = np.zeros(LONG, np.float32), np.ones(LONG, np.float32)
    result = mixed("dare", [first, other], (0.6,), Settings(density))
    assert np.unique(result).tolist() == pytest.approx([0, 0.6 / density])
    spread = 5 * math.sqrt(density * (1 - density) / LONG)
    assert np.mean(result != 0) == pytest.approx(density, abs=spread)
    assert result.mean(dtype=np.float64) == pytest.approx(0.6, abs=0.6 / density * spread)


def test_dare_is_task_arithmetic_of_what_it_kept():
    first, *others = family(4000, members=3)
    zero, ones = np.zeros(4000), np.ones(4000)
    settings = Settings(0.3, seed=5)
    kept = [mixed("dare", [zero, *marked], (1, 1), settings) > 0 for marked in ((ones, zero), (zero, ones))]
    expected = first.astype(np.float64)
    for weight, other, keeps in zip((0.6, 0.2), others, kept, strict=True):
        expected += weight * keeps * (other.astype(np.float64) - first) / 0.3
    np.testing.assert_allclose(mixed("dare", [first, *others], (0.6, 0.2), settings), expected, rtol=1e-6, atol=1e-6)


def test_dare_draws_by_seed_model_and_place():
    zero, ones = np.zeros(LONG, np.float32), np.ones(LONG, np.float32)

    def kept(seed, arrays, weights=(1.0,)):
        return mixed("dare", arrays, weights, Settings(0.5, seed)) != 0

    one = kept(1, [zero, ones])
    assert np.array_equal(one, kept(1, [zero, 2 * ones]))
    others = (
        kept(2, [zero, ones]),
        kept(1, [zero, zero, ones], (1.0, 1.0)),
        np.roll(one, BLOCK),
        np.roll(one, 1),
    )
    for other in others:
        assert np.mean(one == other) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cuts", [(BLOCK, 2 * BLOCK), (1000, 1001, BLOCK + 7, 2 * BLOCK), (), (32768 * 3,)])
def test_any_blocks_in_any_order_give_the_same(method, cuts):
    for weights in (TWO[method], THREE.get(method)):
        if weights:
            arrays = family(LONG, members=len(weights) + (method in DIFFERENCES))
            whole = mixed(method, arrays, weights, Settings(0.4, 3))
            assert bits(by_blocks(method, arrays, weights, Settings(0.4, 3), cuts)) == bits(whole)


def test_blocks_can_be_mixed_on_threads():
    arrays = family(4 * BLOCK, members=3)
    mix = METHODS["dare"]([Counting(array) for array in arrays], (0.5, 0.5), Settings())
    with ThreadPoolExecutor(2) as pool:
        starts = range(0, 4 * BLOCK, BLOCK)
        blocks = list(pool.map(lambda start: mix(start, [a[start : start + BLOCK] for a in arrays]), starts))
    assert bits(np.concatenate(blocks)) == bits(mixed("dare", arrays, (0.5, 0.5)))


@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_whole_tensors_are_looked_at_by_blocks(method):
    sources = [Counting(random(LONG, seed=seed)) for seed in range(2)]
    METHODS[method](sources, TWO[method], Settings())
    passes = {"slerp": 1, "ties": 2}[method]
    assert [source.read_entries for source in sources] == [passes * LONG] * 2
    assert max(source.longest for source in sources) <= BLOCK


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_mixed_with_itself_stays_bit_for_bit(method, count, dtype):
    weights = (TWO if count == 2 else THREE).get(method)
    if weights is None:
        return  # slerp is between two
    array = np.append(random(2000, seed=1), [0.0, -0.0, INF, -INF, 1e-7]).astype(dtype)
    result = mixed(method, [array.copy() for _ in range(count)], weights)
    assert result.dtype == dtype
    assert bits(result) == bits(array)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "slerp"])
@pytest.mark.parametrize("negative", [False, True])
def test_entries_on_which_all_agree_stay_bit_for_bit(method, negative):
    arrays = [random(2000, seed=seed) for seed in range(3)]
    shared = np.append(random(500, seed=9), [-0.0, 0.0, -INF, INF]).astype(np.float32)
    for array in arrays:
        array[700 : 700 + shared.size] = shared
    weights = {"linear": (1.6, -1.0, 0.4)}.get(method, (0.6, -0.3)) if negative else THREE[method]
    result = mixed(method, arrays, weights)
    assert bits(result[700 : 700 + shared.size]) == bits(shared)
    assert not np.isnan(result).any()
    assert (result != arrays[0]).any()


def test_slerp_keeps_negative_zeros():
    first, other = random(100, seed=1), random(100, seed=2)
    first[3] = other[3] = -0.0
    assert bits(mixed("slerp", [first, other], (0.5, 0.5))[3]) == bits(np.float32(-0.0))


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_an_entry_that_a_method_drops_keeps_its_negative_zero(method):
    first, other = np.full(5000, -0.0, np.float32), random(5000, seed=1)
    result = mixed(method, [first, other], (0.5,), Settings(0.2))
    still = result == 0
    assert still.sum() > 3500
    assert np.signbit(result[still]).all()


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_weight_of_one_gives_that_tensor_bit_for_bit(chosen):
    arrays = [random(50, seed=seed) * np.float32(10) ** (12 * seed) for seed in range(3)]
    arrays[chosen][:2] = -0.0, 1e-38
    arrays[(chosen + 1) % 3][5] = np.nan
    weights = [float(index == chosen) for index in range(3)]
    assert bits(mixed("linear", arrays, weights)) == bits(arrays[chosen])
    for method in DIFFERENCES:
        if chosen:
            assert bits(mixed("task-arithmetic", arrays, weights[1:])) == bits(arrays[chosen])
        assert bits(mixed(method, arrays, (0.0, 0.0))) == bits(arrays[0])
    for method in ("ties", "dare"):
        if chosen:
            assert bits(mixed(method, arrays, weights[1:], Settings(1.0))) == bits(arrays[chosen])
    if chosen < 2:
        assert bits(mixed("slerp", arrays[:2], weights[:2])) == bits(arrays[chosen])


@pytest.mark.parametrize("method", METHODS)
def test_terms_of_weight_zero_are_not_read(method):
    arrays = [random(1000, seed=seed) for seed in range(3)]
    weights = {"linear": (0.4, 0.0, 0.6), "slerp": (1.0, 0.0)}.get(method, (0.0, 0.6))
    unread = 1
    arrays = arrays[: 2 if method == "slerp" else 3]
    arrays[unread] = arrays[unread].view(Untouchable)
    sources = [Counting(array, readable=place != unread) for place, array in enumerate(arrays)]
    result = METHODS[method](sources, weights, Settings())(0, arrays)
    assert np.isfinite(result).all()
    with pytest.raises(AssertionError, match="weight 0 was read"):
        METHODS["linear"](sources, [1 / len(arrays)] * len(arrays), Settings())(0, arrays)


def test_what_is_infinite_in_one_tensor_only_is_summed_plainly():
    first = np.array([-INF, 1.0, INF, -INF, 2.0], np.float32)
    other = np.array([1.0, -INF, -INF, -INF, 4.0], np.float32)
    for weights in ((0.25, 0.75), (0.75, 0.25)):
        result = mixed("linear", [first, other], weights)
        np.testing.assert_array_equal(result[:4], [-INF, -INF, np.nan, -INF])
        assert result[4] == 2 * weights[0] + 4 * weights[1]


def test_differences_too_large_for_float32_do_no_harm():
    first, other = np.array([3e38, 1.0], np.float32), np.array([-3e38, 2.0], np.float32)
    assert mixed("linear", [first, other], (0.5, 0.5)).tolist() == [0, 1.5]


def test_the_first_dtype_is_kept():
    half, full = random(64, seed=1, dtype=np.float16), random(64, seed=2)
    result = mixed("linear", [half, full], (0.5, 0.5))
    assert result.dtype == np.float16
    np.testing.assert_array_equal(
        result, (half.astype(np.float64) / 2 + full.astype(np.float64) / 2).astype(np.float16)
    )
    too_large = mixed("task-arithmetic", [half, full * 1e6], (1.0,))
    assert np.isinf(too_large).any()


@pytest.mark.parametrize("method", METHODS)
def test_scalars_and_empty_tensors_keep_their_shape(method):
    weights = {"linear": (0.5, 0.5), "slerp": (0.5, 0.5)}.get(method, (0.5,))
    result = mixed(method, [np.array(1.0), np.array(3.0)], weights, Settings(1.0))
    assert (result.shape, float(result)) == ((), 2.0)
    assert mixed(method, [np.empty((0, 4)), np.empty((0, 4))], weights).shape == (0, 4)


@pytest.mark.parametrize("method", METHODS)
def test_the_inputs_are_left_alone(method):
    arrays = family(500, members=2)
    before = [array.copy() for array in arrays]
    for weights in (TWO[method], {"linear": (1, 0), "slerp": (1, 0)}.get(method, (0,))):
        mixed(method, arrays, weights)[:] = 0
        assert all(map(np.array_equal, arrays, before))


def test_weights_that_do_not_fit_are_refused():
    ones = np.ones(2)
    for method in ("linear", "slerp"):
        for weights in ((0.5, 0.6), (1.0,), (math.nan, 1.0)):
            with pytest.raises(ValueError, match="sum to 1"):
                mixed(method, [ones, ones], weights)
    for method in DIFFERENCES:
        for weights in ((0.5, 0.5), (), (math.nan,), (INF,)):
            with pytest.raises(ValueError, match="finite weights"):
                mixed(method, [ones, ones], weights)
    with pytest.raises(ValueError, match="two tensors"):
        mixed("slerp", [ones, ones, ones], (0.2, 0.3, 0.5))


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        mixed("linear", [np.ones(2), np.ones(1)], (0.5, 0.5))
    with pytest.raises(ValueError, match="whole numbers"):
        mixed("linear", [np.ones(2), np.ones(2, int)], (0.5, 0.5))
    for method in METHODS:
        with pytest.raises(ValueError, match="sizes"):
            METHODS[method]([Counting(np.ones(2)), Counting(np.ones(3))], TWO[method], Settings())


def test_settings_out_of_range_are_refused():
    for wrong in ({"density": 0.0}, {"density": 1.1}, {"density": math.nan}, {"seed": -1}):
        with pytest.raises(ValueError, match="density"):
            Settings(**wrong)


def test_cocktail_weights_are_a_softmax_of_the_losses():
    losses = [0.3, 2.5, 1.0]
    expected = np.exp(-np.array(losses) / 5) / np.exp(-np.array(losses) / 5).sum()
    assert cocktail_weights(losses, 5.0) == pytest.approx(expected.tolist())
    assert cocktail_weights([1e6, 1e6 + 1], 1.0) == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])
    assert cocktail_weights([0.0, 1e9], 1e-3) == [1.0, 0.0]
    assert cocktail_weights([7.0], 5.0) == [1.0]


def test_losses_that_are_no_numbers_are_refused():
    for losses in ([1.0, math.nan], [INF], []):
        with pytest.raises(ValueError, match="losses"):
            cocktail_weights(losses, 5.0)
    with pytest.raises(ValueError, match="temperature"):
        cocktail_weights([1.0], 0.0)


def distance(first, other, block=BLOCK):
    counted = Distance()
    for start in range(0, first.size, block):
        counted.add(first[start : start + block], other[start : start + block])
    return counted


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distance_and_cosine_are_those_of_numpy(dtype):
    first = random(LONG, seed=1, dtype=dtype)
    for other in (random(LONG, seed=2, dtype=dtype, scale=2.0), first + random(LONG, seed=3, dtype=dtype, scale=1e-3)):
        one, two = first.astype(np.float64), other.astype(np.float64)
        lengths = np.linalg.norm(one), np.linalg.norm(two)
        counted = distance(first, other)
        assert counted.value == pytest.approx(np.linalg.norm(one - two) / max(lengths), rel=1e-6)
        assert counted.cosine == pytest.approx(one @ two / lengths[0] / lengths[1], abs=1e-7)
        assert distance(other, first).value == counted.value
        assert distance(first, other, block=1000).value == pytest.approx(counted.value, rel=1e-6)


def test_distance_is_bounded():
    one, zero = random(40, seed=1), np.zeros(40, np.float32)
    assert (distance(one, one).value, distance(one, one).cosine) == (0, pytest.approx(1))
    assert (distance(zero, zero).value, distance(zero, zero).cosine) == (0, 1)
    assert (distance(zero, one).value, distance(zero, one).cosine) == (pytest.approx(1), 0)
    assert (distance(-one, one).value, distance(-one, one).cosine) == (pytest.approx(2), pytest.approx(-1))
    assert (Distance().value, Distance().cosine) == (0, 1)


def test_distance_sees_the_least_difference():
    one = random(1000, seed=1)
    other = one.copy()
    one[7], other[7] = 0.0, 1e-40
    assert distance(one, other).value > 0
    huge = np.full(3, 1e30, np.float32)
    assert distance(huge, 2 * huge).value == pytest.approx(0.5)


def test_distance_with_infinities():
    mask = np.array([-INF, 3.0, 4.0], np.float32)
    assert (distance(mask, mask).value, distance(mask, mask).cosine) == (0, 1)
    assert distance(mask, np.array([-INF, 3.0, 3.0], np.float32)).value == pytest.approx(0.2)
    assert distance(mask, np.array([1, 3.0, 4.0], np.float32)).value == 1
    assert math.isnan(distance(mask, np.array([1, 3.0, 4.0], np.float32)).cosine)
    assert math.isnan(distance(mask, np.array([1, 3.0, np.nan], np.float32)).value)


def test_distance_is_the_same_whatever_the_order_of_blocks():
    first, other = family(LONG // 4, members=2)
    first[: LONG // 8] *= 1e4
    values = set()
    for shuffle in range(4):
        counted = Distance()
        for start in np.random.default_rng(shuffle).permutation(np.arange(0, first.size, 97)):
            counted.add(first[start : start + 97], other[start : start + 97])
        values.add((counted.value, counted.cosine))
    assert len(values) == 1
