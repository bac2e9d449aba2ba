"""The sections of data, retrieve and mine: from texts to what a training sees."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from rankwright.sections.words import (
    Precision,
    Section,
    Split,
)


class DataSection(Section):
    """Where the collection comes from, and how it is cleaned and split."""

    source: str = Field("seealso:", description="KIND:LOCATION, as in beir:data/scifact")
    train: str | None = Field(None, description="the source's own name of the training split (default: train)")
    dev: str | None = Field(None, description="the source's name of the dev split; cut from train when there is none")
    test: str | None = Field(None, description="the source's name of the test split (default: test)")
    dev_share: float = Field(0.1, ge=0, lt=0.5, description="share of the training queries that becomes dev; 0: no dev")
    test_share: float = Field(0.2, gt=0, lt=0.5, description="share that becomes test if there is one split only")
    dedupe: bool = Field(True, description="merge copies of a text and unite their labels")
    self_matches: Literal["drop", "keep"] = Field(
        "drop", description="documents that are the query itself, by its text or by its id and its text below a title"
    )
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
    precision: Precision = Field("fp32", description="auto: bf16 where it is faster; vectors move a little")


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
    queries: int | None = Field(None, ge=1, description="at most so many training queries, drawn (default: all)")
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
