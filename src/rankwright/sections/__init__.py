"""What an experiment may say: one pydantic model for each room's section of the YAML.

A room receives its own section and nothing else, so YAML and Python share these defaults.
How a file becomes these models, and how its errors are told, is `config`'s business.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from rankwright.recipes import BUDGET
from rankwright.sections.arms import BlendSection, CascadeSection, GeneralSection, MergeSection, RerankSection
from rankwright.sections.candidates import (
    Bm25Retriever,
    DataSection,
    DenseRetriever,
    FuseRetriever,
    ImportRetriever,
    MineSection,
    Retriever,
)
from rankwright.sections.findings import (
    DiagnoseSection,
    EndpointSection,
    EvaluateSection,
    RagSection,
    ReportSection,
    VerdictSection,
)
from rankwright.sections.training import DevSection, LoraSection, SampleSection, Training, read_budget, read_memory
from rankwright.sections.words import (
    METRICS,
    OF_DIFFERENCES,
    RAG_METRICS,
    LossName,
    MergeMethod,
    Precision,
    RagMetric,
    Scoring,
    Section,
    Split,
    refuse_odd_names,
)

__all__ = [
    "BUDGET",
    "METRICS",
    "NAME",
    "OF_DIFFERENCES",
    "RAG_METRICS",
    "BlendSection",
    "Bm25Retriever",
    "CascadeSection",
    "DataSection",
    "DenseRetriever",
    "DevSection",
    "DiagnoseSection",
    "EndpointSection",
    "EvaluateSection",
    "Experiment",
    "FuseRetriever",
    "GeneralSection",
    "ImportRetriever",
    "LoraSection",
    "LossName",
    "MergeMethod",
    "MergeSection",
    "MineSection",
    "Precision",
    "RagMetric",
    "RagSection",
    "ReportSection",
    "RerankSection",
    "Retriever",
    "SampleSection",
    "Scoring",
    "Section",
    "Split",
    "Training",
    "VerdictSection",
    "read_budget",
    "read_memory",
]


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Experiment(Section):
    """A whole experiment. A section that is missing skips its room, save those that have defaults."""

    name: str = Field("experiment", pattern=NAME, description="the run folder's (default: its file's)")
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
        refuse_odd_names(named)
        return named
