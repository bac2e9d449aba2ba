"""A reranker's scores, cached by the model's content and the pair's text: nothing is scored twice.

Three words say how scores are computed: ``exact`` (fp32), ``balanced`` and ``fast``. For the latter two
`engine.choose` names the ways that this machine has and `engine.guard` takes the first that agrees with fp32 on a
sample of the pairs asked for. What was decided stands in the cache by the model's content, the length, the word, the
ways and the versions of the libraries: a resumed run and every later call compute as the first did. No timing decides.
Scores of each way are a `store.RowStore` of their own, so that no list mixes two. The model is loaded only when a pair
is missing.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
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
from rankwright.toolbox.engine.choose import Step, backends
from rankwright.toolbox.engine.guard import Decision, Labels, Pairs, Sample
from rankwright.toolbox.model import Reranker, has_head
from rankwright.toolbox.progress import bar, say
from rankwright.toolbox.store import Keys, RowStore, content_keys, fill
from rankwright.toolbox.weights import fingerprint, locate
from rankwright.workspace import write_json

WORDS = ("exact", "balanced", "fast")

_SCHEME = "2"
"""Raised when a way computes other scores by the same name."""
_LIBRARIES = ("torch", "transformers", "openvino", "onnxruntime")
_FP32 = "fp32"  # the reference's scores are kept by this word, whatever computes them


class CachedScorer:
    """Calls like a function: (query text, document text) pairs -> logits, float32 (len(pairs),).

    `precision` is one of WORDS. `labels` are grades by texts that the guard may look at: of dev, never of what is
    measured. A call of so few pairs that comparing is not worth it computes in fp32, unless a larger one has decided
    before.

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
    ) -> None:
        if precision not in WORDS:
            raise ConfigError(f"precision: {precision!r} is not known", hint=f"one of {', '.join(WORDS)}")
        self.folder = locate(str(reference))
        self.cache = cache
        self.device = device
        self.max_length = max_length
        self.word = precision
        self.labels = labels
        if not has_head(self.folder):
            Reranker.load(self.folder)  # raises, and says what to do
        self.fingerprint = fingerprint(self.folder)
        self._chosen: Decision | None = None
        self._last: Decision | None = None
        self._steps: list[Step] | None = None
        self._reranker: Reranker | None = None
        self._built: dict[str, Callable[[Pairs], NDArray[np.float32]]] = {}
        self._stores: dict[str, RowStore] = {}

    @property
    def decision(self) -> Decision | None:
        """How the last call's scores were computed, and why; None before the first."""
        return self._last

    def __call__(self, pairs: Pairs, *, what: str = "score") -> NDArray[np.float32]:
        """Score the pairs that the cache lacks, in chunks that survive a kill, and return all."""
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        keys = content_keys(pairs)
        self._last = self._choose(pairs, keys)
        return self._fill(_FP32 if self._last.exact else self._last.backend, pairs, keys, what)

    # -------------------------------------------------------------------------------------------------------- choosing

    def _choose(self, pairs: Pairs, keys: Keys) -> Decision:
        """What was decided before or, by the pairs asked for, is decided now.

        All pairs count, known or not: a run that goes on after a kill must not choose by what is left of it.
        """
        if self.word == "exact":
            return Decision(self.word, _FP32, True, "as asked")
        self._chosen = self._chosen or self._remembered()
        if self._chosen:
            return self._chosen
        sample = Sample.of(pairs, self.labels)
        names = [step.name for step in self._ladder()]
        if sample.worth and len(names) > 1 and (self._store(_FP32).find(keys) >= 0).all():
            return Decision(self.word, names[-1], True, "all these scores are there in fp32")
        decision = guard.choose(self.word, names, sample, self._try)
        if decision.tried:  # else it says nothing of a larger run
            write_json(self._file(), decision.values())
            for line in decision.lines():
                say(f"{self.folder.name}: {line}")
            self._chosen = decision
            self._built = {name: built for name, built in self._built.items() if name == decision.backend}
        return decision

    def _try(self, name: str, pairs: Pairs) -> NDArray[np.float32] | str:
        """A way's scores of a sample, kept; or why the way cannot be made."""
        if name == self._ladder()[-1].name:
            return self._fill(_FP32, pairs, content_keys(pairs), "compare, fp32")
        try:
            self._build(name)
        except ModelError as error:
            return error.message
        return self._fill(name, pairs, content_keys(pairs), f"compare, {name}")

    def _ladder(self) -> list[Step]:
        if self._steps is None:
            self._steps = backends(self.word, choose_device(self.device), self.cache)
        return self._steps

    def _name(self) -> str:
        """What a decision, and scores of a lower precision, hold for."""
        steps = [step.name for step in self._ladder()]
        judged = "labels" if self.labels else "no labels"  # a decision without them is none for those who have some
        return content_hash([self.fingerprint, str(self.max_length), self.word, judged, *steps, *_machine()])

    def _file(self) -> Path:
        return self.cache / "precision" / f"{self._name()}.json"

    def _remembered(self) -> Decision | None:
        """What an earlier call decided; a file that is not there, or damaged, remembers nothing."""
        try:
            return Decision.read(json.loads(self._file().read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # --------------------------------------------------------------------------------------------------------- scoring

    def _fill(self, way: str, pairs: Pairs, keys: Keys, what: str) -> NDArray[np.float32]:
        store = self._store(way)
        with bar(what, len(pairs), "pairs") as advance:
            rows = fill(
                store,
                keys,
                lambda positions: self._build(way)([pairs[place] for place in positions])[:, None],
                chunk=engine.WINDOW,
                on_chunk=advance,
            )
        return np.array(store.rows[rows, 0])

    def _store(self, way: str) -> RowStore:
        """The scores of a way. Those of fp32 are the same whatever was asked for."""
        exact = [self.fingerprint, str(self.max_length), _FP32]
        name = content_hash(exact if way == _FP32 else [self._name(), way])
        if name not in self._stores:
            self._stores[name] = RowStore(self.cache / "scores" / name, width=1)
        return self._stores[name]

    def _build(self, way: str) -> Callable[[Pairs], NDArray[np.float32]]:
        steps = self._ladder()
        step = steps[-1] if way == _FP32 else next(step for step in steps if step.name == way)
        if step.name not in self._built:
            self._built[step.name] = step.build(self._loaded())
        return self._built[step.name]

    def _loaded(self) -> Reranker:
        if self._reranker is None:
            self._reranker = Reranker.load(self.folder, device=self.device, max_length=self.max_length)
            if self._reranker.max_length < self.max_length:
                say(f"pairs are cut at {self._reranker.max_length} tokens, the most that this model reads")
        return self._reranker


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

        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = dict.fromkeys(text for pair in pairs for text in pair)
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        counts = dict(zip(texts, map(len, encoded), strict=True))
        special = tokenizer.num_special_tokens_to_add(pair=True)
        return np.array([counts[query] + counts[document] + special for query, document in pairs], dtype=np.int64)

    return lengths


def tokens_read(reference: str | Path, max_length: int) -> int:
    """How many tokens of a pair a model reads when it is asked for `max_length`: its own limit may be smaller."""
    from transformers import AutoConfig, AutoTokenizer

    folder = locate(str(reference))
    longest = engine.longest_input(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    return min(max_length, longest)
