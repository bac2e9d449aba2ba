"""One self-contained HTML page: whether to ship, why, and the queries that show it.

In comes a ReportView of plain values, out goes the page as a string: no network, no fonts, every text escaped.
It does not know the run folder, nor how anything was computed, save the metric that it gives query by query.
Where a chart's marks stand is `toolbox.charts`' business, what they look like the templates'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Qrels, Run
from rankwright.errors import ConfigError
from rankwright.toolbox import charts, metrics
from rankwright.toolbox.charts import Line, Measured, Plot, Step
from rankwright.toolbox.table import Table, arm_name, in_words, interval

Values = NDArray[np.float64]

PICKED_BY = "ndcg@10"
SHOWN = 10  # documents of a list
BUDGET = 2_000_000  # bytes of the explorer's queries, so that the page stays below 3 MB
_LETTERS = 200  # of a text
_STATIC = 20  # wins, and losses, for readers without scripts
_TABLE_ROWS = 40
_PANELS = ("mrr@10", "recall@10", "ndcg@10")
_BLEND = "-blend"
_FUSED = ("rrf", "fused")  # arms that no reranker made
_TONES = {"ship": "up", "blend": "up", "keep retrieval": "down"}


@dataclass(frozen=True)
class ReportView:
    """What the page shows.

    `table` is `Evaluation.table(provenance)`, or table.json read back. `runs` maps the arms of the table to their
    runs, `trainings` a training's name to the records of its log.jsonl, `seconds` a stage to how long it took.
    Arms and trainings that lack a run or a log are told in words. `examples` wins and as many losses (at most 20)
    stand in the page as plain lists, for readers without scripts.

    What was decided and why, each as its JSON: `verdict` (word, lines, arm, weight, depth), `findings` (those that
    fire first), `ladder` (metric, gap, rungs, residual, closed_pool, skipped), and `blends`, which maps an arm to
    what dev chose for it and the grid behind that. So many candidates as `depth` have a reranker's score (None: all).
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
    verdict: Mapping[str, Any] | None = None
    findings: Sequence[Mapping[str, Any]] = ()
    ladder: Mapping[str, Any] | None = None
    blends: Mapping[str, Any] = field(default_factory=dict)
    depth: int | None = None


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
        verdict=_verdict(view.verdict),
        headline=_headline(view.table),
        means=_mean_plots(view.table),
        ladder=_ladder(view.ladder),
        findings=_findings(view.findings),
        blends=[_blend(arm, chosen) for arm, chosen in view.blends.items()],
        trainings=[_training(name, log) for name, log in view.trainings.items()],
        distributions=_distributions(view),
        queries=_query_view(view),
        data_lines=view.data_lines,
        seconds=[(stage, _duration(seconds)) for stage, seconds in view.seconds.items()],
        total=_duration(sum(view.seconds.values())),
    )


# ---------------------------------------------------------------------------------------------- the result


class Verdict(NamedTuple):
    """The word, whether it is good news, its lines, and what is to be served."""

    word: str
    tone: str
    lines: list[str]
    serve: str


def _verdict(verdict: Mapping[str, Any] | None) -> Verdict | None:
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


def _mean_plots(table: Table) -> list[Plot]:
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


def _ladder(ladder: Mapping[str, Any] | None) -> LadderView | None:
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


def _findings(findings: Sequence[Mapping[str, Any]]) -> FindingViews | None:
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


def _blend(arm: str, chosen: Mapping[str, Any]) -> BlendView:
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
        arm_name(arm.removesuffix(_BLEND)),
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


def _distributions(view: ReportView) -> list[tuple[str, Plot]]:
    """Scores of the relevant candidates and of the others, for each arm that a reranker made."""
    arms = [arm for arm in _compared(view) if not arm.endswith(_BLEND) and arm not in _FUSED]
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
        loss=charts.curve("loss", charts.thinned(loss)) if loss else None,
        dev=charts.curve(_label(metric), dev, dots=True, kept=kept) if dev else None,
        loss_rows=lines,
        dev_rows=[(int(step), f"{value:.4f}", place == kept) for place, (step, value) in enumerate(dev)],
        dev_metric=_label(metric) if metric else "",
    )


def _finite(value: object) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _label(metric: str) -> str:
    """A metric's heading; a log may hold one that the table cannot parse."""
    try:
        return metrics.label(metric)
    except ConfigError:
        return metric


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
    """The arm that is held against the baseline query by query, and the explorer of all arms.

    `data` is JSON that may stand inside a script element: it holds no ``<``. `kinds` are the plain lists.
    """

    arm: str
    baseline: str
    metric: str
    plot: Plot
    rows: list[tuple[str, int]]
    scatter: Plot
    kinds: list[tuple[str, str, list[Example]]]
    data: str
    shown: int
    total: int


