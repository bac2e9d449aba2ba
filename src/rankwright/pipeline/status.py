"""How far a run folder is, stage by stage.

In: a run folder. Out: values to print. It reads what was noted beside the stages, and looks into no box.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwright import config
from rankwright.errors import ArtefactError
from rankwright.pipeline.walk import Walk
from rankwright.workspace import RunFolder


def status(run: Path) -> list[Mapping[str, Any]]:
    """Each stage of a run folder: done, outdated (an earlier one was made anew) or unfinished; how far a training is.

    Raises:
        ArtefactError: there is no run in the folder.
    """
    resolved = run / "resolved.yaml"
    if not resolved.exists():
        raise ArtefactError("no run is here", where=str(run), hint="name a run folder, as in runs/demo")
    walk, folder = Walk(config.load_experiment(resolved), run.parent), RunFolder(run)
    told: dict[str, dict[str, Any]] = {}
    for stage in walk.stages():
        told[stage.name] = _stage_status(folder, stage.name, told)
    return list(told.values())


def _stage_status(folder: RunFolder, name: str, before: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    done = folder.read(name)
    if done:
        then = done["made_of"].items()
        inputs = {what.removeprefix("input."): key for what, key in then if what.startswith("input.")}
        good = {stage: told["key"] for stage, told in before.items() if told["state"] == "done"}
        state = "done" if inputs.items() <= good.items() else "outdated"
        return {"stage": name, "state": state, "seconds": done["seconds"], "key": done["key"]}
    made = folder.stage(name)
    if not (made / "unfinished").exists():
        return {"stage": name, "state": "not begun"}
    log = made / "log.jsonl"
    steps = log.read_text(encoding="utf-8").count('"loss"') if log.exists() else None
    return {"stage": name, "state": "unfinished", **({"steps": steps} if steps is not None else {})}
