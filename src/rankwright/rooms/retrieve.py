"""Find candidates: a collection and named retrievers -> a run of each retriever for each split.

Knows how each kind of retriever searches, and in which order fusions follow what they fuse. Does not know the
run folder, nor what the candidates are for.
"""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import SPLITS, Collection, Run
from rankwright.errors import ConfigError, DataError, problems_error
from rankwright.sections import Bm25Retriever, DenseRetriever, FuseRetriever, ImportRetriever, Retriever
from rankwright.toolbox import fuse, prior
from rankwright.toolbox.progress import bar, say
from rankwright.toolbox.tuned import Chosen, Members, PairScorer, Tuned, choose_weights

if TYPE_CHECKING:
    from rankwright.toolbox.bm25 import Bm25
    from rankwright.toolbox.embed import Encoder

Scores = NDArray[np.float32]
Positions = NDArray[np.int64]
SplitRuns = dict[str, Run]

_MARGIN = 16  # documents searched beyond the depth, for FAISS's rounding
_BLOCK = 1 << 22  # numbers held at once while searching: about 16 MB
_ROWS = 512  # and rows: enough for a matrix product's pace, few enough for the bar to move


@dataclass(frozen=True)
class RetrieveContext:
    """What retrieving needs beside its section: where embeddings are kept, the device, and the rules of the data.

    `per_split` and `drop_self` are the data section's ``corpus: per_split`` and ``self_matches: drop``.
    """

    cache: Path | None = None
    device: str = "auto"
    per_split: bool = False
    drop_self: bool = True
    splits: tuple[str, ...] = SPLITS


@dataclass(frozen=True)
class Pool:
    """Splits that search the same documents: those, in the order of their ids, and all the splits' queries.

    `own` holds the documents that a query may not find: the ones whose text is its own.
    """

    splits: tuple[str, ...]
    documents: dict[str, str]
    queries: dict[str, str]
    own: dict[str, set[str]]

    @property
    def extra(self) -> int:
        """How much deeper than the depth to search, so that dropping a query's own documents leaves enough."""
        return max((len(self.own.get(query, ())) for query in self.queries), default=0)


def retrieve(
    collection: Collection,
    section: Mapping[str, Retriever],
    context: RetrieveContext,
    *,
    on_tuned: Callable[[str, Tuned, Chosen], None] = lambda name, tuned, chosen: None,
) -> dict[str, SplitRuns]:
    """Retriever name -> split -> run, at most `depth` documents a query. `on_tuned` hears of each tuned fusion.

    Scores are float32, save those of fusions; ties stand in the order of document ids. A query for which nothing is
    found is absent from its run, as it is from a TREC file.

    Raises:
        ConfigError: a fusion of an unknown retriever, or of itself.
        ModelError: an encoder cannot be loaded.
        DataError: an imported run names documents that the collection lacks, or there is no dev for a `tuned` fusion.
    """
    order = _in_order(section)
    _refuse_without_dev(section, _present(collection, context))
    pools = _pools(collection, context)
    runs: dict[str, SplitRuns] = {}
    for name in order:
        retriever = section[name]
        if isinstance(retriever, FuseRetriever) and retriever.method == "tuned":
            tuned, chosen = _tuned(collection, retriever, section, context, runs)
            on_tuned(name, tuned, chosen)
            runs[name] = {split: tuned.run(split, retriever.depth) for split in runs[retriever.of[0]]}
        elif isinstance(retriever, FuseRetriever):
            runs[name] = _fuse(retriever, runs)
        elif isinstance(retriever, ImportRetriever):
            runs[name] = {split: run for pool in pools for split, run in _import(name, retriever, collection, pool)}
        else:
            runs[name] = {}
            for pool in pools:
                found = _search(name, retriever, pool, context)
                runs[name] |= _by_split(found, collection, pool, retriever.depth)
    return {name: {split: runs[name][split] for split in _present(collection, context)} for name in section}


