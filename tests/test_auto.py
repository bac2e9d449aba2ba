"""`recipe: auto`: what the search spends, what it survives, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import rankwright
from rankwright import config
from rankwright.auto import Case, forget, search, training_key
from rankwright.auto.pace import training_pairs_per_second
from rankwright.auto.pool import Pool
from rankwright.auto.purse import SEARCH_SHARE, purse
from rankwright.auto.recipes import Facts, distillation, first, rivals
from rankwright.auto.record import beyond, surely
from rankwright.core import Collection, Run
from rankwright.errors import ConfigError, DataError, ModelError
from rankwright.pipeline import Walk, status
from rankwright.plan import Model, Plan, unfolded
from rankwright.sections import SampleSection, Training
from rankwright.toolbox.schedule import PASSES, Schedule

basing = importlib.import_module("rankwright.auto.bases")
searching = importlib.import_module("rankwright.auto.search")  # the package's `search` is the function
trying = importlib.import_module("rankwright.auto.trials")

# ------------------------------------------------------------------------------------- the search, without any training


def made_case(score=lambda model, pairs: np.zeros(len(pairs), dtype=np.float32), **changed):
    """40 queries to train on and 40 of dev, each with 30 candidates, two of them relevant."""
    rng = np.random.default_rng(0)
    documents = {f"d{number}": f"text {number}" for number in range(100)}
    queries = {f"{split}{number}": f"{split} what {number}" for split in ("train", "dev") for number in range(40)}
    scores = {
        query: {f"d{number}": float(rng.normal()) for number in rng.choice(100, 30, replace=False)} for query in queries
    }
    best = {query: sorted(hits, key=hits.get)[-4::2] for query, hits in scores.items()}
    qrels = {
        split: {query: dict.fromkeys(found, 1) for query, found in best.items() if query.startswith(split)}
        for split in ("train", "dev")
    }
    runs = {
        split: Run.from_scores({query: hits for query, hits in scores.items() if query.startswith(split)})
        for split in ("train", "dev")
    }
    known = {**scores}
    collection = Collection(documents, queries, qrels)

    def filter_of(model):
        return lambda pairs: score(model, [(queries[query], documents[document]) for query, document in pairs])

    return Case(
        collection=collection,
        runs={"dense": runs["train"]},
        dev=runs["dev"],
        served="dense",
        scorer=lambda name: lambda pairs: np.array([known[query].get(document, -9.0) for query, document in pairs]),
        scores_of=lambda model: lambda pairs: score(model, pairs),
        filter_of=filter_of,
        depth=30,
        seed=0,
        **changed,
    )


@pytest.fixture
def untrained(monkeypatch):
    """Trainings that leave a folder and no weights; what was trained, in order."""
    made = []

    def train(groups, section, *, base, dev, bench):
        made.append((bench.folder.name, section))
        (bench.folder / "model").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(trying, "train", train)
    monkeypatch.setattr(trying, "fingerprint", str)
    monkeypatch.setattr(basing, "fingerprint", lambda folder: f"finger{folder}")
    monkeypatch.setattr(basing, "locate", Path)
    monkeypatch.setattr(basing, "has_head", lambda folder: folder.name.startswith("reranker"))
    return made


def auto(**values):
    return Training(recipe="auto", learning_rate=1e-4, **values)


@pytest.mark.parametrize(
    "bases", [["encoder"], ["reranker"], ["reranker", "encoder"], ["encoder", "encoder2", "reranker"]]
)
def test_the_search_never_spends_more_than_its_share(bases, untrained, tmp_path):
    rivals = set()
    for place, total in enumerate(np.geomspace(400, 400_000, 9)):
        found = search(made_case(), "one", auto(budget=f"{total:.0f} pairs", bases=bases), tmp_path / str(place))
        assert found.spent <= SEARCH_SHARE * found.total + 1
        trained = found.trainings["one"]["max_pairs"]
        assert found.spent + trained <= found.total + 1
        raced = {row["name"] for row in found.table if not row["name"].startswith("base ")}
        rivals.add(len(raced))
        if not raced:
            assert any("the budget pays for no rival" in reason for reason in found.reasons)
    assert 0 in rivals, "the smallest budget should pay for none"
    assert max(rivals) >= 3


def test_a_small_budget_says_what_a_rival_would_take(untrained, tmp_path):
    found = search(made_case(), "one", auto(budget="3000 pairs", base="reranker"), tmp_path)
    (reason,) = [reason for reason in found.reasons if reason.startswith("recipe: ")]
    assert "a rival would take" in reason
    assert "the search has" in reason
    assert list(found.trainings) == ["one"]


def test_a_budget_that_does_not_pay_for_one_dev_query_is_refused(untrained, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.one\.budget: 50 pairs do not pay for one dev query"):
        search(made_case(), "one", auto(budget="50 pairs", base="reranker"), tmp_path)


def test_candidates_for_dev_alone_are_refused_and_the_missing_ones_named(untrained, tmp_path):
    case = dataclasses.replace(made_case(), runs={"dense": Run()})
    with pytest.raises(DataError, match=r"retrieve\.dense has no candidates for any training query"):
        search(case, "one", auto(budget="3000 pairs", base="reranker"), tmp_path)


def test_so_few_dev_queries_that_chance_chooses_are_told(untrained, tmp_path):
    found = search(made_case(), "one", auto(budget="1000 pairs", base="reranker"), tmp_path)
    assert any(reason.startswith("the budget pays for asking ") for reason in found.reasons)
    found = search(made_case(), "one", auto(budget="100000 pairs", base="reranker"), tmp_path / "large")
    assert not any(reason.startswith("the budget pays for asking ") for reason in found.reasons)


def test_steps_are_as_small_as_the_data_ask_for_whatever_the_budget(untrained, monkeypatch, tmp_path):
    for module in (basing, searching):
        monkeypatch.setattr(module, "learning_rate", lambda section, reference: 1e-4)
    given = Training(recipe="auto", base="encoder", budget="1000000 pairs")
    found = search(made_case(), "one", given, tmp_path).trainings
    assert found["one"]["batch"] == 2  # 40 queries, seen four times, make 80 steps of two
    facts = Facts.of(made_case().collection, made_case().runs["dense"])
    many = distillation("dense", facts, given, 1e-4, found["one-base"]["max_pairs"]).training
    assert found["one-base"]["learning_rate"] == many.learning_rate
    assert found["one-base"]["batch"] == many.batch == 2


def test_without_a_better_rival_the_first_recipe_stays(untrained, tmp_path):
    found = search(made_case(), "one", auto(budget="100000 pairs", base="reranker"), tmp_path)
    assert any(reason.startswith("recipe: mixed, listwise + 0.3 kl (the first stays") for reason in found.reasons)
    assert found.trainings["one"]["loss"] == {"listwise": 1.0, "kl": 0.3}
    assert any(reason.startswith("kl 0.3: an unlabelled candidate of the first 10") for reason in found.reasons)
    assert found.trainings["one"]["base"] == "reranker"


def test_a_rival_that_is_better_beyond_the_noise_is_chosen(untrained, tmp_path):
    """The trial of one rival alone ranks as the labels do."""
    better = {"loss": {"listwise": 1.0, "kl": 3.0}}

    def score(model, pairs):
        key = model.parent.name
        trained = dict(untrained).get(key)
        if trained is None or trained.loss != better["loss"]:
            return np.zeros(len(pairs), dtype=np.float32)
        wanted = {
            (case.collection.queries[query], case.collection.documents[document])
            for query, found in case.collection.qrels["dev"].items()
            for document in found
        }
        return np.array([float(pair in wanted) for pair in pairs], dtype=np.float32)

    case = made_case(score)
    found = search(case, "one", auto(budget="100000 pairs", base="reranker"), tmp_path)
    assert found.trainings["one"]["loss"] == better["loss"]
    assert any(reason.startswith("recipe: kl 3 (") for reason in found.reasons)
    (chosen,) = [row for row in found.table if row["note"] == "chosen" and "second" not in row["name"]]
    assert chosen["low"] > 0


def test_where_the_served_order_does_not_move_the_models_own_order_tells_rivals_apart(untrained, monkeypatch, tmp_path):
    """Every trial serves as the retriever does; one rival's own order is the labels', the others' is the reverse."""

    def score(model, pairs):
        trained = dict(untrained).get(model.parent.name)
        sign = 1.0 if trained is not None and trained.loss == {"listwise": 1.0, "kl": 1.0} else -1.0
        wanted = {
            (case.collection.queries[query], case.collection.documents[document])
            for query, found in case.collection.qrels["dev"].items()
            for document in found
        }
        return np.array([sign * (pair in wanted) for pair in pairs], dtype=np.float32)

    def as_retrieved(dev, score):
        return 0.0, dev.reranked(lambda pairs: -np.arange(len(pairs), dtype=np.float32))

    monkeypatch.setattr(trying.DevSet, "choose", as_retrieved)
    case = made_case(score)
    found = search(case, "one", auto(budget="100000 pairs", base="reranker"), tmp_path)
    assert found.trainings["one"]["loss"] == {"listwise": 1.0, "kl": 1.0}
    assert any(reason.startswith("recipe: kl 1 (") and "its own order is better" in reason for reason in found.reasons)


