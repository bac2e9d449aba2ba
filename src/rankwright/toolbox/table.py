"""The table of an evaluation: its plain structure, and the same words for terminal, Markdown and HTML.

In comes a `Table` (what ``evaluate/table.json`` holds), out goes text. Nothing here computes a number; how the
numbers came about is `evaluate`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from rankwright.toolbox import metrics

if TYPE_CHECKING:
    from rich.console import Group

LEVELS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
_NAMES = {"finetuned": "fine-tuned", "rrf": "rank fusion", "fused": "tuned fusion"}
_BLEND = "-blend"
_WIDE = 3  # arms beside the baseline in one grid


class Difference(TypedDict):
    """An arm's mean minus that of the arm it is held against, over the same queries."""

    value: float
    low: float
    high: float
    p: float
    p_holm: float
    stars: str


class Cell(TypedDict):
    """One arm in one metric: its mean, the interval of that mean, and `versus`: other arm -> Difference."""

    arm: str
    mean: float
    low: float
    high: float
    versus: dict[str, Difference]


class Row(TypedDict):
    """One metric; a cell for each arm, in the order of `Table.arms`."""

    metric: str
    cells: list[Cell]


class Table(TypedDict):
    """An evaluation's means and comparisons: plain values that JSON can carry. The first arm is the baseline."""

    arms: list[str]
    rows: list[Row]
    queries: int
    split: str
    confidence: float
    bootstrap: int
    permutations: int
    seed: int
    notes: list[str]
    provenance: dict[str, str]


class CellText(NamedTuple):
    """What a cell says: ``0.5263``, ``***``, ``[+0.0123, +0.0456]`` (empty for the baseline).

    `trend` is ``up`` or ``down`` where the difference from the baseline has stars, and empty elsewhere.
    """

    mean: str
    stars: str
    interval: str
    trend: str


class TableText(NamedTuple):
    """The whole table in words: what every renderer sets, and nothing else."""

    header: list[str]
    rows: list[tuple[str, list[CellText]]]
    legend: list[str]
    provenance: list[tuple[str, str]]


def stars(p: float) -> str:
    """``***`` below .001, ``**`` below .01, ``*`` below .05, else nothing."""
    return next((mark for level, mark in LEVELS if p < level), "")


def arm_name(arm: str) -> str:
    """An arm's name as people read it: ``finetuned`` is fine-tuned, ``finetuned-blend`` is fine-tuned, blended."""
    if arm.endswith(_BLEND):
        return f"{arm_name(arm.removesuffix(_BLEND))}, blended"
    return _NAMES.get(arm, arm)


def in_words(table: Table) -> TableText:
    """The texts of header, rows, legend and provenance."""
    baseline = table["arms"][0]
    rows = [
        (metrics.label(row["metric"]), [_cell_text(cell, baseline) for cell in row["cells"]]) for row in table["rows"]
    ]
    header = ["metric", arm_name(baseline), *(f"+ {arm_name(arm)}" for arm in table["arms"][1:])]
    return TableText(header, rows, _legend(table), list(table["provenance"].items()))


def terminal(table: Table) -> Group:
    """A rich renderable: table, legend, provenance. Three arms stand beside the baseline; more go below."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    words = in_words(table)
    colours = {"up": "green", "down": "red", "": "default"}

    def text(cell: CellText) -> Text:
        if not cell.interval:
            return Text(cell.mean, style="bold")
        return Text.assemble((cell.mean, "bold"), (cell.stars, colours[cell.trend]), f"\n{cell.interval}")

    grids = []
    for start in range(1, max(len(words.header) - 1, 2), _WIDE):
        shown = [0, *range(start, min(start + _WIDE, len(words.header) - 1))]  # the baseline, and some arms
        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", leading=0)
        grid.add_column(Text(words.header[0]), no_wrap=True)
        for place in shown:
            grid.add_column(Text(words.header[place + 1]))
        for name, cells in words.rows:
            grid.add_row(Text(name), *(text(cells[place]) for place in shown))
        grids.append(grid)
    notes = [Text(line, style="dim") for line in words.legend]
    notes += [Text(f"{name}: {value}", style="dim") for name, value in words.provenance]
    return Group(*grids, *notes)


def markdown(table: Table) -> str:
    """The table as GitHub's Markdown, its legend and its provenance below it; ends with a line break."""
    words = in_words(table)
    lines = [_pipes(words.header), _pipes(["---", *("---:" for _ in words.header[1:])], raw=True)]
    for name, cells in words.rows:
        lines.append(_pipes([name, *(_markdown_cell(cell) for cell in cells)], raw=True))
    lines += ["", *(f"{_plain(line)}  " for line in words.legend)]
    if words.provenance:
        lines += ["", *(f"- {_plain(name)}: {_plain(value)}" for name, value in words.provenance)]
    return "\n".join(lines) + "\n"


def _cell_text(cell: Cell, baseline: str) -> CellText:
    difference = cell["versus"].get(baseline)
    if difference is None:
        return CellText(f"{cell['mean']:.4f}", "", "", "")
    trend = ("up" if difference["value"] > 0 else "down") if difference["stars"] else ""
    return CellText(f"{cell['mean']:.4f}", difference["stars"], interval(difference["low"], difference["high"]), trend)


def interval(low: float, high: float) -> str:
    """``[+0.0123, +0.0456]``; what rounds to zero has no sign."""
    return f"[{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    text = f"{value:+.4f}"
    return "0.0000" if float(text) == 0 else text


def _legend(table: Table) -> list[str]:
    baseline, *arms = table["arms"]
    lines = [f"Means over {table['queries']:,} {table['split']} queries."]
    if arms:
        percent = f"{table['confidence'] * 100:g}%"
        lines += [
            f"[low, high]: {percent} interval of the difference from {arm_name(baseline)} "
            f"(paired bootstrap, {table['bootstrap']:,} resamples of the queries).",
            f"* p < .05, ** p < .01, *** p < .001: differs from {arm_name(baseline)} (paired randomisation test, "
            f"{table['permutations']:,} permutations, Holm over the {_count(len(arms), 'arm')} of a row).",
        ]
        if "base" in arms and baseline != "base":
            later = arms[arms.index("base") + 1 :]
            lines += [_against_base(table, arm) for arm in later if not arm.endswith(_BLEND)]
    return [*lines, *table["notes"]]


def _against_base(table: Table, arm: str) -> str:
    """``fine-tuned against base: above in MRR@10***, nDCG@10**; no difference shown in 6 metrics.``"""
    found: dict[str, list[str]] = {"above": [], "below": []}
    for row in table["rows"]:
        difference = next(cell for cell in row["cells"] if cell["arm"] == arm)["versus"]["base"]
        if difference["stars"]:
            where = "above" if difference["value"] > 0 else "below"
            found[where].append(f"{metrics.label(row['metric'])}{difference['stars']}")
    parts = [f"{where} in {', '.join(names)}" for where, names in found.items() if names]
    if open_rows := len(table["rows"]) - sum(map(len, found.values())):
        parts.append(f"no difference shown in {_count(open_rows, 'metric')}")
    return f"{arm_name(arm)} against base (same test): {'; '.join(parts)}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _markdown_cell(cell: CellText) -> str:
    return f"{cell.mean}{_plain(cell.stars)}" + (f"<br>{_plain(cell.interval)}" if cell.interval else "")


def _pipes(cells: Sequence[str], *, raw: bool = False) -> str:
    return "| " + " | ".join(cells if raw else [_plain(cell) for cell in cells]) + " |"


_MARKDOWN: Mapping[int, str] = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>|"} | {"\n": " "})


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return text.translate(_MARKDOWN)
