"""Where everything in a chart stands: numbers in, a Plot of coordinates out.

A Plot carries its title, a description that says the same in words, and marks that a template draws. Nothing here
knows SVG, colours, arms, runs or metrics.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
Values = NDArray[np.float64]

POINTS = 240  # of a curve
_CELLS = 60  # of a scatter, along each side
_BINS = 40  # of an outline


class Ticks(NamedTuple):
    """Where an axis has marks, and what they say."""

    x: list[tuple[float, str]]
    y: list[tuple[float, str]]


class Plot(NamedTuple):
    """A chart in its own coordinates (y downwards): `marks` are what its macro draws."""

    title: str
    description: str
    width: int
    height: int
    ticks: Ticks
    marks: list[dict[str, Any]]


class Measured(NamedTuple):
    """A named mean and its interval."""

    name: str
    mean: float
    low: float
    high: float


class Average(NamedTuple):
    """What a curve came to by another way than its steps: the mean of several weights, tried at the end."""

    name: str
    step: float
    value: float
    kept: bool


class Step(NamedTuple):
    """A bar of a waterfall, from `start` to `end`; `total`: it stands on zero by itself."""

    name: str
    start: float
    end: float
    said: str
    total: bool = False


class Line(NamedTuple):
    """A named line of `lines`; `chosen` is the place of the point to mark."""

    name: str
    points: Sequence[Point]
    chosen: int | None = None


class Spot(NamedTuple):
    """A named point of a `tradeoff`; those on its line are joined in the order given."""

    name: str
    x: float
    y: float
    on_line: bool = True
    front: bool = False
    chosen: bool = False


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear map of [low, high] to [start, end], rounded to a tenth of a pixel."""
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def nice(low: float, high: float, about: int) -> list[float]:
    """Round numbers inside [low, high], `about` so many: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(size * power for size in (1, 2, 5, 10) if span / (size * power) <= about)
    return [
        round(step * place, 10) for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest value, with some room on both sides."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
    return low - room, high + room


def means(title: str, measured: Sequence[Measured], confidence: float) -> Plot:
    """Means and whiskers, one below the other; the first is the baseline."""
    left, width, step, top = 136, 370, 26, 14
    low, high = padded([end for item in measured for end in (item.low, item.high)])
    across = scale(low, high, left, width - 46)
    marks = [
        {
            "name": item.name,
            "y": top + step * place + step / 2,
            "x": across(item.mean),
            "low": across(item.low),
            "high": across(item.high),
            "mean": f"{item.mean:.3f}",
            "baseline": place == 0,
        }
        for place, item in enumerate(measured)
    ]
    said = "; ".join(f"{item.name} {item.mean:.4f}, {item.low:.4f} to {item.high:.4f}" for item in measured)
    ticks = Ticks([(across(value), f"{value:g}") for value in nice(low, high, 4)], [])
    description = f"Mean and its {confidence * 100:g}% interval: {said}."
    return Plot(title, description, width, top + step * len(measured) + 24, ticks, marks)


def curve(
    title: str,
    points: Sequence[Point],
    *,
    dots: bool = False,
    kept: int | None = None,
    average: Average | None = None,
) -> Plot:
    """A value over the steps of a training; `kept` is the place of the checkpoint that was kept."""
    left, right, top, bottom = 52, 468, 12, 178
    low, high = padded([*(y for _, y in points), *([average.value] if average else [])])
    last = max(x for x, _ in points)
    across, down = scale(0, last, left, right), scale(low, high, bottom, top)
    places = [(across(x), down(y)) for x, y in points]
    marks: list[dict[str, Any]] = [{"line": _path(places)}]
    if dots:
        marks += [{"x": x, "y": y, "kept": place == kept} for place, (x, y) in enumerate(places)]
    said = f"From {points[0][1]:.4f} at step {points[0][0]:g} to {points[-1][1]:.4f} at step {points[-1][0]:g}."
    if kept is not None:
        said += f" The checkpoint of step {points[kept][0]:g} was kept, with {points[kept][1]:.4f}."
    if average:
        at = {"x": across(min(average.step, last)), "y": down(average.value)}
        marks.append({"average": average.name, "kept": average.kept, **at})
        said += f" The {average.name} has {average.value:.4f}{', and was kept' if average.kept else ''}."
    x_ticks = [(across(x), f"{x:,g}") for x in nice(0, last, 5)]
    return Plot(title, said, 480, 212, Ticks(x_ticks, _up(low, high, down)), marks)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `POINTS` points: means of equal stretches, so that a long log keeps its shape."""
    size = math.ceil(len(points) / POINTS)
    stretches = (points[start : start + size] for start in range(0, len(points), size))
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in stretches]


