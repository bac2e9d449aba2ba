"""The parts `train`, `quality` and `agree` of engine.py: speed and memory of training, and what comes of it.

Every training of `train` and `quality` is a fresh process (engine_trainer.py), so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import engine_made as made
import numpy as np

TRAINER = Path(__file__).with_name("engine_trainer.py")
GROUPS, DOCUMENTS = 4, 8
WORDS = 50_000
"""Of which texts to train on are made: a language's share of a vocabulary of many."""
BUSY = 1.25
"""A mean step so many times the median one: something else ran on the machine, or lengths are very uneven."""
COLLECTION_DEPTH = 50


@dataclass
class System:
    """Something that trains: in which environment, with which loss and precision, and what was measured."""

    name: str
    trainer: str
    precision: str
    environment: str = ""
    loss: str = "bce"
    old: bool = False
    runs: list[dict] = field(default_factory=list)
    error: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is rankwright."""
        return self.trainer == "rankwright"

    @property
    def computed(self) -> str:
        """The precision that was found best, where it was looked for."""
        return f" ({', '.join({run['precision'] for run in self.runs})})" if self.precision == "auto" else ""

    def median(self, name: str) -> float:
        """The median over its runs of a number that the trainer told."""
        return statistics.median(run[name] for run in self.runs)


def systems(losses: list[str]) -> list[System]:
    st, flag = "sentence-transformers", "FlagEmbedding"
    ours = [System(f"rankwright {loss}", "rankwright", "auto", loss=loss) for loss in losses]
    peers = []
    for precision in ("fp32", "bf16"):
        peers += [System(f"{st} {loss} {precision}", st, precision, "peer-st", loss) for loss in ("bce", "listnet")]
        peers.append(System(f"{flag} {precision}", flag, precision, "peer-flag", old=True))
        peers.append(System(f"HF Trainer {precision}", "HF Trainer", precision, "peer-st"))
    return [*ours, *peers]


def run(system: System, folder: Path, groups: Path, options: argparse.Namespace, **more: object) -> dict:
    """One training in a process of its own; what it measured, or {"error": ...}."""
    out = Path(str(more.pop("out", options.work / "out")))
    shutil.rmtree(out, ignore_errors=True)
    python = options.pythons[system.environment] if system.environment else sys.executable
    told = {"precision": system.precision, "loss": system.loss, "groups": GROUPS, "learning_rate": 2e-5, "seed": 0}
    told |= {"old": system.old, **more}
    logs = options.work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"train-{system.name.replace(' ', '-')}.log"
    with log.open("w") as errors:
        done = subprocess.run(
            [python, str(TRAINER), system.trainer, str(folder), str(groups), str(out), json.dumps(told)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    if done.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        return {"error": f"{last[:300]} (see {log})"}
    return json.loads(done.stdout.splitlines()[-1])


def train(options: argparse.Namespace) -> list[str]:
    lines = []
    for shape in options.shapes:
        for workload in options.workloads:
            lines += [*_cell(shape, workload, options), ""]
    return lines


def _cell(shape: str, workload: str, options: argparse.Namespace) -> list[str]:
    folder = made.model(shape, options.work / shape)
    lists = made.lists(
        made.SHAPES[shape], made.WORKLOADS[workload], options.train_groups, each=DOCUMENTS, seed=1, words=WORDS
    )
    file = options.work / "groups.json"
    file.write_text(json.dumps(lists))
    chosen = [one for one in systems(options.losses) if _wanted(one, options)]
    for number in range(options.rounds):
        turn = number % len(chosen)
        for system in chosen[turn:] + chosen[:turn]:
            if not system.error:
                _measure(system, folder, file, options, f"{shape}, {workload}")
    shutil.rmtree(options.work / "out", ignore_errors=True)
    lengths = made.tokens(folder, lists)
    head = f"### {shape}, {workload}: {GROUPS} queries x {DOCUMENTS} documents a step, {options.steps} steps, "
    rows = next((run["rows"] for one in chosen if one.ours for run in one.runs), "?")
    told = f"{lengths.mean():.1f} tokens a pair; {len(lists):,} groups, in which {rows} occur"
    return [head + told, "", *_table(chosen)]


def _wanted(system: System, options: argparse.Namespace) -> bool:
    there = not system.environment or options.pythons.get(system.environment)
    return bool(there) and (system.ours or not options.only or any(part in system.name for part in options.only))


def _measure(system: System, folder: Path, file: Path, options: argparse.Namespace, where: str) -> None:
    found = run(system, folder, file, options, steps=options.steps + 1)  # the last one's end is the last time stamp
    system.error = found.get("error", "")
    if not system.error:
        steps = found["step_seconds"]
        found["steady"] = GROUPS * DOCUMENTS / statistics.median(steps)
        system.runs.append(found)
        with (options.work / "measured.jsonl").open("a") as raw:
            raw.write(json.dumps({"cell": where, "system": system.name, **found}) + "\n")
    told = system.error or f"{found['rate']:.2f} pairs/s, {found['peak'] / 2**30:.2f} GiB, {found['steps']} steps"
    print(f"{where}: {system.name}: {told}", file=sys.stderr, flush=True)


def _table(chosen: list[System]) -> list[str]:
    measured = [one for one in chosen if one.runs]
    ours = [one for one in measured if one.ours]
    head = ["system", "pairs/s", "(range)", "by the median step", "s to the first step", "peak GiB", "before the model"]
    head += [f"{one.name} is times as fast" for one in ours] + [f"its peak to {one.name}'s" for one in ours]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for system in measured:
        rates = [one["rate"] for one in system.runs]
        cells = [
            f"{system.name}{system.computed}",
            f"{statistics.median(rates):.2f}",
            f"{min(rates):.2f}–{max(rates):.2f}",
        ]
        cells.append(f"{system.median('steady'):.2f}")
        cells.append(f"{system.median('first'):.1f}")
        cells += [f"{system.median(name) / 2**30:.2f}" for name in ("peak", "baseline")]
        cells += [f"{_ratio(one, system, 'rate'):.2f}" for one in ours]
        cells += [f"{_ratio(system, one, 'peak'):.2f}" for one in ours]
        lines.append(f"| {' | '.join(cells)} |")
    uneven = [one.name for one in measured if any(run["steady"] > BUSY * run["rate"] for run in one.runs)]
    told = [f"Uneven steps (a busy machine? do not trust the ratios): {', '.join(uneven)}"] if uneven else []
    return [
        *lines,
        "",
        *told,
        *_against_the_best(measured),
        *(f"{x.name}: left out: {x.error}" for x in chosen if x.error),
    ]


def _ratio(one: System, other: System, name: str) -> float:
    return statistics.median(a[name] / b[name] for a, b in zip(one.runs, other.runs, strict=False))


def _against_the_best(measured: list[System]) -> list[str]:
    peers = [one for one in measured if not one.ours]
    if not peers:
        return []
    best, least = max(peers, key=lambda one: one.median("rate")), min(peers, key=lambda one: one.median("peak"))
    return [
        f"{one.name}: {_ratio(one, best, 'rate'):.2f}x the fastest peer ({best.name}), "
        f"{_ratio(one, least, 'peak'):.2f} of the leanest peer's peak ({least.name})"
        for one in measured
        if one.ours
    ]


class SeeAlso:
    """The built-in collection with the offline encoder's candidates and groups mined from them, made once."""

    def __init__(self, work: Path) -> None:
        import rankwright
        from rankwright.core import Collection
        from rankwright.toolbox.formats import beir

        experiment = {
            "name": "seealso",
            "data": {"source": "seealso:"},
            "retrieve": {"dense": {"kind": "dense", "depth": COLLECTION_DEPTH}},
            "mine": {"negatives": 5, "random": 2, "positives": 1},
            **dict.fromkeys(("evaluate", "diagnose", "verdict", "report")),
        }
        rankwright.run(experiment, runs=work)
        self.folder = work / "seealso"
        self.collection: Collection = beir.read(self.folder / "data").collection

    def groups(self, file: Path, count: int | None) -> Path:
        """Groups of one positive and seven negatives each, as engine_trainer.py reads them."""
        from rankwright.toolbox.formats import flag

        found = []
        for group in flag.read_groups(self.folder / "mine/groups.jsonl"):
            relevant = [text for text, label in zip(group.documents, group.labels, strict=True) if label > 0]
            others = [text for text, label in zip(group.documents, group.labels, strict=True) if label <= 0]
            if relevant and len(others) >= DOCUMENTS - 1:
                found.append([group.query, [relevant[0], *others[: DOCUMENTS - 1]]])
        order = np.random.default_rng(0).permutation(len(found))[:count]
        file.write_text(json.dumps([found[place] for place in order]))
        return file

    def candidates(self, split: str, queries: int) -> dict[str, list[str]]:
        """Query id -> ids of its candidates, of the first so many queries of a split."""
        from rankwright.toolbox.formats import trec

        run = trec.read_run(self.folder / f"retrieve/dense.{split}.run")
        chosen = sorted(query for query in self.collection.qrels[split] if run.documents(query))[:queries]
        return {query: list(run.documents(query)) for query in chosen}

    def score(self, model: Path, candidates: dict[str, list[str]], word: str) -> tuple[list[np.ndarray], str]:
        """A model's logits of each query's candidates, and the way that the word came to."""
        from rankwright.toolbox.model import Reranker

        pairs = [
            (self.collection.queries[query], self.collection.documents[document])
            for query, documents in candidates.items()
            for document in documents
        ]
        reranker = Reranker.load(model, device="cpu")
        scores = reranker.score(pairs, precision=word)
        decided = reranker.decisions.get(word)
        way = decided.backend if decided else word if " " in word else "torch fp32"
        return np.split(scores, np.cumsum([len(documents) for documents in candidates.values()])[:-1]), way

    def ndcg(self, split: str, candidates: dict[str, list[str]], scores: list[np.ndarray]) -> np.ndarray:
        """nDCG@10 of each query's candidates in the order of the scores."""
        from rankwright.core import Run
        from rankwright.toolbox.metrics import per_query

        found = {
            query: dict(zip(documents, own.tolist(), strict=True))
            for (query, documents), own in zip(candidates.items(), scores, strict=True)
        }
        qrels = {query: self.collection.qrels[split][query] for query in candidates}
        return per_query(Run.from_scores(found), qrels, ["ndcg@10"])["ndcg@10"]


