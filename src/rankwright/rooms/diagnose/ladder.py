"""The ladder: of the gap between reranking and retrieval, how much is copies, holes, depth, the missing blend?

In: a Case. Out: a Ladder. Each rung re-scores the same two runs in a world with one fault less than the rung before;
what a rung takes from the gap is its part, and what is left is the model. Nothing is trained or scored anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from rankwright.core import Qrels, Run, canonical, relevant
from rankwright.rooms.diagnose.case import Case, Values
from rankwright.rooms.diagnose.crossfit import Setting, blend_settings, crossfit, depth_settings
from rankwright.toolbox.lists import Lists


@dataclass(frozen=True)
class Rung:
    """`gap` is the part of the whole gap that this rung explains, `share` that part of it (None: there is no gap)."""

    name: str
    gap: float
    share: float | None
    said: str


@dataclass(frozen=True)
class Ladder:
    """`gap`: reranked minus retrieved, as served, the mean of `metric`; the rungs' parts and `residual` add up to it.

    `closed_pool` is the gap on labelled documents alone, where it was measured: beside the ladder, not a part of it.
    `skipped` says which rungs are missing, and why.
    """

    metric: str
    gap: float
    rungs: tuple[Rung, ...]
    residual: float
    closed_pool: float | None
    skipped: tuple[str, ...]

    def lines(self) -> list[str]:
        """The ladder for a terminal, one line a rung. Shares are told of a loss only: of a lead they mean nothing."""
        metric = self.metric.upper().replace("NDCG", "nDCG")
        told = [f"reranked minus retrieved, as served: {self.gap:+.4f} {metric}"]
        if self.closed_pool is not None:
            told.append(f"reranked minus retrieved, on the closed pool: {self.closed_pool:+.4f}")
        parts = [(rung.gap, rung.share, rung.said) for rung in self.rungs]
        for part, share, said in [*parts, (self.residual, self._share(self.residual), "left: the model itself")]:
            if self.gap > 0 and share is not None:
                told.append(f"of the lead, {part:+.4f} is {said}")
            elif share is None:
                told.append(f"of no gap in {metric}, {part:+.4f} is {said}")
            else:
                told.append(
                    f"of the gap of {self.gap:+.4f} {metric}, {round(share, 2) + 0.0:.0%} is {said} ({part:+.4f})"
                )
        return [*told, *(f"not on the ladder: {why}" for why in self.skipped)]

    def values(self) -> dict[str, Any]:
        """The ladder as JSON takes it."""
        return {
            **asdict(self),
            "rungs": [asdict(rung) for rung in self.rungs],
            "residual_share": self._share(self.residual),
            "skipped": list(self.skipped),
        }

    def _share(self, part: float) -> float | None:
        return _share(part, self.gap)


class _World(NamedTuple):
    """Both runs with some faults gone; `how` orders them as the reranked side is served."""

    lists: Lists
    condensed: bool
    reranked: Callable[[_World], Values]


def ladder(case: Case, *, closed: float | None = None) -> Ladder:
    """Climb the ladder: cleaned, condensed to judged documents, best depth, blended.

    `closed` is the gap on the closed pool, if somebody has measured it.
    """
    qrels = {query: {d: max(grade, 0) for d, grade in grades.items()} for query, grades in case.qrels.items()}
    # A negative grade is a judgement too: not relevant.
    world = _World(_lists(case.retrieved, case.reranked, qrels, case), False, _served(case))
    steps: list[tuple[str, str, _World]] = []
    skipped = [] if closed is not None else ["closed pool: it needs scores of the labelled documents"]
    gap = _gap(world, case)
    for name, step in _STEPS.items():
        made = step(case, world, qrels) if world.lists.queries else "no judged query with candidates"
        if isinstance(made, str):
            skipped.append(f"{name}: {made}")
        else:
            world = made[0]
            steps.append((name, made[1], world))
    rungs, before = [], gap
    for name, said, after in steps:
        left = _gap(after, case)
        rungs.append(Rung(name, before - left, _share(before - left, gap), said))
        before = left
    residual = gap - math.fsum(rung.gap for rung in rungs)
    return Ladder(case.metric, gap, tuple(rungs), residual, closed, tuple(skipped))


_NO_GAP = 5e-5  # it prints as 0.0000, and shares of it run to thousands of per cent


def _share(part: float, gap: float) -> float | None:
    return part / gap if abs(gap) >= _NO_GAP else None


def _lists(retrieved: Run, reranked: Run, qrels: Qrels, case: Case) -> Lists:
    lists = Lists.of(retrieved, reranked, qrels, depth=case.depth)
    return lists.take(np.array([len(row) > 0 for row in lists.documents], dtype=bool))


def _measure(world: _World, weight: float, depth: int, metric: str) -> Values:
    """The metric of a blend. Condensing comes after ordering: unjudged documents are pushed below the judged ones."""
    order = world.lists.order(weight, depth)
    if world.condensed:
        unjudged = np.take_along_axis(world.lists.grades, order, axis=1) < 0
        order = np.take_along_axis(order, np.argsort(unjudged, axis=1, kind="stable"), axis=1)
    return world.lists.measure(order, metric)


def _gap(world: _World, case: Case) -> float:
    if not world.lists.queries:
        return 0.0
    return float((world.reranked(world) - _measure(world, 0.0, case.depth, case.metric)).mean())


def _served(case: Case) -> Callable[[_World], Values]:
    return lambda world: _measure(world, 1.0, case.depth, case.metric)


_Step = tuple[_World, str] | str
"""The next world and what it mends, or why there is none."""


def _cleaned(case: Case, world: _World, qrels: Qrels) -> _Step:
    if not case.collection.documents:
        return "it needs the texts"
    names, selves = _names(case)
    united = _united(case, qrels, names, selves)
    retrieved, reranked = {}, {}
    for query, hits in case.retrieved.rankings.items():
        scores = case.reranked.scores(query)
        first: dict[str, float] = {}
        again: dict[str, float] = {}
        for place, (document, score) in enumerate(hits):
            name = names.get(document, document)
            if name == selves.get(query):
                continue
            first.setdefault(name, score)
            if place < case.depth and document in scores:
                again[name] = max(scores[document], again.get(name, -math.inf))
        retrieved[query] = tuple(first.items())
        reranked[query] = again
    lists = _lists(Run(retrieved), Run.from_scores(reranked), united, case)
    if not lists.queries:
        return "without copies and self-matches no query has a relevant document"
    return world._replace(lists=lists), "copies, documents equal to the query, and labels split among twin queries"


def _names(case: Case) -> tuple[dict[str, str], dict[str, str]]:
    """Document id -> the least id that has the same text; query id -> the same of the document that is the query."""
    least: dict[str, str] = {}
    texts = {document: canonical(text) for document, text in case.collection.documents.items()}
    for document, text in texts.items():
        least[text] = min(document, least.get(text, document))
    queries = {query: canonical(text) for query, text in case.collection.queries.items()}
    selves = {query: least[text] for query, text in queries.items() if text in least}
    return {document: least[text] for document, text in texts.items()}, selves


def _united(case: Case, qrels: Qrels, names: Mapping[str, str], selves: Mapping[str, str]) -> Qrels:
    """The labels by text of document and of query: the highest grade that any copy or twin has."""
    texts = case.collection.queries
    # A query without a text is a twin of nobody: its id stands for it.
    keys = {query: (query in texts, canonical(texts.get(query, query))) for query in qrels}
    by_text: dict[tuple[bool, str], dict[str, int]] = {}
    for query, grades in qrels.items():
        labels = by_text.setdefault(keys[query], {})
        for document, grade in grades.items():
            name = names.get(document, document)
            if name != selves.get(query):
                labels[name] = max(grade, labels.get(name, 0))
    # A twin that has no relevant document of its own was not measured before, so it is not measured now.
    return {query: dict(by_text[key]) for query, key in keys.items() if relevant(qrels[query])}


def _condensed(case: Case, world: _World, qrels: Qrels) -> _Step:
    negatives = float((world.lists.grades == 0).sum()) / len(world.lists.queries)
    if negatives < 1:
        return (
            f"{negatives:.2f} candidates a query are judged not relevant, fewer than 1; "
            "among judged documents alone hardly any but relevant ones would be left"
        )
    return world._replace(condensed=True), "unjudged documents, taken for not relevant"


def _best_depth(case: Case, world: _World, qrels: Qrels) -> _Step:
    # With weight 0 dev reranks nothing, and the depth that it saved means nothing.
    if case.chosen and case.chosen.weight > 0:
        setting = 1.0, case.chosen.depth
        return _fixed(case, world, setting), f"depth: {setting[1]} (chosen on dev) instead of {case.depth}"
    fitted, best = _fitted(case, world, depth_settings(case.depth), "depth")
    return fitted, f"depth: {best[1]} (cross-fitted) instead of {case.depth}"


def _blended(case: Case, world: _World, qrels: Qrels) -> _Step:
    if case.chosen:
        setting, how = (case.chosen.weight, case.chosen.depth), "chosen on dev"
        made = _fixed(case, world, setting)
    else:
        (made, setting), how = _fitted(case, world, blend_settings(case.depth), "blend"), "cross-fitted"
    at = f" at depth {setting[1]}" if setting[0] else ""
    return made, f"the retriever's score, not mixed in: weight {setting[0]:g} for the reranker{at} ({how})"


def _fixed(case: Case, world: _World, setting: Setting) -> _World:
    return world._replace(reranked=lambda now: _measure(now, *setting, case.metric))


def _fitted(case: Case, world: _World, settings: Sequence[Setting], purpose: str) -> tuple[_World, Setting]:
    rng = case.rng(f"ladder.{purpose}")
    fitted = crossfit(settings, lambda weight, depth: _measure(world, weight, depth, case.metric), rng)
    return world._replace(reranked=lambda _: fitted.values), fitted.best


_STEPS: dict[str, Callable[[Case, _World, Qrels], _Step]] = {
    "cleaned": _cleaned,
    "condensed": _condensed,
    "best depth": _best_depth,
    "blended": _blended,
}
