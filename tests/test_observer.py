"""Observers: processes beside a run, or after it, that measure it and leave no trace in what it trains."""

import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest

from modalscape.engine.client.handle import RunHandle
from modalscape.engine.client.observers import Observers, locked
from modalscape.engine.runtime.jobs import Job
from modalscape.engine.runtime.observer import Observer
from modalscape.engine.store.commands import Cancel, Measure, Stop, post
from modalscape.engine.store.home import held_since, lock
from modalscape.engine.store.writer import RunReader, RunWriter, create_observed
from tests.homes import engine, json_of, said, small, trained, wait_for

LIVE = {"measure": "live", "probe_rows": 32, "evaluate": 1000}
QUICK = {"hessian.steps": 5, "hessian.probes": 1, "hessian.parts": False, "hessian.sigma": 0.1}
LONG = {"points": 101, "tol": 1e-12}


def pid_of(home, number=1):
    """The process that is observer `number`, or None."""
    try:
        if held_since(home, locked(number)) is None:
            return None
        return int((home / locked(number)).read_text() or 0) or None
    except (FileNotFoundError, ValueError):
        return None


def begun(home, **changes):
    """A real engine that trains in `home`."""
    home.mkdir(parents=True)
    (home / "config.json").write_text(json.dumps(small(**changes).to_json()))
    process = engine("run", home)
    wait_for(lambda: (home / "run.db").exists() and RunReader(home).newest("started"), what="the start")
    return process


def ended(home):
    """End whatever observes a home."""
    for number in (1, 2):
        pid = pid_of(home, number)
        if pid:
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda number=number: pid_of(home, number) is None, what="the observer's end")


@pytest.fixture
def home(tmp_path):
    """A folder for a run, whose observers are ended afterwards."""
    home = tmp_path / "run"
    yield home
    if home.exists():
        ended(home)


def events(home, *kinds):
    return [(e.kind, e.step, e.detail) for e in RunReader(home).events(kinds)]


def test_an_observer_measures_while_a_run_trains_and_theta_is_the_same(home, tmp_path):
    plain = trained(tmp_path / "plain", small(steps=400))
    process = begun(home, steps=400, probes={"imbalance": 10, "hessian": 50}, settings=LIVE | QUICK | {"pace": 40.0})
    reader = RunReader(home)
    wait_for(lambda: len(reader.history("hessian/lambda_max")) > 1, what="two Hessians")
    assert process.poll() is None, "the run still trains"
    assert process.wait(60) == 0, process.stderr.read()
    wait_for(lambda: reader.history("imbalance/grad_norm")[-1:] == [400], what="the last measurement")
    assert (home / "observed.db").exists() and not RunReader(home, measured=False).history("hessian/lambda_max")
    assert json_of("show", home)["theta"] == json_of("show", plain.home)["theta"]
    assert json_of("replay", home)["identical"]
    assert reader.meta("measure") == "live" and not (home / "snapshot.pt").exists()


def test_a_killed_observer_is_replaced_and_training_does_not_notice(home, tmp_path):
    process = begun(home, steps=10**6, probes={"imbalance": 10}, settings=LIVE | {"pace": 25.0})
    reader = RunReader(home)
    first = wait_for(lambda: reader.history("imbalance/grad_norm") and pid_of(home), what="the first observer")
    step = reader.meta("step")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: pid_of(home) not in (None, first), what="the second observer")
    wait_for(lambda: (reader.history("imbalance/grad_norm") or [0])[-1] > step + 20, what="new measurements")
    said_so = [d["error"] for k, _, d in events(home, "trouble") if "measures this run" in d["error"]]
    assert said_so == [
        "The process that measures this run was ended by signal 9; another takes its place, and training goes on."
    ]
    os.kill(pid_of(home), signal.SIGKILL)
    post(home, Stop())
    assert process.wait(60) == 0
    done = [(d["name"], s) for _, s, d in events(home, "probe")]
    assert len(done) == len(set(done)), "nothing twice"
    found = json_of("show", home)
    plain = trained(tmp_path / "plain", small(steps=found["step"]))
    assert found["theta"] == json_of("show", plain.home)["theta"] and json_of("replay", home)["identical"]


