"""Slices of work that another library does in one piece."""

import threading
from contextlib import contextmanager

import pytest

from engine.maths.slices import Timed, in_slices


def test_a_function_is_stopped_at_each_pause_and_its_result_comes_last():
    seen = []

    def work(pause):
        for i in range(3):
            seen.append(i)
            pause()
        return "done"

    slices = in_slices(work)
    assert not seen
    for i in range(3):
        assert next(slices) is None and seen == list(range(i + 1))
    assert next(slices) == "done"


def test_an_error_is_raised_where_the_slices_are_asked_for():
    def work(pause):
        pause()
        raise ValueError("no such matrix")

    slices = in_slices(work)
    next(slices)
    with pytest.raises(ValueError, match="no such matrix"):
        next(slices)


def test_what_is_given_up_ends_at_its_pause_and_leaves_no_thread():
    before, after = threading.active_count(), []

    def work(pause):
        try:
            pause()
            after.append("went on")
        finally:
            after.append("cleaned up")

    slices = in_slices(work)
    next(slices)
    assert threading.active_count() == before + 1
    slices.close()
    assert after == ["cleaned up"] and threading.active_count() == before


def test_each_slice_runs_inside_its_surroundings_and_nothing_else_does():
    depth = []

    @contextmanager
    def around():
        depth.append(True)
        yield
        depth.pop()

    def work(pause):
        assert depth
        pause()
        assert depth
        return 1

    found = []
    for slice_ in in_slices(work, around):
        assert not depth
        found.append(slice_)
    assert found == [None, 1]


def test_the_cost_of_a_measurement_is_that_of_its_slices():
    def measurement():
        yield None
        yield None
        yield 7

    timed = Timed(measurement())
    assert list(timed) == [None] * 3
    assert timed.found == 7 and 0 < timed.seconds < 1
