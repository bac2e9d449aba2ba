"""Attention over ragged pairs: what is handed to the GPU's kernel, with a kernel that a CPU has."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rankwright.toolbox.engine import packed, ragged  # noqa: E402

HEADS = 2


def plain_kernel(query, key, value, asked, ends, most_asked, longest):
    """What torch's kernel does, pair by pair."""
    assert asked.dtype == ends.dtype == torch.int32
    assert most_asked == int(asked.diff().max())
    assert longest == int(ends.diff().max())
    found = []
    for pair in range(len(ends) - 1):
        rows, of = slice(asked[pair], asked[pair + 1]), slice(ends[pair], ends[pair + 1])
        parts = (part.transpose(0, 1) for part in (query[rows], key[of], value[of]))
        found.append(torch.nn.functional.scaled_dot_product_attention(*parts).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("first_only", [False, True])
def test_the_kernel_is_given_what_the_packed_attention_computes(monkeypatch, first_only):
    lengths = np.array([9, 7, 7, 2, 1])
    torch.manual_seed(0)
    mixed = torch.randn(int(lengths.sum()), 3 * HEADS * 8)
    expected = packed.attend(mixed, packed.stretches_of(lengths, level=0.5), HEADS, first_only=first_only)
    monkeypatch.setattr(ragged, "_kernel", lambda: plain_kernel)
    monkeypatch.setattr(ragged, "usable", lambda *_: True)
    found = packed.attend(mixed, packed.stretches_of(lengths, level=0.5), HEADS, first_only=first_only)
    assert found.shape == expected.shape == ((5, 16) if first_only else (26, 16))
    torch.testing.assert_close(found, expected)


def test_a_cpu_has_no_such_kernel():
    assert not ragged.usable(torch.zeros(4, 48, dtype=torch.bfloat16), HEADS)
