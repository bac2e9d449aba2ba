"""What sits on top of a model's body: which tensors are its head, whether it was trained, the scale of its logits.

In come names of tensors, logits of probe pairs and distances between tensors; out come names, factors and remarks. It
knows how architectures of transformers call their tensors, and neither how pairs are scored nor how tensors are mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from rankwright.errors import ConfigError, ModelError
from rankwright.toolbox.mixing import Source
from rankwright.toolbox.tensors import Floats

Probe = Callable[[Path], NDArray[np.float32]]
"""A model folder -> the logits of some pairs, always the same ones."""

LAST = (
    *("classifier.out_proj", "classification_head.out_proj", "classifier.linear_out", "classifier"),
    *("score", "logits_proj", "sequence_summary.summary"),
)
"""What the last linear layer is called in RoBERTa, BART, Funnel, BERT and most others; language models, XLNet, XLM."""
_HEADS = {
    *("classifier", "classification_head", "score", "logits_proj", "sequence_summary", "pre_classifier", "head"),
    *("pooler", "lm_head", "cls", "predictions", "generator_predictions", "decoder", "vocab_projector", "qa_outputs"),
    *("vocab_transform", "vocab_layer_norm", "lm_predictions", "generator_lm_head", "mask_predictions"),
}
"""First parts of names above the body: heads that classify, and those that guess words or spans in pre-training."""
_UNTRAINED, _SAME_BODY = 0.5, 0.9
_SPREADS, _MEANS = 1.5, 1.0


@dataclass(frozen=True)
class Logits:
    """Mean and standard deviation of a model's logits of the probe pairs."""

    mean: float
    spread: float


@dataclass(frozen=True)
class Rescaled:
    """A tensor times `factor`, plus `shift`, in float64. A `mixing.Source`."""

    inner: Source
    factor: float
    shift: float = 0.0

    @property
    def size(self) -> int:
        """Entries."""
        return self.inner.size

    def read(self, start: int, stop: int) -> Floats:
        """The entries start:stop."""
        return self.inner.read(start, stop).astype(np.float64) * self.factor + self.shift


def last_linear(names: Collection[str]) -> str | None:
    """The last linear layer of a model with a head, without ``.weight`` and ``.bias``; None if it is not known."""
    return next((stem for stem in LAST if f"{stem}.weight" in names), None)


def is_head(name: str) -> bool:
    """Whether a tensor belongs to what sits on the body: a classifier, a pooler, a language model's head."""
    return name.split(".", 1)[0] in _HEADS or is_pooler(name)


def is_pooler(name: str) -> bool:
    """Whether a tensor is a pooler's, which some architectures build only where it is used."""
    return "pooler" in name.split(".")


def body_prefix(names: Collection[str]) -> str:
    """What a model with a head puts before the names of its body: ``bert.``; empty if nothing, or no one thing."""
    parts = {name.split(".", 1)[0] for name in names if not is_head(name) and "." in name}
    return f"{parts.pop()}." if len(parts) == 1 else ""


def measured(probe: Probe, folders: Sequence[Path], headed: Sequence[bool]) -> list[Logits | None]:
    """Mean and spread of each model's logits; None for one without a head.

    Raises:
        ModelError: a model's logits are not finite, or there are none.
    """
    found: list[Logits | None] = []
    for folder, has in zip(folders, headed, strict=True):
        logits = np.asarray(probe(folder), dtype=np.float64) if has else None
        if logits is not None and not (logits.size and np.isfinite(logits).all()):
            raise ModelError("its logits of the probe pairs are not finite", where=str(folder))
        found.append(None if logits is None else Logits(float(logits.mean()), float(logits.std())))
    return found


def rescalings(logits: Sequence[Logits | None], folders: Sequence[Path]) -> list[tuple[float, float]]:
    """(factor, shift) for each model's last layer, that give its logits the first one's mean and spread.

    That layer is linear and nothing comes after it, so ``factor * logit + shift`` is exact. The first model with
    a head has (1, 0), and so have models without.

    Raises:
        ModelError: a model gives every pair the same logit.
    """
    aim = next(own for own in logits if own)
    found = []
    for own, folder in zip(logits, folders, strict=True):
        if own is None or own == aim:
            found.append((1.0, 0.0))
            continue
        if not own.spread or not aim.spread:
            raise ModelError("it gives every probe pair the same logit; that cannot be rescaled", where=str(folder))
        factor = aim.spread / own.spread
        found.append((factor, aim.mean - factor * own.mean))
    return found


def check_rescale(last: str | None, labels: int) -> str:
    """The last layer, if it can be rescaled.

    Raises:
        ConfigError: it has more than one logit, or which it is cannot be told.
    """
    if last is None or labels != 1:
        why = f"these have {labels}" if last else "and these models' last layer is not known"
        raise ConfigError(f"merge: head: rescale is for models of one logit, {why}", hint="leave out `head`")
    return last


def scale_remarks(names: Sequence[str], logits: Sequence[Logits | None], rescale: bool) -> list[str]:
    """The logits' scales, and whether they are so far apart that a mixture is one model's in disguise.

    `logits` are empty if nothing was measured.
    """
    known = [(name, own) for name, own in zip(names, logits, strict=False) if own]
    if not known:
        return []
    listed = "; ".join(f"{name} mean {own.mean:.2f}, spread {own.spread:.2f}" for name, own in known)
    told = [f"logits of the probe pairs: {listed}"]
    (first, aim), *others = known
    for name, own in others:
        wide, narrow = max(own.spread, aim.spread), min(own.spread, aim.spread)
        if wide > _SPREADS * narrow or abs(own.mean - aim.mean) > _MEANS * wide:
            remedy = "rescaled before mixing" if rescale else "try head: rescale"
            told.append(f"the logits of {name} are on another scale than those of {first}: {remedy}")
    return told


def untrained(
    last: str | None,
    cosines: Mapping[str, Sequence[float | None]],
    names: Sequence[str],
    aim: int,
    of_differences: bool,
) -> list[str]:
    """Remarks on heads that share nothing with that of the model `aim`, the first that has one, while bodies are akin.

    `cosines` are each tensor's, between the first model that holds it and each model after the first. Two trainings
    of one head keep it alike; a head that was drawn anew points elsewhere (cosine near 0).
    """
    told = []
    own = cosines.get(f"{last}.weight", ()) if last else ()
    for place, cosine in enumerate(own):
        body = [found for name in cosines if not is_head(name) if (found := cosines[name][place]) is not None]
        if cosine is None or not body or cosine >= _UNTRAINED or median(body) <= _SAME_BODY:
            continue
        chosen = [float(other == place + 1) for other in range(int(of_differences), len(names))]
        part = str(last).split(".", 1)[0]
        told.append(
            f"the head of {names[place + 1]} was trained from nothing (cosine {cosine:.2f} to {names[aim]}'s), and a "
            f"mean of two such heads is neither: try layers: {{'{part}.*': {chosen}}}, or train from a model with "
            "a head"
        )
    return told


def headless_remark(names: Sequence[str], headed: Sequence[bool]) -> list[str]:
    """Whose head the merged model has, if some have none."""
    if all(headed):
        return []
    without, having = ([name for name, has in zip(names, headed, strict=True) if has == wanted] for wanted in (0, 1))
    have = "has" if len(without) == 1 else "have"
    return [f"{' and '.join(without)} {have} no head: the head is {' and '.join(having)}'s"]