def start_model(folder: Path, seed: int) -> Path:
    """The offline encoder with a new head, saved: the same start for every system."""
    from rankwright.toolbox.model import Reranker

    if not folder.exists():
        Reranker.start("offline", seed=seed, device="cpu").save(folder, card="")
    return folder


def quality(options: argparse.Namespace) -> list[str]:
    """Dev nDCG@10 after the same groups, steps, rates and start, beside sentence-transformers' ListNet.

    ListNet's target is softmax(labels). With a relevant label of 20 it is our listwise loss, which is the comparison
    at equal loss; with 1, as people write it, it leaves 0.72 of the target on the seven others.
    """
    see = SeeAlso(options.work)
    groups = see.groups(options.work / "seealso-groups.json", options.groups)
    candidates = see.candidates("dev", options.queries)
    st = ("sentence-transformers", "fp32", "peer-st", "listnet")
    arms = {"rankwright": (System("rankwright", "rankwright", "auto", loss="listwise"), 1.0)}
    arms["sentence-transformers, equal loss"] = (System("sentence-transformers-equal", *st), 20.0)
    arms["sentence-transformers, labels 0 and 1"] = (System("sentence-transformers-plain", *st), 1.0)
    values: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    for seed in range(options.rounds):
        base = start_model(options.work / f"start-{seed}", seed)
        for name, (system, label) in arms.items():
            out = options.work / f"quality-{system.name}-{seed}"
            more = {"learning_rate": options.rate, "seed": seed, "label": label, "save": True}
            found = run(system, base, groups, options, out=out, **more)
            if "error" in found:
                raise SystemExit(f"{name}: {found['error']}")
            scores = see.score(out / "model", candidates, options.words[0])[0]
            values[name].append(see.ndcg("dev", candidates, scores))
            told = f"seed {seed}: {name}: dev nDCG@10 {values[name][-1].mean():.4f}, {found['rate']:.1f} pairs/s"
            print(told, file=sys.stderr, flush=True)
    count = len(json.loads(groups.read_text()))
    return [f"{count} groups x {DOCUMENTS}, {options.rounds} seeds, {len(candidates)} dev queries", "", *_means(values)]


