"""A source's hash: it changes with what is there, and with nothing else."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest

from rankwright.toolbox.formats import docstrings, seealso
from rankwright.toolbox.formats.content import content, file_content


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "rows"
    (place / "qrels").mkdir(parents=True)
    (place / "train.jsonl").write_text('{"query": "a"}\n')
    (place / "qrels" / "test.tsv").write_text("q\td\t1\n")
    return place


def change_a_byte(folder):
    (folder / "train.jsonl").write_text('{"query": "b"}\n')


def change_a_byte_below(folder):
    (folder / "qrels" / "test.tsv").write_text("q\td\t0\n")


def rename(folder):
    (folder / "train.jsonl").rename(folder / "dev.jsonl")


def move_down(folder):
    (folder / "train.jsonl").rename(folder / "qrels" / "train.jsonl")


def add(folder):
    (folder / "dev.jsonl").write_text("")


def remove(folder):
    (folder / "train.jsonl").unlink()


def swap(folder):
    first, second = folder / "train.jsonl", folder / "qrels" / "test.tsv"
    texts = first.read_text(), second.read_text()
    first.write_text(texts[1])
    second.write_text(texts[0])


@pytest.mark.parametrize("change", [change_a_byte, change_a_byte_below, rename, move_down, add, remove, swap])
def test_any_change_in_a_folder_changes_its_hash(folder, change):
    before = content(f"rows:{folder}")
    change(folder)
    assert content(f"rows:{folder}") != before


def test_the_same_files_elsewhere_and_of_another_day_have_the_same_hash(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "elsewhere")
    os.utime(other / "train.jsonl", (1, 1))
    assert content(f"rows:{other}") == content(f"rows:{folder}")


def test_the_way_a_folder_is_written_does_not_matter(folder, monkeypatch):
    expected = content(f"rows:{folder}")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert {content(source) for source in ("rows:rows", "rows:./rows/", "rows:~/rows", "rows:rows/../rows")} == {
        expected
    }


def test_a_file_by_itself_counts_by_its_bytes_not_by_its_name(tmp_path):
    first, same, other = (tmp_path / name for name in ("a.run", "b.run", "c.run"))
    first.write_bytes(b"x" * 5_000_000)  # more than one block
    same.write_bytes(b"x" * 5_000_000)
    other.write_bytes(b"x" * 4_999_999 + b"y")
    assert file_content(str(first)) == file_content(str(same))
    assert file_content(str(first)) != file_content(str(other))


def test_where_one_file_ends_and_the_next_begins_counts(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a.csv").write_bytes(b"xb.csv\0y")
    (two / "a.csv").write_bytes(b"x")
    (two / "b.csv").write_bytes(b"y")
    assert file_content(str(one)) != file_content(str(two))


def test_what_is_not_there_an_empty_folder_and_an_empty_file_have_hashes_of_their_own(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert len({file_content(str(tmp_path / name)) for name in ("folder", "file", "missing")}) == 3


def test_a_source_without_a_location_does_not_hash_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = content("rows:")
    (tmp_path / "train.jsonl").write_text("{}")
    assert content("rows:") == before != content("beir:")


def test_what_no_reader_opens_does_not_count(folder):
    """Experiments are often run where the data are: a run folder below them must not change them."""
    before = content(f"rows:{folder}")
    (folder / "runs/mine/data").mkdir(parents=True)
    for name in ("runs/mine/data/corpus.jsonl", "README.md", "experiment.yaml", "bm25.run", ".hidden.jsonl"):
        (folder / name).write_text("anything")
    assert content(f"rows:{folder}") == before


@pytest.mark.parametrize("name", ["qrels.test", "queries.tsv", "data/train-00000-of-00001.parquet", "qrels/dev.qrels"])
def test_what_a_reader_opens_counts(folder, name):
    before = content(f"trec:{folder}")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("q 0 d 1")
    assert content(f"trec:{folder}") != before


# ------------------------------------------------------------------------------- collections that are built


@pytest.mark.parametrize("module", [seealso, docstrings])
def test_built_collections_are_hashed_without_building_them(module, monkeypatch):
    def build(*_):
        raise AssertionError("built")

    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr("rankwright.toolbox.formats.doctext.collect", build)
    kind = module.__name__.rpartition(".")[2]
    assert content(f"{kind}:") == content(f"{kind}:")


def test_the_two_built_collections_differ_and_so_do_their_parts():
    assert len({content(source) for source in ("seealso:", "docstrings:", "seealso:networkx", "seealso:numpy")}) == 4


@pytest.mark.parametrize("source", ["seealso:networkx", "docstrings:"])
@pytest.mark.parametrize("part", ["version", "python"])
def test_another_version_of_a_package_or_of_python_changes_the_hash(source, part, monkeypatch):
    before = content(source)
    monkeypatch.setattr(f"rankwright.toolbox.formats.doctext.{part}", lambda *_: "99.9")
    assert content(source) != before


def test_another_builder_changes_the_hash(monkeypatch):
    before = content("seealso:networkx")
    monkeypatch.setattr(seealso, "BUILDER", seealso.BUILDER + 1)
    assert content("seealso:networkx") != before


# ---------------------------------------------------------------------------------------------------- the hub


def answer(monkeypatch, respond):
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", respond)


def test_without_network_a_hub_data_set_is_its_name():
    assert content("hub:some/set") == content("hub:some/set")
    assert len({content(source) for source in ("hub:some/set", "hub:other/set", "hub:some/set@config")}) == 3


@pytest.mark.parametrize("error", [OSError("no route"), TimeoutError(), ValueError("odd name")])
def test_however_the_hub_fails_the_hash_is_the_same(monkeypatch, error):
    offline = content("hub:some/set")

    def fail(*_, **__):
        raise error

    answer(monkeypatch, fail)
    assert content("hub:some/set") == offline


def test_a_new_commit_changes_the_hash_and_the_config_is_no_part_of_the_name_asked_for(monkeypatch):
    asked = []

    def respond(sha):
        def info(self, name, **_):
            asked.append(name)
            return SimpleNamespace(sha=sha)

        return info

    answer(monkeypatch, respond("one"))
    first = content("hub:some/set@config")
    assert content("hub:some/set@config") == first
    answer(monkeypatch, respond("two"))
    assert content("hub:some/set@config") != first
    assert set(asked) == {"some/set"}


def test_a_hub_that_cannot_be_asked_is_answered_for_by_the_copy_that_is_here(monkeypatch, tmp_path):
    def online(*_, **__):
        return SimpleNamespace(sha="abc")

    def offline(*_, **__):
        raise OSError("offline")

    main = tmp_path / "datasets--one--two" / "refs" / "main"
    main.parent.mkdir(parents=True)
    main.write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", online)
    before = content("hub:one/two")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    assert content("hub:one/two") == before
    assert content("hub:one/three") != content("hub:one/four")
