"""The engine beside its peers: scoring and training in pairs a second, memory, agreement, start of the command.

    python benchmarks/engine.py peers   --work DIR          makes the peers' environments, DIR/peer-NAME
    python benchmarks/engine.py score   --work DIR          two shapes x two workloads, all systems in one run
    python benchmarks/engine.py train   --work DIR          the same cells in training, and peak memory
    python benchmarks/engine.py quality --work DIR          dev nDCG@10 after equal pairs, beside ListNet
    python benchmarks/engine.py agree   --work DIR          rankings of each precision against fp32's
    python benchmarks/engine.py flat    --work DIR          a thousand pairs to a million: time a pair, memory
    python benchmarks/engine.py start   --work DIR          seconds of `rankwright --help`, and whether it imports torch

The peers are found in DIR, or where `--peers-python NAME=PATH` says; without one its rows are left out, and the table
says so. Shapes: xlmr (XLM-R base, as bge-reranker-base), minilm (MiniLM-L6), of random weights. Workloads: titles
(10 + 12 tokens), passages (10 + lognormal of mean 150, cut at 512); 100 candidates a query, none twice. Everything is
measured in turn, `--rounds` times; medians, and ratios taken within a round. Speed says nothing on a busy machine;
the ratios say a little. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import engine_scoring
import engine_training

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
OWN_PINS = ("torch",)
"""What the peers' environments take from constraints.txt: they hold other libraries back."""
PEERS = {
    "peer-st": [
        "sentence-transformers==6.2.0",
        "optimum==2.3.0",
        "optimum-intel==2.2.0",
        "transformers==5.5.*",
        "openvino==2026.4.1",
        "nncf==3.4.0",
        "accelerate==1.15.0",
        "datasets<5",
    ],
    "peer-onnx": ["sentence-transformers==5.7.0", "optimum-onnx==0.1.0", "onnxruntime==1.32.0", "transformers==4.57.6"],
    "peer-flag": ["FlagEmbedding==1.4.2", "transformers==4.57.6", "datasets<5"],
    "peer-rerankers": ["rerankers[transformers]==0.10.0", "transformers==4.57.6"],
}
LIBRARIES = ("torch", "transformers", "sentence-transformers", "optimum-intel", "openvino", "nncf", "onnxruntime")
LIBRARIES += ("FlagEmbedding", "rerankers", "accelerate", "numpy")


def peers(options: argparse.Namespace) -> list[str]:
    """Make the environments that are not there; torch first and pinned, since a peer alone would fetch another."""
    pins = [line for line in CONSTRAINTS.read_text().splitlines() if line.split("==")[0] in OWN_PINS]
    told = []
    for name, packages in PEERS.items():
        folder = options.work / name
        if not (folder / "made").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*install, *pins], check=True)
            subprocess.run([*install, *pins, *packages], check=True)
            # optimum-intel asks for it, and PyPI's is built for another torch: importing it fails.
            subprocess.run([*install[:3], "uninstall", "--quiet", "--yes", "torchvision"], check=True)
            (folder / "made").touch()
        told.append(f"{name}: {installed(str(folder / 'bin/python'))}")
    return told


