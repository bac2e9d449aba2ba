"""The stages that judge: evaluate, diagnose, verdict, report.

In: the site, with the boxes of `making` and `reranking`. Out: a stage for each that its experiment asks for, with what
it is made of and how to make it. It does not know whether a stage must be made, nor how a model came to be.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rankwright import config
from rankwright.core import Run, content_hash
from rankwright.pipeline.answering import Answering
from rankwright.pipeline.base import VERSIONS, Site, Stage, flat
from rankwright.plan import BLENDED, MINE, RETRIEVAL
from rankwright.rooms.blend import FUSED, RRF
from rankwright.rooms.diagnose import Case, Chosen, diagnose
from rankwright.rooms.evaluate import evaluate
from rankwright.rooms.report import ReportView, report
from rankwright.rooms.verdict import Arm, preferred, verdict
from rankwright.sections import Training
from rankwright.toolbox.engine.guard import Decision
from rankwright.toolbox.formats.content import file_content
from rankwright.toolbox.scorer import pair_lengths, tokens_read, unread_by
from rankwright.toolbox.table import GeneralTable
from rankwright.version import __version__
from rankwright.workspace import MadeOf, write_json, write_text


class Judging:
    """From the orders to the page that tells what they are worth."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.answering = Answering(site, self._runs)

    def stages(self) -> Iterator[Stage]:
        """The stages in order; each as the site's experiment is when it is asked for."""
        if not self.site.experiment.evaluate:
            return
        yield Stage("evaluate", self._evaluate_made_of, self._evaluate)
        if self.site.experiment.rag:
            yield Stage("rag", self.answering.made_of, self.answering.work)
        if self.site.experiment.diagnose and self.site.plan.examined:
            yield Stage("diagnose", self._diagnose_made_of, self._diagnose)
        if self.site.experiment.verdict and self.site.plan.arms:
            yield Stage("verdict", self._verdict_made_of, self._verdict, self._serve)
        if self.site.experiment.report:
            yield Stage("report", self._report_made_of, self._report)

    # -------------------------------------------------------------------------------------------------------- evaluate

    def _evaluate_made_of(self) -> MadeOf:
        section = self.site.experiment.evaluate
        assert section
        inputs = ["data", "retrieve", *(["rerank"] if self.site.experiment.rerank else [])]
        inputs += self._optional("blend", "general")
        made = {**flat("evaluate", section), "evaluate.retriever": self.site.plan.rerank_from}
        if section.judged:
            made["content.evaluate.judged"] = file_content(section.judged)
        if "general" in self.site.keys:
            made |= {"general.against": self._general_against(), "general.beside": self._general_beside()}
        return {**made, "seed": self.site.experiment.seed, **self.site.inputs(*inputs), "room": VERSIONS["evaluate"]}

    def _evaluate(self, out: Path) -> list[str]:
        section = self.site.experiment.evaluate
        assert section
        runs = self._runs()
        evaluation = evaluate(runs, self.site.measured_qrels, section, self.site.experiment.seed)
        self.site.boxes.save_evaluation(out, evaluation, self._provenance(), self._general_table())
        return [f"{len(evaluation.queries):,} {section.split} queries, {len(runs)} arms"]

    def _runs(self) -> dict[str, Run]:
        """Retrieval, what it fuses, fusions of retrievers, the arms, the arms blended."""
        split = self.site.plan.split
        runs = {RETRIEVAL: self.site.boxes.candidates(self.site.plan.rerank_from, split)}
        runs |= {name: self.site.boxes.candidates(name, split) for name in self.site.plan.members}
        chosen = self._choices()
        if chosen["fusion"]:
            runs |= {name: self.site.boxes.blended(name, split) for name in (RRF, FUSED)}
        runs |= {arm: self.site.boxes.reranked(arm, split) for arm in self.site.arms}
        return runs | {arm + BLENDED: self.site.boxes.blended(arm + BLENDED, split) for arm in chosen["arms"]}

    def _general_table(self) -> GeneralTable | None:
        """Every arm on the general collection, held against the arm before fine-tuning; None without that stage."""
        found = self.site.boxes.general() if "general" in self.site.keys else None
        section, experiment = self.site.experiment.general, self.site.experiment
        if found is None or section is None or experiment.evaluate is None:
            return None
        return found.table(
            self._general_against(),
            experiment.evaluate,
            source=section.source,
            beside=self._general_beside(),
            seed=experiment.seed,
        )

    def _general_against(self) -> str | None:
        """The arm that all are held against on the general collection."""
        examined = self.site.plan.examined
        return self._before(examined) if examined else None

    def _general_beside(self) -> str:
        """The metric of the measured collection that stands beside those values."""
        verdict, general = self.site.experiment.verdict, self.site.experiment.general
        assert general
        return verdict.metric if verdict else general.metric

    def _provenance(self) -> dict[str, str]:
        """Where the table's numbers come from: data, candidates, models, versions."""
        retriever = self.site.experiment.retrieve[self.site.plan.rerank_from]
        told = {
            "data": f"{self.site.experiment.data.source} ({self.site.keys['data'][:12]})",
            "candidates": f"{self.site.plan.rerank_from}: {getattr(retriever, 'model', retriever.kind)}"
            f" ({self.site.keys['retrieve'][:12]})",
        }
        for arm in self.site.arms:
            model = self.site.plan.arms[arm]
            told[arm] = f"{model.name} ({self.site.boxes.model_fingerprint(model)[:12]})"
        if self.site.experiment.rerank:
            told |= _precisions(self.site.experiment.rerank.precision, self.site.boxes.decisions())
        told["experiment"] = content_hash([config.dump(self.site.experiment)])[:12]
        packages = ("torch", "transformers", "ir-measures")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        told["versions"] = f"rankwright {__version__}, {versions}"
        return told

    # -------------------------------------------------------------------------------------------------------- diagnose

    def _diagnose_made_of(self) -> MadeOf:
        section = self.site.experiment.diagnose
        assert section
        made = {**flat("diagnose", section), "diagnose.arm": self.site.plan.examined, "seed": self.site.experiment.seed}
        stages = ["data", "retrieve", "evaluate", "rerank", *self._optional("mine", "blend", "general")]
        return {**made, **self.site.inputs(*stages), "room": VERSIONS["diagnose"]}

    def _diagnose(self, out: Path) -> list[str]:
        found = diagnose(self._case())
        write_json(out / "findings.json", found.values())
        write_text(out / "findings.txt", "\n".join(found.lines()) + "\n")
        fires = [f"{finding.id} {finding.name}: {finding.reading}" for finding in found.findings if finding.fires]
        return [*found.ladder.lines(), *(fires or ["no check fires"])]

    def _case(self) -> Case:
        """All that is known of the arm that is examined."""
        section, rerank_section, arm = (
            self.site.experiment.diagnose,
            self.site.experiment.rerank,
            self.site.plan.examined,
        )
        assert section
        assert rerank_section
        assert arm
        model, collection = self.site.plan.arms[arm], self.site.boxes.collection
        training = self.site.experiment.train.get(model.name) if model.kind == "train" else None
        mined = model.name if training and training.mine else MINE
        decided = self.site.boxes.decisions().get(arm)
        scorer, cached = self.site.scorer(model)
        if decided and cached.has(decided.backend):  # else this is another machine, which decides for itself
            cached.follow(decided)
        exact, _ = self.site.scorer(model, precision="exact")
        chosen = self._choices()["arms"].get(arm)
        general_values, before = self._general_values(), self._before(arm)
        return Case(
            retrieved=self.site.boxes.candidates(self.site.plan.rerank_from, self.site.plan.split),
            reranked=self.site.boxes.reranked(arm, self.site.plan.split),
            qrels=self.site.measured_qrels,
            depth=rerank_section.depth,
            metric=section.metric,
            split=self.site.plan.split,
            collection=collection,
            train_run=self.site.boxes.candidates(self.site.plan.mine_from[mined], "train") if training else None,
            groups=self.site.boxes.groups(training.groups, mined) if training else (),
            log=self.site.boxes.log(model.name) if training else (),
            chosen=Chosen(*(chosen[word] for word in ("weight", "depth", "gain", "low", "high"))) if chosen else None,
            general=(general_values[before], general_values[arm]) if before and general_values else None,
            score=partial(scorer, what="diagnose, scores"),
            exact=partial(exact, what="diagnose, fp32") if decided and not decided.exact else None,
            retriever=self.site.pair_scorer(self.site.plan.rerank_from),
            tokens=pair_lengths(self.site.boxes.model(model)),
            unread=unread_by(self.site.boxes.model(model)),
            max_length=tokens_read(self.site.boxes.model(model), rerank_section.max_length),
            sample=section.sample,
            resamples=section.resamples,
            seed=self.site.experiment.seed,
        )

    def _before(self, arm: str) -> str | None:
        """The arm of the model that this arm's training, or merge, started from."""
        model = self.site.plan.arms[arm]
        if model.kind == "train":
            wanted = self.site.plan.bases[model.name]
        elif model.kind == "merge" and self.site.plan.merged:
            wanted = next(
                (part for part in self.site.plan.merged if part in self.site.plan.bases.values()),
                self.site.plan.merged[0],
            )
        else:
            return None
        return next((name for name, other in self.site.plan.arms.items() if other == wanted and name != arm), None)

    # --------------------------------------------------------------------------------------------------------- verdict

    def _verdict_made_of(self) -> MadeOf:
        section = self.site.experiment.verdict
        assert section
        stages = ["evaluate", *self._optional("blend", "general")]
        return {
            **flat("verdict", section),
            "seed": self.site.experiment.seed,
            **self.site.inputs(*stages),
            "room": VERSIONS["verdict"],
        }

    def _verdict(self, out: Path) -> list[str]:
        section = self.site.experiment.verdict
        assert section
        chosen = self._choices()
        dev = next(iter(chosen["arms"].values()), {"retrieval": None})["retrieval"]
        baselines: dict[str, float | None] = {RETRIEVAL: dev}
        if chosen["fusion"]:
            baselines |= {name: chosen["fusion"][name] for name in (RRF, FUSED)}
        assert self.site.experiment.rerank
        arms = [_judged_arm(arm, chosen["arms"].get(arm), self.site.experiment.rerank.depth) for arm in self.site.arms]
        values, before = self._general_values(), self._before(preferred(arms).name)
        found = verdict(
            self.site.boxes.per_query(section.metric),
            arms,
            section,
            baselines=baselines,
            general=(values[before], values[preferred(arms).name]) if values and before else None,
            seed=self.site.experiment.seed,
        )
        write_json(out / "verdict.json", {**found.values(), "lines": found.lines(), "slug": found.slug})
        return found.lines()

    def _serve(self) -> None:
        """Beside each arm's model: the word, and the arm that it is said of."""
        found = self.site.boxes.values("verdict", "verdict.json") or {}
        for model in self.site.plan.arms.values():
            self.site.keep_with_model(model, "verdict", {name: found[name] for name in ("word", "arm")})

    # ---------------------------------------------------------------------------------------------------------- report

    def _report_made_of(self) -> MadeOf:
        section = self.site.experiment.report
        assert section
        stages = ["data", "retrieve", "evaluate", *self._optional("blend", "rag", "diagnose", "verdict")]
        stages += [*self._optional("merge"), *(f"train/{name}" for name in self.site.plan.trainings)]
        shown = {f"recipe.{name}": content_hash([*found["lines"]])[:16] for name, found in self._recipes().items()}
        return {**flat("report", section), **shown, **self.site.inputs(*stages), "room": VERSIONS["report"]}

    def _report(self, out: Path) -> list[str]:
        section = self.site.experiment.report
        assert section
        collection = self.site.boxes.collection
        done = {name: self.site.folder.read(name) for name in self.site.keys}
        diagnosis = self._made("diagnose", "findings.json") or {"findings": (), "ladder": None}
        view = ReportView(
            title=section.title or self.site.experiment.name,
            table=self.site.boxes.table(),
            runs=self._runs(),
            qrels=self.site.measured_qrels,
            queries=collection.queries,
            documents=collection.documents,
            trainings={name: self.site.boxes.log(name) for name in self.site.plan.trainings},
            data_lines=self.site.boxes.data_lines(),
            verdict=self._made("verdict", "verdict.json"),
            findings=diagnosis["findings"],
            ladder=diagnosis["ladder"],
            blends=self._choices()["arms"],
            depth=self.site.experiment.rerank.depth if self.site.experiment.rerank else None,
            recipes=self._recipes(),
            sweep=self._made("merge", "sweep.json"),
            rag=self._made("rag", "rag.json"),
            seconds={name: float(stage["seconds"]) for name, stage in done.items() if stage},
            retrievers=(RRF, FUSED, *self.site.plan.members),
            examples=section.examples,
        )
        write_text(out / "index.html", report(view))
        return [str(out / "index.html")]

    # --------------------------------------------------------------------------------------------------- what is there

    def _choices(self) -> dict[str, Any]:
        """What dev chose. Without the stage, what an earlier walk left there does not count."""
        return self.site.boxes.choices() if "blend" in self.site.keys else {"arms": {}, "fusion": None}

    def _recipes(self) -> dict[str, dict[str, Any]]:
        """What searches found, by training: of those whose trainings are the experiment's own.

        So a walk from resolved.yaml, which has no search any more, shows it too, and one whose recipe was changed by
        hand does not.
        """
        found = {name: self.site.boxes.recipe(name) for name in self.site.experiment.train}
        return {name: search for name, search in found.items() if search and self._is_adopted(search["trainings"])}

    def _is_adopted(self, trainings: Mapping[str, Mapping[str, Any]]) -> bool:
        own = self.site.experiment.train
        return all(name in own and Training(**values) == own[name] for name, values in trainings.items())

    def _general_values(self) -> dict[str, Any]:
        found = self.site.boxes.general() if "general" in self.site.keys else None
        return found.values if found else {}

    def _made(self, stage: str, file: str) -> Any:
        return self.site.boxes.values(stage, file) if stage in self.site.keys else None

    def _optional(self, *stages: str) -> list[str]:
        return [stage for stage in stages if stage in self.site.keys]


def _precisions(word: str, decided: Mapping[str, Decision]) -> dict[str, str]:
    """How scores were computed, in a line of provenance; one for all arms where it is the same for all."""
    by_way: dict[str, list[str]] = {}
    for arm, decision in decided.items():
        by_way.setdefault(decision.said(), []).append(arm)
    told = [way if len(by_way) == 1 else f"{', '.join(arms)}: {way}" for way, arms in by_way.items()]
    return {"precision": f"{word}; {'; '.join(told)}"} if told else {}


def _judged_arm(arm: str, choice: Mapping[str, Any] | None, depth: int) -> Arm:
    if choice is None:
        return Arm(arm, None, depth, None, None, None)
    return Arm(arm, choice["weight"], choice["depth"], choice["reranked"], choice["blended"], arm + BLENDED)
