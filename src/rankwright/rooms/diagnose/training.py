"""The checks of model and training: H1, H1b, H2, H9, H10 and H16, all causes.

In: a Case. Out: one Finding each. What scores is handed in with the case; at most `case.sample` queries are scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from rankwright.core import Group, canonical, relevant
from rankwright.rooms.diagnose.case import LIMITS, Case, Finding, Number, Values, between, told
from rankwright.toolbox import stats
from rankwright.toolbox.lists import measure_grades
from rankwright.toolbox.metrics import judged_queries
from rankwright.toolbox.traininglog import evaluations

_RANDOM = 20  # negatives drawn for a query that has none
_PAIRS = 3  # scored in both orders, a query
_QUESTION = re.compile(
    r"\?\s*$|^(who|whom|whose|what|when|where|which|why|how|is|are|was|were|do|does|did|can|could|should|will)\b", re.I
)
_DOUBTFUL = 0.95  # of the positives' score
_WORSE = 0.01  # a loss on dev that counts without an interval


@dataclass(frozen=True)
class _Pool:
    """One query's labelled documents: which are relevant, and both scores."""

    query: str
    documents: tuple[str, ...]
    good: np.ndarray[Any, np.dtype[np.bool_]]
    retrieved: Values
    reranked: Values


def relevance(case: Case) -> Finding:
    """H1: does the model know this relevance, when it need only tell relevant from given or random documents?"""
    finding = Finding("H1", "wrong relevance", "cause")
    if case.score is None or case.retriever is None or not case.collection.documents:
        return replace(
            finding, lacks="the reranker, the retriever and the texts, to score a pool of labelled documents"
        )
    pools = _closed_pool(case)
    if not pools:
        return replace(finding, lacks="measured queries with relevant documents in the corpus")
    ours = np.array([_average_precision(pool.reranked, pool.good) for pool in pools])
    theirs = np.array([_average_precision(pool.retrieved, pool.good) for pool in pools])
    number = case.mean("H1.map", ours - theirs)
    reading = (
        f"On closed pools of {len(pools):,} queries the reranker has MAP {ours.mean():.4f} and the retriever "
        f"{theirs.mean():.4f}: {between(number)}."
    )
    remedy = (
        "train: {distilled: {groups: unlabelled, loss: kl}, finetuned: {base: distilled}}"
        "  # with mine: {unlabelled: 900}; or another base"
    )
    return told(finding, number.bad and number.sure, (number,), reading, remedy)


def closed_gap(case: Case) -> float | None:
    """The ladder's foot: the reranker's metric minus the retriever's on the closed pools; None where they lack."""
    if case.score is None or case.retriever is None or not case.collection.documents:
        return None
    gaps = [_ordered(case, pool, pool.reranked) - _ordered(case, pool, pool.retrieved) for pool in _closed_pool(case)]
    return float(np.mean(gaps)) if gaps else None


def _ordered(case: Case, pool: _Pool, scores: Values) -> float:
    """The metric of a pool in the order of some scores; relevant is relevant, whatever the grade."""
    hits = pool.good[np.lexsort((pool.good, -scores))].astype(np.int64)
    return float(measure_grades(hits[None, :], np.ones((1, int(pool.good.sum())), dtype=np.int64), case.metric)[0])


