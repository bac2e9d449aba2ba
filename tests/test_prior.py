"""The document prior: counted from training labels, a training query's own never for itself."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.config import validate
from rankwright.core import Run
from rankwright.errors import ConfigError
from rankwright.toolbox.prior import NAME, prior_scorer
from rankwright.toolbox.tuned import Members, Tuned, choose_weights

TRAIN = {"t1": {"a": 1, "b": 2}, "t2": {"a": 1, "c": 0}, "t3": {"a": 1}}


def test_it_is_the_log_of_one_and_the_training_queries_that_a_document_is_relevant_to():
    scores = prior_scorer(TRAIN)([("new", "a"), ("new", "b"), ("new", "c"), ("new", "unseen")])
    assert scores == pytest.approx(np.log([4, 2, 1, 1]))
    assert scores.dtype == np.float32


def test_a_training_querys_own_labels_do_not_count_for_it():
    scores = prior_scorer(TRAIN)([("t1", "a"), ("t1", "b"), ("t2", "b"), ("t2", "c")])
    assert scores == pytest.approx(np.log([3, 1, 2, 1]))


def fused_world(helps, queries=60, documents=20, seed=0):
    """A retriever that sees relevance dimly; popular documents are relevant twice as often, or no more than others."""
    rng = np.random.default_rng(seed)
    ids = [f"{place:02}" for place in range(documents)]
    popular = set(ids[:5])
    train = {f"t{number}": dict.fromkeys(popular, 1) for number in range(5)}
    qrels, found = {}, {}
    for number in range(queries):
        chances = np.array([8.0 if helps and one in popular else 1.0 for one in ids])
        relevant = rng.choice(ids, size=3, replace=False, p=chances / chances.sum())
        qrels[f"d{number}"] = {str(one): 1 for one in relevant}
        found[f"d{number}"] = {one: float((one in relevant) + 2 * rng.normal()) for one in ids}
    run = Run.from_scores(found)

    def score(pairs):
        return np.array([found[query][one] for query, one in pairs], dtype=np.float32)

    members = Members({"dense": score, NAME: prior_scorer(train)}, {"dense": {"dev": run}})
    return members, qrels, {query: query for query in qrels}


def test_it_gets_a_weight_where_it_helps():
    members, qrels, texts = fused_world(helps=True)
    chosen = choose_weights(members, qrels, texts)
    assert chosen.weights[NAME] > 0
    assert chosen.fused > chosen.alone["dense"]


def test_it_gets_none_where_dev_does_not_show_a_gain_beyond_its_noise():
    members, qrels, texts = fused_world(helps=False)
    assert choose_weights(members, qrels, texts).weights == {"dense": 1.0, NAME: 0.0}


def test_a_gain_on_the_very_queries_that_chose_its_weight_does_not_count():
    """In this world dev's best weights give it a tenth, and the gain there lies beyond the noise."""
    members, qrels, texts = fused_world(helps=False, seed=19)
    assert choose_weights(members, qrels, texts).weights == {"dense": 1.0, NAME: 0.0}


def test_it_finds_no_candidates_of_its_own():
    members, _, _ = fused_world(helps=True)
    run = Tuned(members, {"dense": 0.5, NAME: 0.5}).run("dev", 100)
    assert {query: set(run.documents(query)) for query in run.rankings} == {
        query: set(members.runs["dense"]["dev"].documents(query)) for query in run.rankings
    }


@pytest.mark.parametrize("fusion", [{"method": "rrf"}, {"of": ["dense", "prior"], "method": "tuned"}])
def test_a_prior_that_dev_cannot_weigh_is_refused(tiny_experiment, fusion):
    tiny_experiment["retrieve"]["prior"] = {"kind": "bm25"}
    tiny_experiment["retrieve"]["both"] = {"kind": "fuse", "of": ["dense", "prior"], "prior": True, **fusion}
    with pytest.raises(ConfigError, match="prior needs method: tuned"):
        validate(tiny_experiment)
