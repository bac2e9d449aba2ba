import json
from dataclasses import replace

import numpy as np
import pytest

from rankwright.errors import ConfigError, DataError
from rankwright.rooms.verdict import Arm, verdict
from rankwright.sections import VerdictSection
from rankwright.toolbox import stats

SECTION = VerdictSection(permutations=2000, resamples=500)
QUERIES = 200
BASE = np.random.default_rng(7).random(QUERIES)
NOISE = np.random.default_rng(8).normal(size=QUERIES)
NOISE = (NOISE - NOISE.mean()) / NOISE.std(ddof=1)
ARM = Arm("finetuned", 0.6, 20, 0.50, 0.55, "blended")


def moved(by, spread=0.1):
    """Values whose differences from BASE have exactly this mean and standard deviation."""
    return BASE + by + spread * NOISE


def decide(reranked, blended=None, *, weight=0.6, section=SECTION, **more):
    values = {"bm25": BASE, "finetuned": reranked}
    arm = replace(ARM, weight=weight)
    if blended is None:
        arm = replace(arm, blend=None, dev_blended=None, weight=None)
    else:
        values["blended"] = blended
    return verdict(values, [arm], section, baselines={"bm25": None}, **more)


def test_a_blend_that_is_significantly_above_is_blended():
    found = decide(moved(-0.05), moved(0.05))
    assert (found.word, found.slug, found.weight, found.depth) == ("BLEND", "blend", 0.6, 20)
    assert found.difference == pytest.approx(0.05)
    assert found.low < 0.05 < found.high
    assert found.p <= 0.05
    assert found.lines()[0] == "verdict: BLEND finetuned with weight 0.60 at depth 20"


def test_a_blend_is_preferred_to_the_reranked_order_that_is_above_too():
    assert decide(moved(0.06), moved(0.05)).word == "BLEND"


def test_where_only_the_reranked_order_is_above_it_is_shipped_at_its_own_depth():
    found = decide(moved(0.05), moved(0.0))
    assert (found.word, found.weight, found.depth) == ("SHIP", 1.0, None)
    assert found.lines()[0] == "verdict: SHIP finetuned"


def test_weight_1_ships_at_the_chosen_depth():
    found = decide(moved(0.0), moved(0.05), weight=1.0)
    assert (found.word, found.weight, found.depth) == ("SHIP", 1.0, 20)
    assert found.lines()[0] == "verdict: SHIP finetuned at depth 20"


def test_weight_1_ships_where_only_the_full_reranked_order_is_above():
    found = decide(moved(0.05), moved(0.0), weight=1.0)
    assert (found.word, found.difference) == ("SHIP", pytest.approx(0.05))


def test_without_a_blend_the_reranked_order_decides():
    found = decide(moved(0.05))
    assert (found.word, found.depth) == ("SHIP", 20)
    assert decide(moved(-0.05)).word == "KEEP RETRIEVAL"


def test_weight_0_keeps_retrieval_however_uncertain():
    found = decide(moved(0.011, spread=0.2), BASE.copy(), weight=0.0)
    assert (found.word, found.difference, found.p, found.more_queries) == ("KEEP RETRIEVAL", 0.0, 1.0, None)
    assert found.lines()[0] == "verdict: KEEP RETRIEVAL (bm25)"
    assert any("weight 0" in reason for reason in found.reasons)
    assert decide(moved(0.011, spread=0.2)).word == "INCONCLUSIVE"


def test_weight_0_ships_where_the_reranked_order_is_above_after_all():
    assert decide(moved(0.05), BASE.copy(), weight=0.0).word == "SHIP"


def test_weight_0_never_blends_even_if_the_retriever_beats_the_baseline():
    assert decide(moved(0.0), moved(0.05), weight=0.0).word == "KEEP RETRIEVAL"


def test_a_form_significantly_below_keeps_retrieval():
    found = decide(moved(0.0), moved(-0.05))
    assert (found.word, found.slug) == ("KEEP RETRIEVAL", "keep")
    assert "It is significantly worse." in found.reasons


def test_a_gain_that_is_not_worth_it_keeps_retrieval():
    found = decide(moved(0.0), moved(0.0005, spread=0.02))
    assert found.high < SECTION.worthwhile
    assert found.word == "KEEP RETRIEVAL"
    assert any("0.0100" in reason and "ruled out" in reason for reason in found.reasons)
    stricter = SECTION.model_copy(update={"worthwhile": 0.001})
    assert decide(moved(0.0), moved(0.0005, spread=0.02), section=stricter).word == "INCONCLUSIVE"


