"""The merge stage: several models made one, by weights that are written, or found on dev.

In: the site, with its models, candidates and dev split. Out: what the stage is made of, and how to make it. It does
not know how tensors are mixed, nor which weight is better.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rankwright import launch
from rankwright.core import Group
from rankwright.pipeline.base import VERSIONS, Site, flat
from rankwright.rooms.general import held_out
from rankwright.rooms.merge import merge
from rankwright.rooms.merge.sweep import least_points, sweep
from rankwright.rooms.merge.trial import Bench, Point
from rankwright.sections import OF_DIFFERENCES, DevSection, MergeSection, RerankSection
from rankwright.toolbox.devset import DevSet
from rankwright.toolbox.engine.guard import Decision
from rankwright.toolbox.formats import Splits, read
from rankwright.toolbox.formats.content import content
from rankwright.toolbox.front import Sweep, Trial
from rankwright.toolbox.model import has_head
from rankwright.toolbox.probe import groups_of, logits_of, loss_of, pairs_of
from rankwright.toolbox.scorer import CachedScorer
from rankwright.workspace import MadeOf, write_json, write_text


class Merging:
    """The stage of the site's `merge:` section."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def made_of(self) -> MadeOf:
        """The section, the models and, where dev is asked, what it is asked about."""
        section, plan = self._written(), self.site.plan
        made: dict[str, Any] = flat("merge", section.model_copy(update={"workers": 1}))  # which change nothing
        for model in plan.merged:
            made |= self.site.model_input(model)
        if section.asks_dev:
            rerank = self._rerank()
            made |= {f"rerank.{key}": getattr(rerank, key) for key in ("max_length", "precision", "both_orders")}
            made |= {"merge.candidates": plan.rerank_from, **self.site.inputs("data", "retrieve")}
        if section.weight == "sweep" and (general := self.site.experiment.general):
            made |= {**flat("general", general), "content.general.source": content(general.source)}
        return {**made, "merge.models": [model.name for model in plan.merged], "room": VERSIONS["merge"]}

    def work(self, out: Path) -> list[str]:
        """Make the merged model; find its weights first where that is asked for."""
        section, folders = self._section(), self._folders()
        told: list[str] = []
        weights, losses = None, None
        if section.weight == "sweep":
            found = self._sweep(out)
            weights, told = found.choice.weights, found.lines()
            write_json(out / "sweep.json", found.values())
            write_text(out / "sweep.txt", "\n".join(told) + "\n")
        elif section.method == "cocktail":
            losses = [self._loss(folder) for folder in folders]
        made = merge(folders, section, out / "model", weights=weights, losses=losses, probe=self._probe())
        write_json(out / "report.json", made.values())
        return [*told, *made.lines()]

    # ------------------------------------------------------------------------------------------------------- the sweep

    def _sweep(self, out: Path) -> Sweep:
        section, bench, file = self._section(), self._bench(out / "trials"), out / "trials.jsonl"
        known = {trial.name: trial for trial in _read(file)}

        def measured(points: Sequence[Point]) -> list[Trial]:
            missing = [point for point in points if point.name not in known]
            for trial in launch.map(bench, missing, section.workers):
                known[trial.name] = trial
                write_text(file, "".join(json.dumps(one.values()) + "\n" for one in known.values()))
            return [known[point.name] for point in points]

        found = sweep(
            lambda weights: measured([Point.at(weight, section) for weight in weights]),
            section,
            ingredients=measured(_alone(section)),
            seed=self.site.experiment.seed,
        )
        shutil.rmtree(bench.folder, ignore_errors=True)
        return found

    def _bench(self, folder: Path) -> Bench:
        section, rerank, general = self._section(), self._rerank(), self.site.experiment.general
        watched = DevSection(queries=section.queries, depth=section.depth, metric=section.choose_by)
        dev = watched.model_copy(update={"watch": section.watch})
        elsewhere = None
        if general:
            collection = read(general.source, Splits(), dedupe=True).collection
            elsewhere = DevSet.of(*held_out(collection, general, section.queries), watched)
        asked = DevSet.of(self.site.boxes.collection, self.site.candidates("dev"), dev)
        return Bench(
            models=tuple(self._folders()),
            section=section,
            dev=asked,
            general=elsewhere,
            folder=folder,
            cache=self.site.folder.cache,
            device=self.site.experiment.device,
            max_length=rerank.max_length,
            general_length=general.max_length if general else rerank.max_length,
            decision=self._decision(asked, elsewhere),
            both_orders=rerank.both_orders,
            probe=self._probe(),
        )

    def _decision(self, asked: DevSet, elsewhere: DevSet | None) -> Decision:
        """How all points are scored: as the last model that has a head may be, on the same queries of dev."""
        each = len(asked.pairs) + (len(elsewhere.pairs) if elsewhere else 0)
        rerank = self._rerank()
        scorer = CachedScorer(
            next((folder for folder in reversed(self._folders()) if has_head(folder)), self._folders()[-1]),
            cache=self.site.folder.cache,
            device=self.site.experiment.device,
            max_length=rerank.max_length,
            precision=rerank.precision,
            labels=self.site.guard_labels(),
        )
        orders = 2 if rerank.both_orders else 1
        return scorer.decide(asked.pairs, total=each * orders * least_points(self._section()))

    # ------------------------------------------------------------------------------------------------ what dev is asked

    def _loss(self, folder: Path) -> float:
        groups = self._groups(self._section().examples)
        return loss_of(folder, groups, device=self.site.experiment.device, max_length=self._rerank().max_length)

    def _probe(self) -> Any:
        """What gives a model's logits for some pairs of dev, where heads are to be rescaled."""
        if self._section().head != "rescale":
            return None
        device, length = self.site.experiment.device, self._rerank().max_length
        return partial(logits_of, pairs=pairs_of(self._groups(32)), device=device, max_length=length)

    def _groups(self, count: int) -> list[Group]:
        return groups_of(self.site.boxes.collection, self.site.candidates("dev"), "dev", count)

    # --------------------------------------------------------------------------------------------------- what is there

    def _written(self) -> MergeSection:
        section = self.site.experiment.merge
        assert section
        seed = self.site.experiment.seed if section.seed is None and section.method == "dare" else section.seed
        return section.model_copy(update={"seed": seed})

    def _section(self) -> MergeSection:
        """The section with the models' own names: what the card and the lines say."""
        return self._written().model_copy(update={"models": [model.name for model in self.site.plan.merged]})

    def _folders(self) -> list[Path]:
        return [self.site.boxes.model(model) for model in self.site.plan.merged]

    def _rerank(self) -> RerankSection:
        return self.site.experiment.rerank or RerankSection()


def _alone(section: MergeSection) -> list[Point]:
    """Each model after the first by itself, where there are several: are they better together?"""
    others = section.models[1:]
    if len(others) < 2:
        return []
    before = 0 if section.method in OF_DIFFERENCES else 1
    places = range(before, before + len(others))
    size = before + len(others)
    # A method that drops entries leaves no model as it was.
    what = f"by {section.method}" if section.method in ("ties", "dare") and section.density < 1 else "alone"
    return [
        Point(f"{name} {what}", None, tuple(float(place == own) for place in range(size)))
        for name, own in zip(others, places, strict=True)
    ]


def _read(file: Path) -> list[Trial]:
    """The trials of a sweep that was stopped."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Trial.of(json.loads(line)) for line in lines]
