"""The table of what the order does to the answers: its plain structure, and its words for terminal, Markdown, HTML.

In comes a `RagTable` (what the run folder keeps as JSON), out go texts: arms are rows, metrics are columns. Nothing
here computes a number; how they came about is `rooms.rag`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypedDict

from rankwright.toolbox.table import Change, arm_name, interval

Kind = Literal["context", "model"]

LABELS: Mapping[str, str] = {
    "id_precision": "precision",
    "id_recall": "recall",
    "average_precision": "ranked precision",
    "hit": "hit",
    "repeated": "repeated",
    "tokens": "tokens",
    "text_precision": "text precision",
    "text_recall": "text recall",
    "context_precision": "context precision",
    "context_recall": "context recall",
    "faithfulness": "faithfulness",
    "answer_relevancy": "answer relevancy",
}
"""What a column is headed with."""

MEANINGS: Mapping[str, str] = {
    "id_precision": "share of the passages sent that are labelled relevant",
    "id_recall": "share of the relevant passages that are sent",
    "average_precision": "mean precision down to each relevant passage sent: higher where they stand first",
    "hit": "share of queries with a relevant passage among those sent",
    "repeated": "share of the passages sent that say what one before them says (lower is better)",
    "tokens": "tokens of the passages sent (lower is cheaper)",
    "text_precision": "ranked precision, where a passage counts if its text is like that of a relevant one",
    "text_recall": "share of the relevant passages that a passage sent is like",
    "context_precision": "ranked precision by the model's verdicts",
    "context_recall": "share of the reference answer's statements that the passages support",
    "faithfulness": "share of the answer's statements that the passages support",
    "answer_relevancy": "how near to the query are questions that the answer answers",
}
"""What a column measures, in a line."""

_WIDE = 4  # columns in one grid


class RagCell(TypedDict):
    """An arm in a column: its mean over the `judged` of its `of` rows, and how far that is from the first arm's.

    `worst` and `best` are the mean with every failed row as 0 and as 1. `mean` is None where no row was judged, and
    `difference` is None for the first arm, in an unusable column, and with fewer than two rows that both arms have.
    """

    arm: str
    mean: float | None
    judged: int
    of: int
    worst: float | None
    best: float | None
    difference: Change | None


class RagColumn(TypedDict):
    """One metric; a cell for each arm, in their order. Not `usable`: too few rows of one of its arms were judged."""

    metric: str
    kind: Kind
    usable: bool
    cells: list[RagCell]


class RagTable(TypedDict):
    """What the order does to the answers, as values that JSON can carry. The first arm is the baseline.

    `queries` were measured by labels, `sampled` of them (0: no model was asked) judged by `model`. `coverage` is the
    share of rows below which a column is unusable; `spent` what asking took.
    """

    arms: list[str]
    k: int
    queries: int
    sampled: int
    model: str | None
    columns: list[RagColumn]
    coverage: float
    confidence: float
    resamples: int
    notes: list[str]
    spent: dict[str, int]


class RagText(NamedTuple):
    """What a cell says: ``0.5263``; ``48/50, 0.512 to 0.552``; ``[+0.0123, +0.0456]``. The last two may be empty.

    `trend` is ``up`` (better) or ``down`` (worse) where the interval of the difference leaves out 0, and empty
    elsewhere and for tokens, of which more is neither.
    """

    mean: str
    coverage: str
    interval: str
    trend: str


class RagBlock(NamedTuple):
    """Some columns side by side: ``header`` is ``arm`` and the columns' names, each row an arm and its cells."""

    title: str
    header: list[str]
    rows: list[tuple[str, list[RagText]]]


class RagWords(NamedTuple):
    """The whole table in words: what every renderer sets. `meanings` are (column, what it measures)."""

    blocks: list[RagBlock]
    legend: list[str]
    meanings: list[tuple[str, str]]


def in_words(table: RagTable) -> RagWords:
    """The texts of the blocks (columns from labels, then those that a model judged), the legend and the meanings."""
    blocks = []
    for kind in ("context", "model"):
        columns = [column for column in table["columns"] if column["kind"] == kind]
        for start in range(0, len(columns), _WIDE):
            blocks += [_block(table, kind, columns[start : start + _WIDE])]
    meanings = [(_label(column), MEANINGS[column["metric"]]) for column in table["columns"]]
    return RagWords(blocks, _legend(table), meanings)


def lines(table: RagTable) -> list[str]:
    """The table for a terminal: at most four columns beside the arms, intervals below the means, the legend last."""
    words, told = in_words(table), list[str]()
    for place, block in enumerate(words.blocks):
        if not place or block.title != words.blocks[place - 1].title:
            told += [block.title]
        told += [*_grid(block), ""]
    return [*told, *words.legend]


