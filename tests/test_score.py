"""The room `score`: files of pairs into shards of scores, killed and gone on with."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from filelock import FileLock

import rankwright as rw
from rankwright import errors
from rankwright.rooms import score as room
from rankwright.toolbox import engine
from rankwright.toolbox.engine import choose, guard
from rankwright.toolbox.formats.pairs import PairFile, survey

from .conftest import sentences, tiny_bert

SHARD = {"shard": 40, "precision": "exact", "device": "cpu"}
LISTS = [(query, document) for query in sentences(12, 4, seed=1) for document in sentences(10, 6, seed=2)]


def written(path, pairs, **more):
    rows = [{"query": query, "document": document, **more} for query, document in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder):
    return pyarrow.parquet.read_table(sorted(folder.glob("scores-*.parquet"))).to_pydict()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="session")
def reranker(tmp_path_factory):
    """A tiny cross-encoder that tells texts apart."""
    return tiny_bert(tmp_path_factory.mktemp("models") / "telling", labels=1, spread=0.3)


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "pairs.jsonl", LISTS)


@pytest.fixture
def whole(reranker, file, tmp_path):
    """The folder of a call that nothing stopped: three shards of 40 pairs."""
    rw.score_pairs(reranker, file, tmp_path / "whole", SHARD)
    return tmp_path / "whole"


# ------------------------------------------------------------------------------------------------------------- scores


def test_every_pair_has_its_row_and_the_score_that_the_reranker_gives_it(reranker, whole):
    assert [path.name for path in sorted(whole.glob("*.parquet"))] == [f"scores-0000{n}.parquet" for n in range(3)]
    found = read(whole)
    assert list(found) == ["row", "score"]
    assert found["row"] == list(range(120))
    wanted = rw.Reranker.load(reranker, device="cpu").score(LISTS)
    np.testing.assert_allclose(found["score"], wanted, atol=1e-6)
    assert np.ptp(wanted) > 0.1


def test_the_last_shard_is_as_long_as_what_is_left(reranker, file, tmp_path):
    scored = rw.score_pairs(reranker, file, tmp_path / "out", {**SHARD, "shard": 100})
    assert [pyarrow.parquet.read_metadata(path).num_rows for path in scored.shards] == [100, 20]
    assert (scored.pairs, scored.scored) == (120, 120)


def test_ids_of_the_file_stand_beside_the_scores(reranker, tmp_path):
    rows = [{"query": "red", "document": "apple", "qid": "q1", "pid": 7}, {"query": "red", "document": "pear"}]
    (tmp_path / "some").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rw.score_pairs(reranker, tmp_path / "some", tmp_path / "out", SHARD)
    found = read(tmp_path / "out")
    assert list(found) == ["row", "query_id", "document_id", "score"]
    assert (found["query_id"], found["document_id"]) == (["q1", None], ["7", None])


def test_scores_that_are_not_finite_are_not_written(reranker, file, tmp_path, monkeypatch):
    score_tokens = engine.score_tokens

    def spoilt(backend, tokens):
        scores = score_tokens(backend, tokens)
        scores[3] = np.nan
        return scores

    monkeypatch.setattr(engine, "score_tokens", spoilt)
    with pytest.raises(errors.ModelError, match="not finite, that of row 3 and 0 near it"):
        rw.score_pairs(reranker, file, tmp_path / "out", SHARD)
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_no_more_than_two_windows_are_read_ahead(reranker, file, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WINDOW", 8)
    done, ahead = [0], []
    score_tokens, pairs_of = engine.score_tokens, PairFile.__iter__

    def counted(backend, tokens):
        done[0] += len(tokens)
        return score_tokens(backend, tokens)

    def watched(self):
        for number, pair in enumerate(pairs_of(self), start=1):
            ahead.append(number - done[0])
            yield pair

    found = survey(file, every=40)
    monkeypatch.setattr(room, "survey", lambda path, every: found)
    monkeypatch.setattr(engine, "score_tokens", counted)
    monkeypatch.setattr(PairFile, "__iter__", watched)
    room.score(reranker, file, tmp_path / "out", room.Options(**SHARD))
    assert (len(ahead), max(ahead)) == (120, 16)
    assert read(tmp_path / "out")["row"] == list(range(120))


# --------------------------------------------------------------------------------------------------- stopped, gone on

KILLED = """
import os, signal, sys
import rankwright as rw
from rankwright.rooms import score

write = score._write
def killed(path, table):
    if path.name == "scores-00001.parquet":
        path.with_name(f".{path.name}.{os.getpid()}").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, table)
