"""Ways to make one tensor of several that play the same part in different models.

In come the tensors, flattened, each as something that reads a stretch of it, and weights; out comes a function that
mixes one block. So no whole tensor need be in memory, and blocks can be mixed in any order, on several threads. What
a method must know of whole tensors (an angle, a threshold) it finds first, block by block.

Nothing here knows a model, a file, or a tensor's name. A new method is one function and one line in METHODS.

What every method keeps, bit for bit: entries of which all models hold the same value (slerp: of tensors that are
equal as a whole), -0.0 and infinities among them; and where one weight is 1 and the others are 0, that one's tensor
(ties, dare: at density 1). A term of weight 0 is not read. Arithmetic is float64 where any block is, else float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
"""A flat stretch of a tensor, float32 or float64."""

Mix: TypeAlias = "Callable[[int, Sequence[Array]], Array]"
"""(where the block starts in the tensor, one block a source) -> the mixed block, which may be one of those given."""

BLOCK = 1 << 18
"""Entries to read and mix at a time: 1 MB of float32. Any size gives the same entries."""

_PIECE = 1 << 15  # entries an operation works on at a time: what it reads and writes stays in a core's cache
_ROW = 256  # products summed in the block's own precision before float64 takes over
_PARALLEL = 0.9995  # mergekit's bound; there, the arc is the line


class Source(Protocol):
    """One model's tensor, flattened."""

    @property
    def size(self) -> int:
        """How many entries."""

    def read(self, start: int, stop: int) -> Array:
        """Entries start:stop as float32 (narrower ones widened) or float64. The same ones may be asked for again."""


@dataclass(frozen=True)
class Settings:
    """Of ties and dare: the share of each difference that is kept; of dare: the seed (0 or more) of its draws.

    Raises:
        ValueError: the density is not above 0 and at most 1, or the seed is negative.
    """

    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or self.seed < 0:
            raise ValueError(f"density {self.density} must be above 0 and at most 1, and seed {self.seed} not negative")


Method: TypeAlias = "Callable[[Sequence[Source], Sequence[float], Settings], Mix]"


def linear(sources: Sequence[Source], weights: Sequence[float], settings: Settings = Settings()) -> Mix:
    """The weighted mean ``sum of w_i t_i`` of any number of tensors, for weights that sum to 1.

    Computed as ``h - sum of w_i (h - t_i)`` from the tensor h of the largest weight (the first of several). In float32
    the error is at most 2^-24 (|result| + (n + 1) sum of |w_i (h - t_i)|) for n tensors: of an average of two of like
    sign, 4 units in the last place, and as a rule none or one. Entries that this makes infinite or NaN are computed
    anew as the plain sum in float64.

    Raises:
        ValueError: the weights do not sum to 1 (to 1e-6), are not one a tensor, or the sizes differ.
    """
    if len(sources) != len(weights) or not abs(math.fsum(weights) - 1) <= 1e-6:
        raise ValueError(f"{len(sources)} tensors need as many weights that sum to 1, not {list(weights)}")
    _check_sizes(sources)
    home = max(range(len(weights)), key=lambda place: weights[place])
    return partial(_move, home, [(place, weight) for place, weight in enumerate(weights) if weight and place != home])


def slerp(sources: Sequence[Source], weights: Sequence[float], settings: Settings = Settings()) -> Mix:
    """A way along the arc between two tensors (Shoemake 1985): ``(sin((1-t)a) x + sin(ta) y) / sin a``.

    The weights are (1 - t, t), and a is the angle between x and y as vectors. As in mergekit, lengths are mixed too:
    the factors apply to the tensors themselves. Tensors that are nearly parallel (|cos a| > 0.9995), zero, or not
    finite are mixed by `linear`, and so are t = 0 and t = 1.

    Raises:
        ValueError: there are not two tensors, or as for `linear`.
    """
    if len(sources) != 2:
        raise ValueError(f"slerp is between two tensors, not {len(sources)}")
    straight = linear(sources, weights)
    angle = None if 0 in weights else _angle(sources)
    if angle is None:
        return straight
    return partial(_arc, math.sin(weights[0] * angle) / math.sin(angle), math.sin(weights[1] * angle) / math.sin(angle))


