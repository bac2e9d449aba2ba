"""Freed memory: kept while it is held, and given back."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from rankwright.toolbox import heap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")


def asked():
    """Memory pages that five rounds ask the system for, after one that fills what is kept."""
    make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        make()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def make(blocks=10):
    """Blocks of 16 MB, all freed at once."""
    assert len([np.ones(2_000_000) for _ in range(blocks)]) == blocks


@pytest.fixture
def usual():
    yield
    heap.let_go()
    heap.release("cpu")


def test_held_memory_is_not_asked_for_again(usual):
    heap.let_go()
    anew = asked()
    if anew < 1000:
        pytest.skip("this C library keeps it anyway")
    heap.hold()
    assert asked() < anew / 10


def test_what_was_held_is_given_back(usual):
    heap.hold()
    make(20)
    held = resident()
    heap.let_go()
    heap.release("cpu", cycles=True)
    assert resident() <= held - 200_000_000


def test_other_c_libraries_are_left_alone(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(heap.ctypes, "CDLL", missing)
    heap.hold()
    heap.let_go()
    heap.release("cpu")
