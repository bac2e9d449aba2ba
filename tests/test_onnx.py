"""The ONNX backend: the model's own logits, whatever the batch, and a cache that needs no model."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from rankwright.errors import ModelError
from rankwright.toolbox.engine import onnx
from rankwright.toolbox.engine.pairs import Tokens, stacked


def small_bert():
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
        initializer_range=0.3,
    )
    return BertForSequenceClassification(config).eval()


def small_electra():
    import torch
    from transformers import ElectraConfig, ElectraForSequenceClassification

    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=100,
        embedding_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
        initializer_range=0.3,
    )
    return ElectraForSequenceClassification(config).eval()


def some_tokens(count=40, seed=0):
    rng = np.random.default_rng(seed)
    starts = stacked(rng.integers(4, 60, count))
    types = (np.arange(starts[-1]) % 3 == 0).astype(np.int32)
    return Tokens(rng.integers(5, 100, starts[-1]).astype(np.int32), types, starts)


def torch_logits(model, batch):
    import torch

    with torch.no_grad():
        return np.array(
            [
                model(
                    input_ids=torch.tensor(batch.ids[start:stop][None].astype(np.int64)),
                    token_type_ids=torch.tensor(batch.types[start:stop][None].astype(np.int64)),
                ).logits.item()
                for start, stop in zip(batch.starts[:-1], batch.starts[1:], strict=True)
            ]
        )


@pytest.mark.parametrize("make", [small_bert, small_electra])
def test_the_logits_are_those_of_the_model(make):
    model, batch = make(), some_tokens()
    backend = onnx.build(model, 0, cache=None, fingerprint="a", threads=1)
    expected = torch_logits(model, batch)
    assert expected.std() > 0.05
    np.testing.assert_allclose(backend(batch), expected, atol=2e-5)


def test_a_cached_graph_scores_the_same_without_the_model(tmp_path):
    batch = some_tokens()
    first = onnx.build(small_bert(), 0, cache=tmp_path, fingerprint="a", threads=1)(batch)
    again = onnx.build(None, 0, cache=tmp_path, fingerprint="a", threads=1)(batch)
    np.testing.assert_array_equal(first, again)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_weights_are_another_graph(tmp_path):
    onnx.build(small_bert(), 0, cache=tmp_path, fingerprint="a", threads=1)
    with pytest.raises(ModelError, match="onnxruntime cannot run this model"):
        onnx.build(None, 0, cache=tmp_path, fingerprint="b", threads=1)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_batch_without_types_is_read_as_all_zeros():
    model, batch = small_bert(), some_tokens()
    backend = onnx.build(model, 0, cache=None, fingerprint="a", threads=1)
    zeros = Tokens(batch.ids, np.zeros_like(batch.ids), batch.starts)
    np.testing.assert_array_equal(backend(Tokens(batch.ids, None, batch.starts)), backend(zeros))
    assert (backend.name, backend.padded, onnx.available()) == ("onnx fp32", False, True)
