from __future__ import annotations

import dataclasses

import pytest

import rankwright.forecast as forecasting
from rankwright.config import validate
from rankwright.core import Collection
from rankwright.errors import ModelError
from rankwright.forecast import forecast

HUB = "nobody/nothing"  # cannot be reached from the tests: amounts only, and at once
COLLECTION = Collection(
    documents={f"d{number}": f"red apple {number}" for number in range(10)},
    queries={f"q{number}": f"green pear {number}" for number in range(6)},
    qrels={
        "train": {"q0": {"d0": 1}, "q1": {"d1": 1, "d2": 2, "d9": 0}, "q2": {"d3": 1, "d4": 1, "d5": 1, "d9": 0}},
        "dev": {"q3": {"d6": 1}},
        "test": {"q4": {"d7": 1}, "q5": {"d8": 1, "d0": 0, "d1": 0}},
    },
)
"""3 training queries with 2 positives each on average, 1 dev query, 2 test queries, 10 documents."""


def experiment(*, model=HUB, train=None, train_all=None, **sections):
    """Retrieval, groups of 2 positives (on average), 2 mined and 1 random, one training of 2 groups a step."""
    values = {
        "device": "cpu",
        "data": {"source": "rows:nowhere"},
        "retrieve": {"dense": {"kind": "dense", "model": model, "depth": 8}, "bm25": {"kind": "bm25"}},
        "mine": {"candidates": "dense", "negatives": 2, "random": 1},
        "train": train_all or {"finetuned": {"base": model, "batch": 2, **(train or {})}},
    }
    return validate({**values, **sections})


def amounts(*args, **changes):
    return {line.stage: line.amount for line in forecast(experiment(*args, **changes), COLLECTION)}


@pytest.fixture
def timed(monkeypatch):
    """Every model does 10 passes a second and has a million parameters; the models that were timed."""
    asked = []

    def time(self, reference, longest, *, pairs):
        asked.append((reference, pairs))
        return forecasting._Shape(10.0, 1_000_000, 0, 1_000.0)

    monkeypatch.setattr(forecasting._Shapes, "_time", time)
    return asked


def test_each_stage_that_computes_with_a_model_has_a_line_in_order():
    work = forecast(experiment(rerank={"depth": 5}, merge={}), COLLECTION)
    stages = ["retrieve dense", "mine", "train finetuned", "rerank base", "rerank finetuned", "rerank merged"]
    assert [line.stage for line in work] == stages
    assert [line.unit for line in work] == ["texts", "pairs at most", "pairs", "pairs", "pairs", "pairs"]


def test_retrieval_encodes_all_documents_and_queries():
    assert amounts()["retrieve dense"] == 10 + 6


@pytest.mark.parametrize(
    ("mine", "pairs"),
    [
        ({}, (1 + 2 + 3) + 3 * (2 + 1)),
        ({"positives": 1}, (1 + 1 + 1) + 3 * (2 + 1)),
        ({"positives": 2}, (1 + 2 + 2) + 3 * (2 + 1)),
        ({"random": 0}, (1 + 2 + 3) + 3 * 2),
        ({"given": 1000}, (1 + 2 + 3) + 3 * (2 + 1) + (0 + 1 + 1)),  # no more than the rows have
    ],
)
def test_mining_makes_pairs_of_positives_mined_random_and_given(mine, pairs):
    section = {"candidates": "dense", "negatives": 2, "random": 1, **mine}
    assert amounts(mine=section)["mine"] == pairs


@pytest.mark.parametrize(
    ("train", "groups"),
    [
        ({}, 3),
        ({"epochs": 2}, 6),
        ({"epochs": 1.5}, 3 + 2),  # an epoch is a step of 2 groups and a step of 1
        ({"max_steps": 1}, 2),
        ({"epochs": 5, "max_steps": 3}, 3 + 2),
        ({"max_steps": 100}, 3),
        ({"batch": 1, "accumulate": 2}, 3),
        ({"batch": 8}, 3),
        ({"epochs": 0.01}, 2),  # one step at least
    ],
)
def test_training_pairs_follow_epochs_and_steps(train, groups):
    width = 2 + 2 + 1
    assert amounts(train=train)["train finetuned"] == groups * width


@pytest.mark.parametrize(
    ("train", "pairs"),
    [
        ({"max_pairs": 15}, 3 * 5),  # an epoch: 15 pairs in 2 steps
        ({"max_pairs": 16}, (3 + 2) * 5),
        ({"max_pairs": 30, "epochs": 0.1}, 6 * 5),
        ({"max_pairs": 30, "max_steps": 1}, 2 * 5),
        ({"max_pairs": 12, "sample": {"positives": 1, "negatives": 1}}, 6 * 2),
    ],
)
def test_max_pairs_says_how_many_pairs_whatever_epochs_says(train, pairs):
    assert amounts(train=train)["train finetuned"] == pairs


