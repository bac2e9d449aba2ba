"""Which weights each tensor is mixed with.

In come the `merge:` section and what the caller found (weights, or losses); out comes a Recipe, which says for a tensor
and for the models that hold it how they are mixed. It knows names of tensors and numbers of models, and no file.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from rankwright.errors import ConfigError
from rankwright.sections import OF_DIFFERENCES, MergeSection
from rankwright.toolbox import mixing


@dataclass(frozen=True)
class Recipe:
    """A method, its weights and settings. `chosen` says how the weights were found, where that was not a person.

    Methods of differences have a weight for each model after the first, the others one for each model. `layers` are
    (pattern, weights) in order; `density` and `seed` are None where the method has none.
    """

    method: str
    weights: tuple[float, ...]
    layers: tuple[tuple[str, tuple[float, ...]], ...] = ()
    density: float | None = None
    seed: int | None = None
    chosen: str = ""
    of_differences: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "of_differences", self.method in OF_DIFFERENCES)

    def check_layers(self, names: Collection[str]) -> None:
        """Refuse a pattern that no tensor's name matches.

        Raises:
            ConfigError: there is one; it is told with names that are close to it.
        """
        for pattern, _ in self.layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
                raise ConfigError(
                    f"merge.layers: no tensor is called {pattern!r}", hint=f"names are like {', '.join(close)}"
                )

    def mixture(self, name: str, holders: Sequence[int], models: int) -> tuple[str, list[float]]:
        """The entry of `mixing.METHODS` and its weights for a tensor that some of the `models` hold.

        Where one that counts lacks it (a head), the rest share its weight: their weighted mean is taken. A method of
        differences goes on from the first model as long as that holds it.
        """
        weights = next((own for pattern, own in self.layers if fnmatchcase(name, pattern)), self.weights)
        method = "linear" if self.method == "cocktail" else self.method
        if len(holders) == 1:
            return "linear", [1.0]
        if self.of_differences and holders[0] == 0:
            return method, [weights[place - 1] for place in holders[1:]]
        if len(holders) == models:
            return method, list(weights)
        return "linear", _shared([weights[place - self.of_differences] for place in holders])

    def settings(self, name: str) -> mixing.Settings:
        """Settings of the method for a tensor. Each tensor has a seed of its own, which its name gives."""
        digest = hashlib.blake2b(f"{self.seed or 0}\0{name}".encode(), digest_size=8).digest()
        density = 1.0 if self.density is None else self.density
        return mixing.Settings(density=density, seed=int.from_bytes(digest, "little"))

    def told(self, names: Sequence[str]) -> str:
        """In one line, for models of these names: ``ties: base + 0.5 (a - base) + 0.5 (b - base); density 0.5``."""
        if self.of_differences:
            first, *others = names
            moves = [f"{weight:g} ({name} - {first})" for weight, name in zip(self.weights, others, strict=True)]
            sums = " + ".join([first, *moves])
        else:
            sums = " + ".join(f"{weight:g} {name}" for weight, name in zip(self.weights, names, strict=True))
        settings = [f"density {self.density:g}"] if self.density is not None else []
        settings += [f"seed {self.seed}"] if self.seed is not None else []
        settings += [f"{pattern}: {', '.join(f'{weight:g}' for weight in own)}" for pattern, own in self.layers]
        settings += [self.chosen] if self.chosen else []
        return "; ".join([f"{self.method}: {sums}", *settings])


def recipe_of(
    section: MergeSection, models: int, weights: Sequence[float] | None, losses: Sequence[float] | None
) -> Recipe:
    """The recipe of a section; `weights` and `losses` are what the caller found, if anything.

    Raises:
        ConfigError: there are not as many names, weights or losses as models, the weights do not sum to 1, or they
            must be found first.
    """
    if models != len(section.models):
        raise ConfigError(f"merge: {len(section.models)} names in `models` for {models} model folders")
    found, chosen = _weights(section, weights, losses)
    wanted = models - 1 if section.method in OF_DIFFERENCES else models
    if len(found) != wanted:
        raise ConfigError(f"merge: {section.method} of {models} models needs {wanted} weights, not {len(found)}")
    if section.method not in OF_DIFFERENCES and not abs(sum(found) - 1) <= 1e-6:
        raise ConfigError(f"merge: the weights sum to {sum(found):g}, not to 1")
    return Recipe(
        section.method,
        tuple(found),
        tuple((pattern, tuple(own)) for pattern, own in section.layers.items()),
        density=section.density if section.method in ("ties", "dare") else None,
        seed=(section.seed or 0) if section.method == "dare" else None,
        chosen=chosen,
    )


def _weights(
    section: MergeSection, weights: Sequence[float] | None, losses: Sequence[float] | None
) -> tuple[Sequence[float], str]:
    """The weights, and how they were chosen (empty: a person wrote them, or nobody did)."""
    if weights is not None:
        return weights, "weight chosen on dev by a sweep" if section.weight == "sweep" else ""
    if section.method == "cocktail":
        if losses is None or len(losses) != len(section.models):
            raise ConfigError(
                f"merge: cocktail finds its weights from losses: one for each of {len(section.models)} models, "
                f"not {len(losses or ())}",
                hint="give `losses`, measured on a few examples, or another method with `weights`",
            )
        listed = ", ".join(f"{loss:.4g}" for loss in losses)
        return mixing.cocktail_weights(losses, section.temperature), (
            f"weights are softmax(-loss / {section.temperature:g}) of the losses {listed}"
        )
    if section.weight == "sweep":
        raise ConfigError(
            "merge: weight: sweep must be found before models can be merged",
            hint="`rankwright run` finds it on dev; or give `weight` a number from 0 to 1",
        )
    if section.weight is not None:
        return section.at(section.weight), ""
    if section.weights is not None:
        return section.weights, ""
    if section.method in OF_DIFFERENCES:
        return section.at(1.0), ""
    return [1 / len(section.models)] * len(section.models), ""


def _shared(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1, in the proportion of those given; alike if none is above 0."""
    shares = [max(weight, 0.0) for weight in weights]
    total = sum(shares)
    return [share / total for share in shares] if total else [1 / len(shares)] * len(shares)
