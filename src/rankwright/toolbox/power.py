"""How many queries does a paired comparison need? The minimum detectable effect and the sample size of a mean.

In come one difference a query, out go plain numbers, by the normal approximation of a two-sided test. Nothing here
knows metrics, arms or runs.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def detectable(differences: Values, *, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true mean difference that a test at `level` finds with probability `power`, in these queries.

    (z(1 - level / 2) + z(power)) sd / sqrt(n): 2.8 standard errors by default.

    Raises:
        ValueError: fewer than two queries, which have no spread.
    """
    return _quantiles(level, power) * _spread(differences) / math.sqrt(len(differences))


def queries_needed(differences: Values, effect: float, *, level: float = 0.05, power: float = 0.8) -> int:
    """How many queries in all, spread as these are, make a true mean difference of `effect` detectable: at least 1.

    Raises:
        ValueError: fewer than two queries, or an effect of 0, which no number of queries detects.
    """
    if effect == 0:
        raise ValueError("no number of queries detects an effect of 0")
    return max(1, math.ceil((_quantiles(level, power) * _spread(differences) / effect) ** 2))


def _quantiles(level: float, power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)


def _spread(differences: Values) -> float:
    if len(differences) < 2:
        raise ValueError("fewer than two queries have no spread")
    return float(np.std(differences, ddof=1))
