"""The trajectory probe and the plane of the path, against the path itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.probes.landscape import Landscape
from modalscape.engine.probes.trajectory import Trajectory
from tests.probes.snapshots import dense, measured, snapshot
from tests.tiny import problem, train


def walked(points: int = 12):
    """A snapshot with the path that training took to it, every second step kept."""
    tiny = problem(heads=True)
    snap = snapshot(tiny, 2 * points)
    past = [(step, train(tiny, [], step)[0].theta) for step in range(0, 2 * points, 2)]
    return replace(snap, path=lambda: past), torch.stack([*(theta for _, theta in past), snap.theta])


def losses(snap, theta) -> dict[str, float]:
    batch = snap.problem.probe_batch()
    with torch.no_grad():
        found = snap.problem.objectives(theta, snap.problem.encode(theta, batch), batch)[0]
        return {name: loss.item() for name, loss in found.items()} | {"": snap.problem.loss(theta, batch).item()}


def test_the_path_is_projected_and_its_true_losses_and_what_is_left_out_stand_beside_it():
    snap, path = walked()
    records = measured(Trajectory(), snap)
    steps = (path - path[-1]).numpy()
    basis = np.linalg.svd(steps)[2][:2]
    shown = records["trajectory/path"]
    coordinates = np.stack([shown.x, shown.y], 1)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(steps @ basis.T), atol=1e-8)
    assert shown.display.path["step"] == list(range(0, 25, 2)) and (shown.x[-1], shown.y[-1]) == (0, 0)
    left = np.linalg.norm(steps - steps @ basis.T @ basis, axis=1)[:-1] / np.linalg.norm(steps[:-1], axis=1)
    np.testing.assert_allclose(shown.display.path["off"][:-1], left, atol=1e-6)
    np.testing.assert_allclose(records["trajectory/off_plane"].y, left, atol=1e-6)
    for name in ("", "image", "text"):
        curve = records[f"trajectory/loss/{name}".rstrip("/")]
        assert curve.y.tolist() == [losses(snap, theta)[name] for theta in path]
    assert shown.display.path["loss"] == records["trajectory/loss"].y.tolist()
    assert "proves nothing" in shown.mode and "random walk" in records["trajectory/shares"].mode


def test_distances_and_updates_are_lengths_in_the_whole_space_and_in_each_part():
    snap, path = walked()
    records, layout = measured(Trajectory(), snap), snap.problem.layout
    for part in ("", "image", "text", "shared"):
        own, tail = path if not part else path * layout.mask(part), f"/{part}" if part else ""
        away = (own - own[0]).norm(dim=1).numpy()
        np.testing.assert_allclose(records[f"trajectory/distance{tail}"].y, away, rtol=1e-12)
        assert records[f"trajectory/from_start{tail}"].value == pytest.approx(away[-1])
        np.testing.assert_allclose(records[f"trajectory/update{tail}"].y, (own.diff(dim=0)).norm(dim=1).numpy() / 2)


def test_the_plane_of_the_path_carries_its_points_with_their_true_losses():
    snap, path = walked()
    records = measured(Landscape(Landscape.Params(plane="trajectory", points=21, line=7)), snap)
    for name in ("", "image", "text"):
        surface = records[f"landscape/trajectory/2d/{name}".rstrip("/")]
        drawn = surface.display.path
        assert drawn["loss"] == [losses(snap, theta)[name] for theta in path]
        assert surface.x[0] < min(drawn["x"]) and max(drawn["x"]) < surface.x[-1]
        assert surface.y[0] < min(drawn["y"]) and max(drawn["y"]) < surface.y[-1]
        here = surface.z[np.flatnonzero(surface.y == 0), np.flatnonzero(surface.x == 0)]
        assert here == losses(snap, snap.theta)[name] == surface.display.center
    off = max(measured(Trajectory(), snap)["trajectory/path"].display.path["off"])
    assert f"up to {100 * off:.0f} % of a point's distance" in records["landscape/trajectory/2d"].mode


@pytest.mark.parametrize("plane", ["eigen", "gradient"])
def test_the_planes_of_curvature_and_descent_pass_through_the_trained_point(plane):
    snap = snapshot()
    records = measured(Landscape(Landscape.Params(plane=plane, points=5, line=7, reach=0.1)), snap)
    here = losses(snap, snap.theta)
    for name in ("", "image", "text"):
        assert records[f"landscape/{plane}/2d/{name}".rstrip("/")].z[2, 2] == here[name]
        assert records[f"landscape/{plane}/1d/{name}".rstrip("/")].y[3] == here[name]
    if plane == "gradient":
        curve = records["landscape/gradient/1d"].y
        assert curve[4] < curve[3] < curve[2], "downhill is to the right"
    else:
        surface = records["landscape/eigen/2d"]
        top = torch.linalg.eigvalsh(dense(snap))[-2:].tolist()
        for value, words in zip(reversed(top), (surface.display.x, surface.display.y), strict=True):
            assert f"λ = {value:.3g}" in words
        assert "±" in surface.mode


def test_too_short_a_path_is_refused_with_a_sentence():
    with pytest.raises(InputError, match="needs three"):
        list(Trajectory().measure(snapshot()))
