"""The whole diagnosis: order of findings, bad input, and files of anybody's."""

import json

import numpy as np
import pytest

from rankwright.cli import app
from rankwright.core import Collection, Run
from rankwright.errors import DataError
from rankwright.rooms.diagnose import CHECKS, LIMITS, Case, diagnose
from rankwright.toolbox.formats import trec


def world(queries=30, width=20, seed=0):
    """A retriever that sees the three relevant documents of twenty, and a reranker that hardly does."""
    rng = np.random.default_rng(seed)
    first, second, qrels = {}, {}, {}
    for number in range(queries):
        labels = np.zeros(width, dtype=int)
        labels[rng.choice(width, size=3, replace=False)] = 1
        names = [f"d{number}.{place}" for place in range(width)]
        first[f"q{number}"] = dict(zip(names, (labels + rng.normal(size=width)).tolist(), strict=True))
        second[f"q{number}"] = dict(zip(names, (0.2 * labels + rng.normal(size=width)).tolist(), strict=True))
        qrels[f"q{number}"] = dict(zip(names, labels.tolist(), strict=True))
    return Run.from_scores(first), Run.from_scores(second), qrels


def case(**changes):
    retrieved, reranked, qrels = world()
    return Case(**{"retrieved": retrieved, "reranked": reranked, "qrels": qrels, "depth": 20, **changes})


def test_every_check_is_told_and_those_that_fire_come_first():
    found = diagnose(case()).findings
    wanted = ["H1", "H1b", *(f"H{number}" for number in range(2, 17))]
    assert sorted(finding.id for finding in found) == sorted(wanted)
    assert len(CHECKS) == len(wanted)
    fires = [finding.fires for finding in found]
    assert fires == sorted(fires, reverse=True)
    assert any(fires)
    assert all(finding.lacks or finding.reading for finding in found)
    assert all(finding.remedy for finding in found if finding.fires)


def test_every_number_has_a_limit_in_the_table_and_every_limit_belongs_to_a_check():
    found = diagnose(case()).findings
    assert all(number.limit in LIMITS for finding in found for number in finding.numbers)
    assert {limit.partition(".")[0] for limit in LIMITS} == {finding.id for finding in found}


def test_the_same_case_gives_the_same_json():
    first, second = (json.dumps(diagnose(case()).values(), allow_nan=False) for _ in range(2))
    assert first == second


def test_runs_and_qrels_that_share_no_query_are_refused():
    with pytest.raises(DataError, match="share none of 1 judged"):
        diagnose(case(qrels={"another": {"d": 1}}))


def test_a_corpus_without_some_of_the_runs_documents_is_refused_with_a_count():
    with pytest.raises(DataError, match="lacks 600 documents"):
        diagnose(case(collection=Collection({"x": "y"}, {}, {})))


def test_queries_that_a_run_lacks_and_documents_that_are_no_candidates_are_counted_and_named():
    _, reranked, _ = world()
    rankings = dict(reranked.rankings)
    del rankings["q0"]
    rankings["q1"] = (("stranger", 9.0), *rankings["q1"])
    notes = diagnose(case(reranked=Run(rankings))).notes
    assert any("1 of 30 judged queries" in note and "q0" in note for note in notes)
    assert any("1 reranked documents are no candidates" in note and "stranger" in note for note in notes)


def test_negative_grades_are_counted_and_not_relevant():
    _, _, qrels = world()
    qrels["q0"]["d0.0"] = -1
    assert any("1 grades below 0" in note for note in diagnose(case(qrels=qrels)).notes)


@pytest.fixture
def files(tmp_path):
    retrieved, reranked, qrels = world()
    trec.write_run(tmp_path / "x.run", retrieved, "x")
    trec.write_run(tmp_path / "y.run", reranked, "y")
    trec.write_qrels(tmp_path / "q.txt", qrels)
    return tmp_path


def command(files, *more):
    given = ["--candidates", files / "x.run", "--reranked", files / "y.run", "--qrels", files / "q.txt", *more]
    return ["diagnose", *map(str, given)]


def invoke(arguments):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, arguments, catch_exceptions=True)


def test_anybodys_files_are_diagnosed_without_a_model(files):
    told = invoke(command(files))
    assert told.exit_code == 0, told.output
    assert "of the gap" in told.output
    assert "H1 " in told.output
    assert "lacks" in told.output


def test_anybodys_files_as_json(files):
    values = json.loads(invoke(command(files, "--json")).stdout)
    assert {"findings", "ladder", "notes"} <= values.keys()


def test_a_missing_file_of_the_three_is_asked_for(files):
    result = invoke(["diagnose", "--candidates", str(files / "x.run")])
    assert "--reranked, --qrels must be given" in str(result.exception)


def test_a_repeated_document_and_a_score_that_is_no_number_are_refused_with_their_lines(files):
    lines = (files / "y.run").read_text().splitlines()
    bad = [lines[0], lines[0], lines[1].replace(lines[1].split("\t")[4], "nan")]
    (files / "y.run").write_text("\n".join(bad) + "\n")
    said = str(invoke(command(files)).exception)
    assert "stands twice" in said
    assert "y.run:2" in said
    assert "y.run:3" in said


def test_texts_open_more_checks(files, tmp_path):
    retrieved, _, qrels = world()
    queries, corpus = tmp_path / "queries.tsv", tmp_path / "corpus.tsv"
    queries.write_text("".join(f"{query}\tquery number {query}\n" for query in qrels))
    names = dict.fromkeys(name for query in qrels for name in retrieved.documents(query))
    corpus.write_text("".join(f"{name}\tthe same text\n" for name in names))
    values = json.loads(invoke(command(files, "--json", "--queries", queries, "--corpus", corpus)).stdout)
    copies = next(finding for finding in values["findings"] if finding["id"] == "H5")
    assert copies["fires"]
