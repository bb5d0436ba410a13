"""Runs beside a run: found by id in the same folder and nowhere else."""

import pytest
import torch

from modalscape.engine.actions import probe
from modalscape.engine.errors import InputError
from modalscape.engine.runtime.other_runs import neighbour
from modalscape.engine.store.writer import RunReader
from tests.homes import small, trained


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of three runs: two of one network and one of another; beside the folder, a run that must stay hidden."""
    root = tmp_path_factory.mktemp("around")
    configs = {
        "runs/one-run": small(),
        "runs/other-run": small(seed=1),
        "runs/wide-run": small(settings={"width": 16}),
        "secret-run": small(seed=2),
    }
    (root / "runs").mkdir()
    made = {name: trained(root / name, config) for name, config in configs.items()}
    (root / "runs" / "linked-run").symlink_to(root / "secret-run")
    (root / "runs" / "empty-run").mkdir()
    return root / "runs", made


def asked(runs, run):
    one = runs[1]["runs/one-run"].training
    return neighbour(runs[0] / "one-run", run, one.problem.layout, one.config, one.state.theta)


def test_a_run_in_the_same_folder_is_found_at_its_last_checkpoint(runs):
    found = asked(runs, "other-run")
    assert (found.run, found.step) == ("other-run", 60)
    assert torch.equal(found.theta, runs[1]["runs/other-run"].training.state.theta)
    assert "seed 1" in found.words


@pytest.mark.parametrize(
    ("run", "says"),
    [
        *[(run, "no id of a run") for run in ("../secret-run", "/etc/passwd", "..", "", "other-run/", "OTHER", "a\nb")],
        *[(run, "no run") for run in ("linked-run", "empty-run", "secret-run", "no-such-run")],
        ("one-run", "this run itself"),
        ("wide-run", "another network"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(runs, run, says):
    with pytest.raises(InputError, match=says) as refusal:
        asked(runs, run)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value).replace(repr(run), "")


def test_a_run_without_a_checkpoint_is_refused(runs):
    home = runs[0] / "young-run"
    home.mkdir()
    (home / "config.json").write_text((runs[0] / "one-run" / "config.json").read_text())
    with pytest.raises(InputError, match="no checkpoint yet"):
        asked(runs, "young-run")


def test_what_lies_between_two_runs_is_measured_from_the_command_line(runs):
    home = runs[0] / "one-run"
    probe(home, "between", None, {"other": "other-run", "points": 9})
    line = RunReader(home).latest("between/other-run/line")[1]
    barrier = RunReader(home).latest("between/other-run/barrier")[1]
    assert line.display.barrier == barrier.value >= 0 and "seed 1" in line.mode
