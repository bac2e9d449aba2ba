"""The checks that compare orders: H3 and H8 (serving), H11 and H12 (causes), H13 and H14 (measuring).

In: a Case. Out: one Finding each. They know neither the run folder nor the model; what scores or counts tokens is
handed in with the case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rankwright.core import canonical
from rankwright.rooms.diagnose.case import Case, Finding, Number, TextScorer, Values, between, told
from rankwright.rooms.diagnose.crossfit import WEIGHTS, crossfit, depth_settings, weight_settings
from rankwright.toolbox.lists import Lists, Places
from rankwright.toolbox.power import detectable, queries_needed

_TOP = 10
_TAU_QUERIES = 20
_MOST = 1e6  # JSON has no infinity
_NO_QUERY = "a judged query with candidates"


def discarded(case: Case) -> Finding:
    """H3: would the retriever's score, mixed in, have ranked better than the reranker's alone?"""
    finding = Finding("H3", "retriever's score discarded", "serving")
    lists = _lists(case)
    if not lists.queries:
        return replace(finding, lacks=_NO_QUERY)
    grid = np.array([lists.measure(lists.order(w, case.depth), case.metric) for w in WEIGHTS])
    if case.chosen:
        weight, depth, by = case.chosen.weight, case.chosen.depth, "dev"
        gain = Number("H3.gain", case.chosen.gain, case.chosen.low, case.chosen.high)
    else:
        rows = dict(zip(WEIGHTS, grid, strict=True))
        fitted = crossfit(weight_settings(case.depth), lambda w, _: rows[w], case.rng("H3.halves"))
        weight, depth, by = *fitted.best, "cross-fitting"
        gain = case.mean("H3.gain", fitted.values - rows[1.0])
    served, oracle = float(grid[0].mean()), float(grid.max(axis=0).mean())
    fires = weight < 1 and gain.bad and gain.sure
    seen = f"weight {weight:.2f}" if weight in (0, 1) else f"weight {weight:.2f} at depth {depth}"
    verdict = "do not rerank" if weight == 0 else "mix the scores"
    reading = (
        f"By {by} the best is {seen} for the reranker, {between(gain)} {case.metric} against the reranked order"
        f"{f': {verdict}' if fires else ''}; the best weight for each query by itself would reach {oracle:.4f}, "
        f"the reranked order {served:.4f}."
    )
    remedy = "rerank: null" if weight == 0 else f"blend: {{}}  # saved: weight {weight:g}, depth {depth}"
    return told(finding, fires, (gain,), reading, remedy)


def too_deep(case: Case) -> Finding:
    """H8: does reranking fewer candidates rank better?"""
    finding = Finding("H8", "reranked too deep", "serving")
    lists = _lists(case)
    if not lists.queries:
        return replace(finding, lacks=_NO_QUERY)
    depth = min(case.depth, lists.width)
    fitted = crossfit(
        depth_settings(depth), lambda w, k: lists.measure(lists.order(w, k), case.metric), case.rng("H8.halves")
    )
    best = fitted.best[1]
    loss = case.mean("H8.loss", fitted.values - fitted.grid[0])
    fires = best < depth and loss.bad and loss.sure
    reading = (
        f"The best depth is {best} of {depth}; a depth so chosen gives {between(loss)} {case.metric} against the "
        f"served one; {_lifted(lists, depth)}."
    )
    return told(finding, fires, (loss,), reading, f"rerank: {{depth: {best}}}")


def _lifted(lists: Lists, depth: int) -> str:
    """How good is what the reranker fetched from the tail into its top?"""
    below = 50 if depth > 50 else max(depth // 2, _TOP)
    order = lists.order(1.0, depth)[:, :_TOP]
    known = np.take_along_axis(~np.isnan(lists.reranked), order, axis=1)
    good = np.take_along_axis(lists.grades, order, axis=1) > 0
    fetched = known & (order >= below)
    if not fetched.any():
        return f"it lifts no document from below rank {below} into its top {_TOP}"
    return (
        f"of {int(fetched.sum()):,} documents that it lifts from below rank {below} into its top {_TOP} "
        f"{good[fetched].mean():.1%} are relevant, of the whole top {_TOP} {good[known].mean():.1%}"
    )


def ties(case: Case) -> Finding:
    """H11: do neighbours share a score, or does low precision change the order?"""
    finding = Finding("H11", "ties and precision", "cause")
    lists = _lists(case)
    if not lists.queries:
        return replace(finding, lacks=_NO_QUERY)
    equal, pairs = _neighbours(case, lists)
    numbers = [Number("H11.ties", equal / pairs if pairs else 0.0)]
    reading = f"{equal:,} of {pairs:,} neighbours in the top {_TOP} have equal scores"
    taus = _taus(case, lists)
    if taus is None:
        reading += "; precision was not compared: scores are fp32, or texts or scorers are wanting"
    elif not len(taus):
        reading += "; precision was not compared, for every query's scores are all equal"
    else:
        numbers.append(case.mean("H11.tau", taus))
        reading += f"; low precision orders {len(taus)} queries as fp32 does with Kendall's tau {taus.mean():.4f}"
    fires = any(number.bad for number in numbers)
    return told(finding, fires, tuple(numbers), f"{reading}.", "rerank: {precision: exact}")


def _neighbours(case: Case, lists: Lists) -> tuple[int, int]:
    """Neighbouring pairs of different texts in the reranked top: with equal scores, and in all."""
    order = lists.order(1.0, case.depth)[:, :_TOP]
    scores = np.take_along_axis(lists.reranked, order, axis=1)
    pairs = ~np.isnan(scores[:, 1:]) & ~np.isnan(scores[:, :-1])
    equal = pairs & (scores[:, 1:] == scores[:, :-1])
    texts = case.collection.documents
    copies = 0
    # Copies must score the same, whatever the precision. Only equal scores are looked at: others are seldom copies.
    for row, place in zip(*np.nonzero(equal), strict=True):
        ids = [lists.documents[row][order[row, place + step]] for step in (0, 1)]
        copies += all(d in texts for d in ids) and canonical(texts[ids[0]]) == canonical(texts[ids[1]])
    return int(equal.sum()) - copies, int(pairs.sum()) - copies


def _taus(case: Case, lists: Lists) -> Values | None:
    """Kendall's tau of each sampled query; None without texts or scorers."""
    if case.score is None or case.exact is None or not _has_texts(case):
        return None
    from scipy.stats import kendalltau

    taus = []
    for row in _sample(lists, _TAU_QUERIES, case.rng("H11.queries")):
        pairs = _pairs(case, lists, [row])
        if len(pairs) > 1:
            taus.append(float(kendalltau(_scored(case.score, pairs), _scored(case.exact, pairs)).statistic))
    found = np.array(taus, dtype=np.float64)
    kept: Values = found[~np.isnan(found)]
    return kept


