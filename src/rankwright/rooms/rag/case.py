"""What is given, what each arm would send to a language model, and rows for ragas elsewhere.

In come runs, texts, labels and reference answers; out go the first k passages of each arm and query. It knows no
metric and asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from rankwright.core import Qrels, Run, relevant, text_id
from rankwright.errors import ConfigError, DataError
from rankwright.sections import RagSection
from rankwright.toolbox.metrics import judged_queries


@dataclass(frozen=True)
class Case:
    """`runs` maps an arm to its Run on the measured split, the baseline (retrieval) first; `queries` and `documents`
    map ids to texts; `answers` maps a query's id to its reference answer, and may lack any.
    """

    runs: Mapping[str, Run]
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Qrels
    answers: Mapping[str, str] = field(default_factory=dict)


class Sent(NamedTuple):
    """The passages that go to the language model for one query, best first: their ids, and their texts."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """A case cut to what is compared: `arms` (the first is the baseline), `queries` that have a relevant document,
    and `sent`: arm -> query id -> Sent.
    """

    case: Case
    section: RagSection
    arms: tuple[str, ...]
    queries: tuple[str, ...]
    sent: Mapping[str, Mapping[str, Sent]]
    seed: int

    @cached_property
    def sample(self) -> tuple[str, ...]:
        """The queries of which a model is asked: the first of a seeded order by hash of their texts.

        They stay in that order: if a budget ends early, those asked are still a random part of all.
        """
        texts = self.case.queries
        ranked = sorted(self.queries, key=lambda query: text_id(f"rag {self.seed} {texts[query]}"))
        return tuple(ranked[: self.section.queries])

    def answer(self, query: str) -> str | None:
        """The reference answer of a query; None without one, or with a blank one."""
        text = self.case.answers.get(query, "")
        return text if text.strip() else None


def prepare(case: Case, section: RagSection, seed: int) -> Material:
    """Choose arms and queries, and cut every run to the passages that are sent.

    Raises:
        ConfigError: no runs, or an arm of `section.arms` that has none.
        DataError: no query has a relevant document, or the text of a query or passage is missing.
    """
    arms = _arms(case, section)
    queries = tuple(judged_queries(case.qrels))
    if not queries:
        raise DataError("no query has a relevant document", hint="check data.test, or evaluate.split")
    if lost := [query for query in queries if query not in case.queries]:
        raise DataError(f"{len(lost):,} judged queries have no text, as {lost[0]!r}")
    sent = {
        arm: {query: _sent(case, case.runs[arm].documents(query)[: section.k]) for query in queries} for arm in arms
    }
    return Material(case, section, arms, queries, sent, seed)


def export_rows(
    case: Case, section: RagSection, arm: str, responses: Mapping[str, str | None] | None = None
) -> Iterator[dict[str, Any]]:
    """One arm's rows for ragas (its SingleTurnSample), a query with a relevant document each, in the order of qrels.

    `responses` maps query ids to answers from this arm's passages (`Rag.responses[arm]`). Every row has the keys
    user_input, retrieved_contexts, retrieved_context_ids, reference_contexts, reference_context_ids, response and
    reference; the last two are None where there is none. A relevant document without text is left out of both
    reference lists.

    Raises:
        ConfigError: no such arm.
        DataError: as `prepare`.
    """
    material = prepare(case, section.model_copy(update={"arms": [arm]}), 0)
    given = responses or {}
    for query in material.queries:
        sent, known = material.sent[arm][query], references(case, query)
        yield {
            "user_input": case.queries[query],
            "retrieved_contexts": list(sent.texts),
            "retrieved_context_ids": list(sent.ids),
            "reference_contexts": list(known.texts),
            "reference_context_ids": list(known.ids),
            "response": given.get(query),
            "reference": material.answer(query),
        }


def references(case: Case, query: str) -> Sent:
    """The relevant documents of a query whose texts are known."""
    known = [document for document in relevant(case.qrels[query]) if document in case.documents]
    return Sent(tuple(known), tuple(case.documents[document] for document in known))


def _arms(case: Case, section: RagSection) -> tuple[str, ...]:
    """The baseline and those that the section names, in the order of the runs."""
    if not case.runs:
        raise ConfigError("nothing to compare: no run", hint="rag needs a retriever's run at least")
    wanted = list(case.runs) if section.arms is None else section.arms
    if unknown := [arm for arm in wanted if arm not in case.runs]:
        raise ConfigError(
            f"rag.arms: there is no {', '.join(unknown)}", hint=f"the columns of the table are {', '.join(case.runs)}"
        )
    baseline = next(iter(case.runs))
    return tuple(arm for arm in case.runs if arm == baseline or arm in wanted)


def _sent(case: Case, ids: list[str]) -> Sent:
    if lost := [document for document in ids if document not in case.documents]:
        raise DataError(f"the document {lost[0]!r} of a run has no text", hint="is the run of this collection?")
    return Sent(tuple(ids), tuple(case.documents[document] for document in ids))
