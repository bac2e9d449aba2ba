"""A language model as a judge: answers from passages, and ragas' metrics of them, through one `Endpoint`.

In come items of plain texts; out come, in order, values, or None where the model gave none. The one file that
imports ragas: when a judge is made, and with its telemetry off. It does not know arms, queries' ids, or tables.

Made for ragas 0.4.3, and its metrics of `ragas.metrics.collections`, whose prompts are used as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rankwright.errors import MissingExtraError
from rankwright.sections import EndpointSection
from rankwright.toolbox.endpoint import Endpoint, Item, Message, Session, Spent

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to rows, (n, d)."""
Method = Literal["answers", "relevant", "recall", "faithfulness", "relevancy"]

_REPAIRS = 1
"""Times that a reply which is not the JSON asked for is sent back to be put right; instructor's default is 3."""
_UNKNOWN = 600
"""Characters of an answer that is not there yet."""
_ASKS: dict[Method, tuple[tuple[int, int], ...]] = {
    "answers": ((260, 600),),
    "relevant": ((4750, 300),),
    "recall": ((7250, 900),),
    "faithfulness": ((2320, 600), (4550, 1200)),
    "relevancy": ((2520, 120),),
}
"""Each call of a method: characters of the prompt itself, as ragas 0.4.3 and instructor send it; of a usual reply."""


class Judge(Protocol):
    """Who answers and judges. One answer per item, in order.

    None is an item that failed: after all tries, for a reply that is not what was asked for, or since the budget is
    spent. No method raises for a single item; it may for an endpoint of which nothing can be had (see `Endpoint`).
    """

    def answers(self, items: Sequence[tuple[str, tuple[str, ...]]]) -> list[str | None]:
        """(query, contexts) -> an answer from these contexts only."""

    def relevant(self, items: Sequence[tuple[str, str, str]]) -> list[bool | None]:
        """(query, passage, reference answer or a response): was this passage useful in arriving at that answer?"""

    def recall(self, items: Sequence[tuple[str, tuple[str, ...], str]]) -> list[float | None]:
        """(query, contexts, reference): the share of the reference's statements that the contexts bear out."""

    def faithfulness(self, items: Sequence[tuple[str, tuple[str, ...], str]]) -> list[float | None]:
        """(query, contexts, response): the share of the response's statements that the contexts bear out."""

    def relevancy(self, items: Sequence[tuple[str, str]]) -> list[float | None]:
        """(query, response): how near the response's own question is to the query, as a cosine."""

    @property
    def spent(self) -> Spent:
        """What was asked so far."""

    @property
    def reasons(self) -> Mapping[str, int]:
        """Why items failed: a few words -> how many."""


