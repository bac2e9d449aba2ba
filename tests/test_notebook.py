"""The notebook's way, from its data to its table: `scidocs` with tiny models and rows of SciDocs' shape."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from rankwright import api
from rankwright.core import canonical
from rankwright.sections import METRICS

ROWS, POSITIVES, NEGATIVES = 24, 3, 8


def tiny_xlmr(folder, words):
    """An XLM-R-shaped reranker with a SentencePiece-like tokenizer, as bge-reranker-base is shaped."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizer

    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary = [*special, ("▁", -2.0), *[(f"▁{word}", -3.0) for word in words], ("<mask>", 0.0)]
    XLMRobertaTokenizer(vocab=vocabulary, model_max_length=62).save_pretrained(folder)
    torch.manual_seed(5)
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        type_vocab_size=1,
        num_labels=1,
        initializer_range=0.2,  # the usual 0.02 gives all pairs nearly one score
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def normalised(encoder, folder):
    """The encoder with vectors of length 1, as bge-base-en-v1.5 has them."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(encoder), device="cpu").save(str(folder))
    modules = json.loads((folder / "modules.json").read_text())
    last = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    (folder / "modules.json").write_text(json.dumps([*modules, last]))
    (folder / "2_Normalize").mkdir()
    return folder


def scidocs_rows(words, seed):
    """Rows of titles: negatives come from one pool, so that many texts stand in several rows."""
    rng = np.random.default_rng(seed)

    def title(length):
        return " ".join(rng.choice(words, size=length))

    pool = [title(4) for _ in range(60)]
    rows = []
    for _ in range(ROWS):
        query = title(5)
        positive = [f"{' '.join(rng.permutation(query.split())[:2])} {title(3)}" for _ in range(POSITIVES)]
        rows.append({"query": query, "positive": positive, "negative": list(rng.choice(pool, NEGATIVES))})
    rows[5]["query"] = rows[2]["query"]  # twins, with other positives
    rows[7]["positive"][0] = rows[7]["query"]  # finds itself
    rows[8]["negative"][0] = rows[9]["query"]  # and so does row 9, in another's row
    rows[10]["positive"][0] = rows[11]["positive"][0]
    return rows


@dataclass
class Notebook:
    """What goes in, and what a walk made of it."""

    validation: list
    test: list
    encoder: Path
    base: Path
    overrides: list
    runs: Path
    result: api.Result

    @property
    def folder(self):
        return self.result.folder


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_encoder):
    """The rows of both splits, the reranker, and the overrides that put them in the place of the hub's."""
    root = tmp_path_factory.mktemp("notebook")
    vocabulary = (tiny_encoder / "vocab.txt").read_text().split()
    words = [word for word in vocabulary if word.isalpha() and len(word) > 1]
    validation, test = scidocs_rows(words, seed=1), scidocs_rows(words, seed=2)
    test[3]["query"] = validation[0]["query"]  # SciDocs' splits share queries
    folder = root / "rows"
    folder.mkdir()
    for split, rows in {"validation": validation, "test": test}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder, base = normalised(tiny_encoder, root / "encoder"), tiny_xlmr(root / "xlmr", words)
    overrides = [
        "device=cpu",
        f"data.source=rows:{folder}",
        f"retrieve.dense.model={encoder}",
        "retrieve.dense.document_length=64",  # all the positions that it has
        f"train.finetuned.base={base}",
        "train.finetuned.epochs=1",
        "train.finetuned.precision=fp32",
        "train.finetuned.batch=4",
        "train.finetuned.accumulate=2",
        "evaluate.bootstrap=100",
        "evaluate.permutations=100",
    ]
    return validation, test, encoder, base, overrides


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, given):
    validation, test, encoder, base, overrides = given
    overrides = [*overrides, "train.finetuned.sample.negatives=5"]
    runs = tmp_path_factory.mktemp("runs")
    result = api.run("scidocs", overrides=overrides, runs=runs)
    return Notebook(validation, test, encoder, base, overrides, runs, result)


