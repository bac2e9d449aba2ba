from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from rankwright.errors import ArtefactError, DataError, DiskError
from rankwright.workspace import RunFolder, disk_errors, stage_key, write_json, write_text

MADE_OF = {"mine.negatives": 7, "mine.window": [1, 50], "input.retrieve": "abc", "content.offline": "w", "room": 1}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "exp")


def make(folder, name="mine", made_of=MADE_OF, **files):
    with folder.making(name, made_of) as out:
        for file, text in (files or {"groups.jsonl": "one\n"}).items():
            (out / file).write_text(text)


def test_a_stage_that_is_made_is_reused_and_one_that_is_not_is_run(folder):
    decision = folder.decide("mine", MADE_OF)
    assert (decision.reuse, decision.why) == (False, "not done yet")
    make(folder)
    decision = folder.decide("mine", MADE_OF)
    assert (decision.reuse, decision.why) == (True, "unchanged")
    done = json.loads((folder.stage("mine") / "stage.json").read_text())
    assert done["made_of"] == MADE_OF
    assert done["key"] == stage_key(MADE_OF)
    assert done["outputs"] == {"groups.jsonl": 4}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mine.negatives": 3}, "mine.negatives: 7 -> 3"),
        ({"input.retrieve": "def"}, "retrieve is new"),
        ({"content.offline": "v"}, "offline changed"),
        ({"room": 2}, "rankwright's own room version: 1 -> 2"),
        ({"mine.random": 2}, "mine.random: null -> 2"),
        ({"mine.random": None}, "mine.random: null -> null"),
        ({"input.retrieve": "def", "mine.negatives": 3}, "mine.negatives: 7 -> 3; retrieve is new"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "a: null -> 1; b: null -> 2; and 2 more"),
        ({"mine.window": [1, 30]}, "mine.window: [1, 50] -> [1, 30]"),
    ],
)
def test_a_change_is_told_and_reruns(folder, changes, why):
    make(folder)
    decision = folder.decide("mine", {**MADE_OF, **changes})
    assert (decision.reuse, decision.resume, decision.why) == (False, False, why)


def test_a_value_that_is_gone_reruns_and_long_values_are_cut(folder):
    make(folder, made_of={**MADE_OF, "mine.extra": "x" * 100})
    decision = folder.decide("mine", MADE_OF)
    assert not decision.reuse
    assert decision.why == f'mine.extra: "{"x" * 36}… -> null'


def test_the_key_does_not_depend_on_the_order_of_names_but_on_every_value():
    assert stage_key(dict(reversed(MADE_OF.items()))) == stage_key(MADE_OF)
    for name in MADE_OF:
        assert stage_key({**MADE_OF, name: "other"}) != stage_key(MADE_OF)


def test_an_output_that_is_lost_or_cut_reruns(folder):
    make(folder, **{"groups.jsonl": "one\n", "dropped.jsonl": "two\n"})
    (folder.stage("mine") / "dropped.jsonl").write_text("tw")
    assert folder.decide("mine", MADE_OF).why == "dropped.jsonl is gone or changed"
    (folder.stage("mine") / "dropped.jsonl").unlink()
    assert not folder.decide("mine", MADE_OF).reuse
    make(folder, **{"groups.jsonl": "one\n", "dropped.jsonl": "two\n"})
    assert folder.decide("mine", MADE_OF).reuse


def test_scratch_and_hidden_files_are_no_outputs_and_scratch_goes_when_the_stage_is_done(folder):
    with folder.making("train/a", MADE_OF) as out:
        for name in ("model/config.json", "checkpoints/step-1/x", "tensorboard/events", ".lock"):
            write_text(out / name, "x")
    assert list(folder.read("train/a")["outputs"]) == ["model/config.json"]
    assert sorted(path.name for path in folder.stage("train/a").iterdir()) == [
        *(".lock", "model", "stage.json", "tensorboard")
    ]