def task_arithmetic(sources: Sequence[Source], weights: Sequence[float], settings: Settings = Settings()) -> Mix:
    """``first + sum of w_i (t_i - first)`` over the tensors after the first (Ilharco et al. 2022, arXiv:2212.04089).

    Computed as `linear` with the weight 1 - (sum of w_i) for the first, which is the same sum; precision as there.

    Raises:
        ValueError: the weights are not finite, are not one for each tensor after the first, or the sizes differ.
    """
    _check_differences(sources, weights)
    return linear(sources, [1 - math.fsum(weights), *weights])


def ties(sources: Sequence[Source], weights: Sequence[float], settings: Settings = Settings()) -> Mix:
    """Differences from the first tensor, trimmed, agreed on a sign, and merged (Yadav et al. 2023, arXiv:2306.01708).

    1. Trim: of the n entries of each difference d_i = t_i - first, the round(density n) (at least one) of largest
       magnitude stay, and all that are as large as the last of these; the others become 0. Magnitudes are compared
       as float32.
    2. Elect: an entry's sign is that of the sum of w_i d_i.
    3. Merge: the mean of those d_i that are not 0 and whose w_i d_i has this sign, weighted by w_i, times the sum of
       all w_i, is added to the first. (Of negative weights, which subtract a task, the mean counts the size, as does
       the sum; their signs go to the differences.)

    At density 1 with one model after the first, this is `task_arithmetic`. An entry that is infinite in some tensors
    only may become NaN. Reads the tensors twice.

    Raises:
        ValueError: as for `task_arithmetic`.
    """
    _check_differences(sources, weights)
    terms = [(place, weight) for place, weight in enumerate(weights, 1) if weight]
    if not terms or (len(terms) == 1 and settings.density == 1):
        return task_arithmetic(sources, weights)
    bounds = _thresholds(sources, [place for place, _ in terms], settings.density)
    return partial(_elect, [(place, weight, bound) for (place, weight), bound in zip(terms, bounds, strict=True)])


def dare(sources: Sequence[Source], weights: Sequence[float], settings: Settings = Settings()) -> Mix:
    """`task_arithmetic` of differences thinned at random and made up for (Yu et al. 2023, arXiv:2311.03099).

    Each entry of each difference is dropped with probability 1 - density, and the others are divided by density. What
    is dropped depends only on the seed, the tensor's place among `sources`, and the entry's place in the tensor. An
    entry that is infinite in some tensors only may become NaN.

    Raises:
        ValueError: as for `task_arithmetic`.
    """
    _check_differences(sources, weights)
    terms = [(place, weight) for place, weight in enumerate(weights, 1) if weight]
    if not terms or settings.density == 1:
        return task_arithmetic(sources, weights)
    return partial(_thin, terms, settings)


METHODS: dict[str, Method] = {
    "linear": linear,
    "slerp": slerp,
    "task-arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
}
"""Each looks at whole tensors where it must, and returns what mixes one block of them."""


def mixed(method: str, arrays: Sequence[Array], weights: Sequence[float], settings: Settings = Settings()) -> Array:
    """Whole arrays of floats (16 to 64 bits) mixed into a new one of their shape and the first one's dtype.

    Raises:
        ValueError: the shapes differ, an array is of whole numbers, or the method refuses the weights.
        KeyError: METHODS has no such method.
    """
    first = arrays[0]
    if any(array.shape != first.shape for array in arrays):
        raise ValueError(f"shapes differ: {[array.shape for array in arrays]}")
    if not all(np.issubdtype(array.dtype, np.floating) for array in arrays):
        raise ValueError("whole numbers cannot be mixed")
    sources = [_Whole(array) for array in arrays]
    mix = METHODS[method](sources, weights, settings)
    result = np.empty(first.size, first.dtype)
    for start in range(0, first.size, BLOCK):
        stop = min(start + BLOCK, first.size)
        with np.errstate(over="ignore"):
            result[start:stop] = mix(start, [source.read(start, stop) for source in sources])
    return result.reshape(first.shape)


