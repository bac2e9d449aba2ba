"""The nouns: Collection, Qrels, Run, Group, and when two texts are the same text.

Plain values, no files and no models. How they look on disk is the formats' business.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

SPLITS = ("train", "dev", "test")

Qrels = dict[str, dict[str, int]]
"""query id -> document id -> grade. Above 0 is relevant; 0 is a given negative; absent is unjudged."""


def canonical(text: str) -> str:
    """The text by which copies are recognised: Unicode NFC, white space folded, ends stripped."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_id(text: str) -> str:
    """An id made from the canonical text: 16 hexadecimal digits (64 bits of BLAKE2b)."""
    return hashlib.blake2b(canonical(text).encode(), digest_size=8).hexdigest()


def is_titled(document: str, query: str) -> bool:
    """Whether a document is a query's text below a title, given that both have one id: as in ArguAna.

    Ids may be equal by chance, as 1 and 1 are: so the text must be the document's end, and most of it.
    """
    whole, end = canonical(document), canonical(query)
    return whole.endswith(end) and 2 * len(end) >= len(whole)


@dataclass(frozen=True)
class Collection:
    """Texts of documents and queries, and the qrels of each split.

    `documents` and `queries` map ids to texts; `qrels` maps a split (train, dev, test) to its Qrels.
    Grade 0 stands for the negatives that the source itself gives for a query.
    """

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, Qrels]

    def split_queries(self, split: str) -> dict[str, str]:
        """Query id -> text, of the queries that `split` judges, in the order of its qrels."""
        return {query_id: self.queries[query_id] for query_id in self.qrels.get(split, {})}

    def split_documents(self, split: str, *, per_split: bool) -> dict[str, str]:
        """The documents that `split` searches: all of them or, `per_split`, the ones that it judges itself.

        Train and dev always search the same documents: dev stands in for test while training.
        """
        if not per_split:
            return self.documents
        splits = ("test",) if split == "test" else ("train", "dev")
        judged = {document for name in splits for grades in self.qrels.get(name, {}).values() for document in grades}
        return {document: text for document, text in self.documents.items() if document in judged}

    def self_matches(self) -> dict[str, set[str]]:
        """Query id -> ids of the documents that are the query itself (queries without any are absent).

        Those have its text, or its id and its text below a title (`is_titled`).
        """
        by_text: dict[str, set[str]] = {}
        wanted = {canonical(text) for text in self.queries.values()}
        for document, text in self.documents.items():
            if (key := canonical(text)) in wanted:
                by_text.setdefault(key, set()).add(document)
        found: dict[str, set[str]] = {}
        for query, text in self.queries.items():
            own = by_text.get(canonical(text), set())
            titled = query in self.documents and is_titled(self.documents[query], text)
            if own or titled:
                found[query] = own | {query} if titled else own
        return found


@dataclass(frozen=True)
class Run:
    """A ranking for each query: ``rankings[query_id] = ((document_id, score), …)``, best first.

    Make one with `Run.from_scores`, the only place where ties are broken (by document id, ascending).
    """

    rankings: dict[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)

    @classmethod
    def from_scores(cls, scores: Mapping[str, Mapping[str, float]], depth: int | None = None) -> Run:
        """Sort each query's ``document id -> score`` by score, then document id; keep the first `depth`."""
        return cls(
            {
                query: tuple(sorted(documents.items(), key=lambda hit: (-hit[1], hit[0]))[:depth])
                for query, documents in scores.items()
            }
        )

    def top(self, depth: int) -> Run:
        """The same run, cut after the first `depth` documents of each query."""
        return Run({query: hits[:depth] for query, hits in self.rankings.items()})

    def scores(self, query_id: str) -> dict[str, float]:
        """Document id -> score of one query, best first; empty for a query that the run lacks."""
        return dict(self.rankings.get(query_id, ()))

    def documents(self, query_id: str) -> list[str]:
        """Document ids of one query, best first; empty for a query that the run lacks."""
        return [document for document, _ in self.rankings.get(query_id, ())]


@dataclass(frozen=True)
class Group:
    """One query and its candidates: the only shape that training sees.

    The lists run parallel, one entry a candidate: `labels` are grades (0 = negative), `teacher` are the
    teacher's scores (NaN where it has none), `origins` says where each came from
    (``positive``, ``given``, ``mined``, ``random``), and `weights` say how much each counts as a negative,
    0 to 1; without them, and for positives, that is 1.
    """

    query_id: str
    query: str
    document_ids: Sequence[str]
    documents: Sequence[str]
    labels: Sequence[int]
    teacher: Sequence[float]
    origins: Sequence[str]
    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "weights", [1.0] * len(self.documents))

    def __len__(self) -> int:
        return len(self.documents)


def relevant(grades: Mapping[str, int]) -> list[str]:
    """The ids with a grade above 0, in their order."""
    return [document for document, grade in grades.items() if grade > 0]


def count_pairs(qrels: Mapping[str, Mapping[str, int]]) -> int:
    """How many (query, document) pairs are judged relevant."""
    return sum(len(relevant(grades)) for grades in qrels.values())


def content_hash(parts: Iterable[str]) -> str:
    """A hash (32 hexadecimal digits) of a sequence of texts, their order and their boundaries."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()
