"""The stages that use models: rerank, blend, general.

In: the site, with the boxes of `making`. Out: a stage for each that its experiment asks for, with what it is made of
and how to make it. It does not know whether a stage must be made, how a model came to be, nor what an order is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rankwright.core import Qrels, Run, text_id
from rankwright.pipeline.base import VERSIONS, Site, Stage, flat
from rankwright.plan import BLENDED, Model
from rankwright.rooms.blend import blend, blended, fuse, fused, serving
from rankwright.rooms.general import general
from rankwright.rooms.rerank import pairs_of, rerank
from rankwright.sections import FuseRetriever
from rankwright.toolbox.cascaded import Calibrated, CascadeScorer
from rankwright.toolbox.engine.choose import FP32
from rankwright.toolbox.engine.guard import Decision
from rankwright.toolbox.exits import ExitHead
from rankwright.toolbox.formats import Splits, read
from rankwright.toolbox.formats.content import content
from rankwright.toolbox.metrics import label
from rankwright.workspace import MadeOf, write_json


class Reranking:
    """From the models to the orders that they give."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def stages(self) -> Iterator[Stage]:
        """The stages in order; each as the site's experiment is when it is asked for."""
        if not self.site.experiment.rerank:
            return
        yield Stage("rerank", self._rerank_made_of, self._rerank, self._serve_none)
        if self.site.experiment.blend:
            yield Stage("blend", self._blend_made_of, self._blend, self._serve)
        if self.site.experiment.general:
            yield Stage("general", self._general_made_of, self._general)

    # ---------------------------------------------------------------------------------------------------------- rerank

    def _rerank_made_of(self) -> MadeOf:
        section = self.site.experiment.rerank
        assert section
        made = flat("rerank", section.model_copy(update={"arms": None, "candidates": self.site.plan.rerank_from}))
        made["rerank.arms"] = [
            f"{arm}: {model.name}" for arm, model in self.site.plan.arms.items()
        ]  # their order counts
        made["rerank.split"] = self.site.plan.split
        if not self.site.experiment.blend:
            made["rerank.dev"] = "not reranked"
        for model in self.site.plan.arms.values():
            made |= self.site.model_input(model)
        return {**made, **self.site.inputs("data", "retrieve"), "room": VERSIONS["rerank"]}

    def _rerank(self, out: Path) -> list[str]:
        section = self.site.experiment.rerank
        assert section
        told, decided, cascades, heads = [], {}, {}, self._exit_heads()
        collection, runs = self.site.boxes.collection, self._reranked_candidates()
        pairs = [pair for run in runs.values() for pair in pairs_of(collection, run, depth=section.depth)]
        for arm, model in self.site.plan.arms.items():
            score, cached = self.site.scorer(model)
            decision = None
            if head := heads.get(arm):
                cascade, found = self._cascade(arm, model, head)
                cascades[arm] = found.values()
                if found.allows:
                    score, decision = cascade, Decision(section.precision, FP32, True, found.said())
                else:
                    told.append(f"{arm}: {found.said()}")
            decided[arm] = decision or cached.decide(pairs)  # once, for all that is compared and blended
            for split, candidates in runs.items():
                scored = partial(score, what=f"rerank {arm}, {split}")
                run = rerank(collection, candidates, scored, depth=section.depth)
                self.site.boxes.save_reranked(out, arm, split, run)
            told.append(f"{arm}: {model.name}, {decided[arm].said()}")
        self.site.boxes.save_decisions(out, decided)
        if section.cascade:
            write_json(out / "cascade.json", cascades)
            told += [] if heads else ["no cascade: the trainings with an exit kept their base, which has none"]
        return told

    def _exit_heads(self) -> dict[str, ExitHead]:
        """Of the arms whose models have one, where a cascade is asked for; none where trainings kept their base."""
        section = self.site.experiment.rerank
        if not section or not section.cascade:
            return {}
        found = {arm: ExitHead.read(self.site.boxes.model(model)) for arm, model in self.site.plan.arms.items()}
        return {arm: head for arm, head in found.items() if head}

    def _cascade(self, arm: str, model: Model, head: ExitHead) -> tuple[CascadeScorer, Calibrated]:
        """The arm's cascade, calibrated on dev, and what dev allows."""
        section, dev = self.site.experiment.rerank, self._dev_candidates()
        assert section
        assert section.cascade
        cascade = CascadeScorer(
            self.site.boxes.model(model),
            head,
            section.cascade,
            cache=self.site.folder.cache,
            device=self.site.experiment.device,
            max_length=section.max_length,
        )
        collection = self.site.boxes.collection
        top = Run({query: row[: section.depth] for query, row in dev.rankings.items()})
        qrels = {query: collection.qrels["dev"][query] for query in top.rankings}
        return cascade, cascade.calibrate(collection, top, qrels, what=f"calibrate {arm}, dev")

    def _reranked_candidates(self) -> dict[str, Run]:
        """The candidates of the measured split and, for `blend` to choose on, those of a sample of dev."""
        runs = {"dev": self._dev_candidates()} if self._chooses_on_dev() else {}
        split = self.site.plan.split
        return runs | {split: self.site.boxes.candidates(self.site.plan.rerank_from, split)}

    def _dev_candidates(self) -> Run:
        """Those of a sample of dev's queries; none where there is no dev or it is what is measured."""
        section, collection = self.site.experiment.rerank, self.site.boxes.collection
        if not section or "dev" not in collection.qrels or self.site.plan.split == "dev":
            return Run()
        run = self.site.candidates("dev")
        chosen = sorted(collection.qrels["dev"], key=lambda query: text_id("dev" + collection.queries[query]))
        return Run({query: run.rankings.get(query, ()) for query in chosen[: section.dev_queries]})

    def _chooses_on_dev(self) -> bool:
        """Whether dev is reranked too: it is wanted, and one of its queries has candidates to choose by."""
        return bool(self.site.experiment.blend and any(self._dev_candidates().rankings.values()))

    # ----------------------------------------------------------------------------------------------------------- blend

    def _blend_made_of(self) -> MadeOf:
        section = self.site.experiment.blend
        assert section
        made = {**flat("blend", section), "blend.candidates": self.site.plan.rerank_from}
        return {**made, **self.site.inputs("data", "retrieve", "rerank"), "room": VERSIONS["blend"]}

    def _blend(self, out: Path) -> list[str]:
        section, rerank_section = self.site.experiment.blend, self.site.experiment.rerank
        assert section
        assert rerank_section
        depth, split = rerank_section.depth, self.site.plan.split
        if not self._chooses_on_dev():
            write_json(out / "choices.json", {"arms": {}, "fusion": None, "depth": depth})
            why = "no dev split, or none of its queries has candidates: nothing to choose a blend on"
            return [f"{why} (data.dev_share above 0 cuts one from train)"]
        dev = self._reranked_candidates()["dev"]
        qrels = {query: self.site.boxes.collection.qrels["dev"][query] for query in dev.rankings}
        told, chosen = [], {}
        for arm in self.site.arms:
            choice = blend(dev, self.site.boxes.reranked(arm, "dev"), qrels, section, depth=depth)
            retrieved, reranked = (
                self.site.boxes.candidates(self.site.plan.rerank_from, split),
                self.site.boxes.reranked(arm, split),
            )
            run = blended(retrieved, reranked, choice, depth=depth)
            self.site.boxes.save_reranked(out, arm + BLENDED, split, run)
            chosen[arm] = choice.values()
            told.append(
                f"{arm}: weight {choice.weight:g} at depth {choice.depth}; dev {label(section.metric)} "
                f"{choice.retrieval:.4f} retrieval, {choice.reranked:.4f} reranked, {choice.blended:.4f} blended"
            )
        fusion = self._fusion(out, qrels, section.metric)
        write_json(out / "choices.json", {"arms": chosen, "fusion": fusion, "depth": depth})
        return told

    def _serve(self) -> None:
        """Beside each arm's model: the blend that dev chose, and how pairs were read for it."""
        section, chosen = self.site.experiment.rerank, self.site.boxes.choices()["arms"]
        assert section
        read = {"both_orders": section.both_orders, "max_length": section.max_length}
        for arm, model in self.site.plan.arms.items():
            choice = chosen.get(arm)
            self.site.keep_with_model(model, "blend", {**serving(choice), **read} if choice else None)

    def _serve_none(self) -> None:
        """A blend that is not asked for any more is not served either."""
        if not self.site.experiment.blend:
            for model in self.site.plan.arms.values():
                self.site.keep_with_model(model, "blend", None)

    def _fusion(self, out: Path, qrels: Qrels, metric: str) -> dict[str, Any] | None:
        """Tuned fusion of all plain retrievers: what a reranker must beat where there are several.

        None where the candidates are such a fusion already: then that is retrieval, and it is the one to beat. One
        that nobody tuned may be worse than a retriever alone, and is no excuse for a reranker.
        """
        candidates = self.site.experiment.retrieve[self.site.plan.rerank_from]
        if isinstance(candidates, FuseRetriever) and candidates.method == "tuned":
            return None
        names = [name for name, retriever in self.site.experiment.retrieve.items() if retriever.kind != "fuse"]
        tuned = fuse({name: self.site.boxes.candidates(name, "dev") for name in names}, qrels, metric)
        if tuned is None:
            return None
        for name, run in fused(
            {name: self.site.boxes.candidates(name, self.site.plan.split) for name in names}, tuned
        ).items():
            self.site.boxes.save_reranked(out, name, self.site.plan.split, run)
        return {"weights": tuned.weights, "rrf": tuned.rrf, "fused": tuned.fused}

    # --------------------------------------------------------------------------------------------------------- general

    def _general_made_of(self) -> MadeOf:
        section = self.site.experiment.general
        assert section
        made = {**flat("general", section), "content.general.source": content(section.source)}
        return {**made, **self.site.inputs("rerank"), "room": VERSIONS["general"]}

    def _general(self, out: Path) -> list[str]:
        section = self.site.experiment.general
        assert section
        elsewhere = read(section.source, Splits(), dedupe=True).collection
        scorers = {
            arm: self.site.scorer(model, max_length=section.max_length) for arm, model in self.site.plan.arms.items()
        }
        settled = self._settled()
        if all(arm in settled and cached.has(settled[arm].backend) for arm, (_, cached) in scorers.items()):
            for arm, (_, cached) in scorers.items():
                cached.follow(settled[arm])
        called = {arm: partial(scorer, what=f"general, {arm}") for arm, (scorer, _) in scorers.items()}
        found = general(elsewhere, called, section)
        self.site.boxes.save_general(out, found)
        decided = {arm: cached.decision for arm, (_, cached) in scorers.items()}
        self.site.boxes.save_decisions(out, {arm: decision for arm, decision in decided.items() if decision})
        return found.lines()

    def _settled(self) -> dict[str, Decision]:
        """How `rerank` computed, if in one way for all arms: they are held against each other.

        Its pairs were enough to compare by, which those of `general` seldom are. Nothing where it did not compare.
        """
        decisions = self.site.boxes.decisions()
        one_way = len({decision.backend for decision in decisions.values()}) == 1
        return decisions if one_way and all(decision.tried for decision in decisions.values()) else {}
