"""The data room: from a source to a Collection with train, dev and test, cleaned, and a report of what was done.

In: the `data:` section and a seed. Out: the Collection and a DataReport. Steps: read, merge copies, drop self
matches, settle leaks between splits, cut the splits that are missing, sample. It does not know how the files of
a source look (`toolbox.formats`), nor what is retrieved or trained afterwards.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rankwright.core import SPLITS, Collection, Qrels, count_pairs, is_titled, relevant, text_id
from rankwright.errors import DataError
from rankwright.sections import DataSection
from rankwright.toolbox import formats
from rankwright.toolbox.formats.source import BOTH_WAYS, COPIES, TWINS, Repair, Source, Splits

_SHOWN = 3


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds: queries, relevant pairs, given negatives (grade 0); and how it came to be."""

    queries: int
    relevant_pairs: int
    given_negatives: int
    without_relevant: int
    """queries left out because nothing is relevant to them"""
    cut_from_train: bool
    sampled_from: int | None
    """queries before `max_queries` took its sample; None where it took none"""


@dataclass(frozen=True)
class Leak:
    """What two splits of the source share, by text: queries, and relevant pairs (`swapped`: the other way round)."""

    splits: tuple[str, str]
    queries: int
    pairs: int
    swapped: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """What the data are, and all that was done to them. `dataclasses.asdict` of it is JSON."""

    source: str
    documents: int
    splits: dict[str, SplitCounts]
    copies_merged: int
    twins_united: int
    labelled_both_ways: int
    self_matches: int
    self_matches_dropped: bool
    leaks: tuple[Leak, ...]
    leaks_dropped: bool
    mirrored_pairs: int
    """relevant pairs taken from train because a split that was cut from it has them the other way round"""
    repairs: tuple[Repair, ...]

    def lines(self) -> list[str]:
        """The report for a terminal, a few short lines."""
        told = [f"{self.source}  {self.documents:,} documents"]
        told += [_split_line(split, counts) for split, counts in self.splits.items()]
        done = {
            "copies of documents merged": self.copies_merged,
            "twin queries united": self.twins_united,
            "texts labelled both relevant and not": self.labelled_both_ways,
            f"documents that are the query itself, {_done(self.self_matches_dropped)}": self.self_matches,
            "pairs taken from train that a split cut from it holds the other way round": self.mirrored_pairs,
        }
        told += [f"{count:,} {what}" for what, count in done.items() if count]
        told += [f"leak: {_leak_line(leak)}, {_done(self.leaks_dropped)}" for leak in self.leaks]
        told += [f"{repair.count:,} {repair.what}{_such_as(repair.examples)}" for repair in self.repairs]
        return told


@dataclass
class _Tally:
    copies: int = 0
    twins: int = 0
    both_ways: int = 0
    self_matches: int = 0
    mirrored: int = 0
    leaks: tuple[Leak, ...] = ()
    cut: set[str] = field(default_factory=set)
    without_relevant: dict[str, int] = field(default_factory=dict)
    sampled_from: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Keys:
    """Ids -> ids made from the text (`core.text_id`), by which texts are compared; of judged documents at least."""

    documents: dict[str, str]
    queries: dict[str, str]

    @classmethod
    def of(cls, collection: Collection, documents: Iterable[str]) -> _Keys:
        own = {document: text_id(collection.documents[document]) for document in documents}
        return cls(own, {query: text_id(text) for query, text in collection.queries.items()})


