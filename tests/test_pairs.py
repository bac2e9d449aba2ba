"""Pairs joined from token ids: the same as the tokenizer's own encoding, for real tokenizers of every common kind."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from rankwright.toolbox.engine.pairs import PairEncoder, Tokens, joined, longest_first, stacked

SENTENCES = [
    "How do I sort an array of numbers quickly?",
    "Sorting algorithms: quicksort, mergesort and heapsort compared in 2,048 runs.",
    "The café's naïve façade – über die Straße nach München.",
    "東京は日本の首都です。 这是一个关于矩阵的问题。 Москва столица России",
    "Emojis 🙂🙃👩‍👩‍👧 and signs ™ ½ ﬁ are texts, too; e-mail me@example.org (or not)!",
    "linear_graph.solve(matrix, tolerance=1e-6)  # returns\tvalues\nand nodes",
]
ODD = [
    *("", " ", "\n\t ", "a", "[SEP]", "x [SEP] y [CLS]", "</s>", "<s> a", "[MASK]", "\u200b", "é", "e\u0301", "ＡＢＣ"),
    *("🙂" * 10, "  two  spaces  ", "word " * 12, "東京" * 12, "x" * 40, "a b c d e", "A.B.C."),
]
# A tokenizer that cuts two long texts to few tokens makes every combination of the parts cut off: minutes of work.
VERY_LONG = ["word " * 700, "東京" * 300, "x" * 900, "Sorting 2,048 numbers. " * 150]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def unigram(specials, unknown):
    """The pieces and scores of a Unigram model trained on the sentences."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=specials, unk_token=unknown, show_progress=False, n_sub_iterations=1
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def bert():
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(SENTENCES * 3, vocab_size=400, show_progress=False, special_tokens=SPECIALS)
    return BertTokenizerFast(vocab=trained.get_vocab(), do_lower_case=True)


