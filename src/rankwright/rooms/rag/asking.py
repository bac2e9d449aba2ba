"""Who is asked what: every distinct question once, whatever number of arms it serves.

In come what each arm sends, reference answers and a Judge; out go values, verdicts and answers. `questions` says
beforehand how many there will be, by the same code that asks them. It knows no HTTP, no prompt, no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TypeVar

from rankwright.rooms.rag.case import Material, Sent
from rankwright.rooms.rag.contexts import FAILED, NO_PASSAGES, NO_REFERENCE, Value, Values, missing
from rankwright.toolbox import ragmetrics
from rankwright.toolbox.judge import Judge

Prompt = tuple[str, tuple[str, ...]]
"""A query's text and the passages to answer it from."""

_Item = TypeVar("_Item", bound=Hashable)
_Source = TypeVar("_Source", bound=Hashable)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Asked:
    """What came of asking: metric -> arm -> query id -> Value; verdicts on passages, (query id, document id) ->
    relevant or not; and arm -> query id -> the answer from that arm's passages (those that failed are absent).
    """

    values: dict[str, dict[str, Values]] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], bool] = field(default_factory=dict)
    responses: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Questions:
    """The distinct questions of each kind, at most: what follows an answer that fails is not asked, and what two
    equal answers would be asked for is asked once. `relevant` and the later ones hold what is known beforehand;
    an answer still to come stands as the prompt that it is the answer to.
    """

    answers: list[Prompt]
    relevant: list[tuple[str, str, str | Prompt]]
    recall: list[tuple[str, tuple[str, ...], str]]
    faithfulness: list[Prompt]
    relevancy: list[Prompt]


def questions(material: Material) -> Questions:
    """What `ask` will ask, before any of it is asked."""
    wanted, prompts = material.section.metrics, [prompt for _, _, prompt in _prompts(material)]
    return Questions(
        answers=_distinct(_to_answer(material)),
        relevant=_distinct(_passages(material, lambda query: material.answer(query) or _first(material, query)))
        if "context_precision" in wanted
        else [],
        recall=_distinct(_to_recall(material)) if "context_recall" in wanted else [],
        faithfulness=_distinct(prompts) if "faithfulness" in wanted else [],
        relevancy=_distinct(prompts) if "answer_relevancy" in wanted else [],
    )


def ask(material: Material, judge: Judge) -> Asked:
    """Ask for what `section.metrics` names, over the sample: answers first, then verdicts, then the scores."""
    said = {
        prompt: text for prompt, text in _once(judge.answers, _to_answer(material)).items() if text and text.strip()
    }
    asked = Asked()
    for metric in dict.fromkeys(material.section.metrics):
        if metric == "context_precision":
            asked.values[metric] = _precision(material, judge, said, asked.verdicts)
        elif metric == "context_recall":
            asked.values[metric] = _recall(material, judge)
        elif metric == "faithfulness":
            asked.values[metric] = _faithfulness(material, judge, said)
        else:
            asked.values[metric] = _relevancy(material, judge, said)
    for arm, query, prompt in _prompts(material):
        if prompt in said:
            asked.responses.setdefault(arm, {})[query] = said[prompt]
    return asked


# ---------------------------------------------------------------------------------------------- what to ask


def _prompts(material: Material) -> Iterator[tuple[str, str, Prompt]]:
    """(arm, query id, prompt) of the sample; what has no passages is not asked."""
    for query in material.sample:
        for arm in material.arms:
            if texts := material.sent[arm][query].texts:
                yield arm, query, (material.case.queries[query], texts)


def _first(material: Material, query: str) -> Prompt | None:
    """The baseline's prompt for a query: its answer stands in where no reference answer is known."""
    texts = material.sent[material.arms[0]][query].texts
    return (material.case.queries[query], texts) if texts else None


def _to_answer(material: Material) -> list[Prompt]:
    """Every arm's prompts if answers are judged; else the baseline's, where verdicts on passages need an answer."""
    wanted = material.section.metrics
    if "faithfulness" in wanted or "answer_relevancy" in wanted:
        return [prompt for _, _, prompt in _prompts(material)]
    if "context_precision" not in wanted:
        return []
    firsts = [_first(material, query) for query in material.sample if material.answer(query) is None]
    return [prompt for prompt in firsts if prompt]


