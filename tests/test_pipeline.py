"""The corridor: a whole tiny experiment, what is reused, and what reruns when something changes."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import yaml
from pyarrow import parquet

import rankwright as rw
from rankwright import config
from rankwright.errors import ArtefactError, ConfigError, DataError, DiskError, ModelError
from rankwright.pipeline import ROOMS, Walk, status
from rankwright.pipeline.base import Site
from rankwright.toolbox.formats import beir, flag, trec

STAGES = (
    *("data", "retrieve", "mine", "train/distilled", "train/finetuned", "merge"),
    *("rerank", "blend", "general", "evaluate", "diagnose", "verdict", "report"),
)
RERANKED, JUDGED = set(STAGES[6:]), set(STAGES[9:])


def changed(values, **changes):
    """The values with ``a__b=c`` put into them."""
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return values


def plan_of(values, runs):
    """Stage -> (action, why) of a dry run."""
    outcomes = Walk(config.validate(values), runs).dry_run()
    return {outcome.stage: (outcome.action, outcome.why) for outcome in outcomes}


def that_run(values, runs):
    return {stage for stage, (action, _) in plan_of(values, runs).items() if action == "run"}


def snapshot(folder):
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_a_run_leaves_every_rooms_box_in_a_format_that_the_field_reads(finished):
    run = finished / "tiny"
    not_asked_for = {"recipe", "rag"}
    assert {folder.name for folder in run.iterdir() if folder.is_dir()} | not_asked_for == set(ROOMS)
    assert set(beir.read(run / "data").collection.qrels) == {"train", "dev", "test"}
    assert len(trec.read_run(run / "retrieve/dense.test.run").rankings) == 10
    assert {len(group) for group in flag.read_groups(run / "mine/groups.jsonl")} == {6}
    assert len(flag.read_groups(run / "mine/unlabelled.jsonl")) == 16
    for model in ("train/distilled", "train/finetuned", "merge"):
        assert (run / model / "model/model.safetensors").exists()
        assert not (run / model / "checkpoints").exists()
    assert {file.name for file in (run / "rerank").glob("*.run")} == {
        f"{arm}.{split}.run" for arm in ("base", "finetuned", "merged") for split in ("dev", "test")
    }
    assert {file.name for file in (run / "blend").glob("*.run")} == {
        f"{arm}-blend.test.run" for arm in ("base", "finetuned", "merged")
    }
    blends = json.loads((run / "blend/choices.json").read_text())["arms"]
    for arm, model in {"finetuned": "train/finetuned", "base": "train/distilled", "merged": "merge"}.items():
        kept = json.loads((run / model / "model/rankwright.json").read_text())
        served = {word: blends[arm][word] for word in ("weight", "depth", "normalisation")}
        assert kept["blend"] == {**served, "both_orders": False, "max_length": 512}
    assert len(json.loads((run / "diagnose/findings.json").read_text())["findings"]) == 17
    verdict = json.loads((run / "verdict/verdict.json").read_text())
    assert verdict["slug"] in ("ship", "blend", "keep", "inconclusive")
    assert (verdict["general"] in ("kept", "lost")) == (verdict["arm"] != "base")  # the base is as general as itself
    table = json.loads((run / "evaluate/table.json").read_text())
    reranked = ["base", "finetuned", "merged"]
    assert table["arms"] == ["retrieval", *reranked, *(f"{arm}-blend" for arm in reranked)]
    assert [row["metric"] for row in table["rows"]] == ["mrr@10", "recall@1", "ndcg@10"]
    assert len({cell["mean"] for cell in table["rows"][2]["cells"][:4]}) == 4, "the arms should differ"
    assert "| metric |" in (run / "evaluate/table.md").read_text()
    assert len(json.loads((run / "evaluate/tests.json").read_text())) == 3 * (6 + 5)
    assert parquet.read_table(run / "evaluate/per_query.parquet").num_rows == 10 * 7
    assert "<html" in (run / "report/index.html").read_text()


def test_the_front_of_the_run_folder_says_what_was_asked_and_on_what_it_ran(finished, tiny_experiment):
    run = finished / "tiny"
    assert config.load_experiment(run / "resolved.yaml") == config.validate(tiny_experiment)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"]


def test_the_provenance_tells_data_candidates_models_and_versions(finished, tiny_experiment):
    told = json.loads((finished / "tiny/evaluate/table.json").read_text())["provenance"]
    assert list(told) == ["data", "candidates", "base", "finetuned", "merged", "precision", "experiment", "versions"]
    assert told["data"].startswith(tiny_experiment["data"]["source"])
    assert len({told["base"], told["finetuned"], told["merged"]}) == 3
    assert told["base"].startswith("distilled (")
    assert told["precision"] == "exact; torch fp32 (as asked)"
    assert "transformers" in told["versions"]


def test_a_second_run_reuses_everything_and_gives_the_same_table(finished_copy, tiny_experiment):
    before = snapshot(finished_copy / "tiny")
    result = rw.run(tiny_experiment, runs=finished_copy)
    assert [(outcome.stage, outcome.action) for outcome in result.outcomes] == [(stage, "reused") for stage in STAGES]
    after = snapshot(finished_copy / "tiny")
    rewritten = {file for file in after if after[file] != before.get(file)}
    assert rewritten <= {"resolved.yaml", "environment.json", ".lock"}
    assert result.table == json.loads((finished_copy / "tiny/evaluate/table.json").read_text())


AFTER_MINE = set(STAGES[2:])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"report__examples": 1}, {"report"}),
        ({"evaluate__bootstrap": 200}, JUDGED),
        ({"rerank__depth": 5}, RERANKED),
        ({"merge__weights": [0.4, 0.6]}, {"merge", *RERANKED}),
        ({"train__finetuned__epochs": 1}, {"train/finetuned", "merge", *RERANKED}),
        ({"train__distilled__epochs": 2}, set(STAGES[3:])),
        ({"mine__negatives": 2}, AFTER_MINE),
        ({"retrieve__dense__depth": 15}, set(STAGES[1:])),
        ({"data__dedupe": False}, set(STAGES)),
        ({"seed": 4}, set(STAGES)),
        ({"device": "auto"}, set()),
        ({"train__finetuned__seed": 3}, set()),
        ({"merge__models": ["base", "finetuned"]}, set()),
        ({"merge__models": ["finetuned", "base"]}, {"merge", *RERANKED}),
        ({"train__distilled__loss": {"kl": 1}}, set()),
        ({"rerank__arms": {"base": "distilled", "finetuned": "finetuned", "merged": "merged"}}, set()),
        (
            {"rerank__arms": {"finetuned": "finetuned", "base": "distilled", "merged": "merged"}},
            RERANKED,
        ),
        ({"retrieve__words": {"kind": "bm25"}}, set(STAGES[1:])),
        ({"mine": None, "train": {}, "merge": None, "rerank": None}, {"evaluate", "report"}),
    ],
)
def test_a_changed_key_reruns_exactly_the_stages_that_it_can_change(changes, expected, finished, tiny_experiment):
    assert that_run(changed(tiny_experiment, **changes), finished) == expected


def test_the_reason_is_the_changed_key_and_then_the_stage_before(finished, tiny_experiment):
    plan = plan_of(changed(tiny_experiment, mine__negatives=2), finished)
    assert plan["retrieve"] == ("reuse", "unchanged")
    assert plan["mine"] == ("run", "mine.negatives: 3 -> 2")
    assert plan["train/distilled"] == ("run", "mine is new")
    assert plan["train/finetuned"] == ("run", "mine is new; train/distilled is new")
    assert plan["report"][1] == "blend is new; diagnose is new; and 5 more"


def test_a_dry_run_of_what_was_never_run_runs_all_and_touches_nothing(tmp_path, tiny_experiment):
    assert plan_of(tiny_experiment, tmp_path) == dict.fromkeys(STAGES, ("run", "not done yet"))
    assert not list(tmp_path.iterdir())


def test_what_a_dry_run_says_is_what_the_run_then_does(finished_copy, tiny_experiment):
    values = changed(tiny_experiment, train__finetuned__epochs=1)
    planned = plan_of(values, finished_copy)
    result = rw.run(values, runs=finished_copy)
    names = {"run": "ran", "reuse": "reused"}
    assert {outcome.stage: (outcome.action, outcome.why) for outcome in result.outcomes} == {
        stage: (names[action], why) for stage, (action, why) in planned.items()
    }
    assert [outcome.action for outcome in rw.run(values, runs=finished_copy).outcomes] == ["reused"] * len(STAGES)


def test_a_run_that_reuses_half_gives_the_numbers_of_one_that_does_all(finished, finished_copy, tiny_experiment):
    rw.run(changed(tiny_experiment, mine__negatives=2, rerank__depth=4), runs=finished_copy)
    rw.run(changed(tiny_experiment, mine__negatives=3, rerank__depth=10), runs=finished_copy)
    for file in ("table.json", "tests.json", "per_query.parquet"):
        assert (finished_copy / "tiny/evaluate" / file).read_bytes() == (finished / "tiny/evaluate" / file).read_bytes()


def test_other_content_under_the_same_name_reruns(finished, tiny_experiment, tiny_rows, lively_encoder, tmp_path):
    runs = shutil.copytree(finished, tmp_path / "runs")
    rows, encoder = shutil.copytree(tiny_rows, tmp_path / "rows"), shutil.copytree(lively_encoder, tmp_path / "encoder")
    values = changed(tiny_experiment, data__source=f"rows:{rows}", retrieve__dense__model=str(encoder))
    until_mine = [outcome.why for outcome in rw.run(values, runs=runs, until="mine").outcomes]
    assert until_mine[0].startswith("data.source: ")

    (rows / "train.jsonl").write_text((rows / "train.jsonl").read_text() + "\n")
    assert plan_of(values, runs)["data"] == ("run", "data.source changed")
    shutil.copy(tiny_rows / "train.jsonl", rows)
    assert plan_of(values, runs)["data"] == ("reuse", "unchanged")

    config_file = encoder / "config.json"
    config_file.write_text(config_file.read_text() + " ")
    assert plan_of(values, runs)["retrieve"] == ("run", f"{encoder} changed")
    assert plan_of(values, runs)["data"] == ("reuse", "unchanged")


def test_an_imported_run_that_changes_reruns(finished, tiny_experiment, tmp_path):
    runs = shutil.copytree(finished, tmp_path / "runs")
    files = {split: str(tmp_path / f"{split}.run") for split in ("train", "dev", "test")}
    for split, file in files.items():
        shutil.copy(finished / f"tiny/retrieve/dense.{split}.run", file)
    values = {
        **{key: tiny_experiment[key] for key in ("name", "seed", "data", "evaluate")},
        "retrieve": {"mine": {"kind": "import", "runs": files}},
    }
    rw.run(values, runs=runs)
    assert that_run(values, runs) == set()
    Path(files["test"]).write_text(Path(files["test"]).read_text() + "\n")
    plan = plan_of(values, runs)
    assert plan["retrieve"] == ("run", f"{files['test']} changed")
    assert plan["evaluate"] == ("run", "retrieve is new")


@pytest.mark.parametrize("lost", ["mine/groups.jsonl", "train/finetuned/model/config.json", "retrieve/dense.dev.run"])
def test_what_is_lost_is_made_again_and_what_follows_is_kept(lost, finished, finished_copy, tiny_experiment):
    (finished_copy / "tiny" / lost).unlink()
    outcomes = rw.run(tiny_experiment, runs=finished_copy).outcomes
    stage = lost.rpartition("/")[0].removesuffix("/model")
    assert {outcome.stage for outcome in outcomes if outcome.action == "ran"} == {stage}
    assert (finished_copy / "tiny" / lost).read_bytes() == (finished / "tiny" / lost).read_bytes()


def test_the_walk_stops_after_the_room_that_is_named(tmp_path, tiny_experiment):
    result = rw.run(tiny_experiment, runs=tmp_path, until="retrieve")
    assert [outcome.stage for outcome in result.outcomes] == ["data", "retrieve"]
    assert result.table is None
    assert result.report is None


@pytest.mark.parametrize(("changes", "room"), [({"merge": None}, "merge"), ({"report": None}, "report"), ({}, "bake")])
def test_a_room_without_a_section_cannot_be_walked_to(changes, room, tmp_path, tiny_experiment):
    with pytest.raises(ConfigError, match=f"no {room} section"):
        rw.run({**tiny_experiment, **changes}, runs=tmp_path, until=room)


def test_retrieval_alone_is_an_experiment_too(tmp_path, tiny_experiment):
    values = {key: tiny_experiment[key] for key in ("name", "seed", "data", "evaluate")}
    result = rw.run({**values, "retrieve": {"words": {"kind": "bm25"}}}, runs=tmp_path)
    assert [outcome.stage for outcome in result.outcomes] == ["data", "retrieve", "evaluate", "report"]
    assert result.table["arms"] == ["retrieval"]
    assert result.report.exists()


def test_a_reranker_filters_for_mining_where_one_is_named(tmp_path, tiny_experiment, tiny_reranker):
    values = changed(tiny_experiment, mine__filter_by=str(tiny_reranker), mine__drop_above=0.5)
    rw.run(values, runs=tmp_path, until="mine")
    dropped = [json.loads(line) for line in (tmp_path / "tiny/mine/dropped.jsonl").read_text().splitlines()]
    assert dropped
    model = rw.Reranker.load(tiny_reranker, device="cpu", max_length=512)
    for one in dropped[:5]:
        assert model.score([(one["query"], one["document"])])[0] == pytest.approx(one["score"], abs=1e-5)


def test_metrics_that_do_not_exist_are_refused_before_anything_runs(tmp_path, tiny_experiment):
    for changes in ({"evaluate__metrics": ["ndgc@10"]}, {"train__finetuned__dev__metric": "ndgc@10"}):
        with pytest.raises(ConfigError, match="did you mean ndcg@10"):
            rw.run(changed(tiny_experiment, **changes), runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_split_that_the_data_lack_is_a_data_error(tmp_path, tiny_experiment, tiny_rows):
    rows = shutil.copytree(tiny_rows, tmp_path / "rows")
    (rows / "dev.jsonl").unlink()
    values = changed(tiny_experiment, data__source=f"rows:{rows}", data__dev_share=0)
    with pytest.raises(DataError, match="there is no dev split to watch"):
        rw.run(values, runs=tmp_path / "runs", until="train")


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("stage", "writer"),
    [
        ("data", "rankwright.toolbox.formats.beir._write_qrels"),
        ("retrieve", "rankwright.toolbox.store._write_at"),
        ("mine", "rankwright.toolbox.formats.flag.write_groups"),
        ("train/distilled", "rankwright.toolbox.checkpoint.save"),
        ("train/distilled", "rankwright.toolbox.traininglog.TrainingLog.write"),
        ("merge", "rankwright.rooms.merge._write_tensors"),
        ("rerank", "rankwright.toolbox.store._write_at"),
        ("evaluate", "pyarrow.parquet.write_table"),
        ("report", "rankwright.pipeline.judging.write_text"),
        ("report", "os.fsync"),
    ],
)
def test_a_full_disk_is_one_clear_error_wherever_it_strikes(
    stage, writer, finished, finished_copy, tiny_experiment, monkeypatch
):
    shutil.rmtree(finished_copy / ".cache")
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(finished_copy / "tiny" / later)
    real = Walk._walk_through

    def walk_through(self, current):
        if current.name == stage:
            monkeypatch.setattr(writer, full)
        return real(self, current)

    monkeypatch.setattr(Walk, "_walk_through", walk_through)
    with pytest.raises(DiskError, match=r"(?i)no space left"):
        rw.run(tiny_experiment, runs=finished_copy)
    assert not (finished_copy / "tiny" / stage / "stage.json").exists()
    monkeypatch.undo()

    outcomes = rw.run(tiny_experiment, runs=finished_copy).outcomes
    assert {outcome.stage for outcome in outcomes if outcome.action != "reused"} == set(STAGES[STAGES.index(stage) :])
    for file in ("table.json", "per_query.parquet"):
        assert (finished_copy / "tiny/evaluate" / file).read_bytes() == (finished / "tiny/evaluate" / file).read_bytes()


def test_a_run_folder_that_cannot_be_made_is_a_disk_error(tmp_path, tiny_experiment, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(DiskError, match="Permission denied") as caught:
        rw.run(tiny_experiment, runs=tmp_path / "runs")
    assert "permissions" in caught.value.hint


def test_two_walks_do_not_share_a_run_folder(tmp_path, tiny_experiment):
    walk = Walk(config.validate(tiny_experiment), tmp_path)
    with walk.folder.locked(), pytest.raises(ArtefactError, match="another rankwright"):
        rw.run(tiny_experiment, runs=tmp_path)
    assert [file.name for file in (tmp_path / "tiny").iterdir()] == [".lock"]


def test_an_arm_that_is_no_reranker_is_a_model_error(tmp_path, finished_copy, tiny_experiment, lively_encoder):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (lively_encoder, empty):
        with pytest.raises(ModelError):
            rw.run(changed(tiny_experiment, rerank__arms={"one": str(folder)}), runs=finished_copy)


def test_a_status_tells_what_is_done_outdated_unfinished_and_not_begun(finished_copy, tiny_experiment):
    run = finished_copy / "tiny"
    assert {stage["stage"]: stage["state"] for stage in status(run)} == dict.fromkeys(STAGES, "done")
    assert all(stage["seconds"] >= 0 for stage in status(run))

    rw.run(changed(tiny_experiment, mine__negatives=2), runs=finished_copy, until="mine")
    states = {stage["stage"]: stage["state"] for stage in status(run)}
    assert states == {stage: "outdated" if stage in AFTER_MINE - {"mine"} else "done" for stage in STAGES}

    shutil.rmtree(run / "report")
    (run / "train/finetuned/stage.json").unlink()
    (run / "train/finetuned/unfinished").write_text("key")
    states = {stage["stage"]: stage for stage in status(run)}
    assert states["report"] == {"stage": "report", "state": "not begun"}
    assert states["train/finetuned"]["state"] == "unfinished"
    assert states["train/finetuned"]["steps"] == 12


def test_a_run_folder_can_be_moved_and_its_status_read(finished_copy):
    moved = (finished_copy / "tiny").rename(finished_copy / "elsewhere")
    assert {stage["state"] for stage in status(moved)} == {"done"}


def test_the_status_of_no_run_is_an_artefact_error(tmp_path):
    with pytest.raises(ArtefactError, match="no run is here"):
        status(tmp_path)


def test_the_resolved_yaml_is_an_experiment_that_reuses_everything(finished):
    values = yaml.safe_load((finished / "tiny/resolved.yaml").read_text())
    assert that_run(values, finished) == set()


def test_with_two_retrievers_their_fusions_are_arms_and_the_baseline_is_the_best_of_them_on_dev(
    tiny_experiment, finished_copy
):
    values = changed(tiny_experiment, retrieve__words={"kind": "bm25"}, rerank__candidates="dense")
    values = changed(values, mine__candidates="dense")
    result = rw.run(values, runs=finished_copy)
    assert result.table["arms"][:4] == ["retrieval", "rrf", "fused", "base"]
    chosen = json.loads((result.folder / "blend/choices.json").read_text())
    assert sum(chosen["fusion"]["weights"].values()) == pytest.approx(1)
    dev = {"retrieval": chosen["arms"]["base"]["retrieval"], **{way: chosen["fusion"][way] for way in ("rrf", "fused")}}
    assert dev[result.verdict["baseline"]] == max(dev.values())


def test_without_a_blend_or_a_diagnosis_the_walk_still_comes_to_a_verdict(tiny_experiment, finished_copy):
    values = changed(tiny_experiment, blend=None, diagnose=None, general=None)
    result = rw.run(values, runs=finished_copy)
    assert result.table["arms"] == ["retrieval", "base", "finetuned", "merged"]
    assert (result.verdict["arm"], result.verdict["general"]) == ("finetuned", "not measured")
    assert "<html" in result.report.read_text()


# ----------------------------------------------------------------------------------------------- beside the models


def settings(runs, model="train/finetuned"):
    return json.loads((runs / "tiny" / model / "model/rankwright.json").read_text())


def test_what_lay_beside_a_model_that_is_made_anew_is_put_there_again(finished_copy, tiny_experiment):
    before = settings(finished_copy)
    (finished_copy / "tiny/train/finetuned/model/config.json").unlink()
    rw.run(tiny_experiment, runs=finished_copy)
    assert settings(finished_copy) == before
    assert {"blend", "verdict"} <= before.keys()


def test_a_blend_that_is_not_asked_for_any_more_is_not_served_and_may_come_back(finished_copy, tiny_experiment):
    rw.run({**tiny_experiment, "blend": None}, runs=finished_copy)
    assert "blend" not in settings(finished_copy)
    assert not list((finished_copy / "tiny/rerank").glob("*.dev.run"))
    rw.run(tiny_experiment, runs=finished_copy)
    assert "blend" in settings(finished_copy)


def test_a_tuned_fusion_leaves_what_serving_it_takes(tmp_path, tiny_experiment):
    tuned = {"kind": "fuse", "of": ["dense", "words"], "method": "tuned", "prior": True}
    retrieve = {**tiny_experiment["retrieve"], "words": {"kind": "bm25"}, "hybrid": tuned}
    lines = rw.run({**tiny_experiment, "retrieve": retrieve}, runs=tmp_path, until="retrieve").outcomes[1].lines
    kept = json.loads((tmp_path / "tiny/retrieve/hybrid.json").read_text())
    assert sum(kept["weights"].values()) == pytest.approx(1)
    assert set(kept["scales"]["prior"]) == {"mean", "spread"}
    assert f"hybrid: {kept['line']}" in lines


def test_a_retriever_s_scorer_is_made_once_for_all_stages(finished, tiny_experiment, monkeypatch):
    made = []
    monkeypatch.setattr("rankwright.pipeline.base.pair_scorer", lambda *given: made.append(given[1]) or made.append)
    site = Site.of(config.validate(tiny_experiment), finished)
    assert site.pair_scorer("dense") is site.pair_scorer("dense")
    assert made == ["dense"]


# --------------------------------------------------------------------------------------- candidates without a tuned one


@pytest.mark.parametrize(("method", "there"), [("rrf", True), ("tuned", False)])
def test_candidates_that_nobody_tuned_do_not_excuse_from_beating_a_tuned_fusion(
    method, there, tmp_path, tiny_experiment
):
    fusion = {"kind": "fuse", "of": ["dense", "words"], "method": method}
    retrieve = {**tiny_experiment["retrieve"], "words": {"kind": "bm25"}, "hybrid": fusion}
    values = {**tiny_experiment, "retrieve": retrieve, "merge": None, "general": None, "diagnose": None}
    rw.run(values, runs=tmp_path)
    chosen = json.loads((tmp_path / "tiny/blend/choices.json").read_text())
    assert bool(chosen["fusion"]) == there


def test_dev_queries_without_candidates_choose_no_blend(finished, finished_copy, tiny_experiment, tmp_path):
    files = {split: str(tmp_path / f"{split}.run") for split in ("train", "test")}
    for split, file in files.items():
        shutil.copy(finished / f"tiny/retrieve/dense.{split}.run", file)
    values = {**tiny_experiment, "retrieve": {"mine": {"kind": "import", "runs": files}}, "merge": None}
    for training in values["train"].values():
        training |= {"dev": None, "keep": "last"}
    result = rw.run(values, runs=finished_copy)
    assert result.table["arms"] == ["retrieval", "base", "finetuned"]
    assert result.verdict["weight"] is None


def test_a_measured_split_without_candidates_stops_before_anything_is_trained(finished, tiny_experiment, tmp_path):
    files = {split: str(tmp_path / f"{split}.run") for split in ("train", "dev")}
    for split, file in files.items():
        shutil.copy(finished / f"tiny/retrieve/dense.{split}.run", file)
    values = {**tiny_experiment, "retrieve": {"mine": {"kind": "import", "runs": files}}}
    with pytest.raises(DataError, match="no candidate for any of the 10 queries of test"):
        rw.run(values, runs=tmp_path / "runs")
    assert not (tmp_path / "runs/tiny/train").exists()


# ------------------------------------------------------------------------------------------------------ run folders


def test_a_run_folder_that_was_moved_goes_on_where_it_is(finished, tmp_path):
    moved = shutil.copytree(finished / "tiny", tmp_path / "kept-v1")
    shutil.copytree(finished / ".cache", tmp_path / ".cache")
    result = rw.run(moved)
    assert result.folder.resolve() == moved.resolve()
    assert {outcome.action for outcome in result.outcomes} == {"reused"}
    assert {outcome.action for outcome in rw.api.dry_run(moved)} == {"reuse"}
    assert not (tmp_path / "tiny").exists()


def test_a_run_folder_may_be_the_start_of_another_run(finished_copy):
    result = rw.run(finished_copy / "tiny", overrides=["name=other", "report.examples=1"])
    assert result.folder.name == "other"
    assert (finished_copy / "tiny/report/stage.json").exists()


def test_a_folder_whose_name_no_run_can_have_is_refused_before_anything_is_written(finished, tmp_path):
    copied = shutil.copytree(finished / "tiny", tmp_path / "tiny (1)")
    before = snapshot(copied)
    with pytest.raises(ConfigError, match=r"'tiny \(1\)' cannot be the name of a run"):
        rw.run(copied)
    assert snapshot(copied) == before