def pair_scorer(
    collection: Collection,
    name: str,
    section: Mapping[str, Retriever],
    context: RetrieveContext,
    runs: Mapping[str, Mapping[str, Run]] | None = None,
) -> PairScorer:
    """A function that gives retriever `name`'s own score of (query id, document id) pairs: float32 (pairs,).

    The scores are those of its run. `dense` and `bm25` score any pair of the collection (but a document outside
    a query's own split's corpus is NaN to `bm25`, whose statistics do not have it), and so does a fusion that is
    `tuned`; other fusions and `import` read `runs` (retriever name -> split -> run) and give NaN where theirs lack
    the pair. Give a cache when you call it more than once: without one, `dense` encodes the pairs' texts at every call.
    """
    retriever = section[name]
    if isinstance(retriever, DenseRetriever):
        return _dense_scorer(collection, retriever, context)
    if isinstance(retriever, Bm25Retriever):
        return _bm25_scorer(collection, retriever, context)
    if runs is None:
        raise ValueError(f"the scores of {name!r} ({retriever.kind}) are in its runs: give them")
    if isinstance(retriever, FuseRetriever) and retriever.method == "tuned":
        _refuse_without_dev({name: retriever}, _present(collection, context))
        return _tuned(collection, retriever, section, context, runs)[0].score
    return _run_scorer(list(runs[name].values()))


def flat_search(queries: Scores, documents: Scores, depth: int, what: str = "search") -> tuple[Scores, Positions]:
    """The `depth` documents with the highest inner product with each query: scores and positions (queries, depth).

    Best first, equal scores by position; `depth` is at most the number of documents. Exact: FAISS finds a few
    more candidates than asked for, whose scores are then computed pair by pair, so that equal vectors get equal
    scores wherever they lie; where the edge is still within FAISS's rounding, it looks deeper.
    """
    import faiss

    depth = min(depth, len(documents))
    scores = np.empty((len(queries), depth), dtype=np.float32)
    positions = np.empty((len(queries), depth), dtype=np.int64)
    if not depth:
        return scores, positions
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents)
    with bar(what, len(queries), "queries") as advance:
        for block in _blocks(len(queries), depth + _MARGIN):
            _search_block(index, queries[block], documents, (scores[block], positions[block]))
            advance(block.stop - block.start)
    return scores, positions


def pair_products(left: Scores, right: Scores, rows: Positions, columns: Positions) -> Scores:
    """The inner products of ``left[rows[i]]`` and ``right[columns[i]]``: float32 (pairs,), summed in float64.

    So each depends on its two vectors alone, where a matrix product's last bits also depend on where they lie in it.
    """
    products = np.empty(len(rows), dtype=np.float32)
    for block in _blocks(len(rows), left.shape[1]):
        one, other = left[rows[block]].astype(np.float64), right[columns[block]].astype(np.float64)
        products[block] = np.einsum("nd,nd->n", one, other)
    return products


def _search_block(index: Any, queries: Scores, documents: Scores, out: tuple[Scores, Positions]) -> None:
    """Fill `out` (scores and positions) for these queries, deeper each time for those whose edge is in doubt."""
    scores, positions = out
    depth, count = scores.shape[1], len(documents)
    todo, wide = np.arange(len(queries)), depth + _MARGIN
    while len(todo):
        wide = min(wide, count)
        doubtful = []
        for block in _blocks(len(todo), wide):
            rough, found = index.search(np.ascontiguousarray(queries[todo[block]]), wide)
            for query, last, candidates in zip(todo[block], rough, found, strict=True):
                exact = pair_products(queries, documents, np.full(wide, query), candidates)
                best = np.lexsort((candidates, -exact))[:depth]
                scores[query], positions[query] = exact[best], candidates[best]
                slack = 1e-5 * max(float(np.abs(last).max()), 1e-30)
                if wide < count and last[-1] >= scores[query, -1] - slack:
                    doubtful.append(query)
        todo, wide = np.array(doubtful, dtype=np.int64), wide * 4


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows that are `width` wide, of constant memory."""
    rows = max(1, min(_ROWS, _BLOCK // width))
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def _in_order(section: Mapping[str, Retriever]) -> list[str]:
    """The names, each after those that it fuses."""
    needs = {name: list(one.of) if isinstance(one, FuseRetriever) else [] for name, one in section.items()}
    for name, others in needs.items():
        for other in others:
            if other not in section:
                close = difflib.get_close_matches(other, section, n=1, cutoff=0.55)
                guess = f"did you mean {close[0]}?" if close else f"the retrievers are {', '.join(section)}"
                raise ConfigError(f"there is no retriever {other!r}", where=f"retrieve.{name}.of", hint=guess)
    try:
        return list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"retrievers that fuse one another: {circle}", where="retrieve") from None


def _present(collection: Collection, context: RetrieveContext) -> list[str]:
    return [split for split in context.splits if split in collection.qrels]


def _pools(collection: Collection, context: RetrieveContext) -> list[Pool]:
    """One pool for all splits or, with a corpus for each split, one for train and dev and one for test."""
    present = _present(collection, context)
    together = [("train", "dev"), ("test",)] if context.per_split else [SPLITS]
    shares = [tuple(split for split in share if split in present) for share in together]
    own = collection.self_matches() if context.drop_self else {}
    return [
        Pool(
            splits=splits,
            documents=dict(sorted(collection.split_documents(splits[0], per_split=context.per_split).items())),
            queries={query: text for split in splits for query, text in collection.split_queries(split).items()},
            own=own,
        )
        for splits in shares
        if splits
    ]


def _by_split(found: Mapping[str, Mapping[str, float]], collection: Collection, pool: Pool, depth: int) -> SplitRuns:
    """What was found for the pool's queries, without the queries' own documents, as a run of each split."""
    kept = {}
    for query, scores in found.items():
        own = pool.own.get(query, ())
        if left := {document: score for document, score in scores.items() if document not in own}:
            kept[query] = left
    run = Run.from_scores(kept, depth)
    return {
        split: Run({query: run.rankings[query] for query in collection.qrels[split] if query in run.rankings})
        for split in pool.splits
    }


def _search(
    name: str, retriever: DenseRetriever | Bm25Retriever, pool: Pool, context: RetrieveContext
) -> dict[str, dict[str, float]]:
    """Query id -> document id -> score, deep enough for the queries' own documents to be dropped."""
    if not pool.queries or not pool.documents:
        return {}
    depth = retriever.depth + pool.extra
    if isinstance(retriever, Bm25Retriever):
        return _bm25_index(retriever, pool).search(pool.queries, depth, f"{name}: search")
    encoder = _encoder(retriever, context)
    documents = _encode_documents(encoder, retriever, list(pool.documents.values()), f"{name}: documents")
    queries = _encode_queries(encoder, retriever, list(pool.queries.values()), f"{name}: queries")
    scores, positions = flat_search(queries, documents, depth, f"{name}: search")
    ids = list(pool.documents)
    return {
        query: {ids[place]: float(score) for place, score in zip(places, row, strict=True)}
        for query, places, row in zip(pool.queries, positions, scores, strict=True)
    }


