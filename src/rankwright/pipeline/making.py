"""The stages that make models: data, retrieve, recipe, mine, train, merge.

In: the site. Out: a stage for each that its experiment asks for, with what it is made of and how to make it. It does
not know whether a stage must be made, nor what becomes of the models.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rankwright.auto import Case, forget, search, training_key
from rankwright.boxes import refuse_search_without_dev
from rankwright.core import Group
from rankwright.pipeline.base import VERSIONS, Site, Stage, flat
from rankwright.pipeline.merging import Merging
from rankwright.plan import MINE, Model, unfolded
from rankwright.rooms.data import data
from rankwright.rooms.mine import PairScorer, mine
from rankwright.rooms.retrieve import retrieve
from rankwright.rooms.train import DevSet, Workbench, train
from rankwright.sections import FuseRetriever, ImportRetriever, MineSection, RerankSection, Training
from rankwright.toolbox.device import choose_device
from rankwright.toolbox.formats.content import content, file_content
from rankwright.toolbox.scorer import CachedScorer, both_orders
from rankwright.toolbox.tuned import Chosen, Tuned
from rankwright.toolbox.weights import hub_name
from rankwright.workspace import MadeOf, write_json

_PRIOR = 3
"""How a prior is let into a fusion: raised where that changes, so that only runs with one are made anew."""


class Making:
    """From the source of the data to trained and merged models."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.merging = Merging(site)

    def stages(self) -> Iterator[Stage]:
        """The stages in order; each as the site's experiment is when it is asked for."""
        yield Stage("data", self._data_made_of, self._data)
        yield Stage("retrieve", self._retrieve_made_of, self._retrieve)
        for name in self.site.plan.searches:
            yield Stage(f"recipe/{name}", partial(self._recipe_made_of, name), partial(self._recipe, name))
            self._adopt(name)
        if self.site.experiment.mine:
            yield Stage("mine", self._mine_made_of, self._mine)
        for name in self.site.plan.trainings:
            yield Stage(f"train/{name}", partial(self._train_made_of, name), partial(self._train, name))
        if self.site.experiment.merge:
            yield Stage("merge", self.merging.made_of, self.merging.work)

    # ------------------------------------------------------------------------------------------------------------ data

    def _data_made_of(self) -> MadeOf:
        section = self.site.experiment.data
        held = {"content.data.source": content(section.source)}
        return {**flat("data", section), "seed": self.site.experiment.seed, **held, "room": VERSIONS["data"]}

    def _data(self, out: Path) -> list[str]:
        collection, told = data(self.site.experiment.data, self.site.experiment.seed)
        refuse_search_without_dev(collection, self.site.plan.searches)
        self.site.boxes.save_data(out, collection, told)
        return told.lines()

    # -------------------------------------------------------------------------------------------------------- retrieve

    def _retrieve_made_of(self) -> MadeOf:
        made: dict[str, Any] = {}
        for name, retriever in self.site.experiment.retrieve.items():
            made |= flat(f"retrieve.{name}", retriever)
            if isinstance(retriever, ImportRetriever):
                made |= {f"content.{path}": file_content(path) for path in retriever.runs.values()}
            elif retriever.kind == "dense":
                made |= self.site.model_input(Model("outside", retriever.model))
            elif isinstance(retriever, FuseRetriever) and retriever.prior:
                made["room.prior"] = _PRIOR
        return {**made, **self.site.inputs("data"), "room": VERSIONS["retrieve"]}

    def _retrieve(self, out: Path) -> list[str]:
        told: list[str] = []

        def keep(name: str, tuned: Tuned, chosen: Chosen) -> None:
            write_json(out / f"{name}.json", {**tuned.values(), "line": chosen.line()})
            told.append(f"{name}: {chosen.line()}")

        collection, section = self.site.boxes.collection, self.site.experiment.retrieve
        runs = retrieve(collection, section, self.site.context, on_tuned=keep)
        self.site.boxes.save_candidates(out, runs)
        sizes = {split: len(run.rankings) for split, run in next(iter(runs.values())).items()}
        found = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
        return [*told, f"{', '.join(runs)}: candidates for {found} queries"]

    # ---------------------------------------------------------------------------------------------------------- recipe

    def _recipe_made_of(self, name: str) -> MadeOf:
        section, rerank = self.site.experiment.train[name], self.site.experiment.rerank or RerankSection()
        made: dict[str, Any] = {**flat(f"train.{name}", section), "recipe.served": self.site.plan.rerank_from}
        made |= {f"rerank.{key}": getattr(rerank, key) for key in ("depth", "max_length", "precision", "both_orders")}
        for reference in section.bases or [section.base]:
            made |= self.site.model_input(Model("outside", reference))
        inputs = self.site.inputs("data", "retrieve")
        rooms = {f"room.{room}": VERSIONS[room] for room in ("mine", "train")}
        return {**made, "seed": self.site.experiment.seed, **inputs, **rooms, "room": VERSIONS["recipe"]}

    def _recipe(self, name: str, out: Path) -> list[str]:
        site = self.site
        refuse_search_without_dev(site.boxes.collection, [name])
        rerank = site.experiment.rerank or RerankSection()
        case = Case(
            collection=site.boxes.collection,
            runs={one: site.boxes.candidates(one, "train") for one in site.experiment.retrieve},
            dev=site.candidates("dev"),
            served=site.plan.rerank_from,
            scorer=site.pair_scorer,
            scores_of=lambda model: site.score_with(model, rerank, site.experiment.train[name].precision),
            filter_of=self._teacher,
            depth=rerank.depth,
            seed=site.experiment.seed,
            orders=2 if rerank.both_orders else 1,
            device=site.experiment.device,
            cache=site.folder.cache,
            per_split=site.context.per_split,
            made_by=self._made_by(),
        )
        found = search(case, name, site.experiment.train[name], out)
        site.boxes.save_recipe(out, found.values())
        forget(out, but=found.kept)  # only now: a search that is killed before goes on with the models that it has
        return found.lines()

    def _made_by(self) -> str:
        """What decides a training's weights beside its section, its groups and its base."""
        device = choose_device(self.site.experiment.device)
        return f"{device}, mine {VERSIONS['mine']}, train {VERSIONS['train']}"

    def _adopt(self, name: str) -> None:
        """Go on with the trainings that the search has written down, once it has, and for this very experiment."""
        stage = f"recipe/{name}"
        if stage not in self.site.keys:  # the stages are only counted, not walked by
            return
        found = self.site.boxes.recipe(name)
        if found is not None and self.site.folder.decide(stage, self._recipe_made_of(name)).reuse:
            self.site.adopt(unfolded(self.site.experiment, name, found["trainings"]))

    # ------------------------------------------------------------------------------------------------------------ mine

    def _mine_made_of(self) -> MadeOf:
        made = self._groups_made_of(MINE)
        inputs = self.site.inputs("data", "retrieve")
        return {**made, "seed": self.site.experiment.seed, **inputs, "room": VERSIONS["mine"]}

    def _groups_made_of(self, place: str) -> dict[str, Any]:
        """What the groups of the shared mine section (MINE), or of a training's own, are made of."""
        section = self._mine_section(place)
        where = "mine" if place == MINE else f"train.{place}.mine"
        made: dict[str, Any] = {**flat(where, section), f"{where}.candidates": self.site.plan.mine_from[place]}
        if place in self.site.plan.filters:
            made |= self.site.model_input(self.site.plan.filters[place])
            rerank = self.site.experiment.rerank or RerankSection()
            made |= {f"rerank.{key}": getattr(rerank, key) for key in ("max_length", "precision", "both_orders")}
        return made

    def _mine(self, out: Path) -> list[str]:
        return self._mine_groups(MINE, out)

    def _mine_groups(self, place: str, out: Path) -> list[str]:
        section, collection, retriever = self._mine_section(place), self.site.boxes.collection, self.site.plan.mine_from
        reranker = self.site.plan.filters.get(place)
        mined = mine(
            collection,
            self.site.boxes.candidates(retriever[place], "train"),
            section,
            teacher=self.site.pair_scorer(retriever[place]),
            filter_scores=self._teacher(self.site.boxes.model(reranker)) if reranker else None,
            per_split=self.site.context.per_split,
            seed=self.site.experiment.seed,
        )
        self.site.boxes.save_mined(out, mined)
        return mined.lines(section)

    def _mine_section(self, place: str) -> MineSection:
        section = self.site.experiment.mine if place == MINE else self.site.experiment.train[place].mine
        assert section
        return section

    def _teacher(self, reference: Path) -> PairScorer:
        """A model's scores as a filter reads them, kept: as `rerank` would score, but judged without dev's labels."""
        rerank = self.site.experiment.rerank or RerankSection()
        plain = CachedScorer(
            reference,
            cache=self.site.folder.cache,
            device=self.site.experiment.device,
            max_length=rerank.max_length,
            precision=rerank.precision,
        )
        scorer = both_orders(plain) if rerank.both_orders else plain
        collection = self.site.boxes.collection

        def score(pairs: Any) -> Any:
            texts = [(collection.queries[query], collection.documents[document]) for query, document in pairs]
            return scorer(texts, what=f"score with {reference.name}")

        return score

    # ----------------------------------------------------------------------------------------------------------- train

    def _train_made_of(self, name: str) -> MadeOf:
        section = self.site.experiment.train[name]
        if name in self.site.plan.searches:  # a dry run, before the search: what it will write down is not known
            return {**flat(f"train.{name}", section), **self.site.inputs(f"recipe/{name}")}
        seed = self.site.experiment.seed if section.seed is None else section.seed
        own = section.mine is not None
        made = {
            **flat(f"train.{name}", section),
            **(self._groups_made_of(name) if own else {}),
            f"train.{name}.seed": seed,
            "train.dev.from": self.site.plan.rerank_from,
        }
        del made[f"train.{name}.memory"]  # of which only last bits depend, and who lacks some may change it on the way
        return {
            **made,
            **self.site.inputs(*(("data", "retrieve") if own else ("mine",))),
            **self.site.model_input(self.site.plan.bases[name]),
            **({"room.mine": VERSIONS["mine"]} if own else {}),
            "room": VERSIONS["train"],
        }

    def _train(self, name: str, out: Path) -> list[str]:
        section = self.site.experiment.train[name]
        told = []
        if section.mine and not self.site.boxes.has_groups(out):
            told = self._mine_groups(name, out)
        groups = self.site.boxes.groups(section.groups, name if section.mine else MINE)
        base = self.site.boxes.model(self.site.plan.bases[name])
        if section.dev is None and self._made_by_search(section, groups, base, out):
            return [*told, "trained by the search for a recipe already"]
        dev = None
        if section.dev:
            dev = DevSet.of(self.site.boxes.collection, self.site.candidates("dev"), section.dev)
        experiment, origin = self.site.experiment, self._origin(self.site.plan.bases[name])
        bench = Workbench(out, experiment.device, self.site.folder.cache, experiment.seed, base=origin)
        return [*told, *train(groups, section, base=base, dev=dev, bench=bench).lines()]

    def _origin(self, model: Model) -> str:
        """The model from outside that a model goes back to, by a name that the hub knows where it has one."""
        while model.kind == "train":
            model = self.site.plan.bases[model.name]
        return hub_name(model.name)

    def _made_by_search(self, section: Training, groups: Sequence[Group], base: Path, out: Path) -> bool:
        """Take the very same training from a search's trials, if it is there."""
        seed = self.site.experiment.seed if section.seed is None else section.seed
        key = training_key(section, groups, base, seed, self._made_by())
        for trial in self.site.boxes.trials():
            if trial.name == key and (trial / "model").exists() and (trial / "result.json").exists():
                shutil.copytree(trial / "model", out / "model", dirs_exist_ok=True)
                shutil.copyfile(trial / "log.jsonl", out / "log.jsonl")
                return True
        return False
