"""Candidates -> training groups: which documents stand beside a query's positives, and which are too doubtful to.

In: the collection, the retriever's run for the training queries, and a function that gives scores to pairs.
Out: groups with labels, groups without (for label-free distillation), and every candidate that was set aside
with its reason. It does not know which retriever or teacher scores, nor how a group is trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Collection, Group, Qrels, Run, canonical, relevant
from rankwright.errors import DataError
from rankwright.sections import MineSection
from rankwright.toolbox import holes

PairScorer = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]
"""(query id, document id) pairs -> scores, float32 (len(pairs),); NaN where there is none."""


@dataclass(frozen=True)
class Dropped:
    """A candidate that is not used as a negative, and why: for a person to review."""

    query_id: str
    query: str
    document_id: str
    document: str
    rank: int
    reason: str
    score: float | None = None
    positive_score: float | None = None


@dataclass
class Mined:
    """What mining gives: `groups` to train on, `unlabelled` ones, `dropped` candidates, counts and notes to show."""

    groups: list[Group] = field(default_factory=list)
    unlabelled: list[Group] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def lines(self, section: MineSection) -> list[str]:
        """What happened, for the terminal."""
        origins = Counter(origin for group in self.groups for origin in group.origins)
        made = ", ".join(f"{count:,} {origin}" for origin, count in sorted(origins.items()))
        told = [f"{len(self.groups):,} groups, {sum(origins.values()):,} pairs: {made}"]
        if self.unlabelled:
            told.append(f"{len(self.unlabelled):,} groups without labels, {sum(map(len, self.unlabelled)):,} pairs")
        weights = [w for g in self.groups for w, o in zip(g.weights, g.origins, strict=True) if o == "mined"]
        if section.holes == "weigh" and weights:
            told.append(f"a mined negative counts {np.mean(weights):.3f} on average: the labels may have holes")
        told += self.notes
        reasons = Counter(dropped.reason for dropped in self.dropped)
        told += [f"{count:,} candidates set aside: {reason}" for reason, count in reasons.most_common()]
        told += [f"{count:,} {what}" for what, count in sorted(self.counts.items()) if count]
        return told


def mine(
    collection: Collection,
    run: Run,
    section: MineSection,
    *,
    teacher: PairScorer,
    filter_scores: PairScorer | None = None,
    per_split: bool = False,
    seed: int = 0,
) -> Mined:
    """Make the training groups.

    A mined negative comes from the ranks in `window`. It is never a relevant document, a copy of one, the query
    itself, a text that is a dev or test query, or one that the query is relevant to. It is set aside when its score
    s reaches the share `drop_above` of the score p of the query's positives: s >= p - (1 - drop_above) |p|, which is
    NV-Retriever's positive-aware rule (Moreira et al. 2024, arXiv:2407.15831) carried over to negative scores and,
    by the mean, the least or the greatest of them (`filter_against`), to several positives: the least drops most.
    Groups that find too few candidates stay smaller and are counted.

    With ``holes: weigh`` a mined negative counts 1 - p(it is relevant and was never judged), estimated by
    `toolbox.holes` from the scores that the filter reads and the training labels. Candidates judged not relevant
    count in full, and so do all others when too few positives stand in the windows.

    Args:
        collection: texts and qrels; its training split is mined.
        run: the retriever's candidates for the training queries.
        section: how many of what.
        teacher: the retriever's own scores, which the groups keep for `kl` and `margin-mse`.
        filter_scores: whose scores the filter and the holes' estimate read (default: the teacher's).
        per_split: whether random negatives come from the training split's own documents only.
        seed: of all draws; each query draws for itself, so one query's change leaves the others alone.

    Raises:
        DataError: no group came out, or no unlabelled one where some are asked for.
    """
    sources = _Sources(collection, run, section, per_split=per_split, seed=seed)
    mined = Mined()
    queries = drawn(collection.qrels["train"], section, seed)
    windows = _windows(sources, queries, filter_scores or teacher)
    if section.holes == "weigh" and section.negatives:
        windows = _weighed(sources, windows, mined)
    for query in queries:
        if group := _group(sources, query, windows.get(query, _Window()), mined):
            mined.groups.append(group)
    if not mined.groups:
        raise DataError("mining made no group: no training query has both a positive and a negative")
    if section.unlabelled:
        mined.unlabelled = _unlabelled(sources)
        if not mined.unlabelled:
            raise DataError("mining made no unlabelled group: the run has no candidates for any training query")
    mined.groups = _with_teacher(mined.groups, teacher)
    mined.unlabelled = _with_teacher(mined.unlabelled, teacher)
    return mined


def drawn(qrels: Qrels, section: MineSection, seed: int) -> list[str]:
    """The training queries that groups are made of: those with something relevant first, where not all are wanted.

    More of them are the same ones and others.
    """
    if section.queries is None or section.queries >= len(qrels):
        return list(qrels)
    order = sorted(qrels, key=lambda query: (not relevant(qrels[query]), _lot(seed, query, "queries"), query))
    chosen = set(order[: section.queries])
    return [query for query in qrels if query in chosen]


@dataclass(frozen=True)
class _Window:
    """A query's candidates as the filter's scores see them; nothing where no scores are needed.

    `positive` is the positives' score that candidates are compared with, NaN where none is known; `weights` holds
    the candidates that count less than a full negative may.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    positive: float = float("nan")
    weights: Mapping[str, float] = field(default_factory=dict)