def _fuse(retriever: FuseRetriever, runs: Mapping[str, SplitRuns]) -> SplitRuns:
    def fused(split: str) -> Run:
        parts = [runs[name][split] for name in retriever.of]
        if retriever.method == "weighted":
            return fuse.weighted(parts, retriever.weights or [], depth=retriever.depth)
        return fuse.rrf(parts, k=retriever.rrf_k, depth=retriever.depth)

    return {split: fused(split) for split in runs[retriever.of[0]]}


def _tuned(
    collection: Collection,
    retriever: FuseRetriever,
    section: Mapping[str, Retriever],
    context: RetrieveContext,
    runs: Mapping[str, Mapping[str, Run]],
) -> tuple[Tuned, Chosen]:
    """The fusion with its weights chosen on dev, from its members' runs: the same each time."""
    scorers = {one: pair_scorer(collection, one, section, context, runs) for one in retriever.of}
    if retriever.prior:
        scorers[prior.NAME] = prior.prior_scorer(collection.qrels.get("train", {}))
    members = Members(scorers, {one: runs[one] for one in retriever.of})
    chosen = choose_weights(members, collection.qrels["dev"], collection.queries)
    return Tuned(members, chosen.weights), chosen


def _refuse_without_dev(section: Mapping[str, Retriever], present: Sequence[str]) -> None:
    """Before anything is searched, for dev comes in only when all members have found their candidates."""
    for name, one in section.items():
        if isinstance(one, FuseRetriever) and one.method == "tuned" and "dev" not in present:
            raise DataError(
                "there is no dev split to choose the weights on",
                where=f"retrieve.{name}",
                hint="method: rrf, or a dev split (data.dev, data.dev_share)",
            )


def _import(name: str, retriever: ImportRetriever, collection: Collection, pool: Pool) -> Iterator[tuple[str, Run]]:
    """The run of each of the pool's splits, read from its file and cut to what the collection has."""
    from rankwright.toolbox.formats import trec

    files = {str(split): path for split, path in retriever.runs.items()}
    for split in pool.splits:
        queries = collection.qrels[split]
        path = files.get(split, files.get("train"))  # where a split was cut from train, train's run has its queries
        run = trec.read_run(Path(path)) if path else Run()
        if path is None or (split not in files and not queries.keys() & run.rankings.keys()):
            say(f"retrieve.{name} has no run for {split}: its {len(queries):,} queries have no candidates")
            yield split, Run()
            continue
        _refuse_unknown(run, collection, path)
        found = {query: run.scores(query) for query in queries if query in run.rankings}
        _say_what_differs(path, split, run, queries)
        yield split, _by_split(_inside(found, pool, path), collection, pool, retriever.depth)[split]


