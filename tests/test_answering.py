"""The rag stage of the walk: context columns of every arm, rows for ragas elsewhere, and labels from a judge."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

import rankwright
from rankwright.errors import ArtefactError, ConfigError
from rankwright.pipeline.answering import keep_judged
from rankwright.toolbox.formats import trec

KEYS = {
    *("user_input", "retrieved_contexts", "retrieved_context_ids"),
    *("reference_contexts", "reference_context_ids", "response", "reference"),
}


@pytest.fixture(scope="module")
def answered(finished, make_experiment, tmp_path_factory):
    """The tiny experiment walked with a rag section and reference answers, its models reused."""
    runs = shutil.copytree(finished, tmp_path_factory.mktemp("answered") / "runs")
    boxes = json.loads((runs / "tiny/evaluate/table.json").read_text())
    qrels = trec.read_qrels(next((runs / "tiny/data/qrels").glob("test.*")))
    answers = runs.parent / "answers.jsonl"
    answers.write_text("".join(json.dumps({"query_id": query, "answer": "so it is"}) + "\n" for query in qrels))
    experiment = {**make_experiment(), "rag": {"k": 3, "answers": str(answers)}}
    return experiment, rankwright.run(experiment, runs=runs), runs, boxes["arms"]


def test_every_column_of_the_table_has_its_contexts_measured(answered):
    _, _, runs, arms = answered
    found = json.loads((runs / "tiny/rag/rag.json").read_text())
    assert found["arms"] == arms
    assert found["k"] == 3
    assert found["model"] is None
    assert {"rag.md", "rag.txt", "per_query.parquet"} <= {file.name for file in (runs / "tiny/rag").iterdir()}
    assert not (runs / "tiny/judged.qrels").exists()


def test_the_report_shows_them(answered):
    _, _, runs, _ = answered
    assert 'id="rag"' in (runs / "tiny/report/index.html").read_text()


def test_the_models_and_runs_were_used_again(answered):
    _, result, _, _ = answered
    ran = {outcome.stage for outcome in result.outcomes if outcome.action == "ran"}
    assert ran == {"rag", "report"}


def test_the_same_again_is_reused_and_another_k_is_not(answered, tmp_path):
    experiment, _, runs, _ = answered
    copied = shutil.copytree(runs, tmp_path / "runs")
    again = rankwright.run(experiment, runs=copied)
    assert {outcome.action for outcome in again.outcomes} == {"reused"}
    other = rankwright.run({**experiment, "rag": {**experiment["rag"], "k": 2}}, runs=copied)
    assert {outcome.stage for outcome in other.outcomes if outcome.action == "ran"} == {"rag", "report"}


def test_rows_for_ragas_are_written_for_each_arm(answered, tmp_path):
    _, _, runs, arms = answered
    files = rankwright.export_rag(runs / "tiny", tmp_path / "rows")
    assert [file.stem for file in files] == arms
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert rows
        assert all(set(row) == KEYS for row in rows)
        assert all(len(row["retrieved_contexts"]) == len(row["retrieved_context_ids"]) == 3 for row in rows)
        assert {row["reference"] for row in rows} == {"so it is"}
        assert {row["response"] for row in rows} == {None}


def test_one_arm_is_one_file_and_an_unknown_one_is_refused(answered, tmp_path):
    _, _, runs, _ = answered
    assert rankwright.export_rag(runs / "tiny", tmp_path / "one.jsonl", "finetuned") == [tmp_path / "one.jsonl"]
    with pytest.raises(ConfigError, match="there is no finetund"):
        rankwright.export_rag(runs / "tiny", tmp_path / "two.jsonl", "finetund")
    assert not (tmp_path / "two.jsonl").exists()


def test_rows_need_a_run_folder_that_is_measured(answered, tmp_path):
    _, _, runs, _ = answered
    with pytest.raises(ConfigError, match="no run folder"):
        rankwright.export_rag(tmp_path, tmp_path / "rows")
    copied = shutil.copytree(runs, tmp_path / "runs")
    (copied / "tiny/evaluate/stage.json").unlink()
    with pytest.raises(ArtefactError, match="not been measured"):
        rankwright.export_rag(copied / "tiny", tmp_path / "rows")


def test_a_judges_labels_are_added_where_there_are_none(answered, tmp_path):
    """Every document that retrieval puts first is called relevant: then it is, unless the labels say otherwise."""
    experiment, before, runs, _ = answered
    copied = shutil.copytree(runs, tmp_path / "runs")
    run = trec.read_run(copied / "tiny/retrieve/dense.test.run")
    judged = tmp_path / "judged.qrels"
    trec.write_qrels(judged, {query: {run.documents(query)[0]: 1} for query in run.rankings})
    measured = {**experiment["evaluate"], "judged": str(judged)}
    after = rankwright.run({**experiment, "evaluate": measured}, runs=copied)

    def first(result):
        (row,) = [row for row in result.table["rows"] if row["metric"] == "mrr@10"]
        return row["cells"][0]["mean"]

    assert first(before) < 1
    assert first(after) == 1


@pytest.fixture
def chat():
    """A server that answers by fixed rules."""
    pytest.importorskip("ragas")
    spec = importlib.util.spec_from_file_location("chatserver", Path(__file__).with_name("chatserver.py"))
    module = sys.modules["chatserver"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.running() as chat:
        yield chat


def test_an_endpoint_writes_answers_and_judges_every_column_and_is_asked_once(answered, chat, tmp_path, capfd):
    experiment, _, runs, arms = answered
    copied = shutil.copytree(runs, tmp_path / "runs")
    endpoint = {"base_url": chat.url, "model": "rules", "key_from": "NO_KEY_HERE", "max_calls": 5000}
    asking = {**experiment, "rag": {**experiment["rag"], "queries": 4, "endpoint": endpoint}}
    rankwright.run(asking, runs=copied)
    assert "calls" in capfd.readouterr().err  # told before, though this run is a quiet one
    folder = copied / "tiny/rag"
    found = json.loads((folder / "rag.json").read_text())
    assert found["model"] == "rules"
    assert found["sampled"] == 4
    judged = {column["metric"] for column in found["columns"]}
    assert {"context_precision", "context_recall", "faithfulness", "answer_relevancy"} <= judged
    assert set(json.loads((folder / "responses.json").read_text())) == set(arms)
    assert trec.read_qrels(copied / "tiny/judged.qrels")
    asked = chat.wire
    assert asked > 0
    shutil.rmtree(folder)
    rankwright.run(asking, runs=copied)
    assert chat.wire == asked
    again = json.loads((folder / "rag.json").read_text())
    assert again["columns"] == found["columns"]
    rows = [json.loads(line) for line in (rankwright.export_rag(copied / "tiny", tmp_path / "r", None))[0].open()]
    assert sum(row["response"] is not None for row in rows) == 4
    own = {**asking, "evaluate": {**asking["evaluate"], "judged": str(copied / "tiny/judged.qrels")}}
    for _ in range(2):  # the labels that this very experiment wrote
        rankwright.run(own, runs=copied)


def test_what_was_judged_stays_judged_until_the_data_are_others(tmp_path):
    keep_judged(tmp_path, [("q", "a", True), ("q", "b", False)], "data")
    keep_judged(tmp_path, [("q", "c", True), ("q", "b", True)], "data")
    assert trec.read_qrels(tmp_path / "judged.qrels") == {"q": {"a": 1, "b": 1, "c": 1}}
    keep_judged(tmp_path, [("q", "d", True)], "other data")
    assert trec.read_qrels(tmp_path / "judged.qrels") == {"q": {"d": 1}}, "their ids may mean other texts"
