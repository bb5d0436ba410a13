"""Whose turn it is beside a training: a clock that only work moves on, and measurements that take their time."""

from collections import deque
from types import SimpleNamespace

import pytest

from modalscape.engine.core.probe import Scalar
from modalscape.engine.maths.progress import tracked
from modalscape.engine.runtime import jobs, observer
from modalscape.engine.runtime.jobs import Bench, Job
from modalscape.engine.runtime.observer import Observer
from modalscape.engine.runtime.schedule import Schedule

LIGHT = ("spectra", "imbalance", "evidence", "generalization", "robustness", "trajectory")
COSTLY = ("hessian", "landscape", "sharpness", "stability")
PIECE = 0.3
"""Seconds between two reports of progress."""


class Stage:
    """An observer of a run that takes fifty steps a second; `costs` are seconds of each probe's measurement."""

    def __init__(self, monkeypatch, costs):
        self.now, self.costs, self.first, self.last, self.gaps, self.spent = 0.0, costs, {}, {}, {}, {}
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(observer, "time", clock)
        monkeypatch.setattr(jobs, "time", clock)
        made = self.made = object.__new__(Observer)
        made.schedule = Schedule(lambda probe: 100)
        made.schedule.only(dict.fromkeys(costs, 0))
        made.bench = Bench(self.opened, self.record, made._heard, lambda job: None)
        made.asked, made.costs, made.shown, made.begun, made.ends, made._said = deque(), {}, {}, set(), {}, {}
        made.credit, made.alive, made.inline, made._several, made.step, made.length = 0.0, True, False, False, 0, 10**9
        made._look = self.look
        made.writer = SimpleNamespace(event=lambda *words: None)
        self.ask = {}

    def sleep(self, seconds):
        self.now += seconds

    def look(self):
        self.made.step = int(50 * self.now)
        for at in [at for at in self.ask if at <= self.now]:
            self.made.asked.append(Job(self.ask.pop(at), 1))

    def opened(self, job):
        job.step = self.made.step
        self.made.schedule.measured(job.probe, job.step)
        return self.measure(job)

    def measure(self, job):
        pieces = max(round(self.costs[job.probe] / PIECE), 1)
        for i in tracked(range(pieces), "pieces"):
            self.now += self.costs[job.probe] / pieces
            self.spent[job.probe] = self.spent.get(job.probe, 0.0) + self.costs[job.probe] / pieces
            if i == pieces // 8:
                yield Scalar(job.probe, 0.0)
        yield Scalar(job.probe, 1.0)

    def record(self, step, record):
        name = record.name
        self.first.setdefault(name, self.now)
        if record.value == 1.0:
            self.gaps[name] = max(self.gaps.get(name, 0.0), self.now - self.last.get(name, 0.0))
            self.last[name] = self.now

    def go(self, seconds):
        while self.now < seconds:
            self.look()
            job = self.made._next()
            if job is None:
                self.now += 0.05
            else:
                self.made._advance(job)
        return self


def test_first_pictures_come_soon_and_everything_stays_fresh(monkeypatch):
    costs = dict.fromkeys(LIGHT, 0.35) | {"hessian": 5.0, "landscape": 5.0, "sharpness": 6.0, "stability": 1.5}
    stage = Stage(monkeypatch, costs).go(300)
    assert max(stage.first[name] for name in LIGHT) < 5.0 and max(stage.first.values()) < 10.0, stage.first
    assert max(stage.gaps[name] for name in LIGHT) < 10.0, stage.gaps
    assert max(stage.gaps[name] for name in COSTLY) < 60.0, stage.gaps


def test_on_a_slow_machine_what_costs_much_gets_on_beside_what_costs_little(monkeypatch):
    costs = dict.fromkeys(LIGHT, 2.0) | dict.fromkeys(COSTLY, 20.0)
    stage = Stage(monkeypatch, costs).go(1200)
    costly = sum(stage.spent[name] for name in COSTLY)
    assert 0.6 < costly / sum(stage.spent.values()) < 0.8, "two thirds"
    assert max(stage.gaps[name] for name in COSTLY) < 200.0, stage.gaps
    assert max(stage.gaps[name] for name in LIGHT) < 60.0, stage.gaps


def test_without_costly_measurements_the_others_have_all_the_time_that_they_want(monkeypatch):
    stage = Stage(monkeypatch, dict.fromkeys(LIGHT, 0.35)).go(100)
    assert max(stage.gaps.values()) < 6.0, stage.gaps


@pytest.mark.parametrize("asked", ["hessian", "spectra"])
def test_what_is_asked_for_comes_first_whatever_is_at_work(monkeypatch, asked):
    costs = dict.fromkeys(LIGHT, 0.35) | dict.fromkeys(COSTLY, 20.0)
    stage = Stage(monkeypatch, costs)
    start = stage.go(150).now
    stage.ask = {start + 0.1: asked}
    stage.go(start + 1.0)
    assert start < stage.last[asked] < start + 1.5 * costs[asked] + 3.0, "beside what costs little"
