"""The recipe that fits a collection: small trainings on train, measured on dev, within a budget.

In: a collection, its candidates, and a training that says `recipe: auto`. Out: plain trainings with every key written
out, which need no search to be run again, and the table of what was tried. The measured split is never looked at.

    case.py    what a search looks at
    purse.py   what a budget buys, and how much of it the search may spend
    recipes.py the recipe that stays unless dev says otherwise, and its rivals
    trials.py  one small training, kept by its key
    record.py  what was tried and why what was chosen was chosen; intervals
    pool.py    closed pools: does a base know this relevance at all?
    bases.py   which model to start from
    search.py  base, then rivals by successive halving, then a second round

It does not know the run folder, nor what becomes of the trainings that it writes down.
"""

from rankwright.auto.case import Case
from rankwright.auto.search import Found, search
from rankwright.auto.trials import forget, training_key

__all__ = ["Case", "Found", "forget", "search", "training_key"]
