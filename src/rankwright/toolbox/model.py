"""The Reranker: a cross-encoder with one label. Load it, score pairs, rank documents, save it.

Any `AutoModelForSequenceClassification` with one label will do. A saved folder is what sentence-transformers,
transformers, text-embeddings-inference and vLLM read unchanged. How a forward pass is batched is `engine`'s
business; how a model is trained, `train`'s.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.errors import ModelError, first_line
from rankwright.toolbox import engine
from rankwright.toolbox.device import choose_device
from rankwright.toolbox.engine import guard
from rankwright.toolbox.engine.choose import FP32, Scorer, backends, step
from rankwright.toolbox.engine.guard import Sample
from rankwright.toolbox.engine.pairs import PairEncoder
from rankwright.toolbox.exits import ExitHead
from rankwright.toolbox.lists import blend_scores
from rankwright.toolbox.weights import locate

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS = "rankwright.json"
"""Beside a model: what serving needs and no other loader reads, such as the blend's weight and depth."""
_ACTIVATION = "torch.nn.modules.activation.Sigmoid"
_ALONGSIDE = ("special_tokens_map.json", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "added_tokens.json")


@dataclass
class Reranker:
    """A model, its tokenizer, and how long a pair may be. Scores are logits in float32."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    max_length: int
    device: str
    source: Path
    new_head: bool = False
    decisions: dict[str, guard.Decision] = field(default_factory=dict, init=False, repr=False, compare=False)
    """How `balanced` and `fast` are computed, once a call has decided it."""
    _encoder: PairEncoder | None = field(default=None, init=False, repr=False, compare=False)
    _other: Reranker | None = field(default=None, init=False, repr=False, compare=False)
    _shelved: bytes | None = field(default=None, init=False, repr=False, compare=False)
    _state: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)
    _built: dict[str, Scorer] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def load(cls, reference: str | Path, *, device: str = "auto", max_length: int = 512) -> Reranker:
        """A trained reranker from a folder or a hub id.

        Raises:
            ModelError: nothing there, no head, more than one label, or weights that are missing.
        """
        folder = locate(str(reference))
        if not has_head(folder):
            raise ModelError(
                "a plain encoder without a classification head cannot score pairs",
                where=str(reference),
                hint="train it first: `base:` in a training takes any encoder",
            )
        return cls._open(folder, device, max_length, seed=None)

    @classmethod
    def start(cls, reference: str | Path, *, seed: int, device: str = "auto", max_length: int = 512) -> Reranker:
        """A model to train: a reranker as it is, or a plain encoder with a new head drawn with `seed`.

        Raises:
            ModelError: nothing there, a head with more than one label, or weights that are missing.
        """
        folder = locate(str(reference))
        return cls._open(folder, device, max_length, seed=None if has_head(folder) else seed)

    @classmethod
    def _open(cls, folder: Path, device: str, max_length: int, seed: int | None) -> Reranker:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            with _quiet(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed or 0)
                tokenizer = AutoTokenizer.from_pretrained(folder)
                model, found = AutoModelForSequenceClassification.from_pretrained(
                    folder, num_labels=1, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise ModelError(
                f"cannot load the model: {first_line(error)}", where=str(folder), hint="fetch or save it again, whole"
            ) from error
        _refuse_missing(sorted(found["missing_keys"]), model, folder, new_head=seed is not None)
        longest = engine.longest_input(model.config, tokenizer)
        device = choose_device(device)
        return cls(model.to(device), tokenizer, min(max_length, longest), device, folder, new_head=seed is not None)

    @property
    def pad_id(self) -> int:
        """The id of the padding token."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def encoder(self) -> PairEncoder:
        """What makes tokens of pairs, cut at `max_length`; made once, since it remembers texts."""
        if self._encoder is None or self._encoder.max_length != self.max_length:
            self._encoder = PairEncoder(self.tokenizer, self.max_length)
        return self._encoder

    def score(self, pairs: Sequence[tuple[str, str]], *, precision: str = "exact") -> NDArray[np.float32]:
        """The logit of each (query, document) pair, float32 (len(pairs),), in the order given.

        `precision` is ``exact`` (fp32), ``balanced`` or ``fast``: the fastest way of this machine whose order of a
        sample of these pairs is fp32's, in so far as `engine.guard` says. Once decided, it holds for later calls too;
        a call of too few pairs to decide on is computed in fp32. The name of a way (``openvino int8``) takes that one.

        Raises:
            ModelError: the way that is named cannot compute this model.
            ValueError: there is no such way.
        """
        self._forget_if_changed()
        if precision in ("balanced", "fast"):
            precision = self._decide(precision, pairs)
        return self._by(FP32 if precision == "exact" else precision)(pairs)

    def _decide(self, word: str, pairs: Sequence[tuple[str, str]]) -> str:
        """The name of the way that a word means for this model."""
        if word not in self.decisions:
            sample = Sample.of(pairs)
            if not sample.worth:  # which says nothing of a larger call
                return FP32
            names = [step.name for step in backends(word, self.device)]
            self.decisions[word] = guard.choose(word, names, sample, self._try)
        return self.decisions[word].backend

    def _try(self, name: str, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32] | str:
        try:
            return self._by(name)(pairs)
        except ModelError as error:
            return error.message

    def _forget_if_changed(self) -> None:
        """Scorers hold copies of weights, and decisions hold for them: both go where weights have been changed since.

        What is written through `.data` into the same storage is not seen.
        """
        weights = ((id(one), one.data_ptr(), one._version) for one in self.model.parameters())
        state = (id(self.model), *(number for each in weights for number in each))
        if self._state != state:
            self._state, self._built = state, {}
            self.decisions.clear()

    def _by(self, name: str) -> Scorer:
        """The scorer of this name."""
        if name not in self._built:
            self._built[name] = step(name).build(self)
        return self._built[name]

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        retriever: Sequence[float] | None = None,
        top: int | None = None,
    ) -> list[tuple[int, float]]:
        """(position in `documents`, score), best first; ties keep the order given. Scores are logits.

        With the `retriever`'s scores, one a document, the blend that was saved with the model is applied: its
        weight, and its depth, below which documents keep the retriever's order. Pairs are then read as they were when
        dev chose it: at its `max_length`, and in both orders where those were averaged.

        Raises:
            ModelError: `retriever` is given, and no blend was saved with the model.
            ValueError: not one score a document.
        """
        if retriever is not None:
            return self._blend(query, documents, np.asarray(retriever, dtype=np.float64))[:top]
        scores = self._scores(query, documents)
        order = np.argsort(-scores, kind="stable")[:top]
        return [(int(position), float(scores[position])) for position in order]

    def _scores(self, query: str, documents: Sequence[str], *, both_orders: bool = False) -> NDArray[np.float32]:
        """Logits. A text that stands there twice is scored once: in another batch its last bits would differ."""
        place = {document: number for number, document in enumerate(dict.fromkeys(documents))}
        scores = self.score([(query, document) for document in place])
        if both_orders:
            scores = ((scores + self.score([(document, query) for document in place])) / 2).astype(np.float32)
        return scores[[place[document] for document in documents]]

    def _reading(self, max_length: int) -> Reranker:
        """The same model that reads pairs of this length, or as long as it can."""
        length = min(max_length, engine.longest_input(self.model.config, self.tokenizer))
        if length == self.max_length:
            return self
        if self._other is None or self._other.max_length != length or self._other.model is not self.model:
            self._other = replace(self, max_length=length)
        return self._other

    def _blend(self, query: str, documents: Sequence[str], retrieved: NDArray[np.float64]) -> list[tuple[int, float]]:
        if len(retrieved) != len(documents):
            raise ValueError(f"{len(documents)} documents and {len(retrieved)} scores of the retriever")
        setting = read_settings(self.source).get("blend")
        if setting is None:
            raise ModelError("no blend was saved with this model", where=str(self.source), hint="leave `retriever` out")
        order = np.argsort(-retrieved, kind="stable")
        head, tail = order[: setting["depth"]], order[setting["depth"] :]
        reading, turned = self._reading(setting.get("max_length", self.max_length)), setting.get("both_orders", False)
        logits = reading._scores(query, [documents[place] for place in head], both_orders=turned)
        scores = blend_scores(retrieved[head].tolist(), logits.tolist(), setting["weight"])
        ranked = [(int(head[place]), float(scores[place])) for place in np.argsort(-scores, kind="stable")]
        lowest = ranked[-1][1] if ranked else 0.0
        return ranked + [(int(place), lowest - step) for step, place in enumerate(tail, start=1)]

    def shelve_tokenizer(self) -> None:
        """Keep a pickle of the tokenizer alone until `unshelve_tokenizer`: XLM-R's takes 17 MB, itself 370.

        One that cannot be pickled, as RoFormer's, stays where it is.
        """
        try:
            self._shelved = pickle.dumps(self.tokenizer)
        except Exception:  # of tokenizers' Rust too, which raises no narrower one
            return
        self._encoder = None
        del self.tokenizer

    def unshelve_tokenizer(self) -> None:
        """Have the tokenizer again, as it was; nothing where it was not shelved."""
        if self._shelved is not None:
            self.tokenizer, self._shelved = pickle.loads(self._shelved), None

    def save(self, folder: Path, *, card: str, head: ExitHead | None = None) -> None:
        """Write the model folder, whole or not at all: into a hidden sibling, then renamed. `card` is its README.

        A `head` for a cascade is put beside the model; other loaders do not see it.

        An older folder steps aside by rename too, so that none is ever half there.
        """
        made, aside = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        try:
            self._write(made)
            (made / "README.md").write_text(card, encoding="utf-8")
            if head:
                head.save(made)
            if folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        config = self.model.config
        config.id2label, config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
        config.sentence_transformers = {"activation_fn": _ACTIVATION, "version": version("sentence-transformers")}
        with _quiet():
            self.model.save_pretrained(folder, max_shard_size="100GB")
            _unbound(self.tokenizer).save_pretrained(folder)
        _tidy_tokenizer(folder, self.source, engine.longest_input(config, self.tokenizer))


