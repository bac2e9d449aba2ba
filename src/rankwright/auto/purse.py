"""What a budget buys, counted in training pairs: one of them costs as much as `schedule.PASSES` scored ones.

In: a budget in seconds or pairs, and how fast this machine trains. Out: how many pairs the search may spend and how
many the training that follows may. Time is turned into pairs once, so that what is written down holds on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rankwright.sections import read_budget
from rankwright.toolbox.schedule import PASSES

SEARCH_SHARE = 0.5
"""Of the budget, at most, for the search; the base's distillation, which the last training starts from, included."""
WORKING = 0.8
"""Of a time, what steps and the asking of dev may take; the rest goes to loading, reading texts and mining. With it a
budget of three minutes took 153 seconds (`seealso:`, two cores, search and training)."""
MOST_EPOCHS = 4.0
"""Times that a training sees each group, at most."""


@dataclass
class Purse:
    """What is left for the search, and what is set aside for the last training, in training pairs."""

    total: float
    spent: float = 0.0

    @property
    def left(self) -> float:
        """What the search may still spend."""
        return self.total * SEARCH_SHARE - self.spent

    @property
    def final(self) -> float:
        """What the last training may spend: all that the search did not."""
        return self.total - self.spent

    @staticmethod
    def cost(pairs: float = 0.0, scored: float = 0.0) -> float:
        """What a training of `pairs` and the scoring of `scored` pairs cost together."""
        return pairs + scored / PASSES

    def pay(self, pairs: float = 0.0, scored: float = 0.0) -> None:
        """Take out what a training of `pairs` and the scoring of `scored` pairs cost."""
        self.spent += self.cost(pairs, scored)


def purse(budget: str, per_second: Callable[[], float]) -> Purse:
    """The purse of a budget; `per_second` gives the training pairs of one second, asked only for a time.

    Finding that out takes time too, and leaves so much less.
    """
    amount, unit = read_budget(budget)
    if unit == "pairs":
        return Purse(amount)
    started = time.monotonic()
    pace = per_second()
    return Purse(max(0.0, amount - (time.monotonic() - started)) * pace * WORKING)
