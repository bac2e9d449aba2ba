"""What came of a training, in values, for the terminal and as a model's card.

In come counts and dev values; out come words. It does not know how they came about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rankwright.sections import Training
from rankwright.toolbox.model import model_card


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    model: Path
    steps: int
    planned: int
    kept_step: int
    dev: float | None
    dev_before: float | None
    precision: str
    fallbacks: int
    notes: list[str] = field(default_factory=list)
    averaged: tuple[int, ...] = ()
    """The steps whose mean was kept; empty where one checkpoint was."""

    @property
    def kept(self) -> str:
        """Which weights were kept, in words."""
        if self.averaged:
            return f"the mean of steps {', '.join(map(str, self.averaged))}"
        return f"step {self.kept_step}"

    def lines(self) -> list[str]:
        """What happened, for the terminal."""
        told = f"{self.steps} of {self.planned} steps; kept {self.kept}"
        if self.dev is not None and self.dev_before is not None:
            told += f", dev {self.dev_before:.4f} -> {self.dev:.4f}"
        return [told]


def card(name: str, base: str | Path, section: Training, trained: Trained) -> str:
    """The README of the model; of a `base` that is a path, its last part."""
    base = Path(base).name if Path(base).is_dir() else str(base)
    loss = " + ".join(f"{weight:g} x {term}" for term, weight in section.loss.items())
    lines = [
        f"A cross-encoder reranker, trained by rankwright from `{base}`.",
        "",
        f"* loss: {loss}; learning rate {section.learning_rate:g}; {trained.precision}",
        f"* pairs of {section.max_length} tokens at most",
        f"* kept {trained.kept} of {trained.planned} planned",
    ]
    if trained.dev is not None and section.dev:
        before = "" if trained.dev_before is None else f"{trained.dev_before:.4f} before, "
        rounded = ", with int8's rounding" if section.rounded_share else ""
        lines.append(f"* {section.dev.metric} on dev candidates: {before}{trained.dev:.4f} after{rounded}")
    return model_card(name, base, lines)
