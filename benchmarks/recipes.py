"""Does `recipe: auto` beat retrieval, and the peers' fixed recipes at equal pairs? Collections x recipes x seeds.

    python benchmarks/recipes.py --data FOLDER [--only aan-cite,scifact] [--seeds 0,1,2] [--scale 1.0]
    python benchmarks/recipes.py --table          the table of what is finished, no run

FOLDER holds collections in BEIR's layout, each in a folder of its name; `seealso` needs none. Each collection has a
budget in pairs (longer texts, fewer pairs), about what ten minutes of two cores buy, times `--scale`. The fixed
recipes start from the very base that the search distilled, mine from the same candidates, see as many pairs as the
search's last training (so the search itself is extra work, within its budget). They are shown as their own tools
serve them (the candidates in the reranker's order) and, which is more than those tools do, served as ours: blended
with the retriever, weight and depth from dev. Nothing looks at the final split before the table. Runs are kept in
`--runs`; the same command goes on where it stopped.

Each value is the mean over queries and seeds; a number behind it says of how many seeds, where there are fewer.
Intervals and p are those of paired differences over queries (bootstrap, randomisation), uncorrected, by the seeds that
both ways to rank have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import rankwright
from rankwright.toolbox import stats
from rankwright.toolbox.formats import beir, trec
from rankwright.toolbox.metrics import per_query

PEERS = ("notebook", "flagembedding", "sentence-transformers")
METRICS = ("ndcg@10", "mrr@10")
COLLECTIONS: dict[str, dict[str, Any]] = {
    "seealso": {"data": {"source": "seealso:", "max_queries": {"test": 500}}, "pairs": 24_000, "depth": 30},
    "aan-cite": {"data": {"test": "dev", "dev_share": 0.15}, "pairs": 30_000, "depth": 30},
    "selqa": {"data": {}, "pairs": 12_000, "depth": 20},
    "pubmedqa": {"data": {}, "pairs": 12_000, "depth": 20},
    "scifact": {"data": {"dev_share": 0.2, "leaks": "drop"}, "pairs": 8_000, "depth": 20},
    "cranfield": {"data": {}, "pairs": 6_000, "depth": 20},
    "xquad-zh": {"data": {"leaks": "report"}, "pairs": 6_000, "depth": 20},
}
LENGTH = 128


def main() -> None:
    arguments = _arguments()
    chosen = [name for name in COLLECTIONS if not arguments.only or name in arguments.only.split(",")]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if not arguments.table:
        for seed in seeds:
            for name in chosen:
                measure(name, seed, arguments)
    found = [row for name in chosen if (row := _row(name, seeds, arguments.runs))]
    for line in _lines(found):
        print(line)


def measure(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """Both runs of a collection and seed: the search's, then the peers' at equal pairs."""
    budget = f"{COLLECTIONS[name]['pairs'] * arguments.scale:.0f} pairs"
    auto = {"recipe": "auto", "budget": budget, "max_length": LENGTH}
    plain, depth = _experiment(name, seed, arguments.data), COLLECTIONS[name]["depth"]
    peers = [peer for peer in arguments.peers.split(",") if peer]
    rankwright.run(
        {**plain, "train": {"finetuned": auto}, "rerank": _rerank(["finetuned"], depth)}, runs=arguments.runs
    )
    run = arguments.runs / plain["name"]
    if not peers:
        return
    pairs = json.loads((run / "recipe/finetuned/recipe.json").read_text())["trainings"]["finetuned"]["max_pairs"]
    base = str(run / "train/finetuned-base/model")
    dev = {"queries": 100, "depth": 20, "evaluations": 2, "patience": None}
    trainings = {
        peer: {"recipe": peer, "base": base, "max_pairs": pairs, "max_length": LENGTH}
        | ({"dev": dev} if peer == "sentence-transformers" else {})
        for peer in peers
    }
    others = {**plain, "name": f"{plain['name']}-peers", "train": trainings, "rerank": _rerank(peers, depth)}
    rankwright.run(others, runs=arguments.runs)


def _experiment(name: str, seed: int, folder: Path) -> dict[str, Any]:
    return {
        "name": f"{name}-{seed}",
        "seed": seed,
        "data": {"source": f"beir:{folder / name}"} | COLLECTIONS[name]["data"],
        "retrieve": {
            "bm25": {"kind": "bm25"},
            "dense": {"kind": "dense"},
            "hybrid": {"kind": "fuse", "of": ["dense", "bm25"], "method": "tuned", "prior": True},
        },
        "evaluate": {"metrics": list(METRICS)},
        **{"diagnose": None, "verdict": None, "report": None},
    }


def _rerank(arms: Any, depth: int) -> dict[str, Any]:
    return {"arms": {arm: arm for arm in arms}, "depth": depth, "max_length": LENGTH, "dev_queries": 150}


def _row(name: str, seeds: list[int], runs: Path) -> dict[str, Any] | None:
    """Per-query values of every way to rank, by seed; None where no seed is finished."""
    values: dict[str, dict[str, dict[int, np.ndarray]]] = {metric: {} for metric in METRICS}
    done = [seed for seed in seeds if (runs / f"{name}-{seed}/evaluate/stage.json").exists()]
    for seed in done:
        run, peers = runs / f"{name}-{seed}", runs / f"{name}-{seed}-peers"
        qrels = beir.read(run / "data").collection.qrels["test"]
        files = {one: run / f"retrieve/{one}.test.run" for one in ("dense", "hybrid")}
        files |= {"auto": run / "rerank/finetuned.test.run", "auto served": run / "blend/finetuned-blend.test.run"}
        there = [peer for peer in PEERS if (peers / f"blend/{peer}-blend.test.run").exists()]
        files |= {f"{peer} served": peers / f"blend/{peer}-blend.test.run" for peer in there}
        files |= {peer: peers / f"rerank/{peer}.test.run" for peer in there}
        for arm, file in files.items():
            found = per_query(trec.read_run(file), qrels, list(METRICS))
            for metric in METRICS:
                values[metric].setdefault(arm, {})[seed] = found[metric]
    return {"name": name, **values} if done else None


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["nothing is finished yet"]
    told: list[str] = []
    arms = ["dense", "hybrid", "auto", "auto served", *PEERS, *(f"{peer} served" for peer in PEERS)]
    for metric in METRICS:
        told += ["", f"{metric}, mean over queries and seeds", "", *_head("collection (queries, seeds)", arms)]
        for row in rows:
            dense = row[metric]["dense"]
            cells = [_mean(row[metric].get(arm), len(dense)) for arm in arms]
            told.append(_line(f"{row['name']} ({len(next(iter(dense.values())))}, {len(dense)})", cells))
    pairs = [("auto served", "dense"), ("auto served", "hybrid"), ("auto", "dense")]
    pairs += [("auto served", one) for peer in PEERS for one in (peer, f"{peer} served")]
    told += ["", "differences, ndcg@10: mean [95% interval] p", ""]
    told += _head("collection", [f"{one} - {other}" for one, other in pairs])
    for row in rows:
        values = row["ndcg@10"]
        cells = [_difference(*_alike(values, one, other)) if other in values else "–" for one, other in pairs]
        told.append(_line(row["name"], cells))
    return [*told, "", *_against_the_best(rows)]


def _against_the_best(rows: list[dict[str, Any]]) -> list[str]:
    """Auto's served mean against the best of the peers, collection by collection, and on average."""
    told = []
    for ending, what in (("", "as their tools serve"), (" served", "blended as ours")):
        gains = {}
        for row in rows:
            values = row["ndcg@10"]
            found = [_alike(values, "auto served", peer + ending) for peer in PEERS if peer + ending in values]
            if found:
                gains[row["name"]] = min(float((ours - theirs).mean()) for ours, theirs in found)
        if gains:
            each = ", ".join(f"{name} {gain:+.4f}" for name, gain in gains.items())
            told.append(f"against the best peer, {what}: mean {np.mean(list(gains.values())):+.4f} ({each})")
    return told