def test_work_that_stopped_is_gone_on_with_when_the_key_is_the_same(folder):
    with pytest.raises(ZeroDivisionError), folder.making("mine", MADE_OF) as out:
        (out / "half").write_text("half")
        1 / 0  # noqa: B018
    assert folder.read("mine") is None
    decision = folder.decide("mine", MADE_OF)
    assert (decision.reuse, decision.resume, decision.why) == (False, True, "goes on where it was stopped")
    with folder.making("mine", MADE_OF) as out:
        assert (out / "half").read_text() == "half"


def test_work_that_stopped_is_thrown_away_when_the_key_is_another(folder):
    with pytest.raises(ZeroDivisionError), folder.making("mine", MADE_OF) as out:
        (out / "half").write_text("half")
        1 / 0  # noqa: B018
    other = {**MADE_OF, "mine.negatives": 3}
    assert folder.decide("mine", other).resume is False
    with folder.making("mine", other) as out:
        assert [file.name for file in out.iterdir()] == ["unfinished"]


def test_a_stage_made_anew_is_not_done_while_it_is_being_made(folder):
    make(folder)
    with folder.making("mine", {**MADE_OF, "mine.negatives": 3}):
        assert folder.read("mine") is None


def test_a_kill_while_old_work_is_thrown_away_does_not_let_its_rest_be_gone_on_with(folder, monkeypatch):
    with pytest.raises(ZeroDivisionError), folder.making("mine", MADE_OF) as out:
        write_text(out / "checkpoints/step-1/weights", "half")
        1 / 0  # noqa: B018

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt), folder.making("mine", {**MADE_OF, "mine.negatives": 3}):
        pass
    assert folder.decide("mine", MADE_OF).resume is False


def test_the_stage_file_is_the_last_to_be_written(folder, monkeypatch):
    with pytest.raises(OSError, match="full"), folder.making("mine", MADE_OF) as out:
        (out / "groups.jsonl").write_text("one\n")
        monkeypatch.setattr(os, "fsync", full_disk)
    monkeypatch.undo()
    assert sorted(file.name for file in folder.stage("mine").iterdir()) == ["groups.jsonl", "unfinished"]
    assert folder.read("mine") is None


@pytest.mark.parametrize("text", ["{", "{}", '{"key": "x"}', "null", "[]"])
def test_a_damaged_stage_file_is_an_artefact_error(folder, text):
    write_text(folder.stage("mine") / "stage.json", text)
    with pytest.raises(ArtefactError, match="not a stage file"):
        folder.decide("mine", MADE_OF)


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device: full")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old\n")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new\n")
    monkeypatch.undo()
    assert path.read_text() == "old\n"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()


def test_json_that_no_other_program_would_read_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.ENOSPC, "space"), (errno.EDQUOT, "space"), (errno.EROFS, "permissions"), (13, "--runs")]
)
def test_a_full_or_read_only_disk_is_a_disk_error(tmp_path, number, hint):
    with pytest.raises(DiskError) as caught, disk_errors(tmp_path):
        raise OSError(number, os.strerror(number), "some/file")
    assert (caught.value.where, caught.value.exit_code) == ("some/file", 7)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "message",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",  # torch.save
        "PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_a_full_disk_is_known_by_what_other_libraries_call_it(tmp_path, message):
    with pytest.raises(DiskError, match="no space left"), disk_errors(tmp_path):
        raise RuntimeError(message)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "x"), ValueError("x"), DataError("x"), DiskError("No space left: mine")]
)
def test_all_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_second_process_is_kept_out_until_the_first_is_gone_however_it_goes(folder):
    code = f"""
        import pathlib, sys, time
        from rankwright.workspace import RunFolder
        with RunFolder(pathlib.Path({str(folder.root)!r})).locked():
            print("locked", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ArtefactError, match="another rankwright is at work"), folder.locked():
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with folder.locked():
        pass
    with folder.locked():
        pass


def test_a_file_where_the_run_folder_should_be_is_an_artefact_error(folder):
    write_text(folder.root, "a file")
    with pytest.raises(ArtefactError, match="a file is where"), folder.locked():
        pass
    with pytest.raises(ArtefactError, match="a file is where"), RunFolder(folder.root / "deeper").locked():
        pass