def texts_of(rows):
    return list(chain.from_iterable([*row["positive"], *row["negative"]] for row in rows))


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rankings(path):
    """query -> documents, best first, read from a TREC run by hand."""
    ranked = {}
    for line in path.read_text().splitlines():
        query, _, document, rank, _, _ = line.split()
        ranked.setdefault(query, []).append((int(rank), document))
    return {query: [document for _, document in sorted(hits)] for query, hits in ranked.items()}


def runs_of(notebook):
    """The four arms' rankings of the test queries."""
    arms = {arm: notebook.folder / "rerank" / f"{arm}.test.run" for arm in ("base", "finetuned", "merged")}
    paths = {"retrieval": notebook.folder / "retrieve" / "dense.test.run", **arms}
    return {arm: rankings(path) for arm, path in paths.items()}


def means(result):
    return {(row["metric"], cell["arm"]): cell["mean"] for row in result.table["rows"] for cell in row["cells"]}


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# --------------------------------------------------------------------------------------- the experiment


def test_the_hyper_parameters_are_the_notebook_s():
    experiment, _ = api.load("scidocs")
    training = experiment.train["finetuned"]
    assert list(experiment.train) == ["finetuned"]
    assert training.base == "BAAI/bge-reranker-base"
    assert training.learning_rate == 6e-5
    assert training.epochs == 15
    assert (training.batch, training.accumulate) == (8, 8)
    assert (training.sample.positives, training.sample.negatives) == (1, 22)  # a group of 23
    assert training.loss == {"listwise": 1.0}
    assert (training.warmup, training.schedule) == (0, "linear")
    assert training.weight_decay == 0.01
    assert (training.max_length, experiment.rerank.max_length) == (512, 512)
    assert (training.keep, training.dev) == ("last", None)
    assert training.precision == "fp16"


def test_the_data_stay_as_the_notebook_has_them():
    experiment, _ = api.load("scidocs")
    data = experiment.data
    assert data.source == "hub:mteb/scidocs-reranking"
    assert (data.train, data.dev, data.test, data.dev_share) == ("validation", None, "test", 0)
    assert (data.dedupe, data.self_matches, data.leaks, data.corpus) == (False, "keep", "report", "per_split")
    assert data.max_queries == {}


def test_retrieval_mining_merge_and_table_are_the_notebook_s():
    experiment, _ = api.load("scidocs")
    dense = experiment.retrieve["dense"]
    assert list(experiment.retrieve) == ["dense"]
    assert (dense.model, dense.depth) == ("BAAI/bge-base-en-v1.5", 100)
    assert (dense.query_length, dense.document_length) == (32, 128)
    assert (dense.query_prompt, dense.document_prompt) == ("", "")
    assert (experiment.mine.negatives, experiment.mine.random) == (0, 0)
    merged = dict(zip(experiment.merge.models, experiment.merge.weights, strict=True))
    assert merged == {"base": 0.5, "finetuned": 0.5}
    assert (experiment.rerank.depth, experiment.rerank.arms) == (100, None)
    assert experiment.evaluate.metrics == [metric for metric in METRICS if metric != "map"]


# --------------------------------------------------------------------------------------------- the walk


def test_the_table_has_the_notebook_s_four_arms_and_seven_metrics(notebook):
    table = notebook.result.table
    assert table["arms"] == ["retrieval", "base", "finetuned", "merged"]
    names = ["mrr@1", "mrr@10", "mrr@100", "recall@1", "recall@10", "recall@100", "ndcg@10"]
    assert [row["metric"] for row in table["rows"]] == names
    assert all([cell["arm"] for cell in row["cells"]] == table["arms"] for row in table["rows"])
    assert table["queries"] == ROWS
    assert table["split"] == "test"


def test_every_room_ran_and_the_report_is_there(notebook):
    stages = ["data", "retrieve", "mine", "train/finetuned", "merge", "rerank"]
    stages += ["blend", "general", "evaluate", "diagnose", "verdict", "report"]
    assert [(outcome.stage, outcome.action) for outcome in notebook.result.outcomes] == [
        (stage, "ran") for stage in stages
    ]
    page = notebook.result.report
    assert page == notebook.folder / "report" / "index.html"
    assert "</html>" in page.read_text()