def asymmetry(case: Case) -> Finding:
    """H1b: do queries and documents look alike, while the model tells (q, d) from (d, q)?"""
    finding = Finding("H1b", "symmetric task, asymmetric model", "cause")
    texts, queries = case.collection.documents, case.collection.queries
    if case.score is None or not texts or not queries:
        return replace(finding, lacks="the reranker and the texts, to score both orders of a pair")
    chosen = _sample(case, [query for query in judged_queries(case.qrels) if query in queries])
    pairs = [(queries[q], texts[d]) for q in chosen for d in case.retrieved.documents(q)[:_PAIRS] if d in texts]
    if not pairs:
        return replace(finding, lacks="candidates with texts")
    forth = np.asarray(case.score(pairs), dtype=np.float64)
    back = np.asarray(case.score([(document, query) for query, document in pairs]), dtype=np.float64)
    apart = case.mean("H1b.asymmetry", np.abs(forth - back) / (float(forth.std()) or 1.0))
    lengths = [float(np.mean([len(pair[side]) for pair in pairs])) for side in (0, 1)]
    asked = np.array([bool(_QUESTION.search(queries[query])) for query in chosen], dtype=np.float64)
    numbers = (
        apart,
        Number("H1b.length", min(lengths) / max(*lengths, 1.0)),
        case.mean("H1b.questions", asked),
    )
    reading = (
        f"The two orders of a pair differ by {apart.value:.2f} standard deviations; queries have {lengths[0]:.0f} "
        f"letters and documents {lengths[1]:.0f}, and {asked.mean():.0%} of the queries are questions."
    )
    found = told(finding, all(number.bad for number in numbers), numbers, reading, "rerank: {both_orders: true}")
    # Alike lengths and no questions are what makes it matter, not how much it does.
    return replace(found, severity=min(found.severity, apart.value / LIMITS["H1b.asymmetry"].value))


def easy_negatives(case: Case) -> Finding:
    """H2: are the training negatives easier than what the reranker is served?"""
    finding = Finding("H2", "training negatives too easy", "cause")
    groups = [group for group in case.groups if any(label > 0 for label in group.labels)]
    if not groups or case.train_run is None:
        return replace(finding, lacks="labelled training groups and the retriever's candidates for their queries")
    measured = [found for group in groups if (found := _hardness(case, group))]
    if not measured:
        return replace(finding, lacks="training groups with negatives whose queries have candidates")
    inside = case.mean("H2.inside", np.array([share for share, _ in measured]))
    easier = np.array([easy for _, easy in measured if not np.isnan(easy)])
    numbers = [*([case.mean("H2.easier", easier)] if len(easier) else []), inside]
    fires = any(number.bad for number in numbers)
    if (gap := _accuracy_gap(case)) is not None:
        numbers.append(case.mean("H2.accuracy", gap))
    reading = f"{inside.value:.1%} of the training negatives are among the retriever's candidates" + (
        f"; a training negative scores below a served candidate with probability {easier.mean():.2f}."
        if len(easier)
        else "."
    )
    return told(
        finding, fires, tuple(numbers), reading, "mine: {negatives: 6, window: [1, 50], drop_above: 0.95, random: 2}"
    )


def overtrained(case: Case) -> Finding:
    """H9: did training go on too long, and what was forgotten?"""
    finding = Finding("H9", "over-training, forgetting", "cause")
    tried = evaluations(case.log)
    general = case.general if case.general is not None and len(case.general[0]) else None
    if not tried and general is None:
        return replace(finding, lacks="a training log with dev values, or a general collection (general: {})")
    numbers, said = [], []
    if tried:
        best, average = max(tried, key=_on_dev), _kept_average(case)
        numbers.append(_last(case, best, average or tried[-1]))
        said.append(f"dev's best is {_on_dev(best):.4f} at step {best['step']}, the last {_on_dev(tried[-1]):.4f}")
        said += [f"the mean of the last checkpoints, {_on_dev(average):.4f}, was kept"] if average else []
    if general is not None:
        before, after = general
        numbers.append(case.mean("H9.general", after - before))
        said.append(f"the general collection went from {before.mean():.4f} to {after.mean():.4f}")
    fires = any(number.bad and number.sure and (number.low is not None or number.value >= _WORSE) for number in numbers)
    remedy = "train: {finetuned: {keep: best, epochs: 1}}  # and merge: {models: [base, finetuned]}"
    return told(finding, fires, tuple(numbers), "; ".join(said).capitalize() + ".", remedy)


def false_negatives(case: Case) -> Finding:
    """H10: do mined negatives score like the positives, so that they may be relevant too?"""
    finding = Finding("H10", "false negatives mined", "cause")
    shares = [share for group in case.groups if (share := _doubtful(group)) is not None]
    if not shares:
        return replace(finding, lacks="labelled training groups with mined negatives and the retriever's scores")
    number = case.mean("H10.doubtful", np.array(shares))
    reading = (
        f"{number.value:.1%} of a group's mined negatives score at least {_DOUBTFUL:g} of its positives, "
        f"by the retriever."
    )
    return told(finding, number.bad, (number,), reading, f"mine: {{drop_above: {_DOUBTFUL:g}}}")


