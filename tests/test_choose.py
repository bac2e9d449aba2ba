"""Which ways of scoring a machine has, and that each gives scores."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.errors import MissingExtraError, ModelError
from rankwright.toolbox.engine import choose, onnx, openvino
from rankwright.toolbox.model import Reranker

PAIRS = [("red apple", "green pear"), ("blue", "the car of the train"), ("how", "what")]


@pytest.fixture
def machine(monkeypatch):
    """Says what a machine has: openvino, whether bf16 and int8 pay, onnx; `int8` means beside bf16 too."""

    def has(*, vino=False, bf16=False, int8=False, onnxruntime=False):
        monkeypatch.setattr(openvino, "available", lambda: vino)
        monkeypatch.setattr(openvino, "bf16_pays", lambda cache=None: bf16)
        monkeypatch.setattr(openvino, "int8_pays", lambda cache=None, beside_bf16=False: int8)
        monkeypatch.setattr(onnx, "available", lambda: onnxruntime)
        monkeypatch.setattr(choose, "choose_precision", lambda *_: ("bf16" if bf16 else "fp32", ""))

    return has


@pytest.mark.parametrize("word", ["balanced", "fast"])
def test_the_fastest_way_comes_first_and_fp32_last(machine, word):
    def names(device="cpu"):
        return [step.name for step in choose.backends(word, device)]

    machine()
    assert names() == ["torch fp32"]
    machine(onnxruntime=True)
    assert names() == ["onnx fp32", "torch fp32"]
    machine(bf16=True)
    assert names() == names("cuda") == ["torch bf16", "torch fp32"]
    machine(vino=True, int8=True, onnxruntime=True)
    assert names() == ["openvino int8", "torch fp32"]
    machine(vino=True, onnxruntime=True)
    assert names() == ["torch fp32"]
    machine(vino=True, bf16=True, int8=True)
    assert names() == ["openvino int8+bf16", "openvino bf16", "torch fp32"]
    machine(vino=True, bf16=True)
    assert names() == ["openvino bf16", "torch fp32"]


def test_exact_is_fp32_alone_whatever_the_machine_has(machine):
    machine(vino=True, bf16=True)
    assert [step.name for step in choose.backends("exact", "cpu")] == ["torch fp32"]


@pytest.mark.parametrize("name", ["torch bf16", "openvino fp32", "openvino int8", "openvino int8+bf16", "onnx fp32"])
def test_each_way_scores_nearly_as_fp32_does(tiny_reranker, tmp_path, name):
    library = name.partition(" ")[0]
    if not {"torch": lambda: True, "openvino": openvino.available, "onnx": onnx.available}[library]():
        pytest.skip(f"{library} is not installed")
    reranker = Reranker.load(tiny_reranker, device="cpu")
    found = choose.step(name, tmp_path).build(reranker)(PAIRS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reranker.score(PAIRS), atol=0.01)
    np.testing.assert_array_equal(found, choose.step(name, tmp_path).build(reranker)(PAIRS))


def test_a_way_that_there_is_not_is_refused():
    for name in ("abacus int8", "onnx int8", "openvino int4", "torch int8", "torch", ""):
        with pytest.raises(ValueError, match="is no way to score; there are torch fp32, torch bf16"):
            choose.step(name)


def test_a_way_without_its_library_names_the_extra(tiny_reranker, monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    monkeypatch.setitem(choose._MAKERS, "openvino", missing)
    with pytest.raises(MissingExtraError, match=r"openvino bf16 needs openvino(.|\n)*rankwright\[fast\]"):
        choose.step("openvino bf16").build(Reranker.load(tiny_reranker, device="cpu"))


class Wrong:
    """A backend that is off by so much."""

    name, token_budget, padded = "made int8", 2048, False

    def __init__(self, reranker, off):
        self.right, self.off = choose.step("torch fp32").make(reranker), off

    def __call__(self, batch):
        return self.right(batch) + np.float32(self.off)


@pytest.mark.parametrize("off", [2654.3, -2.0, np.nan, np.inf])
def test_a_graph_that_computes_garbage_is_refused_whatever_was_decided(tiny_reranker, monkeypatch, off):
    monkeypatch.setitem(choose._MAKERS, "made", lambda reranker, precision, cache: Wrong(reranker, off))
    monkeypatch.setitem(choose._PRECISIONS, "made", ("int8",))
    with pytest.raises(ModelError, match=r"made int8 comes out wrong here: \S+ where fp32 gives"):
        choose.step("made int8").build(Reranker.load(tiny_reranker, device="cpu"))


def test_a_graph_that_rounds_is_not_refused(tiny_reranker, monkeypatch):
    monkeypatch.setitem(choose._MAKERS, "made", lambda reranker, precision, cache: Wrong(reranker, 0.1))
    monkeypatch.setitem(choose._PRECISIONS, "made", ("int8",))
    assert len(choose.step("made int8").build(Reranker.load(tiny_reranker, device="cpu"))(PAIRS)) == len(PAIRS)
