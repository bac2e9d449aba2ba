from __future__ import annotations

import pytest
import yaml

import rankwright
from rankwright import config
from rankwright.errors import ConfigError
from rankwright.plan import Plan
from rankwright.recipes import RECIPES, filled

FIXED = [name for name in RECIPES if name != "auto"]


def experiment(**training):
    return config.validate({"data": {}, "retrieve": {"dense": {"kind": "dense"}}, "train": {"one": training}})


def again(made):
    return config.validate(yaml.safe_load(config.dump(made)))


@pytest.mark.parametrize("name", FIXED)
def test_a_word_stands_for_values_that_fit_together(name):
    made = experiment(recipe=name)
    Plan.of(made)
    training = made.train["one"]
    assert training.learning_rate == RECIPES[name]["learning_rate"]
    assert training.mine.negatives == RECIPES[name]["mine"]["negatives"]


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_out_is_read_back_as_the_same(name):
    made = experiment(recipe=name)
    assert again(made) == made
    assert config.dump(again(made)) == config.dump(made)


@pytest.mark.parametrize("name", FIXED)
def test_keys_beside_the_word_win(name):
    training = experiment(recipe=name, learning_rate=0.5, mine={"negatives": 2}).train["one"]
    assert training.learning_rate == 0.5
    assert training.mine.negatives == 2
    others = {key: value for key, value in RECIPES[name]["mine"].items() if key not in ("negatives", "window")}
    assert {key: getattr(training.mine, key) for key in others} == others


def test_a_written_null_takes_the_shared_groups():
    assert experiment(recipe="hard", mine=None).train["one"].mine is None


def test_the_table_is_not_changed_by_what_is_made_of_it():
    filled({"recipe": "hard"})["mine"]["negatives"] = 99
    assert RECIPES["hard"]["mine"]["negatives"] == 7


def test_an_unknown_word_is_refused_and_the_words_are_named():
    with pytest.raises(ConfigError, match=r"train\.recipe: .*'hard'.*'atuo'") as told:
        config.validate({"data": {}, "retrieve": {"dense": {"kind": "dense"}}, "train": {"recipe": "atuo"}})
    assert all(f"'{name}'" in told.value.message for name in RECIPES)


@pytest.mark.parametrize("recipe", [["hard"], 3])
def test_what_is_no_word_is_refused(recipe):
    with pytest.raises(ConfigError, match=r"train\.one\.recipe"):
        experiment(recipe=recipe)


@pytest.mark.parametrize(("key", "value"), [("budget", "10m"), ("bases", ["offline"])])
@pytest.mark.parametrize("recipe", [None, "hard"])
def test_keys_of_a_search_need_a_search(key, value, recipe):
    with pytest.raises(ConfigError, match=f"{key} goes with recipe: auto"):
        experiment(recipe=recipe, **{key: value})


def test_what_the_search_settles_by_itself_is_refused_beside_it():
    with pytest.raises(ConfigError, match="groups: unlabelled goes with recipe: distill"):
        experiment(recipe="auto", groups="unlabelled", loss="kl")
    for key, value in {
        **{"epochs": 2, "max_pairs": 100, "max_steps": 10, "dev": {"metric": "map"}, "keep": "best", "average": 2}
    }.items():
        with pytest.raises(ConfigError, match=rf"recipe: auto (trains|watches|keeps) .*; leave {key} out"):
            experiment(recipe="auto", **{key: value})
    with pytest.raises(ConfigError, match="recipe: auto finds its own groups"):
        experiment(recipe="auto", mine={"negatives": 3})
    with pytest.raises(ConfigError, match="base and bases are both given"):
        experiment(recipe="auto", base="offline", bases=["offline"])


@pytest.mark.parametrize("budget", ["10", "ten minutes", "0s", "-5m", "3 days", "1.2.3s", "pairs"])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ConfigError, match="a budget is a time as in 90s"):
        experiment(recipe="auto", budget=budget)


def test_keys_of_the_one_training_may_be_set_beside_the_short_form():
    values = {"data": {"source": "seealso:"}, "retrieve": {"dense": {"kind": "dense"}}}
    experiment = config.validate({**values, "train": {"recipe": "auto", "batch": 3, "finetuned": {"budget": "5m"}}})
    assert list(experiment.train) == ["finetuned"]
    assert (experiment.train["finetuned"].budget, experiment.train["finetuned"].batch) == ("5m", 3)


def test_auto_in_short_is_one_training_and_only_what_was_written_is_written_out():
    values = {"data": {}, "retrieve": {"dense": {"kind": "dense"}}, "train": {"recipe": "auto", "learning_rate": 2e-5}}
    made = config.validate(values)
    assert list(made.train) == ["finetuned"]
    written = yaml.safe_load(config.dump(made))["train"]["finetuned"]
    assert written == {"recipe": "auto", "budget": "10m", "learning_rate": 2e-5}


def test_recipes_stand_side_by_side_in_one_experiment(tiny_experiment, tmp_path):
    own = {"batch": 8, "accumulate": 1, "max_length": 32, "precision": "fp32", "max_steps": 2}
    tiny_experiment |= {"mine": None, "merge": None, "general": None, "blend": None, "diagnose": None, "report": None}
    tiny_experiment["verdict"] = None
    encoder = tiny_experiment["train"]["distilled"]["base"]
    dev = {"queries": 6, "depth": 8, "evaluations": 1}
    tiny_experiment["train"] = {
        "distilled": {"recipe": "distill", "base": encoder, "dev": dev, **own},
        **{
            name: {
                "recipe": name,
                "base": "distilled",
                **own,
                **({} if RECIPES[name].get("dev", 1) is None else {"dev": dev}),
            }
            for name in FIXED
            if name != "distill"
        },
    }
    tiny_experiment["rerank"] = {"depth": 10, "arms": {name: name for name in tiny_experiment["train"]}}
    result = rankwright.run(tiny_experiment, runs=tmp_path)
    arms = set(result.table["arms"])
    assert arms >= {"distilled", *FIXED} - {"distill"}
    assert {outcome.action for outcome in rankwright.run(tiny_experiment, runs=tmp_path).outcomes} == {"reused"}
    for name in FIXED:
        training = "distilled" if name == "distill" else name
        assert (tmp_path / "tiny/train" / training / "groups.jsonl").exists()
