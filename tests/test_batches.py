"""Lengths to batches: every pair once, longest first, never over the budget, never cut earlier than need be."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.toolbox.engine.batches import equal_runs, token_batches


def one_by_one(lengths, budget, *, padded):
    """The same rules, a pair at a time."""
    batches = []
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        batch = batches[-1] if batches else []
        longest = lengths[batch[0]] if batch else 0
        if padded:
            fits = (len(batch) + 1) * longest <= budget
            fits = fits and (len(batch) < 8 or lengths[position] >= 0.75 * longest)
        else:
            fits = sum(lengths[member] for member in batch) + lengths[position] <= budget
        if batch and fits:
            batch.append(position)
        else:
            batches.append([position])
    return batches


def random_lengths(rng):
    count = int(rng.integers(1, 200))
    kind = rng.integers(3)
    if kind == 0:
        return rng.integers(0, 40, size=count)
    if kind == 1:
        return np.minimum(np.round(rng.lognormal(4, 1, size=count)), 512).astype(int)
    return np.full(count, int(rng.integers(1, 300)))


@pytest.mark.parametrize("padded", [False, True])
def test_batches_are_those_of_taking_one_pair_after_the_other(padded):
    rng = np.random.default_rng(int(padded))
    for _ in range(400):
        lengths, budget = random_lengths(rng), int(rng.integers(1, 3000))
        found = token_batches(lengths, budget, padded=padded)
        assert [batch.tolist() for batch in found] == one_by_one(lengths.tolist(), budget, padded=padded)


def test_unpadded_batches_keep_the_budget_and_could_not_take_the_next_pair():
    lengths = np.random.default_rng(2).integers(1, 100, size=3000)
    batches = token_batches(lengths, 500, padded=False)
    assert all(lengths[batch].sum() <= 500 for batch in batches)
    nexts = [lengths[batch[0]] for batch in batches[1:]]
    assert all(lengths[batch].sum() + after > 500 for batch, after in zip(batches[:-1], nexts, strict=True))


def test_padded_batches_keep_the_budget_with_their_padding():
    lengths = np.random.default_rng(3).integers(1, 100, size=3000)
    batches = token_batches(lengths, 500, padded=True)
    assert all(len(batch) * lengths[batch].max() <= 500 for batch in batches)


def test_each_pair_comes_once_longest_first_and_ties_by_position():
    lengths = [5, 9, 5, 9, 1, 5]
    for padded in (False, True):
        batches = token_batches(lengths, 20, padded=padded)
        assert np.concatenate(batches).tolist() == [1, 3, 0, 2, 5, 4]
        assert all(batch.dtype == np.int64 for batch in batches)


def test_a_pair_longer_than_the_budget_makes_a_batch_of_its_own():
    for padded in (False, True):
        assert [batch.tolist() for batch in token_batches([4, 100, 80, 3], 10, padded=padded)] == [[1], [2], [0, 3]]


def test_a_padded_batch_of_some_size_ends_where_the_next_pair_is_much_shorter():
    lengths = [100] * 8 + [75, 74]
    assert [len(batch) for batch in token_batches(lengths, 10_000, padded=True)] == [9, 1]
    assert [len(batch) for batch in token_batches([100, 10, 10, 10], 10_000, padded=True)] == [4]


def test_no_pairs_make_no_batch_and_pairs_without_tokens_make_one():
    for padded in (False, True):
        assert token_batches([], 10, padded=padded) == []
        assert [batch.tolist() for batch in token_batches([0, 0, 0], 10, padded=padded)] == [[0, 1, 2]]


@pytest.mark.parametrize("padded", [False, True])
def test_a_million_lengths_are_cut_whole(padded):
    lengths = np.minimum(np.random.default_rng(4).lognormal(4.5, 0.8, size=1_000_000), 512).astype(np.int64) + 1
    batches = token_batches(lengths, 2048, padded=padded)
    order = np.concatenate(batches)
    assert len(order) == 1_000_000
    assert (np.bincount(order) == 1).all()
    assert (np.diff(lengths[order]) <= 0).all()


def test_equal_runs_are_the_groups_of_one_length():
    assert equal_runs([9, 9, 7, 5, 5, 5]) == [(0, 2), (2, 3), (3, 6)]
    assert equal_runs([4]) == [(0, 1)]
    assert equal_runs([]) == []


def test_equal_runs_cover_any_sorted_batch_and_neighbours_differ():
    rng = np.random.default_rng(5)
    for _ in range(200):
        lengths = np.sort(rng.integers(0, 30, size=rng.integers(1, 100)))[::-1]
        runs = equal_runs(lengths)
        assert [start for start, _ in runs] == [0, *(stop for _, stop in runs[:-1])]
        assert runs[-1][1] == len(lengths)
        assert all(len(set(lengths[start:stop])) == 1 for start, stop in runs)
        assert all(lengths[stop] != lengths[stop - 1] for _, stop in runs[:-1])
