"""What models say to a few texts: logits to compare their scales by, and the loss that cocktail's weights come from.

In come a model folder, and pairs or groups; out come its logits or one loss. It does not know how models are merged,
nor what the numbers are used for. A model is loaded for each call and dropped again: two never stand in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwright.core import Collection, Group, Run, relevant, text_id
from rankwright.errors import DataError, ModelError

Pairs = Sequence[tuple[str, str]]


def logits_of(model: str | Path, pairs: Pairs, *, device: str = "auto", max_length: int = 512) -> NDArray[np.float32]:
    """The logits of (query text, document text) pairs, float32 (len(pairs),), in the order given.

    Raises:
        ModelError: no reranker there.
    """
    from rankwright.toolbox.model import Reranker

    return Reranker.load(model, device=device, max_length=max_length).score(pairs)


def loss_of(model: str | Path, groups: Sequence[Group], *, device: str = "auto", max_length: int = 512) -> float:
    """The mean `losses.listwise` loss over the groups that have something to compare, in nats: lower is better.

    Raises:
        DataError: no group holds both a relevant document and another.
        ModelError: no reranker there, or its scores are not finite.
    """
    counted = [group for group in groups if len(group) > 1 and any(label > 0 for label in group.labels)]
    if not counted:
        raise DataError("no group holds a relevant document and another one to compare it with")
    pairs = [(group.query, document) for group in counted for document in group.documents]
    loss = _listwise(logits_of(model, pairs, device=device, max_length=max_length), counted)
    if not math.isfinite(loss):
        raise ModelError("its scores are not finite", where=str(model), hint="a training went wrong; train again")
    return loss


def groups_of(collection: Collection, run: Run | None, split: str, count: int, negatives: int = 7) -> list[Group]:
    """Groups of one relevant document and the first `negatives` candidates of the run that are not relevant.

    Of at most `count` queries of the split, drawn by a hash of their text. Without a run the negatives are those that
    the collection gives (grade 0), in its order. Seven is what LM-Cocktail's examples have (Xiao et al. 2023).

    Raises:
        DataError: no query of the split has both.
    """
    groups: list[Group] = []
    qrels = collection.qrels.get(split, {})
    for query in sorted(qrels, key=lambda query: text_id("probe" + collection.queries[query])):
        grades = qrels[query]
        pool = [document for document in grades if grades[document] <= 0] if run is None else run.documents(query)
        good = relevant(grades)[:1]
        bad = [document for document in pool if grades.get(document, 0) <= 0][:negatives]
        if good and bad and len(groups) < count:
            groups.append(_group(collection, query, good + bad, grades))
    if not groups:
        raise DataError(f"no {split} query has a relevant document and another candidate")
    return groups


def pairs_of(groups: Sequence[Group], count: int = 64) -> list[tuple[str, str]]:
    """At most `count` (query text, document text) pairs: of each group in turn its first relevant and first other."""
    pairs: list[tuple[str, str]] = []
    for group in groups:
        for wanted in (True, False):
            kind = [text for text, label in zip(group.documents, group.labels, strict=True) if (label > 0) is wanted]
            pairs += [(group.query, text) for text in kind[:1]]
    return pairs[:count]


def _group(collection: Collection, query: str, documents: Sequence[str], grades: Mapping[str, int]) -> Group:
    return Group(
        query_id=query,
        query=collection.queries[query],
        document_ids=documents,
        documents=[collection.documents[document] for document in documents],
        labels=[max(grades.get(document, 0), 0) for document in documents],
        teacher=[math.nan] * len(documents),
        origins=["positive", *["mined"] * (len(documents) - 1)],
    )


def _listwise(logits: NDArray[np.float32], groups: Sequence[Group]) -> float:
    """The loss of flat logits, laid out as (groups, widest group)."""
    import torch

    from rankwright.toolbox import losses

    flat = torch.from_numpy(logits.astype(np.float64))
    mask = torch.zeros(len(groups), max(len(group) for group in groups), dtype=torch.bool)
    for row, group in enumerate(groups):
        mask[row, : len(group)] = True
    laid = [torch.zeros(mask.shape, dtype=torch.float64) for _ in range(3)]
    columns = (
        flat,
        torch.tensor([float(label) for group in groups for label in group.labels], dtype=torch.float64),
        torch.tensor([weight for group in groups for weight in group.weights], dtype=torch.float64),
    )
    for place, values in zip(laid, columns, strict=True):
        place[mask] = values
    scores, labels, weights = laid
    return float(losses.mean(losses.listwise(scores, labels, mask, torch.full_like(scores, math.nan), weights)))
