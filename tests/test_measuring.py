"""What measurements may take: their share of wall time, the gap between two steps, and whose turn it is."""

import time
from types import SimpleNamespace

import pytest
import torch

from engine.control import Cancel, Measure
from engine.measuring import SLICE, Measuring
from engine.probe import Scalar
from engine.run import Run
from engine.store import RunReader
from engine.training import Training
from tests.homes import small, trained

BREATH, STEP = 0.05, 0.01
LENGTHS = {}
"""Seconds of one breath of a measurement, where they are not BREATH."""
BREATHS = {"hessian": 40, "landscape": 40, "sharpness": 40, "imbalance": 2}


class Stage:
    """A clock that only work moves on: a step takes STEP, and each breath of a measurement BREATH."""

    def __init__(self, monkeypatch, probes, share=0.1):
        self.now, self.state = 0.0, SimpleNamespace(step=0)
        self.own, self.config = SimpleNamespace(budget=share), SimpleNamespace(probes=probes)
        self.made, self.turns = [], []
        monkeypatch.setattr("engine.measuring.time", SimpleNamespace(perf_counter=lambda: self.now))
        self.measuring = Measuring(self, self)

    def snapshot(self):
        return SimpleNamespace(step=self.state.step)

    def probe(self, name, settings):
        def measure(snap):
            for _ in range(BREATHS[name]):
                self.now += LENGTHS.get(name, BREATH)
                yield None
            yield Scalar(name, 0.0)

        return SimpleNamespace(measure=measure)

    def record(self, step, record):
        self.made.append((record.name, step))

    def event(self, step, kind, detail):
        assert kind == "probe"

    def go(self, steps, ask=None, last=False):
        """Train so many steps more, as the loop does; `ask` maps a step to the probe that is asked for after it."""
        until, ask = self.state.step + steps, ask or {}
        while self.state.step < until:
            self.now += STEP
            self.state.step += 1
            step = self.state.step
            if step in ask:
                self.measuring.now(ask[step], {})
            self.measuring.due(step, last=last and step == until)
            self.measuring.turn(STEP * step)
            self.turns.append((self.measuring.budget.spent, self.now, self.measuring.activity))
        return self

    def of(self, name):
        return [step for made, step in self.made if made == name]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_scheduled_measurements_keep_to_their_share_at_every_step_and_use_it(monkeypatch, share):
    stage = Stage(monkeypatch, {"hessian": 1, "imbalance": 1}, share).go(60_000)
    assert all(spent <= share * total + BREATH for spent, total, _ in stage.turns)
    spent, total, _ = stage.turns[-1]
    assert spent == pytest.approx(share * total, rel=0.01)
    assert len(stage.of("hessian")) >= 2


def test_a_cheap_measurement_keeps_its_interval_beside_dear_ones(monkeypatch):
    stage = Stage(monkeypatch, {"hessian": 1, "landscape": 1, "imbalance": 100}, 0.4).go(2000)
    assert stage.of("hessian") and stage.of("landscape"), "all have been through once, and none has a start any more"
    before = len(stage.of("imbalance"))
    assert len(stage.go(4000).of("imbalance")) - before >= 39, "its two breaths are a sixth of what the budget earns"


def test_the_first_measurement_of_a_probe_goes_before_the_next_of_others(monkeypatch):
    stage = Stage(monkeypatch, {"hessian": 1, "imbalance": 1, "landscape": 1})
    monkeypatch.setitem(BREATHS, "hessian", 400)
    while not stage.of("landscape"):
        stage.go(1)
    assert len(stage.of("imbalance")) == 1
    assert stage.measuring.budget.spent <= 2 * (BREATHS["landscape"] + 2 + 2) * BREATH


def test_a_cheap_measurement_does_not_wait_for_a_dear_one(monkeypatch):
    stage = Stage(monkeypatch, {"hessian": 1, "imbalance": 1}).go(4500)
    first = stage.made.index(("hessian", stage.of("hessian")[0]))
    assert first >= 1 and stage.made[0][0] == "imbalance"


def test_of_many_dear_measurements_the_oldest_has_half_the_time(monkeypatch):
    stage = Stage(monkeypatch, {"landscape": 1, "hessian": 1, "sharpness": 1})
    while not stage.made:
        stage.go(1)
    assert stage.made[0][0] == "landscape"
    assert stage.measuring.budget.spent <= (2 * BREATHS["landscape"] + 3) * BREATH


