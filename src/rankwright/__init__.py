"""Rankwright fine-tunes cross-encoder rerankers on your own data, and proves whether it helped.

    import rankwright as rw

    result = rw.run("experiment.yaml")          # or any of the rooms with values of your own:
    collection, told = rw.data(rw.sections.DataSection(source="beir:my/data"), seed=0)

Names are loaded when they are first used: importing the package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rankwright.version import __version__

_WHERE = {
    **dict.fromkeys(("run", "check", "load", "shipped", "Result", "Checked"), "api"),
    **dict.fromkeys(("Collection", "Group", "Qrels", "Run"), "core"),
    **dict.fromkeys(("Experiment",), "sections"),
    **{room: f"rooms.{room}" for room in ("data", "retrieve", "mine", "train", "merge", "rerank", "score")},
    **{room: f"rooms.{room}" for room in ("blend", "general", "evaluate", "rag", "diagnose", "verdict", "report")},
    "Case": "rooms.diagnose",
    **dict.fromkeys(("diagnose_files", "export_rag", "merge_models", "score_pairs"), "api"),
    **dict.fromkeys(("RetrieveContext", "pair_scorer"), "rooms.retrieve"),
    **dict.fromkeys(("DevSet", "Workbench"), "rooms.train"),
    "ReportView": "rooms.report",
    "Reranker": "toolbox.model",
    "RankwrightError": "errors",
}
_MODULES = ("config", "errors", "sections")

__all__ = ["__version__", *sorted(_WHERE), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"rankwright.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'rankwright' has no attribute {name!r}")
    return getattr(import_module(f"rankwright.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