def test_a_sample_makes_groups_smaller_but_never_larger():
    assert amounts(train={"sample": {"positives": 1, "negatives": 1}})["train finetuned"] == 3 * 2
    assert amounts(train={"sample": {"positives": 9, "negatives": 90}})["train finetuned"] == 3 * 5


@pytest.mark.parametrize(("wanted", "groups"), [(2, 2), (100, 3)])
def test_groups_without_labels_are_no_more_than_the_queries(wanted, groups):
    mine = {"candidates": "dense", "negatives": 2, "random": 1, "unlabelled": wanted}
    told = amounts(mine=mine, train={"groups": "unlabelled", "loss": "kl"})
    assert told["train finetuned"] == groups * (1 + 2 + 1)


@pytest.mark.parametrize(
    ("rerank", "pairs"),
    [
        ({"candidates": "dense", "depth": 5}, (2 + 1) * 5),
        ({"candidates": "dense", "depth": 100}, (2 + 1) * 8),  # the retriever's depth
        ({"candidates": "bm25", "depth": 100}, (2 + 1) * 10),  # all documents
    ],
)
def test_reranking_pairs_are_test_and_dev_queries_times_depth_for_each_arm(rerank, pairs):
    told = amounts(rerank=rerank)
    assert (told["rerank base"], told["rerank finetuned"]) == (pairs, pairs)


def test_reranking_looks_at_the_measured_split_and_its_own_documents():
    rerank = {"candidates": "bm25", "depth": 100, "dev_queries": 0}
    assert amounts(rerank=rerank, evaluate={"split": "dev"}, verdict=None)["rerank base"] == 1 * 10
    own = {"source": "rows:nowhere", "corpus": "per_split"}
    assert amounts(rerank=rerank, data=own)["rerank base"] == 2 * 4  # d7, d8, d0, d1


def test_a_reranker_that_filters_scores_the_window_and_the_positives():
    mine = {"candidates": "dense", "filter_by": HUB, "window": [2, 6]}
    assert amounts(mine=mine)["mine, filter"] == 3 * 5 + 6
    assert amounts(mine={**mine, "window": [3, 50]})["mine, filter"] == 3 * 6 + 6  # the retriever's depth
    assert amounts(mine={**mine, "drop_above": None})["mine, filter"] == 0
    assert amounts(mine={**mine, "drop_above": None, "holes": "weigh"})["mine, filter"] == 3 * 5 + 6
    assert amounts(mine={**mine, "negatives": 0, "holes": "weigh"})["mine, filter"] == 0
    assert amounts(mine={**mine, "queries": 2})["mine, filter"] == 2 * 5 + 4
    assert amounts(mine={**mine, "queries": 9})["mine, filter"] == 3 * 5 + 6
    assert "mine, filter" not in amounts()


def test_a_training_that_mines_for_itself_is_told_of_before_it_and_after_what_filters_it(timed):
    own = {"candidates": "dense", "filter_by": "one", "window": [2, 6], "negatives": 1, "random": 1}
    work = forecast(experiment(train_all={"two": {"base": HUB, "mine": own}, "one": {"base": HUB}}), COLLECTION)
    told = {line.stage: line.amount for line in work}
    assert list(told)[1:] == ["mine", "train one", "mine for two", "mine for two, filter", "train two"]
    assert told["mine for two"] == 3 * (2 + 1 + 1)
    assert told["mine for two, filter"] == 3 * 5 + 6
    assert told["train two"] == 3 * (2 + 1 + 1)


@pytest.mark.parametrize(
    ("budget", "amount", "unit", "seconds"),
    [("2m", 120, "seconds at most", 120), ("5000 pairs", 5000, "pairs", 5000 * 3.3 / 10)],
)
def test_a_search_and_its_training_are_what_the_budget_says(budget, amount, unit, seconds, timed):
    train = {"finetuned": {"recipe": "auto", "budget": budget, "bases": [HUB, "nobody/other"]}}
    (line,) = [one for one in forecast(experiment(train_all=train), COLLECTION) if one.stage.startswith("recipe")]
    assert (line.stage, line.amount, line.unit) == ("recipe and train finetuned", amount, unit)
    assert line.seconds == pytest.approx(seconds)
    assert line.gigabytes > 0
    assert {reference for reference, _ in timed} >= {HUB, "nobody/other"}


def test_a_base_of_a_search_that_is_not_there_stops_as_a_run_would(tmp_path):
    train = {"finetuned": {"recipe": "auto", "bases": [HUB, str(tmp_path / "gone")]}}
    with pytest.raises(ModelError, match="no model folder"):
        forecast(experiment(train_all=train), COLLECTION)


