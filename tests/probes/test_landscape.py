"""The landscape probe against the loss itself."""

import numpy as np
import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.maths.landscape.slices import direction_pair
from modalscape.engine.maths.progress import listening
from modalscape.engine.probes.landscape import Landscape
from tests.probes.snapshots import measured, snapshot
from tests.tiny import problem


def small(**knobs) -> Landscape:
    return Landscape(Landscape.Params(**{"line": 7, "points": 5} | knobs))


def losses(snap, theta) -> dict[str, float]:
    batch = snap.problem.probe_batch()
    with torch.no_grad():
        found = snap.problem.objectives(theta, snap.problem.encode(theta, batch), batch)[0]
        return {name: loss.item() for name, loss in found.items()} | {"": snap.problem.loss(theta, batch).item()}


def test_slices_pass_through_the_trained_point():
    snap = snapshot()
    here, records = losses(snap, snap.theta), measured(small(), snap)
    own = [f"landscape/{kind}{name}" for kind in ("1d", "2d") for name in ("", "/image", "/text")]
    assert sorted(records) == own
    for name, loss in (("", ""), ("/image", "image"), ("/text", "text")):
        curve, surface = records[f"landscape/1d{name}"], records[f"landscape/2d{name}"]
        assert curve.x[3] == 0 and curve.y[3] == here[loss] == curve.display.center
        assert surface.z.shape == (5, 5) and surface.z[2, 2] == here[loss] == surface.display.center


def test_slices_are_the_loss_along_the_directions():
    snap = snapshot()
    d1, d2 = direction_pair(snap.theta, snap.problem.layout, snap.rng.generator("landscape", 0))
    records = measured(small(reach=0.5), snap)
    line, plane = records["landscape/1d/text"], records["landscape/2d"]
    for t, y in zip(line.x, line.y, strict=True):
        assert y == pytest.approx(losses(snap, snap.theta + t * d1)["text"])
    for row, b in enumerate(plane.y):
        for col, a in enumerate(plane.x):
            assert plane.z[row, col] == pytest.approx(losses(snap, snap.theta + a * d1 + b * d2)[""])


def test_all_slices_of_a_run_share_their_directions():
    tiny = problem(heads=True)
    one, other = snapshot(tiny, 0), snapshot(tiny, 50)
    (a, _), (b, _) = (direction_pair(s.theta, tiny.layout, s.rng.generator("landscape", 0)) for s in (one, other))
    for x, y in zip(tiny.layout.unpack(a).values(), tiny.layout.unpack(b).values(), strict=True):
        if x.dim() == 2:
            torch.testing.assert_close(x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True))


def test_another_draw_is_another_plane():
    snap = snapshot()
    one, other = (measured(small(draw=i), snap)["landscape/2d"].z for i in (0, 1))
    assert one[2, 2] == other[2, 2] and not np.allclose(one, other)


def test_a_modality_whose_branch_stands_still_keeps_its_loss():
    records, alone = measured(small(part="image"), snapshot()), "landscape/random@image"
    assert np.ptp(records[f"{alone}/1d/text"].y) == 0 and np.ptp(records[f"{alone}/1d/image"].y) > 0
    crossed = measured(small(part="image, text"), snapshot())
    image, text = (crossed[f"landscape/random@image+text/2d/{name}"].z for name in ("image", "text"))
    assert np.ptp(image[2]) > 0 and (np.ptp(image, axis=0) == 0).all(), "rows move the image branch alone"
    assert np.ptp(text[:, 2]) > 0 and (np.ptp(text, axis=1) == 0).all()


def test_without_heads_there_is_the_joint_loss_alone():
    records = measured(small(), snapshot(problem(heads=False)))
    assert set(records) == {"landscape/1d", "landscape/2d"}


def test_interpolation_says_its_error_and_comes_coarse_first():
    snap = snapshot()
    seen = [r for r in small(points=41, tol=1e-2).measure(snap) if r.name == "landscape/2d"]
    exact = measured(small(points=41, tol=0.0), snap)["landscape/2d"]
    last = seen[-1]
    assert 0 < last.display.checked_error <= 1e-2 and "interpolated" in last.mode
    assert last.display.evaluations < exact.display.evaluations == 41**2
    assert np.abs(last.z - exact.z).max() <= 1e-2 * np.ptp(exact.z)
    assert exact.display.checked_error == 0 and "interpolated" not in exact.mode


def test_the_first_plane_comes_before_it_is_checked_and_says_so():
    told = []
    with listening(lambda what, done, planned: told.append((what, done))):
        first = next(small(points=41).measure(snapshot()))
    assert first.name == "landscape/2d" and "49 points, not yet checked" in first.mode
    assert told[-1] == ("points", 49) and first.display.checked_error is None


def test_records_say_rows_mode_and_seconds():
    for name, record in measured(small(), snapshot()).items():
        assert record.n == 32 and "filter-normalised" in record.mode and record.seconds > 0, name


@pytest.mark.parametrize("part", ["audio", "image,text,shared"])
def test_an_unknown_part_is_refused_with_a_sentence(part):
    with pytest.raises(InputError, match="part"):
        list(small(part=part).measure(snapshot()))
