"""Are the context metrics equal to ragas' own? Each on random cases, against ragas itself.

    python benchmarks/rag.py --cases 200

It needs an environment with ragas 0.4.3 and rapidfuzz; no model, no network, no torch. Ids have repeats, and numbers
among them. Lists are empty where ragas takes that: its precision of texts fails on passages without references, its
recall on references without passages. Passages are copies of references, copies with letters replaced, and strangers,
so that likeness falls on both sides of ragas' threshold and, often, exactly on it; some texts are empty. Context
precision by a model runs as a whole in ragas, with a model that gives the verdicts it is told.

Two NaNs are equal; NaN and a number are infinitely far apart. Exits with 1 if any difference is above 1e-9.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from rankwright.toolbox import ragmetrics

TOLERANCE = 1e-9
ALPHABET = "abcde \néß漢😀"
Case = tuple[list[Any], list[Any]]


class Row(NamedTuple):
    """One metric's outcome. `different` is the number of distinct values that ragas gave, NaN as one."""

    metric: str
    peer: str
    cases: int
    different: int
    difference: float


def compare(cases: int, seed: int) -> list[Row]:
    """Every metric that both compute, on `cases` random cases each."""
    rng = np.random.default_rng(seed)
    return [
        _row("id_precision", _by_ids("IDBasedContextPrecision"), _id_cases(rng, cases)),
        _row("id_recall", _by_ids("IDBasedContextRecall"), _id_cases(rng, cases)),
        _row("average_precision", _by_verdicts(), [(_verdicts(rng), []) for _ in range(cases)]),
        _row("likeness", _by_strings(), [(_text(rng), _text(rng)) for _ in range(cases)]),
        _row("text_precision", _by_texts("NonLLMContextPrecisionWithReference"), _text_cases(rng, cases, ([], ["a"]))),
        _row("text_recall", _by_texts("NonLLMContextRecall"), _text_cases(rng, cases, (["a"], []))),
    ]


def _row(metric: str, peer: tuple[str, Callable[[Any, Any], float]], cases: list[Case]) -> Row:
    ours = getattr(ragmetrics, metric)
    name, theirs = peer
    values = [theirs(*case) for case in cases]
    own = [ours(case[0]) if metric == "average_precision" else ours(*case) for case in cases]
    worst = max(_apart(one, other) for one, other in zip(own, values, strict=True))
    return Row(metric, name, len(cases), len(set(map(str, values))), worst)


def _apart(one: float, other: float) -> float:
    if math.isnan(one) or math.isnan(other):
        return 0.0 if math.isnan(one) and math.isnan(other) else math.inf
    return abs(one - other)


# ---------------------------------------------------------------------------------------------- cases


def _id_cases(rng: np.random.Generator, cases: int) -> list[Case]:
    pool = [*map(str, range(6)), "01", "doc-1", "doc 1", "é"]

    def draw() -> list[str]:
        return [pool[place] for place in rng.integers(len(pool), size=rng.integers(9))]

    return [([], []), ([], ["0"]), (["0"], []), *((draw(), draw()) for _ in range(cases - 3))]


def _verdicts(rng: np.random.Generator) -> list[int]:
    return [int(drawn) for drawn in rng.random(rng.integers(1, 11)) < rng.random()]


def _text(rng: np.random.Generator) -> str:
    """Short over few letters: likeness is exactly a half quite often. Now and then empty."""
    return "".join(ALPHABET[place] for place in rng.integers(len(ALPHABET), size=rng.integers(13)))


def _text_cases(rng: np.random.Generator, cases: int, lacking: Case) -> list[Case]:
    """(passages, references): nothing at all, `lacking` (a side is empty, and ragas takes that), and random ones."""
    found: list[Case] = [([], []), lacking]
    while len(found) < cases:
        references = [_text(rng) * int(rng.choice([1, 20])) for _ in range(rng.integers(1, 4))]
        found.append((list(_passages(rng, references)), references))
    return found


def _passages(rng: np.random.Generator, references: list[str]) -> Iterator[str]:
    """One to six: copies of a reference, copies with a share of the letters replaced (often half), and strangers."""
    for _ in range(rng.integers(1, 7)):
        letters = list(references[rng.integers(len(references))])
        share = rng.choice([0, 0.3, 0.5, 0.5, 0.7, 1])
        for place in rng.permutation(len(letters))[: round(share * len(letters))]:
            letters[place] = "Z"
        yield _text(rng) if rng.random() < 0.3 else "".join(letters)


# ---------------------------------------------------------------------------------------------- ragas


def _by_ids(name: str) -> tuple[str, Callable[[Any, Any], float]]:
    return _scored(name, ("retrieved_context_ids", "reference_context_ids"))


def _by_texts(name: str) -> tuple[str, Callable[[Any, Any], float]]:
    return _scored(name, ("retrieved_contexts", "reference_contexts"))


def _by_strings() -> tuple[str, Callable[[Any, Any], float]]:
    return _scored("NonLLMStringSimilarity", ("reference", "response"))


def _scored(name: str, columns: tuple[str, str]) -> tuple[str, Callable[[Any, Any], float]]:
    """A metric of ragas that needs no model, and what it makes of a sample of these two columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ragas.metrics
        from ragas.dataset_schema import SingleTurnSample

        metric = getattr(ragas.metrics, name)()

    def score(one: Any, other: Any) -> float:
        sample = SingleTurnSample(**dict(zip(columns, (one, other), strict=True)))
        return float(asyncio.run(metric.single_turn_ascore(sample)))

    return name, score


def _by_verdicts() -> tuple[str, Callable[[Any, Any], float]]:
    """The context precision of ragas, whose model gives the verdicts of the case one by one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ragas.llms.base import InstructorBaseRagasLLM
        from ragas.metrics.collections import ContextPrecisionWithReference

    class Told(InstructorBaseRagasLLM):
        def __init__(self, verdicts: list[int]) -> None:
            self.left = iter(verdicts)

        def generate(self, prompt: str, response_model: Any) -> Any:
            return response_model(reason="told", verdict=next(self.left))

        async def agenerate(self, prompt: str, response_model: Any) -> Any:
            return self.generate(prompt, response_model)

    def score(verdicts: list[int], _: Any) -> float:
        metric = ContextPrecisionWithReference(llm=Told(verdicts))
        passages = [f"passage {place}" for place in range(len(verdicts))]
        found = asyncio.run(metric.ascore(user_input="query", reference="answer", retrieved_contexts=passages))
        return float(found.value)

    return "ContextPrecisionWithReference", score


def main() -> None:
    options = argparse.ArgumentParser(description="compare the context metrics with ragas' own")
    options.add_argument("--cases", type=int, default=200, help="of each metric (at least 10)")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    os.environ["RAGAS_DO_NOT_TRACK"] = "true"
    logging.getLogger("ragas").setLevel(logging.ERROR)  # it warns of each empty list
    rows = compare(max(given.cases, 10), given.seed)
    print("| metric | ragas | cases | distinct values | largest difference |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.metric} | {row.peer} | {row.cases} | {row.different} | {row.difference:.1e} |")
    sys.exit(any(row.difference > TOLERANCE for row in rows))


if __name__ == "__main__":
    main()
