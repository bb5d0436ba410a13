"""Products are counted honestly while they are taken, and whoever listens can end them."""

from __future__ import annotations

import pytest
import torch

from modalscape.engine.maths.curvature.hessian_spectrum import (
    hvp,
    lanczos,
    spectral_density,
    spectrum,
    top_eigenpairs,
    trace,
)
from modalscape.engine.maths.progress import listening
from tests.maths.nets import problem
from tests.maths.test_progress import Cancelled, heard

_, LAYOUT, THETA, LOSS, _ = problem()
WORK = {
    "hvp": lambda loss: hvp(loss, THETA, torch.ones(3, len(THETA)).double()),
    "lanczos": lambda loss: lanczos(loss, THETA, 12),
    "spectrum": lambda loss: spectrum(loss, THETA, 3, 20, 4, parts=LAYOUT.slices),
    "top": lambda loss: top_eigenpairs(loss, THETA, 2, 1e-2),
    "trace": lambda loss: trace(loss, THETA, 0.05),
    "density": lambda loss: spectral_density(loss, THETA, 10, 3),
}


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("pieces", [1, 3])
def test_products_are_counted_honestly(name, pieces):
    told = heard(lambda: WORK[name]([(LOSS, 1 / pieces)] * pieces))
    assert all(what == "products" and 0 <= done <= planned for what, done, planned in told)
    done = [count for _, count, _ in told]
    assert done == sorted(done) and done[0] == 0 and told[-1][1] == told[-1][2] > 0
    assert len(told) >= done[-1] / 8 * pieces, "each chunk is told"


def test_the_products_of_a_spectrum_are_known_beforehand():
    assert {planned for _, _, planned in heard(lambda: WORK["spectrum"](LOSS))} == {20 + 4 * 3}


def test_cancelling_ends_products_within_one():
    calls = []

    def listener(what, done, planned):
        calls.append(done)
        if done == 5:
            raise Cancelled

    with pytest.raises(Cancelled), listening(listener):
        lanczos(LOSS, THETA, 30)
    assert calls[-1] == 5