def data(section: DataSection, seed: int) -> tuple[Collection, DataReport]:
    """Read and clean a collection, and see that it has train, dev and test.

    Raises:
        ConfigError: `section.source` is of no known kind, or two splits have the same name.
        DataError: the source cannot be read, splits leak (with ``leaks: refuse``), or one is empty.
    """
    splits = Splits(section.train, section.dev, section.test)
    source = formats.read(section.source, splits, dedupe=section.dedupe)
    tally = _Tally()
    qrels = _named_train(source.collection.qrels, splits, section.source)
    collection = Collection(source.collection.documents, source.collection.queries, qrels)
    wanted = collection.documents if section.dedupe else _judged(qrels)
    keys = _Keys.of(collection, wanted)
    if section.dedupe:
        collection = _merge_copies(collection, keys, tally)
    qrels = _settle_self_matches(collection, keys, tally, drop=section.self_matches == "drop")
    qrels = _with_relevant(qrels, tally)
    qrels = _settle_leaks(Collection(collection.documents, collection.queries, qrels), keys, section, tally)
    qrels = _cut(qrels, keys, section, seed, tally)
    qrels = _with_relevant(qrels, tally)
    _refuse_empty(qrels, section, tally)
    qrels = _sample(qrels, keys, section, seed, tally)
    collection = _only_judged(collection, {split: qrels[split] for split in SPLITS if split in qrels})
    return collection, _report(collection, section, tally, source)


def _named_train(qrels: Mapping[str, Qrels], splits: Splits, source: str) -> dict[str, Qrels]:
    """A source's only split is training, from which dev and test are cut, unless it is named as another."""
    if len(qrels) == 1 and not set(qrels) & {"train", *splits.named()}:
        return {"train": next(iter(qrels.values()))}
    if "train" not in qrels:
        hint = (
            f"set data.train to one of the source's splits, and leave data.{next(iter(qrels), 'test')} out if need be"
        )
        raise DataError(f"no train split; there is {' and '.join(qrels) or 'nothing'}", where=source, hint=hint)
    return dict(qrels)


def _merge_copies(collection: Collection, keys: _Keys, tally: _Tally) -> Collection:
    """Give copies of a document the first one's id, and twin queries of a split theirs; unite their labels."""
    first: dict[str, str] = {}
    document_of = {document: first.setdefault(keys.documents[document], document) for document in collection.documents}
    documents = {document: collection.documents[document] for document in first.values()}
    tally.copies += len(collection.documents) - len(documents)
    united: dict[str, Qrels] = {}
    for split, qrels in collection.qrels.items():
        united[split] = {}
        twin_of: dict[str, str] = {}
        for query, grades in qrels.items():
            twin = twin_of.setdefault(keys.queries[query], query)
            tally.twins += twin != query
            into = united[split].setdefault(twin, {})
            for document, grade in grades.items():
                one = document_of[document]
                tally.both_ways += one in into and (into[one] > 0) != (grade > 0)
                into[one] = max(grade, into.get(one, 0))
    return Collection(documents, collection.queries, united)


def _settle_self_matches(collection: Collection, keys: _Keys, tally: _Tally, *, drop: bool) -> dict[str, Qrels]:
    """Count, and with `drop` leave out, judgements of a document that is the query itself."""

    def is_own(document: str, query: str) -> bool:
        titled = document == query and is_titled(collection.documents[document], collection.queries[query])
        return titled or keys.documents[document] == keys.queries[query]

    settled: dict[str, Qrels] = {split: {} for split in collection.qrels}
    for split, by_query in collection.qrels.items():
        for query, grades in by_query.items():
            others = {d: grade for d, grade in grades.items() if not is_own(d, query)}
            tally.self_matches += len(grades) - len(others)
            settled[split][query] = others if drop else grades
    return settled


def _with_relevant(qrels: Mapping[str, Qrels], tally: _Tally) -> dict[str, Qrels]:
    """Leave out, and count, the queries to which nothing is relevant: they teach and measure nothing."""
    kept = {split: {query: grades for query, grades in own.items() if relevant(grades)} for split, own in qrels.items()}
    for split, own in qrels.items():
        tally.without_relevant[split] = tally.without_relevant.get(split, 0) + len(own) - len(kept[split])
    return kept


def _settle_leaks(collection: Collection, keys: _Keys, section: DataSection, tally: _Tally) -> dict[str, Qrels]:
    """Find what the source's splits share; refuse, keep, or take it from the split that comes first."""
    found = (_leak(collection, keys, pair) for pair in itertools.combinations(SPLITS, 2))
    tally.leaks = tuple(leak for leak in found if leak.queries or leak.pairs)
    if tally.leaks and section.leaks == "refuse":
        hint = "data.leaks: drop takes it from train (dev gives way to test); data.leaks: report keeps it and counts"
        raise DataError("splits leak: " + "; ".join(map(_leak_line, tally.leaks)), where=section.source, hint=hint)
    qrels = collection.qrels
    if section.leaks == "drop":
        for first, *later in (SPLITS, SPLITS[1:]):
            if first in qrels:
                qrels = {**qrels, first: _without_leaks(qrels, keys, first, later)}
    return qrels


