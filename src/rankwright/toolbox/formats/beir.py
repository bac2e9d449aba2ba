"""`beir:FOLDER`: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, read and written.

A collection written here and read again is the same, as long as each of its queries is judged. This is how
the data stage is stored. It does not know what the collection is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rankwright.core import SPLITS, Collection, Qrels
from rankwright.errors import DataError
from rankwright.toolbox.formats.files import existing, written_whole
from rankwright.toolbox.formats.judged import assemble, read_json_texts, read_judgements
from rankwright.toolbox.formats.source import Notes, Source, Splits

USUAL = Splits()
_HEADER = "query-id\tcorpus-id\tscore\n"


def read(location: str | Path, splits: Splits = USUAL) -> Source:
    """Read a BEIR folder. A document's text is its title, a space and its text.

    Raises:
        DataError: a missing file or split, lines that cannot be read, judgements of unknown ids.
    """
    folder = existing(location, folder=True)
    wanted = ("corpus.jsonl", "queries.jsonl", "qrels")
    if missing := [name for name in wanted if not (folder / name).exists()]:
        hint = "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"
        raise DataError(f"{' and '.join(missing)} missing", where=str(folder), hint=hint)
    found = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    notes = Notes()
    qrels = {
        split: read_judgements(folder / "qrels" / f"{name}.tsv", notes, header=True)
        for split, name in splits.resolve(found, str(folder / "qrels")).items()
    }
    documents = read_json_texts(folder / "corpus.jsonl", notes)
    queries = read_json_texts(folder / "queries.jsonl", notes)
    return Source(assemble(documents, queries, qrels, notes), notes.repairs())


def write(collection: Collection, folder: str | Path) -> None:
    """Write a BEIR folder, each file whole or not at all; qrels of splits that the collection lacks are removed.

    Raises:
        DataError: an id with a tab or a line break, which qrels cannot hold.
        DiskError: no space or no permission.
    """
    folder = Path(folder)
    _refuse_tabs(collection)
    _write_texts(folder / "corpus.jsonl", collection.documents, title=True)
    _write_texts(folder / "queries.jsonl", collection.queries, title=False)
    for split in SPLITS:
        path = folder / "qrels" / f"{split}.tsv"
        if split in collection.qrels:
            _write_qrels(path, collection.qrels[split])
        else:
            path.unlink(missing_ok=True)


def _write_texts(path: Path, texts: Mapping[str, str], *, title: bool) -> None:
    with written_whole(path) as file:
        for name, text in texts.items():
            row = {"_id": name, "title": "", "text": text} if title else {"_id": name, "text": text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_qrels(path: Path, qrels: Qrels) -> None:
    with written_whole(path) as file:
        file.write(_HEADER)
        for query, grades in qrels.items():
            file.writelines(f"{query}\t{document}\t{grade}\n" for document, grade in grades.items())


def _refuse_tabs(collection: Collection) -> None:
    for name in (*collection.queries, *collection.documents):
        if "\t" in name or "\n" in name or "\r" in name:
            raise DataError(f"the id {name!r} holds a tab or a line break, which qrels files cannot hold")
