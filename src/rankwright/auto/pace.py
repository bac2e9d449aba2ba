"""How many pairs this machine trains a second: by a few real steps, since no other work tells what they cost.

In: a Case, a training, and a base. Out: one number. The steps are those of the first recipe with little data: few
queries each, a query's best candidates as its group; labels and weights do not matter to the time, so a plain encoder
gets a new head. Loading, and the first steps, do not count; where a step is slow, fewer are made, since they are paid
for out of the budget. It does not know budgets.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from rankwright.auto.case import Case
from rankwright.auto.recipes import Facts, first
from rankwright.core import Group
from rankwright.rooms.train import Workbench, train
from rankwright.sections import Training
from rankwright.toolbox.progress import silenced
from rankwright.toolbox.schedule import count_pairs
from rankwright.toolbox.weights import locate

STEPS, UNCOUNTED = 14, 4
"""Steps that are made, and how many of them, the first, only warm up."""
FEWEST, ENOUGH = 4, 20.0
"""Seconds after the first step that are enough, once so many steps are made: a large base must not eat its budget."""


class _EnoughError(Exception):
    """The steps have taken long enough to tell."""


def training_pairs_per_second(case: Case, section: Training, base: str, folder: Path) -> float:
    """Pairs a second of the median step; the folder is gone afterwards.

    Raises:
        ModelError: the base cannot be loaded, or not one group has room in memory.
        DataError: no training query has candidates.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    recipe = first(case.served, Facts.of(case.collection, case.runs[case.served]), section, rate=1e-5, pairs=0)
    timed = recipe.but("pace", "", max_steps=STEPS, max_pairs=None, epochs=STEPS, checkpoints=1).training
    step = timed.batch * timed.accumulate
    groups = _groups(case, 2 + recipe.mine.negatives + recipe.mine.random, STEPS * step)
    bench = Workbench(folder, case.device, case.cache, case.seed, "pace")
    shutil.rmtree(folder, ignore_errors=True)  # steps made before a kill were timed by nobody
    ends: list[float] = []

    def ended(*_: object) -> None:
        ends.append(time.perf_counter())
        if len(ends) >= FEWEST and ends[-1] - ends[0] >= ENOUGH:
            raise _EnoughError

    hook = register_optimizer_step_post_hook(ended)
    try:
        with silenced(), contextlib.suppress(_EnoughError):
            train(groups, timed, base=locate(base), dev=None, bench=bench)
    finally:
        hook.remove()
        shutil.rmtree(folder, ignore_errors=True)
    first_counted = min(UNCOUNTED - 1, len(ends) // 2 - 1)
    each = float(np.median([end - start for start, end in pairwise(ends[first_counted:])]))
    pairs = count_pairs(groups, timed.sample) / len(groups) * min(step, len(groups))
    return pairs / max(each, 1e-6)


def _groups(case: Case, width: int, count: int) -> list[Group]:
    """The best candidates of so many training queries, the first of them as if it were relevant."""
    texts, found = case.collection, []
    asked = ((query, hits) for query, hits in case.runs[case.served].rankings.items() if hits)
    for query, hits in islice(asked, count):
        ids, scores = zip(*hits[:width], strict=True)
        documents, labels = [texts.documents[one] for one in ids], [1] + [0] * (len(ids) - 1)
        found.append(Group(query, texts.queries[query], ids, documents, labels, scores, [""] * len(ids)))
    return found
