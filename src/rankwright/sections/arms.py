"""The sections of merge, rerank, blend and general: from models to orders."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from rankwright.sections.words import (
    OF_DIFFERENCES,
    MergeMethod,
    Scoring,
    Section,
    refuse_odd_names,
)


class MergeSection(Section):
    """Which models to merge into one, and how; or find the weight on dev."""

    models: list[str] = Field(
        default_factory=lambda: ["base", "finetuned"],
        min_length=1,
        description="base, trainings, or models from outside; the first is what the others started from",
    )
    method: MergeMethod = Field("linear", description="linear, slerp, task-arithmetic, ties, dare, or cocktail")
    weight: float | Literal["sweep"] | None = Field(
        None, description="how far from the first model towards the others: 0 to 1, or sweep: found on dev"
    )
    weights: list[float] | None = Field(
        None, description="one a model, summing to 1 (default: equal); task-arithmetic, ties, dare: all but the first"
    )
    layers: dict[str, list[float]] = Field(
        default_factory=dict, description="weights of some tensors, by a pattern of their names: '*.layer.0.*'"
    )
    head: Literal["keep", "rescale"] = Field(
        "keep", description="rescale: bring the models' logits to the first one's mean and spread before mixing"
    )
    density: float = Field(0.5, gt=0, le=1, description="ties, dare: the share of each difference that is kept")
    temperature: float = Field(5.0, gt=0, description="cocktail: weights are softmax(-loss / temperature)")
    examples: int = Field(50, ge=1, description="cocktail: dev queries whose loss gives the weights")
    steps: int = Field(4, ge=2, description="sweep: weights 0, 1/steps, …, 1; then half-way on both sides of the best")
    choose_by: str = Field("ndcg@10", description="sweep: the metric, on dev and on the general collection")
    watch: Literal["reranked", "served"] = Field("reranked", description="sweep: the order on dev that is measured")
    tolerance: float = Field(0.005, ge=0, description="sweep: what may be lost on the general collection")
    queries: int = Field(150, ge=1, description="sweep: dev queries, and general ones, at most")
    depth: int = Field(20, ge=2, description="sweep: candidates a query")
    workers: int = Field(1, ge=1, description="sweep: weights tried at a time, each in a process of its own")
    seed: int | None = Field(None, ge=0, description="dare: of what is dropped (default: the experiment's)")

    @model_validator(mode="after")
    def _weights_fit(self) -> MergeSection:
        if self.weight is not None and self.weights is not None:
            raise ValueError("give `weight` or `weights`, not both")
        if self.method == "cocktail" and (self.weight, self.weights) != (None, None):
            raise ValueError("cocktail finds its weights by itself; leave out `weight` and `weights`")
        if self.method == "slerp" and len(self.models) != 2:
            raise ValueError(f"slerp is between two models, not {len(self.models)}")
        if isinstance(self.weight, float) and not 0 <= self.weight <= 1:
            raise ValueError(f"weight {self.weight:g} is not between 0 and 1")
        if self.weight == "sweep" and self.layers:
            raise ValueError("a sweep has one weight for all layers; leave out `layers`")
        for weights in [*([] if self.weights is None else [self.weights]), *self.layers.values()]:
            self._fit(weights)
        return self

    def _fit(self, weights: list[float]) -> None:
        wanted = len(self.models) - 1 if self.method in OF_DIFFERENCES else len(self.models)
        if len(weights) != wanted:
            what = "models after the first" if self.method in OF_DIFFERENCES else "models"
            raise ValueError(f"{wanted} {what} need {wanted} weights, not {len(weights)}")
        if self.method not in OF_DIFFERENCES and abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"the weights sum to {sum(weights):g}, not to 1")

    @property
    def asks_dev(self) -> bool:
        """Whether something of it is found on dev."""
        return self.weight == "sweep" or self.method == "cocktail" or self.head == "rescale"

    def at(self, weight: float) -> list[float]:
        """The weights so far from the first model towards the others, which share alike."""
        others = len(self.models) - 1
        shares = [weight / others] * others if others else []
        return shares if self.method in OF_DIFFERENCES else [1 - weight if others else 1.0, *shares]


class CascadeSection(Section):
    """All candidates through a model's first layers (train's `exit`), and only those that matter through the rest."""

    tolerance: float = Field(0.002, ge=0, description="the loss of nDCG on dev, against all layers for all, at most")
    keep: int = Field(
        10, ge=1, description="the places at the top that are to come out as with all layers; nDCG is cut there"
    )


class RerankSection(Section):
    """Which candidates each arm's model reorders."""

    candidates: str | None = Field(None, description="the retriever to rerank (default: the last one)")
    depth: int = Field(100, ge=1, description="candidates a query; those below keep the retriever's order")
    arms: dict[str, str] | None = Field(
        None,
        description="arm -> base, a training, merged, or a model (default: base, finetuned, merged; a "
        "base without a head cannot score and is left out)",
    )
    max_length: int = Field(512, ge=8, description="tokens of a pair")
    precision: Scoring = Field(
        "balanced",
        description="exact: fp32; balanced: the fastest way that keeps fp32's order for practical purposes; "
        "fast: int8, or bf16 where that is faster",
    )
    both_orders: bool = Field(
        False, description="score (query, document) and (document, query), and average: for symmetric tasks"
    )
    dev_queries: int = Field(300, ge=0, description="dev queries reranked too, for `blend` to choose on; 0: none")
    cascade: CascadeSection | None = Field(
        None,
        description="score with all layers, in fp32, only those candidates that can still reach the top, as a head "
        "after the first layers (train's exit) and dev say; arms without such a head are scored in full",
    )

    @model_validator(mode="after")
    def _cascade_has_lists(self) -> RerankSection:
        if self.cascade and self.both_orders:
            raise ValueError("a cascade compares a query's candidates in one order: leave cascade or both_orders out")
        if self.cascade and not self.dev_queries:
            raise ValueError("a cascade measures on dev what it loses: dev_queries must be above 0")
        return self

    @field_validator("arms")
    @classmethod
    def _plain_names(cls, arms: dict[str, str] | None) -> dict[str, str] | None:
        refuse_odd_names(arms or ())
        return arms


class BlendSection(Section):
    """The convex combination of the reranker's score with the retriever's: weight and depth are chosen on dev."""

    metric: str = Field("ndcg@10", description="the metric that chooses, on dev")
    steps: int = Field(20, ge=1, description="weights tried: 0, 1/steps, …, 1")
    guard: float = Field(
        0.5, ge=0, description="standard errors that a gain on dev counts less by; of a depth, four times that"
    )
    depths: list[int] = Field(
        default_factory=lambda: [5, 10, 20, 50, 100], min_length=1, description="depths tried, beside rerank.depth"
    )

    @field_validator("depths")
    @classmethod
    def _from_one(cls, depths: list[int]) -> list[int]:
        if min(depths) < 1:
            raise ValueError("a depth is 1 or more")
        return sorted(set(depths))


class GeneralSection(Section):
    """A collection of another kind, reranked by every arm: what did fine-tuning forget?"""

    source: str = Field("docstrings:", description="KIND:LOCATION, as in data.source")
    queries: int = Field(100, ge=1, description="a seeded sample of its test queries")
    depth: int = Field(20, ge=2, description="BM25 candidates a query")
    metric: str = Field("ndcg@10", description="what is compared")
    max_length: int = Field(128, ge=8, description="tokens of a pair")
