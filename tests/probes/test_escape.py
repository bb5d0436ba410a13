"""The escape probe against dense matrices, and where its numbers are known."""

import math

import numpy as np
import pytest
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.probe import Snapshot
from modalscape.engine.core.rng import Rng
from modalscape.engine.maths.curvature.noise_alignment import alignment
from modalscape.engine.maths.gradients import noise_injection as maths
from modalscape.engine.maths.gradients.noise_dose import strength
from modalscape.engine.methods.gani import Gani
from modalscape.engine.methods.isotropic_noise import IsotropicNoise
from modalscape.engine.probes.escape import Escape
from tests import tiny
from tests.methods.noise import knobs
from tests.methods.several import training
from tests.probes.snapshots import dense, measured

LR = 0.1
F64 = torch.float64


def snapshot(*methods, problem=None, steps=25, settings=None) -> Snapshot:
    problem = problem or tiny.problem()
    state, views, stack = tiny.train(problem, list(methods), steps, settings or tiny.sgd(LR))
    return Snapshot(state.step, state.theta, problem, Rng(7), stack, views[-1])


def plainly(probe: Escape, snap: Snapshot) -> dict:
    """The records of a problem without modules, which `measured` cannot look into."""
    return {r.name: r for r in probe.measure(snap)}


def near(record, truth: float) -> bool:
    return abs(record.value - truth) < 4 * record.error


def power_of(snap: Snapshot, name: str, spread=lambda power: power) -> torch.Tensor:
    method = snap.stack.methods[name]
    memory = maths.absorbed(method.state, snap.view.grad, method.params.beta)
    sigma = strength(method.params, memory["seen"], snap.view.step, len(snap.view.batch), snap.view.rate)
    return sigma**2 * spread(maths.weighed(method.params, memory, snap.problem.layout))


