"""The same verbs in Python."""

from __future__ import annotations

import json

import pytest
import yaml

import rankwright as rw
from rankwright import api
from rankwright.errors import ConfigError, DataError
from rankwright.toolbox.formats import flag, trec


def test_the_shipped_experiments_load_by_their_names():
    assert {"demo", "scidocs", "scidocs-best"} <= set(rw.shipped())
    for name in rw.shipped():
        experiment, text = rw.load(name)
        assert experiment.name == name
        assert text.startswith("# ")
        assert rw.load(f"{name}.yaml")[0] == experiment


def test_a_file_of_ones_own_comes_before_a_shipped_one(tmp_path, monkeypatch, tiny_experiment):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text(yaml.safe_dump(tiny_experiment))
    assert rw.load("demo")[0].name == "tiny"


def test_no_such_experiment_names_those_that_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no experiment file 'domo'\n.*shipped with rankwright: demo"):
        rw.load("domo")
    with pytest.raises(ConfigError, match="cannot read the experiment"):
        rw.load(tmp_path / "demo")


@pytest.mark.parametrize("kind", ["file", "path", "experiment", "values"])
def test_an_experiment_may_be_given_in_any_form(kind, tiny_file, tiny_experiment, finished_copy):
    given = {
        "file": str(tiny_file),
        "path": tiny_file,
        "experiment": rw.config.validate(tiny_experiment),
        "values": tiny_experiment,
    }[kind]
    result = rw.run(given, runs=finished_copy)
    assert {outcome.action for outcome in result.outcomes} == {"reused"}
    assert result.folder == finished_copy / "tiny"
    assert result.report == finished_copy / "tiny" / "report" / "index.html"
    assert result.table["arms"][:4] == ["retrieval", "base", "finetuned", "merged"]
    assert result.verdict["slug"] in ("ship", "blend", "keep", "inconclusive")
    written = (finished_copy / "tiny" / "experiment.yaml").exists()
    assert written == (kind in ("file", "path")), "the file's own text is kept beside the resolved one"


def test_overrides_go_with_a_file_and_not_with_values(tiny_file, tiny_experiment, tmp_path):
    result = rw.run(tiny_file, overrides=["name=other", "mine.negatives=1"], runs=tmp_path, until="data")
    assert result.folder == tmp_path / "other"
    assert rw.load(result.folder / "resolved.yaml")[0].mine.negatives == 1
    for given in (tiny_experiment, rw.config.validate(tiny_experiment)):
        with pytest.raises(ConfigError, match="overrides go with an experiment file"):
            rw.run(given, overrides=["name=other"], runs=tmp_path)


def test_a_quiet_run_says_nothing_and_the_next_may_speak_again(tiny_experiment, finished_copy, capfd):
    rw.run(tiny_experiment, runs=finished_copy)
    assert capfd.readouterr() == ("", "")
    rw.run(tiny_experiment, runs=finished_copy, quiet=False)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("reused") == 13


def test_the_rooms_take_values_and_give_values(tiny_experiment, lively_encoder, tmp_path):
    sections = rw.config.validate(tiny_experiment)
    collection, told = rw.data(sections.data, seed=0)
    assert told.splits["test"].queries == 10
    runs = rw.retrieve(collection, sections.retrieve, rw.RetrieveContext(device="cpu"))
    scorer = rw.pair_scorer(collection, "dense", sections.retrieve, rw.RetrieveContext(device="cpu"))
    mined = rw.mine(collection, runs["dense"]["train"], sections.mine, teacher=scorer)
    assert len(mined.groups) == 24
    dev = rw.DevSet.of(collection, runs["dense"]["dev"], sections.train["finetuned"].dev)
    bench = rw.Workbench(tmp_path / "made", device="cpu")
    trained = rw.train(mined.groups, sections.train["finetuned"], base=lively_encoder, dev=dev, bench=bench)
    model = rw.Reranker.load(trained.model, device="cpu")
    reranked = rw.rerank(collection, runs["dense"]["test"], model.score, depth=10)
    found = rw.evaluate(
        {"retrieval": runs["dense"]["test"], "mine": reranked}, collection.qrels["test"], sections.evaluate, seed=0
    )
    assert found.arms == ("retrieval", "mine")


def test_a_check_writes_nothing_and_counts_what_a_run_then_does(tiny_experiment, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked = rw.check(tiny_experiment)
    assert not list(tmp_path.iterdir())
    assert checked.data.documents == 160
    work = {line.stage: line for line in checked.work}
    assert all(line.seconds is not None for line in checked.work)

    run = finished / "tiny"
    groups = flag.read_groups(run / "mine/groups.jsonl")
    unlabelled = flag.read_groups(run / "mine/unlabelled.jsonl")
    steps = [json.loads(line) for line in (run / "train/finetuned/log.jsonl").read_text().splitlines()]
    assert sum("loss" in step for step in steps) == 12
    assert work["mine"].amount == sum(map(len, groups))
    assert work["train finetuned"].amount == 2 * sum(map(len, groups))
    assert work["train distilled"].amount == pytest.approx(sum(map(len, unlabelled)), rel=0.1)
    for arm in ("base", "finetuned", "merged"):
        runs = [trec.read_run(run / f"rerank/{arm}.{split}.run") for split in ("dev", "test")]
        assert work[f"rerank {arm}"].amount == 10 * sum(len(reranked.rankings) for reranked in runs)
    assert work["retrieve dense"].amount == 160 + 40
    stores = finished.glob(".cache/embeddings/*/keys.u64")
    assert sum(file.stat().st_size // 8 for file in stores) == work["retrieve dense"].amount


def test_a_check_stops_where_a_run_would_stop(tiny_experiment, tmp_path):
    missing = {**tiny_experiment, "data": {"source": f"rows:{tmp_path}/none"}}
    with pytest.raises(DataError, match="no such file"):
        rw.check(missing)
    with pytest.raises(ConfigError, match="did you mean ndcg@10"):
        rw.check({**tiny_experiment, "evaluate": {"metrics": ["ncdg@10"]}})
    with pytest.raises(ConfigError, match="did you mean distilled"):
        rw.check({**tiny_experiment, "train": {**tiny_experiment["train"], "finetuned": {"base": "distiled"}}})
    nodev = {**tiny_experiment["data"], "train": "train", "test": "dev", "dev": "test"}
    assert api.check({**tiny_experiment, "data": nodev}).data.splits["test"].queries == 6


def test_a_check_of_data_without_the_split_that_is_watched_is_refused(tiny_experiment, tiny_rows, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes((tiny_rows / f"{split}.jsonl").read_bytes())
    with pytest.raises(DataError, match="the split dev, which the data do not have"):
        rw.check({**tiny_experiment, "data": {"source": f"rows:{tmp_path}", "dev_share": 0}})
