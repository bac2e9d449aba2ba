"""What would stop a run after hours of work is told before it begins: by `check`, and by `run` after the data."""

from __future__ import annotations

import shutil

import pytest

import rankwright
from rankwright import config
from rankwright.errors import ConfigError, DataError, MissingExtraError, ModelError
from rankwright.pipeline.base import planned
from rankwright.plan import Model

PARTS = ("rag", "general", "merge")


@pytest.fixture
def small(tiny_experiment):
    """The tiny experiment without some of its rooms."""
    return {key: value for key, value in tiny_experiment.items() if key not in PARTS}


def stops(values, tmp_path, error, match):
    with pytest.raises(error, match=match):
        rankwright.check(values)
    with pytest.raises(error, match=match):
        rankwright.run(values, runs=tmp_path)
    assert not (tmp_path / "tiny/retrieve").exists()


def test_a_base_without_a_head_is_no_arm_by_default(small, lively_encoder, tmp_path):
    small["train"] = {"finetuned": {**small["train"]["finetuned"], "base": str(lively_encoder)}}
    assert planned(config.validate(small)).arms == {"finetuned": Model("train", "finetuned")}
    result = rankwright.run(small, runs=tmp_path)
    assert result.table["arms"] == ["retrieval", "finetuned", "finetuned-blend"]
    assert result.verdict["arm"] == "finetuned"


def test_an_arm_that_cannot_score_is_refused_where_it_was_named(small, lively_encoder, tmp_path):
    small["rerank"] = {**small["rerank"], "arms": {"plain": str(lively_encoder), "finetuned": "finetuned"}}
    stops(small, tmp_path, ModelError, r"rerank\.arms\.plain: .* plain encoder")


def test_the_base_of_a_search_may_be_named_for_it_becomes_a_reranker(small, lively_encoder):
    small["train"] = {"finetuned": {"recipe": "auto", "budget": "3000 pairs", "base": str(lively_encoder)}}
    small["rerank"] = {**small["rerank"], "arms": {"base": "base", "finetuned": "finetuned"}}
    assert rankwright.check(small).work


def test_a_base_of_the_hub_that_cannot_be_asked_is_left_to_whoever_needs_it(small, monkeypatch):
    def away(reference):
        raise ModelError(f"cannot reach the hub for {reference!r}")

    monkeypatch.setattr("rankwright.pipeline.preflight.locate", away)
    monkeypatch.setattr("rankwright.forecast.locate", away)
    small["rerank"] = {**small["rerank"], "arms": {"other": "some/model"}}
    assert rankwright.check(small).work


def test_a_verdict_on_one_query(small, tmp_path):
    small["data"] = {**small["data"], "max_queries": {"test": 1}}
    stops(small, tmp_path, DataError, "at least 2 judged queries, and test has 1")


def test_judgements_and_a_general_collection_that_are_not_there(small, tmp_path):
    small["evaluate"] = {**small["evaluate"], "judged": str(tmp_path / "none.qrels")}
    stops(small, tmp_path, DataError, "none.qrels")
    small["evaluate"] = {"metrics": ["ndcg@10"]}
    small["general"] = {"source": f"beir:{tmp_path / 'nowhere'}"}
    stops(small, tmp_path, DataError, r"general\.source: there is no")
    small["general"] = {"source": "bier:anything"}
    stops(small, tmp_path, ConfigError, "unknown kind of source 'bier'")


def test_a_cascade_without_an_exit(small, tmp_path):
    small["rerank"] = {**small["rerank"], "cascade": {}}
    stops(small, tmp_path, ConfigError, "no arm's model has an exit head")


@pytest.mark.parametrize("layer", [2, 7])
def test_an_exit_after_layers_that_the_base_does_not_have(small, tmp_path, layer):
    small["train"]["finetuned"]["exit"] = layer
    stops(small, tmp_path, ConfigError, rf"train\.finetuned\.exit: {layer} is not between 1 and 1: .* 2 layers")


def test_an_exit_of_a_base_whose_configuration_is_elsewhere_is_left_to_the_training(small, tmp_path):
    small["train"] = {"finetuned": {**small["train"]["finetuned"], "base": "some/model", "exit": 7}}
    small["rerank"] = {**small["rerank"], "arms": {"finetuned": "finetuned"}}
    rankwright.run(small, runs=tmp_path, until="mine")


