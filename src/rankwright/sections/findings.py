"""The sections of diagnose, verdict, evaluate, rag and report: what the orders are worth."""

from __future__ import annotations

from pydantic import (
    Field,
)

from rankwright.sections.words import (
    METRICS,
    RAG_METRICS,
    RagMetric,
    Section,
    Split,
)


class DiagnoseSection(Section):
    """Why does reranking hurt? The checks H1 to H16 and the ladder."""

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