def test_copies_of_documents_stay(notebook):
    documents = [row["text"] for row in json_lines(notebook.folder / "data" / "corpus.jsonl")]
    given = texts_of(notebook.validation) + texts_of(notebook.test)
    assert Counter(documents) == Counter(given)
    assert len(documents) == 2 * ROWS * (POSITIVES + NEGATIVES)
    assert len(set(documents)) < len(documents) - 100  # or there would be hardly a copy to keep


def test_each_row_is_a_query_of_its_own(notebook):
    queries = json_lines(notebook.folder / "data" / "queries.jsonl")
    rows = notebook.validation + notebook.test
    assert [query["text"] for query in queries] == [row["query"] for row in rows]
    assert len({query["_id"] for query in queries}) == len(rows)
    assert len({query["text"] for query in queries}) < len(rows)  # twins, and one in both splits


def test_there_is_no_dev_split_and_all_validation_rows_are_trained_on(notebook):
    assert {path.stem for path in (notebook.folder / "data" / "qrels").iterdir()} == {"train", "test"}
    groups = json_lines(notebook.folder / "mine" / "groups.jsonl")
    assert [group["query"] for group in groups] == [row["query"] for row in notebook.validation]
    for group, row in zip(groups, notebook.validation, strict=True):
        assert Counter(group["pos"]) == Counter(row["positive"])


def test_groups_hold_the_rows_own_negatives_and_no_others(notebook):
    groups = json_lines(notebook.folder / "mine" / "groups.jsonl")
    for group, row in zip(groups, notebook.validation, strict=True):
        assert set(group["neg"]) <= set(row["negative"])
    assert sum(len(group["neg"]) for group in groups) > 0.9 * ROWS * NEGATIVES


def test_test_queries_search_the_rows_of_test_only(notebook):
    corpus = {row["_id"]: row["text"] for row in json_lines(notebook.folder / "data" / "corpus.jsonl")}
    own = Counter(texts_of(notebook.test))
    found = runs_of(notebook)["retrieval"]
    assert len(found) == ROWS
    for documents in found.values():
        assert len(documents) == len(set(documents)) == 100
        assert not Counter(corpus[document] for document in documents) - own
    assert len({document for documents in found.values() for document in documents}) > 200  # other rows' as well