class RagasJudge:
    """The `Judge` of a real endpoint. One `Endpoint` for all: its cache, budget, retries and counts.

    A reply that is not the JSON asked for goes back once to be put right: one further call, charged as any other.
    Such replies are kept too: at temperature 0, asking the same again would cost a call and change nothing.
    """

    def __init__(
        self, section: EndpointSection, cache: Path, embed: Embed, *, pause: float = 1.0, seed: int = 0
    ) -> None:
        """`embed` makes the vectors of `relevancy`; `pause` and `seed` are `Endpoint`'s.

        Raises:
            MissingExtraError: ragas or httpx is missing, or does not import.
            ConfigError: `base_url` is no http address.
        """
        self.endpoint = Endpoint(section, cache, pause=pause, seed=seed)
        self._ragas = _load_ragas()
        self._embeddings = _adapter(self._ragas.BaseRagasEmbedding, embed)

    @property
    def spent(self) -> Spent:
        """What was asked so far, by this judge."""
        return self.endpoint.spent

    @property
    def reasons(self) -> Mapping[str, int]:
        """Why items failed, as `HTTP 500` or `budget spent` -> how many."""
        return self.endpoint.reasons

    def answers(self, items: Sequence[tuple[str, tuple[str, ...]]]) -> list[str | None]:
        """An answer to each (query, contexts), from these contexts only, by `answer_prompt`. None if it is empty."""
        return self.endpoint.chats([answer_prompt(query, contexts) for query, contexts in items], "answers")

    def relevant(self, items: Sequence[tuple[str, str, str]]) -> list[bool | None]:
        """ContextPrecision of each (query, passage, answer): of one passage alone, it is that passage's verdict."""

        def arguments(item: tuple[str, str, str]) -> dict[str, Any]:
            return {"user_input": item[0], "retrieved_contexts": [item[1]], "reference": item[2]}

        values = self._score("ContextPrecision", arguments, items, "passages judged")
        return [None if value is None else value > 0.5 for value in values]

    def recall(self, items: Sequence[tuple[str, tuple[str, ...], str]]) -> list[float | None]:
        """ContextRecall of each (query, contexts, reference), 0 to 1."""

        def arguments(item: tuple[str, tuple[str, ...], str]) -> dict[str, Any]:
            return {"user_input": item[0], "retrieved_contexts": list(item[1]), "reference": item[2]}

        return self._score("ContextRecall", arguments, items, "context recall")

    def faithfulness(self, items: Sequence[tuple[str, tuple[str, ...], str]]) -> list[float | None]:
        """Faithfulness of each (query, contexts, response), 0 to 1; None too if no statement was found in it."""

        def arguments(item: tuple[str, tuple[str, ...], str]) -> dict[str, Any]:
            return {"user_input": item[0], "retrieved_contexts": list(item[1]), "response": item[2]}

        return self._score("Faithfulness", arguments, items, "faithfulness")

    def relevancy(self, items: Sequence[tuple[str, str]]) -> list[float | None]:
        """AnswerRelevancy of each (query, response), -1 to 1 as cosines are.

        With strictness 1: ragas' 3 are the same prompt thrice, which at temperature 0 gives the same question.
        """

        def arguments(item: tuple[str, str]) -> dict[str, Any]:
            return {"user_input": item[0], "response": item[1]}

        return self._score("AnswerRelevancy", arguments, items, "answer relevancy")

    def _score(
        self, name: str, arguments: Callable[[Item], dict[str, Any]], items: Sequence[Item], what: str
    ) -> list[float | None]:
        """The values of ragas' metric `name`; `arguments` are those of its `ascore`."""
        relevancy = name == "AnswerRelevancy"
        more = {"embeddings": self._embeddings, "strictness": 1} if relevancy else {}

        def start(session: Session) -> Callable[[Item], Awaitable[float | None]]:
            metric = getattr(self._ragas, name)(llm=self._llm(session), **more)

            async def ask(item: Item) -> float | None:
                return _value(await metric.ascore(**arguments(item)), lowest=-1.0 if relevancy else 0.0)

            return ask

        with _quiet():
            return self.endpoint.gather(start, items, what)

    def _llm(self, session: Session) -> Any:
        """The model as ragas has it. Its requests go by `session`, which adds the key: openai is given none."""
        section = self.endpoint.section
        client = self._ragas.AsyncOpenAI(
            base_url=section.base_url, api_key="unused", http_client=session.client, max_retries=0
        )
        return self._ragas.llm_factory(
            section.model, client=client, temperature=0.0, max_tokens=section.max_tokens, max_retries=_REPAIRS
        )


