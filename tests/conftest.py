"""Tiny real models, made on the spot: a BERT encoder and a BERT cross-encoder of 2 layers and 32 dimensions."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

WORDS = (
    "red green blue apple pear plum car train boat sorts array matrix solves linear graph node returns value "
    "the a of in and to with for is are what how which find compute fast slow big small old new"
).split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789"] + [
    f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"
]


def tiny_bert(folder: Path, *, labels: int | None, seed: int = 0) -> Path:
    """Save a tiny BERT with its tokenizer: a plain encoder (`labels` None) or a classifier."""
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
