"""Losses at many points: the same one after the other and together, and the origin exactly whatever the chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.knobs import InputError
from engine.maths.points import CHUNKS, Field, fastest_chunk, single
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


def test_the_fastest_chunk_is_one_that_was_tried():
    _, _, theta, loss, _ = problem()
    assert fastest_chunk(single(loss), theta) in (1, *CHUNKS)


def test_losses_that_cannot_be_batched_are_evaluated_one_after_the_other():
    assert fastest_chunk(lambda w: torch.tensor([w.sum().item()]), torch.ones(3)) == 1


def test_losses_that_differ_when_batched_are_evaluated_one_after_the_other():
    def losses(w):
        return torch.ones(1) * (2.0 if torch._C._functorch.is_batchedtensor(w) else 1.0)

    assert fastest_chunk(losses, torch.ones(3)) == 1


def test_a_loss_is_one_number():
    with pytest.raises(InputError, match="one number"):
        single(lambda w: w)(torch.ones(3))
