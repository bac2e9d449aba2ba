"""What would stop a run after hours of work, looked at before any of it is done.

In: an experiment, its plan, and the collection. Out: nothing, or the error that the stage in question would raise. It
looks at configurations and small files only: no model is loaded, no source but the experiment's own is read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from rankwright.core import Collection
from rankwright.errors import ConfigError, DataError, MissingExtraError, ModelError, RankwrightError
from rankwright.plan import BLENDED, RETRIEVAL, Model, Plan
from rankwright.rooms.blend import FUSED, RRF
from rankwright.sections import Experiment
from rankwright.toolbox.device import choose_device
from rankwright.toolbox.exits import ExitHead
from rankwright.toolbox.formats import refuse_absent, trec
from rankwright.toolbox.formats.answers import read_answers
from rankwright.toolbox.model import has_head
from rankwright.toolbox.weights import OFFLINE, locate


def preflight(experiment: Experiment, plan: Plan, collection: Collection) -> None:
    """Raise what a later stage would.

    Raises:
        RankwrightError: of the kind of that stage's error.
    """
    _arms(experiment, plan)
    _precisions(experiment)
    _measured(experiment, plan, collection)
    _cascade(experiment, plan, collection)
    if experiment.general:
        refuse_absent(experiment.general.source, "general.source")
    if experiment.evaluate and experiment.rag:
        _rag(experiment, plan, collection)


def is_plain(model: Model) -> bool:
    """Whether a model from outside is an encoder without a head, as far as can be told without the hub."""
    if model.kind != "outside" or not (model.name == OFFLINE or Path(model.name).expanduser().is_dir()):
        return False
    try:
        return not has_head(locate(model.name))
    except RankwrightError:  # whoever needs it will say what is wrong with it
        return False


def _outside(plan: Plan) -> Iterator[tuple[str, Model]]:
    """The arms whose models come from outside; not the base of a search, which may yet become a reranker."""
    tried = [plan.bases[name] for name in plan.searches]
    return ((arm, model) for arm, model in plan.arms.items() if model.kind == "outside" and model not in tried)


def _arms(experiment: Experiment, plan: Plan) -> None:
    for arm, model in _outside(plan):
        try:
            plain = not has_head(locate(model.name))
        except ModelError as error:
            if error.message.startswith("cannot reach the hub"):
                continue  # it may be there when it is needed
            raise
        if plain:
            others = ", ".join(f"{name}: {other.name}" for name, other in plan.arms.items() if name != arm)
            raise ModelError(
                f"rerank.arms.{arm}: {model.name!r} is a plain encoder without a head, which cannot score pairs",
                hint=f"rerank: {{arms: {{{others}}}}}, or a training with recipe: distill in its place",
            )


def _precisions(experiment: Experiment) -> None:
    wanted = [name for name, training in experiment.train.items() if training.precision == "fp16"]
    if wanted and choose_device(experiment.device) == "cpu":
        raise ConfigError(f"train.{wanted[0]}.precision: fp16 needs a GPU", hint="precision: auto")


def _measured(experiment: Experiment, plan: Plan, collection: Collection) -> None:
    if not experiment.evaluate:
        return
    if experiment.evaluate.judged is not None:
        trec.read_qrels(experiment.evaluate.judged)
    queries = len(collection.qrels.get(plan.split, {}))
    if experiment.verdict and plan.arms and queries < 2:
        message = f"a verdict needs at least 2 judged queries, and {plan.split} has {queries}"
        raise DataError(message, hint=f"more of them (data.{plan.split}_share, max_queries), or verdict: null")


def _cascade(experiment: Experiment, plan: Plan, collection: Collection) -> None:
    if not experiment.rerank or not experiment.rerank.cascade:
        return
    trained = any(training.exit for training in experiment.train.values())
    if not trained and not any(ExitHead.read(locate(model.name)) for _, model in _outside(plan)):
        message = "rerank.cascade: no arm's model has an exit head"
        raise ConfigError(message, hint="train: {NAME: {exit: N}} trains one after N layers")
    if "dev" not in collection.qrels or plan.split == "dev":
        message = "rerank.cascade measures its loss on the split dev, which the data do not have or is measured"
        raise ConfigError(message, hint="data.dev_share above 0, and another evaluate.split; or cascade: null")


def _rag(experiment: Experiment, plan: Plan, collection: Collection) -> None:
    section = experiment.rag
    assert section
    if section.answers:
        read_answers(section.answers, collection.queries)
    columns = [RETRIEVAL, *plan.members, RRF, FUSED, *plan.arms, *(arm + BLENDED for arm in plan.arms)]
    if unknown := [arm for arm in section.arms or () if arm not in columns]:
        raise ConfigError(f"rag.arms: there is no {', '.join(unknown)}", hint=f"columns are {', '.join(columns)}")
    missing = [name for name in ("ragas", "openai", "httpx") if importlib.util.find_spec(name) is None]
    if section.endpoint and missing:
        message = f"rag.endpoint needs what is not installed: {', '.join(missing)}"
        raise MissingExtraError(message, hint="pip install 'rankwright[rag]', or leave rag.endpoint out")
