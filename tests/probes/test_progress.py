"""Every probe says how far it has come, honestly, and can be ended by whoever listens."""

from dataclasses import replace

import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.probe import Neighbour, Probe
from modalscape.engine.errors import InputError
from modalscape.engine.maths.progress import listening
from modalscape.engine.registry import discover
from modalscape.engine.runtime.session import Training
from tests.probes.snapshots import snapshot

PROBES = sorted(discover("modalscape.engine.probes", Probe))
SETTINGS = {"between": {"other": "one"}}


class Cancelled(BaseException):
    """What a listener raises that wants no more."""


@pytest.fixture(scope="module")
def training():
    own = {"planted.rows": 400, "width": 4, "hidden": 4, "probe_rows": 64, "unimodal": "heads"}
    run = Training(validated(RunConfig(problem="planted", steps=50, device="cpu", settings=own), catalog()))
    for _ in range(10):
        run.step()
    return run


def snap_of(training):
    snap = training.snapshot()
    generator = torch.Generator().manual_seed(0)
    past = [(step, snap.theta + torch.randn(snap.theta.shape, generator=generator)) for step in range(5)]
    return replace(snap, path=lambda: past, other=lambda run: Neighbour(run, 4, past[-1][1]))


@pytest.mark.parametrize("name", PROBES)
def test_done_grows_up_to_what_is_planned(name, training):
    told = []
    with listening(lambda *report: told.append(report)):
        records = list(training.probe(name, SETTINGS.get(name)).measure(snap_of(training)))
    assert records and None not in records and told
    assert all(0 <= done <= planned and isinstance(what, str) for what, done, planned in told)
    for (what, before, _), (same, after, _) in zip(told, told[1:], strict=False):
        assert what != same or after >= before or after == 0, "done never falls but to begin again"
    assert told[-1][1] == told[-1][2] > 0


@pytest.mark.parametrize("name", ["hessian", "ggn", "stability", "pyhessian", "sharpness", "escape"])
def test_one_plan_covers_the_whole_measurement(name, training):
    plans = []
    with listening(lambda *report: plans.append(report)):
        list(training.probe(name).measure(snap_of(training)))
    assert len({what for what, _, _ in plans}) == 1 and sum(done == 0 for _, done, _ in plans) <= 9
    totals = [planned for _, _, planned in plans]
    assert totals == sorted(totals, reverse=True), "what turns out not to be needed is taken off; nothing is added"


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("after", [1, 4])
def test_a_listener_that_raises_ends_it_at_once_and_leaves_no_trace(name, after, training):
    snap, calls = snap_of(training), []
    theta, random = snap.theta.clone(), torch.get_rng_state()

    def listener(*report):
        calls.append(report)
        if len(calls) == after:
            raise Cancelled

    with pytest.raises(Cancelled), listening(listener):
        list(training.probe(name, SETTINGS.get(name)).measure(snap))
    assert len(calls) == after
    assert torch.equal(snap.theta, theta) and torch.equal(torch.get_rng_state(), random)
    assert torch.backends.cudnn.enabled and torch.backends.mha.get_fastpath_enabled()


def test_what_cannot_be_measured_is_still_said(training):
    with pytest.raises(InputError), listening(lambda *report: None):
        list(training.probe("between").measure(snapshot()))
