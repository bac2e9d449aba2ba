"""BM25, against its formula written out by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from rankwright.toolbox.bm25 import Bm25, tokenize

K1, B = 0.9, 0.4


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(3)
    words = [f"w{number}" for number in range(60)]
    odds = 1 / np.arange(1, 61)
    odds /= odds.sum()

    def text(longest):
        return " ".join(rng.choice(words, size=rng.integers(1, longest), p=odds))

    documents = {f"d{number}": text(25) for number in range(200)}
    documents |= {"copy": documents["d7"], "empty": "", "dots": "...", "zz": "日本語の検索 w3"}
    return documents, {f"q{number}": text(6) for number in range(40)}


def by_hand(documents, query, k1=K1, b=B):
    terms = {document: Counter(tokenize(text)) for document, text in documents.items()}
    lengths = {document: sum(counts.values()) for document, counts in terms.items()}
    average = sum(lengths.values()) / len(documents)
    scores = dict.fromkeys(documents, 0.0)
    for term in tokenize(query):
        having = [document for document, counts in terms.items() if counts[term]]
        idf = math.log(1 + (len(documents) - len(having) + 0.5) / (len(having) + 0.5))
        for document in having:
            tf = terms[document][term]
            scores[document] += idf * tf / (tf + k1 * (1 - b + b * lengths[document] / average))
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.0, 0.0), (1.2, 1.0)])
def test_scores_are_those_of_the_formula(corpus, k1, b):
    documents, queries = corpus
    index = Bm25(documents, k1, b)
    for text in queries.values():
        expected = by_hand(documents, text, k1, b)
        np.testing.assert_allclose(index.scores(text, list(documents)), list(expected.values()), rtol=1e-5, atol=1e-6)


def test_search_is_the_top_of_all_scores_with_ties_by_id(corpus):
    documents, queries = corpus
    index = Bm25(documents, K1, B)
    found = index.search(queries, 10)
    assert list(found) == list(queries)
    for query, text in queries.items():
        scores = dict(zip(documents, index.scores(text, list(documents)).tolist(), strict=True))
        expected = sorted(((-score, document) for document, score in scores.items() if score > 0))[:10]
        assert [(-score, document) for document, score in found[query].items()] == expected


def test_copies_at_the_edge_of_the_depth_stand_by_id():
    documents = dict.fromkeys("dbca", "red apple") | {"best": "red red apple"}
    assert list(Bm25(documents).search({"q": "red"}, 3)["q"]) == ["best", "a", "b"]


def test_only_documents_that_share_a_term_are_found(corpus):
    documents, _ = corpus
    found = Bm25(documents).search({"one": "検索", "none": "quetzal", "nothing": " ?! "}, 100)
    assert list(found["one"]) == ["zz"]
    assert found["none"] == found["nothing"] == {}


def test_a_term_that_the_query_repeats_counts_twice():
    index = Bm25({"a": "red", "b": "blue"})
    once, twice = index.scores("red", ["a"]), index.scores("red red", ["a"])
    assert twice == pytest.approx(2 * once)


def test_a_document_outside_the_index_scores_nan():
    scores = Bm25({"a": "red", "b": "blue"}).scores("red", ["b", "stranger", "a"])
    assert scores.dtype == np.float32
    assert scores[0] == 0
    assert np.isnan(scores[1])
    assert scores[2] > 0


@pytest.mark.parametrize("documents", [{}, {"a": "", "b": "…"}])
def test_a_corpus_without_words_finds_nothing(documents):
    index = Bm25(documents)
    assert index.search({"q": "red"}, 5) == {"q": {}}
    assert index.scores("red", list(documents)).tolist() == [0.0] * len(documents)


def test_the_order_of_the_documents_does_not_matter(corpus):
    documents, queries = corpus
    turned = dict(reversed(documents.items()))
    assert Bm25(documents).search(queries, 20) == Bm25(turned).search(queries, 20)


def test_bm25s_shows_no_bars_of_its_own(corpus, capfd):
    documents, queries = corpus
    Bm25(documents).search(queries, 5)
    output = capfd.readouterr()
    assert output.out == output.err == ""


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The GPU's 3-way STRASSE, Straße!", ["the", "gpu", "s", "3", "way", "strasse", "strasse"]),
        ("snake_case x2", ["snake_case", "x2"]),
        ("ﬁne ＧＰＵ", ["fine", "gpu"]),
        ("Cafe\u0301 café", ["café", "café"]),
        ("日本語", ["日", "本", "語", "日本", "本語"]),
        ("猫", ["猫"]),
        ("GPUで検索。速い", ["gpu", "で", "検", "索", "で検", "検索", "速", "い", "速い"]),
        ("ジョン・スミス", ["ジ", "ョ", "ン", "ジョ", "ョン", "ス", "ミ", "ス", "スミ", "ミス"]),
        ("ดี ok", ["ด", "ี", "ดี", "ok"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어 검색", ["한국어", "검색"]),
        ("", []),
    ],
)
def test_words_of_many_scripts(text, tokens):
    assert tokenize(text) == tokens


def test_a_word_inside_an_unspaced_sentence_is_found():
    documents = {"thai": "ฉันชอบแมวมาก", "japanese": "私は機械学習を研究する", "chinese": "我们研究信息检索系统"}
    found = Bm25(documents).search({"a": "แมว", "b": "機械学習", "c": "检索"}, 1)
    assert [list(hits) for hits in found.values()] == [["thai"], ["japanese"], ["chinese"]]
