"""The OpenVINO backend: the model's own logits, whatever the batch, and a cache that needs no model."""

import copy
import functools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rankwright.errors import ModelError
from rankwright.toolbox.engine import exported, firstrow, openvino
from rankwright.toolbox.engine.pairs import Tokens, stacked

if not openvino.available():  # not importorskip: whoever imports the library first decides about its telemetry
    pytest.skip("OpenVINO is not installed", allow_module_level=True)


def tokens_of(lengths, *, vocabulary=100, typed=True, seed=0):
    rng = np.random.default_rng(seed)
    starts = stacked(np.asarray(lengths, dtype=np.int64))
    types = (np.arange(starts[-1]) % 3 == 0).astype(np.int32) if typed else None
    return Tokens(rng.integers(5, vocabulary, starts[-1]).astype(np.int32), types, starts)


def torch_logits(model, batch):
    """The model's own forward pass, one pair at a time."""
    import torch

    found = []
    with torch.no_grad():
        for start, stop in zip(batch.starts[:-1], batch.starts[1:], strict=True):
            given = {"input_ids": torch.tensor(batch.ids[start:stop][None].astype(np.int64))}
            if batch.types is not None:
                given["token_type_ids"] = torch.tensor(batch.types[start:stop][None].astype(np.int64))
            found.append(model(**given).logits.item())
    return np.array(found)


SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 80,
    "num_labels": 1,
    "initializer_range": 0.2,
}