def test_a_killed_trainer_loses_nothing_beside_an_observer(home, tmp_path):
    plain = trained(tmp_path / "plain", small(steps=300))
    process = begun(home, steps=300, probes={"imbalance": 10}, settings=LIVE | {"pace": 40.0})
    reader = RunReader(home)
    wait_for(lambda: reader.meta("step", 0) > 100 and reader.history("imbalance/grad_norm"), what="step 100")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = json_of("resume", home)
    assert found["state"] == "finished" and found["theta"] == json_of("show", plain.home)["theta"]
    assert json_of("replay", home)["identical"]
    steps = RunReader(home).scalars("loss/joint", points=None)[0] if "loss/joint" in found["scalars"] else None
    assert steps is None or list(steps) == list(range(300))


def test_any_step_of_a_finished_run_is_measured_and_an_observer_comes_for_it(home):
    trained(home, small(steps=100, settings=QUICK))
    handle = RunHandle(home)
    handle.send(Measure("hessian"))
    handle.send(Measure("hessian", {}, 47))
    assert len(handle.pending()) == 2
    handle.observe()
    reader = RunReader(home)
    wait_for(lambda: len(events(home, "probe")) == 2, what="both")
    assert reader.history("hessian/lambda_max") == [40, 100], "of step 47 the nearest that was kept"
    assert handle.pending() == [] and handle.status().state == "finished"
    first = pid_of(home)
    handle.observe()
    handle.send(Measure("imbalance"))
    wait_for(lambda: reader.history("imbalance/grad_norm") == [100], what="the third")
    assert pid_of(home) == first, "one observer is enough"
    assert json_of("replay", home)["identical"]
    ended(home)
    assert json_of("resume", home, "--steps", 120)["state"] == "finished"
    assert [d for _, _, d in events(home, "refused")] == []


def test_an_observer_measures_what_the_command_line_measures(home):
    trained(home, small(steps=100, settings=QUICK))
    records = json_of("probe", home, "hessian", "--step", 60)["records"]
    said_there = next(r["value"] for r in records if r["name"] == "hessian/lambda_max")
    RunHandle(home).send(Measure("hessian", {}, 60))
    RunHandle(home).observe()
    wait_for(lambda: len(events(home, "probe")) == 1, what="the measurement")
    assert RunReader(home).at("hessian/lambda_max", 60).value == said_there


def test_progress_is_told_and_cancel_ends_a_measurement_before_its_end(home):
    trained(home, small(steps=40))
    handle, reader = RunHandle(home), RunReader(home)
    handle.send(Measure("landscape", LONG))
    handle.observe()

    def progress():
        jobs = reader.observing().get(1, {}).get("observing", {}).get("jobs", [])
        return jobs[0] if jobs and jobs[0].get("done") else None

    job = wait_for(progress, what="progress")
    assert job["probe"] == "landscape" and 0 < job["done"] <= job["planned"] and job["what"] and job["asked"]
    wait_for(lambda: reader.history("landscape/2d"), what="a first picture")
    handle.send(Cancel("landscape"))
    wait_for(lambda: not progress(), what="the end")
    assert events(home, "probe", "probe failed") == []


def test_bad_requests_are_refused_in_a_sentence(home):
    trained(home, small(steps=40))
    handle = RunHandle(home)
    handle.send(Measure("hessain"))
    handle.send(Measure("hessian", {"stpes": 3}))
    handle.observe()
    wait_for(lambda: len(events(home, "refused")) == 2, what="two refusals")
    errors = [d["error"] for _, _, d in events(home, "refused")]
    assert "There is no probe 'hessain'" in errors[0] and "has no knob 'stpes'" in errors[1]


def test_a_measurement_that_ends_its_process_is_tried_once_more_if_it_was_asked_for(home):
    trained(home, small(steps=40))
    handle, reader = RunHandle(home), RunReader(home)
    handle.send(Measure("landscape", LONG))
    for tries in (1, 2):
        handle.observe()
        wait_for(
            lambda tries=tries: reader.observing().get(1, {}).get("trying", {}).get("tries") == tries, what="a try"
        )
        os.kill(pid_of(home), signal.SIGKILL)
        wait_for(lambda: pid_of(home) is None)
    handle.observe()
    wait_for(lambda: len(events(home, "probe failed")) == 2, what="the second sentence")
    first, second = [d["error"] for _, _, d in events(home, "probe failed")]
    assert "it is tried once more" in first and "given up" in second
    time.sleep(1.0)
    assert not reader.observing()[1]["observing"].get("jobs")


