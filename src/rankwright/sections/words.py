"""What all sections share: words that they know, and their common ground."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
)

Split = Literal["train", "dev", "test"]
LossName = Literal["listwise", "bce", "ranknet", "lambda", "margin-mse", "kl"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Scoring = Literal["exact", "balanced", "fast"]
RagMetric = Literal["context_precision", "context_recall", "faithfulness", "answer_relevancy"]
RAG_METRICS: tuple[RagMetric, ...] = ("context_precision", "context_recall", "faithfulness", "answer_relevancy")
MergeMethod = Literal["linear", "slerp", "task-arithmetic", "ties", "dare", "cocktail"]

OF_DIFFERENCES = ("task-arithmetic", "ties", "dare")
"""Merge methods that add what the others differ in to the first model, which has no weight of its own."""

METRICS = ("mrr@1", "mrr@10", "mrr@100", "recall@1", "recall@10", "recall@100", "ndcg@10", "map")


class Section(BaseModel):
    """The common ground of all sections: unknown keys are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def refuse_odd_names(names: Iterable[str]) -> None:
    """Names of retrievers, trainings and arms become names of files."""
    for name in names:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{name!r} must be letters, digits, - and _, since it names files")
