"""TREC's files: runs and qrels of any engine, and `trec:FOLDER`, a collection laid out with them.

In and out: `Run` and `Qrels` values, and a folder with collection.tsv (or corpus.tsv, corpus.jsonl),
queries.tsv (or queries.SPLIT.tsv, queries.jsonl) and qrels.SPLIT.txt (or qrels/SPLIT.txt). It does not know
which engine made a run, nor for what.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from rankwright.core import Qrels, Run
from rankwright.errors import DataError
from rankwright.toolbox.formats.files import existing, lines, written_whole
from rankwright.toolbox.formats.judged import assemble, read_json_texts, read_judgements, read_tab_texts
from rankwright.toolbox.formats.source import Notes, Source, Splits
from rankwright.toolbox.progress import say

USUAL = Splits()
_DOCUMENTS = ("collection.tsv", "corpus.tsv", "corpus.jsonl", "collection.jsonl")
_QRELS_SUFFIXES = (".txt", ".tsv", ".qrels")
_DISAGREE = "queries whose ranks disagree with their scores (the scores decide)"


def read(location: str | Path, splits: Splits = USUAL) -> Source:
    """Read a TREC folder.

    Raises:
        DataError: a missing file or split, lines that cannot be read, judgements of unknown ids.
    """
    folder = existing(location, folder=True)
    corpus = next((folder / name for name in _DOCUMENTS if (folder / name).is_file()), None)
    if corpus is None:
        raise DataError("no documents", where=str(folder), hint=f"a TREC folder holds one of {', '.join(_DOCUMENTS)}")
    files = _qrels_files(folder)
    chosen = splits.resolve(sorted(files), str(folder))
    notes = Notes()
    qrels = {split: read_judgements(files[name], notes, header=False) for split, name in chosen.items()}
    documents = _read_texts(corpus, notes)
    queries: dict[str, str] = {}
    for path in _query_files(folder, list(chosen.values())):
        _unite(queries, _read_texts(path, notes), path, notes)
    return Source(assemble(documents, queries, qrels, notes), notes.repairs())


def read_run(path: str | Path, notes: Notes | None = None) -> Run:
    """Read a run: ``query Q0 document rank score tag`` in each line, split at tabs or at white space.

    The scores order the hits; queries whose ranks say otherwise are counted in `notes`, or said aloud.

    Raises:
        DataError: wrong columns, ranks or scores that are no numbers, a document twice for one query.
    """
    path, account = Path(path), notes or Notes()
    scores: dict[str, dict[str, float]] = {}
    ranks: dict[str, dict[str, int]] = {}
    for number, line in lines(path, account):
        columns = [column.strip() for column in line.split("\t")] if line.count("\t") == 5 else line.split()
        if problem := _run_problem(columns, scores):
            account.problem(f"{path}:{number}: {problem}")
            continue
        query, _, document, rank, score, _ = columns
        scores.setdefault(query, {})[document] = float(score)
        ranks.setdefault(query, {})[document] = int(rank)
    account.refuse("lines of a run cannot be read", "a run's line is: query Q0 document rank score tag")
    for query, by_rank in ranks.items():
        ordered = [scores[query][document] for document in sorted(by_rank, key=by_rank.__getitem__)]
        if any(lower > upper for upper, lower in itertools.pairwise(ordered)):
            account.repair(_DISAGREE, f"{path}: {query}")
    if notes is None:
        for repair in account.repairs():
            say(f"{path}: {repair.count} {repair.what}")
    return Run.from_scores(scores)


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Write a run, ranks from 1, scores to the last bit; a query without hits leaves no line.

    Columns are divided by tabs, which TREC's own tools take for the white space that they want, so that ids
    may hold spaces.

    Raises:
        DataError: a score that is not finite.
        DiskError: no space or no permission; an older file stays as it was.
    """
    word = "_".join(tag.split()) or "run"
    with written_whole(Path(path)) as file:
        for query, hits in run.rankings.items():
            for rank, (document, score) in enumerate(hits, start=1):
                if not math.isfinite(score):
                    raise DataError(f"query {query}, document {document}: the score is {score}", where=str(path))
                file.write(f"{query}\tQ0\t{document}\t{rank}\t{float(score)!r}\t{word}\n")


