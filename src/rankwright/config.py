"""YAML file -> Experiment, with errors a person can act on: file, line, what was expected, did you mean.

What may stand in the file is `sections`' business; nothing here knows a single key by name.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rankwright.errors import ConfigError
from rankwright.sections import NAME, Experiment

KeyPath = tuple[str | int, ...]
_NAME = re.compile(NAME)


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 2e-5 as a number, as YAML 1.2 does and YAML 1.1 does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply ``a.b=c`` overrides (values are YAML).

    Relative paths inside the file are left as they are: relative to where the command is run.

    Raises:
        ConfigError: no such file, not YAML, or keys and values that are not understood; all are told at once.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"cannot read the experiment: {error.strerror}",
            where=str(path),
            hint="rankwright init DATA writes a starter",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text ({error.reason} at byte {error.start})", where=str(path)) from None
    values, lines = _parse(text, str(path))
    if _NAME.fullmatch(path.stem):  # else two files without a name would share one run folder
        values.setdefault("name", path.stem)
    places = {key: f"{path}:{line}" for key, line in lines.items()}
    for override in overrides:
        key = _apply(values, override)
        places = {other: place for other, place in places.items() if other[: len(key)] != key}
        places[key] = f"--set {override}"
    return validate(values, where=str(path), places=places)


def validate(
    values: Mapping[str, Any], *, where: str = "experiment", places: Mapping[KeyPath, str] | None = None
) -> Experiment:
    """Turn plain values into an Experiment; `places` says where each key stands, `where` all of them.

    Raises:
        ConfigError: keys and values that are not understood; all are told at once.
    """
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        told = [_tell(dict(problem), values, where, places or {}) for problem in error.errors()]
        raise ConfigError("\n".join(told)) from None


def dump(experiment: Experiment) -> str:
    """The experiment with every default written out, as YAML that `load_experiment` reads back unchanged."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _parse(text: str, where: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        root = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        fault = str(getattr(error, "problem", error))
        hint = 'quote a value that has a colon: source: "seealso:"' if "mapping values" in fault else None
        raise ConfigError(f"not YAML: {fault}", where=f"{where}{line}", hint=hint) from None
    if not isinstance(values, dict):
        raise ConfigError("an experiment is a mapping of sections (data:, retrieve:, …)", where=where)
    lines: dict[KeyPath, int] = {}
    _note_lines(root, (), lines, where)
    return values, lines


def _note_lines(node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int], where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            line = key.start_mark.line + 1
            if here in lines:
                first = f"first in line {lines[here]}"
                raise ConfigError(f"{_dotted(here)} stands twice ({first})", where=f"{where}:{line}")
            lines[here] = line
            _note_lines(value, here, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _note_lines(value, (*path, index), lines, where)


def _apply(values: dict[str, Any], override: str) -> KeyPath:
    """Put an ``a.b=c`` into the values, and return its key path."""
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes a.b=c, not {override!r}", hint="--set mine.negatives=3")
    try:
        value = raw if raw.endswith(":") else yaml.load(raw, Loader=_Loader)  # `seealso:` is a word here
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: {raw!r} is not a YAML value", hint="quote it for your shell") from None
    *parents, last = key.strip().split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {key}: {parent} holds a value, not a section")
    values[last] = value
    return (*parents, last)


def _tell(problem: dict[str, Any], values: Mapping[str, Any], where: str, places: Mapping[KeyPath, str]) -> str:
    path = _real_path(problem["loc"], values)
    place = next((places[path[:end]] for end in range(len(path), 0, -1) if path[:end] in places), where)
    if problem["type"] == "extra_forbidden":
        text = f"unknown key {_dotted(path)}"
        if guess := _did_you_mean(path, values):
            text += f"; did you mean {guess}?"
    elif problem["type"] == "missing":
        text = f"{_dotted(path)} is missing"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        text = f"{_dotted(path) or 'experiment'}: {message[0].lower()}{message[1:]}"
        if isinstance(problem.get("input"), (str, int, float, bool)):
            text += f" (it says {problem['input']!r})"
    return f"{place}: {text}"


def _real_path(location: KeyPath, values: Any) -> KeyPath:
    """Drop what pydantic puts into a location beside the keys: union tags such as ``dense``, and ``[key]``."""
    path: list[str | int] = []
    location = tuple(part for part in location if part != "[key]")
    for position, part in enumerate(location):
        follows = values.get(part) if isinstance(values, dict) else None
        last = position == len(location) - 1
        known = (isinstance(values, dict) and part in values) or (isinstance(values, list) and isinstance(part, int))
        if not known and not last:
            continue
        path.append(part)
        values = values[part] if isinstance(values, list) and isinstance(part, int) and part < len(values) else follows
    return tuple(path)


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _did_you_mean(path: KeyPath, values: Any) -> str | None:
    kind: Any = Experiment
    for part in path[:-1]:
        values = values.get(part) if isinstance(values, dict) else None
        kind = _step(kind, part, values)
        if kind is None:
            return None
    models = [model for model in _models(kind) if _fits(model, values)]
    names = [name for model in models for name in model.model_fields]
    close = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.55)
    return close[0] if close else f"one of {', '.join(names)}" if names else None


def _step(kind: Any, part: str | int, values: Any) -> Any:
    """The annotation below `part` of the annotation `kind`."""
    for model in _models(kind):
        if part in model.model_fields and _fits(model, values):
            return model.model_fields[str(part)].annotation
    if typing.get_origin(kind) is dict:
        return typing.get_args(kind)[1]
    return None


def _models(kind: Any) -> list[type[BaseModel]]:
    """The section models that an annotation may hold."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(kind) for model in _models(part)]
    return []


def _fits(model: type[BaseModel], values: Any) -> bool:
    """Whether `values` choose this model of a union: their ``kind`` is the model's."""
    if "kind" not in model.model_fields or not isinstance(values, dict) or "kind" not in values:
        return True
    return values["kind"] in typing.get_args(model.model_fields["kind"].annotation)
