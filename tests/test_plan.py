from __future__ import annotations

import pytest

from rankwright.config import validate
from rankwright.errors import ConfigError
from rankwright.plan import Model, Plan

OUTSIDE = Model("outside", "offline")


def plan(**sections):
    values = {"data": {}, "retrieve": {"dense": {"kind": "dense"}, "bm25": {"kind": "bm25"}}, "mine": {}, "rerank": {}}
    return Plan.of(validate({**values, **sections}))


def test_base_is_what_the_last_training_starts_from_and_finetuned_is_that_training():
    made = plan(train={"distilled": {}, "tuned": {"base": "distilled"}}, merge={"models": ["base", "finetuned"]})
    assert made.arms == {
        "base": Model("train", "distilled"),
        "finetuned": Model("train", "tuned"),
        "merged": Model("merge", "merged"),
    }
    assert made.merged == (Model("train", "distilled"), Model("train", "tuned"))
    assert made.bases == {"distilled": OUTSIDE, "tuned": Model("train", "distilled")}


def test_the_last_training_is_the_one_that_no_other_starts_from_wherever_it_is_written():
    made = plan(train={"tuned": {"base": "distilled"}, "distilled": {"base": "first"}, "first": {}})
    assert made.trainings == ("first", "distilled", "tuned")
    assert made.arms["finetuned"] == Model("train", "tuned")
    assert made.arms["base"] == Model("train", "distilled")


def test_of_two_trainings_from_one_base_the_last_written_is_finetuned():
    made = plan(train={"one": {}, "two": {"base": "some/model"}})
    assert made.arms == {"base": Model("outside", "some/model"), "finetuned": Model("train", "two")}


def test_a_training_that_bears_one_of_the_words_is_what_the_word_means():
    made = plan(train={"finetuned": {}, "later": {"base": "finetuned"}})
    assert made.arms["finetuned"] == Model("train", "finetuned")
    assert made.arms["base"] == Model("outside", "offline")


def test_arms_may_be_named_and_come_from_anywhere(tmp_path):
    arms = {"mine": "tuned", "other": str(tmp_path), "hub": "BAAI/bge-reranker-base", "both": "merged"}
    made = plan(train={"tuned": {}}, merge={"models": ["tuned", "offline"]}, rerank={"arms": arms})
    assert list(made.arms) == list(arms)
    assert made.arms["other"] == Model("outside", str(tmp_path))
    assert made.arms["hub"].stage is None
    assert made.arms["mine"].stage == "train/tuned"
    assert made.arms["both"].stage == "merge"


def test_without_trainings_there_are_no_arms_but_those_that_are_named():
    assert plan().arms == {}
    assert plan(rerank=None, train={"tuned": {}}).arms == {}
    assert plan(rerank={"arms": {"one": "offline"}}).arms == {"one": OUTSIDE}


def test_the_last_retriever_is_mined_and_reranked_unless_another_is_named():
    assert (plan().mine_from, plan().rerank_from) == ({"mine": "bm25"}, "bm25")
    made = plan(mine={"candidates": "dense"}, rerank={"candidates": "bm25"})
    assert (made.mine_from, made.rerank_from) == ({"mine": "dense"}, "bm25")