def histogram(differences: Values, title: str) -> tuple[Plot, list[tuple[str, int]]]:
    """How many queries won or lost how much, in steps of 0.1; those without a difference are no bar."""
    left, right, top, bottom = 40, 628, 12, 158
    edges = np.arange(-10, 11) / 10
    moved = differences[differences != 0]
    counts = np.histogram(moved, bins=edges)[0].tolist()
    across, up = scale(-1, 1, left, right), scale(0, max(*counts, 1), bottom, top)
    bins = [(float(start), int(count)) for start, count in zip(edges, counts, strict=False)]
    marks = [
        {"x": across(start) + 1, "width": (right - left) / 20 - 2, "y": up(count), "height": bottom - up(count)}
        | {"trend": "up" if start >= 0 else "down"}
        for start, count in bins
    ]
    wins, losses = int((moved > 0).sum()), int((moved < 0).sum())
    said = f"{wins:,} queries won, {losses:,} lost, {len(differences) - len(moved):,} did not change."
    x_ticks = [(across(place / 4), f"{place / 4:+g}" if place else "0") for place in range(-4, 5)]
    y_ticks = [(up(count), f"{count:g}") for count in nice(0, max(*counts, 1), 4) if count == int(count)]
    rows = [(f"{start:+.1f} to {start + 0.1:+.1f}", count) for start, count in bins if count]
    return Plot(title, said, 640, 192, Ticks(x_ticks, y_ticks), marks), rows


def waterfall(title: str, steps: Sequence[Step]) -> Plot:
    """Bars one below the other, each from where the last one ended; nearer to zero is `up`, farther is `down`."""
    left, width, step, top = 250, 720, 28, 8
    low, high = padded([0.0, *(end for item in steps for end in (item.start, item.end))])
    across = scale(low, high, left, width - 110)
    marks = []
    for place, item in enumerate(steps):
        ends = sorted((across(item.start), across(item.end)))
        trend = "total" if item.total else "up" if abs(item.end) < abs(item.start) else "down"
        marks.append(
            {"name": item.name, "said": item.said, "trend": trend, "y": top + step * place + 4, "height": step - 8}
            | {"x": ends[0], "width": max(round(ends[1] - ends[0], 1), 1.0), "end": across(item.end)}
            | {"last": place == len(steps) - 1}
        )
    ticks = Ticks([(across(value), f"{value:g}") for value in nice(low, high, 5)], [])
    said = "; ".join(f"{item.name} {item.said}" for item in steps)
    return Plot(title, f"{said}.", width, top + step * len(steps) + 24, ticks, marks)


def lines(title: str, drawn: Sequence[Line], *, level: tuple[str, float] | None = None, log: bool = False) -> Plot:
    """Lines over the same few places of x, each with its chosen point; `level` is a named horizontal line."""
    left, right, top, bottom = 52, 468, 12, 178
    xs = sorted({x for line in drawn for x, _ in line.points})
    low, high = padded([*(y for line in drawn for _, y in line.points), *([level[1]] if level else [])])
    warp: Callable[[float], float] = math.log if log else float
    along, down = scale(warp(xs[0]), warp(xs[-1]), left, right), scale(low, high, bottom, top)
    marks: list[dict[str, Any]] = []
    said = []
    if level:
        marks.append({"level": down(level[1]), "name": level[0]})
        said.append(f"{level[0]} {level[1]:.4f}")
    for place, line in enumerate(drawn):
        places = [(along(warp(x)), down(y)) for x, y in line.points]
        marks.append({"line": _path(places), "place": place, "name": line.name, "dots": places})
        said.append(f"{line.name}: " + ", ".join(f"{y:.4f} at {x:g}" for x, y in line.points))
        if line.chosen is not None:
            x, y = line.points[line.chosen]
            marks.append({"chosen": True, "x": places[line.chosen][0], "y": places[line.chosen][1]})
            said.append(f"chosen: {x:g}, with {y:.4f}")
    shown = xs if log else nice(xs[0], xs[-1], 5)
    return Plot(
        title,
        "; ".join(said) + ".",
        480,
        212,
        Ticks([(along(warp(x)), f"{x:g}") for x in shown], _up(low, high, down)),
        marks,
    )