def _sample(case: Case, queries: Sequence[str]) -> list[str]:
    if len(queries) <= case.sample:
        return list(queries)
    places = case.rng("sample").choice(len(queries), size=case.sample, replace=False)
    return [queries[place] for place in sorted(places.tolist())]


def illegible(case: Case) -> Finding:
    """H16: are queries and candidates written in a script that the model's tokenizer does not read?"""
    finding = Finding("H16", "texts that the model cannot read", "cause")
    if case.unread is None:
        return replace(finding, lacks="a tokenizer")
    queries = [case.collection.queries[query] for query in case.qrels if query in case.collection.queries]
    ids = dict.fromkeys(d for query in case.qrels for d in case.retrieved.documents(query)[: case.depth])
    documents = [case.collection.documents[document] for document in ids if document in case.collection.documents]
    if not queries or not documents:
        return replace(finding, lacks="texts of queries and documents")
    numbers = (
        Number("H16.queries", case.unread(queries)),
        Number("H16.documents", case.unread(documents)),
    )
    reading = (
        f"The tokenizer cannot read {numbers[0].value:.1%} of the queries' letters, and {numbers[1].value:.1%} of the "
        f"candidates'."
    )
    remedy = "train: {finetuned: {base: …}}  # a model of the texts' language, or a multilingual one"
    return told(finding, any(number.bad for number in numbers), numbers, reading, remedy)


def _closed_pool(case: Case) -> list[_Pool]:
    """The labelled documents of some queries; where no negative is given, random ones stand in."""
    assert case.score is not None
    assert case.retriever is not None
    texts, queries = case.collection.documents, case.collection.queries
    known = [query for query in judged_queries(case.qrels) if query in queries]
    drawn = [(query, *_pool_of(case, query)) for query in _sample(case, known)]
    drawn = [(query, good, bad) for query, good, bad in drawn if good and bad]
    ids = [(query, document) for query, good, bad in drawn for document in (*good, *bad)]
    if not ids:
        return []
    retrieved = np.asarray(case.retriever(ids), dtype=np.float64)
    reranked = np.asarray(case.score([(queries[query], texts[document]) for query, document in ids]), dtype=np.float64)
    pools, start = [], 0
    for query, good, bad in drawn:
        end = start + len(good) + len(bad)
        labels = np.array([True] * len(good) + [False] * len(bad))
        # What one side cannot score is left out for both: last place for it would favour whoever knows fewer.
        both = np.isfinite(retrieved[start:end]) & np.isfinite(reranked[start:end])
        left = tuple(document for document, is_left in zip((*good, *bad), both, strict=True) if is_left)
        pool = _Pool(query, left, labels[both], retrieved[start:end][both], reranked[start:end][both])
        pools += [pool] if pool.good.any() and not pool.good.all() else []
        start = end
    return pools


def _pool_of(case: Case, query: str) -> tuple[list[str], list[str]]:
    """A query's relevant and not relevant documents."""
    texts, grades = case.collection.documents, case.qrels[query]
    good = [document for document in relevant(grades) if document in texts]
    given = [document for document, grade in grades.items() if grade <= 0 and document in texts]
    if given:
        return good, given
    # A copy of the query or of a relevant document is no negative, whatever its id.
    barred = {canonical(case.collection.queries[query]), *(canonical(texts[document]) for document in good)}
    corpus = list(texts)
    places = case.rng(f"pool {query}").permutation(len(corpus)).tolist()
    fit = (corpus[place] for place in places if canonical(texts[corpus[place]]) not in barred)
    return good, list(islice((document for document in fit if grades.get(document, 0) <= 0), _RANDOM))


