"""What the page shows: plain values, and which of the arms stand on it.

In: what the caller knows. Out: a ReportView. It does not know what the page looks like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankwright.core import Qrels, Run
from rankwright.toolbox.ragtable import RagTable
from rankwright.toolbox.table import Table

BLEND = "-blend"


@dataclass(frozen=True)
class ReportView:
    """What the page shows.

    `table` is `Evaluation.table(provenance)`, or table.json read back. `runs` maps the arms of the table to their
    runs, `trainings` a training's name to the records of its log.jsonl, `seconds` a stage to how long it took.
    Arms and trainings that lack a run or a log are told in words. `examples` wins and as many losses (at most 20)
    stand in the page as plain lists, for readers without scripts.

    What was decided and why, each as its JSON: `verdict` (word, lines, arm, weight, depth), `findings` (those that
    fire first), `ladder` (metric, gap, rungs, residual, closed_pool, skipped), and `blends`, which maps an arm to
    what dev chose for it and the grid behind that. So many candidates as `depth` have a reranker's score (None: all).
    `retrievers` are arms of the table that no reranker made. `recipes` maps a training to what the search for its
    recipe tried and found (recipe.json). `sweep` is what the search for a merge's weight measured and chose
    (`toolbox.front.Sweep.values`). `rag` is what the order does to the answers (`toolbox.ragtable.RagTable`).
    """

    title: str
    table: Table
    runs: Mapping[str, Run]
    qrels: Qrels
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    trainings: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    data_lines: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    examples: int = 10
    verdict: Mapping[str, Any] | None = None
    findings: Sequence[Mapping[str, Any]] = ()
    ladder: Mapping[str, Any] | None = None
    blends: Mapping[str, Any] = field(default_factory=dict)
    depth: int | None = None
    retrievers: Sequence[str] = ("rrf", "fused")
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweep: Mapping[str, Any] | None = None
    rag: RagTable | None = None


def compared(view: ReportView) -> list[str]:
    """The arms beside the baseline whose runs are here."""
    return [arm for arm in view.table["arms"][1:] if arm in view.runs]


def shown_arm(view: ReportView) -> str | None:
    """The verdict's arm, or fine-tuned, or the last that a training made, or the last; blended, if it is that too."""
    arms = compared(view)
    own = [arm for arm in arms if not arm.endswith(BLEND) and arm not in view.retrievers]
    trained = [arm for arm in own if arm in view.trainings]
    arm = "finetuned" if "finetuned" in own else next(reversed(trained or own or arms), None)
    told = (view.verdict or {}).get("arm")
    arm = told if told in arms else arm
    return f"{arm}{BLEND}" if f"{arm}{BLEND}" in arms else arm