def read_settings(folder: Path) -> dict[str, Any]:
    """What rankwright.json beside a model says; empty without one.

    Raises:
        ModelError: it is not JSON.
    """
    file = folder / SETTINGS
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"cannot be read: {first_line(error)}", where=str(file), hint="delete it") from None


def has_head(folder: Path) -> bool:
    """Whether the folder's config promises a classification head.

    Raises:
        ModelError: no readable config.json, or a head with more than one label.
    """
    file = folder / "config.json"
    try:
        config: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"not a model folder: {first_line(error)}",
            where=str(file),
            hint="a model folder holds config.json, model.safetensors and a tokenizer",
        ) from None
    architecture = (config.get("architectures") or [""])[0]
    if not architecture.endswith("ForSequenceClassification"):
        return False
    labels = len(config.get("id2label") or range(config.get("num_labels", 2)))
    if labels != 1:
        raise ModelError(
            f"a classifier with {labels} labels is no reranker: it needs one",
            where=str(file),
            hint="train from its plain encoder, or from a reranker with one label",
        )
    return True


def _refuse_missing(missing: Sequence[str], model: PreTrainedModel, folder: Path, *, new_head: bool) -> None:
    """Raise a ModelError when weights are missing that should be there: a new head and its pooler need not be."""
    if new_head:
        encoder = f"{model.base_model_prefix}."
        missing = [name for name in missing if name.startswith(encoder) and ".pooler." not in name]
    if missing:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise ModelError(
            f"{len(missing)} weights are missing ({shown})", where=str(folder), hint="fetch or save it again, whole"
        )


def model_card(title: str, base: str, lines: Sequence[str]) -> str:
    """A README for a model folder: the front matter that hubs read, then `lines` of Markdown."""
    head = ["---", "pipeline_tag: text-ranking", "library_name: sentence-transformers"]
    head += [f"base_model: {json.dumps(base)}", "tags: [cross-encoder, reranker, rankwright]", "---", ""]
    return "\n".join([*head, f"# {title}", "", *lines, ""])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' loading bars and reports off the screen: what matters of them is raised as errors."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _unbound(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer without a truncation or padding left over from its last call, which would be saved along."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def _tidy_tokenizer(folder: Path, source: Path, longest: int) -> None:
    """Make the tokenizer's files what other loaders need: a concrete class, a length, the vocabulary alongside.

    The length is what the model can read, whatever it was trained with: models in one table read alike.
    """
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        there = source / "tokenizer_config.json"
        before = json.loads(there.read_text(encoding="utf-8")) if there.exists() else {}
        name = before.get("tokenizer_class")
        config["tokenizer_class"] = name if name not in (None, "TokenizersBackend") else "PreTrainedTokenizerFast"
    config["model_max_length"] = longest
    config = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in _ALONGSIDE:
        if (source / name).exists() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)
