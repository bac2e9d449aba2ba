from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from rankwright import api, cli, errors
from rankwright.config import load_experiment
from rankwright.version import __version__

STAGES = [
    *("data", "retrieve", "mine", "train/distilled", "train/finetuned", "merge", "rerank"),
    *("blend", "general", "evaluate", "diagnose", "verdict", "report"),
]
COMMANDS = list(typer.main.get_command(cli.app).commands)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rankwright(monkeypatch, capsys):
    """Run the command line as it is run: exit code, stdout, stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["rankwright", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


@pytest.fixture
def small_file(tmp_path, tiny_rows):
    """An experiment on the tiny rows whose models are named by --set."""
    path = tmp_path / "small.yaml"
    values = {
        "name": "small",
        "device": "cpu",
        "data": {"source": f"rows:{tiny_rows}"},
        "retrieve": {"dense": {"kind": "dense", "model": "nobody/nothing", "depth": 20}},
        "mine": {"negatives": 3, "random": 1},
        "train": {"finetuned": {"base": "nobody/nothing", "batch": 4}},
        "rerank": {"depth": 10},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def files():
    """Everything in the working folder, with its content."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_answers_help(command, option):
    result = CliRunner().invoke(cli.app, [command, option])
    assert result.exit_code == 0
    assert f" {command} " in result.output.partition("\n\n")[0].replace("\n", " \n")


def test_the_front_page_names_every_command_and_exit_code():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert [command for command in COMMANDS if f" {command} " not in result.output] == []
    assert "130 stopped" in " ".join(result.output.split())


def test_rooms_are_commands_and_so_are_the_others():
    assert sorted(COMMANDS) == sorted([*cli.ROOM_HELP, "run", "demo", "check", "status", "init"])


def test_no_word_at_all_shows_the_help():
    assert "Usage" in CliRunner().invoke(cli.app, []).output


def test_version(rankwright):
    assert rankwright("--version") == (0, f"{__version__}\n", "")