def _leak(collection: Collection, keys: _Keys, splits: tuple[str, str]) -> Leak:
    first, second = (collection.qrels.get(split, {}) for split in splits)
    texts = {keys.queries[query] for query in second}
    shared = {keys.queries[query]: query for query in first if keys.queries[query] in texts}
    pairs = _pairs(second, keys)
    same = swapped = 0
    examples = [f"query {collection.queries[query][:60]!r}" for query in shared.values()][:_SHOWN]
    for (query_key, document_key), (query, document) in _pairs(first, keys).items():
        if (query_key, document_key) in pairs:
            same += 1
        elif (document_key, query_key) in pairs:
            swapped += 1
            if len(examples) < _SHOWN:
                texts_of_it = collection.queries[query][:40], collection.documents[document][:40]
                examples.append(f"pair {texts_of_it[0]!r} and {texts_of_it[1]!r}")
    return Leak(splits, len(shared), same + swapped, swapped, tuple(examples))


def _pairs(qrels: Qrels, keys: _Keys) -> dict[tuple[str, str], tuple[str, str]]:
    """The relevant pairs by their texts, each with the ids of one that has them."""
    return {
        (keys.queries[query], keys.documents[document]): (query, document)
        for query, grades in qrels.items()
        for document in relevant(grades)
    }


def _without_leaks(qrels: Mapping[str, Qrels], keys: _Keys, first: str, later: Iterable[str]) -> Qrels:
    """`first` without the queries that `later` splits hold, and without relevant pairs that they hold swapped."""
    others = [qrels.get(split, {}) for split in later]
    texts = {keys.queries[query] for other in others for query in other}
    own = {query: grades for query, grades in qrels[first].items() if keys.queries[query] not in texts}
    for other in others:
        own, _ = _without_mirrored(own, other, keys)
    return own


def _without_mirrored(own: Qrels, other: Qrels, keys: _Keys) -> tuple[Qrels, int]:
    """`own` without the relevant pairs whose texts are a relevant pair of `other` the other way round; how many."""
    mirrored = {(document, query) for query, document in _pairs(other, keys)}
    kept: Qrels = {}
    for query, grades in own.items():
        key = keys.queries[query]
        kept[query] = {d: g for d, g in grades.items() if not (g > 0 and (key, keys.documents[d]) in mirrored)}
    return kept, sum(map(len, own.values())) - sum(map(len, kept.values()))


def _cut(qrels: Mapping[str, Qrels], keys: _Keys, section: DataSection, seed: int, tally: _Tally) -> dict[str, Qrels]:
    """Cut test, then dev, from train where they are missing.

    A query's own text and the seed decide, so that twins stay together and a query that is added moves no
    other. Pairs that train holds the other way round are taken from it: that leak would be of our own making.
    """
    splits = dict(qrels)
    for split, share in (("test", section.test_share), ("dev", section.dev_share)):
        if split in splits or not share:
            continue
        draws = {query: _draw(split, seed, keys.queries[query]) for query in splits["train"]}
        limit = max(share, min(draws.values(), default=0.0) + 1e-12) if len(set(draws.values())) > 1 else 0.0
        splits[split] = {query: grades for query, grades in splits["train"].items() if draws[query] < limit}
        splits["train"] = {query: grades for query, grades in splits["train"].items() if draws[query] >= limit}
        tally.cut.add(split)
    for first, second in (("train", "test"), ("train", "dev"), ("dev", "test")):
        if second in tally.cut:
            splits[first], count = _without_mirrored(splits[first], splits[second], keys)
            tally.mirrored += count
    return splits


