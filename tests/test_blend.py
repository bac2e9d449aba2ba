"""The blend is chosen on dev, and ends where the reranker or the retriever is better alone."""

from dataclasses import replace

import numpy as np
import pytest

from rankwright.core import Run
from rankwright.errors import DataError
from rankwright.rooms.blend import blend, blended, fuse, fused
from rankwright.sections import BlendSection
from rankwright.toolbox.metrics import per_query

SECTION = BlendSection()


def world(signal, noise, queries=60, width=20, seed=0):
    """Candidates of which three are relevant; each run sees them through its own noise."""
    rng = np.random.default_rng(seed)
    runs, qrels = [{}, {}], {}
    for number in range(queries):
        labels = np.zeros(width)
        labels[rng.choice(width, size=3, replace=False)] = 1
        for run, strength, blur in zip(runs, signal, noise, strict=True):
            values = strength * labels + blur * rng.normal(size=width)
            run[f"q{number}"] = {f"d{place:02}": float(value) for place, value in enumerate(values)}
        qrels[f"q{number}"] = {f"d{place:02}": int(label) for place, label in enumerate(labels)}
    return *(Run.from_scores(run) for run in runs), qrels


def test_two_signals_with_noise_of_their_own_are_blended_and_beat_both():
    choice = blend(*world((1, 1), (0.7, 0.7)), SECTION, depth=20)
    assert 0 < choice.weight < 1
    assert choice.blended > max(choice.retrieval, choice.reranked)


def test_a_reranker_that_knows_everything_takes_the_whole_order():
    choice = blend(*world((1, 1), (2, 0.01)), SECTION, depth=20)
    assert choice.blended == pytest.approx(1.0)
    assert choice.reranked == pytest.approx(1.0)
    assert choice.depth == 20


def test_a_reranker_that_knows_nothing_gets_weight_0_or_next_to_it_and_the_retriever_stays():
    retrieved, reranked, qrels = world((1, -1), (0.3, 0.3))
    choice = blend(retrieved, reranked, qrels, SECTION, depth=20)
    assert choice.weight == 0
    assert blended(retrieved, reranked, choice, depth=20) == retrieved


def test_the_grid_holds_what_the_measured_run_gives():
    retrieved, reranked, qrels = world((1, 1), (0.7, 0.7))
    choice = blend(retrieved, reranked, qrels, BlendSection(guard=0), depth=20)
    run = blended(retrieved, reranked, choice, depth=20)
    value = per_query(run, qrels, ["ndcg@10"])["ndcg@10"].mean()
    assert value == pytest.approx(choice.blended)
    at = choice.grid[choice.weights.index(choice.weight)][choice.depths.index(choice.depth)]
    assert at == pytest.approx(choice.blended)
    assert at == pytest.approx(np.max(choice.grid), abs=0.01)


def test_what_luck_alone_gains_on_dev_gets_less_weight():
    """A reranker of nothing but noise: some weight always looks best on few queries."""
    lucky = guarded = 0.0
    for seed in range(10):
        retrieved, reranked, qrels = world((1, 0), (0.6, 0.3), queries=30, seed=seed)
        lucky += blend(retrieved, reranked, qrels, BlendSection(guard=0), depth=20).weight
        guarded += blend(retrieved, reranked, qrels, SECTION, depth=20).weight
    assert lucky / 10 > 0.05
    assert guarded < 0.8 * lucky


@pytest.mark.parametrize(("signal", "more"), [(0.0, 0.001), (0.15, 0.001), (1.0, -0.0005)])
def test_what_is_chosen_gains_more_on_other_queries_than_the_best_of_the_grid(signal, more):
    """By a reranker of noise, and of a little; and next to the same where it knows as much as the retriever."""
    chosen = best = 0.0
    for seed in range(12):
        retrieved, reranked, qrels = world((1, signal), (0.6, 0.5), queries=230, seed=seed)
        dev = dict(list(qrels.items())[:30])
        test = dict(list(qrels.items())[30:])
        choice = blend(retrieved, reranked, dev, SECTION, depth=20)
        row, column = np.unravel_index(int(np.argmax(choice.grid)), np.shape(choice.grid))
        plain = replace(choice, weight=choice.weights[row], depth=choice.depths[column])
        runs = [blended(retrieved, reranked, by, depth=20) for by in (choice, plain)]
        one, other = (per_query(run, test, ["ndcg@10"])["ndcg@10"].mean() for run in runs)
        chosen, best = chosen + one / 12, best + other / 12
    assert chosen > best + more


def test_the_more_a_gain_is_counted_less_by_the_smaller_the_weight_and_the_whole_depth_stays():
    retrieved, reranked, qrels = world((1, 1), (0.7, 0.7))
    choices = [blend(retrieved, reranked, qrels, BlendSection(guard=guard), depth=20) for guard in (0, 3, 1000)]
    weights = [choice.weight for choice in choices]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == 0
    assert choices[1].depth == 20


def test_another_depth_is_chosen_where_it_surely_gains():
    """A reranker that knows the first ten, and lifts what stands below them by nothing but noise."""
    retrieved, reranked, qrels = world((1.5, 1), (0.7, 0.2), queries=120)
    tail = {query: {document for document, _ in hits[10:]} for query, hits in retrieved.rankings.items()}
    lifted = {
        query: {document: score + (9.0 if document in tail[query] else 0.0) for document, score in hits}
        for query, hits in reranked.rankings.items()
    }
    choice = blend(retrieved, Run.from_scores(lifted), qrels, SECTION, depth=20)
    assert (choice.depth, choice.weight > 0) == (10, True)


def test_a_depth_that_gains_by_luck_is_not_chosen():
    """A reranker of nothing but noise: some depth always looks best, and seldom surely so."""
    depths = [blend(*world((1, 0), (0.6, 0.3), queries=40, seed=seed), SECTION, depth=20) for seed in range(12)]
    assert sum(choice.depth != 20 and choice.weight > 0 for choice in depths) <= 1


def test_depths_end_at_what_was_reranked():
    assert blend(*world((1, 1), (0.7, 0.7)), SECTION, depth=12).depths == (5, 10, 12)


def test_queries_without_labels_are_blended_too():
    retrieved, reranked, qrels = world((1, 1), (0.7, 0.7))
    choice = blend(retrieved, reranked, {"q1": qrels["q1"]}, SECTION, depth=20)
    assert set(blended(retrieved, reranked, choice, depth=20).rankings) == set(retrieved.rankings)


def test_no_judged_dev_query_is_refused():
    retrieved, reranked, _ = world((1, 1), (0.7, 0.7))
    with pytest.raises(DataError, match="no dev query"):
        blend(retrieved, reranked, {"q0": {"d00": 0}}, SECTION, depth=20)


def test_two_retrievers_are_fused_with_weights_from_dev_and_one_is_not():
    first, second, qrels = world((1, 1), (0.7, 0.9))
    tuned = fuse({"dense": first, "bm25": second}, qrels, "ndcg@10")
    assert fuse({"dense": first}, qrels, "ndcg@10") is None
    assert sum(tuned.weights.values()) == pytest.approx(1)
    alone = [per_query(run, qrels, ["ndcg@10"])["ndcg@10"].mean() for run in (first, second)]
    assert tuned.fused >= max(alone)
    runs = fused({"dense": first, "bm25": second}, tuned)
    assert per_query(runs["fused"], qrels, ["ndcg@10"])["ndcg@10"].mean() == pytest.approx(tuned.fused)
    assert per_query(runs["rrf"], qrels, ["ndcg@10"])["ndcg@10"].mean() == pytest.approx(tuned.rrf)