@pytest.mark.parametrize("placement", ["decoupled", "through_grad"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_added_noise_has_the_trace_and_alignment_of_the_dense_matrices(placement, momentum):
    method = Gani(knobs(mode="central", placement=placement))
    snap = snapshot(method, settings=tiny.sgd(LR, momentum))
    records = measured(Escape(Escape.Params(draws=200, batches=False)), snap)
    h, c = dense(snap), power_of(snap, "gani")
    truth = float(h.diagonal() @ c)
    assert near(records["escape/indicator/added"], truth) and truth > 0
    assert records["escape/lift/added"].value == pytest.approx(0.5 * LR**2 * records["escape/indicator/added"].value)
    aligned = len(c) * truth / float(h.trace() * c.sum())
    assert near(records["escape/alignment/added"], aligned) and aligned > 1.2
    assert records["escape/alignment/added"].error < 0.25 * aligned


def test_isotropic_noise_is_aligned_with_nothing():
    snap = snapshot(IsotropicNoise(knobs(IsotropicNoise, mode="central")))
    records = measured(Escape(Escape.Params(draws=200)), snap)
    assert near(records["escape/alignment/added"], 1.0) and not near(records["escape/alignment/batch"], 1.0)
    truth = float(dense(snap).trace()) * float(power_of(snap, "isotropic_noise", maths.uniform).mean())
    assert near(records["escape/indicator/added"], truth)


def test_the_batches_noise_has_the_covariance_of_their_gradients():
    snap = snapshot()
    records = measured(Escape(Escape.Params(draws=200)), snap)
    rows = snap.problem.rows["train"]
    theta = snap.theta.clone().requires_grad_()
    single = torch.stack(
        [torch.autograd.grad(snap.problem.loss(theta, rows.rows(slice(i, i + 1))), theta)[0] for i in range(96)]
    )
    covariance = torch.cov(single.T) / 16
    assert near(records["escape/indicator/batch"], float((dense(snap) @ covariance).trace()))
    assert not any(name.endswith("added") for name in records)


def test_full_batches_have_no_noise_and_so_no_direction():
    records = measured(Escape(), snapshot(problem=tiny.problem(batch=96)))
    assert records["escape/indicator/batch"].value == 0
    assert not any(name.startswith(("escape/alignment", "escape/rank", "escape/layers")) for name in records)


def test_resting_noise_is_zero():
    resting = Gani(Gani.Params(rest=1.0))
    assert measured(Escape(), snapshot(resting))["escape/indicator/added"].value == 0


def test_the_lift_is_what_a_step_of_noise_does_to_a_quadratic():
    h = torch.linspace(0.1, 4.0, 60, dtype=F64)
    slope = lambda step: (h * Rng(1).normal("slope", step, h)).sqrt().nan_to_num()  # noqa: E731
    problem = tiny.Quadratic(h, torch.zeros_like(h), slope)
    problem.probe_batch = lambda: tiny.Batch({"slope": torch.zeros(1, 60, dtype=F64)}, torch.zeros(1))
    snap = snapshot(Gani(knobs(mode="central")), problem=problem, settings=tiny.sgd(1e-9))
    record = plainly(Escape(Escape.Params(draws=200, batches=False)), snap)["escape/lift/added"]
    steps = [snap.stack.chain("update", 0 * h, snap.view.having(rng=Rng(100 + i))) for i in range(200)]
    rises = torch.stack([0.5 * (h * step * step).sum() for step in steps])
    assert float(rises.mean()) == pytest.approx(record.value, abs=4 * math.hypot(record.error, float(rises.std()) / 14))


class Layers(tiny.Quadratic):
    """A quadratic of four tensors, the curvature of each known."""

    def __init__(self, h: torch.Tensor) -> None:
        super().__init__(h.repeat_interleave(25), torch.ones(100, dtype=F64))
        names = [f"layer{i}" for i in range(4)]
        self.layout = Layout(dict.fromkeys(names, (25,)), dict.fromkeys(names, "shared"))

    def objectives(self, theta, features, batch):
        x = torch.cat(list(features.values()), 1)[0]
        return {"loss": 0.5 * (self.h * x * x).sum()}, {}

    def probe_batch(self):
        return self.batch(0)


@pytest.mark.parametrize("method, rank", [(Gani, 1.0), (IsotropicNoise, None)])
def test_noise_rises_with_curvature_layer_by_layer(method, rank):
    curvature = torch.tensor([0.3, 2.0, 0.1, 1.0], dtype=F64)
    snap = snapshot(method(knobs(method, sigma=0.1)), problem=Layers(curvature), steps=3, settings=tiny.sgd(0.01))
    records = plainly(Escape(Escape.Params(draws=40, batches=False)), snap)
    points = records["escape/layers/added"]
    np.testing.assert_allclose(points.x, sorted(curvature.tolist()))
    assert points.display.points == ["layer2", "layer0", "layer3", "layer1"]
    slope = np.polyfit(np.log(points.x), np.log(points.y), 1)[0]
    assert slope == pytest.approx(0.0 if rank is None else 1.0, abs=0.1)
    if rank:
        assert records["escape/rank/added"].value == pytest.approx(rank)


def test_alignment_is_largest_along_the_top_eigenvector():
    h = torch.diag(torch.tensor([4.0, 1.0, 1.0, 0.0], dtype=F64))
    z = torch.tensor([[2.0, 0.0, 0.0, 0.0]] * 5, dtype=F64)
    value, error = alignment((z @ h * z).sum(1), z.square().sum(1), 6.0, 0.0, 4)
    assert value == pytest.approx(4 * 4 / 6) and error == 0
    assert alignment(z[:, 0], z.square().sum(1), 0.1, 0.06, 4) is None


def test_a_checkpoint_is_measured_as_well():
    run = training("gani", **{"gani.warmup": 2, "gani.virtual_batch": 2})
    for _ in range(8):
        run.step()
    again = training("gani", **{"gani.warmup": 2, "gani.virtual_batch": 2})
    again.restore(run.content())
    records = {r.name: r for r in Escape().measure(again.snapshot())}
    assert records["escape/indicator/added"].value > 0