def _passages(material: Material, judged_by: Callable[[str], _Source | None]) -> Iterator[tuple[str, str, _Source]]:
    """(query, passage, what it is judged by), once an arm; queries with nothing to judge by are left out."""
    for _, query, (text, passages) in _prompts(material):
        source = judged_by(query)
        if source is not None:
            yield from ((text, passage, source) for passage in passages)


def _to_recall(material: Material) -> Iterator[tuple[str, tuple[str, ...], str]]:
    for _, query, (text, passages) in _prompts(material):
        reference = material.answer(query)
        if reference is not None:
            yield text, passages, reference


# ---------------------------------------------------------------------------------------------- asking


def _precision(
    material: Material, judge: Judge, said: dict[Prompt, str], verdicts: dict[tuple[str, str], bool]
) -> dict[str, Values]:
    """The rank-aware mean precision of the verdicts; one verdict that failed fails the row. Fills `verdicts`."""

    def judged_by(query: str) -> str | None:
        first = _first(material, query)
        return material.answer(query) or (said.get(first) if first else None)

    found = _once(judge.relevant, _passages(material, judged_by))

    def value(query: str, sent: Sent) -> Value:
        source = judged_by(query)
        if not sent.ids:
            return Value(0.0)
        if source is None:
            return missing(FAILED if _first(material, query) else NO_PASSAGES)
        marks = [found[material.case.queries[query], text, source] for text in sent.texts]
        known = {(query, document): mark for document, mark in zip(sent.ids, marks, strict=True) if mark is not None}
        verdicts.update(known)
        right = [mark for mark in marks if mark is not None]
        return Value(ragmetrics.average_precision(right)) if len(right) == len(marks) else missing(FAILED)

    return _over_sample(material, value)


def _recall(material: Material, judge: Judge) -> dict[str, Values]:
    """Only with reference answers; no passages support nothing."""
    found = _once(judge.recall, _to_recall(material))

    def value(query: str, sent: Sent) -> Value:
        reference = material.answer(query)
        if reference is None:
            return missing(NO_REFERENCE)
        return _score(found[material.case.queries[query], sent.texts, reference]) if sent.ids else Value(0.0)

    return _over_sample(material, value)


def _faithfulness(material: Material, judge: Judge, said: dict[Prompt, str]) -> dict[str, Values]:
    items = [(*prompt, said[prompt]) for _, _, prompt in _prompts(material) if prompt in said]
    found = _once(judge.faithfulness, items)

    def value(query: str, sent: Sent) -> Value:
        prompt = (material.case.queries[query], sent.texts)
        return _answered(sent, _score(found[(*prompt, said[prompt])]) if prompt in said else missing(FAILED))

    return _over_sample(material, value)


def _relevancy(material: Material, judge: Judge, said: dict[Prompt, str]) -> dict[str, Values]:
    found = _once(judge.relevancy, [(prompt[0], said[prompt]) for _, _, prompt in _prompts(material) if prompt in said])

    def value(query: str, sent: Sent) -> Value:
        text = material.case.queries[query]
        response = said.get((text, sent.texts))
        return _answered(sent, missing(FAILED) if response is None else _score(found[text, response]))

    return _over_sample(material, value)


def _over_sample(material: Material, value: Callable[[str, Sent], Value]) -> dict[str, Values]:
    return {arm: {query: value(query, material.sent[arm][query]) for query in material.sample} for arm in material.arms}


def _answered(sent: Sent, value: Value) -> Value:
    """An answer's value; without passages there is no answer to judge."""
    return value if sent.ids else missing(NO_PASSAGES)


def _score(found: float | None) -> Value:
    return missing(FAILED) if found is None or not isfinite(found) else Value(float(found))


def _distinct(items: Iterator[_Item] | Sequence[_Item]) -> list[_Item]:
    return list(dict.fromkeys(items))


def _once(
    put: Callable[[Sequence[_Item]], Sequence[_Answer]], items: Iterator[_Item] | Sequence[_Item]
) -> dict[_Item, _Answer]:
    """Each distinct item and its answer; nobody is called for nothing."""
    distinct = _distinct(items)
    return dict(zip(distinct, put(distinct), strict=True)) if distinct else {}
