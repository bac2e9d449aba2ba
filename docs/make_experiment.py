"""Write docs/experiment.md, the reference of every key, from the sections' own models."""

from __future__ import annotations

import re
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rankwright import sections

PAGE = Path(__file__).with_name("experiment.md")
HEAD = """# The experiment file

Every key with its default. A section that is missing skips its room; `blend`, `evaluate`,
`diagnose`, `verdict` and `report` have defaults. Unknown
keys are refused. This page is made by `python docs/make_experiment.py`; a test sees that it is up to date.
"""
PARTS = (
    ("top level", sections.Experiment, "name, seed, device, and one section a room"),
    ("data", sections.DataSection, None),
    ("retrieve: {NAME: {kind: dense}}", sections.DenseRetriever, None),
    ("retrieve: {NAME: {kind: bm25}}", sections.Bm25Retriever, None),
    ("retrieve: {NAME: {kind: fuse}}", sections.FuseRetriever, None),
    ("retrieve: {NAME: {kind: import}}", sections.ImportRetriever, None),
    ("mine", sections.MineSection, None),
    ("train: {NAME: …}", sections.Training, None),
    ("train: {NAME: {dev}}", sections.DevSection, None),
    ("train: {NAME: {sample}}", sections.SampleSection, None),
    ("train: {NAME: {lora}}", sections.LoraSection, None),
    ("merge", sections.MergeSection, None),
    ("rerank", sections.RerankSection, None),
    ("blend", sections.BlendSection, None),
    ("general", sections.GeneralSection, None),
    ("evaluate", sections.EvaluateSection, None),
    ("diagnose", sections.DiagnoseSection, None),
    ("verdict", sections.VerdictSection, None),
    ("report", sections.ReportSection, None),
)


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_part(title, model, about) for title, model, about in PARTS)


def _part(title: str, model: type[BaseModel], about: str | None) -> str:
    lines = [
        f"\n## {title}\n",
        f"{about or (model.__doc__ or '').strip()}\n",
        "| key | default | what |",
        "|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        lines.append(f"| `{name}` | {_default(field)} | {_what(field)} |")
    return "\n".join(lines) + "\n"


def _default(field: typing.Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, BaseModel):
        return "see below"
    text = {None: "–", True: "true", False: "false"}.get(value) if isinstance(value, (bool, type(None))) else None
    return text or f"`{value if value != '' else repr(value)}`".replace("'", "")


def _what(field: typing.Any) -> str:
    choices = re.fullmatch(r"typing.Literal\[([^]]*)\]", str(field.annotation))
    words = choices[1].replace("'", "").split(", ") if choices else []
    told = f"one of {', '.join(words)}. " if 1 < len(words) < 6 else ""
    return (told + (field.description or "")).strip().replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
