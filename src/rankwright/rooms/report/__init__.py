"""One self-contained HTML page: whether to ship, why, and the queries that show it.

In comes a ReportView of plain values, out goes the page as a string: no network, no fonts, every text escaped.
It does not know the run folder, nor how anything was computed, save the metric that it gives query by query.
Where a chart's marks stand is `toolbox.charts`' business, what they look like the templates'.

    view.py     what the page is given
    parts.py    verdict, result, why, recipe, merging, curves
    queries.py  query by query, and the explorer
"""

from __future__ import annotations

from pathlib import Path

from rankwright.rooms.report import parts
from rankwright.rooms.report.queries import query_view
from rankwright.rooms.report.view import ReportView
from rankwright.toolbox.ragtable import in_words as rag_in_words
from rankwright.toolbox.table import in_words

__all__ = ["ReportView", "report"]


def report(view: ReportView) -> str:
    """The page, as HTML. The same view gives the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("page.html.j2").render(
        title=view.title,
        words=in_words(view.table),
        verdict=parts.verdict(view.verdict),
        headline=parts.headline(view.table),
        rag=rag_in_words(view.rag) if view.rag else None,
        means=parts.mean_plots(view.table),
        ladder=parts.ladder(view.ladder),
        findings=parts.findings(view.findings),
        blends=[parts.blend(arm, chosen) for arm, chosen in view.blends.items()],
        recipes=[parts.recipe(name, found) for name, found in view.recipes.items()],
        sweep=parts.sweep(view.sweep),
        trainings=[parts.training(name, log) for name, log in view.trainings.items()],
        distributions=parts.distributions(view),
        queries=query_view(view),
        data_lines=view.data_lines,
        seconds=[(stage, _duration(seconds)) for stage, seconds in view.seconds.items()],
        total=_duration(sum(view.seconds.values())),
    )


def _duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
