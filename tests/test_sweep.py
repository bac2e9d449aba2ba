"""The weight of a merge: which are tried, which one the rule takes, and what is said of it."""

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from rankwright.config import load_experiment
from rankwright.plan import Plan
from rankwright.rooms.merge.sweep import halfway, sweep
from rankwright.sections import MergeMethod, MergeSection
from rankwright.toolbox.front import Sweep, Trial, admissible, judge, pareto

SECTION = MergeSection(weight="sweep", steps=4, tolerance=0.005)
NOISE = np.array([-0.01, 0.0, 0.01, 0.0])


def trial(weight, inside, outside=None, name=None):
    """Four queries in domain and four in general, whose means are `inside` and `outside`."""
    general = () if outside is None else tuple((outside + NOISE).tolist())
    values = (0.0 if weight is None else weight,), tuple((inside + NOISE).tolist()), general
    return Trial(name or f"weight {weight:g}", weight, *values)


def line(points):
    return [trial(weight, *means) for weight, means in points.items()]


def asked(curve, section=SECTION, **more):
    """A sweep over ``weight -> (in domain, general)``, and the lists of weights that it asked for."""
    calls = []

    def measure_all(weights):
        calls.append(list(weights))
        return [trial(weight, *curve(weight)) for weight in weights]

    return sweep(measure_all, section, **more), calls


def falling(weight):
    """Weight 0.5 loses 0.004 of the general collection, weight 0.625 more than the tolerance."""
    return 0.4 + 0.1 * weight, 0.6 - 0.016 * weight**2


def test_the_line_is_asked_for_at_once_and_then_half_way_on_both_sides_of_the_best_that_may_be_chosen():
    found, calls = asked(falling)
    assert calls == [[0.0, 0.25, 0.5, 0.75, 1.0], [0.375, 0.625]]
    assert [one.weight for one in found.trials] == [0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0]
    assert found.choice.name == "weight 0.5"


@pytest.mark.parametrize(("place", "middles"), [(0, [0.25]), (1, [0.25, 0.75]), (2, [0.75])])
def test_an_end_of_the_line_has_one_middle(place, middles):
    assert halfway([0.0, 0.5, 1.0], place) == middles


def test_the_refinement_can_be_the_choice():
    found, _ = asked(lambda weight: (0.4 + 0.1 * weight, 0.6 if weight <= 0.63 else 0.5))
    assert found.choice.weight == 0.625


def test_the_rule_takes_the_best_in_domain_among_those_within_the_tolerance():
    found = judge(line({0: (0.4, 0.6), 0.5: (0.45, 0.596), 1: (0.5, 0.594)}), "ndcg@10", 0.005)
    assert found.choice.weight == 0.5
    assert found.rule == "best in-domain nDCG@10 on dev subject to general >= that of the first model - 0.005"
    assert judge(found.trials, "ndcg@10", 0.0061).choice.weight == 1


def test_a_loss_of_just_the_tolerance_may_be_chosen():
    found = line({0: (0.4, 0.6), 1: (0.5, 0.6 - 0.005)})
    assert admissible(found, 0.005) == [0, 1]
    assert admissible(found, 0.00499) == [0]


@pytest.mark.parametrize("more", [0.0, 4e-14])
def test_of_equals_the_smaller_weight_is_taken_whatever_their_last_digits_say(more):
    found = judge(line({0: (0.4, 0.6), 0.25: (0.5, 0.6), 0.5: (0.5 + more, 0.6)}), "ndcg@10", 0.005)
    assert found.choice.weight == 0.25


def test_a_thousandth_of_a_billionth_more_than_the_last_digits_is_better():
    assert judge(line({0: (0.4, 0.6), 0.25: (0.5, 0.6), 0.5: (0.5 + 1e-9, 0.6)}), "ndcg@10", 0.005).choice.weight == 0.5


def test_where_every_other_weight_forgets_the_first_model_stays_and_that_is_said():
    found = judge(line({0: (0.4, 0.6), 0.5: (0.45, 0.5), 1: (0.5, 0.4)}), "ndcg@10", 0.005)
    assert found.choice.weight == 0
    assert found.said == "weight 0, the first model, stays: every other loses more in general than the tolerance"


def test_where_nothing_is_better_in_domain_the_first_model_stays_for_that_reason():
    found = judge(line({0: (0.4, 0.6), 0.5: (0.39, 0.6), 1: (0.5, 0.4)}), "ndcg@10", 0.005)
    assert found.choice.weight == 0
    assert found.said.endswith("nothing that may be chosen is better in domain")


def test_without_a_general_collection_the_best_in_domain_is_chosen_and_that_is_said():
    found = judge(line({0: (0.4,), 0.5: (0.6,), 1: (0.5,)}), "mrr@10", 0.005, order="served")
    assert found.choice.weight == 0.5
    assert found.rule.startswith("best in-domain MRR@10 on dev of the served order; generality was not looked at")
    assert found.changes == ()
    assert found.front == (1,)
    assert "general" not in found.lines()[0]
    assert found.kept() == "weight 0.5 keeps 200% of the in-domain gain of weight 1 (+0.1000)"


def test_the_front_is_what_no_other_beats_in_one_without_losing_in_the_other():
    points = {0: (0.4, 0.6), 0.25: (0.4, 0.59), 0.5: (0.45, 0.58), 0.75: (0.44, 0.57), 1: (0.5, 0.5)}
    assert pareto(line(points)) == [0, 2, 4]


def test_equal_points_are_both_on_the_front():
    assert pareto(line({0: (0.4, 0.6), 1: (0.4, 0.6)})) == [0, 1]