def test_the_splits_that_the_data_must_have_are_those_that_something_reads():
    assert plan().splits == ("train", "test")
    assert plan(train={"tuned": {}}).splits == ("train", "dev", "test")
    assert plan(train={"tuned": {"dev": None, "keep": "last"}}, evaluate={"split": "dev"}).splits == ("train", "dev")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"train": {"a": {"base": "b"}, "b": {"base": "a"}}}, "trainings that start from one another: "),
        ({"train": {"a": {"base": "a"}}}, "train.a starts from itself"),
        ({"train": {"distilled": {}, "b": {"base": "distiled"}}}, "'distiled'; did you mean distilled?"),
        ({"train": {"a": {}}, "merge": {"models": ["base", "finetund"]}}, "merge.models: no training or model"),
        ({"merge": {"models": ["base", "finetuned"]}}, "merge.models: there is no training that 'base' could mean"),
        ({"train": {"a": {}}, "merge": {"models": ["a", "merged"]}}, "the merge cannot be made of itself"),
        ({"rerank": {"arms": {"one": "merged"}}}, "rerank.arms.one: there is no merge section"),
        ({"rerank": {"arms": {"retrieval": "offline"}}}, "'retrieval' is a column that rankwright makes itself"),
        ({"rerank": {"candidates": "bm52"}}, "rerank.candidates: there is no retriever 'bm52'; did you mean bm25?"),
        ({"mine": {"candidates": "x"}}, "the retrievers are dense, bm25"),
        (
            {"retrieve": {"dense": {"kind": "dense"}, "both": {"kind": "fuse", "of": ["dense", "bm25"]}}},
            "retrieve.both.of: there is no retriever 'bm25'",
        ),
        ({"train": {"a": {}}, "mine": None}, "train needs groups, and there is no mine section"),
        ({"train": {"a": {"groups": "unlabelled", "loss": "kl"}}}, "mine.unlabelled is 0"),
        ({"train": {"a": {}}, "mine": {"negatives": 0, "random": 0}}, "no group would hold a negative"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_before_anything_runs(sections, expected):
    with pytest.raises(ConfigError) as caught:
        plan(**sections)
    assert expected in str(caught.value)


def test_a_circle_is_told_with_all_its_members():
    with pytest.raises(ConfigError) as caught:
        plan(train={"a": {"base": "c"}, "b": {"base": "a"}, "c": {"base": "b"}}, merge={"models": ["base", "a"]})
    assert {"a", "b", "c"} <= set(str(caught.value).split(": ")[1].split(" -> "))


def test_a_folder_whose_name_is_like_a_word_is_still_a_folder(tmp_path, monkeypatch):
    (tmp_path / "finetune").mkdir()
    monkeypatch.chdir(tmp_path)
    made = plan(train={"tuned": {}}, rerank={"arms": {"one": "finetune"}})
    assert made.arms["one"] == Model("outside", "finetune")


def test_base_is_what_finetuned_starts_from_whatever_else_is_trained():
    made = plan(train={"finetuned": {"base": "x/one"}, "other": {"base": "x/two"}}, rerank={})
    assert made.arms == {"base": Model("outside", "x/one"), "finetuned": Model("train", "finetuned")}


@pytest.mark.parametrize("word", ["base", "merged"])
def test_a_training_that_starts_from_an_arm_is_refused(word):
    with pytest.raises(ConfigError, match="is an arm"):
        plan(train={"tuned": {"base": word}}, merge={})


def test_a_hub_id_that_is_like_a_word_is_still_a_hub_id():
    made = plan(train={"tuned": {}}, merge={}, rerank={"arms": {"hub": "merged/base"}})
    assert made.arms["hub"] == Model("outside", "merged/base")


def test_dev_is_not_needed_where_nothing_watches_it():
    made = plan(train={"tuned": {"dev": None, "keep": "last"}})
    assert "dev" not in made.splits


def test_a_fusion_whose_weights_dev_chooses_needs_dev():
    both = {"kind": "fuse", "of": ["dense", "bm25"]}
    for method, splits in {"rrf": ("train", "test"), "tuned": ("train", "dev", "test")}.items():
        retrievers = {"both": {**both, "method": method}, "dense": {"kind": "dense"}, "bm25": {"kind": "bm25"}}
        assert plan(retrieve=retrievers).splits == splits


PLAIN = {"retrieval": {"kind": "dense"}, "bm25": {"kind": "bm25"}}


def test_a_fused_retriever_may_not_take_the_place_of_a_column():
    with pytest.raises(ConfigError, match=r"retrieve\.retrieval: 'retrieval' is a column"):
        plan(retrieve={**PLAIN, "hybrid": {"kind": "fuse", "of": ["retrieval", "bm25"]}})
    assert plan(retrieve=PLAIN, rerank={"candidates": "bm25"}).rerank_from == "bm25"


@pytest.mark.parametrize("split", ["train", "dev"])
def test_no_verdict_on_queries_that_a_training_has_seen(split):
    with pytest.raises(ConfigError, match=r"would measure on queries that train\.tuned has chosen or learned by"):
        plan(train={"tuned": {}}, evaluate={"split": split})
    assert plan(train={"tuned": {}}, evaluate={"split": split}, verdict=None).split == split


def test_a_training_that_does_not_watch_dev_may_be_judged_on_it():
    assert plan(train={"tuned": {"dev": None, "keep": "last"}}, evaluate={"split": "dev"}).split == "dev"
