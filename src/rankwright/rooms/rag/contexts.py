"""The context metrics that need no model: by labels, by size, and by likeness of texts.

In comes what each arm sends, out goes a value a query and metric, with a reason where there is none. It knows no
judge, and no means.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rankwright.core import relevant
from rankwright.rooms.rag.case import Material, Sent, references
from rankwright.toolbox import ragmetrics

FAILED = "failed"
"""Asked, and not answered: counted, in the best and in the worst case."""
NO_REFERENCE = "no reference answer"
NO_PASSAGES = "no passages"
NO_TEXT = "no relevant text"
NOT_SAMPLED = "not sampled"

TokenCounter = Callable[[Sequence[str]], list[int]]


class Value(NamedTuple):
    """A number, or NaN and why: `FAILED`, or a reason for which the metric does not apply to this query."""

    number: float
    reason: str = ""


Values = dict[str, Value]
"""query id -> Value"""


def missing(reason: str) -> Value:
    """A value that is not there."""
    return Value(float("nan"), reason)


def measure(material: Material, count: TokenCounter) -> dict[str, dict[str, Values]]:
    """Metric -> arm -> query id -> Value, of every query. No passages sent: 0 in each, as in the ranking metrics.

    With `section.texts`, a query none of whose relevant documents has a text is left out of the text metrics.
    """
    tokens = _counted(material, count)
    metrics: dict[str, Callable[[str, Sent], float]] = {
        **_by_labels(material),
        "repeated": lambda _, sent: ragmetrics.repeated(sent.texts),
        "tokens": lambda _, sent: float(sum(tokens[text] for text in sent.texts)),
    }
    found = {name: _each(material, metric) for name, metric in metrics.items()}
    return {**found, **_by_texts(material)} if material.section.texts else found


def _by_labels(material: Material) -> dict[str, Callable[[str, Sent], float]]:
    known = {query: frozenset(relevant(material.case.qrels[query])) for query in material.queries}
    return {
        "id_precision": lambda query, sent: ragmetrics.id_precision(sent.ids, known[query]),
        "id_recall": lambda query, sent: ragmetrics.id_recall(sent.ids, known[query]),
        "average_precision": lambda query, sent: ragmetrics.average_precision(
            [document in known[query] for document in sent.ids]
        ),
        "hit": lambda query, sent: ragmetrics.hit(sent.ids, known[query]),
    }


def _each(material: Material, metric: Callable[[str, Sent], float]) -> dict[str, Values]:
    return {
        arm: {query: Value(float(metric(query, one)) if one.ids else 0.0) for query, one in sent.items()}
        for arm, sent in material.sent.items()
    }


def _by_texts(material: Material) -> dict[str, dict[str, Values]]:
    """The string metrics of ragas: two texts are compared once, whatever number of arms and metrics want that."""
    alike = functools.cache(ragmetrics.likeness)
    known = {query: references(material.case, query).texts for query in material.queries}

    def each(metric: Callable[[Sequence[str], Sequence[str], ragmetrics.Likeness], float]) -> dict[str, Values]:
        def value(query: str, texts: Sequence[str]) -> Value:
            if not known[query]:
                return missing(NO_TEXT)
            return Value(metric(texts, known[query], alike) if texts else 0.0)

        return {
            arm: {query: value(query, one.texts) for query, one in sent.items()} for arm, sent in material.sent.items()
        }

    return {"text_precision": each(ragmetrics.text_precision), "text_recall": each(ragmetrics.text_recall)}


def _counted(material: Material, count: TokenCounter) -> Mapping[str, int]:
    """Tokens of every distinct passage that any arm sends."""
    texts = list(dict.fromkeys(text for sent in material.sent.values() for one in sent.values() for text in one.texts))
    return dict(zip(texts, count(texts), strict=True)) if texts else {}