def _scored(scorer: TextScorer, pairs: Sequence[tuple[str, str]]) -> Values:
    return np.asarray(scorer(pairs), dtype=np.float64)


def cut(case: Case) -> Finding:
    """H12: are pairs longer than the model reads, and do their queries fare worse?"""
    finding = Finding("H12", "texts cut off", "cause")
    if case.tokens is None or not _has_texts(case):
        return replace(finding, lacks="a tokenizer" if case.tokens is None else "texts of queries and documents")
    lists = _lists(case)
    lists = lists.take(_sample(lists, case.sample, case.rng("H12.queries")))
    rows = np.repeat(np.arange(len(lists.queries)), [len(row[: case.depth]) for row in lists.documents])
    if not len(rows):
        return replace(finding, lacks=_NO_QUERY)
    over = np.asarray(case.tokens(_pairs(case, lists, range(len(lists.queries))))) > case.max_length
    good = np.concatenate(
        [lists.grades[row, : len(found[: case.depth])] > 0 for row, found in enumerate(lists.documents)]
    )
    hit = np.bincount(rows[over & good], minlength=len(lists.queries)) > 0
    gains = _gains(case, lists)
    share = Number("H12.cut", float(over.mean()))
    reading = f"{share.value:.1%} of {len(rows):,} pairs are longer than {case.max_length} tokens"
    if not hit.any() or hit.all():
        reading += f"; {'every' if hit.any() else 'no'} query has a relevant candidate that is cut, so none compare."
        return told(finding, False, (share,), reading, "")
    worse = _apart(case, gains[hit], gains[~hit])
    reading += (
        f"; reranking gives {int(hit.sum()):,} queries with a cut relevant candidate {between(worse)} {case.metric} "
        f"against the others."
    )
    fires = share.bad and worse.value < 0
    return told(finding, fires, (share, worse), reading, f"rerank: {{max_length: {2 * case.max_length}}}")


