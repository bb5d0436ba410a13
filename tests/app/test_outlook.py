"""When a measurement may be done: the estimate against the schedule itself, and the words that a page writes."""

import math

import pytest

from app.outlook import expected, outlook
from tests.test_measuring import BREATH, BREATHS, STEP, Stage

FACTS = {
    "jobs": [{"probe": "hessian", "step": 100, "asked": False, "seconds": 3.0, "rank": 0.0}],
    "costs": {"hessian": 10.0},
    "next": {"hessian": 300},
    "share": 0.1,
    "slice": 0.025,
    "spent": 5.0,
    "trained": 45.0,
    "steps": 4500,
    "step": 200,
    "every": {"hessian": 100},
    "served": {"hessian": 0.0, "landscape": 0.0},
    "head_start": 3.0,
}


def words(*, state="running", probe="hessian", step=200, **changed):
    return outlook(FACTS | changed, step=step, state=state)[probe]


@pytest.mark.parametrize("watched", [{"hessian": 1}, {"hessian": 400, "imbalance": 50}, dict.fromkeys(BREATHS, 200)])
def test_the_estimate_is_what_the_schedule_then_does(monkeypatch, watched):
    stage = Stage(monkeypatch, watched)
    while len({name for name, _ in stage.made}) < len(watched):
        stage.go(1)
    stage.go(77)
    while not stage.measuring.jobs:
        stage.go(1)
    facts, began, ends = stage.measuring.told()["measuring"], stage.now, []
    asked = expected(facts)
    for job in list(stage.measuring.jobs):
        while job in stage.measuring.jobs:
            stage.go(1)
        ends.append(stage.now - began)
    assert max(asked) == pytest.approx(max(ends), rel=0.25, abs=20 * BREATH)


def test_what_is_asked_for_is_told_at_its_own_pace(monkeypatch):
    stage = Stage(monkeypatch, {}).go(50, {10: "hessian"})
    stage.go(1000).measuring.now("hessian", {})
    facts, began = stage.measuring.told()["measuring"], stage.now
    assert facts["costs"] == {"hessian": pytest.approx(BREATHS["hessian"] * BREATH)}
    told = expected(facts | {"slice": BREATH})  # the stage breathes once a slice
    while stage.measuring.busy:
        stage.go(1)
    assert told == [pytest.approx(stage.now - began, rel=0.05)] and told[0] > BREATHS["hessian"] * (BREATH + STEP) * 0.9


def test_an_overdrawn_budget_is_paid_back_first():
    soon, late = (expected(FACTS | {"spent": spent})[0] for spent in (5.0, 8.0))
    assert late - soon == pytest.approx(3.0 / 0.1 - 3.0)
    assert soon == pytest.approx(7.0 / 0.1)


def test_without_a_budget_a_scheduled_measurement_never_ends_and_the_page_says_so():
    assert expected(FACTS | {"share": 0.0}) == [math.inf]
    assert "held back by the run's budget; Measure now is not" in words(share=0.0)


def test_the_words_say_how_far_when_and_why_so_late():
    assert words() == "measuring since step 100 · 3.0 s of about 10 s of work · done in about 70 s, in 10% of the time"
    first = words(costs={})
    assert "its first, so how much is left is not known; Measure now gives it all the time" in first
    two = [*FACTS["jobs"], {"probe": "landscape", "step": 200, "asked": False, "seconds": 0.5, "rank": 0.0}]
    assert "in 10% of the time beside 1 other" in words(jobs=two)
    asked = [FACTS["jobs"][0] | {"asked": True}]
    assert words(jobs=asked).endswith("done in about 9.8 s"), "no share and no others: it goes first"


def test_a_measurement_that_takes_longer_than_the_last_is_not_told_as_a_share_of_it():
    job = FACTS["jobs"][0] | {"seconds": 6.6}
    told = words(jobs=[job], costs={"hessian": 2.4})
    assert "6.6 s of work so far, the last took 2.4 s" in told and "of about" not in told and "done in" not in told
    assert "longer than the last, so how much is left is not known" in told
    assert "2.4 s of about 2.4 s of work" in words(jobs=[job | {"seconds": 2.4}], costs={"hessian": 2.4})


def test_between_two_measurements_the_words_say_when_the_next_is_due():
    assert words(jobs=[]) == "next at step 300, in about 1.0 s · the last took 10 s"
    assert words(jobs=[], step=320) == "due · the last took 10 s"
    held = "due, held back by the run's budget; Measure now is not · the last took 10 s"
    assert words(jobs=[], step=320, share=0.0) == held
    assert words(jobs=[], state="paused") == "next at step 300 · the last took 10 s"
    assert words(jobs=[], state="finished") == "the last took 10 s"


def test_a_run_that_says_nothing_of_measurements_has_no_outlook():
    assert outlook({}, step=5, state="running") == {}
    older = {key: value for key, value in FACTS.items() if key not in ("head_start", "served", "every", "step")}
    assert outlook(older, step=5, state="running") == {}