def test_an_observer_whose_store_is_damaged_puts_it_aside_and_says_so(home):
    trained(home, small(steps=40))
    (home / "observed.db").write_bytes(b"no database" * 1000)
    assert "cannot be read" in (lambda r: (r.names(), r.damage)[1])(RunReader(home))
    assert json_of("show", home)["state"] == "finished"
    RunHandle(home).send(Measure("imbalance"))
    RunHandle(home).observe()
    wait_for(lambda: events(home, "probe"), what="the measurement")
    assert "damaged" in events(home, "trouble")[0][2]["error"] and (home / "observed.db.aside").exists()


def test_a_second_observer_of_the_same_number_and_one_of_no_run_end_with_a_sentence(home, tmp_path):
    trained(home, small(steps=40))
    RunHandle(home).observe()
    wait_for(lambda: pid_of(home))
    _, words = said("observe", home, code=3)
    assert "is already observed by another process" in words
    _, words = said("observe", tmp_path / "nothing", code=2)
    assert "holds no run" in words


def test_an_observer_of_a_run_that_is_deleted_ends_with_a_sentence(home):
    trained(home, small(steps=40))
    process = engine("observe", home)
    wait_for(lambda: RunReader(home).observing().get(1, {}).get("state") == "observing")
    shutil.rmtree(home)
    assert process.wait(10) == 5
    assert "was deleted" in process.stderr.read()


def test_two_observers_share_the_work(home):
    probes = {"imbalance": 10, "spectra": 10, "hessian": 20}
    process = begun(home, steps=10**6, probes=probes, settings=LIVE | QUICK | {"pace": 40.0, "observers": 2})
    reader = RunReader(home)
    wait_for(lambda: {1, 2} <= set(reader.observing()) and len(events(home, "probe")) > 6, what="both at work")
    post(home, Stop())
    assert process.wait(60) == 0
    done = [(d["name"], s) for _, s, d in events(home, "probe")]
    assert len(done) == len(set(done)), "nothing twice"


def test_an_observer_sees_at_once_what_one_that_has_just_begun_claims(home):
    trained(home, small(steps=40, probes={"imbalance": 10}, settings=LIVE | {"observers": 2}))
    first = Observer(home, 1)
    first.step = 41
    assert first.claim(Job("imbalance"))
    with lock(home, locked(2), "watched"):
        writer = RunWriter(home, create_observed(home, 2))
        writer.beat("observing", 41, {"observing": {"jobs": [{"probe": "imbalance", "claimed": True}], "steps": {}}})
        writer.close()
        assert not first.claim(Job("imbalance"))
    assert first.claim(Job("imbalance")), "whoever is gone claims nothing"
    first.writer.close()


def test_observers_that_cannot_share_out_the_work_for_a_while_fail_no_measurement(home):
    process = begun(
        home, steps=10**6, probes={"imbalance": 10, "spectra": 10}, settings=LIVE | {"pace": 40.0, "observers": 2}
    )
    reader = RunReader(home)
    wait_for(lambda: {1, 2} <= set(reader.observing()) and events(home, "probe"), what="both at work")
    with lock(home, "observers.lock", "held by a test"):
        time.sleep(3.0)
        before = len(events(home, "probe"))
    wait_for(lambda: len(events(home, "probe")) > before + 2, what="measurements after it")
    post(home, Stop())
    assert process.wait(60) == 0 and not events(home, "probe failed")


def test_an_observer_that_cannot_write_ends_with_a_sentence_which_the_run_says_once(home, monkeypatch):
    told, codes = [], [2, 2, -9]
    monkeypatch.setattr("modalscape.engine.client.observers.WAIT", 0.0)
    monkeypatch.setattr("modalscape.engine.client.observers.WAIT_MOST", 0.0)
    monkeypatch.setattr("modalscape.engine.client.observers.LOOK_EVERY", 0.0)
    ends = lambda: codes.pop(0) if codes else time.sleep(9)  # noqa: E731
    monkeypatch.setattr("modalscape.engine.client.observers.started", lambda *words: SimpleNamespace(wait=ends))
    home.mkdir()
    observers = Observers(home, 1, told.append)
    wait_for(lambda: observers.turn() or len(told) == 2, what="both sentences")
    assert "ended with code 2" in told[0] and "ended by signal 9" in told[1]


def test_a_store_that_cannot_be_made_costs_one_sentence(home):
    trained(home, small(steps=40))
    (home / "observed.db").mkdir()
    _, words = said("observe", home, code=2)
    assert words.count("\n") == 1 and "cannot be measured now" in words