def test_a_hub_that_cannot_be_reached_is_a_note_and_no_crash():
    work = forecast(experiment(), COLLECTION)
    first, last = work[0], work[-1]
    assert (first.seconds, first.gigabytes, last.seconds) == (None, None, None)
    assert first.note == last.note == "cannot be timed: cannot reach the hub for 'nobody/nothing'"


def test_a_model_folder_that_is_not_there_stops_as_a_run_would(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        forecast(experiment(model=str(tmp_path / "gone")), COLLECTION)


def test_a_folder_that_holds_no_model_is_noted(tmp_path):
    (line, *_) = forecast(experiment(model=str(tmp_path)), COLLECTION)
    assert line.note.startswith("cannot be timed: ")
    assert (line.amount, line.seconds) == (16, None)


def test_seconds_are_passes_and_training_costs_three_and_dev_is_counted(timed):
    dev = {"queries": 50, "depth": 4, "evaluations": 2}
    work = forecast(experiment(train={"epochs": 2, "dev": dev}, rerank={"depth": 5, "dev_queries": 0}), COLLECTION)
    seconds = {line.stage: line.seconds for line in work}
    dev_pairs = (1 + 2 * 2) * 1 * 4  # before training and twice an epoch, the only dev query, 4 candidates
    assert seconds == {
        "retrieve dense": pytest.approx(16 / 10),
        "mine": 0.0,
        "train finetuned": pytest.approx((30 * 3.3 + dev_pairs) / 10),
        "rerank base": pytest.approx(1.0),
        "rerank finetuned": pytest.approx(1.0),
    }
    assert work[0].gigabytes == pytest.approx(0.504)  # 4 bytes a weight, and half a gigabyte for Python and torch


def test_without_dev_nothing_is_watched(timed):
    (*_, line) = forecast(experiment(train={"dev": None, "keep": "last"}), COLLECTION)
    assert line.seconds == pytest.approx(15 * 3.3 / 10)


def test_adapters_and_checkpointing_need_less_memory(timed):
    def gigabytes(**train):
        return forecast(experiment(train=train), COLLECTION)[-1].gigabytes

    assert gigabytes() > gigabytes(gradient_checkpointing=True)
    assert gigabytes() > gigabytes(lora={})
    assert gigabytes() > 0.5 + 4 * 0.004  # weights, gradients and AdamW's two moments


def test_a_training_on_a_training_and_a_merge_have_the_first_models_shape(timed):
    trainings = {"first": {"base": "a/b", "batch": 2}, "second": {"base": "first", "batch": 2}}
    work = forecast(experiment(train_all=trainings, merge={"models": ["first", "second"]}, rerank={}), COLLECTION)
    assert timed == [(HUB, False), ("a/b", True)]  # each model once, whoever uses it
    assert [line.stage for line in work][-3:] == ["rerank base", "rerank finetuned", "rerank merged"]


def test_a_real_model_is_timed(tiny_encoder):
    work = forecast(experiment(model=str(tiny_encoder), rerank={"depth": 5, "dev_queries": 0}), COLLECTION)
    for line in work:
        if line.stage != "mine":
            assert 0 < line.seconds < 60
            assert 0.5 < line.gigabytes < 1
            assert line.note.startswith("in fp32") == line.stage.startswith("rerank")


def test_longer_texts_mean_more_tokens(tiny_encoder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    shapes = forecasting._Shapes(experiment(), COLLECTION)
    documents = shapes._typical_tokens(tokenizer, 64, pairs=False)
    assert documents == 5  # [CLS] red apple 7 [SEP]
    assert shapes._typical_tokens(tokenizer, 64, pairs=True) == 10
    assert shapes._typical_tokens(tokenizer, 6, pairs=True) == 6


def test_a_model_that_cannot_read_the_texts_is_told_of_beside_its_work(tiny_reranker):
    foreign = dataclasses.replace(COLLECTION, documents=dict.fromkeys(COLLECTION.documents, "政府宣布改革"))
    given = experiment(model=str(tiny_reranker), rerank={"depth": 5, "precision": "exact"})
    stages = [line for line in forecast(given, foreign) if line.stage.startswith(("retrieve", "train", "rerank base"))]
    assert len(stages) == 3
    assert all("cannot read 100% of these texts" in line.warning for line in stages)
    assert not any(line.warning for line in forecast(given, COLLECTION))


def test_a_search_for_a_time_tells_of_what_its_base_cannot_read(tiny_reranker):
    foreign = dataclasses.replace(COLLECTION, documents=dict.fromkeys(COLLECTION.documents, "政府宣布改革"))
    given = experiment(train_all={"finetuned": {"recipe": "auto", "budget": "90s", "base": str(tiny_reranker)}})
    line = next(line for line in forecast(given, foreign) if line.stage.startswith("recipe"))
    assert "cannot read" in line.warning
    assert line.note == "the budget"
