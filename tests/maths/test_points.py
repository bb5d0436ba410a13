"""Losses at many points: the same one after the other and together, and the origin exactly whatever the chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.maths.landscape.evaluate import Field, at_once, batches, single
from tests.maths.nets import problem


def grid() -> np.ndarray:
    return np.stack(np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 5)), -1).reshape(-1, 2)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_points_come_in_order_and_are_those_of_a_loop(chunk):
    _, _, theta, loss, _ = problem()
    directions = torch.randn(2, len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field = Field(lambda w: torch.stack([loss(w), loss(w).square()]), theta, directions, chunk)
    found = field(grid())
    with torch.no_grad():
        slow = np.array([loss(theta + a * directions[0] + b * directions[1]).item() for a, b in grid()])
        here = loss(theta).item()
    np.testing.assert_allclose(found, np.stack([slow, slow**2], 1), rtol=1e-10)
    assert found[17, 0] == here and not grid()[17].any()


def test_points_are_batched_where_they_can_be_and_stay_the_same():
    _, _, theta, loss, _ = problem()
    assert batches(single(loss), theta, 4)
    assert not batches(lambda w: torch.tensor([w.sum().item()]), torch.ones(3), 4), "vmap cannot"
    changed = lambda w: torch.ones(1) * (2.0 if torch._C._functorch.is_batchedtensor(w) else 1.0)  # noqa: E731
    assert not batches(changed, torch.ones(3), 4)


def test_on_a_cpu_points_are_evaluated_one_after_the_other():
    _, _, theta, loss, _ = problem()
    assert at_once(single(loss), theta) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
def test_on_an_accelerator_several_are_evaluated_at_once():
    theta = torch.ones(3, device="cuda")
    assert at_once(single(lambda w: (w * w).sum()), theta) > 1


def test_a_loss_is_one_number():
    with pytest.raises(InputError, match="one number"):
        single(lambda w: w)(torch.ones(3))
