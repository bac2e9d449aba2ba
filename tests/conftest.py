"""Tiny real models, made on the spot: a BERT encoder and a BERT cross-encoder of 2 layers and 32 dimensions.

And a tiny experiment of them: rows of words that they know, and every room.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

WORDS = (
    "red green blue apple pear plum car train boat sorts array matrix solves linear graph node returns value "
    "the a of in and to with for is are what how which find compute fast slow big small old new"
).split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789"] + [
    f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"
]


def tiny_bert(folder: Path, *, labels: int | None, seed: int = 0, spread: float = 0.02) -> Path:
    """Save a tiny BERT with its tokenizer: a plain encoder (`labels` None) or a classifier.

    `spread` is the standard deviation of its weights: BERT's own hardly tells texts apart in so few dimensions.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels or 2,
        initializer_range=spread,
    )
    torch.manual_seed(seed)
    model = BertModel(config) if labels is None else BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("models") / "encoder", labels=None)


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("models") / "reranker", labels=1, seed=1)


def sentences(count: int, length: int, seed: int) -> list[str]:
    """Different sentences of the tiny models' words."""
    rng = np.random.default_rng(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made[" ".join(rng.choice(WORDS, size=length))] = None
    return list(made)


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory) -> Path:
    """Rows (query, positive, negative) of 40 queries and 160 documents: a folder of train, dev and test.jsonl."""
    folder = tmp_path_factory.mktemp("data") / "rows"
    folder.mkdir()
    queries, others = sentences(40, 4, seed=1), iter(sentences(160, 3, seed=2))
    rows = [
        {
            "query": query,
            "positive": [f"{next(others)} {query}", f"{query} {next(others)}"],
            "negative": [next(others), next(others)],
        }
        for query in queries
    ]
    for split, part in {"train": rows[:24], "dev": rows[24:30], "test": rows[30:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(scope="session")
def lively_encoder(tmp_path_factory):
    """A tiny encoder that learns something in a few steps."""
    return tiny_bert(tmp_path_factory.mktemp("models") / "lively", labels=None, spread=0.15)


def experiment_of(rows: Path, encoder: Path) -> dict[str, Any]:
    """A whole experiment, every room of it, as plain values: seconds to run."""
    training = {"learning_rate": 3e-3, "batch": 4, "max_length": 32, "precision": "fp32"}
    dev = {"queries": 6, "depth": 8, "evaluations": 2}
    return {
        "name": "tiny",
        "seed": 3,
        "device": "cpu",
        "data": {"source": f"rows:{rows}"},
        "retrieve": {"dense": {"kind": "dense", "model": str(encoder), "depth": 20}},
        "mine": {"negatives": 3, "random": 1, "window": [1, 20], "drop_above": None, "unlabelled": 16},
        "train": {
            "distilled": {**training, "base": str(encoder), "groups": "unlabelled", "loss": "kl", "dev": dev},
            "finetuned": {**training, "base": "distilled", "loss": "listwise", "epochs": 2, "dev": dev},
        },
        "merge": {"models": ["base", "finetuned"]},
        "rerank": {"depth": 10, "precision": "exact"},
        "general": {"source": f"rows:{rows}", "queries": 4, "depth": 5},
        "evaluate": {"metrics": ["mrr@10", "recall@1", "ndcg@10"], "bootstrap": 100, "permutations": 100},
        "diagnose": {"sample": 4, "resamples": 100},
        "verdict": {"permutations": 200, "resamples": 100},
        "report": {"examples": 2},
    }


@pytest.fixture(scope="session")
def make_experiment(tiny_rows, lively_encoder):
    """Makes the tiny experiment: for fixtures that live longer than a test."""
    return lambda: experiment_of(tiny_rows, lively_encoder)


@pytest.fixture
def tiny_experiment(tiny_rows, lively_encoder) -> dict[str, Any]:
    """The tiny experiment, to be changed at will."""
    return experiment_of(tiny_rows, lively_encoder)


@pytest.fixture(scope="session")
def finished(tiny_rows, lively_encoder, tmp_path_factory) -> Path:
    """A folder of runs in which the tiny experiment is finished. Copy it before changing anything in it."""
    import rankwright

    runs = tmp_path_factory.mktemp("finished") / "runs"
    rankwright.run(experiment_of(tiny_rows, lively_encoder), runs=runs)
    return runs


@pytest.fixture
def finished_copy(finished, tmp_path) -> Path:
    """The same in a place of one's own."""
    return shutil.copytree(finished, tmp_path / "runs")


@pytest.fixture
def tiny_file(tmp_path, tiny_experiment) -> Path:
    """The same experiment as a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment, sort_keys=False))
    return path
