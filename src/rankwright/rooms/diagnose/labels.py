"""The checks of labels and texts: H4 (measuring), H5, H6, H7 and H15 (causes).

In: a Case. Out: one Finding each. No model and no score of a reranker but its order: they work on anybody's files.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rankwright.core import Qrels, Run, canonical, relevant
from rankwright.rooms.diagnose.case import Case, Finding, Number, Values, told
from rankwright.toolbox.lists import Lists, measure_grades
from rankwright.toolbox.metrics import judged_queries

_TOP = 10


def holes(case: Case) -> Finding:
    """H4: are the top documents judged at all, and equally in both runs?"""
    finding = Finding("H4", "holes in the labels", "measuring")
    if not judged_queries(case.qrels):
        return replace(finding, lacks="a query with a relevant document")
    runs = {"retrieval": case.retrieved, "the reranked order": case.reranked_served()}
    shares = {name: _judged(run, case.qrels) for name, run in runs.items()}
    lower = min(shares, key=lambda name: float(shares[name].mean()))
    judged = case.mean("H4.judged", shares[lower])
    difference = shares["the reranked order"] - shares["retrieval"]
    side = 1.0 if difference.mean() >= 0 else -1.0
    bias = case.mean("H4.bias", side * difference)
    fires = judged.bad or bias.bad
    told_shares = " and ".join(f"{share.mean():.1%} in {name}" for name, share in shares.items())
    reading = f"Of the top {_TOP}, {told_shares} are judged"
    if fires:
        low, most = zip(*(_bounds(case, run) for run in runs.values()), strict=True)
        reading += (
            f"; {case.metric} is {low[0]:.4f} and {low[1]:.4f} if no unjudged document is relevant, "
            f"and at most {most[0]:.4f} and {most[1]:.4f} if those of the top {_TOP} may be"
        )
    remedy = "judge the unjudged documents of both top tens, and unite them with the qrels; no key of the YAML does it"
    return told(finding, fires, (judged, bias), f"{reading}.", remedy)


def duplicates(case: Case) -> Finding:
    """H5: how many documents say word for word what another says?"""
    finding = Finding("H5", "duplicates", "cause")
    if not case.collection.documents:
        return replace(finding, lacks="the texts of the documents")
    texts = {document: canonical(text) for document, text in case.collection.documents.items()}
    copies = Number("H5.copies", 1 - len(set(texts.values())) / len(texts))
    lists = [case.retrieved.documents(query) for query in judged_queries(case.qrels)]
    unique = np.array([100 * len({texts.get(d, d) for d in row}) / len(row) for row in lists if row], dtype=np.float64)
    numbers = (copies, case.mean("H5.unique", unique)) if len(unique) else (copies,)
    reading = f"{copies.value:.1%} of {len(texts):,} documents are copies of another" + (
        f", and {unique.mean():.1f} of 100 candidates are different texts." if len(unique) else "."
    )
    return told(finding, any(number.bad for number in numbers), numbers, reading, "data: {dedupe: true}")


def finds_itself(case: Case) -> Finding:
    """H6: is the query's own text a document, and is it found?"""
    finding = Finding("H6", "the query finds itself", "cause")
    texts, queries = case.collection.documents, case.collection.queries
    measured = [query for query in judged_queries(case.qrels) if query in queries]
    if not texts or not measured:
        return replace(finding, lacks="the texts of queries and documents")
    known = {canonical(text) for text in texts.values()}
    there = np.array([canonical(queries[query]) in known for query in measured], dtype=np.float64)
    first = np.array([_first_is_itself(case, query) for query in measured], dtype=np.float64)
    numbers = case.mean("H6.queries", there), case.mean("H6.first", first)
    reading = (
        f"The text of {there.mean():.1%} of the queries is also a document, "
        f"and it stands at rank 1 for {first.mean():.1%}."
    )
    # The first number alone may be what the data are like; it harms where such documents were left in the lists.
    return told(finding, all(number.bad for number in numbers), numbers, reading, "data: {self_matches: drop}")


