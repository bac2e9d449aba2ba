"""How often does the verdict err? Rates over simulated runs, with the blend's weight and depth chosen on dev.

    python benchmarks/verdict.py --draws 1000

Each query has `--depth` candidates in tiers of ten, which both scorers tell apart without fail: every score of a
tier lies above every score of the next one. Relevance is drawn for each candidate with its tier's probability.

No difference: within a tier both scores are noise, independent of relevance and of each other. This is a true null
for every form at once. A blend is a convex combination of two z-normalised (so: increasing) functions of scores that
agree on the tiers, so at any weight and depth it too keeps the tiers in order and only permutes within them; and
within a tier, relevance is exchangeable and independent of the permutation (also given that a query has a relevant
candidate). The order thus has, query by query, exactly the retriever's expected metric, while its measured value
differs, and dev always finds a weight and a depth that look good.

True difference: the reranker's score of a relevant candidate is raised. By how much is found by bisection on a large
sample, so that the best of some blends has a true gain of two detectable effects of `--queries` queries.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np

from rankwright.rooms.verdict import Arm, verdict
from rankwright.sections import VerdictSection
from rankwright.toolbox.lists import Lists

METRIC = "ndcg@10"
TOP = 10
TIER = 10
RELEVANT = (0.2, 0.06, 0.02)  # of the first tiers; the last goes on
WEIGHTS = tuple(step / 20 for step in range(21))
DEPTHS = (5, 10, 20, 30)
REACH = 1.96 + 0.84
BATCH = 50  # draws at once: a few MiB an array


def simulate(queries: int, depth: int, lift: float, rng: np.random.Generator) -> Lists:
    """Queries with a relevant candidate at least, whose reranker's score is `lift` higher for what is relevant."""
    tiers = np.arange(depth) // TIER
    chance = np.asarray(RELEVANT)[np.minimum(tiers, len(RELEVANT) - 1)]
    grades = (rng.random((queries, depth)) < chance).astype(np.int64)
    while (empty := np.flatnonzero(~grades.any(axis=1))).size:
        grades[empty] = rng.random((len(empty), depth)) < chance
    # Noise below 1 and a step of 1 between tiers: no score reaches the tier above.
    retrieved = -tiers + rng.random((queries, depth))
    reranked = -tiers + rng.random((queries, depth)) + lift * grades
    order = np.argsort(-retrieved, axis=1)
    columns = [np.take_along_axis(array, order, axis=1) for array in (retrieved, reranked, grades)]
    ideal = -np.sort(-grades, axis=1)
    by_id = np.tile(np.arange(depth), (queries, 1))
    return Lists(tuple(map(str, range(queries))), ((),) * queries, *columns, by_id, ideal)


def narrow(lists: Lists, width: int) -> Lists:
    """The first candidates only: all that ndcg@10 of a blend no deeper than `width` can see, in less time."""
    arrays = (array[:, :width] for array in (lists.retrieved, lists.reranked, lists.grades, lists.by_id))
    return Lists(lists.queries, lists.documents, *arrays, lists.ideal)


def measure(lists: Lists, weight: float, depth: int):
    return lists.measure(lists.order(weight, depth), METRIC)


def choose(dev: Lists, draws: int, depths: tuple[int, ...]):
    """(weight, depth, dev mean) of each draw: the best mean, ties to the smaller weight and then the smaller depth."""
    narrowed = {depth: narrow(dev, max(depth, TOP)) for depth in depths}
    grid = [(weight, depth) for weight in WEIGHTS for depth in depths]
    means = np.stack([measure(narrowed[d], w, d).reshape(draws, -1).mean(axis=1) for w, d in grid])
    return [(*grid[best], float(means[best, draw])) for draw, best in enumerate(means.argmax(axis=0))]


def find_lift(depth: int, queries: int, rng: np.random.Generator) -> tuple[float, float]:
    """The lift whose best blend gains two detectable effects, and that gain."""
    seed = int(rng.integers(1 << 32))

    def best(lift: float) -> tuple[float, float]:
        lists = simulate(10_000, depth, lift, np.random.default_rng(seed))
        base = measure(lists, 0.0, depth)
        gains = [measure(lists, weight, depth) - base for weight in (0.2, 0.4, 0.6, 0.8, 1.0)]
        gain = max(gains, key=lambda values: values.mean())
        return gain.mean(), REACH * gain.std(ddof=1) / queries**0.5

    low, high = 0.0, 2.0
    for _ in range(12):
        middle = (low + high) / 2
        gain, detectable = best(middle)
        low, high = (middle, high) if gain < 2 * detectable else (low, middle)
    return high, float(best(high)[0])


def rates(options: argparse.Namespace, lift: float, rng: np.random.Generator) -> Counter:
    """How often each word is said."""
    section = VerdictSection(metric=METRIC, permutations=options.permutations, resamples=options.resamples)
    depths = tuple(depth for depth in DEPTHS if depth <= options.depth) or (options.depth,)
    words: Counter = Counter()
    for start in range(0, options.draws, BATCH):
        draws = min(BATCH, options.draws - start)
        chosen = choose(simulate(draws * options.dev, options.depth, lift, rng), draws, depths)
        for weight, depth, on_dev in chosen:
            test = simulate(options.queries, options.depth, lift, rng)
            values = {
                "retriever": measure(test, 0.0, depth),
                "finetuned": measure(test, 1.0, options.depth),
                "blend": measure(test, weight, depth),
            }
            arm = Arm("finetuned", weight, depth, None, on_dev, "blend")
            seed = int(rng.integers(1 << 32))
            words[verdict(values, [arm], section, baselines={"retriever": None}, seed=seed).word] += 1
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description="rates of right and wrong verdicts on simulated runs")
    for name, number in {"draws": 1000, "queries": 400, "dev": 200, "depth": 30, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=200)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    start = time.perf_counter()
    lift, gain = find_lift(options.depth, options.queries, rng)
    worlds = (
        ("no difference", 0.0, "at most 5%"),
        (f"a difference of two detectable effects ({gain:.4f} {METRIC})", lift, "at least 80%"),
    )
    for world, lifted, goal in worlds:
        words = rates(options, lifted, rng)
        told = (words["SHIP"] + words["BLEND"]) / options.draws
        print(f"{world}: SHIP or BLEND in {told:.1%} of {options.draws} draws (goal {goal}); {dict(words)}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
