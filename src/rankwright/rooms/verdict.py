"""Should it ship? SHIP, BLEND, KEEP RETRIEVAL or INCONCLUSIVE, by one paired test on what dev has chosen before.

In come per-query values of one metric on the measured split, and what dev chose for each arm; out goes a Verdict.
It does not know runs, models or how a weight was chosen, and it never looks at the measured split to choose an arm.

Every form (each arm reranked, each arm blended) is tested against the baseline by paired randomisation, and Holm's
correction runs over all of them, also over those that equal the baseline: dev could have chosen any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rankwright.errors import ConfigError, DataError
from rankwright.sections import VerdictSection
from rankwright.toolbox import stats
from rankwright.toolbox.power import detectable as detectable_effect
from rankwright.toolbox.power import queries_needed

Values = NDArray[np.float64]
Word = Literal["SHIP", "BLEND", "KEEP RETRIEVAL", "INCONCLUSIVE"]
Kept = Literal["kept", "lost", "not measured"]

_SLUGS: dict[Word, str] = {"SHIP": "ship", "BLEND": "blend", "KEEP RETRIEVAL": "keep", "INCONCLUSIVE": "inconclusive"}


@dataclass(frozen=True)
class Arm:
    """A reranker and what dev says of it.

    `name` is its reranked form in the values and `blend` its blended form, None where dev chose nothing. `weight`
    and `depth` are the blend's; `depth` is the served depth where there is no blend. `dev_reranked` and
    `dev_blended` are dev's means.
    """

    name: str
    weight: float | None
    depth: int
    dev_reranked: float | None
    dev_blended: float | None
    blend: str | None


@dataclass(frozen=True)
class Verdict:
    """The word, the form that it was decided on, the numbers and the reasons.

    `difference`, `low`, `high` and `p` (after Holm) are that form's, against `baseline`. `weight` and `depth` are how
    it ranks: 1 where the reranker replaces the order, and no depth where it does so at another depth than the
    blend's. `detectable` is the smallest true difference that one comparison finds at 80% power; `more_queries` how
    many more judged queries settle the difference seen, the correction over all comparisons included.
    """

    word: Word
    arm: str
    baseline: str
    metric: str
    weight: float | None
    depth: int | None
    difference: float
    low: float
    high: float
    p: float
    detectable: float
    more_queries: int | None
    queries: int
    level: float
    reasons: tuple[str, ...]
    general: Kept = "not measured"
    general_difference: float | None = None
    general_low: float | None = None
    general_high: float | None = None

    @property
    def slug(self) -> str:
        """ship, blend, keep or inconclusive."""
        return _SLUGS[self.word]

    def lines(self) -> list[str]:
        """The verdict, its reasons a sentence each, and last what became of generality."""
        return [f"verdict: {self._first()}", *self.reasons, f"generality: {self._general()}"]

    def values(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**found, "slug": self.slug, "reasons": list(self.reasons)}

    def _first(self) -> str:
        if self.word == "KEEP RETRIEVAL":
            return f"KEEP RETRIEVAL ({self.baseline})"
        weight = "" if self.weight is None or self.word == "SHIP" else f" with weight {self.weight:.2f}"
        depth = "" if self.depth is None else f" at depth {self.depth}"
        joint = " on" if self.word == "INCONCLUSIVE" else ""
        return f"{self.word}{joint} {self.arm}{weight}{depth}"

    def _general(self) -> str:
        if self.general_difference is None or self.general_low is None or self.general_high is None:
            return "not measured"
        interval = _interval(self.general_low, self.general_high, self.level)
        return f"{self.general}, the general collection went by {self.general_difference:+.4f} ({interval})"


@dataclass(frozen=True)
class _Form:
    """One way to rank that is compared with the baseline. `blended` is False for the reranker's own order."""

    name: str
    arm: str
    blended: bool
    difference: float
    p: float

    def above(self, level: float) -> bool:
        return self.p <= level and self.difference > 0

    def below(self, level: float) -> bool:
        return self.p <= level and self.difference < 0