def _average_precision(scores: Values, good: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    """Of a whole list. Of equal scores the not relevant ones stand first: one score for all gains nothing."""
    hits = good[np.lexsort((good, -scores))]
    ranks = np.flatnonzero(hits) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def _hardness(case: Case, group: Group) -> tuple[float, float] | None:
    """(share of negatives among the candidates, P(negative below a candidate)) of one group; None without either."""
    assert case.train_run is not None
    good = {d for d, label in zip(group.document_ids, group.labels, strict=True) if label > 0}
    good |= set(relevant(case.collection.qrels.get("train", {}).get(group.query_id, {})))
    served = {d: score for d, score in case.train_run.scores(group.query_id).items() if d not in good}
    negative = [
        (d, t) for d, t, label in zip(group.document_ids, group.teacher, group.labels, strict=True) if label <= 0
    ]
    if not served or not negative:
        return None
    inside = float(np.mean([document in served for document, _ in negative]))
    shares = []
    for document, score in negative:
        # Not against itself: the same score from two places may differ in its last bits.
        others = np.array([other for name, other in served.items() if name != document])
        if len(others) and not np.isnan(score):
            shares.append(float(((score < others) + 0.5 * (score == others)).mean()))
    return inside, float(np.mean(shares)) if shares else float("nan")


def _accuracy_gap(case: Case) -> Values | None:
    """Pairwise accuracy on the pool's negatives minus on retrieved ones, query by query; None where unknown."""
    if case.score is None or case.retriever is None or not case.collection.documents:
        return None
    gaps = []
    for pool in _closed_pool(case):
        known, grades = set(case.retrieved.documents(pool.query)), case.qrels[pool.query]
        ranked = case.reranked.rankings.get(pool.query, ())[: case.depth]
        listed = {document: score for document, score in ranked if document in known}
        hard = np.array([score for document, score in listed.items() if grades.get(document, 0) <= 0])
        # The same relevant documents on both sides, each by the scores of its side: their scales may differ.
        shared = [place for place in np.flatnonzero(pool.good) if pool.documents[place] in listed]
        if len(hard) and shared:
            served = np.array([listed[pool.documents[place]] for place in shared])
            gaps.append(_above(pool.reranked[shared], pool.reranked[~pool.good]) - _above(served, hard))
    return np.array(gaps) if gaps else None


def _above(good: Values, bad: Values) -> float:
    """Share of pairs in which the good one scores higher; equal scores count half."""
    apart = good[:, None] - bad[None, :]
    return float(((apart > 0) + 0.5 * (apart == 0)).mean())


def _on_dev(record: Mapping[str, Any]) -> float:
    return float(next(iter(record["dev"].values())))


def _kept_average(case: Case) -> Mapping[str, Any] | None:
    """The evaluation of averaged weights, where they were kept: going on past the best step then did no harm."""
    told = [record for record in case.log if record.get("averaged_dev") and record.get("kept")]
    return {**told[-1], "dev": told[-1]["averaged_dev"]} if told else None


def _last(case: Case, best: Mapping[str, Any], last: Mapping[str, Any]) -> Number:
    """Best minus last on dev; with an interval where the log holds each query's value."""
    ours, theirs = best.get("values"), last.get("values")
    if ours and theirs and len(ours) == len(theirs):
        differences = np.array(ours, dtype=np.float64) - np.array(theirs, dtype=np.float64)
        low, high = stats.paired_bootstrap(
            differences, resamples=case.resamples, confidence=case.confidence, rng=case.rng("H9.last")
        )
        return Number("H9.last", float(differences.mean()), float(low), float(high))
    return Number("H9.last", _on_dev(best) - _on_dev(last))


def _doubtful(group: Group) -> float | None:
    rows = list(_rows(group))
    good = [score for score, label, _ in rows if label > 0]
    mined = [score for score, label, origin in rows if label <= 0 and origin == "mined"]
    if not good or not mined:
        return None
    mean = float(np.mean(good))
    return float(np.mean(np.array(mined) >= mean - (1 - _DOUBTFUL) * abs(mean)))


def _rows(group: Group) -> Iterator[tuple[float, int, str]]:
    for score, label, origin in zip(group.teacher, group.labels, group.origins, strict=True):
        if not np.isnan(score):
            yield score, label, origin