def xlm_roberta():
    from transformers import XLMRobertaTokenizerFast

    return XLMRobertaTokenizerFast(vocab=unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>"))


def deberta():
    from transformers import DebertaV2TokenizerFast

    return DebertaV2TokenizerFast(vocab=unigram(SPECIALS, "[UNK]"))


def byte_level(pair="[CLS] $A [SEP] $B [SEP]", **options):
    """ModernBERT's kind, unless another template is asked for."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    names = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=names)
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    options = {"model_input_names": ["input_ids", "attention_mask"], **options}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named, **options)


def modernbert():
    return byte_level()


def modernbert_zero_types():
    return byte_level(model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def modernbert_left():
    return byte_level(truncation_side="left", padding_side="left")


def documents_first():
    pair = "[SEP]:1 [CLS]:0 $B:1 $A:0 [SEP]:1 [SEP]:0"
    return byte_level(pair, model_input_names=["input_ids", "token_type_ids"])


def no_template():
    """A tokenizer that puts nothing around its texts: their types come from their sides alone."""
    tokenizer = byte_level(model_input_names=["input_ids", "token_type_ids"])
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


KINDS = [bert, xlm_roberta, modernbert, deberta]
ALSO = [modernbert_zero_types, modernbert_left, documents_first, no_template]


@pytest.fixture(scope="module")
def make():
    """Each kind of tokenizer, trained once."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = kind()
        return made[kind]

    return get


def random_text(rng):
    if rng.random() < 0.15:
        return ODD[rng.integers(len(ODD))]
    pool = " ".join(SENTENCES)
    start = int(rng.integers(len(pool)))
    return pool[start : start + int(min(rng.lognormal(2.8, 0.9), 120))]


def random_pairs(count, seed):
    """Pairs of few texts that recur and many that do not, the same text on both sides among them."""
    rng = np.random.default_rng(seed)
    texts = [random_text(rng) for _ in range(count // 3)]
    return [tuple(texts[place] for place in rng.integers(len(texts), size=2)) for _ in range(count)]


def own(tokenizer, pairs, max_length):
    queries, documents = (list(side) for side in zip(*pairs, strict=True))
    return tokenizer(queries, documents, truncation="longest_first", max_length=max_length)


def rows(tokens, values):
    return [values[start:stop].tolist() for start, stop in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]


def assert_same(tokens, expected):
    assert rows(tokens, tokens.ids) == expected["input_ids"]
    assert tokens.ids.dtype == np.int32
    assert tokens.lengths.tolist() == [len(row) for row in expected["input_ids"]]
    if "token_type_ids" in expected:
        assert rows(tokens, tokens.types) == expected["token_type_ids"]
        assert tokens.types.dtype == np.int32
    else:
        assert tokens.types is None


class Watching:
    """A backend that remembers the texts that it was given."""

    def __init__(self, backend):
        self.backend = backend
        self.texts = []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def encode_batch_fast(self, texts, **options):
        self.texts += texts
        return self.backend.encode_batch_fast(texts, **options)


@pytest.fixture
def watched():
    tokenizer = bert()
    tokenizer._tokenizer = Watching(tokenizer._tokenizer)
    return tokenizer, tokenizer._tokenizer


@pytest.mark.parametrize("max_length", [8, 16, 64, 512])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_thousands_of_pairs_are_joined_as_the_tokenizer_itself_encodes_them(make, kind, max_length):
    encode = PairEncoder(make(kind), max_length)
    assert encode.joins
    pairs = random_pairs(600, seed=max_length)
    pairs += [pair for long in VERY_LONG for pair in [(long, "a"), ("", long)]]
    if max_length == 512:
        pairs += [(first, second) for first in VERY_LONG for second in VERY_LONG]
    expected = own(make(kind), pairs, max_length)
    assert_same(encode(pairs), expected)
    assert max(map(len, expected["input_ids"])) == max_length  # something was cut


@pytest.mark.parametrize("kind", ALSO, ids=lambda kind: kind.__name__)
def test_other_templates_sides_and_types_are_joined_too(make, kind):
    for max_length in (8, 33):
        encode = PairEncoder(make(kind), max_length)
        assert encode.joins
        pairs = random_pairs(100, seed=max_length)
        assert_same(encode(pairs), own(make(kind), pairs, max_length))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_pair_of_odd_texts_is_joined_as_the_tokenizer_does(make, kind):
    pairs = [(first, second) for first in ODD for second in ODD]
    for max_length in (6, 9):
        assert_same(PairEncoder(make(kind), max_length)(pairs), own(make(kind), pairs, max_length))


def test_the_smallest_lengths_do_as_the_tokenizer_does(make):
    pairs = random_pairs(40, seed=1)
    for max_length in (1, 2, 3, 4):
        assert_same(PairEncoder(make(bert), max_length)(pairs), own(make(bert), pairs, max_length))


def prefixed():
    """A tokenizer that encodes a text otherwise when it comes first."""
    from transformers import BertTokenizerFast

    class Prefixed(BertTokenizerFast):
        def __call__(self, text, text_pair=None, **options):
            return super().__call__([f"sort {one}" for one in text], text_pair, **options)

    tokenizer = bert()
    return Prefixed(vocab=tokenizer.get_vocab())


def repeated():
    return byte_level("[CLS] $A [SEP] $B [SEP] $A")


def plain_python():
    from transformers import CanineTokenizer

    return CanineTokenizer(model_max_length=2048)


@pytest.mark.parametrize("kind", [prefixed, repeated, plain_python], ids=lambda kind: kind.__name__)
def test_a_tokenizer_that_cannot_be_joined_encodes_pairs_itself(make, kind):
    encode = PairEncoder(make(kind), 24)
    assert not encode.joins
    pairs = random_pairs(60, seed=2)
    assert_same(encode(pairs), own(make(kind), pairs, 24))
    empty = encode([])
    assert len(empty) == 0
    uncut = [len(row) for row in make(kind)(*(list(side) for side in zip(*pairs, strict=True)))["input_ids"]]
    assert encode.lengths(pairs).tolist() == uncut


@pytest.mark.parametrize("kind", [bert, xlm_roberta], ids=lambda kind: kind.__name__)
def test_no_pairs_give_no_tokens(make, kind):
    tokens = PairEncoder(make(kind), 16)([])
    assert len(tokens) == 0
    assert tokens.starts.tolist() == [0]
    assert len(tokens.ids) == len(tokens.lengths) == 0
    assert (tokens.types is None) == (kind is xlm_roberta)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_lengths_count_the_tokens_uncut(make, kind, monkeypatch):
    monkeypatch.setattr("rankwright.toolbox.engine.pairs._WINDOW", 100)
    pairs = random_pairs(350, seed=3)
    expected = make(kind)(*(list(side) for side in zip(*pairs, strict=True)))["input_ids"]
    lengths = PairEncoder(make(kind), 16).lengths(pairs)
    assert lengths.dtype == np.int64
    assert lengths.tolist() == [len(row) for row in expected]
    assert PairEncoder(make(kind), 16).lengths([]).tolist() == []


def test_each_unique_text_is_tokenised_once(watched, monkeypatch):
    tokenizer, backend = watched
    monkeypatch.setattr("rankwright.toolbox.engine.pairs._CHUNK_TEXTS", 7)
    encode = PairEncoder(tokenizer, 32)
    assert encode.joins
    backend.texts.clear()
    queries, documents = ([f"{side} {number}" for number in range(20)] for side in ("sort", "matrix"))
    pairs = [(query, document) for query in queries for document in [*documents, query]]
    assert_same(encode(pairs), own(tokenizer, pairs, 32))
    assert sorted(backend.texts) == sorted(queries + documents)
    encode(pairs[:50])
    encode.lengths(pairs)
    assert len(backend.texts) == 40


def test_texts_are_kept_within_the_bound_and_those_that_recur_stay(watched):
    tokenizer, backend = watched
    encode = PairEncoder(tokenizer, 32, keep_tokens=2000)
    backend.texts.clear()
    for number in range(200):
        encode([("how to sort", f"document {number}")])
    assert backend.texts.count("how to sort") == 1
    assert encode._kept.size <= 1000
    assert len(encode._kept.young) + len(encode._kept.old) < 40
    encode([("how to sort", "document 0")])
    assert backend.texts.count("document 0") == 2


def test_nothing_is_kept_where_nothing_may_be(watched):
    tokenizer, backend = watched
    encode = PairEncoder(tokenizer, 32, keep_tokens=0)
    backend.texts.clear()
    for _ in range(2):
        assert_same(encode([("a", "b"), ("a", "c")]), own(tokenizer, [("a", "b"), ("a", "c")], 32))
    assert backend.texts == ["a", "b", "c"] * 2


@pytest.mark.parametrize("kind", [bert, prefixed], ids=lambda kind: kind.__name__)
def test_the_tokenizers_truncation_and_padding_are_as_before(kind):
    tokenizer = kind()
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(5, stride=1, strategy="only_second")
    backend.enable_padding(length=9)
    backend.encode_special_tokens = True
    before = backend.truncation, backend.padding
    encode = PairEncoder(tokenizer, 16)
    pairs = random_pairs(30, seed=4)
    tokens, lengths = encode(pairs), encode.lengths(pairs)
    assert (backend.truncation, backend.padding) == before
    assert backend.encode_special_tokens
    assert_same(tokens, own(tokenizer, pairs, 16))
    assert lengths.max() > 16


def test_special_tokens_inside_a_text_are_read_as_the_tokenizer_reads_them():
    tokenizer = bert()
    pairs = [("a [SEP] b", "[CLS]"), ("", "x [MASK]")]
    whole = PairEncoder(tokenizer, 32)(pairs)
    tokenizer.split_special_tokens = True
    split = PairEncoder(tokenizer, 32)(pairs)
    assert_same(split, own(tokenizer, pairs, 32))
    assert split.lengths.tolist() != whole.lengths.tolist()


def test_encoders_of_one_tokenizer_may_be_used_from_several_threads(make):
    pairs = [random_pairs(200, seed=seed) for seed in range(6)]
    expected = [own(make(bert), part, 24 + number) for number, part in enumerate(pairs)]
    found = {}

    def work(number):
        found[number] = PairEncoder(make(bert), 24 + number)(pairs[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(pairs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, encoded in enumerate(expected):
        assert_same(found[number], encoded)


def test_longest_first_takes_from_the_longer_text_token_by_token():
    def one_by_one(first, second, room):
        odd_to_first = first > second
        while first + second > room:
            if first > second or (first == second and odd_to_first is False):
                first -= 1
            else:
                second -= 1
        return first, second

    sizes = np.arange(12)
    first, second = (side.ravel() for side in np.meshgrid(sizes, sizes))
    for room in range(15):
        kept = longest_first(first, second, room)
        assert (kept[0] + kept[1] == np.minimum(first + second, room)).all()
        assert ((kept[0] <= first) & (kept[1] <= second)).all()
        expected = [one_by_one(int(a), int(b), room) for a, b in zip(first, second, strict=True)]
        assert list(zip(kept[0].tolist(), kept[1].tolist(), strict=True)) == expected


def test_take_gives_the_chosen_pairs_in_the_order_asked_for(make):
    for kind in (bert, xlm_roberta):
        tokens = PairEncoder(make(kind), 32)(random_pairs(50, seed=5))
        chosen = np.array([7, 3, 3, 49, 0])
        taken = tokens.take(chosen)
        assert isinstance(taken, Tokens)
        assert len(taken) == 5
        assert rows(taken, taken.ids) == [rows(tokens, tokens.ids)[position] for position in chosen]
        if tokens.types is not None:
            assert rows(taken, taken.types) == [rows(tokens, tokens.types)[position] for position in chosen]
        assert len(tokens.take([])) == 0


def test_parts_joined_are_the_whole():
    def tokens(ids, *lengths):
        return Tokens(np.array(ids, np.int32), None, stacked(np.array(lengths, np.int64)))

    whole = joined([tokens([5, 6, 7], 1, 2), tokens([]), tokens([8], 1)])
    assert (whole.ids.tolist(), whole.lengths.tolist(), whole.types) == ([5, 6, 7, 8], [1, 2, 1], None)
    assert len(joined([])) == 0