def verdict(
    values: Mapping[str, Values],
    arms: Sequence[Arm],
    section: VerdictSection,
    *,
    baselines: Mapping[str, float | None],
    general: tuple[Values, Values] | None = None,
    seed: int = 0,
) -> Verdict:
    """Decide on the arm that dev prefers.

    `values` holds the per-query values of `section.metric` under the name of each baseline, arm and blend, all in the
    same order of queries. `baselines` are ways to retrieve with their dev means; the best of them is the one to beat
    (the first where dev says nothing). `general` is per-query values on a general collection before and after.

    Raises:
        ConfigError: no arms, no baselines, a name given twice, a weight that is none.
        DataError: values that are missing, of other lengths, not numbers, or of fewer than two queries.
    """
    _check_choices(arms, baselines)
    _check_values(values, [*baselines, *(name for arm in arms for name in _names(arm))])
    baseline, arm = _best_baseline(baselines), preferred(arms)
    forms = _forms(values, arms, baseline, section, seed)
    own = {form.blended: form for form in forms if form.arm == arm.name}
    form, word = _decide(arm, own, section.level)
    differences = values[form.name] - values[baseline]
    low, high = _bootstrap(differences, section, [seed, 1])
    if word is None:
        # Neither form wins: it is settled where the gain is a loss, or too small to be worth a reranker.
        word = "KEEP RETRIEVAL" if arm.weight == 0 or form.below(section.level) or high < section.worthwhile else None
    detectable = detectable_effect(differences, level=section.level)
    more = _more_queries(differences, section.level / len(forms))
    judged = Verdict(
        word=word or "INCONCLUSIVE",
        arm=arm.name,
        baseline=baseline,
        metric=section.metric,
        weight=1.0 if word == "SHIP" else arm.weight,
        depth=arm.depth if form.blended or arm.blend is None else None,
        difference=form.difference,
        low=low,
        high=high,
        p=form.p,
        detectable=detectable,
        more_queries=more,
        queries=len(differences),
        level=section.level,
        reasons=(),
        **_generality(general, section, seed),
    )
    return _with_reasons(judged, form, own, len(forms), section)


def _names(arm: Arm) -> list[str]:
    return [arm.name] if arm.blend is None else [arm.name, arm.blend]


def _check_choices(arms: Sequence[Arm], baselines: Mapping[str, float | None]) -> None:
    if not arms:
        raise ConfigError("a verdict needs at least one reranked arm")
    if not baselines:
        raise ConfigError("a verdict needs at least one retriever to compare with")
    names = [*baselines, *(name for arm in arms for name in _names(arm))]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"the name {twice[0]!r} stands for more than one ranking", hint="give each its own name")
    for arm in arms:
        if arm.weight is not None and not 0 <= arm.weight <= 1:
            raise ConfigError(f"the weight of {arm.name!r} is {arm.weight}", hint="a weight from 0 to 1")
        if arm.blend is not None and arm.weight is None:
            raise ConfigError(f"{arm.name!r} has a blend but no weight")


def _check_values(values: Mapping[str, Values], names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in values]:
        raise DataError(f"no values of {', '.join(map(repr, missing))}", hint=f"there are: {', '.join(values)}")
    shapes = {name: np.shape(values[name]) for name in names}
    if len(set(shapes.values())) > 1 or len(shapes[names[0]]) != 1:
        told = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        raise DataError(f"the values are not of the same queries: {told}")
    _check_numbers({name: values[name] for name in names}, "a verdict")


def _check_numbers(values: Mapping[str, Values], what: str) -> None:
    for name, array in values.items():
        if len(array) < 2:
            raise DataError(f"{what} needs at least 2 judged queries, there are {len(array)}")
        if bad := int((~np.isfinite(array)).sum()):
            raise DataError(f"{bad} of {len(array)} values of {name!r} are not numbers")


def _best_baseline(baselines: Mapping[str, float | None]) -> str:
    known = {name: mean for name, mean in baselines.items() if mean is not None}
    return max(known, key=known.__getitem__) if known else next(iter(baselines))


def preferred(arms: Sequence[Arm]) -> Arm:
    """The arm that is judged: the best on dev; without dev the fine-tuned one, or the last.

    Arms that dev serves alike, as all do to which it gives no weight, are told apart by their own orders; of equals in
    that too, it is the fine-tuned one, or the first.
    """
    known = [arm for arm in arms if _on_dev(arm) is not None]
    if not known:
        return next((arm for arm in arms if arm.name == "finetuned"), arms[-1])
    return max(known, key=lambda arm: (_rounded(_on_dev(arm)), _rounded(arm.dev_reranked), arm.name == "finetuned"))


def _rounded(mean: float | None) -> float:
    """To twelve digits: a last bit must not choose."""
    return -1.0 if mean is None else round(mean, 12)


def _on_dev(arm: Arm) -> float | None:
    return arm.dev_reranked if arm.dev_blended is None else arm.dev_blended


def _forms(
    values: Mapping[str, Values], arms: Sequence[Arm], baseline: str, section: VerdictSection, seed: int
) -> list[_Form]:
    """All forms of all arms, with p after Holm over them."""
    kinds = [(name, arm.name, name == arm.blend) for arm in arms for name in _names(arm)]
    columns = np.stack([values[name] - values[baseline] for name, _, _ in kinds], axis=1)
    rng = np.random.default_rng([seed, 0])
    p = stats.paired_randomisation(columns, permutations=section.permutations, rng=rng)
    means = columns.mean(axis=0)
    return [
        _Form(*kind, float(mean), adjusted)
        for kind, mean, adjusted in zip(kinds, means, stats.holm(p.tolist()), strict=True)
    ]


