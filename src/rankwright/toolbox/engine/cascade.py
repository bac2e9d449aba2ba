"""A cascade of layers: all candidates through the first ones, and only those that can still matter through the rest.

In: a model with its exit head, and the `Tokens` of whole lists of candidates. Out: for each candidate the exit's score
and, where it went on, the logit that scoring with all layers gives, up to rounding. Torch in fp32, without padding:
the hidden states of those that go on are kept, so that no layer is computed twice. Knows neither texts nor labels: how
far behind a candidate may be and still go on (the margin) is decided by who measures what it loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.toolbox import exits
from rankwright.toolbox.engine import packed
from rankwright.toolbox.engine.batches import token_batches
from rankwright.toolbox.engine.forward import TOKEN_BUDGET

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rankwright.toolbox.engine.pairs import Tokens

    Floats = NDArray[np.float32]
    Chooser = Callable[[Floats], NDArray[np.bool_]]

_TOKENS = 16384
"""Tokens whose hidden states are in memory at a time: whole lists, one at least."""
_GAP = 1e-3
"""How far the best of those that stayed behind is put below the lowest that went on, relative to its size."""


class Cascade:
    """Scores lists of candidates with all layers of a model only where its exit head does not rule them out."""

    def __init__(self, model: Any, head: exits.ExitHead) -> None:
        """Raises a ConfigError where the model cannot stop after the head's layer."""
        import torch

        exits.check(model, head.layer, "cascade")
        self.model, self.layer = model, head.layer
        self._packed = packed.Packed(model, torch.float32)
        self._weight = torch.from_numpy(head.weight).to(model.device)
        self._budget = TOKEN_BUDGET[str(model.device).split(":")[0]]

    def __call__(self, tokens: Tokens, lists: Sequence[slice], keep: int, margin: float) -> tuple[Floats, Floats]:
        """The exit's scores and the logits, float32 (pairs,) each; the logit of a pair that stayed behind is NaN.

        `lists` are the pairs of each query, end to end. Who goes on says `survivors`, with `keep` and `margin`.
        """
        import torch

        found = np.empty(len(tokens), dtype=np.float32), np.empty(len(tokens), dtype=np.float32)
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for some in _bundles(tokens, lists):
                    place = slice(some[0].start, some[-1].stop)
                    own = [slice(one.start - place.start, one.stop - place.start) for one in some]
                    part = tokens.take(np.arange(place.start, place.stop))
                    found[0][place], found[1][place] = self._score(part, _chooser(own, keep, margin))
        finally:
            self.model.train(training)
        return found

    def _score(self, tokens: Tokens, choose: Chooser) -> tuple[Floats, Floats]:
        import torch

        batches = token_batches(tokens.lengths, self._budget, padded=False)
        order = np.concatenate(batches)
        tokens = tokens.take(order)
        parts, scores, start = [], [], 0
        for positions in batches:
            batch = tokens.take(np.arange(start, start + len(positions)))
            hidden = self._packed.begin(batch, self.layer)
            scores.append(packed.means(batch, hidden) @ self._weight)
            parts.append(hidden)
            start += len(positions)
        found = np.empty(len(tokens), dtype=np.float32)
        found[order] = torch.cat(scores).cpu().numpy()
        logits = np.full(len(tokens), np.nan, dtype=np.float32)
        on = np.flatnonzero(choose(found)[order])
        logits[order[on]] = self._rest(tokens, on, parts)
        return found, logits

    def _rest(self, tokens: Tokens, on: NDArray[np.int64], parts: list[Tensor]) -> Floats:
        """The logits of the pairs at positions `on`, from their hidden states: `parts`, end to end, are all pairs'."""
        import torch

        staying = tokens.take(on)
        chosen = np.zeros(len(tokens), dtype=np.bool_)
        chosen[on] = True
        rows = torch.from_numpy(np.flatnonzero(np.repeat(chosen, tokens.lengths)))
        hidden = torch.cat(parts)
        parts.clear()  # memory: whole lists are in it
        hidden = hidden[rows.to(hidden.device)]
        found = np.empty(len(on), dtype=np.float32)
        for positions in token_batches(staying.lengths, self._budget, padded=False):
            batch = staying.take(positions)  # neighbours, since all are in order of length already
            first = int(staying.starts[positions[0]])
            found[positions] = (
                self._packed.onward(batch, hidden[first : first + len(batch.ids)], self.layer).cpu().numpy()
            )
        return found

    def saved(self, share: float) -> float:
        """The part of the products of full scoring that is saved where `share` of the tokens go on.

        Products a token: a layer has 4 of hidden x hidden (query, key, value, output) and 2 of hidden x intermediate;
        the last one only query, key and value, as the rest is computed for one row a pair.
        """
        config = packed.bare(self.model).config
        whole = 4 + 2 * config.intermediate_size / config.hidden_size
        full = (config.num_hidden_layers - 1) * whole + 3
        return float((1 - share) * (full - self.layer * whole) / full)


def survivors(scores: NDArray[Any], keep: int, margin: float) -> NDArray[np.bool_]:
    """Which candidates of a query go on, bool (count,): no more than `margin` behind the `keep`-th best at the exit."""
    if len(scores) <= keep:
        return np.ones(len(scores), dtype=np.bool_)
    return np.asarray(scores >= np.partition(scores, -keep)[-keep] - margin)


def joined(scores: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.float32]:
    """The scores of a query's candidates, float32 (count,): logits, and below all of them those without (NaN).

    Those keep the exit's order and its distances, which are a logit's, as the head learns from logits.
    """
    behind = np.isnan(logits)
    made = logits.astype(np.float64)
    if behind.any():
        lowest = float(np.min(made[~behind]))
        rest = scores[behind].astype(np.float64)
        made[behind] = lowest - _GAP * max(1.0, abs(lowest)) - (rest.max() - rest)
    return made.astype(np.float32)


def _chooser(lists: Sequence[slice], keep: int, margin: float) -> Chooser:
    return lambda scores: np.concatenate([survivors(scores[one], keep, margin) for one in lists])


def _bundles(tokens: Tokens, lists: Sequence[slice]) -> Iterator[list[slice]]:
    """Neighbouring lists with no more than `_TOKENS` tokens together."""
    bundle: list[slice] = []
    for one in lists:
        if bundle and tokens.starts[one.stop] - tokens.starts[bundle[0].start] > _TOKENS:
            yield bundle
            bundle = []
        bundle.append(one)
    if bundle:
        yield bundle
