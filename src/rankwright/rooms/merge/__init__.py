"""Several fine-tunings of one model in, one model folder out, mixed tensor by tensor.

In come local model folders and the `merge:` section; out come a folder that every loader takes and a MergeReport.
Tensors are streamed, a block at a time, so memory never holds a whole one. How tensors are mixed is `toolbox.mixing`'s
business. Nothing here knows which training made a model, whether the merge is any good, or how it will be scored.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rankwright.errors import ConfigError, DiskError
from rankwright.rooms.merge import checks, heads, streams
from rankwright.rooms.merge.card import card
from rankwright.rooms.merge.heads import Logits, Probe
from rankwright.rooms.merge.recipe import Recipe, recipe_of
from rankwright.rooms.merge.report import ByModel, MergeReport, listed
from rankwright.sections import MergeSection
from rankwright.toolbox import mixing
from rankwright.toolbox.tensors import Weights

__all__ = ["Logits", "MergeReport", "Probe", "Recipe", "merge"]

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)


def merge(
    models: Sequence[Path],
    section: MergeSection,
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    losses: Sequence[float] | None = None,
    probe: Probe | None = None,
) -> MergeReport:
    """Merge local model folders into the folder `out`, which appears whole or not at all.

    `section.models` names the folders, one each, in order; the names go into the model card. Dtypes, configuration and
    tokenizer are those of the first model with a head. A model folder at `out` is replaced.

    Args:
        models: local folders of fine-tunings of one model; for methods of differences the first is where they began.
            A plain encoder of the same body may be among them: it has no say in the head.
        section: the method and its settings. `section.seed` None is 0.
        out: the folder to make.
        weights: what a sweep found, in place of the section's.
        losses: for `cocktail`, one a model.
        probe: gives the logits of the probe pairs by a model folder; their scales are then reported, and
            `head: rescale` needs it.

    Raises:
        ConfigError: there are not as many names, weights or losses as folders; a pattern of `layers` matches nothing;
            `head: rescale` without a probe or of several logits; a sweep without `weights`.
        ModelError: the models do not fit together, or one cannot be read; found before any arithmetic, save NaN.
        ArtefactError: `out` is one of the models, or holds something else than a model.
        DiskError: `out` cannot be written.
    """
    recipe = recipe_of(section, len(models), weights, losses)
    if section.head == "rescale" and probe is None:
        raise ConfigError("merge: head: rescale needs logits of probe pairs", hint="give `probe`, or leave out `head`")
    checks.check_out(models, out)
    headed, labels = checks.check_configs(models)
    with ExitStack() as stack:
        opened = [stack.enter_context(Weights(model)) for model in models]
        common = checks.common(opened, headed)
        checks.check_tokenizers(models)
        recipe.check_layers(common.layout)
        parts = _parts(opened, common, recipe)
        rescaled = section.head == "rescale" and heads.check_rescale(heads.last_linear(common.layout), labels)
        logits = heads.measured(probe, models, headed) if probe else []
        if rescaled:
            scales = heads.rescalings(logits, models)
            parts = [_rescaled(part, rescaled, scales) for part in parts]
        with _folder(out) as partial:
            apart = _by_model(parts, _write_tensors(parts, partial), len(models))
            report = MergeReport(tuple(section.models), recipe, *apart, common.left_out, tuple(logits))
            report = replace(report, remarks=tuple(_remarks(report, common, headed, bool(rescaled))))
            _write_rest(models[headed.index(True)], report, partial)
    return report


def _parts(opened: Sequence[Weights], common: checks.Common, recipe: Recipe) -> list[streams.Part]:
    """Where each tensor of the merged model is read, and how it is mixed."""
    parts = []
    for name, form in common.layout.items():
        held = common.held[name]
        tensors = tuple(opened[number][own] for number, own in held)
        method, weights = recipe.mixture(name, [number for number, _ in held], len(opened))
        parts.append(
            streams.Part(
                name=name,
                form=form,
                folders=tuple(opened[number].folder for number, _ in held),
                models=tuple(number for number, _ in held),
                raw=tensors,
                sources=tensors,
                method=method,
                weights=tuple(weights),
                settings=recipe.settings(name),
            )
        )
    return parts


def _rescaled(part: streams.Part, last: str, scales: Sequence[tuple[float, float]]) -> streams.Part:
    """The part with its sources on the first headed model's scale, if it is the last layer's; else as it is."""
    if part.name not in (f"{last}.weight", f"{last}.bias"):
        return part
    shifts = part.name == f"{last}.bias"
    sources: list[mixing.Source] = []
    for tensor, number in zip(part.raw, part.models, strict=True):
        factor, shift = scales[number]
        same = (factor, shift) == (1.0, 0.0)  # bit for bit
        sources.append(tensor if same else heads.Rescaled(tensor, factor, shift if shifts else 0.0))
    return replace(part, sources=tuple(sources))


def _write_tensors(parts: Sequence[streams.Part], folder: Path) -> Mapping[str, Sequence[mixing.Distance]]:
    return streams.write(parts, folder / "model.safetensors")


def _by_model(
    parts: Sequence[streams.Part], apart: Mapping[str, Sequence[mixing.Distance]], models: int
) -> tuple[ByModel, ByModel]:
    """Distances and cosines: for each tensor one for each model after the first, None where there is none."""
    distances: ByModel = {}
    cosines: ByModel = {}
    for part in parts:
        own = dict(zip(part.models[1:], apart[part.name], strict=True))
        found = [own.get(number) for number in range(1, models)]
        distances[part.name] = tuple(None if each is None else each.value for each in found)
        cosines[part.name] = tuple(None if each is None else each.cosine for each in found)
    return distances, cosines


def _remarks(report: MergeReport, common: checks.Common, headed: Sequence[bool], rescaled: bool) -> list[str]:
    last = heads.last_linear(common.layout)
    told = heads.headless_remark(report.models, headed)
    if common.unused:
        told.append(f"left out, since the merged model has no place for them: {listed(common.unused)}")
    told += heads.untrained(last, report.cosines, report.models, headed.index(True), report.recipe.of_differences)
    told += heads.scale_remarks(report.models, report.logits, rescaled)
    if rescaled and f"{last}.bias" not in common.layout:
        told.append(f"{last} has no bias, so only the logits' spread was matched, not their mean")
    return told


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, which takes its name if the block ends well and goes if it does not."""
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed merge left
        partial.mkdir(parents=True)
        yield partial
        _replace(partial, out)
    except OSError as error:
        raise DiskError(f"cannot write the merged model: {error.strerror or error}", where=str(out)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_rest(first: Path, report: MergeReport, folder: Path) -> None:
    """Tokenizer, model card and, last, the config.json without which no loader takes the folder."""
    files = {file for pattern in _TOKENIZER_FILES for file in first.glob(pattern) if file.is_file()}
    for file in sorted(files):
        shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(card(report), encoding="utf-8")
    shutil.copyfile(first / "config.json", folder / "config.json")


def _replace(partial: Path, out: Path) -> None:
    """Put the finished folder in its place. A kill between the two renames leaves no `out`, never half of one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
