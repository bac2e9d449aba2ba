"""Recipes by one word: what `recipe: hard` in a training stands for, as plain values of the YAML.

A word gives a training's keys; keys that are written beside it win. Peers' recipes are what their documentation
shows, so that a person can compare in one YAML; none of them is tuned here. `auto` is no set of values: it is a search,
and the package `auto` writes down what it found in these same keys. Nothing here knows data, models or other sections.

The values of `notebook` are those of the notebook that this project began with: 22 of the corpus's other documents
drawn at random beside one positive, fifteen epochs, no dev set, the last step kept. `flagembedding` are those of
FlagEmbedding's reranker example (hard negatives from ranks 2 to 200 without a filter, groups of 8) and
`sentence-transformers` those of its cross-encoder training example (five of the candidates that score below the
positive, binary cross-entropy; the example's weight of 5 for positives is not among them).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

RecipeName = Literal["auto", "notebook", "flagembedding", "sentence-transformers", "distill", "hard", "random"]

BUDGET = "10m"
"""What `recipe: auto` may spend where nothing is said."""

RECIPES: Mapping[RecipeName, Mapping[str, Any]] = {
    "auto": {"budget": BUDGET},
    "notebook": {
        "mine": {"negatives": 0, "random": 22, "drop_above": None},
        "sample": {"positives": 1, "negatives": 22},
        "loss": "listwise",
        "learning_rate": 6e-5,
        "warmup": 0.0,
        "epochs": 15,
        "batch": 8,
        "accumulate": 8,
        "dev": None,
        "keep": "last",
    },
    "flagembedding": {
        "mine": {"negatives": 15, "random": 0, "window": [2, 200], "drop_above": None},
        "sample": {"positives": 1, "negatives": 7},
        "loss": "listwise",
        "learning_rate": 6e-5,
        "epochs": 2,
        "batch": 2,
        "dev": None,
        "keep": "last",
    },
    "sentence-transformers": {
        "mine": {"negatives": 5, "random": 0, "window": [1, 100], "draw": "top", "drop_above": 1.0},
        "loss": "bce",
        "learning_rate": 2e-5,
        "epochs": 1,
        "batch": 8,
    },
    "distill": {
        "mine": {"negatives": 6, "random": 2, "unlabelled": 1200},
        "groups": "unlabelled",
        "loss": "kl",
        "learning_rate": 1e-4,
    },
    "hard": {"mine": {"negatives": 7, "random": 0}, "loss": "listwise", "learning_rate": 1e-4},
    "random": {"mine": {"negatives": 0, "random": 7}, "loss": "listwise", "learning_rate": 1e-4},
}


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """A training's values with its recipe's put below them; unchanged without a recipe, or with an unknown one.

    Of `mine`, each key that is written wins by itself: `mine: {candidates: bm25}` leaves the recipe's numbers be.
    """
    word = values.get("recipe")
    recipe = deepcopy(dict(RECIPES.get(word, {}) if isinstance(word, str) else {}))  # type: ignore[call-overload]
    below, own = recipe.get("mine"), values.get("mine")
    merged = {"mine": {**below, **own}} if isinstance(below, Mapping) and isinstance(own, Mapping) else {}
    return {**recipe, **values, **merged}
