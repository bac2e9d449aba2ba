"""Which share of texts a tokenizer cannot read: pieces that it lacks, words that it spells; and who says so."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rankwright.core import Collection, Run
from rankwright.rooms.diagnose import Case
from rankwright.rooms.diagnose.training import illegible
from rankwright.toolbox.embed import Encoder
from rankwright.toolbox.legible import ILLEGIBLE, complaint, unread

CHINESE = "政府宣布改革高等教育"
SPELLED = "красный квокка вомбат"


@pytest.fixture(scope="module")
def tokenizer():
    """English words, and Latin and Cyrillic letters and digits beside them."""
    letters = [chr(code) for span in ("az", "09", "ая") for code in range(ord(span[0]), ord(span[1]) + 1)]
    vocabulary = ["[UNK]", "red", "apple", "green", "pear", "blue", "old", *letters, *("##" + one for one in letters)]
    pieces = Tokenizer(models.WordPiece({word: place for place, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("red apple", 0.0),
        (CHINESE, 1.0),  # no token for any of it
        (SPELLED, 1.0),
        ("red квокка", 6 / 9),
        ("old кот", 0.0),  # three letters are too few to tell
        ("quokka b07xj8c8f5", 0.0),  # rare words and names of articles, in letters that are read
        ("2024 1234567", 0.0),  # numbers are often spelled, and no words
        ("", 0.0),
        ("!?", 0.0),
    ],
)
def test_what_has_no_token_and_what_is_spelled_is_not_read(tokenizer, text, share):
    assert unread(tokenizer, [text]) == pytest.approx(share)


def test_texts_count_by_their_letters_and_none_is_nothing(tokenizer):
    assert unread(tokenizer, ["red apple", CHINESE]) == pytest.approx(10 / 18)
    assert unread(tokenizer, []) == 0.0


def test_of_many_and_long_texts_a_sample_is_read(tokenizer):
    assert unread(tokenizer, ["red " * 5000] * 399) == 0.0
    assert unread(tokenizer, ["red " * 200 + CHINESE]) == 0.0  # it stands behind what is looked at


def test_one_character_that_is_missing_costs_itself_alone_where_words_are_whole_sentences():
    # As XLM-R's tokenizer sees Chinese: no spaces, so that a sentence is one word of many pieces.
    pieces = ["▁政府", "宣布", "改革", "高等", "教育"]
    vocabulary = [("<unk>", 0.0), ("▁", -9.0), *((piece, -1.0) for piece in pieces)]
    unigram = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")
    assert unread(wrapped, [CHINESE]) == 0.0
    assert unread(wrapped, [CHINESE + "龘"]) == pytest.approx(1 / 11)


def test_ideographs_that_are_pieces_of_their_own_are_read_and_those_in_bytes_are_not():
    from tokenizers import decoders

    vocabulary = [("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in CHINESE)]
    unigram = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")
    assert unread(wrapped, [CHINESE, "政府 宣布改革"]) == 0.0
    alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    in_bytes = Tokenizer(models.BPE(alphabet, []))
    in_bytes.pre_tokenizer, in_bytes.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    assert unread(PreTrainedTokenizerFast(tokenizer_object=in_bytes), [CHINESE]) == 1.0


def test_a_tokenizer_that_does_not_tell_where_pieces_come_from_is_let_be():
    class Slow:
        is_fast = False

    assert unread(Slow(), [CHINESE]) == 0.0


def test_the_truncation_of_a_tokenizer_is_left_as_it_is(tokenizer):
    tokenizer("red green blue apple", truncation=True, max_length=4)
    before = tokenizer.backend_tokenizer.truncation
    unread(tokenizer, ["red green blue apple"])
    assert tokenizer.backend_tokenizer.truncation == before
    tokenizer.backend_tokenizer.no_truncation()


def test_the_worst_side_is_complained_of_and_nothing_where_all_are_read(tokenizer):
    told = complaint("tiny", tokenizer, ["red apple"], [CHINESE])
    assert "tiny" in told
    assert "100%" in told
    assert complaint("tiny", tokenizer, ["red apple"], ["green pear"]) == ""


def of_texts(query, document):
    collection = Collection({"d": document}, {"q": query}, {"test": {"q": {"d": 1}}})
    return {"collection": collection, "qrels": collection.qrels["test"], "depth": 10}


def found(tokenizer, query, document, **changes):
    run = Run.from_scores({"q": {"d": 1.0}})
    values = {"unread": lambda texts: unread(tokenizer, texts), **of_texts(query, document), **changes}
    return illegible(Case(retrieved=run, reranked=run, **values))


def test_h16_fires_where_queries_or_candidates_cannot_be_read(tokenizer):
    finding = found(tokenizer, "red apple", CHINESE)
    assert finding.fires
    assert [number.value for number in finding.numbers] == [0.0, 1.0]
    assert all(number.bad == (number.value > ILLEGIBLE) for number in finding.numbers)
    assert "base" in finding.remedy
    assert found(tokenizer, CHINESE, "red apple").fires


def test_h16_is_quiet_on_texts_that_are_read_and_says_what_it_lacks(tokenizer):
    assert not found(tokenizer, "red apple", "green pear").fires
    assert found(tokenizer, "red", "green", unread=None).lacks == "a tokenizer"
    assert found(tokenizer, "red", "green", collection=Collection({}, {}, {})).lacks


def test_an_encoder_says_once_that_it_cannot_read(tiny_encoder, capsys):
    encoder = Encoder(str(tiny_encoder))
    encoder.encode([CHINESE])
    encoder.encode([CHINESE + "革"])
    said = capsys.readouterr()
    assert (said.out + said.err).count("cannot read") == 1
    Encoder(str(tiny_encoder)).encode(["red apple"])
    assert "cannot read" not in capsys.readouterr().err
