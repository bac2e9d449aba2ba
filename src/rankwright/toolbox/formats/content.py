"""What a source holds, as a hash: so that a box is made anew when its source's content changes, never by its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from rankwright.core import content_hash
from rankwright.toolbox.formats import docstrings, seealso

_BUILT = {"seealso": seealso.versions, "docstrings": docstrings.versions}
_READ = (".jsonl", ".json", ".gz", ".parquet", ".csv", ".tsv", ".txt", ".qrels")
"""What ends the names of files that a source may be read from; TREC's ``qrels.SPLIT`` besides."""


def content(source: str) -> str:
    """A hash of what ``KIND:LOCATION`` holds: every byte of the local files that it may be read from, the versions of
    the packages that collections are built from, the commit of a hub data set (of the copy that is here when the hub
    cannot be asked).

    What else lies in a folder does not count: a README, runs of other tools, the run folder itself.
    """
    kind, _, location = source.partition(":")
    if kind in _BUILT:
        return content_hash([location, json.dumps(_BUILT[kind](location), sort_keys=True)])
    if kind == "hub":
        return content_hash([location, _commit(location)])
    return file_content(location) if location else content_hash([source])  # not the working folder


def file_content(path: str) -> str:
    """A hash of a file, or of the files in a folder that a source may be read from, with their names.

    What is not there has a hash too.
    """
    place = Path(path).expanduser()
    files = sorted(filter(_is_read, _near(place))) if place.is_dir() else [place]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size if file.is_file() else "missing"  # says where a file ends and the next begins
        digest.update(f"{file.relative_to(place)}\0{size}\0".encode())
        if file.is_file():
            with file.open("rb") as opened:
                while block := opened.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def _near(folder: Path) -> Iterator[Path]:
    """What lies in a folder, and in those below it that sources have: no reader looks deeper."""
    return (path for below in ("*", "data/*", "qrels/*") for path in folder.glob(below))


def _is_read(path: Path) -> bool:
    named = path.suffix in _READ or path.name.startswith("qrels")
    return named and not path.name.startswith(".") and path.is_file()


def _commit(location: str) -> str:
    from huggingface_hub import HfApi

    name, _, _ = location.partition("@")
    try:
        return str(HfApi().dataset_info(name, timeout=10).sha)
    except Exception:  # offline, gone, or private: the reader says what is wrong, with a hint
        return _commit_here(name)


def _commit_here(name: str) -> str:
    """The commit of the copy in the hub's cache, which is what would be read; "unknown" without one."""
    from huggingface_hub.constants import HF_HUB_CACHE

    main = Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / "main"
    return main.read_text(encoding="utf-8").strip() if main.is_file() else "unknown"
