"""What engine.py measures with: models of the true shape with random weights, texts of wanted lengths, their FLOPs.

In come a shape's or workload's name and a seed; out come a model folder with a real tokenizer, lists of texts, and
counts. Every word of the texts is one token of the shape's tokenizer, words are drawn by Zipf's law, and their
characters vary as words do: a peer that sorts by characters is not flattered.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CANDIDATES = 100
CALIBRATION = 300


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder with a classification head of one label."""

    family: str
    vocabulary: int
    hidden: int
    layers: int
    inner: int
    heads: int

    def flops(self, lengths: np.ndarray, *, first_row: bool = False) -> float:
        """Floating-point operations of a forward pass over pairs of `lengths` tokens, no padding: linears, attention.

        With `first_row` the last layer counts for what is needed of it: keys and values of all, the rest of one row.
        """
        whole = self.layers - first_row
        linears = 2 * (4 * self.hidden**2 + 2 * self.hidden * self.inner)
        long = lengths.astype(np.float64)
        count = whole * (linears * long + 4 * self.hidden * long**2) + 2 * self.hidden**2 + 2 * self.hidden
        if first_row:
            count += 4 * self.hidden**2 * long + 4 * self.hidden * long + linears - 4 * self.hidden**2
        return float(count.sum())


SHAPES = {
    "xlmr": Shape("xlm-roberta", 250_002, 768, 12, 3072, 12),
    "minilm": Shape("bert", 30_522, 384, 6, 1536, 12),
    "minilm-1": Shape("bert", 30_522, 384, 1, 1536, 12),
}


@dataclass(frozen=True)
class Workload:
    """Lengths in words: (mean, deviation) of queries and documents, documents lognormal where `long`."""

    query: tuple[float, float]
    document: tuple[float, float]
    long: bool

    def lengths(self, which: str, count: int, rng: np.random.Generator) -> np.ndarray:
        """Words of `count` texts, int64; `which` is query or document."""
        mean, deviation = getattr(self, which)
        if self.long and which == "document":
            drawn = rng.lognormal(np.log(mean) - deviation**2 / 2, deviation, count)
        else:
            drawn = rng.normal(mean, deviation, count)
        return np.clip(np.rint(drawn), 3, 512).astype(np.int64)


WORKLOADS = {
    "titles": Workload((10, 3), (12, 4), long=False),
    "passages": Workload((10, 3), (150, 0.6), long=True),
}


def words_of(shape: Shape) -> list[str]:
    """Words that are one token each: BERT's own whole words, or as many made ones as XLM-R's vocabulary holds."""
    if shape.family == "bert":
        return [word for word in _bert_vocabulary() if word.isascii() and word.isalpha()]
    rng = np.random.default_rng(7)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    found: dict[str, None] = {}
    while len(found) < shape.vocabulary - 5:
        for length in np.clip(rng.poisson(5, 50_000) + 2, 2, 14):
            found["".join(letters[(26 * rng.random(length) ** 1.5).astype(int)])] = None
    return list(found)[: shape.vocabulary - 5]


def _bert_vocabulary() -> list[str]:
    from rankwright.toolbox.weights import locate

    return (locate("offline") / "vocab.txt").read_text(encoding="utf-8").splitlines()


def texts(words: list[str], lengths: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Texts of so many words each; a word's rank is log-uniform, which is Zipf's law."""
    ranks = np.exp(rng.random(int(lengths.sum())) * np.log(len(words))).astype(np.int64) - 1
    ends = np.cumsum(lengths)
    chosen = [words[rank] for rank in ranks.tolist()]
    return [" ".join(chosen[end - length : end]) for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def lists(
    shape: Shape, workload: Workload, queries: int, *, each: int = CANDIDATES, seed: int = 0, words: int | None = None
) -> list:
    """[[query, [document, ...]], ...]: queries with `each` documents, none twice, of the first `words` words."""
    rng, known = np.random.default_rng(seed), words_of(shape)[:words]
    asked = texts(known, workload.lengths("query", queries, rng), rng)
    documents = texts(known, workload.lengths("document", queries * each, rng), rng)
    return [[query, documents[place * each : (place + 1) * each]] for place, query in enumerate(asked)]


def model(name: str, folder: Path) -> Path:
    """The folder of a shape's reranker, made when it is not there: random weights (seed 0), one label."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    if (folder / "made").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    shape = SHAPES[name]
    folder.mkdir(parents=True)
    sizes = {"vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "num_hidden_layers": shape.layers}
    sizes |= {"num_attention_heads": shape.heads, "intermediate_size": shape.inner, "num_labels": 1}
    torch.manual_seed(0)
    if shape.family == "bert":
        _bert_tokenizer(folder)
        made = BertForSequenceClassification(BertConfig(max_position_embeddings=512, **sizes))
    else:
        _xlmr_tokenizer(folder, words_of(shape))
        ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        config = XLMRobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, **ids, **sizes)
        made = XLMRobertaForSequenceClassification(config)
    made.save_pretrained(folder, max_shard_size="100GB")
    _calibration(folder, shape)
    (folder / "made").touch()
    return folder


def _bert_tokenizer(folder: Path) -> None:
    """all-MiniLM-L6-v2's own WordPiece, under a class name that transformers 4 and 5 know."""
    from rankwright.toolbox.weights import locate

    source = locate("offline")
    for file in ("vocab.txt", "tokenizer.json"):
        shutil.copyfile(source / file, folder / file)
    kept = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    _name_tokenizer(folder, kept)
    told = json.loads((folder / "tokenizer.json").read_text())
    told["truncation"] = told["padding"] = None  # the encoder's own limits would be applied to pairs
    (folder / "tokenizer.json").write_text(json.dumps(told, ensure_ascii=False))


def _xlmr_tokenizer(folder: Path, words: list[str]) -> None:
    """XLM-R's kind: a Unigram model of 250,002 pieces, `<s> a </s> </s> b </s>`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{word}", -1.0 - rank / len(words)) for rank, word in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    _name_tokenizer(folder, {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512, **names})


def _name_tokenizer(folder: Path, config: dict) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _calibration(folder: Path, shape: Shape) -> None:
    """Pairs of both workloads, a data set that `datasets` reads from disk, for the peer's int8."""
    (folder / "calibration").mkdir()
    rows = []
    for workload in WORKLOADS.values():
        for query, documents in lists(shape, workload, CALIBRATION // 10, each=5, seed=99):
            rows += [{"pair": [query, document]} for document in documents]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "calibration" / "train.jsonl").write_text(lines)


def tokens(folder: Path, made: list) -> np.ndarray:
    """How many tokens each pair of `lists` has, special ones included, cut at 512, in order."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    queries = [query for query, documents in made for _ in documents]
    documents = [document for _, documents in made for document in documents]
    encoded = tokenizer(queries, documents, truncation=True, max_length=512)["input_ids"]
    return np.array([len(row) for row in encoded], dtype=np.int64)
