"""`rankwright score`: the command around the room."""

from __future__ import annotations

import json
import sys

import pyarrow.parquet
import pytest

from rankwright import cli
from rankwright.rooms import score as room

from .conftest import sentences

PAIRS = [f"{query}\t{document}\n" for query in sentences(4, 3, seed=1) for document in sentences(5, 4, seed=2)]


@pytest.fixture
def score(monkeypatch, capsys, tmp_path, tiny_reranker):
    """Run `rankwright score` of 20 pairs in shards of 8 as it is run: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("".join(PAIRS))

    def run(*words):
        fixed = [str(tiny_reranker), "pairs.tsv", "--out", "out", "--shard", "8", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["rankwright", "score", *fixed, *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


def rows(folder):
    return pyarrow.parquet.read_table(sorted(folder.glob("*.parquet")))["row"].to_pylist()


def test_the_command_says_what_it_has_done(score, tmp_path):
    code, out, _ = score("--precision", "exact")
    assert code == 0
    assert out.startswith("20 pairs are scored, in 3 shards in out\n20 of them now, ")
    assert out.endswith("a second, by torch fp32\n")
    assert rows(tmp_path / "out") == list(range(20))
    assert "nothing was left to do" in score("--precision", "exact")[1]


def test_as_json_it_says_nothing_else(score):
    code, out, err = score("--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["pairs"], told["scored"], told["folder"]) == (20, 20, "out")
    assert told["shards"] == [f"out/scores-0000{number}.parquet" for number in range(3)]
    assert told["decision"]["word"] == "balanced"


def test_ctrl_c_between_shards_loses_nothing_and_the_same_command_goes_on(score, tmp_path, monkeypatch):
    write = room._write

    def stopped(path, table):
        if path.name == "scores-00001.parquet":
            raise KeyboardInterrupt
        write(path, table)

    monkeypatch.setattr(room, "_write", stopped)
    code, _, err = score("--precision", "exact")
    assert (code, rows(tmp_path / "out")) == (130, list(range(8)))
    assert "the same command goes on from here" in err
    monkeypatch.setattr(room, "_write", write)
    assert "12 of them now" in score("--precision", "exact")[1]
    assert rows(tmp_path / "out") == list(range(20))


def test_other_options_in_the_same_folder_are_2(score):
    score("--precision", "exact")
    code, _, err = score("--precision", "exact", "--max-length", "16")
    assert code == 2
    assert "max_length: 512 -> 16" in err
    assert "another --out" in err


def test_bad_lines_are_3(score, tmp_path):
    (tmp_path / "pairs.tsv").write_text("red\tapple\nred\n")
    code, _, err = score()
    assert code == 3
    assert "pairs.tsv:2" in err
