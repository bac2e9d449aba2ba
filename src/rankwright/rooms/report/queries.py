"""Query by query: who gained and who lost, as charts, as plain lists, and as the explorer's data.

In: a ReportView. Out: a QueryView for the templates. It gives the metric that it compares by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Run
from rankwright.rooms.report.parts import PICKED_BY
from rankwright.rooms.report.view import ReportView, compared, shown_arm
from rankwright.toolbox import charts, metrics
from rankwright.toolbox.charts import Plot
from rankwright.toolbox.table import arm_name

Values = NDArray[np.float64]

SHOWN = 10  # documents of a list
BUDGET = 2_000_000  # bytes of the explorer's queries, so that the page stays below 3 MB
_LETTERS = 200  # of a text
_STATIC = 20  # wins, and losses, for readers without scripts


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


def query_view(view: ReportView) -> QueryView | None:
    """Query by query; None where there is no arm, or its run or the baseline's is not given."""
    arm, baseline = shown_arm(view), view.table["arms"][0]
    if arm is None or baseline not in view.runs:
        return None
    queries = metrics.judged_queries(view.qrels)
    arms = [baseline, *compared(view)]
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