def as_read(run: Run) -> Run:
    """What `read_run` gives of a run that `write_run` has written."""
    found = {query: tuple((one, float(score)) for one, score in hits) for query, hits in run.rankings.items()}
    return Run({query: hits for query, hits in found.items() if hits})


def read_qrels(path: str | Path, notes: Notes | None = None) -> Qrels:
    """Read qrels of 4 columns (``query 0 document grade``) or 3; repairs are counted in `notes`, or said aloud.

    Raises:
        DataError: wrong columns, or grades that are no whole numbers.
    """
    account = notes or Notes()
    qrels = read_judgements(Path(path), account, header=False)
    account.refuse("lines of qrels cannot be read", "a line is: query 0 document grade")
    if notes is None:
        for repair in account.repairs():
            say(f"{path}: {repair.count} {repair.what}")
    return qrels


def read_texts(path: str | Path) -> dict[str, str]:
    """Read texts by id, from ``id<TAB>text`` lines or from JSONL; repairs are said aloud.

    Raises:
        DataError: a missing file, or lines that cannot be read.
    """
    account = Notes()
    found = _read_texts(existing(path, folder=False), account)
    account.refuse("lines of texts cannot be read", "a line is: id TAB text")
    for repair in account.repairs():
        say(f"{path}: {repair.count} {repair.what}")
    return found


def write_qrels(path: str | Path, qrels: Qrels) -> None:
    """Write qrels in TREC's 4 columns, whole or not at all; a query without judgements leaves no line."""
    with written_whole(Path(path)) as file:
        for query, grades in qrels.items():
            file.writelines(f"{query}\t0\t{document}\t{grade}\n" for document, grade in grades.items())


def _run_problem(columns: list[str], scores: dict[str, dict[str, float]]) -> str | None:
    if len(columns) != 6:
        return f"6 columns are expected, not {len(columns)}"
    query, _, document, rank, score, _ = columns
    if document in scores.get(query, ()):
        return f"document {document} stands twice for query {query}"
    try:
        int(rank)
        finite = math.isfinite(float(score))
    except ValueError:
        return f"rank and score must be numbers, not {rank!r} and {score!r}"
    return None if finite else f"the score is {score}"


def _read_texts(path: Path, notes: Notes) -> dict[str, str]:
    return read_json_texts(path, notes) if path.suffix == ".jsonl" else read_tab_texts(path, notes)


def _qrels_files(folder: Path) -> dict[str, Path]:
    """Split -> file, of ``qrels.SPLIT.txt`` and ``qrels/SPLIT.txt``; a bare ``qrels.txt`` is the split `qrels`."""
    candidates = [*folder.glob("qrels.*"), *folder.glob("qrels/*")]
    files: dict[str, Path] = {}
    for path in sorted(path for path in candidates if path.suffix in _QRELS_SUFFIXES and path.is_file()):
        split = path.stem.removeprefix("qrels.")
        if split in files:
            raise DataError(f"two qrels files for {split}: {files[split].name} and {path.name}", where=str(folder))
        files[split] = path
    return files


def _query_files(folder: Path, names: list[str]) -> list[Path]:
    """The files with queries: the one for all splits, and those of the wanted splits."""
    wanted = ["queries", *(f"queries.{name}" for name in names)]
    paths = [folder / f"{stem}{suffix}" for stem in wanted for suffix in (".tsv", ".jsonl")]
    if not any(path.is_file() for path in paths):
        raise DataError("no queries", where=str(folder), hint="a TREC folder holds queries.tsv or queries.SPLIT.tsv")
    return [path for path in paths if path.is_file()]


def _unite(queries: dict[str, str], more: dict[str, str], path: Path, notes: Notes) -> None:
    for name, text in more.items():
        if queries.setdefault(name, text) != text:
            notes.problem(f"{path}: query {name} has another text in another file")
