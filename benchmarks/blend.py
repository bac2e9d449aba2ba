"""What a blend gains on queries that did not choose it, by how freely it may choose its depth.

    python benchmarks/blend.py RUN... [--split dev]

RUNs are finished run folders. The queries of the split are cut into halves, fifteen times: one half chooses each arm's
weight and depth, the other is measured, and both ways round. `--split test` is for folders whose test split was made
of held-out training queries. It prints each arm's mean gain over the retriever's order, in the metric that chooses,
with the share of halves that fall below it, and the mean over collections: the names of runs up to their first dash.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from rankwright.api import load
from rankwright.core import Qrels, Run
from rankwright.plan import Plan
from rankwright.rooms import blend as room
from rankwright.sections import BlendSection
from rankwright.toolbox.formats import beir, trec
from rankwright.toolbox.lists import Lists

SPLITS = 15
RULES = ("as it is", "depths as freely as weights", "the whole depth", "no guard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--split", default="dev", help="whose queries are cut into halves")
    arguments = parser.parse_args()
    found: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    print(f"{'run, arm':<34}" + "".join(f"{rule:>30}" for rule in RULES))
    for folder in arguments.runs:
        for file in sorted((folder / "rerank").glob(f"*.{arguments.split}.run")):
            arm = file.name.removesuffix(f".{arguments.split}.run")
            row = measured(folder, file, arguments.split)
            found[folder.name.partition("-")[0]].append(row)
            print(line(f"{folder.name}, {arm}", row), flush=True)
    rows = [np.mean(collection, axis=0) for collection in found.values()]
    print(line(f"mean of {len(found)} collections", np.mean(rows, axis=0).tolist()))


def measured(folder: Path, file: Path, split: str) -> list[tuple[float, float]]:
    """By each rule: the mean gain on halves that did not choose, and the share of them below the retriever."""
    experiment = load(folder)[0]
    assert experiment.rerank
    candidates, depth = Plan.of(experiment).rerank_from, experiment.rerank.depth
    qrels = beir.read(folder / "data").collection.qrels[split]
    reranked = trec.read_run(file)
    retrieved = trec.read_run(folder / f"retrieve/{candidates}.{split}.run")
    queries, rng = sorted(query for query in qrels if query in reranked.rankings), np.random.default_rng(0)
    gains: list[list[float]] = [[] for _ in RULES]
    for _ in range(SPLITS):
        order = rng.permutation(queries).tolist()
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for chooses, asked in (halves, halves[::-1]):
            given = (*(part(run, chooses) for run in (retrieved, reranked)), labels(qrels, chooses))
            lists = Lists.of(part(retrieved, asked), part(reranked, asked), labels(qrels, asked), depth=depth)
            for place, choice in enumerate(choices(given, depth)):
                own, before = (lists.measure(lists.order(w, choice.depth), choice.metric) for w in (choice.weight, 0.0))
                gains[place].append(float((own - before).mean()))
    return [(float(np.mean(each)), float(np.mean(np.array(each) < 0))) for each in gains]


def choices(given: tuple[Run, Run, Qrels], depth: int) -> list[room.Choice]:
    """What each of RULES chooses, the section's other keys as they are by default."""
    usual, free = BlendSection(), room._DEPTH
    found = [room.blend(*given, usual, depth=depth)]
    room._DEPTH = 1.0
    try:
        found.append(room.blend(*given, usual, depth=depth))
    finally:
        room._DEPTH = free
    found.append(room.blend(*given, BlendSection(depths=[depth]), depth=depth))
    found.append(room.blend(*given, BlendSection(guard=0), depth=depth))
    return found


def part(run: Run, queries: list[str]) -> Run:
    return Run({query: run.rankings[query] for query in queries if query in run.rankings})


def labels(qrels: Qrels, queries: list[str]) -> Qrels:
    return {query: qrels[query] for query in queries}


def line(name: str, row: list[tuple[float, float]]) -> str:
    return f"{name:<34}" + "".join(f"{f'{gain:+.4f}, {below:.0%} below':>30}" for gain, below in row)


if __name__ == "__main__":
    main()
