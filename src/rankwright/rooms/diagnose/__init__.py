"""Why does reranking hurt? Every check H1 to H16 on one arm, in the order in which to read them, and the ladder.

In: a Case of plain values. Out: a Diagnosis. It does not know the run folder, nor which model scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.core import Qrels, Run, relevant
from rankwright.errors import DataError
from rankwright.rooms.diagnose.case import LIMITS, Case, Check, Chosen, Finding, Limit, Number
from rankwright.rooms.diagnose.labels import collisions, duplicates, finds_itself, holes, leakage
from rankwright.rooms.diagnose.ladder import Ladder, ladder
from rankwright.rooms.diagnose.orders import cut, discarded, nothing_to_win, ties, too_deep, too_few
from rankwright.rooms.diagnose.training import (
    asymmetry,
    closed_gap,
    easy_negatives,
    false_negatives,
    illegible,
    overtrained,
    relevance,
)

CHECKS: tuple[Check, ...] = (
    *(relevance, asymmetry, easy_negatives, discarded, holes, duplicates, finds_itself, collisions),
    *(too_deep, overtrained, false_negatives, ties, cut, nothing_to_win, too_few, leakage, illegible),
)
"""H1, H1b, H2 … H16."""

_KINDS = ("cause", "serving", "measuring")


@dataclass(frozen=True)
class Diagnosis:
    """`findings`: those that fire first, causes before serving before measuring, the worst first; and the ladder."""

    findings: tuple[Finding, ...]
    ladder: Ladder
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The diagnosis for a terminal."""
        firing = [finding for finding in self.findings if finding.fires]
        quiet = [finding for finding in self.findings if not finding.fires and not finding.lacks]
        told = [*self.notes, *self.ladder.lines(), ""]
        for finding in firing:
            told += [f"{finding.id} {finding.name}: {finding.reading}", *_number_lines(finding.numbers)]
            told += [f"    mend: {finding.remedy}"] if finding.remedy else []
        told += [f"{finding.id} {finding.name}: fine. {finding.reading}" for finding in quiet]
        told += [
            f"{finding.id} {finding.name}: not run, lacks {finding.lacks}" for finding in self.findings if finding.lacks
        ]
        return told

    def values(self) -> dict[str, Any]:
        """The diagnosis as JSON takes it."""
        return {
            "findings": [finding.values() for finding in self.findings],
            "ladder": self.ladder.values(),
            "notes": list(self.notes),
        }


def diagnose(case: Case) -> Diagnosis:
    """Run every check; those that lack something say what.

    Raises:
        DataError: runs and qrels that share no query, or no candidate that was reranked.
    """
    notes = _look(case)
    found = [check(case) for check in CHECKS]
    order = sorted(
        range(len(found)),
        key=lambda place: (
            not found[place].fires,
            bool(found[place].lacks),
            _KINDS.index(found[place].kind) if found[place].fires else 0,
            -found[place].severity if found[place].fires else 0.0,
            place,
        ),
    )
    return Diagnosis(tuple(found[place] for place in order), ladder(case, closed=closed_gap(case)), tuple(notes))


def _look(case: Case) -> list[str]:
    """Refuse what would make every number wrong; count what only some queries suffer from."""
    judged = [query for query, grades in case.qrels.items() if relevant(grades)]
    shared = [query for query in judged if case.retrieved.rankings.get(query) and case.reranked.rankings.get(query)]
    if not shared:
        raise DataError(
            f"candidates, reranked run and qrels share none of {len(judged):,} judged queries",
            hint="do their query ids belong to the same split of the same collection?",
        )
    notes = []
    if lost := len(judged) - len(shared):
        notes.append(f"{lost:,} of {len(judged):,} judged queries are missing in a run (as {_first(judged, shared)}).")
    foreign = _foreign(case.retrieved, case.reranked, shared)
    if foreign:
        notes.append(f"{len(foreign):,} reranked documents are no candidates and do not count (as {foreign[0]}).")
    if negative := _negative(case.qrels):
        notes.append(f"{len(negative):,} grades below 0 count as not relevant (as {negative[0]}).")
    if case.collection.documents:
        unknown = {d for q in shared for d in case.retrieved.documents(q) if d not in case.collection.documents}
        if unknown:
            raise DataError(
                f"the corpus lacks {len(unknown):,} documents of the run, such as {min(unknown)}",
                hint="give the corpus that was searched, or none: checks that need texts are then left out",
            )
    return notes


def _first(everything: Sequence[str], shared: Sequence[str]) -> str:
    known = set(shared)
    return next(query for query in everything if query not in known)


def _foreign(retrieved: Run, reranked: Run, queries: Sequence[str]) -> list[str]:
    found = []
    for query in queries:
        known = set(retrieved.documents(query))
        found += [document for document in reranked.documents(query) if document not in known]
    return found


def _negative(qrels: Qrels) -> list[str]:
    return [f"{query} {document}" for query, grades in qrels.items() for document, grade in grades.items() if grade < 0]


def _number_lines(numbers: Sequence[Number]) -> list[str]:
    told = []
    for number in numbers:
        limit = LIMITS[number.limit]
        between = (
            f" [{number.low:+.4f}, {number.high:+.4f}]" if number.low is not None and number.high is not None else ""
        )
        mark = "!" if number.bad else " "
        told.append(f"  {mark} {limit.says}: {number.value:.4f}{between} (bad {limit.bad} {limit.value:g})")
    return told


__all__ = ["CHECKS", "LIMITS", "Case", "Chosen", "Diagnosis", "Finding", "Ladder", "Limit", "Number", "diagnose"]