def _head(first: str, others: list[str]) -> list[str]:
    return [_line(first, others), "|---" * (len(others) + 1) + "|"]


def _line(first: str, cells: list[str]) -> str:
    return f"| {first} | " + " | ".join(cells) + " |"


def _alike(values: dict[str, dict[int, np.ndarray]], one: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """Two ways to rank by the seeds that both have, for a seed may draw other queries: each query's mean over them."""
    both = sorted(values[one].keys() & values[other].keys())
    first, second = (np.mean([values[arm][seed] for seed in both], axis=0) for arm in (one, other))
    return first, second


def _mean(values: dict[int, np.ndarray] | None, seeds: int) -> str:
    if values is None:
        return "–"
    fewer = f" ({len(values)})" if len(values) < seeds else ""
    return f"{np.mean([each.mean() for each in values.values()]):.4f}{fewer}"


def _difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    gains, rng = ours - theirs, np.random.default_rng(0)
    low, high = stats.paired_bootstrap(gains, resamples=5000, confidence=0.95, rng=rng)
    p = stats.paired_randomisation(gains, permutations=10_000, rng=rng)
    return f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}] {p:.4f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of collections in BEIR's layout")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="where runs are kept")
    parser.add_argument("--only", help="some of the collections, comma between")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="some of the peers' recipes, comma between; empty: none"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of every collection's budget in pairs")
    parser.add_argument("--table", action="store_true", help="the table of finished runs only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
