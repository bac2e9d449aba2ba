"""What long work says while it goes on: progress bars and remarks, on stderr, never on stdout.

On a terminal the bar moves; elsewhere (a log, CI) a line is written every half minute. Within
`silenced()` nothing is said: for `--json`, and for use as a library.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_console = Console(stderr=True, highlight=False, soft_wrap=True)
_SECONDS_BETWEEN_LINES = 30.0

Advance = Callable[[int], None]


@contextlib.contextmanager
def silenced(silent: bool = True) -> Iterator[None]:
    """Say nothing (or, not `silent`, speak) within the block; then as before."""
    before, _console.quiet = _console.quiet, silent
    try:
        yield
    finally:
        _console.quiet = before


def hush() -> None:
    """Say nothing from now on: for a process that works beside others."""
    _console.quiet = True


def say(message: str) -> None:
    """One remark, for a choice that was made by itself or a thing worth knowing. Takes plain text."""
    _console.print(f"  {escape(message)}")


def stage_line(stage: str, action: str, why: str) -> None:
    """One line of the walk: ``mine            runs    mine.negatives: 7 -> 3``."""
    colour = {"reused": "dim", "done": "green"}.get(action, "bold")
    _console.print(f"[bold]{escape(stage):<18}[/] [{colour}]{escape(action):<8}[/] {escape(why)}")


@contextlib.contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Show progress through `total` things called `unit`; yields the function that advances it."""
    if _console.quiet or total == 0:
        yield lambda count: None
    elif _console.is_terminal:
        with _moving() as progress:
            task = progress.add_task(escape(what), total=total, unit=unit, rate="")
            started = time.monotonic()

            def advance(count: int) -> None:
                progress.advance(task, count)
                done, seconds = progress.tasks[0].completed, time.monotonic() - started
                progress.update(task, rate=f"{done / seconds:,.0f} {unit}/s" if seconds > 0.5 else "")

            yield advance
    else:
        yield _lines(what, total, unit)


def _moving() -> Progress:
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=_console,
        transient=True,
    )


def _lines(what: str, total: int, unit: str) -> Advance:
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            say(f"{what}: {done:,} of {total:,} {unit}, {done / (now - started):,.0f} {unit}/s")

    return advance
