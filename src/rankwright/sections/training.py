"""The sections of train."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from rankwright.recipes import RecipeName, filled
from rankwright.sections.candidates import MineSection
from rankwright.sections.words import (
    LossName,
    Precision,
    Section,
)


class DevSection(Section):
    """The ranking metric that training watches, on the retriever's own candidates for dev queries."""

    metric: str = Field("ndcg@10", description="the metric that chooses the checkpoint")
    queries: int = Field(200, ge=1, description="a seeded sample of at most so many dev queries")
    depth: int = Field(30, ge=2, description="candidates a query")
    evaluations: int = Field(4, ge=1, description="how often an epoch")
    patience: int | None = Field(4, ge=1, description="stop after so many evaluations without a new best; null: never")
    watch: Literal["reranked", "served"] = Field(
        "reranked",
        description="served: the order blended with the retriever's scores, at the best weight of 0, 0.1 … 1",
    )


class LoraSection(Section):
    """Low-rank adapters (peft), merged into the weights when the model is saved."""

    rank: int = Field(16, ge=1, description="of the adapters")
    alpha: int = Field(32, ge=1, description="the adapters' scale, times rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="before the adapters")
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="layers that get one, by name")


class SampleSection(Section):
    """A fresh seeded draw from each group in every epoch, as FlagEmbedding's trainer makes it."""

    positives: int = Field(1, ge=1, description="a group and epoch")
    negatives: int = Field(7, ge=1, description="a group and epoch")


_SETTLED = {
    "mine": "finds its own groups",
    **dict.fromkeys(("epochs", "max_pairs", "max_steps"), "trains as long as its budget pays for"),
    "dev": "watches the served order's nDCG@10, on as many dev queries as its budget pays for",
    **dict.fromkeys(("keep", "average"), "keeps what dev prefers, the best checkpoint or a mean"),
}
"""What a search settles by itself, by key, and how."""