def _means(values: dict[str, list[np.ndarray]]) -> list[str]:
    """A row a system; differences are paired over queries, after the mean over seeds."""
    lines = ["| system | dev nDCG@10 | each seed | rankwright - it [95%, paired bootstrap] |", "|---|---|---|---|"]
    ours = np.mean(values["rankwright"], axis=0)
    for name, each in values.items():
        gains = ours - np.mean(each, axis=0)
        low, high = _interval(gains)
        told = f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}]" if name != "rankwright" else "–"
        seeds = ", ".join(f"{one.mean():.4f}" for one in each)
        lines.append(f"| {name} | {np.mean(each):.4f} | {seeds} | {told} |")
    return lines


def _interval(differences: np.ndarray) -> tuple[float, float]:
    from rankwright.toolbox import stats

    return stats.paired_bootstrap(differences, resamples=5000, confidence=0.95, rng=np.random.default_rng(0))


def agree(options: argparse.Namespace) -> list[str]:
    """Top-10 overlap, Kendall's tau and the change of nDCG@10 of every word against the first, on `seealso`'s test."""
    from scipy.stats import kendalltau

    see, model = SeeAlso(options.work), options.model
    if model is None:
        groups = see.groups(options.work / "seealso-groups.json", options.groups)
        system = System("rankwright", "rankwright", "auto", loss="listwise")
        out = options.work / "agree"
        base = start_model(options.work / "start-0", 0)
        found = run(system, base, groups, options, out=out, learning_rate=options.rate, aware=options.aware)
        if "error" in found:
            raise SystemExit(found["error"])
        model = out / "model"
    candidates = see.candidates("test", options.queries)
    scored = {word: see.score(model, candidates, word) for word in options.words}
    scores = {word: own for word, (own, _) in scored.items()}
    values = {word: see.ndcg("test", candidates, own) for word, own in scores.items()}
    first = options.words[0]
    lines = [f"{len(candidates)} queries x up to {COLLECTION_DEPTH} candidates, against {first}", ""]
    lines += [
        "| precision | computed by | top-10 overlap | Kendall tau | nDCG@10 | change ± standard error |",
        "|---|---|---|---|---|---|",
    ]
    for word in options.words:
        both = list(zip(scores[first], scores[word], strict=True))
        overlap = np.mean([len(_top(a) & _top(b)) / min(10, len(a)) for a, b in both])
        tau = np.mean([kendalltau(a, b).statistic for a, b in both if len(a) > 1])
        changes = values[word] - values[first]
        told = f"{changes.mean():+.4f} ± {changes.std(ddof=1) / np.sqrt(len(changes)):.4f}"
        lines.append(f"| {word} | {scored[word][1]} | {overlap:.4f} | {tau:.4f} | {values[word].mean():.4f} | {told} |")
    return lines


def _top(scores: np.ndarray) -> set[int]:
    return set(np.argsort(-scores, kind="stable")[:10].tolist())
