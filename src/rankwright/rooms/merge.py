"""Several fine-tunings of one model in, one model folder out, averaged tensor by tensor.

In come local model folders and the `merge:` section; out come a folder that every loader takes and a MergeReport.
Tensors are streamed, one name at a time, so memory never holds a model. How tensors are mixed is `toolbox.mixing`'s
business. Nothing here knows which training made a model, whether the merge is any good, or how it will be scored.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from rankwright.errors import ArtefactError, ConfigError, DiskError, ModelError
from rankwright.sections import MergeSection
from rankwright.toolbox import mixing, progress

if TYPE_CHECKING:
    from torch import Tensor

Layout: TypeAlias = "dict[str, tuple[str, list[int], int]]"
"""Tensor name -> (dtype as safetensors spells it, shape, bytes)."""

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
# Differences in these change no score, or (id2label) are compared in their own way.
_FREE_SETTINGS = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "use_cache"),
    *("initializer_range", "sentence_transformers", "gradient_checkpointing", "problem_type"),
}
# Counters that older versions of transformers saved, and newer ones make anew.
_COUNTERS = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class MergeReport:
    """What was merged, and how far apart the models were.

    `distances` maps each tensor to its relative distance (`mixing.relative_distance`) between the first model and
    each further one, in order. `left_out` are counters that only some models hold and that loaders make anew.
    """

    models: tuple[str, ...]
    method: str
    weights: tuple[float, ...]
    distances: dict[str, tuple[float, ...]]
    left_out: tuple[str, ...]

    def lines(self) -> list[str]:
        """A few lines for people: the recipe, how many tensors differ, and which differ most."""
        recipe = " + ".join(f"{weight:g} {name}" for name, weight in zip(self.models, self.weights, strict=True))
        farthest = {name: max(apart, default=0.0) for name, apart in self.distances.items()}
        differing = sorted((name for name in farthest if farthest[name]), key=lambda name: (-farthest[name], name))
        told = [f"{self.method}: {recipe}", f"{len(differing)} of {len(farthest)} tensors differ"]
        if differing:
            most = ", ".join(f"{name} {farthest[name]:.2g}" for name in differing[:3])
            middle = median(farthest[name] for name in differing)
            told[1] += f", by {middle:.2g} of their length (median); most: {most}"
        if self.left_out:
            told.append(
                f"left out, since only some models hold them and loaders make them anew: {_list(self.left_out)}"
            )
        return told


def merge(models: Sequence[Path], section: MergeSection, out: Path) -> MergeReport:
    """Merge local model folders into the folder `out`, which appears whole or not at all.

    `section.models` names the folders, one each, in order; the names go into the model card. Each tensor keeps the
    first model's dtype; configuration and tokenizer are the first model's. A model folder at `out` is replaced.

    Raises:
        ConfigError: there are not as many names, or weights, as folders.
        ModelError: the models do not fit together, or one cannot be read; found before any arithmetic, save NaN.
        ArtefactError: `out` is one of the models, or holds something else than a model.
        DiskError: `out` cannot be written.
    """
    weights = _weights(models, section)
    _check_out(models, out)
    _check_configs(models)
    sources = [_Weights(model) for model in models]
    layout, left_out = _common_layout(sources)
    _check_tokenizers(models)
    out = out.absolute()
    partial = out.with_name(f".{out.name}.partial")
    try:
        _fresh(partial)
        distances = _write_tensors(sources, layout, (section.method, weights), partial)
        report = MergeReport(tuple(section.models), section.method, tuple(weights), distances, left_out)
        _write_rest(models[0], report, partial)
        _replace(partial, out)
    except OSError as error:
        raise DiskError(f"cannot write the merged model: {error.strerror or error}", where=str(out)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


class _Weights:
    """The tensors of one model folder, in one safetensors file or in shards; opened anew for each tensor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self.layout: Layout = {}
        for file in _weight_files(folder):
            header = _read_header(file)
            self._files |= dict.fromkeys(header, file)
            self.layout |= header

    def read(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


class _StreamingWriter:
    """A safetensors file, written one tensor after the other in the order of `layout`.

    The format: the header's length (8 bytes, little-endian), the header as JSON, the tensors' bytes one after the
    other. Tensors of one dtype give the same bytes as `safetensors.torch.save_file`.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape, size) in layout.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)
        self._awaited = [(name, size) for name, (_, _, size) in layout.items()]
        self._file = path.open("wb")
        self._file.write(len(raw).to_bytes(8, "little") + raw)

    def write(self, name: str, tensor: Tensor) -> None:
        import torch

        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        if (name, raw.nbytes) != (awaited := self._awaited.pop(0)):
            raise ValueError(f"{name} with {raw.nbytes} bytes came where {awaited} was announced")
        self._file.write(raw.data)

    def __enter__(self) -> _StreamingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _weights(models: Sequence[Path], section: MergeSection) -> list[float]:
    if len(models) != len(section.models):
        raise ConfigError(f"merge: {len(section.models)} names in `models` for {len(models)} model folders")
    return section.weights or [1 / len(models)] * len(models)


def _check_out(models: Sequence[Path], out: Path) -> None:
    if any(model.resolve() == out.resolve() for model in models):
        raise ArtefactError("a merge may not overwrite one of its models", where=str(out), hint="name another folder")
    if out.exists() and not (out / "config.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtefactError("something stands here that is no model", where=str(out), hint="name another folder")


def _check_configs(models: Sequence[Path]) -> None:
    configs = [_config(model) for model in models]
    for model, config in zip(models, configs, strict=True):
        architecture = config.get("architectures") or ["none"]
        if not str(architecture[0]).endswith("ForSequenceClassification"):
            raise ModelError(
                f"this model has no classification head (architecture: {architecture[0]})",
                where=str(model),
                hint="merge rerankers: cross-encoders that were trained and saved with their head",
            )
    first, *others = configs
    for model, other in zip(models[1:], others, strict=True):
        if differing := [key for key in first if _disagree(key, first, other)]:
            values = ", ".join(f"{key} {_value(key, first)} and {_value(key, other)}" for key in differing[:5])
            raise _misfit(models[0], model, f"their configurations differ: {values}")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("no config.json: this is no model folder", where=str(folder)) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the configuration: {error}", where=str(path)) from None
    if not isinstance(config, dict):
        raise ModelError("the configuration is not a JSON object", where=str(path))
    two_by_default = (0, 1)
    return {"num_labels": len(config.get("id2label") or two_by_default), **config}


def _disagree(key: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a setting that both files hold differs; versions of transformers leave out different defaults."""
    settled = key in _FREE_SETTINGS or "dropout" in key or key not in other
    return not settled and bool(first[key] != other[key])


def _value(key: str, config: Mapping[str, Any]) -> str:
    value = config[key]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _weight_files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickled = any((folder / name).is_file() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"))
        hint = "load it in transformers and save_pretrained() it again" if pickled else "check the path"
        raise ModelError("no model.safetensors", where=str(folder), hint=hint)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read the index of shards: {error!r}", where=str(index)) from None
    return [folder / name for name in names]


def _read_header(file: Path) -> Layout:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):  # checks the header, and that the data is all there
            pass
        with file.open("rb") as raw:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the weights: {error}", where=str(file)) from None
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _common_layout(sources: Sequence[_Weights]) -> tuple[Layout, tuple[str, ...]]:
    """The layout of the merged file, in safetensors' own order, and the counters to leave out."""
    held = Counter(name for source in sources for name in source.layout)
    counters = {name for name in held if held[name] < len(sources) and name.endswith(_COUNTERS)}
    first, *others = ({name: entry for name, entry in s.layout.items() if name not in counters} for s in sources)
    folders = [source.folder for source in sources]
    for folder, other in zip(folders[1:], others, strict=True):
        if lonely := sorted(first.keys() ^ other.keys()):
            holder = folders[0] if lonely[0] in first else folder
            raise _misfit(folders[0], folder, f"only {holder} holds {_list(lonely)}")
        shapes = {name: (first[name][1], other[name][1]) for name in first}
        if differing := [f"{name} {one} and {two}" for name, (one, two) in shapes.items() if one != two]:
            raise _misfit(folders[0], folder, f"tensors differ in shape: {_list(differing)}")
    return dict(sorted(first.items(), key=lambda item: (-_width(item[1]), item[0]))), tuple(sorted(counters))


def _width(entry: tuple[str, list[int], int]) -> int:
    """Bits of one number, from its dtype's name: wide ones come first, so that every tensor is aligned."""
    digits = "".join(char for char in entry[0].partition("_")[0] if char.isdigit())
    return int(digits or 8)


def _check_tokenizers(models: Sequence[Path]) -> None:
    first, *others = models
    tokens = _tokens(first)
    for model in others:
        for one, other in zip_longest(tokens, _tokens(model)):
            if one != other:
                raise _misfit(first, model, f"their tokenizers differ, first at {_token(one)} and {_token(other)}")


def _token(entry: tuple[int, str] | None) -> str:
    return f"{entry[0]} {entry[1]!r}" if entry else "no token"


def _tokens(folder: Path) -> list[tuple[int, str]]:
    from transformers import AutoTokenizer

    try:
        vocabulary = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    except Exception as error:  # the Rust library raises bare Exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load the tokenizer: {reason}", where=str(folder)) from None
    return sorted((number, token) for token, number in vocabulary.items())


def _misfit(first: Path, other: Path, why: str) -> ModelError:
    return ModelError(
        f"{first} and {other} cannot be merged: {why}",
        hint="merge fine-tunings of one and the same base model",
    )


def _fresh(folder: Path) -> None:
    """An empty folder; what a killed merge left in it goes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_tensors(
    sources: Sequence[_Weights], layout: Layout, recipe: tuple[str, Sequence[float]], folder: Path
) -> dict[str, tuple[float, ...]]:
    """Mix and write every tensor; returns the distances from the first model to each other."""
    method, weights = recipe
    folders = [str(source.folder) for source in sources]
    distances: dict[str, tuple[float, ...]] = {}
    with (
        _StreamingWriter(folder / "model.safetensors", layout) as writer,
        progress.bar("merge", len(layout), "tensors") as advance,
    ):
        for name in layout:
            tensors = [source.read(name) for source in sources]
            try:
                mixed = mixing.METHODS[method](tensors, weights)
            except ValueError as error:
                raise ModelError(f"{name} of {_list(folders)}: {error}") from None
            if bool(mixed.isnan().any()):
                guilty = [folder for folder, tensor in zip(folders, tensors, strict=True) if bool(tensor.isnan().any())]
                raise ModelError(f"NaN in {name} of {_list(guilty)}", hint="a training went wrong; train again")
            distances[name] = tuple(mixing.relative_distance(tensors[0], other) for other in tensors[1:])
            writer.write(name, mixed)
            advance(1)
    return distances


def _write_rest(first: Path, report: MergeReport, folder: Path) -> None:
    """Tokenizer, model card and, last, the config.json without which no loader takes the folder."""
    files = {file for pattern in _TOKENIZER_FILES for file in first.glob(pattern) if file.is_file()}
    for file in sorted(files):
        shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(_card(report), encoding="utf-8")
    shutil.copyfile(first / "config.json", folder / "config.json")


def _card(report: MergeReport) -> str:
    # A path says nothing to others, and the hub refuses it as a base model.
    names = [Path(name).name if name.startswith((".", "/", "~")) else name for name in report.models]
    front = {
        "pipeline_tag": "text-ranking",
        "library_name": "sentence-transformers",
        "base_model": names,
        "base_model_relation": "merge",
        "tags": ["cross-encoder", "reranker", "merge", "rankwright"],
    }
    rows = [f"| {name} | {weight:g} |" for name, weight in zip(names, report.weights, strict=True)]
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
            *rows,
            "",
            *(f"* {line}" for line in report.lines()[1:]),
            "",
        ]
    )


def _replace(partial: Path, out: Path) -> None:
    """Put the finished folder in its place. A kill between the two renames leaves no `out`, never half of one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _list(names: Sequence[str], shown: int = 3) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