def markdown(table: RagTable) -> str:
    """The table as GitHub's Markdown, its legend and what the columns measure below it; ends with a line break."""
    words, told = in_words(table), list[str]()
    for block in words.blocks:
        told += [f"**{_plain(block.title)}**", "", _pipes([_plain(name) for name in block.header])]
        told.append(_pipes(["---", *("---:" for _ in block.header[1:])]))
        told += [_pipes([_plain(arm), *map(_markdown_cell, cells)]) for arm, cells in block.rows] + [""]
    told += [f"{_plain(line)}  " for line in words.legend]
    told += ["", *(f"- {_plain(name)}: {_plain(meaning)}" for name, meaning in words.meanings)]
    return "\n".join(told) + "\n"


def _block(table: RagTable, kind: str, columns: list[RagColumn]) -> RagBlock:
    if kind == "context":
        title = f"Contexts: the first {table['k']:,} passages of {table['queries']:,} queries, by the labels"
    else:
        title = f"Answers: {table['sampled']:,} of these queries, judged by {table['model'] or 'a model'}"
    header = ["arm", *(_label(column) + ("" if column["usable"] else " (unusable)") for column in columns)]
    rows = [
        (arm_name(arm), [_text(column, column["cells"][place]) for column in columns])
        for place, arm in enumerate(table["arms"])
    ]
    return RagBlock(title, header, rows)


def _text(column: RagColumn, cell: RagCell) -> RagText:
    mean = "–" if cell["mean"] is None else _number(column, cell["mean"])
    coverage = f"{cell['judged']:,}/{cell['of']:,}" if column["kind"] == "model" or cell["judged"] < cell["of"] else ""
    if cell["judged"] < cell["of"] and cell["worst"] is not None and cell["best"] is not None:
        coverage += f", {cell['worst']:.3f} to {cell['best']:.3f}"
    change = cell["difference"]
    if change is None:
        return RagText(mean, coverage, "", "")
    if column["metric"] == "tokens":
        return RagText(mean, coverage, f"[{_whole(change['low'])}, {_whole(change['high'])}]", "")
    good, bad = ("down", "up") if column["metric"] == "repeated" else ("up", "down")
    trend = good if change["low"] > 0 else bad if change["high"] < 0 else ""
    return RagText(mean, coverage, interval(change["low"], change["high"]), trend)


def _label(column: RagColumn) -> str:
    return LABELS[column["metric"]]


def _number(column: RagColumn, value: float) -> str:
    return f"{value:,.0f}" if column["metric"] == "tokens" else f"{value:.4f}"


def _whole(value: float) -> str:
    """A difference in tokens; what rounds to zero has no sign."""
    return f"{value:+,.0f}" if round(value) else "0"


def _legend(table: RagTable) -> list[str]:
    said = []
    if len(table["arms"]) > 1:
        said.append(
            f"[low, high]: {table['confidence'] * 100:g}% interval of the difference from "
            f"{arm_name(table['arms'][0])} (paired bootstrap, {table['resamples']:,} resamples of the queries)."
        )
    if any(column["kind"] == "model" for column in table["columns"]):
        said.append(
            "48/50: that many rows were judged, of so many. Where some failed, two numbers beside it say what the "
            "mean is with every failed row as 0, and as 1."
        )
    if unusable := [_label(column) for column in table["columns"] if not column["usable"]]:
        said.append(
            f"Unusable, fewer than {table['coverage'] * 100:g}% of an arm's rows judged: {', '.join(unusable)}."
        )
    if table["spent"]:
        said.append("Asked: " + ", ".join(f"{number:,} {name}" for name, number in table["spent"].items()) + ".")
    return [*said, *table["notes"]]


def _grid(block: RagBlock) -> list[str]:
    """The block in columns: an arm takes as many lines as its fullest cell."""
    shown = [[[name] for name in block.header]]
    shown += [
        [[arm], *([part for part in (cell.mean, cell.coverage, cell.interval) if part] for cell in cells)]
        for arm, cells in block.rows
    ]
    widths = [max(len(part) for row in shown for part in row[column]) for column in range(len(block.header))]
    told = []
    for row in shown:
        for line in range(max(map(len, row))):
            parts = [cell[line] if line < len(cell) else "" for cell in row]
            told.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
    return [told[0], "-" * max(map(len, told)), *told[1:]]


def _markdown_cell(cell: RagText) -> str:
    return "<br>".join(_plain(part) for part in (cell.mean, cell.coverage, cell.interval) if part)


def _pipes(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>|"} | {"\n": " "})


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return text.translate(_MARKDOWN)
