"""Fusions whose weights dev chooses, against the choice worked out run by run."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rankwright.core import Run
from rankwright.errors import DataError
from rankwright.toolbox.lists import Lists
from rankwright.toolbox.metrics import per_query
from rankwright.toolbox.tuned import Members, Tuned, choose_weights

WORDS = {"dev": "d", "test": "t"}


def world(noise, queries=40, documents=30, depth=12, seed=0):
    """Members that see the same relevance through their own noise, and find its best `depth` documents."""
    rng = np.random.default_rng(seed)
    ids = [f"{place:03}" for place in range(documents)]
    qrels, tables = {}, [{} for _ in noise]
    for split, word in WORDS.items():
        qrels[split] = {}
        for number in range(queries):
            query = f"{word}{number}"
            labels = rng.permutation(documents) < 3
            qrels[split][query] = {one: 1 for one, label in zip(ids, labels, strict=True) if label}
            for table, blur in zip(tables, noise, strict=True):
                scores = (labels + blur * rng.normal(size=documents)).astype(np.float32)
                table[query] = dict(zip(ids, scores.tolist(), strict=True))
    return members_of(tables, depth), qrels, {query: f"text {query}" for query in tables[0]}


def scorer_of(table):
    def score(pairs):
        return np.array([table.get(query, {}).get(one, np.nan) for query, one in pairs], dtype=np.float32)

    return score


def members_of(tables, depth):
    names = [f"m{place}" for place in range(len(tables))]
    runs = {
        name: {
            split: Run.from_scores({query: row for query, row in table.items() if query.startswith(word)}, depth)
            for split, word in WORDS.items()
        }
        for name, table in zip(names, tables, strict=True)
    }
    return Members({name: scorer_of(table) for name, table in zip(names, tables, strict=True)}, runs)


def by_hand(members, weights, split):
    """The fused run, a query and a document at a time."""
    scores = {}
    runs = {name: members.runs[name][split] for name in weights}
    for query in sorted({query for run in runs.values() for query in run.rankings}):
        scores[query] = {}
        for one in {document for run in runs.values() for document in run.documents(query)}:
            total = 0.0
            for name, weight in weights.items():
                own = list(runs[name].scores(query).values())
                raw = float(members.scorers[name]([(query, one)])[0])
                raw = min(own, default=0.0) if np.isnan(raw) else raw
                spread = np.std(own) if own else 0.0
                total += weight * ((raw - np.mean(own)) / spread if spread else 0.0)
            scores[query][one] = float(np.float32(total))
    return Run.from_scores(scores)


def expect_same(run, expected):
    assert set(run.rankings) == set(expected.rankings)
    for query in run.rankings:
        assert run.documents(query) == expected.documents(query)
        assert list(run.scores(query).values()) == pytest.approx(list(expected.scores(query).values()), rel=1e-5)


@pytest.mark.parametrize("noise", [(0.5, 0.8), (0.6, 0.5, 0.9)])
def test_the_chosen_weights_and_the_fused_runs_equal_brute_force(noise):
    members, qrels, texts = world(noise, queries=20)
    chosen = choose_weights(members, qrels["dev"], texts)
    means = {}
    for steps in itertools.product(range(11), repeat=len(noise)):
        if sum(steps) == 10:
            weights = dict(zip(members.scorers, (step / 10 for step in steps), strict=True))
            run = by_hand(members, weights, "dev")
            means[tuple(weights.values())] = per_query(run, qrels["dev"], ["ndcg@10"])["ndcg@10"].mean()
    best = max(means.values())
    assert [weights for weights in means if means[weights] > best - 1e-9] == [tuple(chosen.weights.values())]
    assert chosen.fused == pytest.approx(best)
    assert chosen.fused > max(chosen.alone.values())
    for place, name in enumerate(members.scorers):
        assert chosen.alone[name] == pytest.approx(means[tuple(float(other == place) for other in range(len(noise)))])
    for split in WORDS:
        expect_same(Tuned(members, chosen.weights).run(split, 7), by_hand(members, chosen.weights, split).top(7))


def test_the_better_member_gets_all_the_weight_when_the_other_is_noise():
    members, qrels, texts = world((0.45, 1e6), queries=150)
    chosen = choose_weights(members, qrels["dev"], texts)
    assert chosen.weights == {"m0": 1.0, "m1": 0.0}
    assert chosen.fused == chosen.alone["m0"] > chosen.alone["m1"]
    turned = Members(dict(reversed(members.scorers.items())), members.runs)
    assert choose_weights(turned, qrels["dev"], texts).weights == {"m1": 0.0, "m0": 1.0}


def test_a_constant_member_has_no_say_and_equal_weights_are_even():
    members, qrels, texts = world((0.5, 0.5))
    flat = {query: dict.fromkeys(run.documents(query), 0.1) for query, run in by_query(members.runs["m0"])}
    both = members_of([rows(members.runs["m0"]), flat], depth=12)
    chosen = choose_weights(both, qrels["dev"], texts)
    assert chosen.weights == {"m0": 0.5, "m1": 0.5}
    assert chosen.fused == chosen.alone["m0"]
    run = Tuned(both, chosen.weights).run("test", 12)
    assert all(run.documents(query) == both.runs["m0"]["test"].documents(query) for query in run.rankings)


def by_query(runs):
    return [(query, run) for run in runs.values() for query in run.rankings]


def rows(runs):
    return {query: run.scores(query) for query, run in by_query(runs)}


def test_a_query_that_one_member_does_not_find_is_ranked_by_the_others():
    members, qrels, texts = world((0.5, 0.5))
    tables = [rows(members.runs[name]) for name in members.scorers]
    for query in ("d0", "t0"):
        del tables[1][query]
    fewer = members_of(tables, depth=12)
    tuned = Tuned(fewer, {"m0": 0.3, "m1": 0.7})
    run = tuned.run("test", 12)
    assert run.documents("t0") == fewer.runs["m0"]["test"].documents("t0")
    assert len(run.rankings) == len(qrels["test"])
    assert tuned.run("dev", 12).documents("d0")
    assert choose_weights(fewer, qrels["dev"], texts).queries == len(qrels["dev"])


def test_a_pair_that_a_member_cannot_score_counts_as_its_lowest():
    tables = [{"d0": {"a": 3.0, "b": 1.0}}, {"d0": {"c": 2.0, "a": 1.0}}]
    tuned = Tuned(members_of(tables, depth=5), {"m0": 0.5, "m1": 0.5})
    pairs = [("d0", "a"), ("d0", "b"), ("d0", "c"), ("d0", "x")]
    assert tuned.score(pairs).tolist() == [0.0, -1.0, 0.0, -1.0]
    assert tuned.run("dev", 5).rankings == {"d0": (("a", 0.0), ("c", 0.0), ("b", -1.0))}


def test_a_pair_s_score_is_its_run_s_whatever_it_is_scored_with_and_no_run_need_hold_it():
    members, qrels, texts = world((0.5, 0.8, 0.6))
    tuned = Tuned(members, choose_weights(members, qrels["dev"], texts).weights)
    run = tuned.run("test", 9)
    hits = [(query, *hit) for query, row in run.rankings.items() for hit in row]
    hits = [hits[place] for place in np.random.default_rng(0).permutation(len(hits))]
    scores = tuned.score([(query, one) for query, one, _ in hits])
    assert scores.dtype == np.float32
    assert scores.tolist() == [score for *_, score in hits]
    alone = [tuned.score([(query, one)])[0] for query, one, _ in hits[:20]]
    assert alone == scores[:20].tolist()
    outside = [("t3", one) for one in sorted(set(texts_of(members)) - set(members.found("test").documents("t3")))]
    assert outside
    assert np.isfinite(tuned.score(outside)).all()
    assert tuned.score(outside).max() < max(run.scores("t3").values())
    assert tuned.score([]).shape == (0,)


def texts_of(members):
    return {
        one for runs in members.runs.values() for run in runs.values() for q in run.rankings for one in run.scores(q)
    }


def test_blocks_do_not_change_the_run(monkeypatch):
    members, *_ = world((0.5, 0.8))
    tuned = Tuned(members, {"m0": 0.4, "m1": 0.6})
    whole = tuned.run("test", 9)
    monkeypatch.setattr("rankwright.toolbox.tuned._PAIRS", 40)
    assert tuned.run("test", 9) == whole


def test_the_order_of_dev_does_not_matter_and_the_sample_is_of_judged_queries(monkeypatch):
    members, qrels, texts = world((0.5, 0.8))
    chosen = choose_weights(members, qrels["dev"], texts)
    unjudged = {"d100": {"001": 0}, **dict(reversed(qrels["dev"].items()))}
    assert choose_weights(members, unjudged, {**texts, "d100": "nothing"}) == chosen
    monkeypatch.setattr("rankwright.toolbox.tuned._SAMPLE", 15)
    few = choose_weights(members, unjudged, {**texts, "d100": "nothing"})
    assert few.queries == 15
    assert few == choose_weights(members, qrels["dev"], texts) != chosen


def test_dev_without_a_relevant_document_is_refused():
    members, _, texts = world((0.5, 0.8))
    with pytest.raises(DataError, match="no dev query has a relevant document"):
        choose_weights(members, {"d0": {"001": 0}}, texts)


def test_the_choice_is_told_with_what_each_member_is_alone():
    members, qrels, texts = world((0.5, 0.8))
    chosen = choose_weights(members, qrels["dev"], texts)
    one, other = chosen.weights.values()
    alone = ", ".join(f"{value:.4f}"[1:] for value in chosen.alone.values())
    figures = f"{alone} alone -> {chosen.fused:.4f}".replace("-> 0", "-> ")
    assert chosen.line() == f"m0 {one:.2f}, m1 {other:.2f} (nDCG@10 on 40 dev queries {figures})"
    single = choose_weights(members, {"d0": qrels["dev"]["d0"]}, texts)
    assert "on 1 dev query " in single.line()


def test_candidates_are_scored_once_and_measured_once_for_each_way_to_weigh(monkeypatch):
    members, qrels, texts = world((1.5, 2.0, 2.0), queries=30, documents=220, depth=100)
    measure, calls = Lists.measure, []
    monkeypatch.setattr(Lists, "measure", lambda *given: calls.append("measure") or measure(*given))

    def counted(name, score):
        return lambda pairs: calls.append(name) or score(pairs)

    scorers = {name: counted(name, score) for name, score in members.scorers.items()}
    chosen = choose_weights(replace(members, scorers=scorers), qrels["dev"], texts)
    assert Counter(calls) == {**dict.fromkeys(scorers, 1), "measure": 66}
    assert sum(chosen.weights.values()) == pytest.approx(1)


def test_more_than_five_members_are_weighed_in_fifths():
    members, qrels, texts = world((0.8,) * 6, queries=10)
    chosen = choose_weights(members, qrels["dev"], texts)
    assert {round(weight * 5, 9) % 1 for weight in chosen.weights.values()} == {0.0}
    assert chosen.fused >= max(chosen.alone.values())


def test_equal_scores_are_weighed_in_the_order_in_which_the_run_has_them():
    members, qrels, texts = world((1.0, 1.0), documents=100, depth=60)
    coarse = [
        {
            query: {one: float(round(score)) for one, score in row.items()}
            for query, row in rows(members.runs[name]).items()
        }
        for name in members.scorers
    ]
    tied = members_of(coarse, depth=60)
    chosen = choose_weights(tied, qrels["dev"], texts)
    run = Tuned(tied, chosen.weights).run("dev", 10)
    assert per_query(run, qrels["dev"], ["ndcg@10"])["ndcg@10"].mean() == pytest.approx(chosen.fused, abs=1e-9)
