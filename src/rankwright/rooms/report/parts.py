"""The parts of the page, from the verdict to the curves: plain values in, charts and texts for the templates out.

Each is a function of what it shows. It knows no HTML, and nothing of single queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwright.errors import ConfigError
from rankwright.rooms.report.view import BLEND, ReportView, compared
from rankwright.toolbox import charts, metrics
from rankwright.toolbox.charts import Average, Line, Measured, Plot, Spot, Step
from rankwright.toolbox.table import Table, arm_name, interval
from rankwright.toolbox.traininglog import evaluations

Values = NDArray[np.float64]

PICKED_BY = "ndcg@10"
_TABLE_ROWS = 40
_BAR = 120.0  # width of a trial's bar
_PANELS = ("mrr@10", "recall@10", "ndcg@10")
_TONES = {"ship": "up", "blend": "up", "keep retrieval": "down"}


# ---------------------------------------------------------------------------------------------- the result


class Verdict(NamedTuple):
    """The word, whether it is good news, its lines, and what is to be served."""

    word: str
    tone: str
    lines: list[str]
    serve: str


def verdict(verdict: Mapping[str, Any] | None) -> Verdict | None:
    """The verdict in words; None without one."""
    if verdict is None:
        return None
    word = str(verdict["word"])
    parts = [arm_name(str(verdict["arm"]))] if verdict.get("arm") else []
    parts += [f"weight {verdict['weight']:g}"] if verdict.get("weight") is not None else []
    parts += [f"depth {verdict['depth']:,}"] if verdict.get("depth") is not None else []
    slug = word.casefold()
    said = verdict.get("lines") or verdict.get("reasons") or ()
    lines = [str(line) for line in said if not str(line).startswith("verdict:")]  # the heading is that line
    serve = "" if slug == "keep retrieval" else ", ".join(parts)
    return Verdict(word, _TONES.get(slug, "open"), lines, f"decided on {serve}" if slug == "inconclusive" else serve)


class Claim(NamedTuple):
    """One arm against the baseline, in the headline metric."""

    arm: str
    metric: str
    mean: str
    difference: str
    interval: str
    stars: str
    trend: str


def headline(table: Table) -> list[Claim]:
    """Each arm against the first one, in the metric that readers look for."""
    baseline = table["arms"][0]
    row = next((row for row in table["rows"] if row["metric"] == PICKED_BY), table["rows"][0])
    claims = []
    for cell in row["cells"][1:]:
        found = cell["versus"][baseline]
        trend = ("up" if found["value"] > 0 else "down") if found["stars"] else "open"
        texts = (f"{cell['mean']:.4f}", f"{found['value']:+.4f}", interval(found["low"], found["high"]), found["stars"])
        claims.append(Claim(arm_name(cell["arm"]), metrics.label(row["metric"]), *texts, trend))
    return claims


def mean_plots(table: Table) -> list[Plot]:
    """Each arm's own mean and interval, for up to three metrics."""
    wanted = [row for row in table["rows"] if row["metric"] in _PANELS] or table["rows"][:3]
    return [
        charts.means(
            metrics.label(row["metric"]),
            [Measured(arm_name(cell["arm"]), cell["mean"], cell["low"], cell["high"]) for cell in row["cells"]],
            table["confidence"],
        )
        for row in wanted
    ]


# ---------------------------------------------------------------------------------------------- why


class LadderView(NamedTuple):
    """The waterfall, its sentences, and the rungs that could not be climbed."""

    plot: Plot
    rows: list[tuple[str, str, str, str]]
    skipped: list[str]