def test_a_second_round_that_dev_prefers_is_written_as_two_trainings(untrained, monkeypatch, tmp_path):
    """The trial that differs from another by its groups alone ranks as the labels do: the second round's."""

    def score(model, pairs):
        *earlier, (key, section) = untrained
        again = model.parent.name == key and section in [before for _, before in earlier]
        return np.array([float(again and pair in wanted) for pair in pairs], dtype=np.float32)

    monkeypatch.setattr(searching, "rivals", lambda start, *_: [start.but("kl 3", "", loss={"kl": 3.0})])
    case = made_case(score)
    wanted = {
        (case.collection.queries[query], case.collection.documents[document])
        for query, found in case.collection.qrels["dev"].items()
        for document in found
    }
    found = search(case, "one", auto(budget="300000 pairs", base="encoder"), tmp_path)
    assert list(found.trainings) == ["one-base", "one-first", "one"]
    assert found.trainings["one"]["mine"]["filter_by"] == "one-first"
    assert found.trainings["one"]["base"] == found.trainings["one-first"]["base"] == "one-base"
    before = config.validate(
        {"data": {}, "retrieve": {"dense": {"kind": "dense"}}, "train": {"one": {"recipe": "auto"}}}
    )
    after = Plan.of(unfolded(before, "one", found.trainings))
    assert after.trainings == ("one-base", "one-first", "one")
    assert after.filters == {"one": Model("train", "one-first")}
    trained = sum(found.trainings[name]["max_pairs"] for name in ("one-first", "one"))
    assert found.spent + trained <= found.total + 1


def failing(error, wanted, trained):
    """A `train` that fails where `wanted` says so."""

    def train(groups, section, *, base, dev, bench):
        bench.folder.mkdir(parents=True, exist_ok=True)
        if wanted(section):
            raise error
        trained.append(section)
        (bench.folder / "model").mkdir(exist_ok=True)

    return train


def test_a_rival_that_cannot_be_trained_is_dropped_and_the_reason_told(untrained, monkeypatch, tmp_path):
    error = ModelError("the weights are not finite any more")
    monkeypatch.setattr(trying, "train", failing(error, lambda section: section.loss["kl"] == 1.0, []))
    found = search(made_case(), "one", auto(budget="100000 pairs", base="reranker"), tmp_path)
    (row,) = [row for row in found.table if row["name"] == "kl 1"]
    assert row["note"] == "dropped: the weights are not finite any more"
    assert [row[key] for key in ("mean", "weight", "gain", "low", "high")] == [None] * 5
    assert "one" in found.trainings
    (line,) = [line for line in found.lines() if "not finite" in line]
    assert line.split()[:5] == ["kl", "1", f"{row['pairs']:,}", "–", "–"]


