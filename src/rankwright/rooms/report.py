"""One self-contained HTML page: what the experiment found, and the queries that show it.

In comes a ReportView of plain values, out goes the page as a string: no network, no fonts, every text escaped.
It does not know the run folder, nor how anything was computed, save the metric by which it picks the queries
to show. What a chart looks like is the templates' business; here stand its coordinates only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Qrels, Run
from rankwright.errors import ConfigError
from rankwright.toolbox import metrics
from rankwright.toolbox.table import Table, arm_name, in_words, interval

Point = tuple[float, float]

PICKED_BY = "ndcg@10"
SHOWN = 10  # documents of a list
_LETTERS = 280  # of a text
_POINTS = 240  # of a curve
_TABLE_ROWS = 40
_PANELS = ("mrr@10", "recall@10", "ndcg@10")


@dataclass(frozen=True)
class ReportView:
    """What the page shows.

    `table` is `Evaluation.table(provenance)`, or table.json read back. `runs` maps the arms of the table to their
    runs, `trainings` a training's name to the records of its log.jsonl, `seconds` a stage to how long it took.
    Arms and trainings that lack a run or a log are told in words; `examples` wins and as many losses are shown.
    """

    title: str
    table: Table
    runs: Mapping[str, Run]
    qrels: Qrels
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    trainings: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    data_lines: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    examples: int = 10


def report(view: ReportView) -> str:
    """The page, as HTML. The same view gives the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("report.html.j2").render(
        title=view.title,
        words=in_words(view.table),
        headline=_headline(view.table),
        means=_mean_plots(view.table),
        trainings=[_training(name, log) for name, log in view.trainings.items()],
        queries=_query_view(view),
        data_lines=view.data_lines,
        seconds=[(stage, _duration(seconds)) for stage, seconds in view.seconds.items()],
        total=_duration(sum(view.seconds.values())),
    )


# ---------------------------------------------------------------------------------------------- the result


class Claim(NamedTuple):
    """One arm against the baseline, in the headline metric."""

    arm: str
    metric: str
    mean: str
    difference: str
    interval: str
    stars: str
    trend: str


def _headline(table: Table) -> list[Claim]:
    baseline = table["arms"][0]
    row = next((row for row in table["rows"] if row["metric"] == PICKED_BY), table["rows"][0])
    claims = []
    for cell in row["cells"][1:]:
        found = cell["versus"][baseline]
        trend = ("up" if found["value"] > 0 else "down") if found["stars"] else "open"
        texts = (f"{cell['mean']:.4f}", f"{found['value']:+.4f}", interval(found["low"], found["high"]), found["stars"])
        claims.append(Claim(arm_name(cell["arm"]), metrics.label(row["metric"]), *texts, trend))
    return claims


