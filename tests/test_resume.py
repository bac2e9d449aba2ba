"""Kill -9 in every stage, and go on: the numbers are the same, byte for byte.

One driver process imports everything and then forks a process for each command: a fresh process as far as rankwright
can see, without the seconds that importing torch takes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

DRIVER = """
import importlib, json, os, signal, sys, traceback
from functools import reduce

import accelerate, datasets, faiss, ir_measures, pandas, pyarrow.parquet, scipy.stats, sentence_transformers
import tensorboardX, torch, transformers
from rankwright import api, cli, pipeline
from rankwright.rooms import evaluate, merge, mine, report, rerank, retrieve, train
from rankwright.toolbox import embed, engine

embed.CHUNK = engine.WINDOW = 16  # so that there is a shard to go on from in so few texts
importlib.import_module("rankwright.auto.search").SMALLEST = 40  # so that a search is one of so few groups


def kill_at(place, nth, when="before"):
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(owner, name), 0

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        result = original(*args, **kwargs) if calls < nth or when == "after" else None
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)


def child(order):
    with open(order["out"], "wb") as out:
        os.dup2(out.fileno(), 1)
    with open(order["out"] + ".err", "wb") as err:
        os.dup2(err.fileno(), 2)
    if order["kill"]:
        kill_at(*order["kill"])
    sys.argv = ["rankwright", *order["argv"]]
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        child(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

STAGES = (
    *("data", "retrieve", "mine", "train/distilled", "train/finetuned", "merge"),
    *("rerank", "blend", "general", "evaluate", "diagnose", "verdict", "report"),
)

KILLS = {
    "data, between two files": ("data", "rankwright.toolbox.formats.beir:_write_qrels", 2),
    "retrieve, between a shard's rows and its keys": ("retrieve", "rankwright.toolbox.store:_write_at", 6),
    "retrieve, while a run is written": ("retrieve", "rankwright.toolbox.formats.trec:write_run", 2),
    "mine, between two files": ("mine", "rankwright.toolbox.formats.flag:write_groups", 2),
    "train, before the first checkpoint": ("train/distilled", "rankwright.toolbox.checkpoint:save", 1),
    "train, in the middle of an epoch": ("train/finetuned", "rankwright.rooms.train:_Loop._step", 4 + 6),
    "train, after its best step": ("train/finetuned", "rankwright.rooms.train:_Loop._step", 4 + 11),
    "train, while a checkpoint is written": ("train/finetuned", "torch:save", 8),
    "train, while the model is saved": ("train/finetuned", "rankwright.toolbox.model:Reranker._write", 2),
    "train, just after it is done": ("train/distilled", "rankwright.workspace:write_json", 4, "after"),
    "merge, before the tensors": ("merge", "rankwright.rooms.merge:_write_tensors", 1),
    "merge, before the folder takes its name": ("merge", "rankwright.rooms.merge:_replace", 1),
    "rerank, between two shards of an arm": ("rerank", "rankwright.toolbox.scorer:CachedScorer._compute", 10),
    "evaluate, between two files": ("evaluate", "pyarrow.parquet:write_table", 1),
    "report, before the page": ("report", "rankwright.pipeline.judging:report", 1),
}
"""Where: the stage, the function, and the how-manieth call of it that SIGKILL comes before (or after).

The trainings have 4 and 12 steps, 6 an epoch; the best of the second is its sixth.
"""


@pytest.fixture(scope="module")
def driver():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def command(driver, tmp_path, tiny_file):
    def run(runs, kill=None):
        """Exit code (negative: the signal), JSON or None."""
        out = tmp_path / f"{runs.name}.out"
        argv = ["run", str(tiny_file), "--runs", str(runs), "--json"]
        driver.stdin.write(json.dumps({"argv": argv, "kill": kill, "out": str(out)}) + "\n")
        driver.stdin.flush()
        code = int(driver.stdout.readline())
        assert code in (0, -signal.SIGKILL), (tmp_path / f"{out.name}.err").read_text()
        return code, json.loads(out.read_text() or "null")

    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.fixture
def expected(uninterrupted, command):
    """The evaluate folder of a run that nobody stopped, in another folder."""
    if not (uninterrupted / "tiny").exists():
        assert command(uninterrupted)[0] == 0
    return uninterrupted / "tiny"


def measured(run):
    return {file.name: file.read_bytes() for file in sorted((run / "evaluate").iterdir()) if file.name != "stage.json"}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_goes_on_to_the_same_numbers(kill, command, expected, tmp_path):
    stage, *place = KILLS[kill]
    run = tmp_path / "runs" / "tiny"
    code, told = command(tmp_path / "runs", place)
    assert (code, told) == (-signal.SIGKILL, None), "the kill did not happen: is the place still right?"

    done = [name for name in STAGES if (run / name / "stage.json").exists()]
    just_done = kill.endswith("it is done")
    assert done == list(STAGES[: STAGES.index(stage) + just_done])
    assert (run / stage / "unfinished").exists() or just_done

    code, told = command(tmp_path / "runs")
    assert code == 0
    actions = {outcome["stage"]: outcome["action"] for outcome in told["stages"]}
    after = STAGES[len(done) + (not just_done) :]
    assert actions == {
        **dict.fromkeys(done, "reused"),
        **({} if just_done else {stage: "resumed"}),
        **dict.fromkeys(after, "ran"),
    }
    assert measured(run) == measured(expected)
    assert set(measured(run)) == {"table.json", "table.md", "tests.json", "per_query.parquet"}
    assert not list(run.rglob("unfinished"))


def test_a_training_goes_on_from_its_checkpoint_and_not_from_its_beginning(command, expected, tmp_path):
    _, *place = KILLS["train, in the middle of an epoch"]
    command(tmp_path / "runs", place)
    training = tmp_path / "runs" / "tiny" / "train" / "finetuned"
    (checkpoint,) = (training / "checkpoints").glob("step-*")
    left = 12 - int(checkpoint.name.removeprefix("step-"))
    assert left == 8
    step = place[0]
    assert command(tmp_path / "runs", [step, left + 1])[0] == 0, "it did more steps than were left"
    log, model = "log.jsonl", "model/model.safetensors"
    for file in (log, model):
        assert (training / file).read_bytes() == (expected / "train/finetuned" / file).read_bytes(), file


def test_a_second_kill_in_the_same_stage_is_survived_too(command, expected, tmp_path):
    for nth in (4 + 4, 3):
        assert command(tmp_path / "runs", ["rankwright.rooms.train:_Loop._step", nth])[0] == -signal.SIGKILL
    assert command(tmp_path / "runs")[0] == 0
    assert measured(tmp_path / "runs/tiny") == measured(expected)


def test_what_was_begun_with_another_key_is_not_gone_on_with(command, expected, tmp_path, tiny_file):
    _, *place = KILLS["train, in the middle of an epoch"]
    text = tiny_file.read_text()
    tiny_file.write_text(text.replace("epochs: 2", "epochs: 3"))
    command(tmp_path / "runs", place)
    tiny_file.write_text(text)
    code, told = command(tmp_path / "runs")
    assert code == 0
    assert {outcome["stage"]: outcome["action"] for outcome in told["stages"]}["train/finetuned"] == "ran"
    assert measured(tmp_path / "runs/tiny") == measured(expected)


def test_warm_caches_of_another_run_give_the_same_numbers(command, expected, tmp_path):
    shutil.copytree(expected.parent / ".cache", tmp_path / "runs/.cache")
    assert command(tmp_path / "runs")[0] == 0
    assert measured(tmp_path / "runs/tiny") == measured(expected)


SEARCH_KILLS = {
    "in the middle of a trial's training": ("rankwright.rooms.train:_Loop._step", 17),
    "while the trials' models are deleted": ("rankwright.auto.trials:_delete", 2),
}
"""As in KILLS. The base's distillation has 12 steps, each trial of the first rung 3: a rival's is under way."""


@pytest.fixture
def searching(tiny_file, tiny_experiment):
    """The experiment's file asks for a search, and for little more."""
    finetuned = tiny_experiment["train"]["finetuned"]
    own = {key: finetuned[key] for key in ("learning_rate", "batch", "max_length", "precision")}
    base = tiny_experiment["train"]["distilled"]["base"]
    off = dict.fromkeys(("mine", "merge", "general", "blend", "diagnose", "verdict", "report", "rerank", "evaluate"))
    values = {**tiny_experiment, **off, "train": {"recipe": "auto", "budget": "2600 pairs", "base": base, **own}}
    tiny_file.write_text(json.dumps(values))


@pytest.mark.parametrize("kill", SEARCH_KILLS)
def test_a_killed_search_goes_on_to_the_same_trainings_and_weights(
    kill, searching, command, uninterrupted, tmp_path, tiny_file
):
    expected = uninterrupted / "searched" / "tiny"
    if not expected.exists():
        assert command(expected.parent)[0] == 0
    run = tmp_path / "runs" / "tiny"
    assert command(tmp_path / "runs", SEARCH_KILLS[kill])[0] == -signal.SIGKILL
    assert (run / "recipe/finetuned/unfinished").exists()
    assert bool(list(run.rglob("checkpoints/step-*"))) == ("training" in kill)
    code, told = command(tmp_path / "runs")
    assert code == 0
    actions = {outcome["stage"]: outcome["action"] for outcome in told["stages"]}
    assert actions == {
        **{"data": "reused", "retrieve": "reused", "recipe/finetuned": "resumed"},
        **{"train/finetuned-base": "ran", "train/finetuned": "ran"},
    }
    for file in ("resolved.yaml", "recipe/finetuned/recipe.json", "train/finetuned/model/model.safetensors"):
        assert (run / file).read_bytes() == (expected / file).read_bytes(), file
    assert not list(run.rglob("unfinished"))
    assert not list(run.rglob("checkpoints"))
    assert not list(run.rglob("gone"))