def test_a_dear_measurement_gets_on_beside_cheap_ones_that_are_always_due(monkeypatch):
    stage = Stage(monkeypatch, {"hessian": 1, "imbalance": 1, "spectra": 1, "landscape": 1})
    monkeypatch.setitem(BREATHS, "spectra", 3)
    monkeypatch.setitem(BREATHS, "hessian", 400)
    while len(stage.of("landscape")) < 2:
        stage.go(1)
    assert stage.measuring.budget.spent <= 2 * (2 * 3 * BREATHS["landscape"] + 20) * BREATH, "a third of a half"
    assert not stage.of("hessian") and len(stage.of("imbalance")) > 20


def test_a_measurement_of_many_small_pieces_has_its_half_of_the_time(monkeypatch):
    stage = Stage(monkeypatch, {"hessian": 1, "spectra": 1})
    monkeypatch.setitem(BREATHS, "spectra", 100)
    monkeypatch.setitem(LENGTHS, "spectra", BREATH / 50)
    while not stage.of("spectra"):
        stage.go(1)
    assert stage.measuring.budget.spent <= 3 * 100 * BREATH / 50 + 2 * BREATH, "it took turns by pieces, not by time"


def test_without_a_budget_only_what_is_asked_for_is_measured_and_the_last_step(monkeypatch):
    stage = Stage(monkeypatch, {"imbalance": 1}, 0.0).go(100, {30: "hessian"})
    assert stage.made == [("hessian", 30)]
    stage.go(20, last=True)
    for _ in range(BREATHS["imbalance"]):
        stage.measuring.turn(STEP * 120, idle=True)
    assert stage.of("imbalance") == [120]


def test_what_is_asked_for_is_not_held_back_and_is_paid_back(monkeypatch):
    stage = Stage(monkeypatch, {"imbalance": 1}).go(4000, {200: "hessian"})
    under_way = [i for i, turn in enumerate(stage.turns) if "hessian" in turn[2]]
    assert len(under_way) == BREATHS["hessian"], "one breath a step from the first on"
    done = under_way[-1] + 1
    owed = next(i for i in range(done, 4000) if stage.turns[i][0] < 0.1 * stage.turns[i][1])
    assert owed - done > 100 and stage.turns[done][0] == stage.turns[owed - 1][0]
    assert stage.turns[-1][0] == pytest.approx(0.1 * stage.turns[-1][1], rel=0.1)


def test_a_request_takes_the_place_of_the_scheduled_measurement_under_way(monkeypatch):
    stage = Stage(monkeypatch, {"hessian": 10}).go(300, {100: "hessian"})
    assert stage.of("hessian") == [100]
    words = [activity for *_, activity in stage.turns]
    assert words[50] == "measuring hessian in 10% of the time" and words[110] == "measuring hessian"


def test_a_resumed_run_has_earned_nothing_by_its_past(monkeypatch):
    stage = Stage(monkeypatch, {"hessian": 1})
    stage.measuring.turn(3600.0)
    for _ in range(100):
        stage.measuring.due(1)
        stage.measuring.turn(3600.0 + STEP)
    assert 0 < stage.measuring.budget.spent <= BREATH


def test_a_pause_costs_no_training_time(monkeypatch):
    stage = Stage(monkeypatch, {"hessian": 1}).go(20)
    spent = stage.measuring.budget.spent
    assert spent > 0 and not stage.made and "10% of the time" in stage.measuring.activity
    stage.measuring.turn(STEP * 20, idle=True)
    assert stage.measuring.activity == "measuring hessian", "it has all the time"
    for _ in range(BREATHS["hessian"]):
        stage.measuring.turn(STEP * 20, idle=True)
    assert len(stage.of("hessian")) == 1 and stage.measuring.budget.spent == spent