def test_importing_the_command_line_loads_nothing_heavy():
    code = (
        "import sys, rankwright.cli; print(sorted({'torch', 'pydantic', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["bogus"], ["run"], ["run", "x.yaml", "--bogus"], ["status"]])
def test_a_command_line_that_is_not_understood_is_2(rankwright, words):
    code, out, err = rankwright(*words)
    assert (code, out) == (2, "")
    assert "Usage" in err


# ---------------------------------------------------------------------------------------------- errors


def test_configuration_is_2_and_says_what_to_try(rankwright):
    code, out, err = rankwright("run", "nosuch")
    assert (code, out) == (2, "")
    assert "error: no experiment file 'nosuch'" in err
    assert f"try: rankwright init DATA writes one; shipped with rankwright: {', '.join(api.shipped())}" in err


def test_an_unknown_key_is_2_with_file_and_line(rankwright, small_file):
    small_file.write_text(small_file.read_text() + "rerankk: {}\n")
    code, _, err = rankwright("check", small_file)
    line = len(small_file.read_text().splitlines())
    assert code == 2
    assert f"{small_file}:{line}: unknown key rerankk; did you mean rerank?" in err


def test_a_room_without_a_section_is_2(rankwright, small_file):
    code, _, err = rankwright("merge", small_file, "--dry-run")
    assert code == 2
    assert "the experiment has no merge section\n  try: add `merge: {}` to it" in err


def test_data_is_3(rankwright, small_file):
    code, out, err = rankwright("check", small_file, "--set", "data.source=rows:gone")
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert "gone" in err


def test_a_model_is_4(rankwright, small_file):
    code, out, err = rankwright("check", small_file, "--set", "retrieve.dense.model=./gone")
    assert (code, out) == (4, "")
    assert "error: no model folder './gone'\n  try: check the path" in err


def test_a_run_folder_is_5(rankwright):
    code, out, err = rankwright("status", "runs/gone")
    assert (code, out) == (5, "")
    assert err == "error: runs/gone: no run is here\n  try: name a run folder, as in runs/demo\n"


@pytest.mark.parametrize("family", errors.RankwrightError.__subclasses__())
def test_every_family_has_its_own_code_and_its_hint(rankwright, monkeypatch, family):
    def fail(*args, **kwargs):
        raise family("it broke", where="x.yaml:3", hint="mend it")

    monkeypatch.setattr(api, "run", fail)
    code, out, err = rankwright("run", "x.yaml")
    assert (code, out, err) == (family.exit_code, "", "error: x.yaml:3: it broke\n  try: mend it\n")


def test_a_stop_is_130_and_says_that_it_goes_on(rankwright, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run", stop)
    code, out, err = rankwright("run", "x.yaml")
    assert (code, out) == (130, "")
    assert "stopped; the same command goes on from here" in err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(api, "run", fail)
    monkeypatch.setattr(sys, "argv", ["rankwright", "run", "x.yaml"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# ------------------------------------------------------------------------------------------------- run


def test_a_dry_run_names_every_stage_and_writes_nothing(rankwright, tiny_file):
    before = files()
    code, out, _ = rankwright("run", tiny_file, "--dry-run")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [[stage, "run"] for stage in STAGES]
    assert all(line.endswith("not done yet") for line in out.splitlines())
    assert files() == before


def test_a_rooms_dry_run_ends_with_that_room(rankwright, tiny_file):
    code, out, _ = rankwright("train", tiny_file, "--dry-run", "--json")
    assert code == 0
    assert [stage["stage"] for stage in json.loads(out)["stages"]] == STAGES[:5]
    assert not Path("runs").exists()


def test_the_demo_can_be_looked_at_without_running(rankwright):
    code, out, _ = rankwright("demo", "--dry-run", "--set", "merge=null", "--set", "rag=null")
    assert code == 0
    stages = [line.split()[0] for line in out.splitlines()]
    assert stages[:4] == ["data", "retrieve", "recipe/finetuned", "train/finetuned"]
    assert stages[4:] == STAGES[STAGES.index("rerank") :]
    assert files() == {}


def test_one_room_runs_is_reused_and_shows_in_status(rankwright, tiny_file):
    code, out, err = rankwright("data", tiny_file, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told["run"] == "runs/tiny"
    assert [(stage["stage"], stage["action"]) for stage in told["stages"]] == [("data", "ran")]
    assert (told["table"], told["report"]) == (None, None)

    again = json.loads(rankwright("data", tiny_file, "--json")[1])
    assert [stage["action"] for stage in again["stages"]] == ["reused"]

    plan = rankwright("retrieve", tiny_file, "--dry-run")[1].splitlines()
    assert [line.split()[:2] for line in plan] == [["data", "reuse"], ["retrieve", "run"]]
    changed = rankwright("data", tiny_file, "--dry-run", "--set", "data.dedupe=false")[1]
    assert re.search(r"data +run +data\.dedupe: true -> false", changed)

    states = {line.split()[0]: line for line in rankwright("status", "runs/tiny")[1].splitlines()}
    assert list(states) == STAGES
    assert re.search(r"data +done +\d+\.\d s$", states["data"])
    assert states["retrieve"].endswith("not begun")
    listed = json.loads(rankwright("status", "runs/tiny", "--json")[1])
    assert [stage["state"] for stage in listed["stages"]] == ["done", *["not begun"] * 12]


def test_runs_can_be_kept_elsewhere(rankwright, tiny_file):
    code, out, _ = rankwright("data", tiny_file, "--runs", "other", "--set", "name=b")
    assert code == 0
    assert "run folder: other/b" in out
    assert not Path("runs").exists()


def test_the_whole_walk_ends_with_the_table_and_the_page(rankwright, tiny_file):
    fast = ["--set", "train.finetuned.epochs=1", "--set", "evaluate.metrics=[mrr@10]", "--set", "verdict.metric=mrr@10"]
    code, out, err = rankwright("run", tiny_file, *fast)
    assert code == 0
    for told in ("MRR@10", "retrieval", "+ base", "+ fine-tuned", "+ merged", "s in all: data "):
        assert told in out
    assert out.splitlines()[-1] == "report: runs/tiny/report/index.html"
    assert Path("runs/tiny/report/index.html").is_file()
    assert re.findall(r"^(\S+) +done ", err, re.MULTILINE) == STAGES

    code, out, err = rankwright("run", tiny_file, *fast, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert {stage["action"] for stage in told["stages"]} == {"reused"}
    assert told["report"] == "runs/tiny/report/index.html"
    assert told["table"]["rows"]


# ----------------------------------------------------------------------------------------------- check


def test_check_counts_and_forecasts_and_writes_nothing(rankwright, small_file, tiny_encoder):
    before = files()
    models = [f"--set=retrieve.dense.model={tiny_encoder}", f"--set=train.finetuned.base={tiny_encoder}"]
    code, out, _ = rankwright("check", small_file, *models)
    assert code == 0
    assert "160 documents" in out
    assert re.search(r"train\b.*\b24\b", out)
    assert re.search(r"retrieve dense +200 texts +\d+ s +0\.5 GB", out)
    assert re.search(r"mine +144 pairs at most", out)
    assert re.search(r"train finetuned +144 pairs", out)
    assert re.search(r"rerank finetuned +160 pairs", out)
    assert re.search(r"about \d+ s in all; rough", out)
    assert files() == before


def test_check_says_what_cannot_be_timed(rankwright, small_file):
    code, out, _ = rankwright("check", small_file)
    assert code == 0
    assert re.search(r"retrieve dense +200 texts +\? +cannot be timed: cannot reach the hub", out)
    assert "in all, without what cannot be timed; rough" in out


def test_check_as_json_parses(rankwright, small_file):
    code, out, _ = rankwright("check", small_file, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["data"]["documents"] == 160
    assert {split: counts["queries"] for split, counts in told["data"]["splits"].items()} == {
        "train": 24,
        "dev": 6,
        "test": 10,
    }
    assert [line["stage"] for line in told["work"]][:3] == ["retrieve dense", "mine", "train finetuned"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_durations_are_told_in_the_unit_that_fits(seconds, told):
    assert cli._duration(seconds) == told


# ---------------------------------------------------------------------------------------------- recipe


@pytest.fixture
def searching_file(tmp_path, tiny_experiment, lively_encoder):
    """The tiny experiment, its training found by a search that can pay for little."""
    training = {"recipe": "auto", "budget": "3000 pairs", "base": str(lively_encoder), "learning_rate": 3e-3}
    training |= {"batch": 4, "max_length": 32, "precision": "fp32"}
    path = tmp_path / "searching.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment | {"mine": None, "train": {"finetuned": training}}))
    return path


def test_a_search_prints_its_table_again_when_it_is_reused(rankwright, searching_file):
    code, out, err = rankwright("recipe", searching_file)
    assert code == 0
    assert re.match(r"recipe +pairs +dev +against the first\nbase .*\n", out)
    assert "of the budget\n" in out
    assert "recipe/finetuned   runs" in err

    code, again, err = rankwright("recipe", searching_file)
    assert (code, again) == (0, out)
    assert "recipe/finetuned   reused" in err

    told = json.loads(rankwright("recipe", searching_file, "--json")[1])
    assert told["finetuned"]["lines"] == out.splitlines()
    assert list(told["finetuned"]["trainings"]) == ["finetuned-base", "finetuned"]

    plan = rankwright("recipe", searching_file, "--dry-run")[1].splitlines()
    assert [line.split()[:2] for line in plan] == [
        [stage, "reuse"] for stage in ("data", "retrieve", "recipe/finetuned")
    ]


def test_the_report_shows_the_search_and_a_walk_from_the_resolved_file_reuses_it_all(rankwright, searching_file):
    assert rankwright("run", searching_file)[0] == 0
    page = Path("runs/tiny/report/index.html")
    assert 'id="recipe"' in page.read_text()
    plan = rankwright("run", "runs/tiny", "--dry-run")[1].splitlines()
    assert plan[-1].startswith("report ")
    assert {line.split()[1] for line in plan} == {"reuse"}

    code, _, _ = rankwright("report", "runs/tiny", "--set", "train.finetuned.learning_rate=0.001")
    assert code == 0
    assert 'id="recipe"' not in page.read_text()  # its recipe is not the one that the search found


def test_an_experiment_without_a_search_has_no_recipe_to_find(rankwright, tiny_file):
    code, out, err = rankwright("recipe", tiny_file, "--dry-run")
    assert (code, out) == (2, "")
    assert "recipe: auto" in err


# ------------------------------------------------------------------------------------------------ init


def test_init_writes_an_experiment_that_loads(rankwright, tiny_rows):
    code, out, err = rankwright("init", tiny_rows, "--out", "deep/mine.yaml")
    assert (code, err) == (0, "")
    assert "rankwright check deep/mine.yaml" in out
    experiment = load_experiment("deep/mine.yaml")
    assert (experiment.name, experiment.data.source) == ("mine", f"rows:{tiny_rows}")
    assert list(files()) == ["deep/mine.yaml"]


def test_init_takes_a_kind_and_location_and_has_a_usual_name(rankwright):
    assert rankwright("init", "hub:mteb/scidocs-reranking")[0] == 0
    assert load_experiment("experiment.yaml").data.source == "hub:mteb/scidocs-reranking"


@pytest.mark.parametrize("name", ["2024", "1e5", "no", "null", "2024-01-31"])
def test_init_keeps_a_name_that_yaml_would_not_read_as_a_word(rankwright, name):
    assert rankwright("init", "seealso:", "--out", f"{name}.yaml")[0] == 0
    assert load_experiment(f"{name}.yaml").name == name


def test_init_writes_a_path_in_any_script_as_a_person_reads_it(rankwright):
    assert rankwright("init", "rows:データ/ünï.jsonl")[0] == 0
    assert 'source: "rows:データ/ünï.jsonl"' in Path("experiment.yaml").read_text(encoding="utf-8")


def test_init_of_nothing_writes_nothing(rankwright):
    code, out, err = rankwright("init", "gone")
    assert (code, out) == (3, "")
    assert "cannot make an experiment of 'gone': nothing is there\n  try: " in err
    assert files() == {}


def test_init_overwrites_only_by_force(rankwright):
    Path("experiment.yaml").write_text("mine: own\n")
    code, _, err = rankwright("init", "seealso:")
    assert code == 2
    assert err == "error: experiment.yaml: it is there already\n  try: --force, or another --out\n"
    assert Path("experiment.yaml").read_text() == "mine: own\n"
    assert rankwright("init", "seealso:", "--force")[0] == 0
    assert load_experiment("experiment.yaml").data.source == "seealso:"


def test_init_never_takes_a_folder_for_its_file(rankwright):
    Path("folder").mkdir()
    assert rankwright("init", "seealso:", "--out", "folder", "--force")[0] == 2


# --------------------------------------------------------------------------------------------- verdict


def test_an_unwanted_verdict_has_an_exit_code_of_its_own(rankwright, finished_copy):
    run = finished_copy / "tiny"
    found = json.loads((run / "verdict/verdict.json").read_text())
    code, out, _ = rankwright("verdict", run, "--fail-unless", found["slug"])
    assert code == 0
    assert found["lines"][0] in out
    others = ",".join({"ship", "blend", "keep", "inconclusive"} - {found["slug"]})
    code, _, err = rankwright("run", run, "--fail-unless", others)
    assert code == 8
    assert f"the verdict is {found['word']}" in err


def test_a_verdict_that_does_not_exist_is_refused_before_any_work(rankwright, tiny_file):
    code, _, err = rankwright("run", tiny_file, "--fail-unless", "shp")
    assert code == 2
    assert "ship,blend,keep,inconclusive" in err
    assert not Path("runs").exists()


def test_a_finished_run_is_diagnosed_by_its_folder(rankwright, finished_copy):
    code, out, _ = rankwright("diagnose", finished_copy / "tiny")
    assert code == 0
    assert "reranked minus retrieved, as served: " in out
    assert " is left: the model itself" in out
    told = json.loads(rankwright("diagnose", finished_copy / "tiny", "--json")[1])
    assert len(told["findings"]) == 17


def test_a_run_and_files_together_are_refused(rankwright, finished_copy):
    code, _, err = rankwright("diagnose", finished_copy / "tiny", "--qrels", "q.txt")
    assert code == 2
    assert "not both" in err
