"""How long does a diagnosis without re-scoring take? 4,000 queries x 100 candidates by default, with texts.

    python benchmarks/diagnose.py --queries 4000 --depth 100

Runs, grades and texts are made up; seconds of each check and of the ladder are printed. The goal: under a minute on two
cores. A time means nothing on a busy machine.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from rankwright.core import Collection, Run
from rankwright.rooms.diagnose import CHECKS, Case
from rankwright.rooms.diagnose.ladder import ladder


def case(queries: int, depth: int, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    corpus = [f"d{place}" for place in range(20 * depth)]
    texts = {document: f"text {number % (19 * depth)} of a document" for number, document in enumerate(corpus)}
    first, second, qrels, asked = {}, {}, {}, {}
    for number in range(queries):
        chosen = [corpus[place] for place in rng.choice(len(corpus), size=depth, replace=False)]
        labels = (rng.random(depth) < 0.05).astype(int)
        labels[rng.integers(depth)] = 1
        for run, strength in ((first, 1.0), (second, 0.8)):
            run[f"q{number}"] = dict(zip(chosen, (strength * labels + rng.normal(size=depth)).tolist(), strict=True))
        qrels[f"q{number}"] = {d: int(g) for d, g in zip(chosen, labels, strict=True) if g or rng.random() < 0.3}
        asked[f"q{number}"] = f"query number {number}"
    train = {f"t{number}": {corpus[number % len(corpus)]: 1} for number in range(queries)}
    asked |= {query: f"training query {query}" for query in train}
    collection = Collection(texts, asked, {"train": train, "test": qrels})
    return Case(Run.from_scores(first), Run.from_scores(second), qrels, depth, collection=collection)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    made = case(given.queries, given.depth, given.seed)
    total = 0.0
    for name, work in [*((check.__name__, check) for check in CHECKS), ("ladder", ladder)]:
        started = time.perf_counter()
        work(made)
        seconds = time.perf_counter() - started
        total += seconds
        print(f"{name:<18} {seconds:6.2f} s")
    print(f"{'together':<18} {total:6.2f} s")


if __name__ == "__main__":
    main()
