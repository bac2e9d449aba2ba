"""TREC runs, qrels and folders, against ir_measures' own readers."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest

from rankwright.core import Run
from rankwright.errors import DataError
from rankwright.toolbox.formats import trec
from rankwright.toolbox.formats.source import Notes, Splits

SCORES = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
RUN = Run.from_scores({f"q{q}": {f"d{d}": float(SCORES[q, d]) for d in range(5)} for q in range(3)})


def put(path, text):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def test_a_run_comes_back_to_the_last_bit(tmp_path):
    scores = {query: RUN.scores(query) for query in RUN.rankings}
    run = Run.from_scores({**scores, "q x": {"d 1": 1e-17, "d2": -3.0}})
    trec.write_run(tmp_path / "x.run", run, "my tag")
    assert trec.read_run(tmp_path / "x.run") == run


def test_a_run_as_it_will_be_read_is_what_is_read(tmp_path):
    run = Run({"q1": (("d2", np.float32(0.1)), ("d1", np.float32(-2.5))), "q2": (), "q3": (("d1", 1.0),)})
    trec.write_run(tmp_path / "x.run", run, "tag")
    expected = trec.as_read(run)
    assert expected == trec.read_run(tmp_path / "x.run")
    assert list(expected.rankings) == ["q1", "q3"]
    assert all(type(score) is float for hits in expected.rankings.values() for _, score in hits)


def test_ir_measures_reads_our_runs_as_we_do(tmp_path):
    trec.write_run(tmp_path / "x.run", RUN, "tag")
    theirs = {}
    for hit in ir_measures.read_trec_run(str(tmp_path / "x.run")):
        theirs.setdefault(hit.query_id, {})[hit.doc_id] = hit.score
    assert theirs == {query: RUN.scores(query) for query in RUN.rankings}
    first = (tmp_path / "x.run").read_text().splitlines()[0].split()
    assert first == ["q0", "Q0", RUN.documents("q0")[0], "1", repr(RUN.rankings["q0"][0][1]), "tag"]


def test_ir_measures_reads_our_qrels_as_we_do(tmp_path):
    qrels = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}
    trec.write_qrels(tmp_path / "x.qrels", qrels)
    theirs = [
        (judged.query_id, judged.doc_id, judged.relevance)
        for judged in ir_measures.read_trec_qrels(str(tmp_path / "x.qrels"))
    ]
    assert theirs == [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "d1", 1)]
    assert trec.read_qrels(tmp_path / "x.qrels") == qrels


def test_scores_win_over_ranks_and_it_is_counted(tmp_path):
    path = put(tmp_path / "x.run", "q1 Q0 a 1 0.5 t\nq1 Q0 b 2 0.9 t\nq2 Q0 a 1 0.5 t\nq2 Q0 b 2 0.5 t\n")
    notes = Notes()
    run = trec.read_run(path, notes)
    assert run.documents("q1") == ["b", "a"]
    (repair,) = notes.repairs()
    assert repair.count == 1
    assert "ranks disagree" in repair.what


def test_repairs_are_said_aloud_where_nobody_counts_them(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(trec, "say", heard.append)
    trec.read_run(put(tmp_path / "x.run", "q1 Q0 a 1 0.5 t\nq1 Q0 b 2 0.9 t\n"))
    trec.read_qrels(put(tmp_path / "x.qrels", "q1 0 a -1\n"))
    assert ["ranks disagree" in heard[0], "grades below 0" in heard[1]] == [True, True]


def test_lines_that_are_no_hits_are_gathered(tmp_path):
    lines = [
        "q1 Q0 a 1 0.5 t",
        "q1 Q0 a 2 0.4 t",
        "q1 Q0 b 3 nan t",
        "q1 Q0 c 4 0.1",
        "q1 Q0 d x 0.1 t",
        "q1 Q0 e 6 inf t",
    ]
    path = put(tmp_path / "x.run", "\n".join(lines))
    with pytest.raises(DataError, match="5 lines of a run cannot be read") as caught:
        trec.read_run(path)
    for told in (
        "2: document a stands twice",
        "3: the score is nan",
        "4: 6 columns are expected, not 5",
        "5: rank and score",
    ):
        assert f"{path}:{told}" in str(caught.value)


def test_a_score_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(DataError, match="query q, document d: the score is nan"):
        trec.write_run(tmp_path / "x.run", Run({"q": (("d", float("nan")),)}), "t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["qrels.{}.txt", "qrels.{}.qrels", "qrels/{}.tsv"])
def test_a_folder_gives_a_collection(tmp_path, layout):
    put(tmp_path / "collection.tsv", "1\tred\tapple\n2\tgreen pear\n3\t\n")
    put(tmp_path / "queries.train.tsv", "7\tapple?\n")
    put(tmp_path / "queries.test.tsv", "8\tpear?\n9\tunjudged\n")
    put(tmp_path / layout.format("train"), "7 0 1 1\n7 0 2 0\n")
    put(tmp_path / layout.format("test"), "8 0 2 3\n")
    source = trec.read(tmp_path)
    assert source.collection.documents == {"1": "red\tapple", "2": "green pear"}
    assert source.collection.queries == {"7": "apple?", "8": "pear?"}
    assert source.collection.qrels == {"train": {"7": {"1": 1, "2": 0}}, "test": {"8": {"2": 3}}}
    assert [repair.what for repair in source.repairs] == ["empty texts left out"]


def test_one_bare_qrels_file_is_training(tmp_path):
    put(tmp_path / "corpus.jsonl", '{"_id": 1, "title": "red", "text": "apple"}\n')
    put(tmp_path / "queries.jsonl", '{"_id": "7", "text": "apple?"}\n')
    put(tmp_path / "qrels.txt", "7 0 1 1\n")
    collection = trec.read(tmp_path).collection
    assert (collection.documents, collection.qrels) == ({"1": "red apple"}, {"train": {"7": {"1": 1}}})


def test_what_a_folder_lacks_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no documents.*\n.*collection\.tsv"):
        trec.read(tmp_path)
    put(tmp_path / "collection.tsv", "1 no tab here\n")
    with pytest.raises(DataError, match="no split named"):
        trec.read(tmp_path)
    put(tmp_path / "qrels.test.txt", "7 0 1 1\n")
    with pytest.raises(DataError, match="no queries"):
        trec.read(tmp_path)
    put(tmp_path / "queries.tsv", "7\tapple?\n")
    put(tmp_path / "queries.test.tsv", "7\tpear?\n")
    with pytest.raises(DataError, match="2 lines cannot be read") as caught:
        trec.read(tmp_path, Splits(test="test"))
    assert "collection.tsv:1: id, tab and text are expected" in str(caught.value)
    assert "query 7 has another text" in str(caught.value)
    put(tmp_path / "qrels.test.tsv", "7 0 1 1\n")
    with pytest.raises(DataError, match="two qrels files for test"):
        trec.read(tmp_path)