def cocktail_weights(losses: Sequence[float], temperature: float) -> list[float]:
    """``softmax(-loss / temperature)``: one weight a model, by its mean loss on a few examples.

    The formula of LM-Cocktail (Xiao et al. 2023, arXiv:2311.13534), whose code has the temperature 5.

    Raises:
        ValueError: there is no loss, one is not finite, or the temperature is not above 0.
    """
    if not losses or not all(map(math.isfinite, losses)):
        raise ValueError(f"losses must be finite, and at least one, not {list(losses)}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature} is not above 0")
    least = min(losses)
    shares = [math.exp((least - loss) / temperature) for loss in losses]
    whole = math.fsum(shares)
    return [share / whole for share in shares]


class Distance:
    """How far two tensors are apart, fed block by block.

    Several threads may add at a time, in any order: the values are the same.
    """

    def __init__(self) -> None:
        self._squares: list[tuple[float, float, float]] = []

    def add(self, first: Array, other: Array) -> None:
        """Count one block of each (of the same size, flat)."""
        with np.errstate(invalid="ignore", over="ignore"):
            squares = [_squares(first[here], other[here]) for here in _pieces(first.size)]
        self._squares.extend(squares)

    @property
    def value(self) -> float:
        """``|first - other| / max(|first|, |other|)`` with Euclidean norms: 0 is equal, at most 2; 1 against zeros.

        Entries that are the same infinity do not set tensors apart; other infinities give 1, and NaN gives NaN.
        """
        apart, *lengths = self._lengths()
        return apart / max(lengths) if apart and apart < math.inf else 1.0 if apart == math.inf else apart

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two, -1 to 1: 0 if one is zero, 1 if both are; NaN if one is not finite.

        It is ``(|first|^2 + |other|^2 - |first - other|^2) / (2 |first| |other|)``.
        """
        apart, first, other = self._lengths()
        if not first or not other:
            return float(first == other)
        cosine = (first / other + other / first - (apart / first) * (apart / other)) / 2
        return cosine if math.isnan(cosine) else max(-1.0, min(1.0, cosine))

    def _lengths(self) -> tuple[float, float, float]:
        apart, first, other = (math.sqrt(math.fsum(squares[place] for squares in self._squares)) for place in range(3))
        return apart, first, other


class _Whole:
    """An array in memory as a Source."""

    def __init__(self, array: Array) -> None:
        self._flat = array.reshape(-1)
        self.size = self._flat.size

    def read(self, start: int, stop: int) -> Array:
        flat = self._flat[start:stop]
        return flat if flat.dtype == np.float64 else flat.astype(np.float32, copy=False)


def _check_sizes(sources: Sequence[Source]) -> None:
    if len({source.size for source in sources}) > 1:
        raise ValueError(f"sizes differ: {[source.size for source in sources]}")


def _check_differences(sources: Sequence[Source], weights: Sequence[float]) -> None:
    if len(weights) != len(sources) - 1 or not all(map(math.isfinite, weights)):
        raise ValueError(f"{len(sources) - 1} tensors after the first need as many finite weights, not {list(weights)}")
    _check_sizes(sources)


def _pieces(size: int) -> Iterator[slice]:
    for start in range(0, size, _PIECE):
        yield slice(start, start + _PIECE)


def _read(sources: Sequence[Source]) -> Iterator[list[Array]]:
    """The same piece of each, piece after piece, read by blocks."""
    for start in range(0, sources[0].size, BLOCK):
        blocks = [source.read(start, min(start + BLOCK, source.size)) for source in sources]
        for here in _pieces(blocks[0].size):
            yield [block[here] for block in blocks]


def _move(home: int, others: Sequence[tuple[int, float]], start: int, blocks: Sequence[Array]) -> Array:
    """``h - sum of w (h - t)``: in this order, -0.0 - 0.0 stays -0.0 and no entry that all share needs a mask."""
    base = blocks[home]
    if not others:
        return base
    moved = np.empty(base.size, np.result_type(base, *(blocks[place] for place, _ in others)))
    check = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for here in _pieces(base.size):
            (place, weight), *rest = others
            steps = _step(base[here], blocks[place][here], weight, moved[here])
            for place, weight in rest:
                steps += _step(base[here], blocks[place][here], weight, np.empty_like(steps))
            np.subtract(base[here], steps, out=steps)
            check += float(np.add.reduce(steps))
        if not math.isfinite(check):
            _repair(moved, base, [(blocks[place], weight) for place, weight in others])
    return moved


def _step(base: Array, other: Array, weight: float, out: Array) -> Array:
    """``weight * (base - other)`` into `out`, and 0.0, never -0.0, where they are equal."""
    if weight > 0:
        np.subtract(base, other, out=out)
    else:
        np.subtract(other, base, out=out)
    out *= abs(weight)
    return out


def _repair(moved: Array, base: Array, others: Sequence[tuple[Array, float]]) -> None:
    """Where infinities or too large differences were subtracted: the value that all share, or the plain sum."""
    bad = ~np.isfinite(moved)
    shared = np.logical_and.reduce([other[bad] == base[bad] for other, _ in others])
    plain = base[bad].astype(np.float64) * (1 - math.fsum(weight for _, weight in others))
    for other, weight in others:
        plain += other[bad].astype(np.float64) * weight
    moved[bad] = np.where(shared, base[bad], plain)


def _arc(first_factor: float, other_factor: float, start: int, blocks: Sequence[Array]) -> Array:
    first, other = blocks
    moved = np.empty(first.size, np.result_type(first, other))
    for here in _pieces(first.size):
        np.multiply(first[here], first_factor, out=moved[here])
        moved[here] += other[here] * other_factor
    return moved


def _angle(sources: Sequence[Source]) -> float | None:
    """The angle between two tensors, or None where there is no arc: nearly parallel, zero, or not finite."""
    first_square = other_square = product = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for first, other in _read(sources):
            first_square += _dot(first, first)
            other_square += _dot(other, other)
            product += _dot(first, other)
    lengths = math.sqrt(first_square) * math.sqrt(other_square)
    if not 0 < lengths < math.inf or not abs(product / lengths) <= _PARALLEL:
        return None
    return math.acos(product / lengths)


def _dot(one: Array, other: Array) -> float:
    """The sum of products; rows of 256 in their own precision, rows and what is left in float64."""
    rows = one.size // _ROW * _ROW
    total = float(np.vecdot(one[:rows].reshape(-1, _ROW), other[:rows].reshape(-1, _ROW)).sum(dtype=np.float64))
    total += float(np.vecdot(one[rows:], other[rows:]))
    if (total == 0 or not math.isfinite(total)) and one.dtype == np.float32:
        return _dot(one.astype(np.float64), other.astype(np.float64))  # float32 squares end at 1e-45 and 3e38
    return total


def _squares(first: Array, other: Array) -> tuple[float, float, float]:
    """The squared lengths of the difference and of both, without entries that are the same infinity."""
    apart = _apart(first, other)
    squares = _dot(apart, apart), _dot(first, first), _dot(other, other)
    if math.isfinite(sum(squares)) or not (shared := np.isinf(first) & (first == other)).any():
        return squares
    first, other = first[~shared], other[~shared]
    return squares[0], _dot(first, first), _dot(other, other)


def _apart(first: Array, other: Array) -> Array:
    """``first - other``, and 0 where both are the same infinity."""
    apart: Array = np.subtract(first, other)
    if not math.isfinite(float(np.add.reduce(apart))):
        apart[first == other] = 0
    return apart


def _magnitudes(apart: Array) -> NDArray[np.float32]:
    magnitudes: NDArray[np.float32] = np.abs(apart.astype(np.float32, copy=False))
    return magnitudes


def _thresholds(sources: Sequence[Source], places: Sequence[int], density: float) -> list[float]:
    """For each place, the magnitude of the last of the round(density n) largest differences from the first tensor.

    A float32 that is not negative has the order of its bits: the upper 16 of those sought are found by counting in a
    first pass, the lower 16 by counting, in a second one, among the entries that share the upper ones.
    """
    if density == 1:
        return [0.0] * len(places)
    kept = [(0, max(1, round(density * sources[0].size)))] * len(places)
    wanted = [sources[0], *(sources[place] for place in places)]
    counts = np.zeros((len(places), 1 << 16), np.int64)  # the sign is 0: the upper half stays empty in the first pass
    with np.errstate(invalid="ignore", over="ignore"):
        for first, *others in _read(wanted):
            for row, other in zip(counts, others, strict=True):
                row[: 1 << 15] += np.bincount(
                    _magnitudes(_apart(first, other)).view(np.uint32) >> 16, minlength=1 << 15
                )
        kept = [_from_top(row, left) for row, (_, left) in zip(counts, kept, strict=True)]
        counts[:] = 0
        for first, *others in _read(wanted):
            for row, other, (upper, _) in zip(counts, others, kept, strict=True):
                bits = _magnitudes(_apart(first, other)).view(np.uint32)
                np.add.at(row, bits[bits >> 16 == upper] & 0xFFFF, 1)  # few: no count of 65,536 kinds each time
    found = [upper << 16 | _from_top(row, left)[0] for row, (upper, left) in zip(counts, kept, strict=True)]
    return [float(bits) for bits in np.array(found, np.uint32).view(np.float32)]


def _from_top(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The place of the `wanted`-th when counting down from the last place, and how many are wanted from that place."""
    downwards = np.cumsum(counts[::-1])
    steps = int(np.searchsorted(downwards, wanted))
    if steps == downwards.size:  # of no entries, none can be wanted
        return 0, 0
    return counts.size - 1 - steps, wanted - int(downwards[steps] - counts[::-1][steps])


