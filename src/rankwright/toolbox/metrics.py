"""Ranking metrics of a Run, query by query, computed by ir_measures (trec_eval's definitions).

In come a Run and Qrels, out goes one number per judged query and metric. Nothing here knows arms, means
or tests: those are `stats`' and `evaluate`'s.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Qrels, Run, relevant
from rankwright.errors import ConfigError

Values = NDArray[np.float64]


class _Kind(NamedTuple):
    measure: str  # ir_measures' name
    label: str  # as people write it
    needs_cutoff: bool


_KINDS = {
    "mrr": _Kind("RR", "MRR", False),
    "recall": _Kind("R", "Recall", True),
    "ndcg": _Kind("nDCG", "nDCG", False),
    "map": _Kind("AP", "MAP", False),
    "precision": _Kind("P", "Precision", True),
    "success": _Kind("Success", "Success", True),
}


def per_query(run: Run, qrels: Qrels, metrics: Sequence[str]) -> dict[str, Values]:
    """Metric -> its value for each of `judged_queries(qrels)`, in their order: float64 (queries,).

    The order of `run` alone counts: its ranks are handed on as scores, so that trec_eval's own rule for ties
    (document id, descending) never comes in. A query that the run lacks scores 0. nDCG has linear gains
    and divides by log2(rank + 1), as in trec_eval; MAP divides by all relevant documents, found or not.

    Raises:
        ConfigError: a metric that is not known.
    """
    import ir_measures

    measures = {ir_measures.parse_measure(measure_name(metric)): metric for metric in dict.fromkeys(metrics)}
    queries = judged_queries(qrels)
    place = {query: position for position, query in enumerate(queries)}
    values = {metric: np.zeros(len(queries)) for metric in measures.values()}
    ranks = {
        query: {document: -float(rank) for rank, document in enumerate(run.documents(query))}
        for query in queries
        if run.rankings.get(query)
    }
    if not ranks:
        return values
    for found in ir_measures.iter_calc(list(measures), {query: qrels[query] for query in queries}, ranks):
        values[measures[found.measure]][place[found.query_id]] = found.value
    return values


def judged_queries(qrels: Qrels) -> list[str]:
    """The queries with at least one relevant document, in the order of `qrels`: those that can be measured."""
    return [query for query, grades in qrels.items() if relevant(grades)]


def measure_name(metric: str) -> str:
    """ir_measures' name of a metric: ``mrr@10`` is ``RR@10``. Cheap: loads nothing.

    Raises:
        ConfigError: a metric that is not known, with the closest that is.
    """
    kind, cutoff = _parse(metric)
    return f"{kind.measure}@{cutoff}" if cutoff else kind.measure


def label(metric: str) -> str:
    """How a table heads a metric: ``mrr@10`` is ``MRR@10``, ``ndcg@10`` is ``nDCG@10``.

    Raises:
        ConfigError: as `measure_name`.
    """
    kind, cutoff = _parse(metric)
    return f"{kind.label}@{cutoff}" if cutoff else kind.label


def _parse(metric: str) -> tuple[_Kind, int | None]:
    word, at, cutoff = metric.partition("@")
    if word not in _KINDS:
        raise ConfigError(f"unknown metric {metric!r}; did you mean {_closest(word)}{at}{cutoff}?", hint=_known())
    kind = _KINDS[word]
    if not at and not kind.needs_cutoff:
        return kind, None
    if not re.fullmatch(r"[1-9][0-9]*", cutoff):
        raise ConfigError(f"metric {metric!r} needs a cutoff of 1 or more; did you mean {word}@10?", hint=_known())
    return kind, int(cutoff)


def _closest(word: str) -> str:
    """The known word that is most like `word`; other tools' names count too."""
    aliases = {kind.measure.lower(): known for known, kind in _KINDS.items()} | {known: known for known in _KINDS}
    close = difflib.get_close_matches(word.strip().lower(), aliases, n=1, cutoff=0.0)
    return aliases[close[0]]


def _known() -> str:
    names = [f"{word}@k" + ("" if kind.needs_cutoff else f", {word}") for word, kind in _KINDS.items()]
    return f"metrics are {', '.join(names)}, with k = 1, 2, 3, …"