score._write = killed
rw.score_pairs(*sys.argv[1:4], {"shard": 40, "precision": "exact", "device": "cpu"})
"""


def test_a_killed_process_is_gone_on_with_after_its_last_whole_shard(reranker, file, whole, tmp_path):
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, reranker, file, out], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(path.name for path in out.iterdir() if path.name != ".lock")
    assert left[1:] == ["scores-00000.parquet", "scores.json"]
    assert left[0].startswith(".scores-00001.parquet.")
    assert not json.loads((out / "scores.json").read_text())["done"]
    first = (out / "scores-00000.parquet").stat()
    scored = rw.score_pairs(reranker, file, out, SHARD)
    assert scored.scored == 80
    assert (out / "scores-00000.parquet").stat().st_mtime_ns == first.st_mtime_ns
    assert content(out) == content(whole)
    assert json.loads((out / "scores.json").read_text())["done"]


def test_what_is_all_there_loads_no_model_and_changes_nothing(reranker, file, whole, monkeypatch):
    before = content(whole)
    monkeypatch.setattr(rw.Reranker, "load", None)
    scored = rw.score_pairs(reranker, file, whole, SHARD)
    assert (scored.pairs, scored.scored, len(scored.shards)) == (120, 0, 3)
    assert "nothing was left to do" in scored.lines()[0]
    assert content(whole) == before


@pytest.mark.parametrize("damage", ["gone", "cut", "short"])
def test_a_shard_that_is_gone_or_damaged_is_computed_again(damage, reranker, file, whole):
    before = content(whole)
    shard = whole / "scores-00001.parquet"
    if damage == "gone":
        shard.unlink()
    elif damage == "cut":
        os.truncate(shard, shard.stat().st_size // 2)
    else:
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(shard).slice(0, 39), shard)
    assert rw.score_pairs(reranker, file, whole, SHARD).scored == 40
    assert content(whole) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_length": 32}, "max_length: 512 -> 32"),
        ({"precision": "fast"}, "precision: exact -> fast"),
        ({"shard": 50}, "shard: 40 -> 50"),
    ],
)
def test_other_options_are_refused_and_nothing_is_lost(change, told, reranker, file, whole):
    before = content(whole)
    with pytest.raises(errors.ConfigError, match=told):
        rw.score_pairs(reranker, file, whole, {**SHARD, **change})
    assert content(whole) == before


def test_another_file_is_refused_and_the_same_pairs_by_another_name_are_not(reranker, file, whole, tmp_path):
    before = content(whole)
    written(file, [*LISTS[:-1], ("red", "apple")])
    with pytest.raises(errors.ConfigError, match="the file has changed"):
        rw.score_pairs(reranker, file, whole, SHARD)
    with gzip.open(tmp_path / "same.tsv.gz", "wt") as zipped:
        zipped.writelines(f"{query}\t{document}\n" for query, document in LISTS)
    rw.score_pairs(reranker, tmp_path / "same.tsv.gz", whole, SHARD)
    assert content(whole) == before


def test_another_model_is_refused(reranker, file, whole, tmp_path):
    other = shutil.copytree(reranker, tmp_path / "other")
    rw.score_pairs(other, file, whole, SHARD)  # where it is does not matter
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(errors.ConfigError, match="the model has changed"):
        rw.score_pairs(other, file, whole, SHARD)


def test_scores_of_unknown_making_are_left_alone(reranker, file, whole):
    (whole / "scores.json").write_text("{}")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        rw.score_pairs(reranker, file, whole, SHARD)
    (whole / "scores.json").unlink()
    with pytest.raises(errors.ConfigError, match=r"without their scores\.json"):
        rw.score_pairs(reranker, file, whole, SHARD)
    assert len(read(whole)["row"]) == 120


def test_two_processes_do_not_score_into_one_folder(reranker, file, whole):
    with FileLock(str(whole / ".lock")), pytest.raises(errors.ArtefactError, match="another rankwright"):
        rw.score_pairs(reranker, file, whole, SHARD)


@pytest.mark.parametrize("now", [[*LISTS[:50], ("red", "apple"), *LISTS[51:]], LISTS[:50], LISTS[:40]])
def test_a_file_that_changes_while_it_is_read_is_noticed_before_its_shard_is_written(
    now, reranker, file, tmp_path, monkeypatch
):
    load = rw.Reranker.load

    def meanwhile(*args, **options):
        written(file, now)
        return load(*args, **options)

    monkeypatch.setattr(rw.Reranker, "load", meanwhile)
    with pytest.raises(errors.DataError, match="changed while it was read"):
        rw.score_pairs(reranker, file, tmp_path / "out", SHARD)
    assert read(tmp_path / "out")["row"] == list(range(40))


# ---------------------------------------------------------------------------------------------------------- precision


@pytest.fixture
def ladder(monkeypatch):
    """A machine with a faster way, made of the torch one, and samples small enough; counts what is made."""
    made = []

    class Shifted:
        name, token_budget, padded = "torch shifted", 512, False

        def __init__(self, reranker, shift):
            self.reranker, self.shift = choose.step("torch fp32").make(reranker), shift

        def __call__(self, batch):
            return self.reranker(batch) + np.float32(self.shift)

    def make(reranker, precision, cache):
        made.append(precision)
        return Shifted(reranker, 0.3)

    monkeypatch.setitem(choose._MAKERS, "made", make)
    monkeypatch.setitem(choose._PRECISIONS, "made", ("int8",))
    monkeypatch.setattr(choose, "_faster", lambda device, cache: ["made int8"])
    for name, value in {"QUERIES": 10, "RATIO": 1}.items():
        monkeypatch.setattr(guard, name, value)
    return made


def test_a_lower_precision_is_decided_once_and_kept_with_its_figures(reranker, file, tmp_path, ladder, whole):
    out, options = tmp_path / "out", {**SHARD, "precision": "balanced"}
    scored = rw.score_pairs(reranker, file, out, options)
    assert (scored.decision.backend, ladder) == ("made int8", ["int8"])
    np.testing.assert_allclose(read(out)["score"], np.array(read(whole)["score"]) + 0.3, atol=1e-4)
    kept = json.loads((out / "scores.json").read_text())
    assert kept["decision"]["tried"][0]["agreement"]["overlap"] == 1
    assert kept["decision"] == scored.values()["decision"]


def test_what_was_decided_holds_for_the_run_that_goes_on(reranker, file, tmp_path, ladder, monkeypatch):
    out, options = tmp_path / "out", {**SHARD, "precision": "balanced"}
    rw.score_pairs(reranker, file, out, options)
    before = content(out)
    (out / "scores-00002.parquet").unlink()
    monkeypatch.setattr(guard, "choose", None)  # it would take another one now, or none
    monkeypatch.setattr(choose, "_faster", lambda device, cache: [])
    rw.score_pairs(reranker, file, out, options)
    assert content(out) == before


def test_a_way_that_is_there_no_longer_is_told(reranker, file, tmp_path, ladder, monkeypatch):
    out, options = tmp_path / "out", {**SHARD, "precision": "balanced"}
    rw.score_pairs(reranker, file, out, options)
    (out / "scores-00002.parquet").unlink()

    def gone(reranker, precision, cache):
        raise ModuleNotFoundError("No module named 'made'", name="made")

    monkeypatch.setitem(choose._MAKERS, "made", gone)
    with pytest.raises(errors.MissingExtraError, match="begun by made int8: made int8 needs made"):
        rw.score_pairs(reranker, file, out, options)


def test_the_decision_looks_at_the_first_pairs_and_counts_all(reranker, file, tmp_path, ladder, monkeypatch):
    monkeypatch.setattr(room, "HEAD", 100)
    monkeypatch.setattr(guard, "RATIO", 1.2)  # times 100 pairs
    scored = rw.score_pairs(reranker, file, tmp_path / "out", {**SHARD, "precision": "fast"})
    agreement = scored.decision.tried[0].agreement
    assert (agreement.queries, agreement.pairs) == (10, 100)


def test_pairs_without_a_query_in_common_are_scored_in_fp32_and_told_why(reranker, tmp_path, ladder):
    apart = written(
        tmp_path / "apart.jsonl", list(zip(sentences(60, 4, seed=3), sentences(60, 5, seed=4), strict=True))
    )
    scored = rw.score_pairs(reranker, apart, tmp_path / "out", {**SHARD, "precision": "balanced"})
    assert scored.decision.exact
    assert "no order to compare" in scored.decision.why


@pytest.mark.parametrize("options", [{"precision": "quick"}, {"shard": 0}, {"max_length": 2}, {"batch": 3}])
def test_options_that_cannot_be_are_refused(options, reranker, file, tmp_path):
    with pytest.raises(errors.ConfigError):
        rw.score_pairs(reranker, file, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"query": "red", "document": "apple"}\n\n{"anchor": "q 2", "passage": "pear"}\n'),
        ("a.json", '{"query": "red", "text": "apple"}\r\n{"query": "q 2", "text": {"text": "pear"}}\r\n'),
        ("a.tsv", "red\tapple\nq 2\tpear\n\n"),
        ("a.tsv", "Document\tQuery\napple\tred\npear\tq 2\n"),
        ("a.txt", "red\tapple\nq 2\tpear\n"),
        ("a", '{"query": "red", "document": "apple"}\n{"query": "q 2", "document": "pear"}\n'),
    ],
)
def test_pairs_are_read_from_all_these(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert [pair[:2] for pair in PairFile(tmp_path / name)] == [("red", "apple"), ("q 2", "pear")]
    with gzip.open(tmp_path / f"{name}.gz", "wt") as zipped:
        zipped.write(text)
    assert survey(tmp_path / f"{name}.gz", every=9).digest == survey(tmp_path / name, every=9).digest


def test_a_title_stands_before_its_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": "red", "title": "Apples", "text": "are red"}\n')
    assert next(iter(PairFile(tmp_path / "a.jsonl"))).document == "Apples are red"


def test_a_tsv_with_names_may_have_other_columns(tmp_path):
    (tmp_path / "a.tsv").write_text("qid\tquery\tdocument\tlabel\nq1\tred\tapple\t1\n")
    assert list(PairFile(tmp_path / "a.tsv")) == [("red", "apple", "q1", None)]
    (tmp_path / "b.tsv").write_text("query\tdocument\tlabel\nred\tapple\t1\n")
    assert list(PairFile(tmp_path / "b.tsv")) == [("red", "apple", None, None)]


def test_a_line_of_names_without_a_document_is_no_pair(tmp_path):
    (tmp_path / "a.tsv").write_text("query\tresponse\nred\tapple\n")
    with pytest.raises(errors.DataError, match=r"a\.tsv:1: names, but not of a query and a document: query, response"):
        survey(tmp_path / "a.tsv", every=9)


@pytest.mark.parametrize("name", ["document", "passage", "text"])
def test_a_title_goes_before_the_document_whatever_that_is_called(tmp_path, name):
    (tmp_path / "a.jsonl").write_text(json.dumps({"query": "red", name: "an apple", "title": "Fruit"}) + "\n")
    assert list(PairFile(tmp_path / "a.jsonl")) == [("red", "Fruit an apple", None, None)]


def test_a_tsv_of_four_columns_has_ids_first(tmp_path):
    (tmp_path / "top1000.tsv").write_text('q1\td7\tred\tan "apple\n')
    assert list(PairFile(tmp_path / "top1000.tsv")) == [("red", 'an "apple', "q1", "d7")]


def test_an_empty_text_is_a_pair_too_and_counted(tmp_path):
    (tmp_path / "a.tsv").write_text("red\t\n\t\nred\tapple\n")
    found = survey(tmp_path / "a.tsv", every=9)
    assert found.pairs == 3
    assert [(repair.what, repair.count) for repair in found.repairs] == [
        ("pairs with an empty text, scored as they are", 3)
    ]


def test_a_survey_marks_every_shard_and_the_end(tmp_path):
    whole = survey(written(tmp_path / "a.jsonl", LISTS[:5]), every=2)
    assert len(whole.marks) == 3
    assert whole.marks[1] == survey(written(tmp_path / "b.jsonl", LISTS[:4]), every=2).digest
    assert len(survey(tmp_path / "b.jsonl", every=2).marks) == 2
    moved = [("red appl", "e"), *LISTS[:3]], [("red app", "le"), *LISTS[:3]]
    assert len({survey(written(tmp_path / "c.jsonl", pairs), every=9).digest for pairs in moved}) == 2


def test_lines_that_are_no_pairs_are_told_together_before_anything_is_scored(reranker, tmp_path, monkeypatch):
    monkeypatch.setattr(rw.Reranker, "load", None)
    lines = ['{"query": "red"}', '{"query": "red", "document": "apple"}', "red", '{"query": null, "document": "pear"}']
    lines += ['{"query": "red", "document": ["pear"]}', "[1]"]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(errors.DataError, match="5 lines are no pairs") as told:
        rw.score_pairs(reranker, tmp_path / "bad.jsonl", tmp_path / "out", SHARD)
    for line, problem in {1: "found query", 3: "not JSON", 4: "query is empty", 5: "not list", 6: "not list"}.items():
        assert f"bad.jsonl:{line}: " in str(told.value), line
        assert problem in str(told.value)
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_tsv_line_of_more_or_fewer_cells_is_told(tmp_path):
    (tmp_path / "bad.tsv").write_text("red\tapple\nred\tapple\tpear\nred\n")
    with pytest.raises(errors.DataError, match="2 lines are no pairs") as told:
        survey(tmp_path / "bad.tsv", every=9)
    assert "bad.tsv:2: 3 cells, not 2 (query, document)" in str(told.value)


def test_a_file_of_another_kind_is_not_read_to_its_end(tmp_path):
    (tmp_path / "prose.tsv").write_text("no pair\n" * 5000)
    with pytest.raises(errors.DataError, match="1000 lines are no pairs"):
        survey(tmp_path / "prose.tsv", every=9)


@pytest.mark.parametrize("name", ["nothing.jsonl", "empty.jsonl", "a.csv", "folder"])
def test_what_holds_no_pairs_is_refused(name, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "a.csv").write_text("query,document\nred,apple\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.DataError):
        survey(tmp_path / name, every=9)
