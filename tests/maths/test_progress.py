"""Progress: what is told in which order, that it is honest, and that a listener can end the work."""

from __future__ import annotations

import pytest

from modalscape.engine.maths.progress import Tally, listening, report, tracked


class Cancelled(Exception):
    """What a listener raises that wants no more."""


def heard(work) -> list[tuple[str, int, int]]:
    told = []
    with listening(lambda *found: told.append(found)):
        work()
    return told


def test_each_item_is_told_after_it_was_used():
    order = []
    with listening(lambda *found: order.append(found)):
        for item in tracked([7, 8], "rows"):
            order.append(item)
    assert order == [("rows", 0, 2), 7, ("rows", 1, 2), 8, ("rows", 2, 2)]


def test_nobody_has_to_listen():
    assert list(tracked(range(3), "rows")) == [0, 1, 2]
    report("rows", 1, 2)


def test_a_total_is_needed_where_items_have_no_length_and_is_never_overtaken():
    with pytest.raises(TypeError, match="say how many rows"):
        list(tracked(iter([1]), "rows"))
    told = heard(lambda: list(tracked(iter([1, 2, 3]), "rows", 2)))
    assert told == [("rows", 0, 2), ("rows", 1, 2), ("rows", 2, 2), ("rows", 3, 3)]


def test_work_within_work_is_told_under_its_own_name():
    def work():
        for _ in tracked("ab", "rows"):
            for _ in tracked("x", "draws"):
                pass

    inner = [("draws", 0, 1), ("draws", 1, 1)]
    assert heard(work) == [("rows", 0, 2), *inner, ("rows", 1, 2), *inner, ("rows", 2, 2)]


def test_of_listeners_within_each_other_the_innermost_is_called_and_the_outer_one_comes_back():
    outer, inner = [], []
    with listening(lambda *found: outer.append(found)):
        with listening(lambda *found: inner.append(found)):
            report("rows", 1, 2)
        report("rows", 2, 2)
    report("rows", 3, 3)
    assert (outer, inner) == ([("rows", 2, 2)], [("rows", 1, 2)])


def test_a_listener_that_raises_ends_the_work_within_one_item_and_is_heard_no_more():
    used = []

    def listener(what, done, planned):
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled), listening(listener):
        for item in tracked(range(10), "rows"):
            used.append(item)
    assert used == [0, 1] and list(tracked(range(3), "rows")) == [0, 1, 2]


def test_a_tally_adds_up_and_may_change_its_plan():
    def work():
        tally = Tally("products", 4)
        tally.add(3)
        tally.plan(-1)
        tally.add()

    assert heard(work) == [("products", 0, 4), ("products", 3, 4), ("products", 3, 3), ("products", 4, 4)]
