"""What a budget buys, counted in training pairs: one of them costs as much as `schedule.PASSES` scored ones.

In: a budget in seconds or pairs, and how fast this machine scores. Out: how many pairs the search may spend and how
many the training that follows may. Time is turned into pairs once, so that what is written down holds on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankwright.sections import read_budget
from rankwright.toolbox.schedule import PASSES

SEARCH_SHARE = 0.5
"""Of the budget, at most, for the search; the base's distillation, which the last training starts from, included."""
MOST_EPOCHS = 4.0
"""Times that a training sees each group, at most."""
SMALL_STEPS = 1.7
"""How much longer than large batches the steps of a few queries take, mining included: timed on the demo."""
_TIMED = 256


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
    """The purse of a budget; `per_second` gives the training pairs of one second, asked only for a time."""
    amount, unit = read_budget(budget)
    return Purse(amount if unit == "pairs" else amount * per_second())


def training_pairs_per_second(
    score: Callable[[Sequence[tuple[str, str]]], object], pairs: Sequence[tuple[str, str]]
) -> float:
    """How many pairs a training takes a second, from the pace of scoring some of them (the better of two tries)."""
    some = list(pairs[:: max(1, len(pairs) // _TIMED)][:_TIMED])
    score(some[:16])
    times = []
    for _ in range(2):
        started = time.perf_counter()
        score(some)
        times.append(time.perf_counter() - started)
    return len(some) / max(min(times), 1e-6) / PASSES / SMALL_STEPS
