"""A reranker's scores, cached by the model's content and the pair's text: nothing is scored twice.

Three words say how scores are computed: ``exact`` (fp32), ``balanced`` and ``fast``. For the latter two
`engine.choose` names the ways that this machine has and `engine.guard` takes the first that agrees with fp32 on a
sample of the pairs in hand. What was decided stands in the cache, by the model's content, the length, the word, these
pairs and their labels, the ways and the versions of the libraries: whoever goes on with the same pairs computes as
before. Whoever scores them in parts settles it first, by all of them (`CachedScorer.decide`).
Scores of each way are a `store.RowStore` of their own, so that no list mixes two. The model is loaded only when a pair
is missing.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwright.core import content_hash
from rankwright.errors import ConfigError, ModelError
from rankwright.toolbox import engine
from rankwright.toolbox.device import choose_device
from rankwright.toolbox.engine import guard
from rankwright.toolbox.engine.choose import FP32, Scorer, Step, backends, step
from rankwright.toolbox.engine.guard import Decision, Labels, Pairs, Sample
from rankwright.toolbox.engine.pairs import PairEncoder
from rankwright.toolbox.legible import unread
from rankwright.toolbox.model import Reranker, has_head
from rankwright.toolbox.progress import bar, say
from rankwright.toolbox.store import Keys, RowStore, content_keys, fill
from rankwright.toolbox.weights import fingerprint, locate
from rankwright.workspace import write_json

WORDS = ("exact", "balanced", "fast")

_ANY_LENGTH = sys.maxsize

_SCHEME = "4"
"""Raised when a way computes other scores by the same name."""
_LIBRARIES = ("torch", "transformers", "openvino", "onnxruntime")


class CachedScorer:
    """Calls like a function: (query text, document text) pairs -> logits, float32 (len(pairs),).

    `precision` is one of WORDS. `labels` are grades by texts that the guard may look at: of dev, never of what is
    measured. With a `decision` of another time, scores are computed so, and nothing is compared. Without `keep_graphs`
    a converted model is not kept: for models that are soon forgotten.

    Raises, when it is made:
        ModelError: the folder or hub id holds no reranker.
        ConfigError: a precision that is no such word.
    """

    def __init__(
        self,
        reference: str | Path,
        *,
        cache: Path,
        device: str = "auto",
        max_length: int = 512,
        precision: str = "exact",
        labels: Labels | None = None,
        decision: Decision | None = None,
        keep_graphs: bool = True,
    ) -> None:
        if precision not in WORDS:
            raise ConfigError(f"precision: {precision!r} is not known", hint=f"one of {', '.join(WORDS)}")
        self.folder = locate(str(reference))
        self.cache = cache
        self.device = device
        self.max_length = max_length
        self.word = precision
        self.labels = labels
        self.keep_graphs = keep_graphs
        if not has_head(self.folder):
            Reranker.load(self.folder)  # raises, and says what to do
        self.fingerprint = fingerprint(self.folder)
        self._settled = decision
        self._last: Decision | None = None
        self._steps: list[Step] | None = None
        self._model = _Model(self.folder, device)
        self._encoder: PairEncoder | None = None
        self._stores: dict[str, RowStore] = {}

    @property
    def decision(self) -> Decision | None:
        """How the last call's scores were computed, and why; None before the first."""
        return self._last

    def decide(self, pairs: Pairs, *, total: int = 0) -> Decision:
        """Settle, by all the pairs of a run, how they are computed: in however many calls, and of whatever size.

        `total` is how many will be computed so, where that is more: by other models, or elsewhere.
        """
        self._settled = self._settled or self._choose(pairs, content_keys(pairs), total)
        return self._settled

    def has(self, way: str) -> bool:
        """Whether this machine may compute so, by the word."""
        return way in [step.name for step in self._ladder()]

    def follow(self, decision: Decision) -> None:
        """Settle, by what was decided elsewhere, how all scores from here on are computed."""
        self._settled = decision

    def cut_at(self, max_length: int) -> CachedScorer:
        """The same for pairs cut at another length: the model is loaded, and converted, once for both."""
        other = copy.copy(self)
        other.max_length, other._encoder, other._stores, other._last = max_length, None, {}, None
        return other

    def __call__(self, pairs: Pairs, *, what: str = "score") -> NDArray[np.float32]:
        """Score the pairs that the cache lacks, in chunks that survive a kill, and return all.

        Where nothing is settled, these pairs decide: of so few that comparing is not worth it, for themselves alone.
        """
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        keys = content_keys(pairs)
        self._last = self._settled or self._choose(pairs, keys)
        self._settled = self._last if self._last.tried else self._settled
        return self._fill(self._last.backend, pairs, keys, what)

    # -------------------------------------------------------------------------------------------------------- choosing

    def _choose(self, pairs: Pairs, keys: Keys, total: int = 0) -> Decision:
        """What was decided before or, by the pairs given, is decided now.

        All pairs count, known or not: a run that goes on after a kill must not choose by what is left of it.
        """
        if self.word == "exact":
            return Decision(self.word, FP32, True, "as asked")
        sample = Sample.of(pairs, self.labels, total=total)
        names = [step.name for step in self._ladder()]
        if not sample.worth or len(names) == 1:
            return guard.choose(self.word, names, sample, self._try)
        file = self.cache / "precision" / f"{self._name_of(sample, keys)}.json"
        if known := _remembered(file):
            return known
        if (self._store(FP32).find(keys) >= 0).all():
            return Decision(self.word, FP32, True, "all these scores are there in fp32")
        decision = guard.choose(self.word, names, sample, self._try)
        if all(one.agreement for one in decision.tried):  # what could not be made may be made another time
            write_json(file, decision.values())
        for line in decision.lines():
            say(f"{self.folder.name}: {line}")
        self._model.keep(decision.backend)
        return decision

    def _try(self, name: str, pairs: Pairs) -> NDArray[np.float32] | str:
        """A way's scores of a sample, kept; or why the way cannot be made."""
        try:
            if name != FP32:
                self._built(name)
        except ModelError as error:
            return error.message
        return self._fill(name, pairs, content_keys(pairs), f"compare, {name}")

    def _ladder(self) -> list[Step]:
        if self._steps is None:
            self._steps = backends(self.word, choose_device(self.device), self.cache, keep=self.keep_graphs)
        return self._steps

    def _name_of(self, sample: Sample, keys: Keys) -> str:
        """What a decision holds for."""
        judged = content_hash([repr(ranking.judged) for ranking in sample.rankings])
        pairs = content_hash([keys.tobytes().hex(), str(sample.pairs)])
        asked = [self.word, guard.rule(self.word), pairs, judged, *(step.name for step in self._ladder())]
        return content_hash([*self._scored_by(), *asked])

    def _scored_by(self) -> list[str]:
        """What scores of one way hang on."""
        kind = choose_device(self.device).split(":")[0]
        return [self.fingerprint, str(self.max_length), kind, *_machine()]

    # --------------------------------------------------------------------------------------------------------- scoring

    def _fill(self, way: str, pairs: Pairs, keys: Keys, what: str) -> NDArray[np.float32]:
        store = self._store(way)
        with bar(what, len(pairs), "pairs") as advance:
            rows = fill(
                store,
                keys,
                lambda positions: self._compute(way, [pairs[place] for place in positions])[:, None],
                chunk=engine.WINDOW,
                on_chunk=advance,
            )
        return np.array(store.rows[rows, 0])

    def _store(self, way: str) -> RowStore:
        """The scores of a way, whatever word asked for it."""
        name = content_hash([*self._scored_by(), way])
        if name not in self._stores:
            self._stores[name] = RowStore(self.cache / "scores" / name, width=1)
        return self._stores[name]

    def _compute(self, way: str, pairs: Pairs) -> NDArray[np.float32]:
        if self._encoder is None:
            reranker = self._model.reranker
            if reranker.max_length < self.max_length:
                say(f"pairs are cut at {reranker.max_length} tokens, the most that this model reads")
            self._encoder = PairEncoder(reranker.tokenizer, min(self.max_length, reranker.max_length))
        return self._built(way)(pairs, self._encoder)

    def _built(self, way: str) -> Scorer:
        there = {step.name: step for step in self._ladder()}
        return self._model.built(there.get(way) or step(way, self.cache, keep=self.keep_graphs))


