"""What early stopping would have kept: the scalars of the step with the lowest validation loss."""

import json
import math

import pytest

from modalscape.engine.client.summary import listed, numbers, summary
from modalscape.engine.core.lesson import Lesson
from modalscape.engine.runtime import claims
from modalscape.engine.store.home import founded
from modalscape.engine.store.writer import RunReader, RunWriter
from tests.homes import SMALL, small, trained


@pytest.fixture
def home(tmp_path):
    founded(tmp_path / "run", small().to_json())
    return tmp_path / "run"


def written(home, losses, **others):
    """A home with these validation losses by step, and other scalars by name and step."""
    writer = RunWriter(home)
    for name, values in ({"loss/val": losses} | others).items():
        for step, value in values.items():
            writer.scalar(step, name, value)
    writer.flush()
    return summary(home)


def test_the_best_step_is_that_of_the_lowest_validation_loss_and_the_first_of_equals(home):
    found = written(home, {0: 3.0, 20: 1.0, 40: 0.5, 60: 0.5, 80: 2.0}, test={20: 0.7, 40: 0.8, 80: 0.6}, lr={41: 1.0})
    assert found["best"] == {"step": 40, "scalars": {"loss/val": 0.5, "test": 0.8}}
    assert numbers(found) == {
        "loss/val": 2.0,
        "test": 0.6,
        "lr": 1.0,
        "best/loss/val": 0.5,
        "best/test": 0.8,
    }


def test_what_was_never_trained_is_not_the_best(home):
    assert written(home, {0: 0.1, 20: 1.0, 40: 2.0})["best"]["step"] == 20


def test_a_run_that_has_only_begun_has_its_beginning(home):
    assert written(home, {0: 0.1})["best"]["step"] == 0


def test_a_loss_that_is_not_finite_is_never_the_best_unless_all_are(home):
    assert written(home, {0: 1.0, 20: math.nan, 40: 5.0, 60: math.inf, 80: -math.inf})["best"]["step"] == 40
    found = written(home, {40: math.nan})
    assert found["best"]["step"] == 20 and json.dumps(found["best"], allow_nan=False)


def test_a_run_without_evaluation_has_no_best(home):
    found = summary(home)
    assert found["best"] is None and numbers(found) == {}
    assert listed(home / "nothing")["best"] is None


def test_a_real_runs_best_is_what_it_recorded_there(tmp_path):
    run = trained(tmp_path / "run", small(probes={"generalization": 20}, settings={"evaluate": 20}))
    found, reader = summary(run.home), RunReader(run.home)
    steps, losses = reader.scalars("loss/val")
    best = min(zip(losses.tolist(), steps.tolist(), strict=True))
    assert (found["best"]["scalars"]["loss/val"], found["best"]["step"]) == best
    assert found["best"]["step"] > 0
    kept = numbers(found)
    at, values = reader.scalars("generalization/accuracy/val")
    assert kept["best/generalization/accuracy/val"] == values[at.tolist().index(found["best"]["step"])]
    assert (
        kept["best/accuracy/val"]
        == dict(zip(*(x.tolist() for x in reader.scalars("accuracy/val")), strict=True))[best[1]]
    )


class Stopped(Lesson):
    name, title, words = "stopped", "Stopped", "A rate at which the validation loss rises again."
    claim = "Early stopping keeps a lower loss than the end."
    arms = {
        name: {"problem": "planted", "steps": 60, "settings": SMALL | {"evaluate": 10, "optimizer.lr": rate}}
        for name, rate in (("fast", 0.05), ("slow", 0.001))
    }
    control, scalar, expect, seeds, show = "slow", "loss/val", "lower", 1, ("live",)
    further = {"at the best step": lambda scalars: scalars["best/loss/val"]}


def test_a_lesson_may_compare_what_early_stopping_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "named", lambda *_: Stopped)
    found = claims.claim("stopped", None, None, tmp_path)
    best = found["further"]["at the best step"]["arms"]
    assert best["fast"]["mean"] < found["arms"]["fast"]["mean"]
    assert best["slow"]["mean"] <= found["arms"]["slow"]["mean"]
