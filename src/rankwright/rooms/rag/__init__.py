"""What does the order do to the answers? Context metrics of every arm; with a judge, RAGAS' metrics of a model.

In come Runs of the same queries (the first is retrieval), texts, labels, reference answers, the `rag` section, and a
Judge or none; out goes a Rag. It does not know how a run was made, who the judge asks, or where anything is written.

    case.py      what is given, what is sent, rows for ragas elsewhere
    contexts.py  metrics without a model
    asking.py    every distinct question once
    found.py     values, coverage, intervals, the table
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rankwright.rooms.rag.asking import Asked, Questions, ask, questions
from rankwright.rooms.rag.case import Case, Material, export_rows, prepare
from rankwright.rooms.rag.contexts import TokenCounter, measure
from rankwright.rooms.rag.found import Column, Rag, applies, column
from rankwright.sections import RagSection
from rankwright.toolbox.judge import Estimate, Judge, Method, estimate
from rankwright.toolbox.table import arm_name

__all__ = ["Case", "Column", "Forecast", "Rag", "export_rows", "forecast", "rag"]

_PRECISION, _RECALL = "context_precision", "context_recall"


def rag(case: Case, section: RagSection, judge: Judge | None, count: TokenCounter, seed: int) -> Rag:
    """Measure what each arm sends and, with a judge, what is made of it.

    `count` gives the tokens of texts. The sample and the draws of the intervals depend on `seed`. Without a judge,
    nothing is asked, whatever the section names.

    Raises:
        ConfigError: no runs, or an arm of `section.arms` that has none.
        DataError: no query has a relevant document, or a text is missing.
    """
    material = prepare(case, section, seed)
    asked = ask(material, judge) if judge else Asked()
    values = {**measure(material, count), **asked.values}
    columns = {
        metric: {arm: column(material.queries, found[arm]) for arm in material.arms} for metric, found in values.items()
    }
    return Rag(
        arms=material.arms,
        queries=material.queries,
        sample=material.sample if judge else (),
        columns={metric: found for metric, found in columns.items() if applies(found)},
        asked=tuple(metric for metric in asked.values if applies(columns[metric])),
        section=section,
        seed=seed,
        verdicts=tuple((query, document, mark) for (query, document), mark in asked.verdicts.items()),
        responses=asked.responses,
        spent=_spent(judge) if judge else {},
        notes=(*_notes(material, judge is not None), *(_failures(judge) if judge else ())),
    )


@dataclass(frozen=True)
class Forecast:
    """How many distinct questions of each kind, and what they take if nothing is cached, retried or answered twice.

    An upper bound of the questions: what follows an answer that fails is not asked, and equal answers are judged
    once. Calls and tokens are rough.
    """

    sample: int
    counts: dict[Method, int]
    took: Estimate

    def lines(self) -> list[str]:
        """What is told before anything is asked."""
        told = [f"{count:,} {_KINDS[kind]}" for kind, count in self.counts.items() if count]
        if not told:
            return ["rag: nothing to ask a model"]
        tokens = f"{self.took.prompt_tokens:,} prompt tokens and {self.took.completion_tokens:,} of replies"
        return [
            f"rag: over {self.sample:,} queries, at most {', '.join(told)}",
            f"rag: about {self.took.calls:,} calls, {tokens}, less what is cached",
        ]


_KINDS: dict[Method, str] = {
    "answers": "answers",
    "relevant": "verdicts on a passage",
    "recall": "of context recall",
    "faithfulness": "of faithfulness",
    "relevancy": "of answer relevancy",
}


def forecast(case: Case, section: RagSection, seed: int) -> Forecast:
    """What `rag` with a judge will ask, and roughly what that takes (`toolbox.judge.estimate`). Asks nobody.

    Raises:
        ConfigError, DataError: as `rag`.
    """
    material = prepare(case, section, seed)
    items = _items(questions(material))
    took = sum((estimate(kind, found) for kind, found in items.items()), Estimate())
    return Forecast(len(material.sample), {kind: len(found) for kind, found in items.items()}, took)


def _items(asked: Questions) -> dict[Method, list[tuple[object, ...]]]:
    """The questions as `estimate` takes them: None is an answer to come, a number in front keeps such items apart."""
    kinds: dict[Method, list[tuple[object, ...]]] = {
        "answers": list(asked.answers),
        "relevant": [(query, text, by if isinstance(by, str) else None) for query, text, by in asked.relevant],
        "recall": list(asked.recall),
        "faithfulness": [(*prompt, None) for prompt in asked.faithfulness],
        "relevancy": [(query, None) for query, _ in asked.relevancy],
    }
    return {kind: [(place, *item) for place, item in enumerate(items)] for kind, items in kinds.items()}


def _notes(material: Material, judged: bool) -> Iterator[str]:
    if left := len(material.case.qrels) - len(material.queries):
        yield f"{left:,} of {len(material.case.qrels):,} queries have no relevant document and are left out."
    for arm, sent in material.sent.items():
        if empty := sum(not one.ids for one in sent.values()):
            yield f"{arm_name(arm)} has no passages for {_queries(empty)}: 0 by the labels, no answer."
    answered = sum(material.answer(query) is not None for query in material.queries)
    if not judged:
        yield "No reference answers: context columns only." if not answered else "No endpoint: context columns only."
        return
    lacking = sum(material.answer(query) is None for query in material.sample)
    if not lacking:
        return
    who = "No reference answers" if lacking == len(material.sample) else f"No reference answer to {_queries(lacking)}"
    first, wanted = arm_name(material.arms[0]), material.section.metrics
    parts = [f"passages are judged by {first}'s answer, the same for all arms"] if _PRECISION in wanted else []
    parts += ["no context recall"] if _RECALL in wanted else []
    if parts:
        yield f"{who}: {'; '.join(parts)}."


def _failures(judge: Judge) -> Iterator[str]:
    """Why what failed did, the most frequent first."""
    counted = sorted(judge.reasons.items(), key=lambda each: (-each[1], each[0]))
    if counted:
        yield "Failed: " + ", ".join(f"{count:,} {reason}" for reason, count in counted) + "."


def _queries(number: int) -> str:
    return f"{number:,} {'query' if number == 1 else 'queries'}"


def _spent(judge: Judge) -> dict[str, int]:
    return {name.replace("_", " "): number for name, number in asdict(judge.spent).items()}
