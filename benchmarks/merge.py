"""Time and memory of a merge: two checkpoints of XLM-R-base's shape, by rankwright and by two other tools.

    python benchmarks/merge.py --work DIR [--peers-python PATH] [--repeats 3]

It makes two rerankers of random weights (278 million parameters in float32, 1.1 GB each, with a tokenizer of 250,002
tokens), in DIR, and deletes them at the end. Then every tool merges them, in turn, `--repeats` times, each time in a
fresh process; the order is turned by one from round to round. What is run, at weight 0.3 of the second model, output
in float32:

    rankwright         `rankwright merge A B --method linear|slerp --weight 0.3 --out C`
    LM_Cocktail        `mix_models([A, B], "reranker", [0.7, 0.3], C)`; it has no slerp
    mergekit-yaml      its usual command, which infers the architecture (it ships none for XLM-R's classifier)
    mergekit-pytorch   its command for raw tensors: no architecture, configuration or tokenizer is read or written

PATH is the interpreter of the environment where the others are installed (mergekit, LM_Cocktail and what that imports
without saying so: sentence-transformers); what is not there is left out, and the table says so.

Wall time is that of the process, and once more with the `sync` after it: rankwright waits until its file is on the
disk, the others leave that to the system. Peak memory is what the system counted for the process (ru_maxrss), which
holds mapped files too; `own` is the highest of its anonymous memory, looked at 50 times a second. Both are given above
those of a bare interpreter. The outputs are compared, entry by entry, with the formulas in float64. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

WEIGHT = 0.3
AGREE = 1e-5  # float32 arithmetic on weights of about 0.02, and on layer norms' of about 1
LIBRARIES = ("torch", "transformers", "safetensors", "numpy")
PEERS = ("LM_Cocktail", "mergekit")

MAKE = """
import sys
from pathlib import Path
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
special = ["<s>", "<pad>", "</s>", "<unk>"]
pieces = [(token, 0.0) for token in special] + [(f"\\u2581piece{n}", -1.0 - n / 250002) for n in range(249997)]
tokenizer = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(folder)
torch.manual_seed(0)
config = XLMRobertaConfig(
    vocab_size=250002, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    max_position_embeddings=514, type_vocab_size=1, num_labels=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
)
model = XLMRobertaForSequenceClassification(config)
generator = torch.Generator().manual_seed(seed)
with torch.no_grad():  # two fine-tunings of one start
    for parameter in model.parameters():
        parameter += 0.005 * torch.randn(parameter.shape, generator=generator)
model.save_pretrained(folder)
"""

COCKTAIL = """
import sys
from LM_Cocktail import mix_models
mix_models([sys.argv[1], sys.argv[2]], model_type="reranker", weights=[1 - float(sys.argv[3]), float(sys.argv[3])],
           output_path=sys.argv[4])
"""

COMPARE = """
import json, sys
from pathlib import Path
import numpy as np
from safetensors import safe_open

def opened(folder):
    files = [safe_open(file, framework="np") for file in sorted(Path(folder).glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}

def linear(a, b, t):
    return (1 - t) * a + t * b

def slerp(a, b, t):
    if not (np.linalg.norm(a) and np.linalg.norm(b)):
        return linear(a, b, t)
    cosine = float((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)))
    if abs(cosine) > 0.9995:
        return linear(a, b, t)
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)

formula, weight, first, second, *outputs = sys.argv[1:]
one, other = opened(first), opened(second)
made = {folder: opened(folder) for folder in outputs}
apart = {folder: 0.0 for folder in outputs}
between = {}
for name in one:
    a, b = (np.asarray(place[name].get_tensor(name)).astype(np.float64).ravel() for place in (one, other))
    wanted = globals()[formula](a, b, float(weight))
    found = {folder: files[name].get_tensor(name) for folder, files in made.items()}
    for folder, values in found.items():
        assert values.dtype == np.float32, (folder, name, values.dtype)
        apart[folder] = max(apart[folder], float(np.abs(values.ravel() - wanted).max()))
        for later in outputs[outputs.index(folder) + 1:]:
            far = float(np.abs(values - found[later]).max())
            between[f"{folder} {later}"] = max(between.get(f"{folder} {later}", 0.0), far)
for folder, files in made.items():
    assert set(files) == set(one), (folder, set(files) ^ set(one))