def test_a_model_alone_stands_beside_the_line_and_can_be_chosen():
    alone = [trial(None, 0.47, 0.6, "seed-1 alone"), trial(None, 0.44, 0.61, "seed-2 alone")]
    found, calls = asked(falling, ingredients=alone)
    assert len(calls) == 2
    assert [one.name for one in found.trials[-2:]] == ["seed-1 alone", "seed-2 alone"]
    assert found.said == "seed-1 alone is chosen"
    assert found.marks(len(found.trials) - 1) == "front"


def test_the_line_comes_before_an_equal_model_beside_it():
    alone = trial(None, 0.5, 0.6, "seed-1 alone")
    found = judge([*line({0: (0.4, 0.6), 1: (0.5, 0.6)}), alone], "ndcg@10", 0.005)
    assert found.choice.weight == 1


def test_what_the_choice_keeps_of_the_gain_and_what_it_costs_is_said():
    found = judge(line({0: (0.4, 0.6), 0.5: (0.492, 0.596), 1: (0.5, 0.5)}), "ndcg@10", 0.005)
    told = "weight 0.5 keeps 92% of the in-domain gain of weight 1 (+0.1000), with a general change of -0.0040"
    assert found.kept() == f"{told} [-0.0040, -0.0040]"
    poorer = judge(line({0: (0.4, 0.6), 0.5: (0.46, 0.596), 1: (0.5, 0.5)}), "ndcg@10", 0.005)
    assert poorer.kept().endswith("; nothing tried keeps 90% of it within the tolerance")
    worse = judge(line({0: (0.4, 0.6), 1: (0.3, 0.6)}), "ndcg@10", 0.005)
    assert worse.kept() == "weight 1 gains nothing in domain over the first model (-0.1000)"


def test_the_intervals_are_paired_and_the_same_seed_gives_the_same():
    rng = np.random.default_rng(0)
    base, gain = rng.normal(size=200), rng.normal(0.1, 0.2, size=200)
    trials = [Trial.at(0, (1, 0), base, base), Trial.at(1, (0, 1), base + gain, base)]
    found, again, other = (judge(trials, "ndcg@10", 0.005, seed=seed) for seed in (0, 0, 1))
    assert found == again
    assert found.gains != other.gains
    low, high = found.gains[1]["low"], found.gains[1]["high"]
    assert low < gain.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * gain.std() / np.sqrt(200), rel=0.1)  # not base's much wider spread
    assert found.changes[1] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_table_has_a_row_a_trial_and_then_the_rule():
    found, _ = asked(falling)
    lines = found.lines()
    assert lines[0].split() == "merge in domain gain over the first general change".split()
    assert lines[1].split() == ["weight", "0", "0.4000", "–", "0.6000", "–", "front"]
    chosen = next(row for row in lines if row.endswith("front, chosen"))
    assert "0.4500     +0.0500 [+0.0500, +0.0500]  0.5960   -0.0040 [-0.0040, -0.0040]" in chosen
    assert lines[8] == f"rule: {found.rule}"
    assert lines[9] == "weight 0.5 is chosen"
    assert len(lines) == 1 + 7 + 3


def test_its_values_are_json_and_trials_come_back_from_it():
    found, _ = asked(falling)
    values = json.loads(json.dumps(found.values()))
    assert [Trial.of(one) for one in values["trials"]] == list(found.trials)
    assert values["trials"][values["chosen"]]["weight"] == 0.5
    assert values["rule"] == found.rule
    assert judge([Trial.of(one) for one in values["trials"]], values["metric"], values["tolerance"]) == found
    alone = trial(None, 0.1, 0.2, "seed-1 alone")
    assert Trial.of(json.loads(json.dumps(alone.values()))) == alone


def test_trials_that_cannot_be_held_against_each_other_are_refused():
    first = trial(0, 0.4, 0.6)
    cases = {
        "weight 0": [trial(1, 0.4, 0.6)],
        "3 values general": [first, Trial.at(1, (0, 1), first.in_domain, first.general[:3])],
        "3 values in_domain": [first, Trial.at(1, (0, 1), first.in_domain[:3], first.general)],
        "not finite": [first, trial(1, float("nan"), 0.6)],
        "no in-domain": [Trial.at(0, (1, 0), ())],
        "first model": [],
    }
    for words, trials in cases.items():
        with pytest.raises(ValueError, match=words):
            judge(trials, "ndcg@10", 0.005)


def test_trials_of_other_weights_than_were_asked_for_are_refused():
    with pytest.raises(ValueError, match="asked for weights"):
        sweep(lambda weights: [trial(weight, 0.4, 0.6) for weight in reversed(weights)], SECTION)


def test_the_section_says_how_many_steps_which_metric_and_which_order():
    section = MergeSection(weight="sweep", steps=2, tolerance=1, choose_by="map", watch="served")
    found, calls = asked(falling, section)
    assert calls == [[0.0, 0.5, 1.0], [0.75]]
    assert isinstance(found, Sweep)
    assert found.rule.startswith("best in-domain MAP on dev of the served order subject to")


PAGE = (Path(__file__).parents[1] / "docs" / "merge.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_every_example_on_the_page_loads_and_fits_together(text, tmp_path):
    path = tmp_path / "example.yaml"
    rest = "data: {source: 'seealso:'}\nretrieve: {dense: {kind: dense}}\nmine: {}\n"
    rest += "" if "rerank:" in text else "rerank: {}\n"
    path.write_text(rest + text, encoding="utf-8")
    plan = Plan.of(load_experiment(path))
    assert "merged" in plan.arms


def test_the_page_names_every_method():
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)) - {"method"} == set(get_args(MergeMethod))
