"""Context metrics of RAG without any model: what one query's passages are worth, by ids and by texts.

In come the ids or texts of the passages that are sent, best first, and those of its references (what is known to be
relevant); out goes one number. The first k are the caller's to cut. Nothing here knows runs, arms, means or a judge.

The metrics that ragas has too give the values of ragas 0.4.3 (`benchmarks/rag.py` compares them). NaN: does not apply.

    nothing is sent             id_precision and repeated are NaN; the others are 0
    no reference is known       id_recall, hit and text_recall are NaN; id_precision is 0; text_precision is NaN, or 0
                                if nothing is sent either
    where ragas only fails      text_precision of passages without references: NaN here
                                text_recall of references without passages: 0 here, as id_recall
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from rankwright.core import canonical

Likeness = Callable[[str, str], float]
"""How alike are a passage and a reference? From 0 to 1."""

LIKE = 0.5
"""ragas' threshold of likeness: text_precision takes it as alike, text_recall does not."""

_RAGAS_EPSILON = 1e-10  # in ragas' denominator, against nothing relevant: a perfect order has 1 less this much


def id_precision(ids: Collection[str], references: Collection[str]) -> float:
    """Share of the distinct `ids` that are references: ragas' IDBasedContextPrecision. Order and repeats do not count.

    ragas compares what it is handed as strings; here ids are strings.
    """
    sent = set(ids)
    return len(sent.intersection(references)) / len(sent) if sent else float("nan")


def id_recall(ids: Collection[str], references: Collection[str]) -> float:
    """Share of the distinct `references` that are among `ids`: ragas' IDBasedContextRecall."""
    known = set(references)
    return len(known.intersection(ids)) / len(known) if known else float("nan")


def hit(ids: Collection[str], references: Collection[str]) -> float:
    """Is any reference among `ids`? 1 or 0; NaN without references."""
    return float(not set(references).isdisjoint(ids)) if references else float("nan")


def average_precision(verdicts: Sequence[bool]) -> float:
    """Mean of the precisions at the ranks of what is right: ragas' context precision, of verdicts best first.

    Σ precision@i · v_i / (Σ v_i + 1e-10), so all in vain is 0. What was not sent does not count: unlike `map` of the
    ranking metrics, it divides by the relevant ones found.
    """
    right, total = 0, 0.0
    for rank, verdict in enumerate(verdicts, start=1):
        if verdict:
            right += 1
            total += right / rank
    return total / (right + _RAGAS_EPSILON)


def likeness(passage: str, reference: str) -> float:
    """1 less the Levenshtein distance over the longer one's length: ragas' NonLLMStringSimilarity. Symmetric.

    In code points, case and white space as they are; two empty texts are alike. By rapidfuzz, as in ragas: about 0.1 ms
    for texts of 1,500 characters. `functools.cache(likeness)`, handed to the text metrics, computes each pair once.
    """
    from rapidfuzz.distance import Levenshtein

    return 1 - Levenshtein.normalized_distance(passage, reference)


def text_precision(texts: Sequence[str], references: Sequence[str], alike: Likeness = likeness) -> float:
    """`average_precision` where a passage is right if it is like a reference: at least `LIKE`.

    ragas' NonLLMContextPrecisionWithReference. Order counts, and so does each copy. `alike` takes (passage, reference).
    """
    if texts and not references:
        return float("nan")
    return average_precision([any(alike(text, known) >= LIKE for known in references) for text in texts])


def text_recall(texts: Sequence[str], references: Sequence[str], alike: Likeness = likeness) -> float:
    """Share of `references` that a passage is like: more than `LIKE`. ragas' NonLLMContextRecall.

    A reference given twice counts twice. `alike` takes (passage, reference), as in `text_precision`.
    """
    if not references:
        return float("nan")
    return sum(any(alike(text, known) > LIKE for text in texts) for known in references) / len(references)


def repeated(texts: Sequence[str]) -> float:
    """Share of the passages that are copies of one before them: the same `canonical` text."""
    return (len(texts) - len({canonical(text) for text in texts})) / len(texts) if texts else float("nan")