class _Canonical(dict[str, str]):
    """Document id -> canonical text, of those that are looked at: few of a large corpus."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        self.documents = documents

    def __missing__(self, document: str) -> str:
        return self.setdefault(document, canonical(self.documents[document]))


class _Sources:
    """What every query's draw looks at."""

    def __init__(self, collection: Collection, run: Run, section: MineSection, *, per_split: bool, seed: int) -> None:
        self.collection = collection
        self.run = run
        self.section = section
        self.seed = seed
        self.texts = _Canonical(collection.documents)
        self.corpus = list(collection.split_documents("train", per_split=per_split))
        self.held_out = {
            canonical(text) for split in ("dev", "test") for text in collection.split_queries(split).values()
        }

        self.finds = self._finds()

    def _finds(self) -> dict[str, set[str]]:
        """Text of a training query -> the texts of its relevant documents: for tasks where both are of one kind."""
        finds: dict[str, set[str]] = {}
        for query, grades in self.collection.qrels["train"].items():
            found = finds.setdefault(canonical(self.collection.queries[query]), set())
            found.update(self.texts[document] for document in relevant(grades))
        return finds

    def lot(self, query: str, purpose: str) -> int:
        return _lot(self.seed, query, purpose)

    def rng(self, query: str, purpose: str) -> np.random.Generator:
        return np.random.default_rng(self.lot(query, purpose))

    def window(self, query: str) -> list[tuple[int, str]]:
        """(rank, document id) within the window."""
        first, last = self.section.window
        return list(enumerate(self.run.documents(query)[first - 1 : last], start=first))

    def barred(self, query: str, document: str) -> str | None:
        """Why a document cannot stand beside a query, whatever the labels say, or None."""
        text = self.texts[document]
        if text == canonical(self.collection.queries[query]):
            return "the query itself"
        return "the text of a dev or test query" if text in self.held_out else None

    def reason(self, query: str, document: str, positives: Mapping[str, str]) -> str | None:
        """Why a document cannot be a negative whatever its score, or None. `positives`: canonical text -> id."""
        text = self.texts[document]
        if text in positives:
            return "a copy of a relevant document"
        if canonical(self.collection.queries[query]) in self.finds.get(text, ()):
            return "relevant the other way round"
        return self.barred(query, document)


def _lot(seed: int, query: str, purpose: str) -> int:
    """A number drawn for this query and purpose alone."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{query}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _windows(sources: _Sources, queries: Sequence[str], scores: PairScorer) -> dict[str, _Window]:
    """Query id -> its window, scored; empty when neither the filter nor the holes need scores."""
    section = sources.section
    if not section.negatives or (section.drop_above is None and section.holes == "ignore"):
        return {}
    pairs, spans = [], []
    for query in queries:
        positives = relevant(sources.collection.qrels["train"][query])
        candidates = [document for _, document in sources.window(query)]
        spans.append((query, positives, candidates))
        pairs += [(query, document) for document in (*positives, *candidates)]
    flat, start = scores(pairs), 0
    found: dict[str, _Window] = {}
    for query, positives, candidates in spans:
        middle, end = start + len(positives), start + len(positives) + len(candidates)
        positive = _compared(flat[start:middle], section.filter_against)
        found[query] = _Window(dict(zip(candidates, flat[middle:end].tolist(), strict=True)), positive)
        start = end
    return found


def _compared(scores: NDArray[np.float32], against: str) -> float:
    """The positives' score that candidates are compared with; NaN when none is known."""
    known = scores[~np.isnan(scores)].astype(np.float64)
    if not len(known):
        return float("nan")
    if against == "mean":
        return float(known.mean())
    return float(known.min() if against == "min" else known.max())


