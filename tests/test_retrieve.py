"""Retrieval, against brute force; and the rules of splits, self matches, fusions and imported runs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rankwright.config import validate
from rankwright.core import Collection, Run, canonical
from rankwright.errors import ConfigError, DataError
from rankwright.rooms import retrieve as room
from rankwright.rooms.retrieve import RetrieveContext, flat_search, pair_scorer, retrieve
from rankwright.sections import Bm25Retriever, DenseRetriever, FuseRetriever, ImportRetriever
from rankwright.toolbox import fuse
from rankwright.toolbox.bm25 import Bm25
from rankwright.toolbox.embed import Encoder
from rankwright.toolbox.formats import trec

WORDS = ["red", "green", "blue", "apple", "pear", "plum", "car", "train", "boat", "sorts", "graph", "node", "value"]
SPLIT_QUERIES = {"train": 8, "dev": 3, "test": 6}


@pytest.fixture(scope="module")
def collection():
    """Documents with copies, queries that are documents, and three splits whose qrels share some documents."""
    rng = np.random.default_rng(1)

    def text(count):
        return " ".join(rng.choice(WORDS, size=count))

    documents = {f"d{number:02}": text(rng.integers(2, 7)) for number in range(60)}
    documents["a-copy"] = documents["d11"]
    documents["z-copy"] = documents["d11"]
    queries, qrels = {}, {}
    names = list(documents)
    for split, count in SPLIT_QUERIES.items():
        qrels[split] = {}
        for number in range(count):
            query = f"{split}{number}"
            queries[query] = text(3)
            judged = rng.choice(names, size=6, replace=False).tolist()
            qrels[split][query] = {document: int(place < 2) for place, document in enumerate(judged)}
    queries["train0"] = documents["d11"]
    queries["test0"] = f"  {documents['d05']} "
    return Collection(documents, queries, qrels)


@pytest.fixture
def dense(tiny_encoder):
    return DenseRetriever(kind="dense", model=str(tiny_encoder), depth=7, query_prompt="find ")


@pytest.fixture
def context(tmp_path):
    return RetrieveContext(cache=tmp_path / "cache", device="cpu")


BM25 = Bm25Retriever(kind="bm25", depth=9)


def brute_force(collection, model_folder, split, depth, per_split=False):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_folder), device="cpu")
    documents = collection.split_documents(split, per_split=per_split)
    matrix = model.encode(list(documents.values())).astype(np.float64)
    rankings = {}
    for query, text in collection.split_queries(split).items():
        scores = dict(zip(documents, matrix @ model.encode([text], prompt="find ")[0].astype(np.float64), strict=True))
        rankings[query] = {
            document: score for document, score in scores.items() if canonical(documents[document]) != canonical(text)
        }
    return Run.from_scores(rankings, depth)


def expect_same(run, expected):
    """The same documents at the same scores; where neighbours are as close as rounding, their order is free."""
    assert list(run.rankings) == list(expected.rankings)
    for query, hits in expected.rankings.items():
        np.testing.assert_allclose([score for _, score in run.rankings[query]], [score for _, score in hits], rtol=1e-5)
    assert sum(run.documents(query) == expected.documents(query) for query in run.rankings) >= len(run.rankings) - 1


# --- the search itself


def vectors(count, width=16, seed=0, kinds=None):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(kinds or count, width)).astype(np.float32)
    return rows if kinds is None else rows[rng.integers(0, kinds, size=count)]


def exact_search(queries, documents, depth):
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("depth", [1, 10, 100, 499, 500, 800])
def test_flat_search_equals_brute_force(depth):
    queries, documents = vectors(33), vectors(500, seed=1)
    scores, positions = flat_search(queries, documents, depth)
    expected, order = exact_search(queries, documents, depth)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("depth", [10, 150])
@pytest.mark.parametrize("kinds", [1, 3, 40])
def test_copies_at_the_edge_of_the_depth_stand_by_position_however_many(kinds, depth):
    queries, documents = vectors(20), vectors(3000, seed=2, kinds=kinds)
    scores, positions = flat_search(queries, documents, depth)
    _, order = exact_search(queries, documents, depth)
    np.testing.assert_array_equal(positions, order)
    assert scores.shape == (20, depth)


def test_blocks_do_not_change_the_result(monkeypatch):
    queries, documents = vectors(50), vectors(200, seed=3, kinds=60)
    whole = flat_search(queries, documents, 20)
    monkeypatch.setattr(room, "_BLOCK", 100)
    for one, other in zip(whole, flat_search(queries, documents, 20), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_documents_and_no_queries_are_no_hits():
    assert flat_search(vectors(3), vectors(0), 5)[0].shape == (3, 0)
    assert flat_search(vectors(0), vectors(9), 5)[1].shape == (0, 5)


# --- retrievers


def test_dense_runs_equal_brute_force_in_every_split(collection, dense, context, tiny_encoder):
    runs = retrieve(collection, {"dense": dense}, context)["dense"]
    assert list(runs) == ["train", "dev", "test"]
    for split, run in runs.items():
        expect_same(run, brute_force(collection, tiny_encoder, split, 7))


def test_copies_score_the_same_and_stand_by_id(collection, dense, context):
    deep = dense.model_copy(update={"depth": 100})
    run = retrieve(collection, {"dense": deep}, context)["dense"]["dev"]
    for query in run.rankings:
        scores, documents = run.scores(query), run.documents(query)
        assert scores["a-copy"] == scores["d11"] == scores["z-copy"]
        place = documents.index("a-copy")
        assert documents[place : place + 3] == ["a-copy", "d11", "z-copy"]


def test_each_split_searches_its_own_documents_when_the_corpus_is_per_split(collection, dense, context, tiny_encoder):
    narrow = RetrieveContext(cache=context.cache, device="cpu", per_split=True)
    section = {"dense": dense, "bm25": BM25}
    runs = retrieve(collection, section, narrow)
    for split in SPLIT_QUERIES:
        expect_same(runs["dense"][split], brute_force(collection, tiny_encoder, split, 7, per_split=True))
    allowed = set(collection.split_documents("test", per_split=True))
    assert {
        document for query in collection.qrels["test"] for document in runs["bm25"]["test"].documents(query)
    } <= allowed
    assert runs["bm25"]["test"] != retrieve(collection, section, context)["bm25"]["test"]


def test_a_query_does_not_find_its_own_text_and_still_gets_its_depth(collection, dense, context):
    section = {"dense": dense, "bm25": BM25}
    for runs in retrieve(collection, section, context).values():
        assert not {"d11", "a-copy", "z-copy"} & set(runs["train"].documents("train0"))
        assert "d05" not in runs["test"].documents("test0")
    assert {len(hits) for hits in retrieve(collection, section, context)["dense"]["train"].rankings.values()} == {7}


def test_self_matches_stay_when_the_data_section_keeps_them(collection, context):
    keeping = RetrieveContext(device="cpu", drop_self=False)
    run = retrieve(collection, {"bm25": BM25}, keeping)["bm25"]["train"]
    assert {"d11", "a-copy", "z-copy"} <= set(run.documents("train0"))


def test_bm25_runs_are_the_index_over_the_collection(collection, context):
    run = retrieve(collection, {"bm25": BM25}, context)["bm25"]["dev"]
    index = Bm25(collection.documents, BM25.k1, BM25.b)
    assert run == Run.from_scores(index.search(collection.split_queries("dev"), 9))


def test_a_query_that_finds_nothing_is_absent(context):
    collection = Collection(
        {"a": "red", "b": "blue"}, {"q": "green", "r": "red car"}, {"test": {"q": {"a": 1}, "r": {"a": 1}}}
    )
    runs = retrieve(collection, {"bm25": BM25}, context)["bm25"]
    assert list(runs) == ["test"]
    assert runs["test"].documents("r") == ["a"]
    assert list(runs["test"].rankings) == ["r"]


def test_only_the_asked_splits_are_retrieved(collection, context):
    asked = RetrieveContext(device="cpu", splits=("test",))
    assert list(retrieve(collection, {"bm25": BM25}, asked)["bm25"]) == ["test"]


def test_texts_are_encoded_once_for_all_splits(collection, dense, context, monkeypatch):
    calls = []
    encode = Encoder.encode

    def counting(self, texts, **settings):
        calls.append((len(texts), settings["prompt"]))
        return encode(self, texts, **settings)

    monkeypatch.setattr(Encoder, "encode", counting)
    retrieve(collection, {"dense": dense}, context)
    assert calls == [(len(collection.documents), ""), (sum(SPLIT_QUERIES.values()), "find ")]


def test_the_order_of_the_collection_does_not_matter(collection, dense, context):
    turned = Collection(dict(reversed(collection.documents.items())), collection.queries, collection.qrels)
    section = {"dense": dense, "bm25": BM25, "both": FuseRetriever(kind="fuse", of=["dense", "bm25"])}
    assert retrieve(turned, section, context) == retrieve(collection, section, context)


# --- fusions


def test_fusions_follow_what_they_fuse_whatever_the_order_of_the_section(collection, dense, context):
    section = {
        "top": FuseRetriever(kind="fuse", of=["both", "bm25"], method="weighted", weights=[0.7, 0.3], depth=4),
        "both": FuseRetriever(kind="fuse", of=["dense", "bm25"], rrf_k=10, depth=6),
        "bm25": BM25,
        "dense": dense,
    }
    runs = retrieve(collection, section, context)
    assert list(runs) == list(section)
    for split in SPLIT_QUERIES:
        both = fuse.rrf([runs["dense"][split], runs["bm25"][split]], k=10, depth=6)
        assert runs["both"][split] == both
        assert runs["top"][split] == fuse.weighted([both, runs["bm25"][split]], [0.7, 0.3], depth=4)


def test_a_fusion_of_an_unknown_retriever_is_refused_with_a_guess(collection, context):
    section = {"bm25": BM25, "both": FuseRetriever(kind="fuse", of=["bm25", "bm52"])}
    with pytest.raises(ConfigError, match="no retriever 'bm52'") as caught:
        retrieve(collection, section, context)
    assert caught.value.where == "retrieve.both.of"
    assert caught.value.hint == "did you mean bm25?"


@pytest.mark.parametrize("circle", [{"a": ["a", "bm25"]}, {"a": ["b", "bm25"], "b": ["bm25", "a"]}])
def test_fusions_in_a_circle_are_refused(collection, context, circle):
    section = {"bm25": BM25} | {name: FuseRetriever(kind="fuse", of=of) for name, of in circle.items()}
    with pytest.raises(ConfigError, match=r"fuse one another: .*a") as caught:
        retrieve(collection, section, context)
    assert caught.value.where == "retrieve"


# --- fusions whose weights dev chooses


def tuned(*of, depth=8):
    return FuseRetriever(kind="fuse", of=list(of), method="tuned", depth=depth)


def test_a_tuned_fusion_holds_the_best_of_what_any_member_found_at_the_chosen_weights(collection, dense, context):
    section, told = {"hybrid": tuned("dense", "bm25"), "dense": dense, "bm25": BM25}, {}
    runs = retrieve(collection, section, context, on_tuned=lambda name, *found: told.update({name: found}))
    (fusion, chosen) = told["hybrid"]
    assert re.fullmatch(r"dense \d\.\d\d, bm25 \d\.\d\d \(nDCG@10 on 3 dev queries .* alone -> .*\)", chosen.line())
    weights = fusion.values()["weights"]
    scorers = {name: pair_scorer(collection, name, section, context) for name in weights}
    for split in SPLIT_QUERIES:
        for query in collection.qrels[split]:
            found = sorted({one for name in weights for one in runs[name][split].documents(query)})
            total = np.zeros(len(found))
            for name, weight in weights.items():
                own = np.array(list(runs[name][split].scores(query).values()) or [0.0])
                raw = scorers[name]([(query, one) for one in found]).astype(np.float64)
                total += weight * ((raw - own.mean()) / own.std() if own.std() else 0 * raw)
            expected = Run.from_scores({query: dict(zip(found, total.astype(np.float32).tolist(), strict=True))}, 8)
            assert runs["hybrid"][split].documents(query) == expected.documents(query)
            assert runs["hybrid"][split].scores(query) == pytest.approx(expected.scores(query), rel=1e-5, abs=1e-6)


def test_a_tuned_fusion_s_pair_scores_are_its_run_s_and_any_pair_has_one(collection, dense, context, capsys):
    section = {"dense": dense, "bm25": BM25, "hybrid": tuned("dense", "bm25"), "top": tuned("hybrid", "bm25", depth=5)}
    runs = retrieve(collection, section, context)
    assert runs == retrieve(collection, section, context)
    capsys.readouterr()
    for name in ("hybrid", "top"):
        score = pair_scorer(collection, name, section, context, runs)
        hits = [(query, *hit) for run in runs[name].values() for query, row in run.rankings.items() for hit in row]
        assert score([(query, one) for query, one, _ in hits]).tolist() == [value for *_, value in hits]
        everything = score([(query, one) for query in collection.queries for one in collection.documents])
        assert np.isfinite(everything).all()
    assert capsys.readouterr().err == "", "the weights are told where the runs are made, and not again"


def test_an_imported_run_is_a_member_and_what_it_lacks_counts_as_its_lowest(collection, context, tmp_path):
    lexical = retrieve(collection, {"bm25": BM25}, context)["bm25"]
    section = {"bm25": BM25, "engine": imported(tmp_path, lexical), "hybrid": tuned("bm25", "engine", depth=100)}
    runs = retrieve(collection, section, context)
    for query in collection.qrels["test"]:
        found = lexical["test"].documents(query)
        assert runs["hybrid"]["test"].documents(query)[:5] == found[:5]
        assert set(runs["hybrid"]["test"].documents(query)) == set(found)
    query, nowhere = "test1", next(one for one in collection.documents if one not in lexical["test"].documents("test1"))
    lowest = runs["engine"]["test"].documents(query)[-1]
    only = {"engine": section["engine"], "hybrid": tuned("engine", "engine", depth=100)}
    score = pair_scorer(collection, "hybrid", only, context, runs)
    assert score([(query, nowhere)])[0] == score([(query, lowest)])[0]


def test_a_tuned_fusion_without_dev_is_refused_before_anything_is_searched(collection, context, monkeypatch):
    qrels = {split: collection.qrels[split] for split in ("train", "test")}
    without = Collection(collection.documents, collection.queries, qrels)
    section = {"bm25": BM25, "hybrid": tuned("bm25", "bm25")}
    monkeypatch.setattr(room, "_search", lambda *_: pytest.fail("searched"))
    for data, where in ((without, context), (collection, RetrieveContext(device="cpu", splits=("train", "test")))):
        with pytest.raises(DataError, match="no dev split to choose the weights on") as caught:
            retrieve(data, section, where)
        assert caught.value.where == "retrieve.hybrid"
    with pytest.raises(DataError, match="no dev split"):
        pair_scorer(without, "hybrid", section, context, {"bm25": {}, "hybrid": {}})


def test_weights_given_to_a_tuned_fusion_are_refused():
    both = {"kind": "fuse", "of": ["a", "b"], "method": "tuned", "weights": [0.5, 0.5]}
    retrievers = {"a": {"kind": "bm25"}, "b": {"kind": "bm25"}, "both": both}
    with pytest.raises(ConfigError, match="a tuned fusion chooses its weights on dev"):
        validate({"data": {}, "retrieve": retrievers})


# --- imported runs


def imported(tmp_path, runs, depth=5):
    paths = {}
    for split, run in runs.items():
        paths[split] = str(tmp_path / f"{split}.run")
        trec.write_run(paths[split], run, "engine")
    return ImportRetriever(kind="import", runs=paths, depth=depth)


def test_an_imported_run_comes_back_cut_to_its_depth_without_self_matches(collection, context, tmp_path, capsys):
    source = retrieve(collection, {"bm25": BM25}, RetrieveContext(device="cpu", drop_self=False))["bm25"]
    section = {"engine": imported(tmp_path, source)}
    runs = retrieve(collection, section, context)["engine"]
    own = collection.self_matches()
    for split in SPLIT_QUERIES:
        expected = {
            query: [document for document in source[split].documents(query) if document not in own.get(query, ())][:5]
            for query in source[split].rankings
        }
        assert {query: runs[split].documents(query) for query in runs[split].rankings} == expected
    assert capsys.readouterr().err == ""


def test_missing_splits_and_queries_and_unknown_queries_are_said_with_their_counts(
    collection, context, tmp_path, capsys
):
    run = Run.from_scores({"test1": {"d01": 2.0}, "test2": {"d02": 1.0}, "stranger": {"d03": 1.0}})
    runs = retrieve(collection, {"engine": imported(tmp_path, {"test": run})}, context)["engine"]
    assert runs["train"] == runs["dev"] == Run()
    assert list(runs["test"].rankings) == ["test1", "test2"]
    said = capsys.readouterr().err
    assert "retrieve.engine has no run for train: its 8 queries have no candidates" in said
    assert "has no run for dev: its 3 queries" in said
    assert "1 queries are not in test and are ignored" in said
    assert "4 of the 6 queries of test are missing" in said


def test_documents_that_the_collection_lacks_are_counted_and_refused(collection, context, tmp_path):
    strangers = {f"x{number}": float(number) for number in range(8)}
    run = Run.from_scores({"test1": {"d01": 2.0, **strangers}, "test2": {"x3": 1.0}})
    with pytest.raises(DataError, match="8 documents of an imported run are not in the collection") as caught:
        retrieve(collection, {"engine": imported(tmp_path, {"test": run})}, context)
    assert "test.run: document 'x7' (query 'test1')" in caught.value.message
    assert "and 3 more" in caught.value.message
    assert "dedupe" in caught.value.hint


def test_imported_hits_outside_a_split_s_own_corpus_are_ignored_aloud(collection, tmp_path, capsys):
    inside = next(iter(collection.split_documents("test", per_split=True)))
    outside = sorted(set(collection.documents) - set(collection.split_documents("test", per_split=True)))[:2]
    run = Run.from_scores({query: {inside: 1.0, **dict.fromkeys(outside, 2.0)} for query in collection.qrels["test"]})
    narrow = RetrieveContext(device="cpu", per_split=True, drop_self=False, splits=("test",))
    runs = retrieve(collection, {"engine": imported(tmp_path, {"test": run})}, narrow)["engine"]
    assert all(runs["test"].documents(query) == [inside] for query in collection.qrels["test"])
    assert "12 hits outside the split's own documents are ignored" in capsys.readouterr().err


# --- pair scores


@pytest.mark.parametrize("per_split", [False, True])
@pytest.mark.parametrize("name", ["dense", "bm25"])
def test_pair_scores_are_exactly_the_run_s_scores(collection, dense, context, name, per_split):
    context = RetrieveContext(cache=context.cache, device="cpu", per_split=per_split)
    section = {"dense": dense, "bm25": BM25}
    runs = retrieve(collection, section, context)[name]
    hits = [(query, *hit) for run in runs.values() for query, row in run.rankings.items() for hit in row]
    hits = [hits[place] for place in np.random.default_rng(0).permutation(len(hits))]
    scores = pair_scorer(collection, name, section, context)([(query, document) for query, document, _ in hits])
    assert scores.dtype == np.float32
    assert scores.tolist() == [score for _, _, score in hits]


def test_pairs_that_no_run_holds_are_scored_too(collection, dense, context, tiny_encoder):
    pairs = [(query, document) for query in collection.qrels["dev"] for document in collection.documents]
    expected = brute_force(collection, tiny_encoder, "dev", None)
    scores = pair_scorer(collection, "dense", {"dense": dense}, context)(pairs)
    np.testing.assert_allclose(scores, [expected.scores(query)[document] for query, document in pairs], rtol=1e-5)
    lexical = pair_scorer(collection, "bm25", {"bm25": BM25}, context)(pairs)
    index = Bm25(collection.documents, BM25.k1, BM25.b)
    assert lexical.tolist() == [
        float(index.scores(collection.queries[query], [document])[0]) for query, document in pairs
    ]
    assert (lexical == 0).any()


def test_a_fusion_s_pair_scores_come_from_its_runs_and_are_nan_outside(collection, context):
    section = {"bm25": BM25, "both": FuseRetriever(kind="fuse", of=["bm25", "bm25"], depth=3)}
    runs = retrieve(collection, section, context)
    score = pair_scorer(collection, "both", section, context, runs)
    run = runs["both"]["dev"]
    (first, value), *_ = run.rankings["dev0"]
    outside = next(document for document in collection.documents if document not in run.documents("dev0"))
    scores = score([("dev0", outside), ("dev0", first), ("nobody", first)])
    assert np.isnan(scores).tolist() == [True, False, True]
    assert scores[1] == np.float32(value)
    with pytest.raises(ValueError, match="give them"):
        pair_scorer(collection, "both", section, context)


def test_no_pairs_have_no_scores(collection, dense, context):
    for name, section in {"dense": dense, "bm25": BM25}.items():
        assert pair_scorer(collection, name, {name: section}, context)([]).shape == (0,)


def test_a_split_that_was_cut_from_train_finds_its_queries_in_trains_run(collection, context, tmp_path):
    lexical = retrieve(collection, {"bm25": BM25}, context)["bm25"]
    both = Run({**lexical["train"].rankings, **lexical["dev"].rankings})
    section = {"engine": imported(tmp_path, {"train": both, "test": lexical["test"]}, depth=100)}
    assert retrieve(collection, section, context)["engine"]["dev"] == lexical["dev"]


def test_a_split_without_a_run_of_its_own_or_in_trains_has_no_candidates(collection, context, tmp_path, capsys):
    lexical = retrieve(collection, {"bm25": BM25}, context)["bm25"]
    section = {"engine": imported(tmp_path, {name: lexical[name] for name in ("train", "test")})}
    assert retrieve(collection, section, context)["engine"]["dev"] == Run()
    assert "no run for dev" in capsys.readouterr().err