def _refuse_unknown(run: Run, collection: Collection, path: str) -> None:
    known = collection.documents
    queries: dict[str, str] = {}  # an unknown document and the first query that has it
    for query in run.rankings:
        for document in run.documents(query):
            if document not in known:
                queries.setdefault(document, query)
    if queries:
        raise problems_error(
            [f"{path}: document {document!r} (query {query!r})" for document, query in queries.items()],
            "documents of an imported run are not in the collection",
            hint="import a run over these documents; data.dedupe: true, the default, gives copies one id",
        )


def _say_what_differs(path: str, split: str, run: Run, queries: Iterable[str]) -> None:
    wanted = set(queries)
    if unknown := sum(query not in wanted for query in run.rankings):
        say(f"{path}: {unknown:,} queries are not in {split} and are ignored")
    if missing := sum(not run.rankings.get(query) for query in wanted):
        say(f"{path}: {missing:,} of the {len(wanted):,} queries of {split} are missing and have no candidates")


def _inside(found: Mapping[str, Mapping[str, float]], pool: Pool, path: str) -> dict[str, dict[str, float]]:
    """The hits that are among the pool's documents (all are, unless each split has its own corpus)."""
    inside = {
        query: {document: score for document, score in scores.items() if document in pool.documents}
        for query, scores in found.items()
    }
    if outside := sum(map(len, found.values())) - sum(map(len, inside.values())):
        say(f"{path}: {outside:,} hits outside the split's own documents are ignored (data.corpus: per_split)")
    return inside


def _dense_scorer(collection: Collection, retriever: DenseRetriever, context: RetrieveContext) -> PairScorer:
    encoder = _encoder(retriever, context)

    def score(pairs: Sequence[tuple[str, str]]) -> Scores:
        queries = {query: place for place, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
        documents = {document: place for place, document in enumerate(dict.fromkeys(one for _, one in pairs))}
        left = _encode_queries(encoder, retriever, [collection.queries[query] for query in queries], "queries")
        right = _encode_documents(encoder, retriever, [collection.documents[one] for one in documents], "documents")
        rows = np.array([queries[query] for query, _ in pairs], dtype=np.int64)
        columns = np.array([documents[document] for _, document in pairs], dtype=np.int64)
        return pair_products(left, right, rows, columns)

    return score


def _bm25_scorer(collection: Collection, retriever: Bm25Retriever, context: RetrieveContext) -> PairScorer:
    pools = _pools(collection, context)
    indexes = [_bm25_index(retriever, pool) for pool in pools]
    of_query = {query: index for pool, index in zip(pools, indexes, strict=True) for query in pool.queries}

    def score(pairs: Sequence[tuple[str, str]]) -> Scores:
        scores = np.empty(len(pairs), dtype=np.float32)
        by_query: dict[str, list[int]] = {}
        for place, (query, _) in enumerate(pairs):
            by_query.setdefault(query, []).append(place)
        for query, places in by_query.items():
            documents = [pairs[place][1] for place in places]
            scores[places] = of_query[query].scores(collection.queries[query], documents)
        return scores

    return score


def _run_scorer(runs: Sequence[Run]) -> PairScorer:
    scores = {query: dict(hits) for run in runs for query, hits in run.rankings.items()}

    def score(pairs: Sequence[tuple[str, str]]) -> Scores:
        return np.array([scores.get(query, {}).get(document, np.nan) for query, document in pairs], dtype=np.float32)

    return score


def _encoder(retriever: DenseRetriever, context: RetrieveContext) -> Encoder:
    from rankwright.toolbox.embed import Encoder

    return Encoder(
        retriever.model,
        device=context.device,
        cache=context.cache,
        batch_size=retriever.batch_size,
        precision=retriever.precision,
    )


def _encode_queries(encoder: Encoder, retriever: DenseRetriever, texts: Sequence[str], what: str) -> Scores:
    return encoder.encode(texts, prompt=retriever.query_prompt, max_tokens=retriever.query_length, what=what)


def _encode_documents(encoder: Encoder, retriever: DenseRetriever, texts: Sequence[str], what: str) -> Scores:
    return encoder.encode(texts, prompt=retriever.document_prompt, max_tokens=retriever.document_length, what=what)


def _bm25_index(retriever: Bm25Retriever, pool: Pool) -> Bm25:
    from rankwright.toolbox.bm25 import Bm25

    return Bm25(pool.documents, k1=retriever.k1, b=retriever.b)