def small_model(kind):
    import torch
    import transformers

    torch.manual_seed(0)
    extra = {
        "Bert": {},
        "Roberta": {"type_vocab_size": 1, "pad_token_id": 1},
        "XLMRoberta": {"type_vocab_size": 1, "pad_token_id": 1},
        "DebertaV2": {
            "num_hidden_layers": 1,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "type_vocab_size": 0,
        },
        "ModernBert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 16},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **extra})
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


LENGTHS = [40, 40, 33, 33, 33, 20, 9, 9, 4]


@functools.cache
def made(kind, precision="fp32"):
    """A small model of this kind and its backend."""
    model = small_model(kind)
    return model, backend_of(model, precision)


def backend_of(model, precision="fp32", cache=None, fingerprint="a"):
    return openvino.build(model, 1, precision=precision, cache=cache, fingerprint=fingerprint, threads=1)


@pytest.fixture(scope="module")
def bert():
    return made("Bert")[0]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta"])
def test_the_first_row_of_the_last_layer_is_all_that_the_head_reads(kind):
    import torch

    model = small_model(kind)
    export = firstrow.export_of(model)
    assert exported.MASK not in export.inputs
    batch = tokens_of([30, 30, 30], typed=kind == "Bert")
    given = exported.feed(batch, np.arange(3), export.inputs, 1)
    with torch.no_grad():
        found = export.module(*(torch.tensor(given[name]) for name in export.inputs)).numpy()
    np.testing.assert_allclose(found, torch_logits(model, batch), atol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta", "DebertaV2", "ModernBert"])
def test_fp32_gives_the_logits_of_the_model(kind):
    model, backend = made(kind)
    batch = tokens_of(LENGTHS, typed=kind == "Bert")
    expected = torch_logits(model, batch)
    assert expected.std() > 0.05
    found = backend(batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_known_families_need_no_mask_and_others_do():
    assert exported.MASK not in made("Bert")[1]._inputs
    assert exported.MASK in made("ModernBert")[1]._inputs


def test_a_batch_in_any_order_and_larger_than_a_chunk_comes_back_in_its_order(monkeypatch):
    monkeypatch.setattr(exported, "CHUNK_TOKENS", 50)
    batch = tokens_of(np.random.default_rng(1).integers(4, 60, 70))
    model, backend = made("Bert")
    np.testing.assert_allclose(backend(batch), torch_logits(model, batch), atol=2e-5)


def test_int8_is_close_but_not_the_same(bert):
    batch = tokens_of(np.random.default_rng(1).integers(4, 60, 60))
    exact, rounded = torch_logits(bert, batch), made("Bert", "int8")[1](batch)
    assert not np.allclose(rounded, exact, atol=1e-5)
    assert np.corrcoef(rounded, exact)[0, 1] > 0.99


def test_rounding_leaves_the_model_itself_alone(bert):
    before = copy.deepcopy(bert.state_dict())
    openvino._converted(bert, "int8")
    assert all((before[name] == tensor).all() for name, tensor in bert.state_dict().items())


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta", "DebertaV2", "ModernBert"])
def test_no_score_is_the_result_of_a_product_which_bf16_would_round(kind):
    graph = openvino._converted(small_model(kind), "float")
    assert min(weight.shape[0] for _, weight in openvino._linears(graph)) > 1


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta", "DebertaV2", "ModernBert"])
def test_scores_in_bf16_have_more_digits_than_bf16(kind):
    import torch

    if not openvino.bf16_supported():
        pytest.skip("this processor has no bf16")
    batch = tokens_of([20] * 64, typed=kind == "Bert")
    found = torch.from_numpy(made(kind, "bf16")[1](batch))
    assert float((found == found.bfloat16().float()).float().mean()) < 0.1


def test_bf16_is_close(bert):
    batch = tokens_of(np.random.default_rng(1).integers(4, 60, 60))
    assert np.corrcoef(made("Bert", "bf16")[1](batch), torch_logits(bert, batch))[0, 1] > 0.999


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_cached_graph_scores_the_same_without_the_model(bert, tmp_path, precision):
    batch = tokens_of(LENGTHS)
    first = made("Bert", precision)[1](batch)
    backend_of(bert, precision, tmp_path)
    again = backend_of(None, precision, tmp_path)(batch)
    np.testing.assert_array_equal(first, again)
    assert len(list(tmp_path.iterdir())) == 1


def test_bf16_reads_the_graph_of_fp32_and_int8_has_its_own(bert, tmp_path):
    backend_of(bert, "fp32", tmp_path)
    backend_of(None, "bf16", tmp_path)
    with pytest.raises(ModelError):
        backend_of(None, "int8", tmp_path)


def test_the_cache_tells_weights_apart(tmp_path):
    folders = {exported.cached_folder(tmp_path, "openvino", weights, "int8", "1") for weights in "abb"}
    assert len(folders) == 2


def test_a_failed_write_leaves_nothing_in_the_cache(tmp_path):
    with pytest.raises(KeyError), exported.keep_folder(tmp_path / "kept") as made:
        (made / "half").write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_of_two_writers_the_first_one_stays(tmp_path):
    with exported.keep_folder(tmp_path / "kept") as slow:
        with exported.keep_folder(tmp_path / "kept") as quick:
            (quick / "who").write_text("quick")
        (slow / "who").write_text("slow")
    assert (tmp_path / "kept" / "who").read_text() == "quick"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_model_that_cannot_be_converted_is_a_model_error():
    with pytest.raises(ModelError, match="OpenVINO cannot run this model"):
        backend_of(None)


def test_the_name_says_library_and_precision():
    backend = made("Bert", "bf16")[1]
    assert (backend.name, backend.padded) == ("openvino bf16", False)
    assert backend.token_budget > exported.CHUNK_TOKENS


def test_the_questions_about_the_machine_have_answers():
    assert openvino.available() is True
    assert openvino.bf16_supported() in (True, False)
    assert openvino.bf16_pays() in (True, False)
    assert openvino.int8_pays() in (True, False)
    assert openvino.int8_pays(beside_bf16=True) in (True, False)


def test_a_precision_that_is_no_faster_does_not_pay_and_is_measured_once(tmp_path, monkeypatch):
    seconds = {"fp32": 3.0, "bf16": 3.1, "int8": 1.5}
    asked = []

    def measure(*precisions):
        asked.extend(precisions)
        return [seconds[one] for one in precisions]

    monkeypatch.setattr(openvino, "_product_seconds", measure)
    monkeypatch.setattr(openvino, "bf16_supported", lambda: True)
    openvino._gain.cache_clear()
    for _ in range(2):
        assert not openvino.bf16_pays(tmp_path)
        assert openvino.int8_pays(tmp_path)
        openvino._gain.cache_clear()
    assert asked == ["fp32", "bf16", "fp32", "int8"]


def test_int8_beside_bf16_pays_where_it_is_faster_than_that(monkeypatch):
    seconds = {"fp32": 9.0, "bf16": 2.0, "int8+bf16": 1.5}
    monkeypatch.setattr(openvino, "_product_seconds", lambda *precisions: [seconds[one] for one in precisions])
    openvino._gain.cache_clear()
    assert openvino.int8_pays(beside_bf16=True)
    seconds["int8+bf16"] = 3.0  # as with AMX
    openvino._gain.cache_clear()
    assert not openvino.int8_pays(beside_bf16=True)
    openvino._gain.cache_clear()


def test_nothing_is_reported_to_the_makers_of_openvino(tmp_path):
    code = (
        "from rankwright.toolbox.engine import openvino; openvino.available(); import sys;"
        "import openvino.tools.ovc; assert sys.modules['openvino_telemetry'] is None"
    )
    environment = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
    assert not list(tmp_path.rglob("*ga_cid*"))


def test_a_damaged_graph_in_the_cache_is_converted_anew(bert, tmp_path):
    batch = tokens_of([9, 5])
    first = backend_of(bert, "int8", tmp_path)(batch)
    (file,) = tmp_path.rglob("model.xml")
    file.write_text("<half")
    np.testing.assert_array_equal(backend_of(bert, "int8", tmp_path)(batch), first)
    assert "<half" not in file.read_text()


def test_calls_from_several_threads_get_their_own_scores(bert):
    backend = backend_of(bert, "fp32")
    batches = [tokens_of([length] * 7) for length in (4, 9, 14, 20)]
    alone = [backend(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            for found, expected in zip(threads.map(backend, batches), alone, strict=True):
                np.testing.assert_array_equal(found, expected)
