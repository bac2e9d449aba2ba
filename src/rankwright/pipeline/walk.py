"""From stage to stage: each is reused, gone on with, or made.

In: an experiment. Out: its run folder, and what became of each stage. It does not know what the stages do.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwright import config
from rankwright.boxes import Boxes
from rankwright.errors import ConfigError, RankwrightError
from rankwright.pipeline.base import ROOMS, Outcome, Site, Stage
from rankwright.pipeline.judging import Judging
from rankwright.pipeline.making import Making
from rankwright.pipeline.preflight import Preflight, refuse_without_candidates
from rankwright.pipeline.reranking import Reranking
from rankwright.plan import Plan
from rankwright.sections import Experiment
from rankwright.toolbox.metrics import measure_name
from rankwright.toolbox.progress import say, stage_line
from rankwright.version import __version__
from rankwright.workspace import MadeOf, RunFolder, disk_errors, stage_key, write_json, write_text

_PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "accelerate", "peft", "faiss-cpu", "bm25s"),
    *("ir-measures", "numpy", "scipy", "datasets"),
)


class Walk:
    """An experiment on its way through the rooms, in the run folder ``runs/NAME``.

    Raises, when it is made:
        ConfigError: a name in the experiment stands for nothing.
    """

    def __init__(self, experiment: Experiment, runs: Path = Path("runs")) -> None:
        _check_metrics(experiment)
        self.site = Site.of(experiment, runs)
        self.making = Making(self.site)
        self.reranking = Reranking(self.site)
        self.judging = Judging(self.site)

    @property
    def plan(self) -> Plan:
        """What the names in the experiment stand for."""
        return self.site.plan

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return self.site.folder

    @property
    def boxes(self) -> Boxes:
        """What stands in the run folder."""
        return self.site.boxes

    def run(self, until: str | None = None, *, source: str | None = None) -> list[Outcome]:
        """Walk up to the room `until` (default: the last), making what cannot be reused.

        `source` is the text of the experiment's file, kept beside the resolved one.

        Raises:
            RankwrightError: of any kind; what was done before it stays, and the same call goes on from there.
        """
        stages = self._until(until)
        outcomes: list[Outcome] = []
        with disk_errors(self.folder.root), self.folder.locked():
            self._write_front(source)
            written = self.site.experiment
            for stage in stages:  # one at a time: a stage may change what the experiment asks for after it
                if self.site.experiment is not written:
                    written = self.site.experiment
                    self._write_resolved()
                outcomes.append(self._walk_through(stage))
                self._look_ahead(stage, until)
            if self.site.experiment is not written:
                self._write_resolved()
        return outcomes

    def dry_run(self, until: str | None = None) -> list[Outcome]:
        """What `run` would do; nothing is written. A stage's key does not wait for the stages before it."""
        outcomes: list[Outcome] = []
        for stage in self._until(until):
            decision = self.folder.decide(stage.name, self._made_of(stage))
            action = "reuse" if decision.reuse else "resume" if decision.resume else "run"
            outcomes.append(Outcome(stage.name, action, decision.why))
        return outcomes

    def stages(self) -> Iterator[Stage]:
        """All stages of the experiment, in order; which follow is settled as they are asked for."""
        yield from self.making.stages()
        yield from self.reranking.stages()
        yield from self.judging.stages()

    def _until(self, until: str | None) -> Iterator[Stage]:
        """The stages up to the last of a room, one at a time; an unknown room is refused at once."""
        if until is None:
            return self.stages()
        if until not in {stage.room for stage in self.stages()}:
            if until == "recipe":
                done = sorted(self.folder.root.glob("recipe/*/recipe.txt"))
                hint = f"what was found stands in {done[0]}" if done else "train: {recipe: auto}"
                raise ConfigError("no training asks for a search", hint=hint)
            raise ConfigError(f"the experiment has no {until} section", hint=f"add `{until}: {{}}` to it")
        last = ROOMS.index(until)
        return itertools.takewhile(lambda stage: ROOMS.index(stage.room) <= last, self.stages())

    def _made_of(self, stage: Stage) -> MadeOf:
        """What a stage is made of, and its key for those that follow."""
        made_of = stage.made_of()
        self.site.keys[stage.name] = stage_key(made_of)
        return made_of

    def _look_ahead(self, stage: Stage, until: str | None) -> None:
        """Stop now for what would stop the walk later; after a stage is done, so that its work is kept."""
        rooms, site = ROOMS if until is None else ROOMS[: ROOMS.index(until) + 1], self.site
        if stage.name == "data":
            Preflight(
                site.experiment,
                site.plan,
                sizes=site.boxes.data_sizes(),
                queries=lambda: site.boxes.collection.queries,
                wants=rooms.__contains__,
                made=lambda name: self.folder.read(name) is not None,
            ).check()
            site.adopt(site.experiment)  # a base may have been fetched, and seen to be none that can score
        following = {"rerank": site.experiment.rerank, "evaluate": site.experiment.evaluate}
        if stage.name == "retrieve" and any(own and room in rooms for room, own in following.items()):
            asked = site.boxes.collection.qrels.get(site.plan.split, {})
            found = site.boxes.candidates(site.plan.rerank_from, site.plan.split).rankings if asked else {}
            refuse_without_candidates(site.plan, len(found), len(asked))

    def _walk_through(self, stage: Stage) -> Outcome:
        made_of = self._made_of(stage)
        decision = self.folder.decide(stage.name, made_of)
        if decision.reuse:
            self.folder.tidy(stage.name)
            stage_line(stage.name, "reused", decision.why)
            stage.afterwards()
            return Outcome(stage.name, "reused", decision.why)
        action = "resumed" if decision.resume else "ran"
        stage_line(stage.name, "resumes" if decision.resume else "runs", decision.why)
        started = time.monotonic()
        with self.folder.making(stage.name, made_of) as out:
            lines = stage.work(out)
        stage.afterwards()
        for line in lines:
            say(line)
        seconds = time.monotonic() - started
        stage_line(stage.name, "done", f"{seconds:.1f} s")
        return Outcome(stage.name, action, decision.why, round(seconds, 2), lines)

    def _write_front(self, source: str | None) -> None:
        """The run folder's first page: the experiment as given, as resolved, and what it runs on."""
        self._write_resolved()
        if source is not None:
            write_text(self.folder.root / "experiment.yaml", source)
        write_json(self.folder.root / "environment.json", environment())

    def _write_resolved(self) -> None:
        """All that a person needs to make this run again, without the search for a recipe once that is done."""
        write_text(self.folder.root / "resolved.yaml", config.dump(self._as_found()))

    def _as_found(self) -> Experiment:
        """The experiment with what searches have found before, also where this walk ends before it comes to them."""
        wanted = self.site.experiment
        if not any(self.boxes.recipe(name) for name in self.plan.searches):
            return wanted
        ahead = Site.of(wanted, self.folder.root.parent)
        try:
            for stage in Making(ahead).stages():
                if ROOMS.index(stage.room) > ROOMS.index("recipe"):
                    break
                ahead.keys[stage.name] = stage_key(stage.made_of())
        except RankwrightError:
            return wanted  # a model or a file is not there now: whichever stage needs it will say so
        return ahead.experiment


def environment() -> dict[str, Any]:
    """What this process runs on: versions, processor, threads."""
    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "rankwright": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "packages": packages,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_metrics(experiment: Experiment) -> None:
    """Refuse an unknown metric now, and not after hours of training."""
    watched = [training.dev.metric for training in experiment.train.values() if training.dev]
    watched += [experiment.merge.choose_by] if experiment.merge else []
    asking = (experiment.blend, experiment.general, experiment.diagnose)
    watched += [section.metric for section in asking if section]
    for metric in (*(experiment.evaluate.metrics if experiment.evaluate else ()), *watched):
        measure_name(metric)
    if experiment.evaluate and experiment.verdict and experiment.rerank:
        deciding = experiment.verdict.metric
        if deciding not in experiment.evaluate.metrics:
            raise ConfigError(
                f"verdict.metric: {deciding!r} is not measured",
                hint=f"add {deciding} to evaluate.metrics, or verdict: null",
            )
