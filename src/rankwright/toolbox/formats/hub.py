"""`hub:NAME` or `hub:NAME@CONFIG`: rows (query, positive, negative) of a Hugging Face data set.

The `datasets` package does the loading and the caching; the rows are understood as in `rows`. It does not know any
data set by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rankwright.errors import DataError, first_line
from rankwright.toolbox.formats.rows import Numbered, build, parse
from rankwright.toolbox.formats.source import Notes, Source, Splits


def read(location: str, splits: Splits, *, dedupe: bool = True) -> Source:
    """Load a data set and read its rows.

    Raises:
        DataError: no such data set, no network, missing splits or columns, and rows that cannot be read.
    """
    name, _, config = location.partition("@")
    loaded = _load(name, config or None)
    notes = Notes()
    rows = {
        split: list(parse(_numbered(loaded[own], f"hub:{location} {own}"), notes))
        for split, own in splits.resolve(list(loaded), f"hub:{location}").items()
    }
    notes.refuse("rows cannot be read")
    return Source(build(rows, dedupe=dedupe, notes=notes), notes.repairs())


def _load(name: str, config: str | None) -> Mapping[str, Any]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP library's own error: a proxy and a timeout raise it bare.
    http_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    try:
        loaded = datasets.load_dataset(name, config)
    except (OSError, ValueError, http_error, datasets.exceptions.DatasetsError) as error:
        hint = "without network: save the splits as Parquet or JSONL in a folder and use rows:FOLDER"
        raise DataError(f"cannot load the data set {name!r} ({first_line(error)})", hint=hint) from None
    if not isinstance(loaded, Mapping):
        raise DataError(f"the data set {name!r} has no splits", hint="save them to a folder and use rows:FOLDER")
    return loaded


def _numbered(rows: Any, where: str) -> Numbered:
    for number, columns in enumerate(rows):
        yield f"{where} row {number}", columns