def _elect(terms: Sequence[tuple[int, float, float]], start: int, blocks: Sequence[Array]) -> Array:
    first = blocks[0]
    moved = np.empty(first.size, np.result_type(first, *(blocks[place] for place, _, _ in terms)))
    weights = [abs(weight) for _, weight, _ in terms]
    with np.errstate(invalid="ignore", over="ignore"):
        for here in _pieces(first.size):
            steps = []
            for place, weight, bound in terms:
                apart = _apart(first[here], blocks[place][here])
                apart *= _magnitudes(apart) >= bound
                apart *= weight
                steps.append(apart)
            _take(first[here], steps[0] if len(steps) == 1 else _agreed(steps, weights), moved[here])
    return moved


def _agreed(steps: Sequence[Array], weights: Sequence[float]) -> Array:
    """The sum of those steps that have the sign of the sum of all, as if all had had it."""
    total: Array = sum(steps[1:], steps[0])
    up, down = total > 0, total < 0
    agreed = np.zeros_like(total)
    share = np.zeros_like(total)
    for step, weight in zip(steps, weights, strict=True):
        agrees = (step > 0) & up | (step < 0) & down
        agreed += step * agrees
        share += agrees * total.dtype.type(weight)
    np.maximum(share, min(weights), out=share)  # where none agrees, there is nothing to divide
    agreed *= math.fsum(weights)
    agreed /= share
    return agreed