def start(options: argparse.Namespace) -> list[str]:
    """Median seconds of the command's help, and whether torch is loaded by then."""
    command = str(Path(sys.executable).with_name("rankwright"))
    seconds = []
    for _ in range(max(5, options.rounds)):
        begun = time.perf_counter()
        subprocess.run([command, "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - begun)
    code = (
        "import sys\nsys.argv = ['rankwright', '--help']\nfrom rankwright.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nsys.stderr.write(str('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = "imports torch" if done.stderr.endswith("True") else "imports no torch"
    return [
        f"rankwright --help: {statistics.median(seconds):.3f} s, median of {len(seconds)} "
        f"({min(seconds):.3f}–{max(seconds):.3f}); {told}"
    ]


PARTS = {
    "peers": peers,
    "score": engine_scoring.score,
    "train": engine_training.train,
    "quality": engine_training.quality,
    "agree": engine_training.agree,
    "flat": engine_scoring.flat,
    "start": start,
}


def installed(python: str) -> str:
    """Names and versions of what counts in an environment."""
    code = (
        "import sys\nfrom importlib.metadata import PackageNotFoundError, version\n"
        "for name in sys.argv[1:]:\n    try:\n        print(name, version(name))\n"
        "    except PackageNotFoundError:\n        pass"
    )
    done = subprocess.run([python, "-c", code, *LIBRARIES], capture_output=True, text=True, check=True)
    return ", ".join(done.stdout.splitlines())


def environment(pythons: dict[str, str]) -> list[str]:
    """The machine, its load, and all versions."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    cpu = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    told = [f"{platform.system()}, {cpu}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"]
    told.append(f"rankwright {version('rankwright')}: {installed(sys.executable)}")
    return [*told, *(f"{name}: {installed(python)}" for name, python in pythons.items())]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models, environments and logs")
    parser.add_argument("--peers-python", nargs="*", default=[], metavar="NAME=PATH", help="peer-st=…/bin/python …")
    parser.add_argument("--shapes", default="minilm,xlmr", type=_words)
    parser.add_argument("--workloads", default="titles,passages", type=_words)
    parser.add_argument("--only", type=_words, help="peers whose names hold one of these; ours is always measured")
    parser.add_argument(
        "--words",
        default="exact,balanced,fast",
        type=_words,
        help="ours, the first is the reference: exact, balanced, fast, or a way by its name, as `openvino int8`. "
        "Random weights may not pass the guard: score measures a precision for sure only where its way is named",
    )
    parser.add_argument("--rounds", type=int, default=3, help="of measurement; seeds in quality")
    parser.add_argument("--pairs", type=int, help="score: pairs a measurement (default: 600; MiniLM's titles 2,000)")
    parser.add_argument("--tune-pairs", type=int, default=300, help="score: pairs on which a batch size is chosen")
    parser.add_argument(
        "--limit",
        type=float,
        default=0,
        help="score: one call a query stops after the query that passes so many seconds",
    )
    parser.add_argument("--ceiling-seconds", type=float, default=1.0, help="score: for each matrix product")
    parser.add_argument("--steps", type=int, default=24, help="train: optimiser steps")
    parser.add_argument("--losses", default="listwise,bce", type=_words, help="train: ours by these losses")
    parser.add_argument("--train-groups", type=int, default=4000, help="train: groups, of which so many steps are made")
    parser.add_argument("--aware", action="store_true", help="agree: train with quantization_aware")
    parser.add_argument("--groups", type=int, help="quality, agree: training groups (default: all)")
    parser.add_argument("--rate", type=float, default=1e-4, help="quality, agree: learning rate")
    parser.add_argument("--model", type=Path, help="agree: a fine-tuned reranker's folder (default: train one)")
    parser.add_argument("--queries", type=int, default=200, help="agree: test queries; quality: dev queries")
    parser.add_argument("--counts", default="1000,10000,100000,1000000", type=lambda text: [*map(int, text.split(","))])
    parser.add_argument("--least", type=float, default=5.0, help="flat: seconds that a count is measured at least")
    return parser.parse_args()


def found(options: argparse.Namespace) -> dict[str, str]:
    """The peers' environments: name -> its Python."""
    there = {name: str(options.work / name / "bin/python") for name in PEERS}
    there = {name: python for name, python in there.items() if Path(python).exists()}
    return there | dict(pair.split("=", 1) for pair in options.peers_python)


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def main() -> None:
    options = arguments()
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    options.pythons = found(options)
    lines = PARTS[options.part](options)
    options.pythons = found(options)  # `peers` has made some
    missing = [name for name in PEERS if name not in options.pythons]
    print(*lines, "", *environment(options.pythons), sep="\n")
    if missing and options.part != "start":
        print(f"Left out, no environment: {', '.join(missing)} (`peers` makes them).")


if __name__ == "__main__":
    main()