# ---------------------------------------------------------------------------------------------- charts


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


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear map of [low, high] to [start, end], rounded to a tenth of a pixel."""
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def _nice(low: float, high: float, about: int) -> list[float]:
    """Round numbers inside [low, high], `about` so many: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(size * power for size in (1, 2, 5, 10) if span / (size * power) <= about)
    return [
        round(step * place, 10) for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
    return low - room, high + room


def _mean_plots(table: Table) -> list[Plot]:
    """Each arm's own mean and interval, for up to three metrics."""
    wanted = [row for row in table["rows"] if row["metric"] in _PANELS] or table["rows"][:3]
    return [_mean_plot(metrics.label(row["metric"]), row["cells"], table["confidence"]) for row in wanted]


def _mean_plot(name: str, cells: Sequence[Mapping[str, Any]], confidence: float) -> Plot:
    left, width, step, top = 96, 330, 26, 14
    bottom = top + step * len(cells)
    low, high = _padded([cell[end] for cell in cells for end in ("low", "high")])
    across = _scale(low, high, left, width - 46)
    marks = [
        {
            "name": arm_name(cell["arm"]),
            "y": top + step * place + step / 2,
            "x": across(cell["mean"]),
            "low": across(cell["low"]),
            "high": across(cell["high"]),
            "mean": f"{cell['mean']:.3f}",
            "baseline": place == 0,
        }
        for place, cell in enumerate(cells)
    ]
    said = "; ".join(f"{arm_name(c['arm'])} {c['mean']:.4f}, {c['low']:.4f} to {c['high']:.4f}" for c in cells)
    ticks = Ticks([(across(value), f"{value:g}") for value in _nice(low, high, 4)], [])
    description = f"Mean and its {confidence * 100:g}% interval: {said}."
    return Plot(name, description, width, bottom + 24, ticks, marks)


class Curve(NamedTuple):
    """A training: its curves, and the numbers behind them."""

    name: str
    loss: Plot | None
    dev: Plot | None
    loss_rows: list[tuple[int, str, str]]
    dev_rows: list[tuple[int, str, bool]]
    dev_metric: str


def _training(name: str, log: Sequence[Mapping[str, Any]]) -> Curve:
    """The curves of one log; a record with ``loss`` is a step, one with ``dev`` an evaluation."""
    steps = [record for record in log if _finite(record.get("loss"))]
    tried = [record for record in log if record.get("dev")]
    metric = next(iter(tried[0]["dev"])) if tried else ""
    tried = [record for record in tried if _finite(record["dev"].get(metric))]
    dev = [(float(record["step"]), float(record["dev"][metric])) for record in tried]
    kept = max((place for place, record in enumerate(tried) if record.get("kept")), default=None)
    loss = [(float(record["step"]), float(record["loss"])) for record in steps]
    lines = [
        (record["step"], f"{record['loss']:.4f}", f"{record['lr']:.2e}" if "lr" in record else "")
        for record in steps[:: math.ceil(len(steps) / _TABLE_ROWS) or 1]
    ]
    return Curve(
        name=name,
        loss=_curve("loss", _thinned(loss)) if loss else None,
        dev=_curve(_label(metric), dev, dots=True, kept=kept) if dev else None,
        loss_rows=lines,
        dev_rows=[(int(step), f"{value:.4f}", place == kept) for place, (step, value) in enumerate(dev)],
        dev_metric=_label(metric) if metric else "",
    )


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _label(metric: str) -> str:
    """A metric's heading; a log may hold one that the table cannot parse."""
    try:
        return metrics.label(metric)
    except ConfigError:
        return metric


def _curve(what: str, points: Sequence[Point], *, dots: bool = False, kept: int | None = None) -> Plot:
    left, right, top, bottom = 52, 468, 12, 178
    (low, high), last = _padded([y for _, y in points]), max(x for x, _ in points)
    across, down = _scale(0, last, left, right), _scale(low, high, bottom, top)
    places = [(across(x), down(y)) for x, y in points]
    marks: list[dict[str, Any]] = [{"line": " ".join(f"{x},{y}" for x, y in places)}]
    if dots:
        marks += [{"x": x, "y": y, "kept": place == kept} for place, (x, y) in enumerate(places)]
    said = f"From {points[0][1]:.4f} at step {points[0][0]:g} to {points[-1][1]:.4f} at step {points[-1][0]:g}."
    if kept is not None:
        said += f" The checkpoint of step {points[kept][0]:g} was kept, with {points[kept][1]:.4f}."
    x_ticks = [(across(x), f"{x:,g}") for x in _nice(0, last, 5)]
    y_ticks = [(down(y), f"{y:g}") for y in _nice(low, high, 6)]
    return Plot(what, said, 480, 212, Ticks(x_ticks, y_ticks), marks)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_POINTS` points: means of equal stretches, so that a long log keeps its shape."""
    size = math.ceil(len(points) / _POINTS)
    stretches = (points[start : start + size] for start in range(0, len(points), size))
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in stretches]


def _histogram(differences: NDArray[np.float64], name: str) -> tuple[Plot, list[tuple[str, int]]]:
    """How many queries won or lost how much, in steps of 0.1; those without a difference are no bar."""
    left, right, top, bottom = 40, 628, 12, 158
    edges = np.arange(-10, 11) / 10
    moved = differences[differences != 0]
    counts = np.histogram(moved, bins=edges)[0].tolist()
    across, up = _scale(-1, 1, left, right), _scale(0, max(*counts, 1), bottom, top)
    bins = [(float(start), int(count)) for start, count in zip(edges, counts, strict=False)]
    marks = [
        {"x": across(start) + 1, "width": (right - left) / 20 - 2, "y": up(count), "height": bottom - up(count)}
        | {"trend": "up" if start >= 0 else "down"}
        for start, count in bins
    ]
    wins, losses = int((moved > 0).sum()), int((moved < 0).sum())
    said = f"{wins:,} queries won, {losses:,} lost, {len(differences) - len(moved):,} did not change."
    x_ticks = [(across(place / 4), f"{place / 4:+g}" if place else "0") for place in range(-4, 5)]
    y_ticks = [(up(count), f"{count:g}") for count in _nice(0, max(*counts, 1), 4) if count == int(count)]
    rows = [(f"{start:+.1f} to {start + 0.1:+.1f}", count) for start, count in bins if count]
    return Plot(name, said, 640, 192, Ticks(x_ticks, y_ticks), marks), rows


# ---------------------------------------------------------------------------------------------- wins and losses


class Hit(NamedTuple):
    """One document of a list; `moved` is in words, `trend` up, down or empty."""

    document: str
    text: str
    score: str
    mark: str
    moved: str
    trend: str


class Example(NamedTuple):
    """One query and its two lists, the baseline's and the arm's."""

    query_id: str
    query: str
    before: str
    after: str
    difference: str
    relevant: int
    lists: list[list[Hit]]


class QueryView(NamedTuple):
    """The arm that is held against the baseline, query by query."""

    arm: str
    baseline: str
    metric: str
    plot: Plot
    rows: list[tuple[str, int]]
    kinds: list[tuple[str, str, list[Example]]]


def _query_view(view: ReportView) -> QueryView | None:
    """Wins and losses of one arm; None where there is no arm, or its run or the baseline's is not given."""
    arm, baseline = _shown_arm(view), view.table["arms"][0]
    if arm is None or baseline not in view.runs:
        return None
    queries = metrics.judged_queries(view.qrels)
    before, after = (metrics.per_query(view.runs[name], view.qrels, [PICKED_BY])[PICKED_BY] for name in (baseline, arm))
    differences = after - before
    order = np.argsort(-differences, kind="stable").tolist()
    wins = [place for place in order if differences[place] > 0][: view.examples]
    losses = [place for place in reversed(order) if differences[place] < 0][: view.examples]

    def examples(places: Iterable[int]) -> list[Example]:
        return [_example(view, queries[place], (baseline, arm), (before[place], after[place])) for place in places]

    plot, rows = _histogram(differences, f"{metrics.label(PICKED_BY)} of {arm_name(arm)} minus {arm_name(baseline)}")
    kinds = [("wins", "Biggest wins", examples(wins)), ("losses", "Biggest losses", examples(losses))]
    return QueryView(arm_name(arm), arm_name(baseline), metrics.label(PICKED_BY), plot, rows, kinds)


def _shown_arm(view: ReportView) -> str | None:
    """fine-tuned, or else the last arm that a training made, or else the last arm."""
    arms = [arm for arm in view.table["arms"][1:] if arm in view.runs]
    trained = [arm for arm in arms if arm in view.trainings]
    return "finetuned" if "finetuned" in arms else next(reversed(trained or arms), None)


def _example(view: ReportView, query: str, arms: tuple[str, str], values: tuple[float, float]) -> Example:
    before, after = (view.runs[arm] for arm in arms)
    grades = view.qrels[query]
    was = {document: rank for rank, document in enumerate(before.documents(query), start=1)}
    now = {document: rank for rank, document in enumerate(after.documents(query), start=1)}
    lists = [
        [_hit(view, hit, grades, _went(now.get(hit[0]))) for hit in before.rankings.get(query, ())[:SHOWN]],
        [
            _hit(view, hit, grades, _came(was.get(hit[0]), rank))
            for rank, hit in enumerate(after.rankings.get(query, ())[:SHOWN], start=1)
        ],
    ]
    return Example(
        query_id=query,
        query=_clip(view.queries.get(query, "") or query),
        before=f"{values[0]:.4f}",
        after=f"{values[1]:.4f}",
        difference=f"{values[1] - values[0]:+.4f}",
        relevant=sum(grade > 0 for grade in grades.values()),
        lists=lists,
    )


def _hit(view: ReportView, hit: tuple[str, float], grades: Mapping[str, int], move: tuple[str, str]) -> Hit:
    document, score = hit
    grade = grades.get(document)
    mark = "unjudged" if grade is None else "relevant" if grade > 0 else "negative"
    return Hit(document, _clip(view.documents.get(document, "") or document), f"{score:.3f}", mark, *move)


def _came(was: int | None, rank: int) -> tuple[str, str]:
    if was is None:
        return "new", "up"
    if was == rank:
        return "=", ""
    return (f"▲ {was - rank}", "up") if was > rank else (f"▼ {rank - was}", "down")


def _went(now: int | None) -> tuple[str, str]:
    return ("gone", "") if now is None else (f"now {now}", "")


def _clip(text: str) -> str:
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1].rstrip() + "…"


def _duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