def ladder(ladder: Mapping[str, Any] | None) -> LadderView | None:
    """The gap as it is served, what each rung takes from it, and what is left."""
    if ladder is None or not _finite(ladder.get("gap")):
        return None
    metric, gap = _label(str(ladder["metric"])), float(ladder["gap"])
    steps, rows, standing = [Step("the gap, as served", 0.0, gap, f"{gap:+.4f}", total=True)], [], gap
    for rung in ladder["rungs"]:
        part = rung.get("contribution", rung["gap"])  # a ladder's rung calls its own part of the gap `gap`
        taken = float(part) if _finite(part) else 0.0
        share = f"{rung['share']:.0%}" if _finite(rung.get("share")) else "–"
        rows.append((str(rung["name"]), share, _number(standing - taken), str(rung.get("said") or "")))
        if taken:
            said = f"{-taken:+.4f}" + (f" ({share})" if share != "–" else "")
            steps.append(Step(str(rung["name"]), standing, standing - taken, said))
            standing -= taken
    left = float(ladder["residual"]) if _finite(ladder.get("residual")) else standing
    steps.append(Step("what is left", 0.0, left, f"{left:+.4f}", total=True))
    if _finite(ladder.get("closed_pool")):
        rows.insert(0, ("closed pool", "–", _number(ladder["closed_pool"]), "Only judged candidates, before all this."))
    plot = charts.waterfall(f"The gap in {metric}, and what explains it", steps)
    return LadderView(plot, rows, [str(said) for said in ladder.get("skipped", ())])


def _number(value: object) -> str:
    """A number of any size in four digits; what is not known is a dash."""
    return f"{value:+.4f}" if isinstance(value, (int, float)) and math.isfinite(value) else "–"


class FindingView(NamedTuple):
    """A finding in words: `numbers` are what was measured, its value, its threshold and whether that is passed."""

    id: str
    name: str
    kind: str
    reading: str
    remedy: str
    lacks: str
    numbers: list[tuple[str, str, str, bool]]


class FindingViews(NamedTuple):
    """The findings by what became of them."""

    firing: list[FindingView]
    quiet: list[FindingView]
    lacking: list[FindingView]


def findings(findings: Sequence[Mapping[str, Any]]) -> FindingViews | None:
    """The findings, parted by what became of them; None where nothing was looked for."""
    if not findings:
        return None
    views = FindingViews([], [], [])
    for finding in findings:
        place = views.firing if finding["fires"] else views.lacking if finding.get("lacks") else views.quiet
        texts = {name: str(finding.get(name) or "") for name in FindingView._fields if name != "numbers"}
        place.append(FindingView(**texts, numbers=[_measured(number) for number in finding.get("numbers", ())]))
    return views


