"""Do these models fit together? Asked before any arithmetic.

In come local model folders and their open weights; out come which models have a head, how many labels, and which
tensors of theirs belong together, or a ModelError that says what differs. No tensor is read here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rankwright.errors import ArtefactError, ModelError, first_line
from rankwright.rooms.merge import heads
from rankwright.rooms.merge.report import listed
from rankwright.toolbox.tensors import Form, Weights, in_order

# Differences in these change no score, or (id2label) are compared in their own way.
_FREE_SETTINGS = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "use_cache"),
    *("initializer_range", "sentence_transformers", "gradient_checkpointing", "problem_type"),
}
_OF_THE_HEAD = {"architectures", "num_labels", "classifier_dropout", "tie_word_embeddings"}
"""Settings in which a model without a head may differ from one that has a head."""
_COUNTERS = ("position_ids", "token_type_ids")
"""What older versions of transformers saved, and newer ones make anew."""
_SLOW_VOCABULARIES = ("vocab.*", "merges.txt", "*.model", "added_tokens.json")


@dataclass(frozen=True)
class Common:
    """What the merged model holds, in safetensors' own order, and who holds it.

    `held` maps each of its tensors to (number of the model, the tensor's name there), in order. `left_out` are
    counters that only some models hold; `unused` are other tensors that the merged model has no place for.
    """

    layout: dict[str, Form]
    held: dict[str, list[tuple[int, str]]]
    left_out: tuple[str, ...]
    unused: tuple[str, ...]


def check_out(models: Sequence[Path], out: Path) -> None:
    """Refuse an `out` that is one of the models, or that holds something else than a model.

    Raises:
        ArtefactError: it does.
    """
    place = out.resolve()
    if any(place in (model.resolve(), *model.resolve().parents) for model in models):
        raise ArtefactError("a merge may not overwrite one of its models", where=str(out), hint="name another folder")
    if out.exists() and not _is_replaceable(out):
        what = "something stands here that is no model, or more than one"
        raise ArtefactError(what, where=str(out), hint="name another folder, or delete this one")


def _is_replaceable(folder: Path) -> bool:
    """An empty folder, or a model's with nothing below it: what is replaced is deleted."""
    if not folder.is_dir():
        return False
    there = list(folder.iterdir())
    model = (folder / "config.json").is_file() and any(file.suffix == ".safetensors" for file in there)
    return not there or (model and not any(file.is_dir() for file in there))


def check_configs(models: Sequence[Path]) -> tuple[list[bool], int]:
    """Which models have a head, and how many labels those have.

    Raises:
        ModelError: a configuration cannot be read, none has a head, or they differ in what changes scores.
    """
    configs = [_config(model) for model in models]
    architectures = [str((config.get("architectures") or ["none"])[0]) for config in configs]
    headed = [name.endswith("ForSequenceClassification") for name in architectures]
    if not any(headed):
        raise ModelError(
            f"this model has no classification head (architecture: {architectures[0]}), and no other has one",
            where=str(models[0]),
            hint="merge rerankers: cross-encoders that were trained and saved with their head",
        )
    aim = headed.index(True)
    for model, other, has in zip(models, configs, headed, strict=True):
        free = _FREE_SETTINGS if has else _FREE_SETTINGS | _OF_THE_HEAD
        if differing := [key for key in configs[aim] if key not in free and _disagree(key, configs[aim], other)]:
            values = ", ".join(f"{key} {_value(key, configs[aim])} and {_value(key, other)}" for key in differing[:5])
            raise misfit(models[aim], model, f"their configurations differ: {values}")
    return headed, int(configs[aim]["num_labels"])


def common(sources: Sequence[Weights], headed: Sequence[bool]) -> Common:
    """Which tensors belong together. Names, shapes and dtypes of the merged model are the first headed model's.

    A model without a head lacks the prefix of the body's names, and may lack the head's tensors or hold others there.

    Raises:
        ModelError: a model holds a tensor that another lacks, or of another shape.
    """
    aim = headed.index(True)
    prefix = heads.body_prefix(sources[aim].forms)
    last = heads.last_linear(sources[aim].forms)
    theirs = f"{last.split('.', 1)[0]}." if last else ""
    names = [
        _names(source, sources[aim].forms) if has else _bare_names(source, sources[aim].forms, prefix, theirs)
        for source, has in zip(sources, headed, strict=True)
    ]
    counted = Counter(name for own in names for name in own)
    counters = {name for name in counted if counted[name] < len(sources) and name.endswith(_COUNTERS)}
    wanted = {name: form for name, form in sources[aim].forms.items() if name not in counters}
    unused: set[str] = set()
    for number, own in enumerate(names):
        lonely = {name for name in own.keys() ^ wanted.keys() if name not in counters and not heads.is_pooler(name)}
        if not headed[number]:
            lonely = {name for name in lonely if not heads.is_head(name)}
        folders = sources[aim].folder, sources[number].folder
        if lonely:
            first = min(lonely)
            raise misfit(*folders, f"only {folders[first not in wanted]} holds {listed(sorted(lonely))}")
        _check_shapes(wanted, own, sources[number], folders)
        unused |= own.keys() - wanted.keys() - counters
    return Common(
        in_order(wanted),
        {name: [(number, own[name]) for number, own in enumerate(names) if name in own] for name in wanted},
        tuple(sorted(counters)),
        tuple(sorted(unused)),
    )


def check_tokenizers(models: Sequence[Path]) -> None:
    """Refuse tokenizers of different vocabularies.

    Files of the same bytes are not parsed. Else `tokenizers` reads tokenizer.json, and transformers only what has none.

    Raises:
        ModelError: they differ; the first differing token is told. Or one cannot be loaded.
    """
    first, *others = models
    files, tokens = _tokenizer_files(first), None
    for model in others:
        if files and files == _tokenizer_files(model):
            continue
        tokens = tokens or _tokens(first)
        for one, other in zip_longest(tokens, _tokens(model)):
            if one != other:
                raise misfit(first, model, f"their tokenizers differ, first at {_token(one)} and {_token(other)}")


def misfit(first: Path, other: Path, why: str) -> ModelError:
    """The error for two models that do not belong together."""
    return ModelError(
        f"{first} and {other} cannot be merged: {why}",
        hint="merge fine-tunings of one and the same base model",
    )


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
    return "dropout" not in key and key in other and _listed(first[key]) != _listed(other[key])


def _listed(value: object) -> object:
    """DeBERTa's configurations on the hub say "p2c|c2p" where transformers writes a list."""
    return value.lower().split("|") if isinstance(value, str) and "|" in value else value


def _value(key: str, config: Mapping[str, Any]) -> str:
    value = config[key]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _names(source: Weights, wanted: Mapping[str, Form]) -> dict[str, str]:
    """The names of a model's tensors as the first headed model would call them -> their names here."""
    return {_modern(name, wanted): name for name in source.forms}


def _bare_names(source: Weights, wanted: Mapping[str, Form], prefix: str, head: str) -> dict[str, str]:
    """The same for a model without a head. What it holds in place of the classifier (of tokens, say) does not count."""
    bare = not any(name.startswith(prefix) for name in source.forms)
    held = [name for name in source.forms if not (head and name.startswith(head))]
    return {_modern(prefix + name if bare else name, wanted): name for name in held}


def _modern(name: str, wanted: Mapping[str, Form]) -> str:
    """Old checkpoints of BERT still say gamma and beta, which loaders rename."""
    new = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name in wanted else new


def _check_shapes(
    wanted: Mapping[str, Form], own: Mapping[str, str], source: Weights, folders: tuple[Path, Path]
) -> None:
    shapes = {name: (form.shape, source.forms[own[name]].shape) for name, form in wanted.items() if name in own}
    differing = [f"{name} {list(one)} and {list(other)}" for name, (one, other) in shapes.items() if one != other]
    if differing:
        raise misfit(*folders, f"tensors differ in shape: {listed(differing)}")


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    """What gives a tokenizer its vocabulary: tokenizer.json, or the files of those that have none."""
    whole = folder / "tokenizer.json"
    patterns = ("tokenizer.json", "added_tokens.json") if whole.is_file() else _SLOW_VOCABULARIES
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return {file.name: file.read_bytes() for file in files}


def _token(entry: tuple[int, str] | None) -> str:
    return f"{entry[0]} {entry[1]!r}" if entry else "no token"


def _tokens(folder: Path) -> list[tuple[int, str]]:
    whole = folder / "tokenizer.json"
    try:
        if whole.is_file():
            from tokenizers import Tokenizer

            vocabulary: dict[str, int] = Tokenizer.from_file(str(whole)).get_vocab()
        else:
            from transformers import AutoTokenizer

            vocabulary = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    except Exception as error:  # the Rust library raises bare Exceptions
        raise ModelError(f"cannot load the tokenizer: {first_line(error)}", where=str(folder)) from None
    return sorted((number, token) for token, number in vocabulary.items())
