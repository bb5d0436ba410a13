"""A home that version 0.1 left: it opens, draws, resumes and replays.

The run, of 58 steps at float32 on a CPU, had GANI from the start and off at 35, ModalImmune on at 15, a new learning
rate, and four probes. `arithmetic` tells whether this machine computes as the one did that made it, to the last bit.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest
import torch

from modalscape.app.runs.status import folder
from modalscape.engine.runtime import checkpoint
from modalscape.engine.runtime.replay import recreated
from modalscape.engine.store.reader import RunReader
from tests.app.test_pages import OF_A_RUN, opened
from tests.homes import json_of, said

ARCHIVE = Path(__file__).with_name("fixtures") / "home-0.1.tar.xz"
NAME, STEP = "planted-former", 58
THETA = "8b21ecfeb9e53744c999d91ec52e3289207b89c8f18a2f700235bbcfc48a6480"
ARITHMETIC = "41368e8c6dd8adad"
"""What `arithmetic` gave where the run was made."""


def arithmetic() -> str:
    """Return the hash of a small training by torch alone, of the operations that the run is made of."""
    draw, one = torch.Generator().manual_seed(0), torch.float32
    x, w = torch.randn(32, 8, generator=draw, dtype=one), torch.randn(4 * 8 + 4 * 6 + 6, generator=draw, dtype=one)
    y = torch.arange(32) % 6
    for _ in range(60):
        w = w.detach().requires_grad_()
        a, b, c = w.split([4 * 8, 4 * 6, 6])
        hidden = torch.nn.functional.layer_norm(torch.nn.functional.gelu(x @ a.view(4, 8).T), (4,))
        loss = torch.nn.functional.cross_entropy(hidden @ b.view(6, 4).T + c, y)
        (grad,) = torch.autograd.grad(loss, w)
        w = w - 0.1 * grad - 0.01 * grad.square().mean().sqrt() * torch.linalg.eigvalsh(hidden.T @ hidden).sum().log()
    return hashlib.sha256(w.detach().numpy().tobytes()).hexdigest()[:16]


@pytest.fixture
def home():
    """Unpack the home among the runs."""
    place = folder() / NAME
    place.mkdir(parents=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    return place


def test_it_opens(home):
    found = json_of("show", str(home))
    assert (found["state"], found["step"], found["theta"]) == ("stopped", STEP, THETA)
    assert found["scalars"]["accuracy/val"] == pytest.approx(0.746) and found["scalars"]["lr"] == 0.05
    assert found["records"]["hessian/lambda_max"] == 40
    assert [e.kind for e in RunReader(home).events(kinds=("applied",))] == ["applied"] * 5


@pytest.mark.parametrize("page", OF_A_RUN)
def test_every_page_draws_it(home, page):
    at = opened(page, NAME)
    assert not at.exception and not at.error


def test_it_replays(home):
    found = checkpoint.load(home, STEP)["theta"]
    assert checkpoint.sha256(found) == THETA
    again = recreated(home, STEP, from_start=True).state.theta
    torch.testing.assert_close(again, found, rtol=1e-3, atol=1e-4)
    if arithmetic() == ARITHMETIC:  # elsewhere sums may differ in their last bits
        assert torch.equal(again, found)
        assert json_of("replay", str(home))["identical"]


def test_it_goes_on(home):
    end = json_of("resume", str(home), "--steps", "70")
    assert (end["state"], end["step"]) == ("finished", 70)
    assert RunReader(home).meta("step") == 70
    assert json_of("replay", str(home))["identical"]


def test_a_checkpoint_of_it_can_be_measured_and_forked(home):
    said("probe", str(home), "ggn", "--step", "40")
    assert "ggn/lambda_max" in json_of("show", str(home))["scalars"]
    said("fork", str(home), "--step", "40", "--home", str(home.with_name("fork")))
    assert json_of("resume", str(home.with_name("fork")))["step"] == 80