def test_an_open_question_is_inconclusive_and_says_what_would_settle_it():
    found = decide(moved(0.0), moved(0.01))
    assert (found.word, found.slug) == ("INCONCLUSIVE", "inconclusive")
    assert found.detectable == pytest.approx(2.8 * 0.1 / QUERIES**0.5, rel=1e-2)
    # Two forms: the reach at level 0.025 is 2.2414 + 0.8416.
    assert found.more_queries == pytest.approx((3.083 * 0.1 / 0.01) ** 2 - QUERIES, abs=2)
    text = "\n".join(found.lines())
    assert found.lines()[0] == "verdict: INCONCLUSIVE on finetuned with weight 0.60 at depth 20"
    assert f"{found.detectable:.4f}" in text
    assert f"{found.more_queries:,} more judged queries" in text


def test_no_difference_at_all_asks_for_no_queries():
    found = decide(moved(0.0))
    assert found.word == "INCONCLUSIVE"
    assert found.more_queries is None
    assert "no number of queries" in "\n".join(found.lines())


def test_holm_counts_every_form_of_every_arm():
    by = 0.0157  # p near 0.03 alone
    assert decide(moved(by)).word == "SHIP"
    values = {"bm25": BASE, "finetuned": moved(by), "base": BASE.copy(), "base blended": BASE.copy()}
    arms = [
        Arm("base", 0.0, 20, 0.4, 0.4, "base blended"),
        Arm("finetuned", None, 20, 0.5, None, None),
    ]
    found = verdict(values, arms, SECTION, baselines={"bm25": None})
    alone = decide(moved(by))
    assert found.arm == "finetuned"
    assert found.p == pytest.approx(3 * alone.p, rel=0.3)
    assert found.word == "INCONCLUSIVE"
    assert "after Holm over 3 comparisons" in found.reasons[0]


def test_p_is_the_toolboxs_after_holm():
    found = decide(moved(0.01), moved(0.014))
    columns = np.stack([moved(0.01) - BASE, moved(0.014) - BASE], axis=1)
    p = stats.paired_randomisation(columns, permutations=2000, rng=np.random.default_rng([0, 0]))
    assert found.p == stats.holm(p.tolist())[1]


def test_the_arm_is_the_best_on_dev_by_its_blend_and_not_the_best_on_test():
    values = {name: moved(by) for name, by in {"a": 0.09, "a+": 0.09, "b": 0.0, "b+": 0.05}.items()}
    arms = [Arm("a", 0.5, 10, 0.9, 0.60, "a+"), Arm("b", 0.3, 50, 0.1, 0.61, "b+")]
    found = verdict({**values, "bm25": BASE}, arms, SECTION, baselines={"bm25": 0.5})
    assert found.lines()[0] == "verdict: BLEND b with weight 0.30 at depth 50"


@pytest.mark.parametrize(("names", "chosen"), [(("finetuned", "merged"), "finetuned"), (("base", "merged"), "merged")])
def test_without_dev_it_is_the_finetuned_arm_or_the_last(names, chosen):
    arms = [Arm(name, None, 20, None, None, None) for name in names]
    values = {"bm25": BASE, **{name: moved(0.05) for name in names}}
    assert verdict(values, arms, SECTION, baselines={"bm25": None}).arm == chosen


def test_the_baseline_is_the_best_on_dev_or_else_the_first():
    values = {"bm25": BASE, "fusion": moved(0.1), "finetuned": moved(0.05), "blended": moved(0.05)}
    found = verdict(values, [ARM], SECTION, baselines={"bm25": 0.4, "fusion": 0.5})
    assert (found.baseline, found.word) == ("fusion", "KEEP RETRIEVAL")
    found = verdict(values, [ARM], SECTION, baselines={"bm25": None, "fusion": None})
    assert (found.baseline, found.word) == ("bm25", "BLEND")


@pytest.mark.parametrize(
    ("by", "spread", "word"),
    [(-0.05, 0.1, "lost"), (-0.05, 1.0, "kept"), (-0.008, 0.01, "kept"), (0.05, 0.1, "kept")],
)
def test_generality_is_lost_by_a_sure_loss_beyond_the_tolerance(by, spread, word):
    found = decide(moved(0.05), general=(BASE, moved(by, spread)))
    assert found.general == word
    assert found.general_difference == pytest.approx(by)
    assert found.lines()[-1].startswith(f"generality: {word}, the general collection went by {by:+.4f}")


def test_generality_without_a_general_collection_is_not_measured():
    found = decide(moved(0.05))
    assert (found.general, found.general_difference) == ("not measured", None)
    assert found.lines()[-1] == "generality: not measured"