def test_real_measurements_keep_to_their_budget(tmp_path, monkeypatch):
    turns, breaths = [], []
    turn, go_on = Measuring.turn, Measuring._go_on

    def turned(self, seconds, *, idle=False):
        turn(self, seconds, idle=idle)
        if not idle:
            turns.append((self.budget.spent, seconds + self.budget.spent))

    def gone_on(self, job, *, idle):
        before = self.budget.spent
        go_on(self, job, idle=idle)
        breaths.append(self.budget.spent - before)

    monkeypatch.setattr(Measuring, "turn", turned)
    monkeypatch.setattr(Measuring, "_go_on", gone_on)
    probes = {"imbalance": 20, "hessian": 50, "landscape": 50}
    cheap = {"hessian.steps": 5, "hessian.probes": 1, "hessian.parts": False, "hessian.sigma": 0.1}
    cheap |= {"landscape.points": 3, "landscape.line": 5, "checkpoint": 1500, "imbalance.shapley": False}
    run = trained(tmp_path / "a", small(steps=1500, probes=probes, settings=cheap))
    assert all(spent <= 0.1 * total + max(breaths) for spent, total in turns[:-1])
    early = [step for step in RunReader(run.home).history("hessian/lambda_max") if step < 1500]
    assert early, "nothing was measured while training went on"


MIDDLE = {"planted.rows": 4000, "planted.dimensions": 64, "batch": 128, "hidden": 256, "width": 128}


def test_training_never_waits_a_second_for_a_measurement(tmp_path, monkeypatch):
    started, step = [], Training.step
    monkeypatch.setattr(Training, "step", lambda self: started.append(time.perf_counter()) or step(self))
    probes = ("hessian", "landscape", "sharpness", "pyhessian")
    cheap = {"hessian.parts": False, "sharpness.parts": False, "sharpness.m": 250, "landscape.points": 9}
    config = small(steps=250, settings=MIDDLE | cheap | {"probe_rows": 1000, "checkpoint": 250})
    run = trained(tmp_path / "a", config, {10: [Measure(name) for name in probes]})
    assert run.training.problem.layout.size > 50_000
    done = [e.detail["name"] for e in RunReader(run.home).events() if e.kind == "probe"]
    assert set(done) == set(probes)
    gaps = [b - a for a, b in zip(started, started[1:], strict=False)]
    assert sum(gap > SLICE for gap in gaps) > 30, "nothing was measured while training went on"
    assert max(gaps) < 1.0


def test_a_cancelled_measurement_leaves_its_first_pictures_and_training_as_it_was(tmp_path):
    plain = trained(tmp_path / "a", small())
    asked = {20: [Measure("landscape", {"points": 101, "tol": 0.0, "plane": "gradient"})]}
    asked |= {10: [Measure("landscape", {"points": 101, "tol": 1e-9})], 25: [Cancel("landscape")]}
    run = trained(tmp_path / "b", small(), asked)
    reader = RunReader(run.home)
    assert [e.kind for e in reader.events() if e.kind.startswith("probe")] == [], "neither came to its end"
    assert not run.measuring.busy and reader.meta("activity") == ""
    first = reader.at("landscape/2d", 20)
    assert reader.history("landscape/2d") == [10] and first.draw["evaluations"] < 101**2
    assert "interpolated, checked error" in first.mode and reader.history("landscape/gradient/2d") == []
    assert torch.equal(run.training.state.theta, plain.training.state.theta)


def test_a_finer_picture_takes_the_place_of_the_coarser_at_the_same_step(tmp_path):
    run, reader = trained(tmp_path / "a", small()), RunReader(tmp_path / "a")
    seen, record = [], run.writer.record

    def recorded(step, made):
        record(step, made)
        run.writer.flush()
        if made.name == "landscape/2d":
            seen.append((made.draw["evaluations"], reader.stamp("landscape/2d")))

    run = Run(run.training, run.home)
    run.writer.record, record = recorded, run.writer.record
    run.measure("landscape", {"tol": 1e-5})
    while run.measuring.busy:
        run.measuring.turn(0.0, idle=True)
    assert len(seen) > 1 and sorted(seen) == seen and len({stamp for _, stamp in seen}) == len(seen)
    assert reader.history("landscape/2d") == [60]
    assert reader.at("landscape/2d", 60).draw["evaluations"] == seen[-1][0]


def test_what_is_scheduled_and_refused_says_so_once_and_again_when_it_is_asked_for(tmp_path):
    config = small(probes={"imbalance": 10}, settings={"modalities": "audio"})
    run = trained(tmp_path / "run", config, {40: [Measure("imbalance", {})]})
    failed = [event for event in RunReader(run.home).events() if event.kind == "probe failed"]
    assert [event.step for event in failed] == [10, 40, 60], "the first, the one asked for, and the last of the run"
    assert all("this run trains on audio alone" in event.detail["error"] for event in failed)
