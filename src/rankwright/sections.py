"""What an experiment may say: one pydantic model for each room's section of the YAML.

A room receives its own section and nothing else, so YAML and Python share these defaults.
How a file becomes these models, and how its errors are told, is `config`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from rankwright.recipes import BUDGET as BUDGET
from rankwright.recipes import RecipeName, filled

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


class DataSection(Section):
    """Where the collection comes from, and how it is cleaned and split."""

    source: str = Field("seealso:", description="KIND:LOCATION, as in beir:data/scifact")
    train: str | None = Field(None, description="the source's own name of the training split (default: train)")
    dev: str | None = Field(None, description="the source's name of the dev split; cut from train when there is none")
    test: str | None = Field(None, description="the source's name of the test split (default: test)")
    dev_share: float = Field(0.1, ge=0, lt=0.5, description="share of the training queries that becomes dev; 0: no dev")
    test_share: float = Field(0.2, gt=0, lt=0.5, description="share that becomes test if there is one split only")
    dedupe: bool = Field(True, description="merge copies of a text and unite their labels")
    self_matches: Literal["drop", "keep"] = Field("drop", description="documents whose text is the query's own")
    leaks: Literal["refuse", "report", "drop"] = Field("refuse", description="queries or pairs shared by two splits")
    corpus: Literal["shared", "per_split"] = Field("shared", description="per_split: test searches its own rows only")
    max_queries: dict[Split, int] = Field(default_factory=dict, description="a seeded sample of each split's queries")


class DenseRetriever(Section):
    """A sentence-transformers encoder and an exact FAISS inner-product index."""

    kind: Literal["dense"]
    model: str = Field("offline", description="a sentence-transformers model: hub id, folder, or offline")
    depth: int = Field(100, ge=1, description="candidates a query")
    query_prompt: str = Field("", description="put before each query")
    document_prompt: str = Field("", description="put before each document")
    query_length: int | None = Field(None, ge=4, description="tokens; default: the model's own limit")
    document_length: int | None = Field(None, ge=4, description="tokens; default: the model's own limit")
    batch_size: int = Field(64, ge=1, description="texts encoded together")


class Bm25Retriever(Section):
    """BM25 (Lucene's variant) over words, and over single characters where a script has no spaces."""

    kind: Literal["bm25"]
    depth: int = Field(100, ge=1, description="candidates a query")
    k1: float = Field(0.9, ge=0, description="how soon repeated terms stop counting")
    b: float = Field(0.4, ge=0, le=1, description="how much long documents are held back")


class FuseRetriever(Section):
    """Several runs made one: by reciprocal ranks, a weighted sum of min-max scores, or weights that dev chooses."""

    kind: Literal["fuse"]
    of: list[str] = Field(min_length=2, description="names of other retrievers")
    method: Literal["rrf", "weighted", "tuned"] = Field(
        "rrf", description="reciprocal ranks, a weighted sum of scores, or one whose weights are chosen on dev"
    )
    rrf_k: int = Field(60, ge=1, description="the constant of reciprocal rank fusion")
    weights: list[float] | None = Field(None, description="one a retriever, for weighted")
    prior: bool = Field(
        False, description="tuned only: also weigh how often a document is relevant to (other) training queries"
    )
    depth: int = Field(100, ge=1, description="candidates a query")

    @model_validator(mode="after")
    def _prior_is_tuned(self) -> FuseRetriever:
        if self.prior and (self.method != "tuned" or "prior" in self.of):
            raise ValueError("prior needs method: tuned, and no retriever of that name: dev must say what it is worth")
        return self

    @model_validator(mode="after")
    def _one_weight_each(self) -> FuseRetriever:
        if self.method == "weighted" and len(self.weights or []) != len(self.of):
            raise ValueError(f"weighted fusion of {len(self.of)} runs needs {len(self.of)} weights")
        if self.method == "tuned" and self.weights is not None:
            raise ValueError("a tuned fusion chooses its weights on dev: leave weights out, or say method: weighted")
        return self


class ImportRetriever(Section):
    """TREC run files of any engine, one for each split."""

    kind: Literal["import"]
    runs: dict[Split, str] = Field(description="split -> TREC run file")
    depth: int = Field(100, ge=1, description="candidates a query")


Retriever = Annotated[DenseRetriever | Bm25Retriever | FuseRetriever | ImportRetriever, Field(discriminator="kind")]


class MineSection(Section):
    """How many candidates of which origin make a training group, and which are too doubtful to be negatives."""

    candidates: str | None = Field(None, description="the retriever to mine from (default: the last one)")
    negatives: int = Field(6, ge=0, description="mined from the retriever's candidates")
    random: int = Field(2, ge=0, description="drawn from the whole corpus")
    given: int = Field(0, ge=0, description="drawn from the negatives that the source gives")
    positives: int | None = Field(None, ge=1, description="at most so many positives a group (default: all)")
    window: tuple[int, int] = Field((1, 50), description="ranks to mine from, both ends included, from 1")
    draw: Literal["random", "top"] = Field("random", description="which of the window's: any, or the first")
    drop_above: float | None = Field(
        0.95, gt=0, description="drop candidates scoring at least this share of the positive's score; null: none"
    )
    filter_by: str = Field("retriever", description="whose scores the filter reads: retriever, or a reranker")
    filter_against: Literal["mean", "min", "max"] = Field(
        "mean", description="which score of the query's positives drop_above compares with"
    )
    holes: Literal["ignore", "weigh"] = Field(
        "ignore", description="weigh: a mined negative counts 1 - p(it is relevant and was never judged)"
    )
    unlabelled: int = Field(0, ge=0, description="groups without labels for a `groups: unlabelled` training")

    @field_validator("window")
    @classmethod
    def _in_order(cls, window: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= window[0] <= window[1]:
            raise ValueError("window must be [first, last] with 1 <= first <= last")
        return window


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
    keep: Literal["best", "last"] = Field("best", description="the best checkpoint on dev, or the last step")
    average: int = Field(
        0,
        ge=0,
        description="also try the mean of the weights of the last so many dev evaluations; kept only where dev ranks "
        "better than the best checkpoint; 0: no",
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
        None, description="arm -> base, a training, merged, or a model (default: base, finetuned, merged)"
    )
    max_length: int = Field(512, ge=8, description="tokens of a pair")
    precision: Scoring = Field(
        "balanced",
        description="exact: fp32; balanced: the fastest way that keeps fp32's order for practical purposes; fast: int8",
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
        _refuse_odd_names(arms or ())
        return arms


class BlendSection(Section):
    """The convex combination of the reranker's score with the retriever's: weight and depth are chosen on dev."""

    metric: str = Field("ndcg@10", description="the metric that chooses, on dev")
    steps: int = Field(20, ge=1, description="weights tried: 0, 1/steps, …, 1")
    guard: float = Field(0.5, ge=0, description="standard errors within which a simpler order is as good as the best")
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


class DiagnoseSection(Section):
    """Why does reranking hurt? The checks H1 to H15 and the ladder."""

    arm: str | None = Field(None, description="the arm examined (default: finetuned, else the last trained one)")
    metric: str = Field("ndcg@10", description="whose gap the ladder explains")
    sample: int = Field(100, ge=1, description="queries at most, for checks that score pairs")
    resamples: int = Field(1000, ge=100, description="of the intervals")


class VerdictSection(Section):
    """Should it ship? Decided on the measured split by a paired test; everything else was chosen on dev."""

    metric: str = Field("ndcg@10", description="the metric that decides; one of evaluate.metrics")
    level: float = Field(0.05, gt=0, lt=0.5, description="of the test, after Holm over all arms compared")
    worthwhile: float = Field(0.01, ge=0, description="the smallest gain that is worth a reranker")
    permutations: int = Field(10000, ge=100, description="draws of the paired randomisation test")
    resamples: int = Field(2000, ge=100, description="of the interval")
    tolerance: float = Field(0.01, ge=0, description="a larger loss on the general collection is told as lost")


class EvaluateSection(Section):
    """Which metrics, and how their uncertainty is measured."""

    metrics: list[str] = Field(
        default_factory=lambda: list(METRICS), min_length=1, description="mrr@k, recall@k, ndcg@k, map, precision@k, …"
    )
    split: Split = Field("test", description="whose queries")
    judged: str | None = Field(None, description="TREC qrels whose labels are added where there are none: rag's, say")
    bootstrap: int = Field(2000, ge=100, description="resamples of the queries")
    permutations: int = Field(10000, ge=100, description="draws of the paired randomisation test")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the intervals")


class EndpointSection(Section):
    """An OpenAI-compatible chat endpoint: a service, or a local server such as llama.cpp, Ollama or vLLM."""

    base_url: str = Field(description="as in http://localhost:8000/v1")
    model: str = Field(description="the name that the server knows the model by")
    key_from: str = Field("OPENAI_API_KEY", description="the environment variable that holds the key; it may be unset")
    max_calls: int = Field(2000, ge=0, description="calls that may be made, all runs of this experiment together")
    concurrency: int = Field(4, ge=1, description="calls at a time")
    timeout: float = Field(60.0, gt=0, description="seconds that one call may take")
    retries: int = Field(4, ge=0, description="further tries of a call after 429, 5xx, a time-out or a lost connection")
    max_tokens: int = Field(1024, ge=16, description="tokens of one answer, at most")


class RagSection(Section):
    """What does the order do to the answers? Context metrics of the first k passages; with an endpoint, RAGAS too."""

    k: int = Field(5, ge=1, description="passages that are sent to the language model")
    arms: list[str] | None = Field(None, description="columns of the table that are compared (default: all)")
    answers: str | None = Field(None, description="JSONL of query_id (or query) and answer: reference answers")
    texts: bool = Field(True, description="RAGAS' metrics of text likeness with the relevant passages, without a model")
    endpoint: EndpointSection | None = Field(None, description="who answers and judges; without one, no model is asked")
    queries: int = Field(50, ge=1, description="a seeded sample of the queries, for what asks a model")
    metrics: list[RagMetric] = Field(default_factory=lambda: list(RAG_METRICS), description="what a model is asked for")
    coverage: float = Field(0.95, gt=0, le=1, description="below this share of judged rows a column is unusable")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the intervals")
    resamples: int = Field(2000, ge=100, description="of the intervals")


class ReportSection(Section):
    """What the page shows."""

    title: str | None = Field(None, description="default: the experiment's name")
    examples: int = Field(10, ge=0, description="wins and losses shown, each")


class Experiment(Section):
    """A whole experiment. A section that is missing skips its room, save those that have defaults."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder's")
    seed: int = Field(0, ge=0, description="of every draw")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    data: DataSection = Field(description="the collection")
    retrieve: dict[str, Retriever] = Field(min_length=1, description="name -> retriever")
    mine: MineSection | None = Field(None, description="groups to train on")
    train: dict[str, Training] = Field(default_factory=dict, description="name -> training")
    merge: MergeSection | None = Field(None, description="models averaged")
    rerank: RerankSection | None = Field(None, description="the arms")
    blend: BlendSection | None = Field(default_factory=BlendSection)
    general: GeneralSection | None = Field(None, description="what fine-tuning forgot, on another collection")
    evaluate: EvaluateSection | None = Field(default_factory=EvaluateSection)
    rag: RagSection | None = Field(None, description="what the order does to the answers")
    diagnose: DiagnoseSection | None = Field(default_factory=DiagnoseSection)
    verdict: VerdictSection | None = Field(default_factory=VerdictSection)
    report: ReportSection | None = Field(default_factory=ReportSection)

    @field_validator("train", mode="before")
    @classmethod
    def _one_training(cls, train: object) -> object:
        """`train: {recipe: auto}` is short for `train: {finetuned: {recipe: auto}}`; both may be mixed, as by --set."""
        if not isinstance(train, dict) or not isinstance(train.get("recipe"), str):
            return train
        own = train.get("finetuned")
        beside = own if isinstance(own, dict) else {}
        return {"finetuned": {**{key: value for key, value in train.items() if value is not beside}, **beside}}

    @field_validator("retrieve", "train")
    @classmethod
    def _plain_names(cls, named: dict[str, object]) -> dict[str, object]:
        _refuse_odd_names(named)
        return named


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


def _refuse_odd_names(names: Iterable[str]) -> None:
    for name in names:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{name!r} must be letters, digits, - and _, since it names files")