def _weighed(sources: _Sources, windows: Mapping[str, _Window], mined: Mined) -> dict[str, _Window]:
    """The windows with the weights of their unjudged candidates, estimated over all of them together."""
    places, parts = [], []
    labelled: list[bool] = []
    for query, window in windows.items():
        judged = sources.collection.qrels["train"][query]
        texts = {sources.texts[document]: document for document in relevant(judged)}
        if not texts:
            continue
        scored = {d: s for d, s in window.scores.items() if np.isfinite(s) and not sources.barred(query, d)}
        known = {document for document in scored if sources.reason(query, document, texts)}
        for document, value, positive in holes.telling(scored, judged, known):
            places.append((query, document))
            parts.append(value)
            labelled.append(positive)
    weights = holes.weights(np.array(parts, dtype=np.float64), np.array(labelled, dtype=np.bool_))
    if sum(labelled) < holes.ENOUGH:
        told = f"holes not weighed: {sum(labelled)} labelled positives stand in the windows"
        mined.notes.append(f"{told}, {holes.ENOUGH} are needed")
    found: dict[str, dict[str, float]] = {query: {} for query in windows}
    for (query, document), weight in zip(places, weights.tolist(), strict=True):
        found[query][document] = weight
    return {query: replace(window, weights=found[query]) for query, window in windows.items()}


def _group(sources: _Sources, query: str, window: _Window, mined: Mined) -> Group | None:
    grades = sources.collection.qrels["train"][query]
    section = sources.section
    everything = relevant(grades)
    if not everything:
        mined.counts["queries left out: nothing is relevant to them"] += 1
        return None
    positives = _sample(sources.rng(query, "positives"), everything, section.positives)
    texts = {sources.texts[document]: document for document in everything}
    kept = _negatives(sources, query, texts, window, mined)
    chosen = [(document, "mined") for document in _picked(sources, query, kept)]
    taken = {*positives, *(document for document, _ in chosen)}
    given = [d for d, grade in grades.items() if grade <= 0 and d not in taken and not sources.reason(query, d, texts)]
    chosen += [(document, "given") for document in _sample(sources.rng(query, "given"), given, section.given)]
    taken |= {document for document, _ in chosen}
    refused = partial(sources.reason, query, positives=texts)
    chosen += [(document, "random") for document in _random(sources, query, taken, refused)]
    if not chosen:
        mined.counts["queries left out: no negative was found"] += 1
        return None
    origins = ["positive"] * len(positives) + [origin for _, origin in chosen]
    for origin, wanted in (("mined", section.negatives), ("given", section.given), ("random", section.random)):
        if origins.count(origin) < wanted:
            mined.counts[f"groups found fewer {origin} negatives than asked"] += 1
    documents = [*positives, *(document for document, _ in chosen)]
    return Group(
        query_id=query,
        query=sources.collection.queries[query],
        document_ids=documents,
        documents=[sources.collection.documents[document] for document in documents],
        labels=[grades[document] for document in positives] + [0] * len(chosen),
        teacher=[float("nan")] * len(documents),
        origins=origins,
        weights=[
            window.weights.get(document, 1.0) if origin == "mined" else 1.0
            for document, origin in zip(documents, origins, strict=True)
        ],
    )


