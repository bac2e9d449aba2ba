"""The parts `score` and `flat` of engine.py: pairs a second beside the peers, and from a thousand pairs to a million.

All systems are loaded at once, each in a process of its own (engine_worker.py), and measured in turn; the order is
turned by one from round to round. Each round has pairs of its own, the same for all: a library that makes a kernel for
each shape that it meets must not know them all beforehand. Ratios are taken within a round, and their median is told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import engine_made as made
import numpy as np

WORKER = Path(__file__).with_name("engine_worker.py")


@dataclass
class System:
    """Something that scores: in which environment, how it is called, and what was measured."""

    name: str
    worker: str
    kind: str
    mode: str
    precision: str
    environment: str = ""
    tuned: bool = False
    batch_size: int = 32
    rates: list[float] = field(default_factory=list)
    error: str = ""
    way: str = ""
    """What ours was computed by. With random weights the guard may refuse what it lets pass in a trained model."""

    @property
    def ours(self) -> bool:
        """Whether it is rankwright."""
        return self.worker == "rankwright"


def systems(words: list[str]) -> list[System]:
    """Ours at every word, then the peers, each as its users call it and, where that is better, well configured."""
    st, tuned = "sentence-transformers", {"environment": "peer-st", "tuned": True}
    ours = [System(f"rankwright {word}", "rankwright", word, "flat", "") for word in words]
    return [
        *ours,
        System(f"{st} fp32", st, "fp32", "flat", "fp32", "peer-st"),
        System(f"{st} fp32, per query", st, "fp32", "per query", "fp32", "peer-st"),
        System(f"{st} bf16", st, "bf16", "flat", "bf16", **tuned),
        System(f"{st} OpenVINO", st, "openvino", "flat", "bf16", **tuned),
        System(f"{st} OpenVINO int8", st, "openvino-int8", "flat", "int8", **tuned),
        System(f"{st} ONNX int8", st, "onnx-int8", "flat", "int8", "peer-onnx", tuned=True),
        System("FlagEmbedding", "FlagEmbedding", "fp32", "flat", "fp32", "peer-flag"),
        System("FlagEmbedding, per query", "FlagEmbedding", "fp32", "per query", "fp32", "peer-flag"),
        System("rerankers, per query", "rerankers", "fp32", "per query", "fp32", "peer-rerankers"),
        System("notebook loop, per query", "notebook", "fp32", "per query", "fp32", "peer-rerankers"),
    ]


class Process:
    """A worker and its log. A worker that dies is told as an error, like one that cannot load."""

    def __init__(self, python: str, worker: str, folder: Path, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(WORKER), worker, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def ask(self, **command: object) -> dict:
        """The worker's answer; {"error": …} where it failed or died."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": f"ended; see {self.log}"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"ended; see {self.log}"}

    def end(self) -> None:
        """Let it end and wait for that."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


class Cell:
    """One shape with one workload: the files, the workers, the rounds."""

    def __init__(self, shape: str, workload: str, options: argparse.Namespace) -> None:
        self.options, self.shape, self.workload = options, made.SHAPES[shape], workload
        self.name = f"{shape}, {workload}"
        self.folder = made.model(shape, options.work / shape)
        pairs = options.pairs or (2000 if (shape, workload) == ("minilm", "titles") else 600)
        drawn = [
            made.lists(self.shape, made.WORKLOADS[workload], -(-pairs // made.CANDIDATES), seed=seed)
            for seed in range(options.rounds + 1)
        ]
        self.lengths = np.concatenate([made.tokens(self.folder, lists) for lists in drawn[1:]])
        self.warm, self.one = self._write("all", drawn[0]), self._write("one", drawn[0][:1])
        self.rounds = [self._write(f"round-{number}", lists) for number, lists in enumerate(drawn[1:], start=1)]
        self.systems = [system for system in systems(options.words) if self._wanted(system)]
        self.processes: dict[str, Process] = {}

    def _write(self, name: str, lists: list) -> Path:
        file = self.options.work / f"pairs-{name}.json"
        file.write_text(json.dumps(lists))
        return file

    def _wanted(self, system: System) -> bool:
        there = not system.environment or self.options.pythons.get(system.environment)
        chosen = system.ours or not self.options.only or any(part in system.name for part in self.options.only)
        return bool(there) and chosen

    def run(self) -> list[str]:
        """Measure all systems in turn; the table's lines."""
        try:
            for system in self.systems:
                self._ready(system)
            peaks: dict = {}
            for number in range(self.options.rounds):
                found = self._ceilings()  # in every round: the best counts, a busy moment does not
                peaks = (
                    found if "error" in found else {name: max(rate, peaks.get(name, 0)) for name, rate in found.items()}
                )
                turn = number % len(self.systems)
                for system in self.systems[turn:] + self.systems[:turn]:
                    self._measure(system, self.rounds[number])
        finally:
            for process in self.processes.values():
                process.end()
        return self._table(peaks)

    def _process(self, system: System) -> Process:
        # One for all of ours: the weights are there once.
        key = system.worker if system.ours else f"{system.worker}-{system.kind}"
        if key not in self.processes:
            python = self.options.pythons[system.environment] if system.environment else sys.executable
            log = self.options.work / "logs" / f"{key}.log"
            self.processes[key] = Process(python, system.worker, self.folder, log)
        return self.processes[key]

    def _ceilings(self) -> dict[str, float]:
        process = Process(sys.executable, "ceilings", self.folder, self.options.work / "logs/ceilings.log")
        try:
            return process.ask(do="ceilings", seconds=self.options.ceiling_seconds)
        finally:
            process.end()

    def _ready(self, system: System) -> None:
        """Load, warm up and choose the batch size. Ours is warmed on all pairs: it looks at them before it decides."""
        process = self._process(system)
        loaded = process.ask(do="load", kind=system.kind)
        answered = loaded if "error" in loaded else self._ask(system, self.warm if system.ours else self.one)
        if "error" not in answered and system.tuned:
            answered = process.ask(do="tune", kind=system.kind, pairs=str(self.warm), sample=self.options.tune_pairs)
            system.batch_size = answered.get("batch_size", system.batch_size)
        if "error" not in answered and system.ours:
            system.way = process.ask(do="way", kind=system.kind)["way"]
            system.precision = system.way.split()[-1].split("+")[0]  # int8+bf16: its products are int8
        system.error = answered.get("error", "")
        told = system.error or system.way or f"loaded in {loaded['seconds']:.1f} s, batch size {system.batch_size}"
        print(f"{self.name}: {system.name}: {told}", file=sys.stderr, flush=True)

    def _ask(self, system: System, pairs: Path) -> dict:
        return self._process(system).ask(
            do="score",
            kind=system.kind,
            pairs=str(pairs),
            mode=system.mode,
            batch_size=system.batch_size,
            limit=self.options.limit if system.mode == "per query" else 0,
            scores=str(self._scores(system)),
        )

    def _scores(self, system: System) -> Path:
        return self.options.work / f"scores-{system.name.replace(' ', '-').replace(',', '')}.npy"

    def _measure(self, system: System, pairs: Path) -> None:
        if system.error:
            return
        time.sleep(0.3)  # the threads of the one before go to sleep
        answered = self._ask(system, pairs)
        system.error = answered.get("error", "")
        if not system.error:
            system.rates.append(answered["pairs"] / answered["seconds"])
            print(f"{self.name}: {system.name}: {system.rates[-1]:.1f} pairs/s", file=sys.stderr, flush=True)

    def _table(self, peaks: dict[str, float]) -> list[str]:
        count = len(self.lengths) // len(self.rounds)
        lines = [f"### {self.name}: {count} pairs a round, {self.lengths.mean():.1f} tokens on average", ""]
        if "error" in peaks:
            lines += [f"No ceilings of matrix products: {peaks['error']}", ""]
        else:
            told = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.items())
            lines += [f"Ceilings of matrix products, GOP/s: {told}", ""]
        measured = [system for system in self.systems if system.rates]
        ours = [system for system in measured if system.ours]
        head = ["system", "precision", "pairs/s", "(range)", "share of peak", "largest logit difference"]
        head += [f"{system.kind} is times as fast" for system in ours]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [self._row(system, ours, peaks) for system in measured]
        lines += ["", *self._equal_precision(measured)]
        return [*lines, *(f"{one.name}: left out: {one.error}" for one in self.systems if one.error)]

    def _row(self, system: System, ours: list[System], peaks: dict[str, float]) -> str:
        rate = statistics.median(system.rates)
        size = f" (batch {system.batch_size})" if system.tuned else f" ({system.way})" if system.ours else ""
        done = self.shape.flops(self.lengths, first_row=system.ours)
        share = done / len(self.lengths) * rate / peaks.get(system.precision, float("nan"))
        cells = [system.name + size, system.precision, f"{rate:.1f}"]
        cells += [f"{min(system.rates):.1f}–{max(system.rates):.1f}", f"{share:.0%}" if share == share else "–"]
        cells += [self._difference(system), *(f"{ratio(one, system):.2f}" for one in ours)]
        return f"| {' | '.join(cells)} |"

    def _difference(self, system: System) -> str:
        """From the first of ours, over the pairs of the last round that both scored: that all compute the same."""
        reference = np.load(self._scores(self.systems[0]))
        found = np.load(self._scores(system))
        return f"{np.abs(found - reference[: len(found)]).max():.1e}"

    def _equal_precision(self, measured: list[System]) -> list[str]:
        lines = []
        for system in (one for one in measured if one.ours):
            peers = [one for one in measured if not one.ours]
            same = [one for one in peers if one.precision == system.precision and one.mode == "flat"]
            for what, others in ((f"the best flat peer in {system.precision}", same), ("the best of all peers", peers)):
                if others:
                    best = max(others, key=lambda one: statistics.median(one.rates))
                    lines.append(f"{system.name} against {what} ({best.name}): {ratio(system, best):.2f}x")
        return lines