def _decide(arm: Arm, own: Mapping[bool, _Form], level: float) -> tuple[_Form, Word | None]:
    """The form that is judged and the word where one of the arm's forms wins: None where neither does.

    The blended form is what dev chose, so it is asked first, also at weight 1, where it is the reranker's order at
    the chosen depth. At weight 0 it is the retriever's order, which cannot speak for the reranker.
    """
    blended, reranked = own.get(True), own[False]
    if blended and arm.weight != 0 and blended.above(level):
        return blended, "SHIP" if arm.weight == 1 else "BLEND"
    if reranked.above(level):
        return reranked, "SHIP"
    return blended or reranked, None


def _bootstrap(differences: Values, section: VerdictSection, seed: list[int]) -> tuple[float, float]:
    low, high = stats.paired_bootstrap(
        differences,
        resamples=section.resamples,
        confidence=1 - section.level,
        rng=np.random.default_rng(seed),
    )
    return float(low), float(high)


def _more_queries(differences: Values, level: float) -> int | None:
    """How many more queries make the mean difference seen a detectable one: 0 if it is, None if it is 0."""
    mean = abs(float(differences.mean()))
    # A mean of what cancels out is not exactly 0: its last bits would ask for millions of queries.
    if mean <= 1e-12 * float(np.abs(differences).max()):
        return None
    return max(0, queries_needed(differences, mean, level=level) - len(differences))


def _generality(general: tuple[Values, Values] | None, section: VerdictSection, seed: int) -> dict[str, Any]:
    """The fields of a Verdict that tell of the general collection: none where it was not measured."""
    if general is None:
        return {}
    before, after = general
    if before.shape != after.shape or before.ndim != 1:
        raise DataError(f"the general collection has values of {before.shape} before and {after.shape} after")
    _check_numbers({"general before": before, "general after": after}, "the general collection")
    difference = float((after - before).mean())
    low, high = _bootstrap(after - before, section, [seed, 2])
    kept: Kept = "lost" if difference < -section.tolerance and high < 0 else "kept"
    return {"general": kept, "general_difference": difference, "general_low": low, "general_high": high}


def _interval(low: float, high: float, level: float) -> str:
    return f"{100 * (1 - level):g}% interval {low:+.4f} to {high:+.4f}"


def _with_reasons(
    judged: Verdict, form: _Form, own: Mapping[bool, _Form], compared: int, section: VerdictSection
) -> Verdict:
    interval = _interval(judged.low, judged.high, judged.level)
    test = f"p = {form.p:.4f} after Holm over {compared} comparison{'s' if compared > 1 else ''}"
    reasons = [
        f"{_named(form)} differs from {judged.baseline} by {form.difference:+.4f} {judged.metric} "
        f"on {judged.queries} queries ({interval}; {test})."
    ]
    other = own.get(not form.blended)
    if other:
        reasons.append(f"{_named(other)} differs by {other.difference:+.4f} (p = {other.p:.4f}).")
    reasons += _why(judged, form, section)
    if compared > judged.level * (1 + section.permutations):
        reasons.append(f"{section.permutations} permutations are too few for {compared} comparisons: ask for more.")
    return Verdict(**{**{field.name: getattr(judged, field.name) for field in fields(judged)}, "reasons": (*reasons,)})


def _named(form: _Form) -> str:
    return f"{form.arm} {'blended' if form.blended else 'reranked'}"


def _why(judged: Verdict, form: _Form, section: VerdictSection) -> list[str]:
    """What makes the word of this verdict, in a sentence or two."""
    if judged.word == "SHIP":
        return ["The reranker's own order is significantly better."]
    if judged.word == "BLEND":
        return [f"Dev chose weight {judged.weight:.2f} at depth {judged.depth}, and it is significantly better."]
    if judged.word == "INCONCLUSIVE":
        return _unsettled(judged)
    reasons = []
    if judged.weight == 0:
        reasons.append("Dev chose weight 0: no share of the reranker's score made the order better.")
    if form.below(section.level):
        reasons.append("It is significantly worse.")
    elif judged.weight != 0:
        reasons.append(f"A gain of {section.worthwhile:.4f}, the least that is worth a reranker, is ruled out.")
    return reasons


def _unsettled(judged: Verdict) -> list[str]:
    reach = (
        f"With {judged.queries} queries one comparison finds a true difference of {judged.detectable:.4f} at 80% power."
    )
    if judged.more_queries is None:
        return [reach, "The difference seen is 0: no number of queries would settle it."]
    return [reach, f"About {judged.more_queries:,} more judged queries would settle the difference seen, at 80% power."]