def collisions(case: Case) -> Finding:
    """H7: is a query there twice, or a pair labelled both ways?"""
    finding = Finding("H7", "label collisions", "cause")
    texts = {query: canonical(text) for query, text in case.collection.queries.items()}
    split = [query for query in case.qrels if query in texts]
    if not split:
        return replace(finding, lacks="the texts of the queries")
    often = Counter(texts[query] for query in split)
    twins = np.array([often[texts[query]] > 1 for query in split], dtype=np.float64)
    ways: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for query in split:
        for document, grade in case.qrels[query].items():
            ways[texts[query], canonical(case.collection.documents.get(document, document))].add(grade > 0)
    both = sum(len(labels) > 1 for labels in ways.values()) / max(len(ways), 1)
    numbers = case.mean("H7.twins", twins), Number("H7.both", both)
    reading = (
        f"{twins.mean():.2%} of the queries have a twin of the same text, "
        f"and {both:.2%} of the pairs are labelled both ways."
    )
    return told(finding, any(number.bad for number in numbers), numbers, reading, "data: {dedupe: true}")


def leakage(case: Case) -> Finding:
    """H15: does training know the measured queries, or their answers?"""
    finding = Finding("H15", "leakage", "cause")
    train, queries = case.collection.qrels.get("train", {}), case.collection.queries
    if not train or case.split == "train":
        return replace(finding, lacks="a training split beside the measured one")
    seen = {canonical(queries[query]) for query in train if query in queries}
    measured = [query for query in case.qrels if query in queries]
    if not seen or not measured:
        return replace(finding, lacks="the texts of the training queries and the measured ones")
    # A text of punctuation alone has no words, and is like no other.
    nearly = {_words(text) for text in seen} - {""}
    exact = [query for query in measured if canonical(queries[query]) in seen]
    near = [q for q in measured if canonical(queries[q]) not in seen and _words(queries[q]) in nearly]
    pairs = _pairs(case, train) & _pairs(case, case.qrels)
    numbers = (
        Number("H15.queries", float(len(exact))),
        Number("H15.near", float(len(near))),
        Number("H15.pairs", float(len(pairs))),
    )
    example = next(iter([*exact, *near]), None)
    such = f" (such as {queries[example]!r:.80})" if example else ""
    reading = (
        f"Of {len(measured):,} queries training has {len(exact):,} word for word and {len(near):,} with the same words"
        f"{such}, and {len(pairs):,} of the relevant pairs."
    )
    leaky = told(finding, any(number.bad for number in numbers), numbers, reading, "data: {leaks: drop}")
    # A count over a limit of 0 has no ratio: its logarithm keeps one leak from standing above all other causes.
    return replace(leaky, severity=float(np.log1p(max(number.value for number in numbers))))


def _judged(run: Run, qrels: Qrels) -> Values:
    """The judged share of each query's top ten; 0 where nothing was returned."""
    shares = []
    for query in judged_queries(qrels):
        top = run.documents(query)[:_TOP]
        shares.append(sum(document in qrels[query] for document in top) / max(len(top), 1))
    return np.array(shares, dtype=np.float64)


def _bounds(case: Case, run: Run) -> tuple[float, float]:
    """The mean when no unjudged document is relevant, and at most, if those of the top ten may be (grade 1)."""
    lists = Lists.of(run, None, case.qrels)
    unjudged = np.zeros((len(lists.queries), min(_TOP, lists.width)), dtype=bool)
    for row, query in enumerate(lists.queries):
        top = lists.documents[row][:_TOP]
        unjudged[row, : len(top)] = [document not in case.qrels[query] for document in top]
    low = most = measure_grades(lists.grades, lists.ideal, case.metric)
    place = np.cumsum(unjudged, axis=1)
    # More relevant documents also raise the ideal, so that all of them need not give the most. Of any number of them
    # the first ones do best: it is enough to try every number.
    for count in range(1, int(place.max(initial=0)) + 1):
        extra = unjudged & (place <= count)
        grades = lists.grades.copy()
        grades[:, : extra.shape[1]][extra] = 1
        ideal = np.concatenate([lists.ideal, extra.astype(np.int64)], axis=1)
        most = np.maximum(most, measure_grades(grades, -np.sort(-ideal, axis=1), case.metric))
    return float(low.mean()), float(most.mean())


def _first_is_itself(case: Case, query: str) -> bool:
    first = case.retrieved.documents(query)[:1]
    text = case.collection.documents.get(first[0]) if first else None
    return text is not None and canonical(text) == canonical(case.collection.queries[query])


def _words(text: str) -> str:
    """The words of a text, sorted: case, punctuation and order put aside."""
    return " ".join(sorted(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())))


def _pairs(case: Case, qrels: Mapping[str, Mapping[str, int]]) -> set[tuple[str, str]]:
    """Relevant pairs by text; a document without a text goes by its id."""
    texts, queries = case.collection.documents, case.collection.queries
    return {
        (canonical(queries[query]), canonical(texts.get(document, document)))
        for query, grades in qrels.items()
        if query in queries
        for document in relevant(grades)
    }
