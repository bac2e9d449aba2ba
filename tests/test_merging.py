"""The merge stage of the walk: weights found on dev and on a general collection, going on where they stopped."""

import json
import shutil

import pytest

import rankwright
from rankwright.errors import ConfigError
from rankwright.plan import Plan
from rankwright.rooms.merge.trial import Bench
from rankwright.sections import Experiment
from rankwright.toolbox.weights import fingerprint

SWEEP = {"models": ["base", "finetuned"], "weight": "sweep", "steps": 2, "queries": 5, "depth": 20}


def walk(experiment, runs, **merge):
    return rankwright.run({**experiment, "merge": {**SWEEP, **merge}}, runs=runs)


@pytest.fixture(scope="module")
def swept(finished, make_experiment, tmp_path_factory):
    """The tiny experiment walked with a sweep, its trainings reused."""
    runs = shutil.copytree(finished, tmp_path_factory.mktemp("swept") / "runs")
    return make_experiment(), walk(make_experiment(), runs), runs


@pytest.fixture
def again(swept, tmp_path):
    """The same in a place of one's own."""
    experiment, _, runs = swept
    return experiment, shutil.copytree(runs, tmp_path / "runs")


def merge_lines(result):
    (stage,) = [one for one in result.outcomes if one.stage == "merge"]
    return stage


def test_the_sweep_leaves_its_trials_what_it_chose_and_one_model(swept):
    _, result, runs = swept
    folder = runs / "tiny/merge"
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    found = json.loads((folder / "sweep.json").read_text())
    assert {trial["name"] for trial in trials} >= {"weight 0", "weight 0.5", "weight 1"}
    assert all(len(trial["in_domain"]) == 5 and trial["general"] for trial in trials)
    assert sorted(trial["name"] for trial in found["trials"]) == sorted(trial["name"] for trial in trials)
    report = json.loads((folder / "report.json").read_text())
    assert report["weights"] == found["trials"][found["chosen"]]["weights"]
    assert not (folder / "trials").exists()
    assert any(line.startswith("rule: best in-domain nDCG@10 on dev") for line in merge_lines(result).lines)


def test_the_ends_of_the_line_are_the_models_themselves(swept):
    """So their values are those of the models, and their scores are found in the cache by `rerank`."""
    _, _, runs = swept
    found = json.loads((runs / "tiny/merge/sweep.json").read_text())
    first, last = found["trials"][0], found["trials"][-1]
    assert (first["weights"], last["weights"]) == ([1.0, 0.0], [0.0, 1.0])
    assert first["in_domain"] != last["in_domain"]


def test_the_table_holds_every_arm_in_general_and_the_report_the_sweep(swept):
    _, result, runs = swept
    general = result.table["general"]
    assert [cell["arm"] for cell in general["cells"]] == ["retrieval", "base", "finetuned", "merged"]
    assert general["against"] == "base"
    page = (runs / "tiny/report/index.html").read_text()
    assert "Merging" in page
    assert "subject to general" in page


def test_a_sweep_that_was_stopped_asks_only_for_what_is_missing(again, monkeypatch):
    experiment, runs = again
    folder = runs / "tiny/merge"
    before, asked, own = fingerprint(folder / "model"), [], Bench.__call__
    shutil.rmtree(folder)

    def call(bench, point):
        asked.append(point.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return own(bench, point)

    monkeypatch.setattr(Bench, "__call__", call)
    with pytest.raises(KeyboardInterrupt):
        walk(experiment, runs)
    assert merge_lines(walk(experiment, runs)).action == "resumed"
    assert len(set(asked)) == len(asked) - 1  # the one that was stopped is asked for again, and no other
    assert fingerprint(folder / "model") == before


def test_workers_find_the_same(again):
    experiment, runs = again
    before = json.loads((runs / "tiny/merge/sweep.json").read_text())
    shutil.rmtree(runs / "tiny/merge")
    walk(experiment, runs, workers=2)
    assert json.loads((runs / "tiny/merge/sweep.json").read_text()) == before


def test_a_soup_is_held_against_each_of_its_models_alone(again):
    experiment, runs = again
    result = walk(experiment, runs, models=["base", "finetuned", "distilled"], steps=2)
    found = json.loads((runs / "tiny/merge/sweep.json").read_text())
    alone = [trial for trial in found["trials"] if trial["weight"] is None]
    assert [trial["name"] for trial in alone] == ["finetuned alone", "distilled alone"]
    assert alone[1]["in_domain"] == found["trials"][0]["in_domain"]  # distilled is the base
    assert result.table is not None


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "dare", "slerp"])
def test_every_method_has_a_line_from_the_first_model(again, method):
    experiment, runs = again
    walk(experiment, runs, method=method)
    found = json.loads((runs / "tiny/merge/sweep.json").read_text())
    assert found["trials"][0]["weight"] == 0


def test_cocktail_takes_its_weights_from_losses_on_dev(again):
    experiment, runs = again
    rankwright.run({**experiment, "merge": {"models": ["base", "finetuned"], "method": "cocktail"}}, runs=runs)
    report = json.loads((runs / "tiny/merge/report.json").read_text())
    assert sum(report["weights"]) == pytest.approx(1)
    assert "losses" in report["chosen"]


def test_heads_are_rescaled_by_what_models_say_to_pairs_of_dev(again):
    experiment, runs = again
    merge = {"models": ["base", "finetuned"], "head": "rescale"}
    rankwright.run({**experiment, "merge": merge}, runs=runs, overrides=None)
    report = json.loads((runs / "tiny/merge/report.json").read_text())
    assert len(report["logits"]) == 2


@pytest.mark.parametrize("merge", [{"weight": "sweep"}, {"method": "cocktail"}])
def test_what_dev_chose_is_not_measured_on_dev(tiny_experiment, merge):
    experiment = Experiment(**{**tiny_experiment, "merge": merge, "evaluate": {"split": "dev"}})
    with pytest.raises(ConfigError, match="has chosen"):
        Plan.of(experiment)


def test_a_plain_encoder_may_be_the_first_model_of_a_sweep(again):
    """It has no head of its own: at every weight the head is the other's."""
    experiment, runs = again
    encoder = experiment["train"]["distilled"]["base"]
    walk(experiment, runs, models=[encoder, "finetuned"])
    found = json.loads((runs / "tiny/merge/sweep.json").read_text())
    assert found["trials"][0]["weight"] == 0
    assert (runs / "tiny/merge/model/config.json").exists()


def test_a_trial_touches_nothing_outside_its_folder_whatever_its_models_are_called(again):
    experiment, runs = again
    outside = shutil.copytree(runs / "tiny/train/finetuned/model", runs.parent / "other")
    beside = runs.parent / "other alone"
    beside.mkdir()
    (beside / "mine.txt").write_text("keep")
    for method in ("linear", "ties"):
        walk(experiment, runs, models=["base", "finetuned", str(outside)], method=method)
        assert (beside / "mine.txt").read_text() == "keep"


def test_a_misspelt_metric_is_told_before_anything_is_trained(tiny_experiment, tmp_path):
    with pytest.raises(ConfigError, match="ndgc"):
        walk(tiny_experiment, tmp_path, choose_by="ndgc@10")