def ratio(one: System, other: System) -> float:
    """The median over rounds of the ratio of rates."""
    return statistics.median(a / b for a, b in zip(one.rates, other.rates, strict=False))


def score(options: argparse.Namespace) -> list[str]:
    lines = []
    for shape in options.shapes:
        for workload in options.workloads:
            lines += [*Cell(shape, workload, options).run(), ""]
    return lines


FLAT = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
import engine_made as made
from rankwright.toolbox.model import Reranker

def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024

folder, count, word, least = sys.argv[2], int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
reranker = Reranker.load(folder, device="cpu")
lists = made.lists(made.SHAPES["minilm-1"], made.WORKLOADS["titles"], max(1, count // made.CANDIDATES))
pairs = [(query, document) for query, documents in lists for document in documents][:count]
del lists
reranker.score(pairs[:1000], precision=word)
reranker._encoder = None  # which remembers texts
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM counts from here
times, end = [], time.perf_counter() + least
while not times or time.perf_counter() < end:
    reranker._encoder = None
    start = time.perf_counter()
    reranker.score(pairs, precision=word)
    times.append(time.perf_counter() - start)
print(json.dumps({"seconds": sorted(times)[len(times) // 2], "peak": status("VmHWM"), "before": before}))
"""


def flat(options: argparse.Namespace) -> list[str]:
    """Time per pair and peak memory of ours, from a thousand pairs to a million, each in a fresh process."""
    folder = made.model("minilm-1", options.work / "minilm-1")
    found: dict[int, list[dict]] = {count: [] for count in options.counts}
    for number in range(options.rounds):
        for count in options.counts if number % 2 == 0 else options.counts[::-1]:
            arguments = [str(WORKER.parent), str(folder), str(count), options.words[0], str(options.least)]
            done = subprocess.run([sys.executable, "-c", FLAT, *arguments], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found[count].append(json.loads(done.stdout.splitlines()[-1]))
            last = found[count][-1]
            print(f"{count} pairs: {last['seconds'] / count * 1e6:.0f} us a pair", file=sys.stderr, flush=True)
    head = "| pairs | microseconds a pair | peak MB | before the call MB | the call's own MB |"
    lines = [f"MiniLM's shape cut to 1 layer, titles, {options.words[0]}", "", head, "|---|---|---|---|---|"]
    for count, runs in found.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        own = (middle["peak"] - middle["before"]) / 1e6
        before = f"{middle['before'] / 1e6:.0f}"
        cells = [f"{count:,}", f"{middle['seconds'] / count * 1e6:.1f}", f"{middle['peak'] / 1e6:.0f}"]
        lines.append(f"| {' | '.join([*cells, before, f'{own:.0f}'])} |")
    return [*lines, "", "Before the call stand the model and the pairs' own texts, which grow with their number."]