@dataclass(frozen=True)
class Estimate:
    """Roughly what work takes, if nothing is cached and nothing is retried. They add up."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


def estimate(method: Method, items: Iterable[object]) -> Estimate:
    """What `Judge.method(items)` would take; items as that method takes them, equal ones counted once.

    None stands for a text that is not there yet, an answer to come (600 characters). Tokens are characters / 4, of
    the texts and of the prompt's own words: right for English, too few for most other languages and for code.
    """
    distinct = list(dict.fromkeys(items))
    calls = _ASKS[method]
    prompts = sum(_sent(method, item) for item in distinct) + len(distinct) * sum(prompt for prompt, _ in calls)
    replies = len(distinct) * sum(reply for _, reply in calls)
    return Estimate(len(distinct) * len(calls), math.ceil(prompts / 4), math.ceil(replies / 4))


def answer_prompt(query: str, contexts: Sequence[str]) -> list[Message]:
    """The conversation that asks for an answer from `contexts` only."""
    told = (
        "You answer questions from passages. Use nothing but the passages below. Answer in at most five sentences, "
        "in plain text, in the language of the question. If the passages do not hold the answer, "
        "say that you do not know."
    )
    passages = "\n\n".join(f"[{number}] {context}" for number, context in enumerate(contexts, 1))
    asked = f"Passages:\n\n{passages}\n\nQuestion: {query}\n\nAnswer:"
    return [{"role": "system", "content": told}, {"role": "user", "content": asked}]


def _sent(method: Method, item: object) -> int:
    """Characters of an item's texts in all its calls: faithfulness sends the response twice, all else goes once."""
    twice = _characters(item[-1]) if method == "faithfulness" and isinstance(item, tuple) and item else 0
    return _characters(item) + twice


def _characters(item: object) -> int:
    if item is None:
        return _UNKNOWN
    if isinstance(item, str):
        return len(item)
    return sum(map(_characters, item)) if isinstance(item, Iterable) else 0


def _value(result: Any, lowest: float = 0.0) -> float:
    """A metric's number.

    Raises:
        ValueError: it is none, or beyond what the metric can be, as when a model's verdict is 7.
    """
    value = float(result.value)
    if not lowest - 1e-6 <= value <= 1.0 + 1e-6:
        raise ValueError(f"{value} is no value between {lowest:g} and 1")
    return min(1.0, max(lowest, value))


def _load_ragas() -> SimpleNamespace:
    """What is used of ragas and openai.

    Raises:
        MissingExtraError: they are missing, or do not import.
    """
    os.environ["RAGAS_DO_NOT_TRACK"] = "true"
    places = {
        "ragas.metrics.collections": ("AnswerRelevancy", "ContextPrecision", "ContextRecall", "Faithfulness"),
        "ragas.llms": ("llm_factory",),
        "ragas.embeddings.base": ("BaseRagasEmbedding",),
        "openai": ("AsyncOpenAI",),
    }
    found = SimpleNamespace()
    try:
        for place, names in places.items():
            module = importlib.import_module(place)
            for name in names:
                setattr(found, name, getattr(module, name))
    except (ImportError, AttributeError) as error:
        raise MissingExtraError(
            f"the judge's metrics need ragas, which does not import: {error}\n  ragas 0.4.3 works, "
            "with langchain-community 0.4 or 0.4.1 (0.4.2 lacks a module that ragas imports) and openai 1 to 3",
            hint="pip install 'rankwright[rag]'",
        ) from error
    return found


def _adapter(base: Any, embed: Embed) -> Any:
    """`embed` as ragas wants embeddings."""

    class Adapter(base):  # type: ignore[misc]
        def embed_text(self, text: str, **_: object) -> list[float]:
            return self._rows([text])[0]

        async def aembed_text(self, text: str, **_: object) -> list[float]:
            return self._rows([text])[0]

        def embed_texts(self, texts: list[str], **_: object) -> list[list[float]]:
            return self._rows(texts)

        async def aembed_texts(self, texts: list[str], **_: object) -> list[list[float]]:
            return self._rows(texts)

        def _rows(self, texts: list[str]) -> list[list[float]]:
            rows: list[list[float]] = embed(texts).tolist()
            return rows

    return Adapter()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Failures are counted and told by us: instructor would print each, with the texts that it was about."""
    logger = logging.getLogger("instructor")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