def test_a_merge_of_weights_that_are_a_pickle_alone(small, tmp_path, tiny_reranker):
    other = tmp_path / "other"
    shutil.copytree(tiny_reranker, other)
    small["merge"] = {"models": ["finetuned", str(other)]}
    rankwright.check(small)
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    stops(small, tmp_path, ModelError, "no model.safetensors, and a pickle is not read")


def test_half_precision_without_a_gpu(small, tmp_path):
    small["train"]["finetuned"]["precision"] = "fp16"
    stops(small, tmp_path, ConfigError, r"train\.finetuned\.precision: fp16 needs a GPU")


def test_half_precision_of_an_encoder_without_a_gpu(small, tmp_path):
    (name,) = [name for name, section in small["retrieve"].items() if section["kind"] == "dense"][:1]
    small["retrieve"][name]["precision"] = "fp16"
    stops(small, tmp_path, ConfigError, rf"retrieve\.{name}\.precision: fp16 needs a GPU")


def test_what_diagnosis_measures(small, tmp_path):
    small["diagnose"] = {**small["diagnose"], "metric": "ndgc@10"}
    with pytest.raises(ConfigError, match="did you mean ndcg@10"):
        rankwright.run(small, runs=tmp_path)


def test_columns_answers_and_libraries_that_rag_lacks(small, tmp_path, monkeypatch):
    small["rag"] = {"arms": ["finetnued"]}
    stops(small, tmp_path, ConfigError, r"rag\.arms: there is no finetnued")
    small["rag"] = {"answers": str(tmp_path / "none.jsonl")}
    stops(small, tmp_path, DataError, "none.jsonl")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    small["rag"] = {"endpoint": {"base_url": "http://localhost:1", "model": "one"}}
    stops(small, tmp_path, MissingExtraError, r"rag\.endpoint needs what is not installed: ragas, openai, httpx")


def test_what_is_added_later_is_looked_at_too_and_only_where_it_is_walked_to(small, tmp_path):
    rankwright.run(small, runs=tmp_path, until="data")
    small["rerank"] = {**small["rerank"], "cascade": {}}
    rankwright.run(small, runs=tmp_path, until="retrieve")
    with pytest.raises(ConfigError, match="no arm's model has an exit head"):
        rankwright.run(small, runs=tmp_path)
    assert not (tmp_path / "tiny/train").exists()


def test_a_plain_encoder_is_no_arm_to_be_diagnosed(small, lively_encoder):
    small["train"] = {"finetuned": {**small["train"]["finetuned"], "base": str(lively_encoder)}}
    small["diagnose"] = {**small["diagnose"], "arm": "base"}
    with pytest.raises(ConfigError, match=r"diagnose\.arm: 'base' is a plain encoder"):
        rankwright.check(small)


def test_a_plain_encoder_of_the_hub_is_known_by_its_copy_here(small, lively_encoder, monkeypatch):
    kept = str(lively_encoder / "config.json")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: kept if name == "a/b" else None)
    for name, arms in {"a/b": ["finetuned"], "c/d": ["base", "finetuned"]}.items():
        small["train"] = {"finetuned": {**small["train"]["finetuned"], "base": name}}
        assert list(planned(config.validate(small)).arms) == arms


def test_a_forecast_has_no_arm_that_the_run_has_not(small, lively_encoder):
    small["train"] = {"finetuned": {**small["train"]["finetuned"], "base": str(lively_encoder)}}
    assert not any("rerank base" in line.stage for line in rankwright.check(small).work)


def test_what_a_finished_run_is_changed_to_is_looked_at_too(finished_copy, tiny_experiment):
    tiny_experiment["rerank"] = {**tiny_experiment["rerank"], "cascade": {}}
    tiny_experiment["mine"] = {**tiny_experiment["mine"], "negatives": 2}
    with pytest.raises(ConfigError, match="no arm's model has an exit head"):
        rankwright.run(tiny_experiment, runs=finished_copy)
    assert (finished_copy / "tiny/mine/stage.json").exists(), "nothing was made anew"
