"""The probe between runs: barriers known in closed form, and the plane through two or three minima."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.method import Stack
from modalscape.engine.core.probe import Neighbour, Snapshot
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.rng import Rng
from modalscape.engine.errors import InputError
from modalscape.engine.probes.between import Between
from tests.probes.snapshots import snapshot
from tests.tiny import problem, train

HERE, THERE, THIRD = [1.0] * 8, [3.0] * 4 + [1.0] * 4, [1.0] * 4 + [4.0] * 4
STIFF = 3.0


class Wells:
    """The lower of quadratic wells ½·3·‖θ − m‖² around given minima, as the loss of the modality `left`.

    A row's loss is the mean times a number of its own, unless the rows `know` of each other.
    """

    name, title, modalities, micro = "wells", "Wells", ("left", "right"), 0
    shares, know = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64), False

    def __init__(self, *minima: list[float]) -> None:
        self.minima = torch.tensor(minima, dtype=torch.float64)
        self.layout = Layout({"left": (2, 2), "right": (2, 2)}, {"left": "left", "right": "right"})

    def probe_batch(self) -> Batch:
        return Batch({"left": self.shares[:, None]}, torch.zeros(5))

    def encode(self, theta: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"theta": theta}

    def outputs(self, theta: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"left": STIFF / 2 * (theta - self.minima).square().sum(1).min() * batch.x["left"][:, 0]}

    def row_losses(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        return outputs["left"] * (len(batch) if self.know else 1)

    def objectives(self, theta: Tensor, features: dict[str, Tensor], batch: Batch) -> tuple[dict, dict]:
        return {"left": STIFF / 2 * (features["theta"] - self.minima).square().sum(1).min()}, {}


def wells(*minima, **others) -> Snapshot:
    known = {name: Neighbour(name, 30, torch.tensor(at, dtype=torch.float64)) for name, at in others.items()}
    theta = torch.tensor(HERE, dtype=torch.float64)
    return Snapshot(12, theta, Wells(*minima), Rng(0), Stack(), other=known.__getitem__)


def measured(snap, **knobs):
    before = snap.theta.clone()
    records = {r.name: r for r in Between(Between.Params(**knobs)).measure(snap)}
    assert torch.equal(snap.theta, before) and snap.theta.grad is None
    return records


def test_the_barrier_between_two_wells_is_the_closed_form():
    records = measured(wells(HERE, THERE, there=THERE), other="there")
    line, barrier = records["between/there/line"], records["between/there/barrier"]
    # Half way, at distance D/2 = 2 from both minima, which are 0: the height is h/2 (D/2)².
    assert barrier.value == pytest.approx(STIFF / 2 * 2.0**2) == line.display.barrier
    assert line.y[0] == line.y[-1] == 0 and line.x[line.y.argmax()] == 0.5 and len(line.x) >= 25
    assert records["between/there/barrier/left"].value == barrier.value
    assert (barrier.n, "step 30" in barrier.mode, barrier.seconds > 0) == (5, True, True)


def test_the_error_of_a_barrier_is_that_of_a_mean_over_rows():
    barrier = measured(wells(HERE, THERE, there=THERE), other="there")["between/there/barrier"]
    assert barrier.error == pytest.approx(barrier.value * Wells.shares.std().item() / 5**0.5)
    assert "one standard error over the rows" in barrier.mode


def test_rows_that_know_of_each_other_give_no_error(monkeypatch):
    monkeypatch.setattr(Wells, "know", True)
    barrier = measured(wells(HERE, THERE, there=THERE), other="there")["between/there/barrier"]
    assert barrier.error is None and "standard error" not in barrier.mode and barrier.value == 6


def test_within_one_basin_there_is_no_barrier():
    assert measured(wells(HERE, there=THERE), other="there")["between/there/barrier"].value == 0


def test_the_plane_goes_through_all_three_minima():
    snap = wells(HERE, THERE, THIRD, there=THERE, third=THIRD)
    plane = measured(snap, other="there", third="third", tol=0.0, points=33)["between/there/plane"]
    assert [mark["text"] for mark in plane.display.marks] == ["this run", "there", "third"]
    places = [(mark["x"], mark["y"]) for mark in plane.display.marks]
    assert places == [(0, 0), (1, 0), (pytest.approx(0), pytest.approx(1.5))], "in units of the first distance, 4"
    squares = [((plane.x[None] - a) ** 2 + (plane.y[:, None] - b) ** 2) * 16 for a, b in places]
    np.testing.assert_allclose(plane.z, STIFF / 2 * np.min(squares, axis=0), atol=1e-9)
    assert plane.x[0] <= -0.3 and plane.x[-1] >= 1.3 and plane.y[-1] >= 1.8


def test_without_a_third_run_the_plane_goes_up_at_a_right_angle_and_as_far():
    snap = wells(HERE, THERE, there=THERE)
    plane = measured(snap, other="there", tol=0.0)["between/there/plane"]
    row, col = int((plane.y == 0).nonzero()[0][0]), int((plane.x == 0).nonzero()[0][0])
    np.testing.assert_allclose(plane.z[:, col], STIFF / 2 * 16 * plane.y**2, atol=1e-9)
    assert plane.z[row, col] == 0 and "random" in plane.display.y


def test_lines_and_planes_of_networks_are_the_losses_between_them():
    tiny = problem(heads=True)
    snap, other = snapshot(tiny), train(tiny, [], 60)[0].theta
    snap = replace(snap, other=lambda run: Neighbour(run, 60, other, "trained from seed 3"))
    records = measured(snap, other="other-run", points=9)
    batch = tiny.probe_batch()
    with torch.no_grad():
        for name in ("image", "text"):
            line = records[f"between/other-run/line/{name}"]
            for t, y in zip(line.x, line.y, strict=True):
                theta = snap.theta + t * (other - snap.theta)
                assert y == pytest.approx(tiny.objectives(theta, tiny.encode(theta, batch), batch)[0][name].item())
            found, t = records[f"between/other-run/barrier/{name}"], line.x[(line.y - _chord(line)).argmax()]
            rows = [
                torch.nn.functional.cross_entropy(tiny.outputs(theta, batch)[name], batch.y, reduction="none")
                for theta in (snap.theta, snap.theta + t * (other - snap.theta), other)
            ]
            risen = rows[1] - (1 - t) * rows[0] - t * rows[2]
            assert found.value == pytest.approx(risen.mean().item(), abs=1e-9)
            assert found.error == pytest.approx((risen.std() / len(batch) ** 0.5).item(), rel=1e-6, abs=1e-9)
            assert found.n == len(batch) and found.seconds > 0
    assert "trained from seed 3" in records["between/other-run/plane/text"].mode


def _chord(line):
    return (1 - line.x) * line.y[0] + line.x * line.y[-1]


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({}, "names no run"),
        ({"other": "same"}, "has the parameters of this run"),
        ({"other": "there", "third": "double"}, "lies on the line"),
        ({"other": "nowhere"}, "not finite"),
    ],
)
def test_what_has_no_line_or_plane_is_refused_in_one_sentence(knobs, says):
    double, nowhere = [2 * b - a for a, b in zip(HERE, THERE, strict=True)], [float("nan")] * 8
    snap = wells(HERE, THERE, there=THERE, same=HERE, double=double, nowhere=nowhere)
    with pytest.raises(InputError, match=says) as refusal:
        measured(snap, **knobs)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_a_run_without_a_folder_has_no_neighbours():
    with pytest.raises(InputError, match="has no folder"):
        measured(snapshot(), other="there")