def _query_view(view: ReportView) -> QueryView | None:
    """Query by query; None where there is no arm, or its run or the baseline's is not given."""
    arm, baseline = _shown_arm(view), view.table["arms"][0]
    if arm is None or baseline not in view.runs:
        return None
    queries = metrics.judged_queries(view.qrels)
    arms = [baseline, *_compared(view)]
    values = {name: metrics.per_query(view.runs[name], view.qrels, [PICKED_BY])[PICKED_BY] for name in arms}
    before, after = values[baseline], values[arm]
    differences = after - before
    order = np.argsort(-differences, kind="stable").tolist()
    few = min(view.examples, _STATIC)
    wins = [place for place in order if differences[place] > 0][:few]
    losses = [place for place in reversed(order) if differences[place] < 0][:few]

    def examples(places: Iterable[int]) -> list[Example]:
        return [_example(view, queries[place], (baseline, arm), (before[place], after[place])) for place in places]

    label = metrics.label(PICKED_BY)
    plot, rows = charts.histogram(differences, f"{label} of {arm_name(arm)} minus {arm_name(baseline)}")
    points = charts.scatter(f"{label}: {arm_name(baseline)} across, {arm_name(arm)} upwards", before, after)
    kinds = [("wins", "Biggest wins", examples(wins)), ("losses", "Biggest losses", examples(losses))]
    data, shown = _explorer(view, queries, values, arm)
    return QueryView(
        arm_name(arm), arm_name(baseline), label, plot, rows, points, kinds, data, shown, total=len(queries)
    )


def _compared(view: ReportView) -> list[str]:
    """The arms beside the baseline whose runs are here."""
    return [arm for arm in view.table["arms"][1:] if arm in view.runs]


def _shown_arm(view: ReportView) -> str | None:
    """The verdict's arm, or fine-tuned, or the last that a training made, or the last; blended, if it is that too."""
    arms = _compared(view)
    own = [arm for arm in arms if not arm.endswith(_BLEND) and arm not in _FUSED]
    trained = [arm for arm in own if arm in view.trainings]
    arm = "finetuned" if "finetuned" in own else next(reversed(trained or own or arms), None)
    told = (view.verdict or {}).get("arm")
    arm = told if told in arms else arm
    return f"{arm}{_BLEND}" if f"{arm}{_BLEND}" in arms else arm


# ---------------------------------------------------------------------------------------------- the explorer


def _explorer(view: ReportView, queries: Sequence[str], values: Mapping[str, Values], arm: str) -> tuple[str, int]:
    """The explorer's JSON, and how many queries it holds: those with the largest gain or loss of any arm first.

    Documents stand once. It ends before the query that would take it beyond `BUDGET`.
    """
    baseline, *arms = values
    moved = np.max([np.abs(values[name] - values[baseline]) for name in arms], axis=0)
    places: dict[str, int] = {}
    documents: list[str] = []
    kept: list[str] = []
    room = BUDGET
    for place in np.argsort(-moved, kind="stable").tolist():
        fresh: list[str] = []
        own = {name: float(values[name][place]) for name in values}
        text = _inside_script(_query_data(view, queries[place], own, places, fresh))
        texts = [_inside_script([document, _text(view, document)]) for document in fresh]
        room -= sum(len(part.encode()) + 1 for part in (text, *texts))
        if room < 0:
            break
        kept.append(text)
        documents += texts
    told = {
        "baseline": arm_name(baseline),
        "metric": metrics.label(PICKED_BY),
        "arms": [arm_name(name) for name in arms],
        "first": arms.index(arm),
        "total": len(queries),
    }
    start = _inside_script(told).removesuffix("}")
    return f'{start},"docs":[{",".join(documents)}],"queries":[{",".join(kept)}]}}', len(kept)


def _query_data(
    view: ReportView, query: str, values: Mapping[str, float], places: dict[str, int], fresh: list[str]
) -> dict[str, Any]:
    """One query: `v` its value in each arm, `b` the baseline's list, and for each arm `a` its list and `n` where the
    baseline's documents went. A hit is [document, score, grade or null, former rank or 0]. New documents join
    `places` and `fresh`.
    """
    baseline, *arms = values
    grades = view.qrels[query]
    was = _ranks(view.runs[baseline], query)

    def hits(arm: str) -> Iterator[list[Any]]:
        for document, score in view.runs[arm].rankings.get(query, ())[:SHOWN]:
            if document not in places:
                places[document] = len(places)
                fresh.append(document)
            told = round(score, 4) if math.isfinite(score) else None
            yield [places[document], told, grades.get(document), was.get(document, 0)]

    before = list(hits(baseline))
    first = view.runs[baseline].documents(query)[:SHOWN]
    now = [_ranks(view.runs[arm], query) for arm in arms]
    return {
        "id": query,
        "q": _clip(view.queries.get(query, "") or query),
        "r": sum(grade > 0 for grade in grades.values()),
        "v": [round(value, 4) for value in values.values()],
        "b": before,
        "a": [list(hits(arm)) for arm in arms],
        "n": [[ranks.get(document, 0) for document in first] for ranks in now],
    }


def _ranks(run: Run, query: str) -> dict[str, int]:
    return {document: rank for rank, document in enumerate(run.documents(query), start=1)}


def _inside_script(value: object) -> str:
    """JSON without ``<``, so that no text can end the script element that holds it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


# ---------------------------------------------------------------------------------------------- plain lists


def _example(view: ReportView, query: str, arms: tuple[str, str], values: tuple[float, float]) -> Example:
    before, after = (view.runs[arm] for arm in arms)
    grades = view.qrels[query]
    was, now = _ranks(before, query), _ranks(after, query)
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
    return Hit(document, _text(view, document), f"{score:.3f}", mark, *move)


def _came(was: int | None, rank: int) -> tuple[str, str]:
    if was is None:
        return "new", "up"
    if was == rank:
        return "=", ""
    return (f"▲ {was - rank}", "up") if was > rank else (f"▼ {rank - was}", "down")


def _went(now: int | None) -> tuple[str, str]:
    return ("gone", "") if now is None else (f"now {now}", "")


def _text(view: ReportView, document: str) -> str:
    return _clip(view.documents.get(document, "") or document)


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
