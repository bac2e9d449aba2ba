"""A reranker as a graph to export: token ids in, one logit a pair out, made to be traced.

In: an `AutoModelForSequenceClassification` with one label. Out: a torch module with positional inputs, and their names.
For BERT and (XLM-)RoBERTa the last layer computes the first token's row only, and there is no mask; any other family
is exported as it is. Knows nothing of OpenVINO, ONNX, files or precision.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankwright.toolbox.engine.exported import IDS, MASK, TYPES
from rankwright.toolbox.engine.packed import supported


@dataclass(frozen=True)
class Export:
    """A module to trace and the names of its positional inputs; where no mask is among them, lengths must agree."""

    module: nn.Module
    inputs: list[str]


def export_of(model: Any) -> Export:
    """The graph of a model that scores pairs; its weights are shared where they can be.

    The module takes int64 (count, length) ids, types where `inputs` names them, and a mask (1 at tokens) where
    `inputs` names it; without a mask all pairs of a call must have the same length. It gives float (count,) logits.
    """
    module = _FirstRow(model) if supported(model) else _Whole(model)
    module.eval()
    return Export(module, module.inputs)


def example(inputs: list[str]) -> tuple[torch.Tensor, ...]:
    """Tensors to trace with, (2, 16) each: more than one pair and one token, so that neither size is fixed."""
    made = {IDS: torch.arange(32).reshape(2, 16) % 7 + 1, TYPES: torch.zeros(2, 16, dtype=torch.int64)}
    made[MASK] = torch.ones(2, 16, dtype=torch.int64)
    return tuple(made[name] for name in inputs)


def _uses_types(model: Any) -> bool:
    """Whether the token types can matter: some are known, and the model takes them."""
    known = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1
    return known and TYPES in inspect.signature(model.forward).parameters


class _Whole(nn.Module):
    """Any classifier as it is, padded and masked."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs = [IDS, *([TYPES] if _uses_types(model) else []), MASK]

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.inputs, tensors, strict=True))).logits
        return logits.reshape(-1)


class _FirstRow(nn.Module):
    """BERT, RoBERTa and XLM-R with the last layer on the first token's row only: all that the head reads.

    No mask: the pairs of a call have one length. Dropout is left out.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        body = getattr(model, model.base_model_prefix)
        self.embeddings = body.embeddings
        self.layers = body.encoder.layer
        self.heads = int(config.num_attention_heads)
        # RoBERTa counts positions from the padding id on.
        self.first_position = 0 if config.model_type == "bert" else int(config.pad_token_id) + 1
        self.typed = _uses_types(model)
        self.inputs = [IDS, *([TYPES] if self.typed else [])]
        self.head = _BertHead(model) if config.model_type == "bert" else model.classifier

    def forward(self, ids: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self._embed(ids, types)
        for layer in self.layers[:-1]:
            hidden = self._layer(layer, hidden, hidden)
        first = self._layer(self.layers[-1], hidden[:, :1], hidden)
        logits: torch.Tensor = self.head(first)
        return logits.reshape(-1)

    def _embed(self, ids: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        """Hidden states (count, length, width) before the first layer."""
        tables = self.embeddings
        places = tables.position_embeddings(torch.arange(ids.shape[1]) + self.first_position)[None]
        kinds = tables.token_type_embeddings.weight[0] if types is None else tables.token_type_embeddings(types)
        hidden: torch.Tensor = tables.LayerNorm(tables.word_embeddings(ids) + kinds + places)
        return hidden

    def _layer(self, layer: Any, rows: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The output of one layer for `rows`, which attend to all of `hidden`."""
        attention = layer.attention.self
        query, key, value = (
            part(of).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, of in ((attention.query, rows), (attention.key, hidden), (attention.value, hidden))
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        attended = layer.attention.output.LayerNorm(layer.attention.output.dense(mixed) + rows)
        wide = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(attended))
        out: torch.Tensor = layer.output.LayerNorm(layer.output.dense(wide) + attended)
        return out


class _BertHead(nn.Module):
    """BERT's pooler and classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pooler = model.bert.pooler
        self.classifier = model.classifier

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.pooler(hidden))
        return logits