def _sample(
    qrels: Mapping[str, Qrels], keys: _Keys, section: DataSection, seed: int, tally: _Tally
) -> dict[str, Qrels]:
    """At most `max_queries` queries of each split: those with the smallest draws, in their old order."""
    sampled = dict(qrels)
    for split, most in section.max_queries.items():
        if len(own := qrels.get(split, {})) > most:
            tally.sampled_from[split] = len(own)
            draws = {query: (_draw("sample", seed, keys.queries[query]), query) for query in own}
            chosen = set(sorted(own, key=draws.__getitem__)[:most])
            sampled[split] = {query: grades for query, grades in own.items() if query in chosen}
    return sampled


def _draw(purpose: str, seed: int, key: str) -> float:
    """A number in [0, 1) that depends on nothing but the three."""
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _refuse_empty(qrels: Mapping[str, Qrels], section: DataSection, tally: _Tally) -> None:
    for split in SPLITS:
        if qrels.get(split, split == "dev" and not section.dev_share):
            continue
        lost = tally.without_relevant.get(split, 0)
        own = " but itself" if tally.self_matches and section.self_matches == "drop" else ""
        why = f" ({lost} queries have no relevant document{own})" if lost else ""
        cut = f"it is cut from train: give more queries, or another data.{split}_share"
        hint = cut if split in tally.cut else f"data.{split} names the source's split"
        raise DataError(f"the split {split} is empty{why}", where=section.source, hint=hint)


def _judged(qrels: Mapping[str, Qrels]) -> dict[str, None]:
    return {document: None for own in qrels.values() for grades in own.values() for document in grades}


def _only_judged(collection: Collection, qrels: dict[str, Qrels]) -> Collection:
    """All documents, and the queries that a split judges, in the collection's order."""
    judged = {query for own in qrels.values() for query in own}
    queries = {query: text for query, text in collection.queries.items() if query in judged}
    return Collection(collection.documents, queries, qrels)


def _report(collection: Collection, section: DataSection, tally: _Tally, source: Source) -> DataReport:
    told = {repair.what: repair.count for repair in source.repairs}
    return DataReport(
        source=section.source,
        documents=len(collection.documents),
        splits={split: _counts(split, qrels, tally) for split, qrels in collection.qrels.items()},
        copies_merged=tally.copies + told.pop(COPIES, 0),
        twins_united=tally.twins + told.pop(TWINS, 0),
        labelled_both_ways=tally.both_ways + told.pop(BOTH_WAYS, 0),
        self_matches=tally.self_matches,
        self_matches_dropped=section.self_matches == "drop",
        leaks=tally.leaks,
        leaks_dropped=section.leaks == "drop",
        mirrored_pairs=tally.mirrored,
        repairs=tuple(repair for repair in source.repairs if repair.what in told),
    )


def _counts(split: str, qrels: Qrels, tally: _Tally) -> SplitCounts:
    return SplitCounts(
        queries=len(qrels),
        relevant_pairs=count_pairs(qrels),
        given_negatives=sum(map(len, qrels.values())) - count_pairs(qrels),
        without_relevant=tally.without_relevant.get(split, 0),
        cut_from_train=split in tally.cut,
        sampled_from=tally.sampled_from.get(split),
    )


def _split_line(split: str, counts: SplitCounts) -> str:
    line = f"{split}: {counts.queries:,} queries, {counts.relevant_pairs:,} relevant pairs"
    line += f", {counts.given_negatives:,} given negatives" if counts.given_negatives else ""
    line += ", cut from train by query text" if counts.cut_from_train else ""
    line += f", sampled from {counts.sampled_from:,} queries" if counts.sampled_from else ""
    return line + (f"; {counts.without_relevant:,} without a relevant document" if counts.without_relevant else "")


def _leak_line(leak: Leak) -> str:
    swapped = f" ({leak.swapped:,} the other way round)" if leak.swapped else ""
    shared = f"{leak.queries:,} queries and {leak.pairs:,} relevant pairs{swapped}"
    return f"{leak.splits[0]} and {leak.splits[1]} share {shared}{_such_as(leak.examples)}"


def _such_as(examples: tuple[str, ...]) -> str:
    return f" ({'; '.join(examples)})" if examples else ""


def _done(dropped: bool) -> str:
    return "dropped" if dropped else "kept"