def test_the_values_are_json_and_the_same_for_the_same_seed():
    first, second = decide(moved(0.01), moved(0.01)), decide(moved(0.01), moved(0.01))
    assert json.dumps(first.values(), allow_nan=False) == json.dumps(second.values(), allow_nan=False)
    assert first.values()["slug"] == "inconclusive"
    assert decide(moved(0.01), moved(0.01), seed=1).low != first.low


def test_too_few_permutations_for_the_family_are_told():
    few = SECTION.model_copy(update={"permutations": 30})
    found = decide(moved(0.1), moved(0.1), section=few)
    assert found.word == "INCONCLUSIVE"
    assert "30 permutations are too few for 2 comparisons" in found.reasons[-1]


def test_symmetric_differences_seldom_win():
    rng = np.random.default_rng(3)
    section = VerdictSection(permutations=400, resamples=100)
    words = []
    for draw in range(100):
        reranked, blended = rng.normal(size=(2, 100)) * 0.2
        values = {"bm25": np.zeros(100), "finetuned": reranked, "blended": blended}
        words.append(verdict(values, [ARM], section, baselines={"bm25": None}, seed=draw).word)
    # Expected: 2.5; 8 or more in 100 has a chance below 1% at that rate.
    assert sum(word in ("SHIP", "BLEND") for word in words) < 8


def test_a_difference_of_two_detectable_effects_is_found():
    rng = np.random.default_rng(4)
    section = VerdictSection(permutations=400, resamples=100)
    effect = 2 * 2.8 * 0.2 / 10
    found = 0
    for draw in range(30):
        values = {"bm25": np.zeros(100), "finetuned": rng.normal(effect, 0.2, 100), "blended": np.zeros(100)}
        found += verdict(values, [ARM], section, baselines={"bm25": None}, seed=draw).word == "SHIP"
    assert found >= 24


def test_missing_names_are_refused():
    with pytest.raises(DataError, match="no values of 'blended'"):
        verdict({"bm25": BASE, "finetuned": BASE}, [ARM], SECTION, baselines={"bm25": None})
    with pytest.raises(DataError, match="no values of 'bm25'"):
        verdict({"finetuned": BASE, "blended": BASE}, [ARM], SECTION, baselines={"bm25": None})


def test_other_lengths_are_refused():
    with pytest.raises(DataError, match="not of the same queries"):
        decide(BASE[:-1])
    with pytest.raises(DataError, match="general collection"):
        decide(moved(0.05), general=(BASE, BASE[:-1]))


def test_values_that_are_not_numbers_are_refused():
    broken = BASE.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="1 of 200 values of 'finetuned' are not numbers"):
        decide(broken)
    with pytest.raises(DataError, match="'general after'"):
        decide(moved(0.05), general=(BASE, broken))


def test_no_queries_are_refused():
    with pytest.raises(DataError, match="at least 2 judged queries, there are 0"):
        verdict(dict.fromkeys(("bm25", "finetuned", "blended"), BASE[:0]), [ARM], SECTION, baselines={"bm25": None})


def test_choices_that_make_no_sense_are_refused():
    values = {"bm25": BASE, "finetuned": BASE, "blended": BASE}
    with pytest.raises(ConfigError, match="at least one reranked arm"):
        verdict(values, [], SECTION, baselines={"bm25": None})
    with pytest.raises(ConfigError, match="at least one retriever"):
        verdict(values, [ARM], SECTION, baselines={})
    with pytest.raises(ConfigError, match="'blended' stands for more than one"):
        verdict(values, [ARM, ARM], SECTION, baselines={"bm25": None})
    with pytest.raises(ConfigError, match=r"weight of 'finetuned' is 1\.5"):
        verdict(values, [replace(ARM, weight=1.5)], SECTION, baselines={"bm25": None})
    with pytest.raises(ConfigError, match="a blend but no weight"):
        verdict(values, [replace(ARM, weight=None)], SECTION, baselines={"bm25": None})


def test_arms_that_dev_serves_alike_are_told_apart_by_their_own_orders_and_then_by_name():
    values = {"bm25": BASE, "base": moved(-0.1), "finetuned": moved(0.09), "base+": BASE, "finetuned+": BASE}
    arms = [Arm("base", 0.0, 5, 0.3, 0.5, "base+"), Arm("finetuned", 0.0, 5, 0.4, 0.5, "finetuned+")]
    found = verdict(values, arms, SECTION, baselines={"bm25": 0.5})
    assert (found.arm, found.word) == ("finetuned", "SHIP")
    alike = [replace(arm, dev_reranked=0.3) for arm in arms]
    assert verdict(values, alike, SECTION, baselines={"bm25": 0.5}).arm == "finetuned"
    assert verdict(values, [replace(arms[0], dev_blended=0.6), arms[1]], SECTION, baselines={"bm25": 0.5}).arm == "base"