def outlines(title: str, named: Sequence[tuple[str, Values]]) -> Plot:
    """Histograms over the same bins, each in shares of its own, drawn as outlines; the empty ones are left out."""
    left, right, top, bottom = 52, 468, 12, 178
    known = [(name, values) for name, values in named if len(values)]
    everything = np.concatenate([values for _, values in known])
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    shares = [np.histogram(values, bins=edges)[0] / len(values) for _, values in known]
    most = max(float(share.max()) for share in shares)
    across, down = scale(float(edges[0]), float(edges[-1]), left, right), scale(0, most, bottom, top)
    marks: list[dict[str, Any]] = []
    for place, ((name, _), share) in enumerate(zip(known, shares, strict=True)):
        corners: list[Point] = [(float(edges[0]), 0.0)]
        for start, end, height in zip(edges[:-1], edges[1:], share, strict=True):
            corners += [(float(start), float(height)), (float(end), float(height))]
        corners.append((float(edges[-1]), 0.0))
        marks.append({"line": _path([(across(x), down(y)) for x, y in corners]), "place": place, "name": name})
    said = "; ".join(
        f"{name}: {len(values):,}, the middle one at {np.median(values):.3f}, "
        f"half of them from {np.quantile(values, 0.25):.3f} to {np.quantile(values, 0.75):.3f}"
        for name, values in known
    )
    x_ticks = [(across(x), f"{x:g}") for x in nice(float(edges[0]), float(edges[-1]), 6)]
    y_ticks = [(down(y), f"{y:.0%}" if most > 0.05 else f"{y:.1%}") for y in nice(0, most, 4)]
    return Plot(title, f"{said}.", 480, 212, Ticks(x_ticks, y_ticks), marks)


def scatter(title: str, x: Values, y: Values) -> Plot:
    """One value against another, both from 0 to 1; points that fall together are one, and larger."""
    left, right, top, bottom = 44, 384, 12, 352
    across, down = scale(0, 1, left, right), scale(0, 1, bottom, top)
    cells = Counter(zip(np.rint(x * _CELLS).tolist(), np.rint(y * _CELLS).tolist(), strict=True))
    marks = [
        {
            "x": across(a / _CELLS),
            "y": down(b / _CELLS),
            "r": round(min(3.5 + math.sqrt(count - 1), 14), 1),
            "trend": "up" if b > a else "down" if b < a else "same",
        }
        for (a, b), count in sorted(cells.items(), key=lambda item: (-item[1], item[0]))
    ]
    above, below = int((y > x).sum()), int((y < x).sum())
    said = f"{above:,} queries above the diagonal, {below:,} below it, {len(x) - above - below:,} on it."
    ticks = [(place / 4, f"{place / 4:g}") for place in range(5)]
    return Plot(
        title, said, 400, 392, Ticks([(across(v), t) for v, t in ticks], [(down(v), t) for v, t in ticks]), marks
    )


