"""Products with weights laid out once: torch's own, in all precisions, where there is no such library too."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers.activations import ACT2FN

from rankwright.toolbox.engine import products

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float64: 1e-12}


@pytest.fixture(params=["as it is", "without the library"])
def library(request, monkeypatch):
    if request.param == "without the library":
        monkeypatch.setattr(products, "_there", lambda dtype: False)


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_rows_come_out_as_by_torch(library, dtype, activation):
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(70, 96), torch.randn(64, 96) / 10, torch.randn(64)
    module = ACT2FN[activation] if activation else None
    with torch.inference_mode():
        found = products.Linear(weight, bias, dtype, module)(rows.to(dtype))
        plain = functional.linear(rows, weight, bias)
        expected = module(plain) if module else plain
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=max(BOUNDS[dtype], 2e-6))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_weights_that_change_give_what_torch_gives(library, dtype):
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(70, 96), torch.randn(64, 96) / 10, torch.randn(64)
    found = products.linear(rows.to(dtype), weight.to(dtype), bias.to(dtype))
    assert found.dtype == dtype
    expected = functional.linear(rows, weight, bias)
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=max(BOUNDS[dtype], 2e-6))


def test_any_view_of_weights_and_no_rows_at_all():
    weight = torch.randn(96, 64).t()
    linear = products.Linear(weight, torch.zeros(64), torch.float32)
    rows = torch.randn(7, 96)
    torch.testing.assert_close(linear(rows), rows @ weight.t(), rtol=1e-4, atol=1e-4)
    assert linear(rows[:0]).shape == (0, 64)


def test_a_torch_that_has_no_such_products_is_no_error(monkeypatch):
    monkeypatch.setattr(products, "_multiply", lambda *given: (_ for _ in ()).throw(AttributeError("no such thing")))
    assert not products._there.__wrapped__(torch.float32)


def test_products_that_are_wrong_are_not_taken(monkeypatch):
    monkeypatch.setattr(products, "_multiply", lambda rows, weight, bias, after: rows.new_zeros(5, 32))
    assert not products._there.__wrapped__(torch.float32)


def test_only_the_exact_gelu_is_it():
    assert products.exact_gelu(ACT2FN["gelu"])
    assert not products.exact_gelu(ACT2FN["gelu_new"])
    assert not products.exact_gelu(torch.nn.ReLU())