class _Model:
    """A model, loaded when it is asked for, and what scores by it, by the names of the ways."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder, self._device = folder, device
        self._ways: dict[str, Scorer] = {}

    @functools.cached_property
    def reranker(self) -> Reranker:
        """It, with the longest pairs that it reads."""
        return Reranker.load(self._folder, device=self._device, max_length=_ANY_LENGTH)

    def built(self, way: Step) -> Scorer:
        """What scores so, made once. Raises like `Step.build`."""
        if way.name not in self._ways:
            self._ways[way.name] = way.build(self.reranker)
        return self._ways[way.name]

    def keep(self, name: str) -> None:
        """Let go of what scores in another way."""
        self._ways = {own: scorer for own, scorer in self._ways.items() if own == name}


def _remembered(file: Path) -> Decision | None:
    """What was decided at another time; a file that is not there, or damaged, remembers nothing."""
    try:
        return Decision.read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _machine() -> list[str]:
    """The kind of processor, and the versions of what computes."""
    return [_SCHEME, platform.machine(), *map(_version, _LIBRARIES)]


def _version(library: str) -> str:
    try:
        return f"{library} {importlib.metadata.version(library)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {library}"


def both_orders(scorer: Callable[..., NDArray[np.float32]]) -> Callable[..., NDArray[np.float32]]:
    """A scorer that averages (query, document) and (document, query): for tasks where either order means the same."""

    def score(pairs: Sequence[tuple[str, str]], **options: Any) -> NDArray[np.float32]:
        swapped = [(document, query) for query, document in pairs]
        both = scorer([*pairs, *swapped], **options)
        return ((both[: len(pairs)] + both[len(pairs) :]) / 2).astype(np.float32)

    return score


def pair_lengths(reference: str | Path) -> Callable[[Sequence[tuple[str, str]]], NDArray[np.int64]]:
    """A function that counts the tokens of pairs by a model's own tokenizer, uncut: int64 (len(pairs),)."""
    folder = locate(str(reference))

    def lengths(pairs: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
        from transformers import AutoTokenizer

        return PairEncoder(AutoTokenizer.from_pretrained(folder), 512).lengths(pairs)

    return lengths


def unread_by(reference: str | Path) -> Callable[[Sequence[str]], float]:
    """A function that tells which share of some texts a model's own tokenizer cannot read, 0 to 1."""
    folder = locate(str(reference))

    @functools.cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    return lambda texts: unread(tokenizer(), texts)


def tokens_read(reference: str | Path, max_length: int) -> int:
    """How many tokens of a pair a model reads when it is asked for `max_length`: its own limit may be smaller."""
    from transformers import AutoConfig, AutoTokenizer

    folder = locate(str(reference))
    longest = engine.longest_input(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    return min(max_length, longest)
