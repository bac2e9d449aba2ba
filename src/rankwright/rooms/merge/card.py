"""The model card of a merged model: what it is made of, in words that mean something on another machine.

In comes a report; out comes the text of a README.md. It knows nothing of the folder that it goes into.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from rankwright.rooms.merge.report import MergeReport


def card(report: MergeReport) -> str:
    """The card: front matter for the hub, the models with their weights, the recipe and what was measured."""
    # A path says nothing to others, and the hub refuses it as a base model.
    names = [Path(name).name if name.startswith((".", "/", "~")) else name for name in report.models]
    short = dict(zip(report.models, names, strict=True))
    remarks = [_with(short, remark) for remark in report.remarks]
    told = replace(report, models=tuple(names), remarks=tuple(remarks)).lines()
    front = {
        "pipeline_tag": "text-ranking",
        "library_name": "sentence-transformers",
        "base_model": names,
        "base_model_relation": "merge",
        "tags": ["cross-encoder", "reranker", "merge", "rankwright"],
    }
    weights = [f"{weight:g}" for weight in report.weights]
    if report.recipe.of_differences:
        weights.insert(0, "where the others started")
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            "# A merged reranker",
            "",
            f"A cross-encoder made by rankwright, which merged these models ({report.method}):",
            "",
            "| model | weight |",
            "|---|---|",
            *(f"| {name} | {weight} |" for name, weight in zip(names, weights, strict=True)),
            "",
            *(f"* {line}" for line in told),
            "",
        ]
    )


def _with(short: dict[str, str], text: str) -> str:
    for long in sorted(short, key=len, reverse=True):  # a folder before its parent
        if short[long] != long:
            text = text.replace(long, short[long])
    return text