def _thin(terms: Sequence[tuple[int, float]], settings: Settings, start: int, blocks: Sequence[Array]) -> Array:
    first = blocks[0]
    moved = np.empty(first.size, np.result_type(first, *(blocks[place] for place, _ in terms)))
    bound = round(settings.density * 2**32)
    kept = [_draws(settings.seed, place, start, start + first.size) < bound for place, _ in terms]
    with np.errstate(invalid="ignore", over="ignore"):
        for here in _pieces(first.size):
            steps: Array | None = None
            for (place, weight), keeps in zip(terms, kept, strict=True):
                apart = _apart(first[here], blocks[place][here])
                apart *= keeps[here]
                apart *= weight / settings.density
                steps = apart if steps is None else steps + apart
            if steps is not None:
                _take(first[here], steps, moved[here])
    return moved


def _take(first: Array, steps: Array, out: Array) -> None:
    """``first - steps`` into `out`; a step of -0.0 must not make a -0.0 of the first to 0.0."""
    steps += 0.0  # -0.0 + 0.0 is 0.0, and -0.0 - 0.0 is -0.0
    np.subtract(first, steps, out=out)


def _draws(seed: int, place: int, start: int, stop: int) -> NDArray[np.uint32]:
    """Evenly random 32-bit numbers for entries start:stop: each stretch of BLOCK entries has a generator of its own."""
    parts = []
    for number in range(start // BLOCK, -(-stop // BLOCK)):
        low, high = max(start - number * BLOCK, 0), min(stop - number * BLOCK, BLOCK)
        pairs = np.random.PCG64DXSM([seed, place, number]).random_raw((high + 1) // 2)
        parts.append(pairs.astype("<u8", copy=False).view("<u4")[low:high])
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint32), *parts])
