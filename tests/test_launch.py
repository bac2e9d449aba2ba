"""Work here, or in processes of its own: the same answers, in order.

A worker imports the function by its name, and no test module has one: so the work is expressions, and `eval` does it.
"""

import os

import pytest

from rankwright import launch

SUMS = ["3 * 2", "1 * 2", "2 * 2"]
WHO = "__import__('os').getpid()"


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_answers_come_in_order_however_many_work(workers):
    assert list(launch.map(eval, SUMS, workers)) == [6, 2, 4]


def test_one_worker_is_this_process_and_more_are_others():
    assert set(launch.map(eval, [WHO, WHO])) == {os.getpid()}
    assert os.getpid() not in set(launch.map(eval, [WHO, WHO], workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_is_raised_here(workers):
    with pytest.raises(ZeroDivisionError):
        list(launch.map(eval, ["1", "1 / 0", "2"], workers))


def test_nothing_to_do_starts_nothing():
    assert list(launch.map(eval, [], workers=4)) == []