def _apart(case: Case, ours: Values, others: Values) -> Number:
    """The difference of two groups' means; each is drawn again by itself, for their queries are no pairs."""
    rng = case.rng("H12.worse")
    draws = [
        group[rng.integers(0, len(group), size=(case.resamples, len(group)))].mean(axis=1) for group in (ours, others)
    ]
    low, high = np.quantile(draws[0] - draws[1], [(1 - case.confidence) / 2, (1 + case.confidence) / 2])
    return Number("H12.worse", float(ours.mean() - others.mean()), float(low), float(high))


def nothing_to_win(case: Case) -> Finding:
    """H13: is even the perfect order of these candidates hardly better than the retriever's?"""
    finding = Finding("H13", "nothing to win", "measuring")
    lists = _lists(case)
    if not lists.queries:
        return replace(finding, lacks=_NO_QUERY)
    retrieved = lists.measure(lists.order(0.0, case.depth), case.metric)
    room = float((lists.measure(_perfect(lists, case.depth), case.metric) - retrieved).mean())
    spread = case.mean("H13.room", _gains(case, lists))
    width = (spread.high or 0.0) - (spread.low or 0.0)
    reading = (
        f"The perfect order of the first {case.depth} candidates is {room:+.4f} {case.metric} above retrieval; "
        f"the interval of the reranker's gain is {width:.4f} wide."
    )
    # Without a width the room has no measure, but no room is none by any measure.
    numbers = (Number("H13.room", room / width if width else 0.0),) if width or room <= 0 else ()
    remedy = "retrieve: {dense: {kind: dense}, bm25: {kind: bm25}, hybrid: {kind: fuse, of: [dense, bm25]}}"
    return told(finding, any(number.bad for number in numbers), numbers, reading, remedy)


def _perfect(lists: Lists, depth: int) -> Places:
    """The first `depth` candidates by grade, the rest as they were."""
    grades = lists.grades.copy()
    grades[:, depth:] = -2  # less than what is not judged: stays below
    order: Places = np.argsort(-grades, axis=1, kind="stable")
    return order


def too_few(case: Case) -> Finding:
    """H14: is the difference seen smaller than these queries can show?"""
    finding = Finding("H14", "too few queries", "measuring")
    gains = _gains(case, _lists(case))
    if len(gains) < 2:
        return replace(finding, lacks="two judged queries")
    if not gains.any():
        return replace(finding, reading=f"No query's {case.metric} changes: more queries would tell nothing.")
    seen, least = float(gains.mean()), detectable(gains)
    none = abs(seen) < 1e-12
    power = Number("H14.power", _MOST if none else min(least / abs(seen), _MOST))
    more = 0 if none else max(0, queries_needed(gains, seen) - len(gains))
    reading = (
        f"{len(gains):,} queries show differences of {least:.4f} {case.metric} or more, and {seen:+.4f} was seen"
        + ("." if not power.bad else "; no number of queries settles none." if none else f"; {more:,} more settle it.")
    )
    judge = f"; else judge {more:,} more queries" if more else ""
    remedy = f"data: {{max_queries: {{}}, test_share: 0.4}}  # every judged query that there is{judge}"
    return told(finding, power.bad, (power,), reading, remedy)


def _lists(case: Case) -> Lists:
    lists = Lists.of(case.retrieved, case.reranked, case.qrels, depth=case.depth)
    return lists.take(np.array([len(row) > 0 for row in lists.documents], dtype=bool))


def _gains(case: Case, lists: Lists) -> Values:
    """The metric of the reranked order minus the retriever's, query by query."""
    reranked, retrieved = (lists.measure(lists.order(weight, case.depth), case.metric) for weight in (1.0, 0.0))
    return reranked - retrieved


def _has_texts(case: Case) -> bool:
    return bool(case.collection.documents) and bool(case.collection.queries)


def _sample(lists: Lists, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most so many queries, in their order."""
    count = len(lists.queries)
    if count <= most:
        return np.arange(count)
    return np.sort(rng.choice(count, size=most, replace=False)).astype(np.int64)


def _pairs(case: Case, lists: Lists, rows: Sequence[int]) -> list[tuple[str, str]]:
    """(query text, document text) of the candidates that were reranked."""
    texts = case.collection
    return [
        (texts.queries[lists.queries[row]], texts.documents[document])
        for row in rows
        for document in lists.documents[row][: case.depth]
    ]
