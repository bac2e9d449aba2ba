"""The row store: what a process killed at any moment leaves behind, and what the next one makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from rankwright.toolbox.store import RowStore, content_keys, fill

WIDTH = 3


def rows_of(numbers):
    return np.repeat(np.asarray(numbers, dtype=np.float32)[:, None], WIDTH, axis=1)


def keys_of(numbers):
    return content_keys([f"text {number}" for number in numbers])


class Killed(BaseException):
    """Stands for kill -9: nothing in the store catches it."""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def test_rows_come_back_under_their_keys_in_a_new_process_too(folder):
    RowStore(folder, WIDTH).append(keys_of([5, 1, 9]), rows_of([5, 1, 9]))
    store = RowStore(folder, WIDTH)
    assert len(store) == 3
    numbers = store.find(keys_of([9, 5, 1]))
    np.testing.assert_array_equal(store.rows[numbers], rows_of([9, 5, 1]))


def test_a_key_that_the_store_lacks_is_minus_one(folder):
    store = RowStore(folder, WIDTH)
    assert store.find(keys_of([1, 2])).tolist() == [-1, -1]
    assert store.rows.shape == (0, WIDTH)
    store.append(keys_of([2]), rows_of([2]))
    assert store.find(keys_of([1, 2, 3])).tolist() == [-1, 0, -1]


def test_a_key_given_twice_keeps_its_first_row(folder):
    store = RowStore(folder, WIDTH)
    store.append(keys_of([4, 7]), rows_of([4, 7]))
    store.append(keys_of([7]), rows_of([70]))
    assert store.rows[store.find(keys_of([7]))[0]].tolist() == [7.0] * WIDTH


def test_rows_without_their_keys_are_not_seen_and_are_written_over(folder):
    store = RowStore(folder, WIDTH)
    store.append(keys_of([1, 2]), rows_of([1, 2]))
    with store._rows_path.open("ab") as file:  # killed after the rows of a chunk, before its keys
        file.write(rows_of([3, 4, 5]).tobytes()[:-5])
    store = RowStore(folder, WIDTH)
    assert len(store) == 2
    store.append(keys_of([8]), rows_of([8]))
    np.testing.assert_array_equal(store.rows, rows_of([1, 2, 8]))
    assert store._rows_path.stat().st_size == 3 * WIDTH * 4


@pytest.mark.parametrize("cut", range(1, 17))
def test_keys_cut_at_any_byte_lose_only_the_cut_ones(folder, cut):
    store = RowStore(folder, WIDTH)
    store.append(keys_of([1, 2, 3]), rows_of([1, 2, 3]))
    raw = store._keys_path.read_bytes()
    store._keys_path.write_bytes(raw[:-cut])
    store = RowStore(folder, WIDTH)
    assert len(store) == (24 - cut) // 8
    store.append(keys_of([9]), rows_of([9]))
    assert store.rows[store.find(keys_of([1]))[0]].tolist() == [1.0] * WIDTH
    assert store.rows[store.find(keys_of([9]))[0]].tolist() == [9.0] * WIDTH
    assert store.find(keys_of([3])).tolist() == [-1]


def test_rows_that_the_disk_lost_are_not_read_as_zeros(folder):
    store = RowStore(folder, WIDTH)
    store.append(keys_of([1, 2, 3]), rows_of([1, 2, 3]))
    raw = store._rows_path.read_bytes()
    store._rows_path.write_bytes(raw[: -WIDTH * 4 - 2])
    store = RowStore(folder, WIDTH)
    assert store.find(keys_of([1, 2, 3])).tolist() == [0, -1, -1]
    store.append(keys_of([4]), rows_of([4]))
    assert store.find(keys_of([2, 3])).tolist() == [-1, -1]
    assert store.rows[store.find(keys_of([4]))[0]].tolist() == [4.0] * WIDTH


def test_two_processes_that_write_by_turns_do_not_overwrite_each_other(folder):
    one, other = RowStore(folder, WIDTH), RowStore(folder, WIDTH)
    one.append(keys_of([1]), rows_of([1]))
    other.append(keys_of([2]), rows_of([2]))  # `other` was opened when the store was empty
    one.append(keys_of([3]), rows_of([3]))
    np.testing.assert_array_equal(one.rows, rows_of([1, 2, 3]))


def test_fill_computes_each_missing_content_once_in_order(folder):
    store = RowStore(folder, WIDTH)
    store.append(keys_of([2]), rows_of([2]))
    numbers = [3, 2, 3, 1, 0, 1, 4]
    chunks, heard = [], []

    def compute(positions):
        chunks.append([numbers[position] for position in positions])
        return rows_of(chunks[-1])

    found = fill(store, keys_of(numbers), compute, chunk=3, on_chunk=heard.append)
    assert chunks == [[3, 1, 0], [4]]
    assert heard == [3, 3, 1]  # one was there and two are repeated
    np.testing.assert_array_equal(store.rows[found], rows_of(numbers))
    assert fill(store, keys_of(numbers), lambda positions: pytest.fail("computed again"), chunk=3).tolist() == list(
        found
    )


@pytest.mark.parametrize("killed_in", [0, 1, 2, 3])
def test_a_killed_fill_goes_on_with_the_chunks_it_would_have_computed(folder, tmp_path, killed_in):
    numbers = [*range(10), 3, 0]
    whole, resumed = [], []

    def computing(chunks, dies_at=None):
        def compute(positions):
            if dies_at is not None and len(chunks) == dies_at:
                raise Killed
            chunks.append(tuple(numbers[position] for position in positions))
            return rows_of(chunks[-1])

        return compute

    unbroken = RowStore(tmp_path / "unbroken", WIDTH)
    fill(unbroken, keys_of(numbers), computing(whole), chunk=3)
    with pytest.raises(Killed):
        fill(RowStore(folder, WIDTH), keys_of(numbers), computing(resumed, killed_in), chunk=3)
    store = RowStore(folder, WIDTH)
    assert len(store) == 3 * killed_in
    fill(store, keys_of(numbers), computing(resumed), chunk=3)
    assert resumed == whole
    assert store._rows_path.read_bytes() == unbroken._rows_path.read_bytes()
    assert store._keys_path.read_bytes() == unbroken._keys_path.read_bytes()


def test_keys_tell_texts_and_pairs_apart_and_do_not_change_between_processes():
    keys = content_keys(["ab", ("a", "b"), ("ab", ""), ("", "ab"), "ba"])
    assert len(set(keys.tolist())) == 5
    assert content_keys(["ab"]).tolist() == [0x8810DE87F1B5520E]
    assert content_keys([]).shape == (0,)
