"""What the engine measures itself: everything that is due, at its step, and nothing of it moves the training."""

import json
import signal
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.runtime import loop
from modalscape.engine.runtime.schedule import Schedule
from modalscape.engine.store.commands import Cancel, Measure, Pace, Stop, Watch, post
from modalscape.engine.store.writer import RunReader
from tests.homes import engine, json_of, small, trained, wait_for

QUICK = {"hessian.steps": 5, "hessian.probes": 1, "hessian.parts": False, "hessian.sigma": 0.1, "probe_rows": 32}
LONG = {"points": 101, "tol": 1e-12}


def test_everything_due_is_measured_exactly_at_its_step_and_everything_at_the_last(tmp_path):
    run = trained(tmp_path / "a", small(steps=55, probes={"imbalance": 7, "hessian": 20}, settings=QUICK))
    reader = RunReader(run.home)
    done = [(e.detail["name"], e.step) for e in reader.events(kinds=("probe",))]
    assert [step for name, step in done if name == "imbalance"] == [7, 14, 21, 28, 35, 42, 49, 55]
    assert [step for name, step in done if name == "hessian"] == [20, 40, 55]
    assert reader.history("hessian/lambda_max") == [20, 40, 55]
    assert reader.meta("measure") == "inline" and reader.meta("activity") == ""


def test_measuring_moves_nothing(tmp_path):
    plain = trained(tmp_path / "a", small())
    measured = trained(tmp_path / "b", small(probes={"imbalance": 7, "hessian": 10}, settings=QUICK))
    assert torch.equal(plain.training.state.theta, measured.training.state.theta)


def test_a_probe_watched_on_the_way_joins_and_leaves(tmp_path):
    orders = {15: [Watch("imbalance", True, 10)], 45: [Watch("imbalance", False)]}
    run = trained(tmp_path / "a", small(), orders)
    assert [e.step for e in RunReader(run.home).events(kinds=("probe",))] == [20, 30, 40]


def test_a_resumed_run_measures_nothing_twice_and_leaves_nothing_out(tmp_path):
    config = small(probes={"imbalance": 5}, settings={"checkpoint": 20})
    trained(tmp_path / "a", config, {33: [Stop()]})
    assert json_of("resume", tmp_path / "a")["state"] == "finished"
    steps = [e.step for e in RunReader(tmp_path / "a").events(kinds=("probe",))]
    assert steps == sorted(set(steps)) == list(range(5, 61, 5))


def test_a_finished_run_that_was_killed_in_its_last_measurement_makes_it_when_it_is_resumed(tmp_path):
    config = small(steps=20, probes={"landscape": 50}, settings={"landscape.points": 101, "landscape.tol": 0.0})
    config.settings["landscape.tol"] = 0.0
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps(config.to_json()))
    process = engine("run", tmp_path / "a")
    reader = wait_for(lambda: (tmp_path / "a" / "run.db").exists() and RunReader(tmp_path / "a"))
    wait_for(lambda: "measuring landscape" in reader.meta("activity", ""))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not reader.events(kinds=("probe",))
    config.settings["landscape.points"] = 5
    (tmp_path / "a" / "config.json").write_text(json.dumps(config.to_json()))
    json_of("resume", tmp_path / "a")
    assert [e.step for e in reader.events(kinds=("probe",))] == [20]


def test_a_measurement_that_was_asked_for_leaves_training_as_it_was(tmp_path):
    plain = trained(tmp_path / "a", small())
    run = trained(tmp_path / "b", small(settings=QUICK), {20: [Measure("hessian")]})
    assert RunReader(run.home).history("hessian/lambda_max") == [20]
    assert torch.equal(run.training.state.theta, plain.training.state.theta)


