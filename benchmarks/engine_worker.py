"""One system that scores pairs, in a process and an environment of its own: loads once, then measures on command.

    PYTHON engine_worker.py SYSTEM FOLDER          started by engine.py; not meant for people

It reads commands from stdin, one JSON object a line, and answers each with one line of JSON. A command names a file of
pairs ([[query, [document, ...]], ...]), a mode, and a file for the scores:

    flat        all pairs of all queries in one call
    per query   one call a query, as users do

`tune` asks for the fastest batch size of 32, 64 and 128 on some of the pairs. Logits are asked for (no sigmoid).
Knows nothing of shapes, workloads or tables. Each system imports its own libraries only.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Pairs = list[tuple[str, str]]
Score = Callable[[Pairs, int], "np.ndarray"]
SIZES = (32, 64, 128)


@functools.cache
def _reranker(folder: str):
    from rankwright.toolbox.model import Reranker

    return Reranker.load(folder, device="cpu")


def rankwright(folder: str, word: str) -> Score:
    reranker = _reranker(folder)

    def score(pairs: Pairs, size: int) -> np.ndarray:
        reranker._encoder = None  # which remembers texts: others read them in every round
        return reranker.score(pairs, precision=word)

    return score


def sentence_transformers(folder: str, kind: str) -> Score:
    """fp32 and bf16 weights in torch; its OpenVINO backend as it comes; OpenVINO int8 by its own static export."""
    import torch
    from sentence_transformers import CrossEncoder

    if kind == "openvino":
        model = CrossEncoder(folder, device="cpu", backend="openvino", max_length=512)
    elif kind == "onnx-int8":
        model = _onnx_int8(folder)
    elif kind == "openvino-int8":
        model = _openvino_int8(folder)
    else:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
        model = CrossEncoder(folder, device="cpu", model_kwargs={"dtype": dtype}, max_length=512)
    identity = torch.nn.Identity()

    def score(pairs: Pairs, size: int) -> np.ndarray:
        tensor = model.predict(
            pairs, batch_size=size, activation_fn=identity, show_progress_bar=False, convert_to_tensor=True
        )
        return tensor.float().cpu().numpy()

    return score


def _openvino_int8(folder: str):
    """Calibrated on the pairs in calibration.jsonl beside the model, as many as its own default (300)."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.backend import export_static_quantized_openvino_model

    file = "openvino/openvino_model_qint8_quantized.xml"
    if not (Path(folder) / file).exists():
        plain = CrossEncoder(folder, device="cpu", backend="openvino", max_length=512)
        data = {"dataset_name": f"{folder}/calibration", "dataset_config_name": "default"}
        export_static_quantized_openvino_model(plain, None, folder, **data, dataset_split="train", column_name="pair")
    options = {"file_name": file}
    return CrossEncoder(folder, device="cpu", backend="openvino", model_kwargs=options, max_length=512)


def _onnx_int8(folder: str):
    """Its own dynamic export, for AVX-512 with VNNI."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    file = "onnx/model_qint8_avx512_vnni.onnx"
    if not (Path(folder) / file).exists():
        plain = CrossEncoder(folder, device="cpu", backend="onnx", max_length=512)
        export_dynamic_quantized_onnx_model(plain, "avx512_vnni", folder)
    return CrossEncoder(folder, device="cpu", backend="onnx", model_kwargs={"file_name": file}, max_length=512)


def flag_embedding(folder: str, kind: str) -> Score:
    from FlagEmbedding import FlagReranker

    model = FlagReranker(folder, use_fp16=False, devices=["cpu"], max_length=512)
    return lambda pairs, size: np.asarray(model.compute_score(pairs), dtype=np.float32).reshape(-1)


def rerankers(folder: str, kind: str) -> Score:
    from rerankers import Reranker

    model = Reranker(folder, model_type="cross-encoder", device="cpu", dtype="float32", verbose=0)
    model.tokenizer.model_max_length = 512

    def score(pairs: Pairs, size: int) -> np.ndarray:
        ranked = model.rank(pairs[0][0], [document for _, document in pairs], doc_ids=list(range(len(pairs))))
        found = np.empty(len(pairs), dtype=np.float32)
        for result in ranked.results:
            found[result.document.doc_id] = result.score
        return found

    return score


def notebook(folder: str, kind: str) -> Score:
    """Tokenise and run all of a query's pairs at once: what notebooks and model cards show."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).float().eval()

    def score(pairs: Pairs, size: int) -> np.ndarray:
        with torch.no_grad():
            inputs = tokenizer(pairs, padding=True, truncation=True, return_tensors="pt", max_length=512)
            return model(**inputs, return_dict=True).logits.view(-1).float().numpy()

    return score


