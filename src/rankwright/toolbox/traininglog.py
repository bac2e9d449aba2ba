"""A training's log: `log.jsonl`, one record a line, and the same for TensorBoard.

In come records (step, and numbers by name); out come the two files. It does not know what the numbers mean.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def evaluations(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records with a dev value that compare: of a training that came to round as int8 does, those since."""
    measured = [record for record in records if record.get("dev")]
    since = [record for record in measured if record.get("rounded")]
    return since or measured


class TrainingLog:
    """`log.jsonl` in a folder, cut back to the checkpoint's length when a training goes on."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "log.jsonl"
        self.path.touch()

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.path.stat().st_size

    def cut(self, size: int) -> None:
        """Cut it back to so many bytes."""
        with self.path.open("r+b") as file:
            file.truncate(size)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record; a number that is not finite becomes null, since JSON has none of its kind."""
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        lost = {name: None for name, value in numbers.items() if not math.isfinite(value)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, **lost}, allow_nan=False) + "\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, oldest first."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)

    def to_tensorboard(self) -> None:
        """The same records for TensorBoard. Written from the log at the end, so that a resumed training has no gap."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        folder = self.folder / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)  # what another process holds open may stay on a network's disk
        # Not by its SummaryWriter: that writes in a thread, and waits for it for ever where the disk is full.
        writer = EventsWriter(str(folder / "events"))
        for record in self.records():
            values = {name: value for name, value in record.items() if isinstance(value, float)}
            for kind in ("dev", "averaged_dev"):
                values |= {f"{kind}/{name}": value for name, value in record.get(kind, {}).items()}
            for name, value in values.items():
                writer.write_event(Event(wall_time=time.time(), step=record["step"], summary=scalar(name, value)))
        writer.close()