def tradeoff(title: str, axes: tuple[str, str], spots: Sequence[Spot], least: float) -> Plot:
    """One mean against another, each point named; from `least` on along x lies what may be chosen.

    `axes` are the names of x and y, for the description.
    """
    left, right, top, bottom = 56, 468, 26, 282
    low, high = padded([*(spot.x for spot in spots), least])
    bottom_value, top_value = padded([spot.y for spot in spots])
    across, down = scale(low, high, left, right), scale(bottom_value, top_value, bottom, top)
    places = [(across(spot.x), down(spot.y)) for spot in spots]
    marks: list[dict[str, Any]] = [{"allowed": across(least), "width": round(right - across(least), 1)}]
    line = [place for place, spot in zip(places, spots, strict=True) if spot.on_line]
    if len(line) > 1:
        marks.append({"line": _path(line)})
    taken = [_around(place, 6) for place in places] + [_around(place, 1) for place in _along(line)]
    labels = _labels([spot.name for spot in spots], places, taken, (left, right, top, bottom))
    for spot, (x, y), (at, beneath, anchor) in zip(spots, places, labels, strict=True):
        marks.append(
            {"name": spot.name, "x": x, "y": y, "at": at, "beneath": beneath, "anchor": anchor}
            | {"front": spot.front, "chosen": spot.chosen, "on_line": spot.on_line}
        )
    said = [f"{axes[1]} against {axes[0]}"]
    for spot in spots:
        words = [word for word, holds in (("front", spot.front), ("chosen", spot.chosen)) if holds]
        said.append(f"{spot.name}: {spot.y:.4f} against {spot.x:.4f}" + (f" ({', '.join(words)})" if words else ""))
    said.append(f"what may be chosen lies at {least:.4f} or above on {axes[0]}")
    ticks = Ticks([(across(x), f"{x:g}") for x in nice(low, high, 5)], _up(bottom_value, top_value, down))
    return Plot(title, "; ".join(said) + ".", 480, 320, ticks, marks)


Box = tuple[float, float, float, float]  # left, right, top, bottom


def _around(place: Point, room: float) -> Box:
    x, y = place
    return x - room, x + room, y - room, y + room


def _along(places: Sequence[Point]) -> list[Point]:
    """Points every few pixels of a line."""
    found = []
    for (x, y), (there, down) in itertools.pairwise(places):
        count = int(math.hypot(there - x, down - y) // 5) + 1
        found += [(x + (there - x) * step / count, y + (down - y) * step / count) for step in range(count)]
    return found


def _labels(
    names: Sequence[str], places: Sequence[Point], taken: Sequence[Box], inside: Box
) -> list[tuple[float, float, str]]:
    """Where each name stands beside its point (x, baseline, anchor): clear of what is taken, and of other names."""
    full, found = list(taken), []
    for name, (x, y) in zip(names, places, strict=True):
        wide = 6.4 * len(name)
        options = [
            (anchor, x + dx, y + dy)
            for distance in (11, 20, 30)
            for anchor, dx, dy in (
                ("start", distance, 4),
                ("end", -distance, 4),
                ("middle", 0, -distance),
                ("middle", 0, distance + 9),
                ("start", distance, -distance),
                ("start", distance, distance + 4),
                ("end", -distance, -distance),
                ("end", -distance, distance + 4),
            )
            if dy != 4 or distance == 11  # farther along the same height, a name would seem another point's
        ]
        boxes = [_box(anchor, at, beneath, wide) for anchor, at, beneath in options]
        clashes = [_clashes(box, full, inside) for box in boxes]
        place = clashes.index(min(clashes))
        full.append(boxes[place])
        anchor, at, beneath = options[place]
        found.append((round(at, 1), round(beneath, 1), anchor))
    return found


def _box(anchor: str, at: float, beneath: float, wide: float) -> Box:
    start = at - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
    return start, start + wide, beneath - 10, beneath + 2


def _clashes(box: Box, taken: Sequence[Box], inside: Box) -> int:
    """How many boxes it lies over; leaving the frame is as bad as ten."""
    left, right, top, bottom = box
    outside = left < inside[0] or right > inside[1] or top < inside[2] or bottom > inside[3]
    return 10 * outside + sum(
        left < other[1] and other[0] < right and top < other[3] and other[2] < bottom for other in taken
    )


def _path(places: Sequence[Point]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _up(low: float, high: float, down: Callable[[float], float]) -> list[tuple[float, str]]:
    return [(down(y), f"{y:g}") for y in nice(low, high, 6)]