def _measured(number: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    value = f"{number['value']:.4g}"
    if _finite(number.get("low")) and _finite(number.get("high")):
        value += f" [{number['low']:.4g}, {number['high']:.4g}]"
    return str(number["says"]), value, f"{number['threshold']:g}", bool(number["bad"])


# ---------------------------------------------------------------------------------------------- charts


class BlendView(NamedTuple):
    """What dev chose for an arm, and the metric against depth and against weight."""

    arm: str
    metric: str
    said: str
    depth: Plot
    weight: Plot


def blend(arm: str, chosen: Mapping[str, Any]) -> BlendView:
    """The grid of dev, cut at the chosen weight and at the chosen depth."""
    weights, depths, grid = (chosen[name] for name in ("weights", "depths", "grid"))
    metric, dev = _label(str(chosen["metric"])), _dev(chosen)
    at_weight, at_depth = _nearest(weights, chosen["weight"]), _nearest(depths, chosen["depth"])
    level = ("retrieval", float(dev["retrieval"])) if _finite(dev.get("retrieval")) else None

    def over_depths(name: str, place: int, mark: int | None) -> Line:
        return Line(name, [(float(depth), float(grid[place][j])) for j, depth in enumerate(depths)], mark)

    drawn = [over_depths(f"weight {weights[at_weight]:g}", at_weight, at_depth)]
    if 1 in weights and weights[at_weight] != 1:
        drawn.append(over_depths("weight 1: reranker alone", list(weights).index(1), None))
    across = [(float(weight), float(grid[i][at_depth])) for i, weight in enumerate(weights)]
    said = [f"{name} {float(value):.4f}" for name, value in dev.items() if _finite(value)]
    words = f"Chosen: weight {chosen['weight']:g}, depth {chosen['depth']:,}." + (
        f" {metric} on dev: {', '.join(said)}." if said else ""
    )
    return BlendView(
        arm_name(arm.removesuffix(BLEND)),
        metric,
        words,
        charts.lines(f"{metric} on dev against depth", drawn, level=level, log=True),
        charts.lines(
            f"{metric} on dev against the reranker's weight",
            [Line(f"depth {depths[at_depth]:g}", across, at_weight)],
            level=level,
        ),
    )


def _dev(chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """The means on dev, which stand by themselves or beside the rest."""
    found: Mapping[str, Any] = chosen.get("dev", chosen)
    return {name: found[name] for name in ("retrieval", "reranked", "blended") if name in found}


def _nearest(values: Sequence[float], wanted: float) -> int:
    return min(range(len(values)), key=lambda place: abs(values[place] - wanted))


def distributions(view: ReportView) -> list[tuple[str, Plot]]:
    """Scores of the relevant candidates and of the others, for each arm that a reranker made."""
    arms = [arm for arm in compared(view) if not arm.endswith(BLEND) and arm not in view.retrievers]
    found = []
    for arm in arms:
        split: tuple[list[float], list[float]] = ([], [])
        for query, hits in view.runs[arm].rankings.items():
            grades = view.qrels.get(query, {})
            for document, score in hits[: view.depth]:  # those below have no score of the reranker
                split[grades.get(document, 0) <= 0].append(score)
        relevant, others = (_only_finite(scores) for scores in split)
        if len(relevant) or len(others):
            named = [("relevant", relevant), ("other candidates", others)]
            found.append((arm_name(arm), charts.outlines(f"Scores of {arm_name(arm)}", named)))
    return found


def _only_finite(scores: Sequence[float]) -> Values:
    values = np.asarray(scores, dtype=np.float64)
    return values[np.isfinite(values)]


class Trial(NamedTuple):
    """A row of a search's table; `bar` is the difference and its interval, drawn beside zero."""

    name: str
    pairs: str
    mean: str
    difference: str
    bar: dict[str, float] | None
    trend: str
    note: str


class RecipeView(NamedTuple):
    """What a search tried, why it chose what it chose, and what that cost."""

    name: str
    trials: list[Trial]
    reasons: list[str]
    cost: str


def recipe(name: str, found: Mapping[str, Any]) -> RecipeView:
    """A search as the page shows it: all bars of a table share one scale, which holds zero."""
    rows = found["table"]
    known = [end for row in rows for end in (row["low"], row["high"]) if _finite(end)]
    across = charts.scale(*charts.padded([0.0, *known]), 0, _BAR)
    spent, total = found.get("spent") or 0, found.get("total") or 0
    share = f"The search took {spent / total:.0%} of the budget: as much work as training on {spent:,} pairs."
    reasons = [str(reason) for reason in found.get("reasons", ())]
    return RecipeView(name, [_trial(row, across) for row in rows], reasons, share if total else "")


def _trial(row: Mapping[str, Any], across: Callable[[float], float]) -> Trial:
    mean = f"{row['mean']:.4f}" if _finite(row["mean"]) else "–"
    shown = (str(row["name"]), f"{row['pairs']:,}" if row["pairs"] else "–", mean)
    note = str(row.get("note") or "")
    if not (_finite(row["low"]) and _finite(row["high"])):
        return Trial(*shown, "–", None, "", note)
    gain, low, high = (float(row[key]) for key in ("gain", "low", "high"))
    bar = {"zero": across(0.0), "low": across(low), "high": across(high), "at": across(gain)}
    trend = "up" if low > 0 else "down" if high < 0 else ""
    return Trial(*shown, f"{gain:+.4f} {interval(low, high)}", bar, trend, note)


class Merged(NamedTuple):
    """A row of a sweep's table: both means, and both differences from the first model."""

    name: str
    inside: str
    gain: str
    gain_trend: str
    outside: str
    change: str
    change_trend: str
    note: str
    chosen: bool


class SweepView(NamedTuple):
    """The weights tried, in domain against in general; `plot` is None without a general collection."""

    metric: str
    plot: Plot | None
    rows: list[Merged]
    said: list[str]
    few: str


def sweep(found: Mapping[str, Any] | None) -> SweepView | None:
    """A sweep as the page shows it; None without one."""
    if found is None:
        return None
    trials, changes = found["trials"], found["changes"]
    rows = []
    for place, trial in enumerate(trials):
        notes = [word for word, holds in _standing(found, place).items() if holds]
        inside, gain = f"{np.mean(trial['in_domain']):.4f}", _against_first(found["gains"][place], place)
        outside, change = (f"{np.mean(trial['general']):.4f}", changes[place]) if changes else ("", None)
        told = _against_first(change, place) if change else ("", "")
        rows.append(Merged(str(trial["name"]), inside, *gain, outside, *told, ", ".join(notes), "chosen" in notes))
    said = [f"The rule: {found['rule']}.", *(f"{text}." for text in (found["said"], found["kept"]) if text)]
    counts = f"{len(trials[0]['in_domain']):,} dev queries" + (
        f" and {len(trials[0]['general']):,} of the general collection" if changes else ""
    )
    metric = _label(str(found["metric"]))
    return SweepView(metric, _tradeoff(found, metric) if changes else None, rows, said, counts)


def _standing(found: Mapping[str, Any], place: int) -> dict[str, bool]:
    return {"front": place in found["front"], "chosen": place == found["chosen"]}


def _against_first(change: Mapping[str, Any], place: int) -> tuple[str, str]:
    """A difference with its interval, and its trend; the first model differs from itself in nothing."""
    if place == 0:
        return "–", ""
    trend = "up" if change["low"] > 0 else "down" if change["high"] < 0 else ""
    return f"{change['value']:+.4f} {interval(change['low'], change['high'])}", trend


def _tradeoff(found: Mapping[str, Any], metric: str) -> Plot:
    spots = [
        Spot(
            str(trial["name"]) if trial["weight"] is None else f"{trial['weight']:g}",
            float(np.mean(trial["general"])),
            float(np.mean(trial["in_domain"])),
            on_line=trial["weight"] is not None,
            **_standing(found, place),
        )
        for place, trial in enumerate(found["trials"])
    ]
    title = f"{metric} in domain against {metric} in general, by weight"
    axes = (f"{metric} in general", f"{metric} in domain")
    return charts.tradeoff(title, axes, spots, spots[0].x - float(found["tolerance"]))


class Curve(NamedTuple):
    """A training: its curves, and the numbers behind them."""

    name: str
    loss: Plot | None
    dev: Plot | None
    loss_rows: list[tuple[int, str, str]]
    dev_rows: list[tuple[str, str, bool]]
    dev_metric: str


def training(name: str, log: Sequence[Mapping[str, Any]]) -> Curve:
    """The curves of one log; a record with ``loss`` is a step, one with ``dev`` an evaluation.

    One with ``averaged_dev`` is the mean of the last weights evaluated: where it was kept, no checkpoint was.
    """
    steps = [record for record in log if _finite(record.get("loss"))]
    tried = evaluations(log)
    metric = next(iter(tried[0]["dev"])) if tried else ""
    tried = [record for record in tried if _finite(record["dev"].get(metric))]
    dev = [(float(record["step"]), float(record["dev"][metric])) for record in tried]
    average = _average(log, metric)
    replaced = average is not None and average.kept
    kept = max((place for place, record in enumerate(tried) if record.get("kept") and not replaced), default=None)
    loss = [(float(record["step"]), float(record["loss"])) for record in steps]
    lines = [
        (record["step"], f"{record['loss']:.4f}", f"{record['lr']:.2e}" if "lr" in record else "")
        for record in steps[:: math.ceil(len(steps) / _TABLE_ROWS) or 1]
    ]
    rows = [(f"{step:g}", f"{value:.4f}", place == kept) for place, (step, value) in enumerate(dev)]
    return Curve(
        name=name,
        loss=charts.curve("loss", charts.thinned(loss)) if loss else None,
        dev=charts.curve(_label(metric), dev, dots=True, kept=kept, average=average) if dev else None,
        loss_rows=lines,
        dev_rows=rows + ([(average.name, f"{average.value:.4f}", average.kept)] if average else []),
        dev_metric=_label(metric) if metric else "",
    )


def _average(log: Sequence[Mapping[str, Any]], metric: str) -> Average | None:
    """What dev said of the mean of several weights, if it was asked."""
    told = next((record for record in reversed(log) if _finite(record.get("averaged_dev", {}).get(metric))), None)
    if told is None:
        return None
    name = f"mean of the last {told['average']} checkpoints" if told.get("average") else "mean of the last checkpoints"
    return Average(name, float(told["step"]), float(told["averaged_dev"][metric]), bool(told.get("kept")))


def _finite(value: object) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _label(metric: str) -> str:
    """A metric's heading; a log may hold one that the table cannot parse."""
    try:
        return metrics.label(metric)
    except ConfigError:
        return metric
