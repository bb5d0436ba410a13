"""The sharpness probe against the mathematics that it rests on, and against the tiny problem's dense Hessian."""

from dataclasses import replace

import pytest
import torch

from modalscape.engine.core.problem import Batch
from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.sharpness import ascent
from modalscape.engine.probes.sharpness import Sharpness
from tests.probes.snapshots import dense, inside, measured, snapshot
from tests.tiny import problem

PARAMS = {"m": 8, "steps": 10, "rho": 0.01, "pairs": 4}


def sharpness(**knobs) -> Sharpness:
    return Sharpness(Sharpness.Params(**PARAMS | knobs))


def test_sam_is_the_highest_point_near_the_snapshot():
    snap = snapshot()
    loss = lambda theta: snap.problem.loss(theta, snap.problem.probe_batch())  # noqa: E731
    truth, records = ascent(loss, snap.theta, 0.01, 10), measured(sharpness(parts=False), snap)
    assert records["sharpness/sam"].value == truth.rise and records["sharpness/sam"].error == truth.gain
    assert records["sharpness/sam_step"].value == truth.first
    assert records["sharpness/ascent"].y.tolist() == list(truth.rises)
    assert records["sharpness/asam"].value == ascent(loss, snap.theta, 0.5, 10, scale=snap.theta.abs()).rise


def test_quadratic_estimates_enclose_sam_and_meet_the_average():
    snap = snapshot()
    values = torch.linalg.eigvalsh(dense(snap))
    records = measured(sharpness(rho=1e-3, sigma=1e-3, lanczos=40, pairs=200, parts=False), snap)
    low, high = records["sharpness/sam_curvature"], records["sharpness/sam_bound"]
    assert low.value == pytest.approx(1e-6 * values[-1].item() / 2, rel=1e-6)
    assert low.value <= records["sharpness/sam"].value <= high.value * 1.001
    average, estimate = records["sharpness/average"], records["sharpness/average_trace"]
    truth = 1e-6 * values.sum().item() / 2
    assert abs(estimate.value - truth) <= 3 * estimate.error + 1e-12
    assert abs(average.value - truth) <= 4 * average.error


@pytest.mark.parametrize("part", ["image", "text", "shared"])
def test_a_parts_sharpness_is_that_of_its_block(part):
    snap = snapshot()
    rows = inside(snap.problem.layout, part)
    top = torch.linalg.eigvalsh(dense(snap)[rows][:, rows])[-1].item()
    records = measured(sharpness(rho=1e-3, m=32, lanczos=0), snap)
    found = records[f"sharpness/{part}/sam"].value
    assert 1e-6 * top / 2 <= found < records["sharpness/sam"].value
    bars = records["sharpness/parts"]
    assert dict(zip(bars.labels, bars.values, strict=True))[part] == found and bars.labels[0] == "all"
    assert {f"sharpness/{part}/asam", f"sharpness/{part}/average"} <= set(records)


def test_m_sharpness_grows_as_m_falls_and_says_m():
    records = measured(sharpness(rho=0.05, m=4, parts=False), snapshot())
    curve = records["sharpness/by_m"]
    assert curve.x.tolist() == [4, 16, 32] and list(curve.y) == sorted(curve.y, reverse=True)
    assert curve.y[-1] == records["sharpness/sam"].value and curve.y[0] == records["sharpness/m"].value
    assert "8 micro-batches of m = 4 rows" in records["sharpness/m"].mode


def test_micro_batches_are_of_one_size_and_mixed():
    snap = snapshot()
    batch = snap.problem.probe_batch()
    snap.problem.probe_rows = Batch(batch.x, batch.y).rows(batch.y.argsort())
    seen = []
    inner = snap.problem.loss
    snap.problem.loss = lambda theta, batch: seen.append(batch.y) or inner(theta, batch)
    records = {r.name: r for r in sharpness(m=7, parts=False, steps=0).measure(snap)}
    assert records["sharpness/m"].n == 28
    assert {len(y) for y in seen} == {32, 28, 7}
    mixed = lambda pieces: all(len(y.unique()) > 1 for y in pieces)  # noqa: E731
    assert mixed([y for y in seen if len(y) == 7]) and not mixed(batch.y.sort().values.split(7))


def test_more_rows_than_there_are_means_all():
    records = measured(sharpness(m=1000, parts=False), snapshot())
    assert records["sharpness/by_m"].x.tolist() == [32] and records["sharpness/m"].error is None
    assert records["sharpness/m"].value == pytest.approx(records["sharpness/sam"].value, rel=1e-9)


def test_every_step_uses_the_same_draws():
    tiny = problem(heads=True)
    snap = snapshot(tiny, 5)
    one, other = (measured(sharpness(parts=False), replace(snap, step=step)) for step in (5, 500))
    assert all(one[n].value == other[n].value for n in one if one[n].kind == "scalar")


def test_what_can_be_left_out_is_left_out():
    records = measured(sharpness(lanczos=0, parts=False), snapshot())
    assert set(records) == {f"sharpness/{n}" for n in ("sam", "sam_step", "ascent", "asam", "average", "m", "by_m")}


def test_records_say_rows_mode_error_and_seconds():
    for name, record in measured(sharpness(), snapshot()).items():
        assert record.n and "no method active" in record.mode, name
        if name not in ("sharpness/sam_step", "sharpness/ascent"):
            assert record.error is not None and "error" in record.mode, name
        assert name == "sharpness/parts" or record.seconds > 0


def test_a_loss_that_is_not_finite_is_said_in_a_sentence():
    snap = snapshot()
    with pytest.raises(InputError, match="the loss is nan at theta"):
        list(sharpness().measure(replace(snap, theta=snap.theta * torch.nan)))
    with pytest.raises(InputError, match="so lower"):
        list(sharpness(rho=100.0, sigma=10.0).measure(replace(snap, problem=Steep(snap.problem))))


class Steep:
    """The problem, infinite a little way off."""

    def __init__(self, inner):
        self.inner, self.layout = inner, inner.layout

    def probe_batch(self):
        return self.inner.probe_batch()

    def loss(self, theta, batch):
        return self.inner.loss(theta, batch) / (theta.abs().max() < 5.0)