def _negatives(sources: _Sources, query: str, texts: Mapping[str, str], window: _Window, mined: Mined) -> list[str]:
    """The candidates in the window that may be negatives; the others go to `mined.dropped` with their reason."""
    if not sources.section.negatives:
        return []
    grades = sources.collection.qrels["train"][query]
    share, positive = sources.section.drop_above, window.positive
    limit = float("nan") if share is None else positive - (1 - share) * abs(positive)
    if share is not None and np.isnan(positive):
        mined.counts["queries not filtered: no positive has a score"] += 1
    whose = {"mean": "the positives", "min": "the lowest positive", "max": "the highest positive"}
    too_high = f"scores at least {share or 0:g} of {whose[sources.section.filter_against]}"
    kept = []
    for rank, document in sources.window(query):
        if grades.get(document, 0) > 0:
            continue
        score = window.scores.get(document)
        reason = sources.reason(query, document, texts)
        if reason is None and score is not None and score >= limit:
            reason = too_high
        if reason is None:
            kept.append(document)
            continue
        text = sources.collection.documents[document]
        scored = (_number(score), _number(positive))
        mined.dropped.append(Dropped(query, sources.collection.queries[query], document, text, rank, reason, *scored))
    return kept


def _picked(sources: _Sources, query: str, kept: Sequence[str]) -> list[str]:
    """As many of the candidates that are kept as are wanted: the first, or any."""
    wanted = sources.section.negatives
    if sources.section.draw == "top":
        return list(kept[:wanted])
    return _sample(sources.rng(query, "mined"), kept, wanted)


def _number(score: float | None) -> float | None:
    """None for a score that is not a number: JSON has no NaN."""
    return None if score is None or np.isnan(score) else score


def _random(sources: _Sources, query: str, taken: set[str], refused: Callable[[str], str | None]) -> list[str]:
    """Seeded draws from the whole corpus, passing over what is taken, and what is `refused` with a reason."""
    rng, wanted = sources.rng(query, "random"), sources.section.random
    size = len(sources.corpus)
    # A permutation finds all there is in a tiny corpus; in any other, draws with replacement are as good and cheap.
    places = rng.permutation(size) if size < 1000 else rng.integers(size, size=50 + 10 * wanted)
    drawn: list[str] = []
    for place in places:
        if len(drawn) == wanted:
            break
        document = sources.corpus[place]
        if document not in taken and not refused(document):
            drawn.append(document)
            taken.add(document)
    return drawn


def _unlabelled(sources: _Sources) -> list[Group]:
    """Groups made without a look at labels: half from the first ten ranks, the rest from the window, some random."""
    queries = sources.collection.qrels["train"]
    chosen = sorted(queries, key=lambda query: sources.lot(query, "unlabelled"))[: sources.section.unlabelled]
    groups = []
    for query in chosen:
        ranked = [(rank, d) for rank, d in enumerate(sources.run.documents(query), 1) if not sources.barred(query, d)]
        width = 1 + sources.section.negatives
        head = _sample(sources.rng(query, "head"), [d for rank, d in ranked if rank <= 10], (width + 1) // 2)
        tail = [d for rank, d in ranked if rank <= max(sources.section.window[1], 20) and d not in head]
        mined = [*head, *_sample(sources.rng(query, "tail"), tail, width - len(head))]
        documents = [*mined, *_random(sources, query, set(mined), partial(sources.barred, query))]
        if len(documents) < 2:
            continue
        groups.append(
            Group(
                query_id=query,
                query=sources.collection.queries[query],
                document_ids=documents,
                documents=[sources.collection.documents[document] for document in documents],
                labels=[0] * len(documents),
                teacher=[float("nan")] * len(documents),
                origins=["mined"] * len(mined) + ["random"] * (len(documents) - len(mined)),
            )
        )
    return groups


def _with_teacher(groups: Sequence[Group], teacher: PairScorer) -> list[Group]:
    """The groups with the teacher's score of every pair."""
    scores = teacher([(group.query_id, document) for group in groups for document in group.document_ids])
    done, start = [], 0
    for group in groups:
        part = scores[start : start + len(group)].tolist()
        done.append(Group(**{**group.__dict__, "teacher": part}))
        start += len(group)
    return done


def _sample(rng: np.random.Generator, documents: Sequence[str], count: int | None) -> list[str]:
    """`count` of them in their own order, or all when there are no more."""
    if count is None or count >= len(documents):
        return list(documents)
    return [documents[place] for place in sorted(rng.choice(len(documents), size=count, replace=False))]