def test_retrieval_is_the_encoder_s_cosine(notebook):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(notebook.encoder), device="cpu")
    corpus = {row["_id"]: row["text"] for row in json_lines(notebook.folder / "data" / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in json_lines(notebook.folder / "data" / "queries.jsonl")}
    documents = [document for document in corpus if document.startswith("test-")]
    vectors = model.encode([corpus[document] for document in documents], normalize_embeddings=True)
    place = {document: number for number, document in enumerate(documents)}
    for query, found in runs_of(notebook)["retrieval"].items():
        scores = vectors @ model.encode(queries[query], normalize_embeddings=True)
        ranked = scores[[place[document] for document in found]]
        np.testing.assert_allclose(ranked, np.sort(scores)[::-1][:100], atol=1e-5)


def test_a_query_that_finds_itself_is_kept(notebook):
    corpus = {row["_id"]: row["text"] for row in json_lines(notebook.folder / "data" / "corpus.jsonl")}
    itself = canonical(notebook.test[7]["query"])
    queries = json_lines(notebook.folder / "data" / "queries.jsonl")
    (query,) = [row["_id"] for row in queries[ROWS:] if canonical(row["text"]) == itself]
    first = runs_of(notebook)["retrieval"][query][0]
    assert canonical(corpus[first]) == itself
    assert means(notebook.result)["mrr@1", "retrieval"] > 0


def test_the_metrics_are_those_counted_by_hand(notebook):
    lines = (notebook.folder / "data" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    judged = [line.split("\t") for line in lines]
    relevant = {}
    for query, document, grade in judged:
        relevant.setdefault(query, set()).update({document} if int(grade) else ())
    found = means(notebook.result)
    for arm, ranked in runs_of(notebook).items():
        ranks = [
            [rank for rank, document in enumerate(ranked[query], 1) if document in wanted]
            for query, wanted in relevant.items()
        ]
        mrr = np.mean([1 / hits[0] if hits and hits[0] <= 10 else 0 for hits in ranks])
        recall = np.mean([sum(rank <= 10 for rank in hits) / POSITIVES for hits in ranks])
        assert found["mrr@10", arm] == pytest.approx(mrr)
        assert found["recall@10", arm] == pytest.approx(recall)


def test_reranking_all_candidates_leaves_recall_at_100_as_it_was(notebook):
    found, runs = means(notebook.result), runs_of(notebook)
    recalls = {found["recall@100", arm] for arm in runs}
    assert len(recalls) == 1
    assert 0.2 < recalls.pop() < 1
    for query, documents in runs["retrieval"].items():
        assert all(set(runs[arm][query]) == set(documents) for arm in runs)
    orders = {json.dumps(ranked) for ranked in runs.values()}
    assert len(orders) == 4  # and yet each arm has an order of its own


def test_the_last_step_is_kept_after_one_pass_in_steps_of_batch_times_accumulate(notebook):
    records = json_lines(notebook.folder / "train" / "finetuned" / "log.jsonl")
    steps = [record for record in records if "loss" in record]
    assert len(steps) == ROWS // (4 * 2)
    rates = [record["lr"] for record in steps]
    np.testing.assert_allclose(rates, [6e-5, 4e-5, 2e-5], rtol=1e-6)  # no warm-up, down to 0


def test_merged_is_the_mean_of_base_and_fine_tuned(notebook):
    import torch

    base, tuned, merged = (
        tensors(folder)
        for folder in (
            notebook.base,
            notebook.folder / "train" / "finetuned" / "model",
            notebook.folder / "merge" / "model",
        )
    )
    assert set(base) == set(tuned) == set(merged)
    for name in base:
        torch.testing.assert_close(merged[name], (base[name] + tuned[name]) / 2, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(base[name], tuned[name]) for name in base)


def test_the_base_arm_is_the_model_as_it_came(notebook):
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(notebook.base), device="cpu")
    corpus = {row["_id"]: row["text"] for row in json_lines(notebook.folder / "data" / "corpus.jsonl")}
    query = json_lines(notebook.folder / "data" / "queries.jsonl")[ROWS]
    ranked = runs_of(notebook)["base"][query["_id"]]
    scores = model.predict([(query["text"], corpus[document]) for document in ranked])
    assert np.all(np.diff(scores) <= 1e-6)
    assert np.ptp(scores) > 1e-3


def test_what_is_kept_is_told(notebook):
    told = "\n".join(notebook.result.outcomes[0].lines)
    assert "leak: " in told
    assert "the query itself, kept" in told


def test_a_second_run_reuses_everything(notebook):
    again = api.run("scidocs", overrides=notebook.overrides, runs=notebook.runs)
    assert {outcome.action for outcome in again.outcomes} == {"reused"}
    assert again.table == notebook.result.table


# -------------------------------------------------------------------------------------- the better recipe


def test_scidocs_best_runs_on_the_same_rows(given, tmp_path):
    validation, test, _, base, overrides = given
    search = [f"train.finetuned.bases=[{base}]", "train.finetuned.budget=2000 pairs"]
    settled = ("train.finetuned.base=", "train.finetuned.epochs=")  # what a search settles for itself
    overrides = [one for one in overrides if not one.startswith(settled)] + search
    result = api.run("scidocs-best", overrides=overrides, runs=tmp_path)
    arms = ["base", "finetuned", "merged"]
    assert result.table["arms"] == ["retrieval", "dense", "bm25", *arms, *(f"{arm}-blend" for arm in arms)]
    assert [row["metric"] for row in result.table["rows"]] == [metric for metric in METRICS if metric != "map"]
    assert result.report
    documents = [row["text"] for row in json_lines(result.folder / "data" / "corpus.jsonl")]
    assert sorted(documents) == sorted(set(texts_of(validation) + texts_of(test)))  # copies merged
    assert result.table["queries"] == len({row["query"] for row in test}) == ROWS - 1  # twins united
    groups = json_lines(result.folder / "train" / "finetuned" / "groups.jsonl")
    leaked = {row["query"] for row in validation} & {row["query"] for row in test}
    assert len(leaked) == 1
    assert not leaked & {group["query"] for group in groups}
    assert {path.stem for path in (result.folder / "data" / "qrels").iterdir()} == {"train", "dev", "test"}