SYSTEMS = {
    "rankwright": rankwright,
    "sentence-transformers": sentence_transformers,
    "FlagEmbedding": flag_embedding,
    "rerankers": rerankers,
    "notebook": notebook,
}


def ceilings(seconds: float) -> dict[str, float]:
    """The best rate of a square-ish matrix product, in operations a second: fp32, bf16 and int8 (u8 x s8 by oneDNN).

    The shapes are those of the two models' linears at 2,048 tokens, and a large square: the best of them counts.
    """
    import torch

    best = {"fp32": 0.0, "bf16": 0.0, "int8": 0.0}
    for rows, inner, columns in ((2048, 768, 3072), (2048, 3072, 768), (2048, 384, 1536), (2048, 2048, 2048)):
        left, right = torch.randn(rows, inner), torch.randn(columns, inner)
        half = left.bfloat16(), right.bfloat16()
        runs = {
            "fp32": lambda a=left, b=right: torch.nn.functional.linear(a, b),
            "bf16": lambda pair=half: torch.nn.functional.linear(*pair),
            "int8": _int8_product(left, right),
        }
        for name, run in runs.items():
            best[name] = max(best[name], 2 * rows * inner * columns / _quickest(run, seconds))
    return best


def _int8_product(left, right) -> Callable[[], object]:
    import torch

    activations = (left * 20).clamp(-128, 127).to(torch.int8).add(128).to(torch.uint8)
    weights = (right * 20).clamp(-128, 127).to(torch.int8)
    scales, zeros = torch.ones(len(right)), torch.zeros(len(right), dtype=torch.int64)
    packed = torch.ops.onednn.qlinear_prepack(weights.t().contiguous().t(), list(left.shape))
    end = (1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(activations, 0.05, 128, packed, scales, zeros, None, *end)


def _quickest(run: Callable[[], object], seconds: float) -> float:
    """The least time of a call, among those that fit into `seconds`."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


class Worker:
    """Answers commands for one system, which is loaded when it is first needed."""

    def __init__(self, system: str, folder: str) -> None:
        self.system, self.folder = system, folder

    @functools.cache  # noqa: B019  (one worker a process)
    def score(self, kind: str) -> Score:
        """The system's function from pairs and a batch size to logits."""
        return SYSTEMS[self.system](self.folder, kind)

    def way(self, word: str) -> str:
        """What rankwright computes a word by: its guard may have fallen back."""
        decided = _reranker(self.folder).decisions.get(word)
        if decided:
            return decided.backend
        return word if " " in word else "torch fp32"

    def answer(self, command: dict) -> dict:
        """Do what a command says; what is to be told of it."""
        if command["do"] == "ceilings":
            return ceilings(command["seconds"])
        if command["do"] == "load":
            return {"seconds": self._seconds(lambda: self.score(command["kind"]))}
        if command["do"] == "way":
            return {"way": self.way(command["kind"])}
        score = self.score(command["kind"])
        lists = json.loads(Path(command["pairs"]).read_text())
        by_query = [[(query, document) for document in documents] for query, documents in lists]
        flat = [pair for pairs in by_query for pair in pairs]
        if command["do"] == "tune":
            some = flat[:: max(1, len(flat) // command["sample"])]
            times = {size: self._seconds(lambda size=size: score(some, size)) for size in SIZES}
            return {"batch_size": min(times, key=times.__getitem__)}
        calls = [flat] if command["mode"] == "flat" else by_query
        scores, start = [], time.perf_counter()
        for pairs in calls:
            scores.append(score(pairs, command["batch_size"]))
            if command["limit"] and time.perf_counter() - start > command["limit"]:
                break
        seconds = time.perf_counter() - start
        found = np.concatenate(scores)
        np.save(command["scores"], found)
        return {"seconds": seconds, "pairs": len(found)}

    @staticmethod
    def _seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def main() -> None:
    system, folder = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log

    def reply(value: dict) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    worker = Worker(system, folder)
    for line in sys.stdin:
        reply(_guarded(worker, json.loads(line)))


def _guarded(worker: Worker, command: dict) -> dict:
    """Its answer, or the error: told in the table, since one peer less is no reason to stop."""
    try:
        return worker.answer(command)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}


if __name__ == "__main__":
    main()