def test_when_every_rival_fails_the_first_recipe_stays(untrained, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(trying, "train", failing(ModelError("no"), lambda section: bool(seen), seen))
    found = search(made_case(), "one", auto(budget="30000 pairs", base="reranker"), tmp_path)
    assert "recipe: mixed, listwise + 0.3 kl; no rival could be trained" in found.reasons
    assert "one" in found.trainings


def test_when_the_first_recipe_fails_so_does_the_search(untrained, monkeypatch, tmp_path):
    monkeypatch.setattr(trying, "train", failing(ModelError("no weights"), lambda section: True, []))
    with pytest.raises(ModelError, match="no weights"):
        search(made_case(), "one", auto(budget="100000 pairs", base="reranker"), tmp_path)
    assert not list(tmp_path.rglob("checkpoints"))


def test_keys_that_are_written_beside_the_word_are_in_every_training(untrained, tmp_path):
    section = auto(budget="100000 pairs", base="encoder", loss={"listwise": 1.0}, batch=3, max_length=99)
    found = search(made_case(), "one", section, tmp_path)
    losses = [training.loss for _, training in untrained if training.groups == "labelled"]
    assert losses
    assert all(loss == {"listwise": 1.0} for loss in losses)
    assert {(training.batch, training.max_length, training.learning_rate) for _, training in untrained} == {
        (3, 99, 1e-4)
    }
    assert {(made["batch"], made["max_length"]) for made in found.trainings.values()} == {(3, 99)}


def test_a_second_search_in_the_same_folder_trains_nothing_and_finds_the_same(untrained, tmp_path):
    case, section = made_case(), auto(budget="60000 pairs", base="encoder")
    first = search(case, "one", section, tmp_path)
    count = len(untrained)
    assert count > 3
    second = search(case, "one", section, tmp_path)
    assert len(untrained) == count
    assert second == first
    forget(tmp_path, but=second.kept)
    (kept,) = tmp_path.rglob("model")
    assert kept.parent.name in first.kept, "only the distilled base is needed any more"
    assert search(case, "one", section, tmp_path) == first
    assert len(untrained) == count + 1, "only the model that the second round filters by is made again"


def test_the_pace_is_measured_once_and_kept(untrained, monkeypatch, tmp_path):
    paces = iter([500.0, 9000.0])
    monkeypatch.setattr(searching._Search, "_pace", lambda self: next(paces))
    section = auto(budget="2m", base="reranker")
    totals = [search(made_case(), "one", section, tmp_path).total for _ in range(2)]
    assert totals == [pytest.approx(48_000, rel=1e-2)] * 2
    assert totals[0] == totals[1]
    assert purse("2m", lambda: 500.0).total == pytest.approx(48_000, rel=1e-3)


def test_the_time_that_measuring_the_pace_takes_is_part_of_the_budget(monkeypatch):
    clock = iter([0.0, 30.0, 0.0, 130.0])
    monkeypatch.setattr("rankwright.auto.purse.time.monotonic", lambda: next(clock))
    assert purse("2m", lambda: 500.0).total == 36_000
    assert purse("2m", lambda: 500.0).total == 0
    assert purse("700 pairs", lambda: next(clock)).total == 700


def test_the_pace_is_timed_by_steps_of_its_own_that_leave_nothing(tiny_encoder, tmp_path):
    half = tmp_path / "pace/checkpoints"
    half.mkdir(parents=True)
    (half / "of a search that was killed").touch()
    found = training_pairs_per_second(made_case(), auto(budget="10m"), str(tiny_encoder), tmp_path / "pace")
    assert 1 < found < 1e6
    assert not (tmp_path / "pace").exists()


def test_the_pace_is_that_of_the_slowest_base(untrained, monkeypatch, tmp_path):
    paces = {"reranker": 900.0, "reranker2": 300.0, "reranker3": 600.0}
    monkeypatch.setattr(searching, "training_pairs_per_second", lambda case, section, base, folder: paces[base])
    total = search(made_case(), "one", auto(budget="100s", bases=list(paces)), tmp_path).total
    assert total == pytest.approx(24_000, rel=0.05)  # what finding the pace took is no more there


@pytest.mark.parametrize("budget", np.geomspace(2000, 40_000, 12).round().astype(int).tolist())
def test_the_last_training_has_three_checkpoints_to_average_and_pays_for_each_asking_of_dev(
    budget, untrained, tmp_path
):
    case = made_case()
    last = search(case, "one", auto(budget="9000 pairs", base="reranker"), tmp_path)  # for its groups' sake
    searched = searching._Search(case, "one", auto(budget="9000 pairs", base="reranker"), tmp_path)
    start = first("dense", searched.facts, searched.section, 1e-4)
    groups = searched.trials.groups(start.mine)
    values = searched._last(start, float(budget))
    section = Training(**{**last.trainings["one"], **values})
    planned = Schedule.of(len(groups), section, pairs=sum(map(len, groups)), watching=True)
    assert len(planned.evaluations) >= section.average == 3
    asked = (len(planned.evaluations) + 2) * len(searched.dev.pairs) / PASSES
    assert section.max_pairs + asked <= budget + 1


def test_scoring_in_both_orders_costs_twice(untrained, tmp_path):
    once = search(made_case(), "one", auto(budget="3000 pairs", base="reranker"), tmp_path / "once")
    case = made_case(orders=2)
    section = auto(budget="3000 pairs", base="reranker")
    searched = searching._Search(case, "one", section, tmp_path / "twice")
    assert searched.trials.asked == 2 * len(searched.dev.pairs)
    twice = search(case, "one", section, tmp_path / "twice")
    per_query = [found.spent / len(found.table[0]["values"]) for found in (once, twice)]
    assert per_query[1] == pytest.approx(2 * per_query[0], rel=0.1)


def test_what_a_filter_scores_is_what_the_recipes_own_retriever_found(untrained, tmp_path):
    case = made_case()
    short = Run({query: hits[:7] for query, hits in case.runs["dense"].rankings.items()})
    case = dataclasses.replace(case, runs={**case.runs, "short": short})
    searched = searching._Search(case, "one", auto(budget="9000 pairs", base="reranker"), tmp_path)
    start = first("dense", searched.facts, searched.section, 1e-4)
    positives = sum(map(len, case.collection.qrels["train"].values()))
    assert searched._filtered(start) == 40 * 30 + positives
    assert searched._filtered(start.but("short", "", {"candidates": "short"})) == 40 * 7 + positives


@pytest.mark.parametrize(("budget", "sample", "mined"), [(100, None, 12), (100, (1, 4), 20), (100_000, None, None)])
def test_no_more_queries_are_mined_than_the_budget_can_see(budget, sample, mined, untrained, monkeypatch, tmp_path):
    monkeypatch.setattr("rankwright.auto.recipes.ENOUGH", 3)
    monkeypatch.setattr(searching, "FEWEST_QUERIES", 1)
    case = dataclasses.replace(made_case(), depth=2)
    more = {"sample": dict(zip(("positives", "negatives"), sample, strict=True))} if sample else {}
    section = auto(budget=f"{budget} pairs", base="encoder", **more)
    found = search(case, "one", section, tmp_path).trainings
    assert {made["mine"]["queries"] for made in found.values()} == {mined}
    searched = searching._Search(case, "one", section, tmp_path / "other")
    assert len(searched.trials.groups(first("dense", searched.facts, section, 1e-4).mine)) == (mined or 40)
    window = 30 + 2  # a query's candidates and its positives
    assert searched._filtered(first("dense", searched.facts, section, 1e-4)) == (mined or 40) * window


def test_it_is_told_why_there_is_no_second_round(untrained, monkeypatch, tmp_path):
    monkeypatch.setattr(searching, "rivals", lambda start, *_: [start.but("other", "", learning_rate=1.0)])
    with pytest.MonkeyPatch.context() as patched:
        easy = lambda *given: first(*given).but("easy", "", {"negatives": 0, "random": 8})  # noqa: E731
        patched.setattr(searching, "first", easy)
        found = search(made_case(), "one", auto(budget="90000 pairs", base="reranker"), tmp_path / "easy")
    assert "no second round: easy mines no negatives, so none can be set aside" in found.reasons
    section = auto(budget="14000 pairs", base="reranker")
    found = search(made_case(orders=9), "one", section, tmp_path / "dear")
    assert any(reason.startswith("no second round: it would take ") for reason in found.reasons), found.reasons


def test_a_few_queries_that_gain_are_no_proof():
    few = np.zeros(20)
    few[:4] = 0.1  # by coins 1 in 16 would have four heads; hardly a resample has none of them
    assert beyond(few, 0)[0] > 0
    assert not surely(few, 0)
    assert not surely([0.2], 0)
    assert surely(np.linspace(0.01, 0.2, 20), 0, rivals=5)
    assert not surely(-np.linspace(0.01, 0.2, 20), 0)


def test_among_more_rivals_an_interval_is_wider():
    gains = np.random.default_rng(0).normal(0.2, 1.0, size=200)
    alone, among = beyond(gains, seed=0), beyond(gains, seed=0, rivals=8)
    assert among[0] < alone[0] < alone[1] < among[1]


def test_a_training_of_another_version_or_device_has_another_key(tiny_encoder):
    section = Training(dev=None, keep="last")
    keys = {training_key(section, [], tiny_encoder, 0, made_by) for made_by in ("cpu, train 1", "cuda, train 1", "")}
    assert len(keys) == 3


@pytest.mark.parametrize(("pairs", "factor"), [(900, 3.0), (4500, 2.0), (90_000, 1.0)])
def test_a_head_from_nothing_learns_faster_the_fewer_steps_it_has(pairs, factor):
    given = Training(recipe="auto", batch=2)
    facts = Facts(spread=1.0, symmetric=False, graded=False)
    usual = first("dense", facts, given, 1e-4, 1e9).training.learning_rate
    found = basing.distillation("dense", facts, given, 1e-4, pairs).training
    assert found.learning_rate == pytest.approx(usual * factor, rel=1e-3)
    written = Training(recipe="auto", batch=2, learning_rate=7e-5)
    assert basing.distillation("dense", facts, written, 7e-5, pairs).training.learning_rate == 7e-5


def test_distillation_mines_as_many_groups_as_its_pairs_need_and_filters_none(untrained, tmp_path):
    made = search(made_case(), "one", auto(budget="3000 pairs", base="encoder"), tmp_path).trainings["one-base"]
    width = 1 + made["mine"]["negatives"] + made["mine"]["random"]
    assert made["mine"]["drop_above"] is None
    assert made["mine"]["unlabelled"] == -(-450 // width)


# ------------------------------------------------------------------------------------------------- before anything runs


def test_what_dev_chose_is_not_measured_on_dev():
    fusion = {"dense": {"kind": "dense"}, "bm25": {"kind": "bm25"}}
    fusion["both"] = {"kind": "fuse", "of": ["dense", "bm25"], "method": "tuned"}
    for split in ("dev", "train"):
        values = {"data": {}, "evaluate": {"split": split}}
        searched = {"retrieve": {"dense": {"kind": "dense"}}, "train": {"recipe": "auto"}}
        with pytest.raises(ConfigError, match=rf"evaluate\.split: {split} .* train\.finetuned: recipe: auto"):
            Plan.of(config.validate({**values, **searched}))
        with pytest.raises(ConfigError, match=rf"evaluate\.split: {split} .* retrieve\.both: method: tuned"):
            Plan.of(config.validate({**values, "retrieve": fusion}))


def planned(**train):
    return Plan.of(config.validate({"data": {}, "retrieve": {"dense": {"kind": "dense"}}, "train": train}))


def test_a_search_needs_a_dev_split(tiny_experiment, tmp_path):
    assert "dev" in planned(one={"recipe": "auto"}).splits
    rows = Path(tiny_experiment["data"]["source"].removeprefix("rows:"))
    shutil.copytree(rows, tmp_path / "rows")
    (tmp_path / "rows/dev.jsonl").unlink()
    data = {"source": f"rows:{tmp_path / 'rows'}", "dev_share": 0}
    tiny_experiment |= {"data": data, "train": {"recipe": "auto"}, "mine": None, "merge": None}
    told = r"train\.finetuned: recipe: auto chooses on the split dev, which the data do not have"
    with pytest.raises(DataError, match=told):
        rankwright.check(tiny_experiment)
    with pytest.raises(DataError, match=told):
        rankwright.run(tiny_experiment, runs=tmp_path / "runs")
    assert not (tmp_path / "runs/tiny/retrieve").exists()
    rankwright.run({**tiny_experiment, "train": {}}, runs=tmp_path / "runs", until="retrieve")  # which needs no dev
    with pytest.raises(DataError, match=told):
        rankwright.run(tiny_experiment, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs/tiny").rglob("trials"))


@pytest.mark.parametrize("end", ["base", "first"])
def test_a_name_that_the_search_may_write_is_refused_beforehand(end):
    with pytest.raises(ConfigError, match=rf"train\.one-{end}: the search of train\.one may write that name"):
        planned(**{"one": {"recipe": "auto"}, f"one-{end}": {"recipe": "hard"}})


@pytest.mark.parametrize("word", ["other", "finetuned", "merged"])
def test_a_search_starts_from_no_other_training(word):
    for key in ({"base": word}, {"bases": ["offline", word]}):
        with pytest.raises(ConfigError, match="starts from models from outside"):
            planned(one={"recipe": "auto", **key}, other={"recipe": "hard"})


def test_the_first_of_the_bases_is_the_one_that_is_planned_with():
    assert planned(one={"recipe": "auto", "bases": ["a/b", "offline"]}).bases["one"].name == "a/b"


# ------------------------------------------------------------------------------------------------ in a whole experiment


def experiment(values, budget="2600 pairs"):
    """A search, a training that starts from what it makes and filters its own groups by it, and a merge."""
    distilled, finetuned = values["train"].values()
    own = {key: finetuned[key] for key in ("learning_rate", "batch", "max_length", "precision")}
    again = {"negatives": 3, "random": 1, "window": [1, 20], "filter_by": "finetuned", "filter_against": "max"}
    train = {
        "finetuned": {"recipe": "auto", "budget": budget, "base": distilled["base"], **own},
        "other": {**finetuned, "base": "finetuned", "epochs": 1, "mine": again},
    }
    arms = {"base": "base", "finetuned": "finetuned", "other": "other", "merged": "merged"}
    dropped = {"mine": None, "general": None, "report": None, "diagnose": None}
    return {**values, **dropped, "train": train, "rerank": {**values["rerank"], "arms": arms}}


@pytest.fixture(scope="module")
def searched(make_experiment, tmp_path_factory):
    """A folder of runs in which such an experiment is finished, its values, its dry run before, and its result."""
    runs = tmp_path_factory.mktemp("searched") / "runs"
    values = experiment(make_experiment())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(searching, "SMALLEST", 40)
        before = [(outcome.stage, outcome.action) for outcome in Walk(config.validate(values), runs).dry_run()]
        result = rankwright.run(values, runs=runs)
    return runs, values, before, result


def weights(run, training):
    return (run / "train" / training / "model/model.safetensors").read_bytes()


def actions(outcomes):
    return {outcome.stage: outcome.action for outcome in outcomes}


def test_before_the_search_a_dry_run_knows_the_stages_but_not_what_the_search_will_write(searched):
    _, _, before, _ = searched
    assert [stage for stage, _ in before][:5] == [
        *("data", "retrieve", "recipe/finetuned", "train/finetuned", "train/other")
    ]
    assert {action for _, action in before} == {"run"}


def test_the_trainings_that_the_search_has_written_are_made_in_order(searched):
    runs, _, _, result = searched
    made = [outcome.stage for outcome in result.outcomes]
    assert made[2:7] == ["recipe/finetuned", "train/finetuned-base", "train/finetuned", "train/other", "merge"]
    assert set(result.table["arms"]) >= {"retrieval", "base", "finetuned", "other", "merged"}
    told = {outcome.stage: outcome.lines for outcome in result.outcomes}
    assert told["train/finetuned-base"][-1] == "trained by the search for a recipe already"
    assert any("the search took" in line for line in told["recipe/finetuned"])
    assert (runs / "tiny/recipe/finetuned/recipe.txt").read_text().splitlines() == told["recipe/finetuned"]
    rows = json.loads((runs / "tiny/recipe/finetuned/recipe.json").read_text())["table"]
    assert len({row["name"] for row in rows}) >= 3, "no rival was tried: the budget of this test is too small"


def test_a_training_filters_its_own_groups_by_another_one(searched):
    runs, values, _, _ = searched
    made = json.loads((runs / "tiny/train/other/stage.json").read_text())["made_of"]
    assert made["train.other.mine.filter_by"] == "finetuned"
    assert "input.train/finetuned" in made
    assert {"rerank.max_length", "rerank.both_orders", "room.mine"} <= set(made)
    searched = json.loads((runs / "tiny/recipe/finetuned/stage.json").read_text())
    assert {"room.mine", "room.train"} <= set(searched["made_of"])
    groups = runs / "tiny/train/other/groups.jsonl"
    assert groups.exists()
    own = dict(values["train"])
    assert Plan.of(config.validate({**values, "train": dict(reversed(own.items()))})).trainings == (
        "finetuned",
        "other",
    )


def test_the_models_cards_say_what_they_go_back_to(searched, lively_encoder):
    runs, *_ = searched
    for training in ("finetuned-base", "finetuned", "other"):
        card = (runs / "tiny/train" / training / "model/README.md").read_text()
        assert f'base_model: "{lively_encoder.name}"' in card


def test_the_same_again_reuses_everything(searched):
    runs, values, _, first = searched
    again = rankwright.run(values, runs=runs)
    assert set(actions(again.outcomes).values()) == {"reused"}
    assert [outcome.stage for outcome in again.outcomes] == [outcome.stage for outcome in first.outcomes]
    dry = Walk(config.validate(values), runs).dry_run()
    assert set(actions(dry).values()) == {"reuse"}
    assert [outcome.stage for outcome in dry] == [outcome.stage for outcome in first.outcomes]


def test_every_stage_is_done_in_the_eyes_of_status(searched):
    runs, _, _, first = searched
    told = status(runs / "tiny")
    assert {stage["state"] for stage in told} == {"done"}
    assert {stage["stage"] for stage in told} == {outcome.stage for outcome in first.outcomes} - {"recipe/finetuned"}


def test_another_budget_is_another_search_whichever_room_is_asked_for(searched):
    runs, values, _, _ = searched
    other = config.validate(experiment(values_of(values), budget="2500 pairs"))
    for until in (None, "train", "recipe"):
        outcomes = {outcome.stage: outcome for outcome in Walk(other, runs).dry_run(until)}
        assert outcomes["recipe/finetuned"].action == "run"
        assert outcomes["recipe/finetuned"].why == 'train.finetuned.budget: "2600 pairs" -> "2500 pairs"'
        assert outcomes.get("train/finetuned", outcomes["recipe/finetuned"]).action == "run"
        assert "train/finetuned-base" not in outcomes


def values_of(values):
    """Those that `experiment` was made of, as far as it reads them."""
    other, finetuned = values["train"]["other"], values["train"]["finetuned"]
    plain = {key: value for key, value in other.items() if key != "mine"}
    return {**values, "train": {"distilled": {"base": finetuned["base"]}, "finetuned": plain}}


def test_what_was_resolved_needs_no_search_and_gives_the_same_weights(searched, tmp_path):
    runs, _, _, _ = searched
    resolved = yaml.safe_load((runs / "tiny/resolved.yaml").read_text())
    assert list(resolved["train"]) == ["finetuned-base", "finetuned", "other"]
    assert {training["recipe"] for training in resolved["train"].values()} == {None}
    result = rankwright.run(resolved, runs=tmp_path, until="train")
    assert "recipe/finetuned" not in actions(result.outcomes)
    for training in resolved["train"]:
        assert weights(tmp_path / "tiny", training) == weights(runs / "tiny", training), training


def test_until_the_recipe_the_search_alone_is_made_and_what_it_found_is_resolved(searched, tmp_path):
    runs, values, _, _ = searched
    copy = shutil.copytree(runs, tmp_path / "runs")
    shutil.rmtree(copy / "tiny/train")
    assert list(actions(rankwright.run(values, runs=copy, until="recipe").outcomes)) == [
        *("data", "retrieve", "recipe/finetuned")
    ]
    assert (copy / "tiny/resolved.yaml").read_text() == (runs / "tiny/resolved.yaml").read_text()
    assert not (copy / "tiny/train").exists()


def test_a_walk_that_ends_before_the_recipe_loses_nothing_that_was_found(searched, tmp_path):
    runs, values, _, _ = searched
    copy = shutil.copytree(runs, tmp_path / "runs")
    rankwright.run(values, runs=copy, until="data")
    assert (copy / "tiny/resolved.yaml").read_text() == (runs / "tiny/resolved.yaml").read_text()
    rankwright.run(experiment(values_of(values), budget="2500 pairs"), runs=copy, until="data")
    told = yaml.safe_load((copy / "tiny/resolved.yaml").read_text())["train"]
    assert told["finetuned"]["budget"] == "2500 pairs", "what was found for another budget is not this one's"


def test_trials_may_be_deleted_when_the_search_is_done(searched, tmp_path):
    runs, values, _, _ = searched
    copy = shutil.copytree(runs, tmp_path / "runs")
    assert list((copy / "tiny/recipe/finetuned/trials").glob("*/result.json"))
    shutil.rmtree(copy / "tiny/recipe/finetuned/trials")
    assert set(actions(Walk(config.validate(values), copy).dry_run()).values()) == {"reuse"}


def test_there_is_no_recipe_to_find_where_no_training_asks_for_one(tiny_experiment, tmp_path):
    with pytest.raises(ConfigError, match="no training asks for a search"):
        rankwright.run(tiny_experiment, runs=tmp_path, until="recipe")


# ------------------------------------------------------------------------------------------------------- several bases


def labels_of(case):
    """The texts of dev's relevant pairs."""
    return {
        (case.collection.queries[query], case.collection.documents[document])
        for query, found in case.collection.qrels["dev"].items()
        for document in found
    }


def test_of_several_bases_the_one_that_serves_better_beyond_noise_is_trained(untrained, tmp_path):
    wanted = labels_of(made_case())

    def score(model, pairs):
        knows = model.name == "reranker2"
        return np.array([float(knows and pair in wanted) for pair in pairs], dtype=np.float32)

    section = auto(budget="20000 pairs", bases=["reranker", "reranker2"])
    found = search(made_case(score), "one", section, tmp_path)
    assert found.trainings["one"]["base"] == "reranker2"
    assert any(reason.startswith("base: reranker2, above those") for reason in found.reasons)
    assert [row["note"].startswith("MAP") for row in found.table[:2]] == [True, True]


def test_of_equal_bases_the_first_named_stays(untrained, tmp_path):
    section = auto(budget="20000 pairs", bases=["reranker", "reranker2"])
    found = search(made_case(), "one", section, tmp_path)
    assert found.trainings["one"]["base"] == "reranker"
    assert "base: reranker, the first named" in found.reasons


def test_closed_pools_hold_relevant_judged_and_random_documents_and_tell_an_order():
    case = made_case()
    pool = Pool.of(case.collection, list(case.collection.qrels["dev"]), seed=0)
    wanted = labels_of(case)
    assert pool.values(lambda pairs: np.array([float(pair in wanted) for pair in pairs])) == pytest.approx(1.0)
    backwards = pool.values(lambda pairs: np.array([-float(pair in wanted) for pair in pairs]))
    assert backwards.max() < 0.5
    assert all(len({document for one, document in pool.ids if one == query}) > 2 for query in pool.qrels)


def test_scores_that_are_no_numbers_are_no_order_of_a_pool():
    case = made_case()
    pool = Pool.of(case.collection, list(case.collection.qrels["dev"]), seed=0)
    assert pool.values(lambda pairs: np.full(len(pairs), np.nan, dtype=np.float32)).tolist() == [0.0] * 40


def test_closed_pools_draw_from_what_dev_searches():
    case = made_case()
    apart = Collection(
        {**case.collection.documents, **{f"t{n}": "" for n in range(5000)}},
        case.collection.queries,
        case.collection.qrels,
    )
    queries = list(case.collection.qrels["dev"])
    assert {document[0] for _, document in Pool.of(apart, queries, seed=0, per_split=True).ids} == {"d"}
    assert {document[0] for _, document in Pool.of(apart, queries, seed=0).ids} == {"d", "t"}


def test_recipes_are_named_by_what_they_are():
    facts = Facts(spread=1.0, symmetric=True, graded=False)
    start = first("dense", facts, auto(loss={"listwise": 1.0, "bce": 0.5}), 1e-4)
    assert (start.name, start.why) == ("mixed, listwise + 0.5 bce", "labels alone")
    names = [one.name for one in rivals(start, facts, auto(loss={"listwise": 1.0, "bce": 0.5}))]
    assert "both orders" in names
    assert not {"no kl", "kl 3", "bce"} & set(names)


def test_where_a_training_sees_groups_more_than_once_every_pass_draws_other_negatives():
    facts = Facts(spread=1.0, symmetric=False, graded=False)
    start = first("dense", facts, auto(), 1e-4, 1000, 2.5)
    assert (start.mine.negatives, start.mine.random, start.mine.positives) == (15, 9, 4)
    assert start.training.sample == SampleSection(positives=4, negatives=8)
    there = {one.name: one for one in rivals(start, facts, auto())}
    assert (there["hard, filtered"].mine.negatives, there["hard, filtered"].mine.random) == (24, 0)
    assert (there["random negatives"].mine.negatives, there["random negatives"].mine.random) == (0, 24)
    assert all(one.training.sample == start.training.sample for one in there.values())
    once = first("dense", facts, auto(), 1e-4, 1000, 1.0)
    assert (once.mine.negatives, once.mine.random, once.training.sample) == (5, 3, None)
    own = SampleSection(positives=1, negatives=2)
    written = first("dense", facts, auto(sample=own), 1e-4, 1000, 2.5)
    assert (written.mine.negatives, written.mine.random, written.training.sample) == (5, 3, own)


@pytest.mark.parametrize(("budget", "times"), [("500 pairs", 1), ("1500 pairs", 2), ("100000 pairs", 4)])
def test_a_search_mines_as_many_negatives_as_its_last_training_has_passes(untrained, tmp_path, budget, times):
    """40 training queries of one or two positives: about 400 pairs a pass, and half of the budget for the training."""
    last = search(made_case(), "one", auto(budget=budget, base="reranker"), tmp_path).trainings["one"]
    assert (last["mine"]["negatives"], last["mine"]["random"]) == (5 * times, 3 * times)
    assert (last["sample"] is None) == (times == 1)


def labelled(rate, queries=60):
    """Queries with 50 candidates each, five of them relevant and far above the others; a share of those is labelled."""
    rng, documents, rankings, labels = np.random.default_rng(0), {}, {}, {}
    for number in range(queries):
        ids = [f"d{number}-{place}" for place in range(50)]
        documents |= {one: f"text of {one}" for one in ids}
        scores = rng.normal(size=50) + np.where(np.arange(50) < 5, 9.0, 0.0)
        rankings[f"q{number}"] = dict(zip(ids, scores.tolist(), strict=True))
        labels[f"q{number}"] = {one: 1 for one in ids[:5] if rng.random() < rate} or {ids[0]: 1}
    return Collection(documents, {query: query for query in labels}, {"train": labels}), Run.from_scores(rankings)


@pytest.mark.parametrize(("rate", "hold"), [(1.0, 0.3), (0.5, 0.3), (0.25, 0.4), (0.15, 0.4)])
def test_the_first_recipe_holds_on_to_the_retriever_as_the_labels_have_holes(rate, hold):
    """Of the ten first, five are relevant: with half of them labelled, 2.5 of the other 7.5 are holes."""
    facts = Facts.of(*labelled(rate))
    assert facts.hold == hold
    start = first("dense", facts, auto(), 1e-4)
    assert start.training.loss == {"listwise": 1.0, "kl": hold}
    weights = {one.name: one.training.loss.get("kl", 0.0) for one in rivals(start, facts, auto())}
    assert (weights["kl 1"], weights["kl 3"], weights["lambda"]) == (1.0, 3.0, hold)
    assert "no kl" not in weights


def test_a_search_says_where_the_weight_is_the_least(untrained, monkeypatch, tmp_path):
    monkeypatch.setattr("rankwright.auto.recipes._doubt", lambda collection, run: 0.01)
    found = search(made_case(), "one", auto(budget="3000 pairs", base="reranker"), tmp_path)
    assert any(reason.startswith("kl 0.3: 0.3 is the least, and") for reason in found.reasons)


def test_judged_candidates_and_copies_of_relevant_ones_are_no_holes():
    collection, run = labelled(0.5)
    judged = {
        query: {**dict.fromkeys(run.documents(query), 0), **labels}
        for query, labels in collection.qrels["train"].items()
    }
    assert Facts.of(dataclasses.replace(collection, qrels={"train": judged}), run).doubt == 0
    texts = {
        one: text if int(one.split("-")[1]) >= 5 else one.split("-")[0] for one, text in collection.documents.items()
    }
    assert Facts.of(dataclasses.replace(collection, documents=texts), run).doubt < 0.01


def test_too_few_labels_to_tell_their_holes_hold_on_to_the_retriever(untrained, tmp_path):
    facts = Facts.of(*labelled(0.5, queries=5))
    assert np.isnan(facts.doubt)
    start = first("dense", facts, auto(), 1e-4)
    assert start.training.loss == {"listwise": 1.0, "kl": 1.0}
    assert rivals(start, facts, auto())[0].name == "no kl"
    assert np.isnan(Facts.of(labelled(0.5)[0], Run()).doubt)
    case = made_case()
    few = dict(list(case.collection.qrels["train"].items())[:5])
    case = dataclasses.replace(
        case, collection=dataclasses.replace(case.collection, qrels={**case.collection.qrels, "train": few})
    )
    reasons = search(case, "one", auto(budget="3000 pairs", base="reranker"), tmp_path).reasons
    assert "kl 1: too few labelled candidates to tell whether the labels have holes" in reasons


def test_a_written_loss_is_the_first_recipe_whatever_the_labels(untrained, tmp_path):
    found = search(
        made_case(), "one", auto(budget="3000 pairs", base="reranker", loss={"bce": 1.0, "kl": 2.0}), tmp_path
    )
    assert found.trainings["one"]["loss"] == {"bce": 1.0, "kl": 2.0}
    assert "kl 2: as it is written" in found.reasons


def test_texts_without_spaces_are_of_one_kind_by_their_characters():
    titles = {f"q{number}": "图神经网络" for number in range(3)}
    qrels = {"train": {query: {"long": 1} for query in titles}}
    assert not Facts.of(Collection({"long": "图神经网络" * 20}, titles, qrels), Run()).symmetric
    assert Facts.of(Collection({"long": "深度学习方法"}, titles, qrels), Run()).symmetric


def test_graded_labels_and_other_retrievers_have_rivals_of_their_own():
    facts = Facts(spread=1.0, symmetric=False, graded=True)
    start = first("hybrid", facts, auto(), 1e-4)
    names = [one.name for one in rivals(start, facts, auto(), {"dense": 0.06})]
    assert names.index("lambda") == 1
    (dense,) = [one for one in rivals(start, facts, auto(), {"dense": 0.06}) if one.name == "from dense"]
    assert (dense.mine.candidates, dense.training.kl_temperature) == ("dense", 0.06)


def test_steps_that_are_larger_than_a_trial_leave_no_rival_and_no_crash(untrained, tmp_path):
    found = search(made_case(), "one", auto(budget="9000 pairs", base="reranker", batch=128), tmp_path)
    assert found.trainings["one"]["max_pairs"] > 0
    assert all(row["pairs"] for row in found.table if not row["name"].startswith("base "))


@pytest.mark.parametrize(
    "written", [{"loss": {"listwise": 1.0}}, {"loss": {"listwise": 1.0, "kl": 3.0}}, {"loss": {"bce": 1.0, "kl": 1.0}}]
)
def test_what_is_written_is_not_its_own_rival(written):
    facts = Facts(spread=1.0, symmetric=True, graded=False)
    start = first("dense", facts, auto(**written), 1e-4)
    assert all(
        (one.mine, one.training) != (start.mine, start.training) for one in rivals(start, facts, auto(**written))
    )


def test_pairs_that_a_sample_leaves_out_are_not_counted_as_trained(tiny_encoder, tmp_path, monkeypatch):
    clock = iter(np.arange(1e6))
    monkeypatch.setattr("rankwright.auto.pace.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    section = auto(budget="10m", sample={"positives": 1, "negatives": 3}, batch=2)
    found = training_pairs_per_second(made_case(), section, str(tiny_encoder), tmp_path / "pace")
    assert found == pytest.approx(2 * 4)


def test_of_slow_steps_fewer_are_timed(tiny_encoder, tmp_path, monkeypatch):
    ends = []

    def clock():
        ends.append(10.0 * len(ends))
        return ends[-1]

    monkeypatch.setattr("rankwright.auto.pace.time", SimpleNamespace(perf_counter=clock))
    section = auto(budget="10m", sample={"positives": 1, "negatives": 3}, batch=2)
    found = training_pairs_per_second(made_case(), section, str(tiny_encoder), tmp_path / "pace")
    assert found == pytest.approx(2 * 4 / 10)
    assert len(ends) == 4
    assert not (tmp_path / "pace").exists()


def test_a_base_whose_configuration_cannot_be_read_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such family"}')
    with pytest.raises(ModelError, match="cannot read the base"):
        basing.learning_rate(Training(recipe="auto"), str(tmp_path))