print(json.dumps({"apart": apart, "between": max(between.values(), default=0.0)}))
"""


class Case:
    """One tool and method: its command, and where it writes."""

    def __init__(self, tool, method, command, out):
        self.tool, self.method, self.command, self.out = tool, method, [str(word) for word in command], out
        self.name = f"{tool} {method}"
        self.runs = []


def cases(work: Path, peers_python: str | None, found: dict[str, str]) -> list[Case]:
    a, b = work / "a", work / "b"
    outs = work / "out"
    made = []
    for method in ("linear", "slerp"):
        out = outs / f"rankwright-{method}"
        words = [
            sys.executable,
            "-m",
            "rankwright",
            "merge",
            a,
            b,
            "--method",
            method,
            "--weight",
            WEIGHT,
            "--out",
            out,
        ]
        made.append(Case("rankwright", method, words, out))
    if "LM_Cocktail" in found:
        out = outs / "cocktail"
        made.append(Case("LM_Cocktail", "linear", [peers_python, "-c", COCKTAIL, a, b, WEIGHT, out], out))
    if "mergekit" in found:
        for method in ("linear", "slerp"):
            for tool, module in (("mergekit-yaml", "run_yaml"), ("mergekit-pytorch", "merge_raw_pytorch")):
                out = outs / f"{tool}-{method}"
                ends = ("", "") if tool == "mergekit-yaml" else ("/model.safetensors", "/model.safetensors")
                config = work / f"{tool}-{method}.yaml"
                config.write_text(json.dumps(mergekit_config(method, f"{a}{ends[0]}", f"{b}{ends[1]}")))
                code = f"from mergekit.scripts.{module} import main; main()"
                made.append(Case(tool, method, [peers_python, "-c", code, config, out], out))
    return made


def mergekit_config(method: str, a: str, b: str) -> dict:
    """JSON is YAML."""
    config = {"merge_method": method, "dtype": "float32", "models": [{"model": a}, {"model": b}]}
    if method == "slerp":
        return {**config, "base_model": a, "parameters": {"t": WEIGHT}}
    weights = [{"model": a, "parameters": {"weight": 1 - WEIGHT}}, {"model": b, "parameters": {"weight": WEIGHT}}]
    return {**config, "models": weights}


def measure(command: list[str], log: Path) -> dict[str, float]:
    """Seconds, seconds with a sync, peak resident and peak anonymous memory (bytes) of a process of its own."""
    os.sync()
    with log.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        anonymous = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            anonymous = max(anonymous, anonymous_of(process.pid))
            time.sleep(0.02)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        told = log.read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(command)[:300]} ended with {process.returncode}:\n{told}")
    os.sync()
    synced = time.perf_counter() - start
    return {"wall": wall, "synced": synced, "peak": usage.ru_maxrss * 1024, "own": anonymous}


def anonymous_of(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def versions(python: str, names: tuple[str, ...]) -> dict[str, str]:
    """Name -> version, of those that are installed there."""
    code = (
        "import json, sys\nfrom importlib.metadata import PackageNotFoundError, version\nfound = {}\n"
        "for name in sys.argv[1:]:\n    try:\n        found[name] = version(name)\n"
        "    except PackageNotFoundError:\n        pass\nprint(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def make(work: Path) -> None:
    for seed, name in enumerate("ab", start=1):
        if not (work / name / "model.safetensors").exists():
            subprocess.run([sys.executable, "-c", MAKE, str(work / name), str(seed)], check=True)


def compare(work: Path, method: str, made: list[Case]) -> dict:
    outs = [str(case.out) for case in made]
    command = [sys.executable, "-c", COMPARE, method, str(WEIGHT), str(work / "a"), str(work / "b"), *outs]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def run(work: Path, made: list[Case], repeats: int) -> dict[str, dict]:
    """Measure every case `repeats` times, in turn; what the outputs of each method differ by, after the last round."""
    for repeat in range(repeats):
        turn = repeat % len(made)
        for case in made[turn:] + made[:turn]:
            shutil.rmtree(case.out, ignore_errors=True)
            case.out.parent.mkdir(exist_ok=True)
            case.runs.append(measure(case.command, work / "log.txt"))
            last = case.runs[-1]
            print(f"{case.name}: {last['wall']:.1f} s, {last['peak'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    methods = sorted({case.method for case in made})
    return {method: compare(work, method, [case for case in made if case.method == method]) for method in methods}


def table(made: list[Case], bare: dict[str, dict[str, float]], compared: dict[str, dict]) -> list[str]:
    lines = [
        "| tool | method | seconds | (range) | on disk | peak GB | above bare | own above bare | largest error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in made:
        walls = [run["wall"] for run in case.runs]
        middle = {key: statistics.median(run[key] for run in case.runs) for key in case.runs[0]}
        own = bare[case.command[0]]
        cells = [case.tool, case.method, f"{middle['wall']:.1f}", f"{min(walls):.1f}–{max(walls):.1f}"]
        cells += [f"{middle['synced']:.1f}", f"{middle['peak'] / 1e9:.2f}"]
        cells += [f"{(middle['peak'] - own['peak']) / 1e9:.2f}", f"{(middle['own'] - own['own']) / 1e9:.2f}"]
        cells += [f"{compared[case.method]['apart'][str(case.out)]:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def environment(peers_python: str | None, found: dict[str, str]) -> str:
    here = versions(sys.executable, ("rankwright", *LIBRARIES))
    there = versions(peers_python, LIBRARIES) | found if peers_python else {}
    told = [
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        ", ".join(f"{name} {number}" for name, number in here.items()),
    ]
    if there:
        told.append(f"the others: {', '.join(f'{name} {number}' for name, number in there.items())}")
    return "; ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description="time and memory of a merge, beside other tools")
    parser.add_argument("--work", type=Path, required=True, help="a folder for some 10 GB; what is made there goes")
    parser.add_argument("--peers-python", help="the interpreter where mergekit and LM_Cocktail are installed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the two checkpoints for the next time")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    found = versions(options.peers_python, PEERS) if options.peers_python else {}
    make(work)
    made = cases(work, options.peers_python, found)
    pythons = dict.fromkeys(case.command[0] for case in made)
    bare = {python: measure([python, "-c", "import time; time.sleep(0.2)"], work / "log.txt") for python in pythons}
    try:
        compared = run(work, made, options.repeats)
    finally:
        shutil.rmtree(work / "out", ignore_errors=True)
        for path in [*work.glob("*.yaml"), work / "log.txt", *([] if options.keep else [work / "a", work / "b"])]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    print(*table(made, bare, compared), "", sep="\n")
    for method, told in compared.items():
        print(f"The outputs of {method} differ from each other by at most {told['between']:.1e}.")
        if max(told["between"], *told["apart"].values()) > AGREE:
            raise SystemExit(f"the outputs of {method} do not agree: {told}")
    if missing := [name for name in PEERS if name not in found]:
        print(f"Left out, not installed: {', '.join(missing)}.")
    print(f"Medians of {options.repeats}; {environment(options.peers_python, found)}.")


if __name__ == "__main__":
    main()