class Training(Section):
    """One named training. A recipe gives its keys by one word; keys that are written beside it win."""

    recipe: RecipeName | None = Field(
        None, description="auto, or notebook, flagembedding, sentence-transformers, distill, hard, random"
    )
    budget: str | None = Field(
        None, description="of recipe: auto (default: 10m): time as in 90s, 10m, 1h, or work as in 20000 pairs"
    )
    bases: list[str] | None = Field(None, min_length=1, description="of recipe: auto: rerankers or encoders to try")
    mine: MineSection | None = Field(None, description="this training's own groups (default: the experiment's mine)")
    base: str = Field("offline", description="hub id, folder, other training's name, or offline")
    groups: Literal["labelled", "unlabelled"] = Field("labelled", description="which of mine's groups to train on")
    sample: SampleSection | None = Field(
        None, description="draw from each group anew in every epoch (default: use all)"
    )
    loss: dict[LossName, float] = Field(
        default={"listwise": 1.0, "kl": 1.0},
        description="a word, or weights of listwise, bce, ranknet, lambda, margin-mse, kl",
    )
    kl_temperature: float = Field(0.05, gt=0, description="divides the teacher's scores before their softmax")
    both_orders: bool = Field(
        False,
        description="each epoch a seeded half of the groups is read as (document, query): for symmetric tasks",
    )
    epochs: float = Field(1, gt=0, description="passes over the groups; may be a fraction")
    max_steps: int | None = Field(None, ge=1, description="optimiser steps at most")
    max_pairs: int | None = Field(
        None,
        ge=1,
        description="stop after about so many pairs, in whole steps: it decides how long alone, and epochs is ignored",
    )
    batch: int = Field(8, ge=1, description="queries a micro-batch")
    accumulate: int = Field(1, ge=1, description="micro-batches an optimiser step")
    learning_rate: float = Field(2e-5, gt=0, description="its peak; 2e-5 for base-sized models, 1e-4 for MiniLM's")
    head_learning_rate: float | None = Field(None, gt=0, description="for the classification head (default: the same)")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="after the warm-up, down to 0")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's; not on biases and norms")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    max_length: int = Field(512, ge=8, description="tokens of a pair")
    precision: Precision = Field("auto", description="auto: bf16 where it is faster, else fp32")
    memory: str = Field(
        "auto",
        description="for weights, optimiser and activations, as in 4GB; auto: most of what is free. Where a batch has "
        "no room in it, its gradients are added up in smaller parts, then with gradient_checkpointing",
    )
    gradient_checkpointing: bool = Field(False, description="less memory for more time")
    lora: LoraSection | None = Field(None, description="train adapters instead of all weights")
    exit: int | None = Field(
        None,
        ge=1,
        description="also train a head after so many layers, for rerank's cascade; the model itself stays the same",
    )
    quantization_aware: bool | Annotated[float, Field(gt=0, le=1)] = Field(
        False,
        description="the last quarter of the steps (or another share; 1.0: all) sees the rounding of int8 scoring, as "
        "does dev from there on, where the best checkpoint so far is measured anew; patience waits until then",
    )
    dev: DevSection | None = Field(default_factory=DevSection, description="what training watches; null: nothing")
    keep: Literal["best", "last"] = Field(
        "best",
        description="the best checkpoint on dev (of a served order: the last that dev is not sure is worse than one "
        "before), or the last step",
    )
    average: int = Field(
        0,
        ge=0,
        description="also try the mean of the weights of the last so many dev evaluations; kept only where dev ranks "
        "better, and of a served order is sure of it; 0: no",
    )
    checkpoints: int = Field(4, ge=1, description="resumable checkpoints an epoch")
    seed: int | None = Field(None, ge=0, description="default: the experiment's")

    @model_validator(mode="before")
    @classmethod
    def _by_recipe(cls, values: object) -> object:
        return filled(values) if isinstance(values, dict) else values

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of a search the written keys alone: those win, and the others are the search's to choose, not defaults."""
        values: dict[str, Any] = plain(self)
        written = self.model_fields_set if self.recipe == "auto" else values.keys()
        return {key: value for key, value in values.items() if key in written}

    @property
    def rounded_share(self) -> float:
        """The share of the steps, the last ones, that sees the rounding of int8 scoring."""
        return 0.25 if self.quantization_aware is True else float(self.quantization_aware)

    @field_validator("memory")
    @classmethod
    def _an_amount(cls, memory: str) -> str:
        read_memory(memory)
        return memory

    @field_validator("budget")
    @classmethod
    def _readable(cls, budget: str | None) -> str | None:
        if budget is not None:
            read_budget(budget)
        return budget

    @field_validator("loss", mode="before")
    @classmethod
    def _one_word(cls, loss: object) -> object:
        return {loss: 1.0} if isinstance(loss, str) else loss

    @model_validator(mode="after")
    def _of_a_search(self) -> Training:
        """Keys of a search without one, and keys that a search settles by itself."""
        if self.recipe != "auto":
            if stray := [key for key in ("budget", "bases") if getattr(self, key) is not None]:
                raise ValueError(f"{stray[0]} goes with recipe: auto, which is not asked for")
            return self
        if self.bases is not None and "base" in self.model_fields_set:
            raise ValueError("base and bases are both given; name all that are to be tried in bases")
        if self.groups == "unlabelled":
            raise ValueError("recipe: auto learns from labels; groups: unlabelled goes with recipe: distill")
        for key, why in _SETTLED.items():
            if key in self.model_fields_set:
                raise ValueError(f"recipe: auto {why}; leave {key} out, or name a recipe that is fixed")
        return self

    @model_validator(mode="after")
    def _sensible(self) -> Training:
        if not any(weight > 0 for weight in self.loss.values()):
            raise ValueError("loss needs at least one term with a weight above 0")
        if self.groups == "unlabelled" and (bad := set(self.loss) - {"kl", "margin-mse"}):
            raise ValueError(f"unlabelled groups have no labels for {', '.join(sorted(bad))}; use kl or margin-mse")
        if self.keep == "best" and self.dev is None:
            raise ValueError("keep: best needs a dev section; say keep: last or give one")
        if self.average and (self.dev is None or self.keep != "best"):
            raise ValueError("average needs a dev section and keep: best, which decide whether it is kept")
        return self


def read_budget(text: str) -> tuple[float, Literal["seconds", "pairs"]]:
    """`90s`, `10m`, `1.5h` as seconds, `20000 pairs` as pairs.

    Raises:
        ValueError: anything else, or nothing to spend.
    """
    match = re.fullmatch(r"\s*(\d[\d_,]*(?:\.\d+)?)\s*(s|m|h|pairs)\s*", text)
    amount = float(match[1].replace("_", "").replace(",", "")) if match else 0.0
    if not match or amount <= 0:
        raise ValueError("a budget is a time as in 90s, 10m or 1h, or an amount of work as in 20000 pairs")
    factor = {"s": 1, "m": 60, "h": 3600, "pairs": 1}[match[2]]
    return amount * factor, "pairs" if match[2] == "pairs" else "seconds"


def read_memory(text: str) -> float | None:
    """`4GB`, `500 MB` as bytes; `auto` as None.

    Raises:
        ValueError: anything else, or none at all.
    """
    if text == "auto":
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB)\s*", text)
    if not match or float(match[1]) <= 0:
        raise ValueError("memory is auto, or an amount as in 500MB or 4GB")
    return float(match[1]) * {"MB": 1e6, "GB": 1e9}[match[2]]
