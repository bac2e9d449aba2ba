"""The corridor: the order of the rooms, which boxes can be used again, and what is said on the way.

    data -> retrieve -> recipe -> mine -> train -> merge -> rerank -> blend -> general
         -> evaluate -> rag -> diagnose -> verdict -> report

Only these modules know the order. For every stage they say what it is made of (its key) and how to make it from the
boxes of earlier ones; `workspace` decides whether it must be made.

    base      the site: experiment, plan, run folder, boxes, keys; what a stage is
    making    the stages that make models: data to merge
    merging   the merge, and the sweep that finds its weight
    reranking the stages that use them: rerank to general
    judging   the stages that judge: evaluate to report
    answering what the order does to the answers of a language model
    walk      from stage to stage
    status    how far a run folder is
"""

from rankwright.pipeline.base import ROOMS, Outcome, Stage
from rankwright.pipeline.status import status
from rankwright.pipeline.walk import Walk, environment
from rankwright.workspace import stage_key

__all__ = ["ROOMS", "Outcome", "Stage", "Walk", "environment", "stage_key", "status"]