@pytest.mark.parametrize("ending", [Cancel("landscape"), Stop()])
def test_cancel_and_stop_end_a_measurement_that_has_only_its_first_picture(tmp_path, ending):
    def ask():
        wait_for(lambda: RunReader(tmp_path / "a").history("landscape/2d"), what="a first picture")
        post(tmp_path / "a", ending)

    def begin():
        threading.Thread(target=ask).start()
        return [Measure("landscape", LONG)]

    run = trained(tmp_path / "a", small(), {20: begin})
    assert run.training.state.step == (21 if ending == Stop() else 60), "a stop is obeyed after one step more"
    reader = RunReader(run.home)
    assert not reader.events(kinds=("probe", "probe failed")) and reader.meta("activity") == ""
    assert reader.history("landscape/2d") == [20], "its first picture stays"


def test_while_it_measures_a_run_says_how_far_that_has_come(tmp_path):
    seen = set()

    def begin():
        def look():
            reader = RunReader(tmp_path / "a")

            def counted():
                words = reader.meta("activity", "")
                if words.startswith("measuring landscape: ") and " of " in words:
                    seen.add(words)
                return len(seen) > 3

            wait_for(counted, what="words that count up")
            post(tmp_path / "a", Stop())

        threading.Thread(target=look).start()
        return [Measure("landscape", LONG)]

    trained(tmp_path / "a", small(), {20: begin})
    assert len(seen) > 3


def test_what_is_scheduled_and_refused_says_so_once_and_again_when_it_is_asked_for(tmp_path):
    config = small(probes={"imbalance": 10}, settings={"modalities": "audio"})
    run = trained(tmp_path / "run", config, {45: [Measure("imbalance", {})]})
    failed = [event for event in RunReader(run.home).events() if event.kind == "probe failed"]
    assert [event.step for event in failed] == [10, 45], "the first, and the one asked for"
    assert all("this run trains on audio alone" in event.detail["error"] for event in failed)


def test_an_earlier_step_is_not_measured_between_two_steps(tmp_path):
    run = trained(tmp_path / "run", small(), {45: [Measure("imbalance", {}, 20)]})
    refused = RunReader(run.home).events(kinds=("refused",))
    assert "step 20 cannot be measured while it trains" in refused[0].detail["error"]


def test_a_pace_keeps_steps_apart_moves_while_the_run_goes_and_changes_no_number(tmp_path, monkeypatch):
    plain = trained(tmp_path / "a", small())
    now, times = [0.0], {}

    def sleep(seconds):
        now[0] += max(seconds, 1e-6)

    def passed(step):
        times[step] = now[0]
        return [Pace(0)] if step == 21 else []

    read = lambda: now[0]  # noqa: E731
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=read, perf_counter=read, sleep=sleep))
    orders = {step: partial(passed, step) for step in (1, 20, 21, 22, 40)}
    paced = trained(tmp_path / "b", small(settings={"pace": 20.0}), orders)
    assert times[20] - times[1] == pytest.approx(19 / 20, abs=1e-4), "nineteen steps, twenty a second"
    assert times[40] == times[22] == times[21], "at no pace, no step waits"
    assert RunReader(paced.home).meta("pace") == 0.0
    assert torch.equal(plain.training.state.theta, paced.training.state.theta)


@pytest.mark.parametrize("rate", [-1, float("nan"), True, 2e6])
def test_a_pace_that_is_none_is_refused_in_a_sentence(rate):
    with pytest.raises(InputError, match="A pace is a number of steps a second from 0"):
        Pace(rate)


def test_a_schedule_knows_what_is_due_and_what_was_passed():
    schedule = Schedule(lambda probe: 25)
    schedule.only({"a": 10, "b": 0})
    assert schedule.intervals == {"a": 10, "b": 25}
    assert schedule.due(0) == [] and schedule.due(50) == ["a", "b"] and schedule.due(3, last=True) == ["a", "b"]
    schedule.measured("a", 50)
    assert schedule.due(50) == ["b"] and not schedule.passed("a", 59) and schedule.passed("a", 60)
    schedule.only({"a": 5})
    assert schedule.intervals == {"a": 5} and schedule.done("a") == 50
    with pytest.raises(InputError, match="must be 1 step or more"):
        schedule.watch("a", True, -1)
