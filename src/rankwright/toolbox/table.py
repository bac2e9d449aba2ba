"""The table of an evaluation: its plain structure, and the same words for terminal, Markdown and HTML.

In comes a `Table` (what ``evaluate/table.json`` holds), out goes text. Nothing here computes a number; how the
numbers came about is `evaluate`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from rankwright.toolbox import metrics

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as Grid

LEVELS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
_NAMES = {"finetuned": "fine-tuned", "rrf": "rank fusion", "fused": "tuned fusion"}
_BLEND = "-blend"
_RETRIEVAL = "retrieval"
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


class Change(TypedDict):
    """A mean difference and its interval, without a test."""

    value: float
    low: float
    high: float


class GeneralCell(TypedDict):
    """An arm on the general collection: its mean with interval, and how far it is from `against` (None: it is that)."""

    arm: str
    mean: float
    low: float
    high: float
    change: Change | None


class GeneralTable(TypedDict):
    """Every arm on the collection `source`, in `metric`, held against the arm before fine-tuning.

    `beside` is the in-domain metric to show with it; the first of the table where that has no such row.
    """

    metric: str
    source: str
    queries: int
    against: str
    confidence: float
    bootstrap: int
    beside: str
    cells: list[GeneralCell]


class _Parts(TypedDict, total=False):
    general: GeneralTable


class Table(_Parts):
    """An evaluation's means and comparisons: plain values that JSON can carry. The first arm is the baseline.

    `general`, where that was measured, is what the arms are worth on a collection of another kind.
    """

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


class GeneralText(NamedTuple):
    """The second table in words: a row an arm, with cells in domain, in general, and the change from one arm."""

    title: str
    header: list[str]
    rows: list[tuple[str, list[CellText]]]
    legend: list[str]


class TableText(NamedTuple):
    """The whole table in words: what every renderer sets, and nothing else."""

    header: list[str]
    rows: list[tuple[str, list[CellText]]]
    legend: list[str]
    provenance: list[tuple[str, str]]
    general: GeneralText | None = None


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
    general = _general_text(table, table["general"]) if "general" in table else None
    return TableText(header, rows, _legend(table), list(table["provenance"].items()), general)


def terminal(table: Table) -> Group:
    """A rich renderable: table, legend, the general collection, provenance. Three arms stand beside the baseline;
    more go below.
    """
    from rich.console import Group
    from rich.text import Text

    words = in_words(table)
    shown: list[Any] = []
    for start in range(1, max(len(words.header) - 1, 2), _WIDE):
        places = [0, *range(start, min(start + _WIDE, len(words.header) - 1))]  # the baseline, and some arms
        header = [words.header[0], *(words.header[place + 1] for place in places)]
        shown.append(_grid(header, [(name, [cells[place] for place in places]) for name, cells in words.rows]))
    shown += [Text(line, style="dim") for line in words.legend]
    if words.general:
        shown += [Text(f"\n{words.general.title}", style="bold"), _grid(words.general.header, words.general.rows)]
        shown += [Text(line, style="dim") for line in words.general.legend]
    return Group(*shown, *(Text(f"{name}: {value}", style="dim") for name, value in words.provenance))


def _grid(header: Sequence[str], rows: Sequence[tuple[str, Sequence[CellText]]]) -> Grid:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    colours = {"up": "green", "down": "red", "": "default"}

    def text(cell: CellText) -> Text:
        if not cell.interval:
            return Text(cell.mean, style="bold")
        return Text.assemble((cell.mean, "bold"), (cell.stars, colours[cell.trend]), f"\n{cell.interval}")

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", leading=0)
    grid.add_column(Text(header[0]), no_wrap=True)
    for name in header[1:]:
        grid.add_column(Text(name))
    for name, cells in rows:
        grid.add_row(Text(name), *map(text, cells))
    return grid


def markdown(table: Table) -> str:
    """The table as GitHub's Markdown, its legend and its provenance below it; ends with a line break."""
    words = in_words(table)
    lines = [*_markdown_rows(words.header, words.rows), "", *(f"{_plain(line)}  " for line in words.legend)]
    if words.general:
        lines += ["", f"**{_plain(words.general.title)}**", ""]
        lines += _markdown_rows(words.general.header, words.general.rows)
        lines += ["", *(f"{_plain(line)}  " for line in words.general.legend)]
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


def _general_text(table: Table, general: GeneralTable) -> GeneralText:
    metrics_here = [row["metric"] for row in table["rows"]]
    row = table["rows"][metrics_here.index(general["beside"]) if general["beside"] in metrics_here else 0]
    inside = {cell["arm"]: cell for cell in row["cells"]}
    percent, before = f"{general['confidence'] * 100:g}%", arm_name(general["against"])
    rows = []
    for cell in general["cells"]:
        own = inside.get(cell["arm"])
        rows.append((arm_name(cell["arm"]), [_own(own), _own(cell), _change(cell["change"])]))
    legend = [
        f"[low, high]: {percent} interval of a mean, or of the difference from {before} "
        f"(paired bootstrap, {general['bootstrap']:,} resamples of the queries)."
    ]
    if _RETRIEVAL in (cell["arm"] for cell in general["cells"]):
        legend.append("In general, retrieval is BM25, whose candidates all arms rerank.")
    name = metrics.label(general["metric"])
    return GeneralText(
        f"In general ({general['source']}, {name}, {_count(general['queries'], 'query', 'queries')})",
        ["arm", f"in domain, {metrics.label(row['metric'])}", f"in general, {name}", f"change from {before}"],
        rows,
        legend,
    )


def _own(cell: Cell | GeneralCell | None) -> CellText:
    """A mean with its own interval; a dash for an arm that has none."""
    if cell is None:
        return CellText("–", "", "", "")
    return CellText(f"{cell['mean']:.4f}", "", f"[{cell['low']:.4f}, {cell['high']:.4f}]", "")


def _change(change: Change | None) -> CellText:
    if change is None:
        return CellText("–", "", "", "")
    trend = "up" if change["low"] > 0 else "down" if change["high"] < 0 else ""
    return CellText(_signed(change["value"]), "", interval(change["low"], change["high"]), trend)


def _count(number: int, noun: str, several: str = "") -> str:
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def _markdown_rows(header: Sequence[str], rows: Sequence[tuple[str, Sequence[CellText]]]) -> list[str]:
    lines = [_pipes(header), _pipes(["---", *("---:" for _ in header[1:])], raw=True)]
    return lines + [_pipes([name, *(_markdown_cell(cell) for cell in cells)], raw=True) for name, cells in rows]


def _markdown_cell(cell: CellText) -> str:
    return f"{cell.mean}{_plain(cell.stars)}" + (f"<br>{_plain(cell.interval)}" if cell.interval else "")


def _pipes(cells: Sequence[str], *, raw: bool = False) -> str:
    return "| " + " | ".join(cells if raw else [_plain(cell) for cell in cells]) + " |"


_MARKDOWN: Mapping[int, str] = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>|"} | {"\n": " "})


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return text.translate(_MARKDOWN)
