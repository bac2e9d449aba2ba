"""One training by one system, in a fresh process of its environment: pairs a second and peak memory, as JSON.

    PYTHON engine_trainer.py SYSTEM FOLDER GROUPS OUT OPTIONS          started by engine.py; not meant for people

GROUPS is a file of [query, [document, ...]], the first document relevant; every system sees all of them once, so many
a step. OPTIONS is JSON: precision, groups (a step), learning_rate, seed, save. Steps are timed alike for all: PyTorch
calls a hook after every optimiser's step. The first steps are left out, and so is all that is before and after.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

LENGTH = 512
WARM = 3
"""Steps that are not counted."""

Groups = list[tuple[str, list[str]]]


def rankwright(folder: str, groups: Groups, out: Path, options: dict) -> dict:
    from rankwright.core import Group
    from rankwright.rooms.train import Workbench, train
    from rankwright.sections import Training

    made = [
        Group(
            query_id=str(number),
            query=query,
            document_ids=[f"{number}-{place}" for place in range(len(documents))],
            documents=documents,
            labels=[1] + [0] * (len(documents) - 1),
            teacher=[float("nan")] * len(documents),
            origins=["positive"] + ["mined"] * (len(documents) - 1),
        )
        for number, (query, documents) in enumerate(groups)
    ]
    section = Training(
        base=folder,
        loss=options.get("loss", "listwise"),
        epochs=1,
        batch=options["groups"],
        learning_rate=options["learning_rate"],
        max_length=LENGTH,
        precision=options["precision"],
        dev=None,
        keep="last",
        checkpoints=1,
        seed=options["seed"],
        max_steps=options.get("steps"),
        quantization_aware=options.get("aware", False),
    )
    bench = Workbench(out, device="cpu", seed=options["seed"], cache=out.parent / "cache")
    trained = train(made, section, base=folder, dev=None, bench=bench)
    rows = next((note.split("use ")[1].split(";")[0] for note in trained.notes if "the texts use" in note), "all")
    return {"precision": trained.precision, "rows": rows}


def sentence_transformers(folder: str, groups: Groups, out: Path, options: dict) -> None:
    import torch
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

    model = CrossEncoder(folder, num_labels=1, max_length=LENGTH, device="cpu", model_kwargs={"dtype": torch.float32})
    if options["loss"] == "bce":
        data, batch, loss = _pairs(groups), options["groups"] * len(groups[0][1]), losses.BinaryCrossEntropyLoss(model)
    else:
        # Its target is softmax(labels): with 1 the relevant of 8 documents gets 0.28 of it, with 20 all.
        labels = [[options.get("label", 1.0)] + [0.0] * (len(documents) - 1) for _, documents in groups]
        data = {"query": [query for query, _ in groups], "docs": [documents for _, documents in groups]}
        data["labels"], batch, loss = labels, options["groups"], losses.ListNetLoss(model)
    arguments = CrossEncoderTrainingArguments(**_arguments(out, batch, options))
    CrossEncoderTrainer(model=model, args=arguments, train_dataset=Dataset.from_dict(data), loss=loss).train()
    if options.get("save"):
        model.save_pretrained(str(out / "model"))


def hugging_face(folder: str, groups: Groups, out: Path, options: dict) -> None:
    """Transformers' Trainer on tokenised pairs, binary cross-entropy, padded batch by batch."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    pairs = Dataset.from_dict(_pairs(groups))
    encoded = pairs.map(
        lambda rows: {**tokenizer(rows["query"], rows["docs"], truncation=True, max_length=LENGTH)},
        batched=True,
        remove_columns=["query", "docs"],
    )

    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs["logits"].view(-1), labels.float())

    batch = options["groups"] * len(groups[0][1])
    Trainer(
        model=model,
        args=TrainingArguments(**_arguments(out, batch, options)),
        train_dataset=encoded,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=loss,
    ).train()


def flag_embedding(folder: str, groups: Groups, out: Path, options: dict) -> None:
    """Its own command line, on its own file format. Its lengths are those of the query and the passage apart."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "groups.jsonl"
    rows = [{"query": query, "pos": documents[:1], "neg": documents[1:]} for query, documents in groups]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = _arguments(out / "out", options["groups"], options)
    arguments |= {"model_name_or_path": folder, "train_data": str(file), "train_group_size": len(groups[0][1])}
    arguments |= {"query_max_len": 32, "passage_max_len": LENGTH - 36, "cache_path": str(out / "cache")}
    told = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    sys.argv = [sys.argv[0], *told]
    from FlagEmbedding.finetune.reranker.encoder_only.base.__main__ import main

    main()


SYSTEMS = {
    "rankwright": rankwright,
    "sentence-transformers": sentence_transformers,
    "HF Trainer": hugging_face,
    "FlagEmbedding": flag_embedding,
}


def _pairs(groups: Groups) -> dict[str, list]:
    """Flat columns; `labels` is the name that every collator keeps."""
    return {
        "query": [query for query, documents in groups for _ in documents],
        "docs": [document for _, documents in groups for document in documents],
        "labels": [float(place == 0) for _, documents in groups for place in range(len(documents))],
    }


def _arguments(out: Path, batch: int, options: dict) -> dict[str, object]:
    return {
        "output_dir": str(out),
        "num_train_epochs": 1,
        "max_steps": options.get("steps") or -1,
        "per_device_train_batch_size": batch,
        "learning_rate": options["learning_rate"],
        "warmup_ratio" if options.get("old") else "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "bf16": options["precision"] == "bf16",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": options["seed"],
    }


def _status(name: str) -> int:
    """A number of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _import_libraries(system: str) -> None:
    """All that the system loads before there is a model, so that the baseline holds it."""
    if system == "rankwright":
        import accelerate  # noqa: F401
        import transformers

        import rankwright.rooms.train  # noqa: F401
    elif system == "sentence-transformers":
        import sentence_transformers.cross_encoder  # noqa: F401
    elif system == "HF Trainer":
        import transformers

        _ = transformers.Trainer
    else:
        import FlagEmbedding.finetune.reranker.encoder_only.base  # noqa: F401


def main() -> None:
    system, folder, file, out, told = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    options = json.loads(told)
    groups = [(query, documents) for query, documents in json.loads(Path(file).read_text())]
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    _import_libraries(system)
    torch.manual_seed(options["seed"])
    times: list[float] = []
    register_optimizer_step_post_hook(lambda *_: times.append(time.perf_counter()))
    baseline = _status("VmRSS")
    start = time.perf_counter()
    more = SYSTEMS[system](folder, groups, Path(out), options) or {}
    whole = time.perf_counter() - start
    pairs = options["groups"] * len(groups[0][1])
    rate = pairs * (len(times) - WARM - 1) / (times[-1] - times[WARM])
    told = {"rate": rate, "steps": len(times), "seconds": whole, "peak": _status("VmHWM"), "baseline": baseline}
    told |= {"first": times[0] - start, **more}
    told["step_seconds"] = [round(later - earlier, 4) for earlier, later in itertools.pairwise(times)]
    replies.write(json.dumps(told) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
