"""What a source holds, as a hash: so that a box is made anew when its source's content changes, never by its name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rankwright.core import content_hash
from rankwright.toolbox.formats import docstrings, seealso

_BUILT = {"seealso": seealso.versions, "docstrings": docstrings.versions}


def content(source: str) -> str:
    """A hash of what ``KIND:LOCATION`` holds: every byte of local files, the versions of the packages that
    collections are built from, the commit of a hub data set (its name, when the hub cannot be asked).
    """
    kind, _, location = source.partition(":")
    if kind in _BUILT:
        return content_hash([location, json.dumps(_BUILT[kind](location), sort_keys=True)])
    if kind == "hub":
        return content_hash([location, _commit(location)])
    return file_content(location) if location else content_hash([source])  # not the working folder


def file_content(path: str) -> str:
    """A hash of a file, or of all files below a folder with their names. What is not there has a hash too."""
    place = Path(path).expanduser()
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size if file.is_file() else "missing"  # says where a file ends and the next begins
        digest.update(f"{file.relative_to(place)}\0{size}\0".encode())
        if file.is_file():
            with file.open("rb") as opened:
                while block := opened.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def _commit(location: str) -> str:
    from huggingface_hub import HfApi

    name, _, _ = location.partition("@")
    try:
        return str(HfApi().dataset_info(name, timeout=10).sha)
    except Exception:  # offline, gone, or private: the reader says what is wrong, with a hint
        return "unknown"
