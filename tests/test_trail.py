"""The path that a run keeps: few points, the same ones however often it was interrupted, and whole files only."""

import numpy as np
import pytest
import torch

from modalscape.engine.actions import resume
from modalscape.engine.runtime import checkpoint
from modalscape.engine.runtime.path_history import FEWEST, MOST, Trail, kept, stride
from modalscape.engine.runtime.replay import recreated
from modalscape.engine.store.commands import Measure, Stop
from modalscape.engine.store.writer import RunReader
from tests.homes import small, trained


def files(home) -> list[int]:
    return sorted(int(path.stem) for path in (home / "path").iterdir())


@pytest.mark.parametrize(("step", "every"), [(0, 1), (MOST - 1, 1), (MOST, 2), (1000, 32), (10**6, 32768)])
def test_at_most_so_many_points_are_kept_at_multiples_of_a_power_of_two(step, every):
    assert stride(step, torch.ones(3)) == every and step // every + 1 <= MOST


def test_large_parameters_are_kept_less_often():
    every = stride(1000, torch.empty(10**8, device="meta"))
    assert 1000 / every <= FEWEST < 1000 / (every // 2)


def test_what_is_kept_is_what_theta_was_and_never_the_present(tmp_path):
    for step in range(3 * MOST):
        Trail(tmp_path).keep(step, torch.full((3,), step / 3))
        assert min(step + 1, MOST // 2) <= len(files(tmp_path)) <= MOST
    assert files(tmp_path) == list(range(0, 3 * MOST, 4))
    found = kept(tmp_path, 12, torch.zeros(3, dtype=torch.float64))
    assert [step for step, _ in found] == [0, 4, 8]
    assert all(torch.equal(theta, torch.full((3,), step / 3).double()) for step, theta in found)


def test_a_damaged_point_is_named_and_left_out(tmp_path):
    for step in range(3):
        Trail(tmp_path).keep(step, torch.full((3,), step / 3))
    said = []
    assert kept(tmp_path, 9, torch.ones(5), said.append) == []
    assert len(said) == 3 and "has 3 parameters, the run 5" in said[0]
    for data in (b"", b"half", bitten(tmp_path / "path" / "00000001.npy", 130)):
        said = []
        (tmp_path / "path" / "00000001.npy").write_bytes(data)
        (tmp_path / "path" / "0abc.npy").write_bytes(data)
        assert [step for step, _ in kept(tmp_path, 9, torch.ones(3), said.append)] == [0, 2]
        assert len(said) == 1 and "00000001.npy" in said[0] and "damaged" in said[0]


def bitten(path, at: int) -> bytes:
    """Return the content of a file with one bit turned over."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    return bytes(data)


def test_a_point_of_an_older_version_is_read(tmp_path):
    (tmp_path / "path").mkdir()
    np.save(tmp_path / "path" / "00000000.npy", np.ones(3, np.float32))
    assert torch.equal(kept(tmp_path, 1, torch.zeros(3))[0][1], torch.ones(3))


def test_a_point_that_a_running_engine_drops_meanwhile_is_left_out(tmp_path, monkeypatch):
    for step in range(3):
        Trail(tmp_path).keep(step, torch.ones(3))
    load = np.load

    def late(path, **options):
        (tmp_path / "path" / "00000001.npy").unlink(missing_ok=True)
        return load(path, **options)

    monkeypatch.setattr("modalscape.engine.runtime.path_history.np.load", late)
    assert [step for step, _ in kept(tmp_path, 9, torch.ones(3))] == [0, 2]


def test_a_run_that_kept_no_path_has_its_checkpoints(tmp_path):
    run = trained(tmp_path / "a", small())
    for path in (run.home / "path").iterdir():
        path.unlink()
    assert [step for step, _ in kept(run.home, 60, run.training.state.theta)] == [
        step for step in checkpoint.steps(run.home) if step < 60
    ]


PLANE = {"landscape.plane": "trajectory", "landscape.points": 15, "landscape.line": 7}


def test_the_path_and_its_plane_after_a_stop_are_those_of_never_stopping(tmp_path):
    config = small(steps=100, probes={"landscape": 100, "trajectory": 100}, settings=PLANE)
    whole = trained(tmp_path / "a", config)
    part = trained(tmp_path / "b", config, {37: [Stop()]})
    assert part.training.state.step == 37
    resume(part.home)
    assert files(part.home) == files(whole.home) == list(range(0, 100, 4))
    for name in ("landscape/trajectory/2d", "trajectory/path", "trajectory/loss"):
        one, other = (RunReader(run.home).at(name, 100) for run in (whole, part))
        for field in one.arrays:
            assert (getattr(one, field) is None) or (getattr(one, field) == getattr(other, field)).all(), name
    for (step, one), (_, other) in zip(*(kept(run.home, 100, one_theta(run)) for run in (whole, part)), strict=True):
        assert torch.equal(one, other), step


def one_theta(run):
    return torch.zeros_like(run.training.state.theta)


def test_a_measurement_from_the_command_line_finds_the_path_up_to_its_step(tmp_path):
    run = trained(tmp_path / "a", small())
    snap = recreated(run.home, 30).snapshot()
    assert [step for step, _ in snap.path()] == list(range(0, 30, 2))
    assert torch.equal(snap.path()[5][1], recreated(run.home, 10).state.theta)


def test_keeping_a_path_and_measuring_it_leave_training_as_it_was(tmp_path):
    plain = trained(tmp_path / "a", small(settings={"checkpoint": 60}))
    asked = {step: [Measure("trajectory"), Measure("landscape", {"points": 9})] for step in (20, 40)}
    measured = trained(tmp_path / "b", small(settings={"checkpoint": 60}), asked)
    assert torch.equal(plain.training.state.theta, measured.training.state.theta)
    assert {"trajectory/path", "landscape/2d"} <= set(RunReader(measured.home).names()["records"])
