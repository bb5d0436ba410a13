"""Directions that are not drawn at random: each against its slow and obvious definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.errors import InputError
from modalscape.engine.maths.landscape.directions import curved_pair, downhill_pair, principal_pair
from tests.maths.nets import exact, problem

PLAIN = Layout({"w": (40, 5), "v": (20, 5)}, {"w": "a", "v": "b"})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walk(points: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(points, size, generator=seeded(seed), dtype=torch.float64).cumsum(0)


def test_the_curved_plane_is_spanned_by_the_top_eigenvectors():
    _, layout, theta, loss, _ = problem()
    values, vectors = torch.linalg.eigh(exact()[0])
    reference = torch.randn(len(theta), generator=seeded(1), dtype=torch.float64)
    pair = curved_pair(loss, theta, layout, seeded(0), reference)
    for i, d in enumerate(pair.directions):
        true = vectors[:, -1 - i] * torch.sign(vectors[:, -1 - i] @ reference)
        assert abs(pair.values[i] - values[-1 - i]) <= pair.residuals[i] + 1e-9 <= 1e-2 * pair.values[i] + 1e-9
        assert d.norm().item() == pytest.approx(1) and (d - true).norm() < 0.1
    turned = curved_pair(loss, theta, layout, seeded(0), -reference)
    assert torch.equal(turned.directions, -pair.directions)


def test_the_curved_plane_of_two_parts_takes_one_eigenvector_of_each_block():
    _, layout, theta, loss, _ = problem()
    hessian = exact()[0]
    pair = curved_pair(loss, theta, layout, seeded(0), torch.ones_like(theta), ("a", "b"))
    for part, d, value in zip("ab", pair.directions, pair.values, strict=True):
        inside = layout.mask(part).bool()
        assert not d[~inside].any()
        assert value.item() == pytest.approx(torch.linalg.eigvalsh(hessian[inside][:, inside])[-1].item(), rel=1e-3)


def test_downhill_is_against_the_gradient_and_the_other_direction_across():
    _, layout, theta, loss, _ = problem()
    grad = torch.func.grad(loss)(theta)
    down, across = downhill_pair(grad, theta, layout, seeded(0))
    torch.testing.assert_close(down, -grad / grad.norm())
    assert across.norm().item() == pytest.approx(1) and abs(down @ across) < 0.2
    with torch.no_grad():
        assert loss(theta + 1e-3 * down) < loss(theta)


def test_downhill_of_two_parts_moves_each_alone():
    _, layout, theta, loss, _ = problem()
    grad = torch.func.grad(loss)(theta)
    for part, d in zip("ab", downhill_pair(grad, theta, layout, seeded(0), ("a", "b")), strict=True):
        own = grad * layout.mask(part)
        torch.testing.assert_close(d, -own / own.norm())


def test_the_plane_of_a_path_is_that_of_numpys_svd():
    path = walk(30, 300)
    plane = principal_pair(path, PLAIN)
    steps = (path - path[-1]).numpy()
    _, s, vt = np.linalg.svd(steps)
    sides = np.sign(np.sum(vt[:2] * plane.directions.numpy(), axis=1))
    np.testing.assert_allclose(plane.directions.numpy(), sides[:, None] * vt[:2], atol=1e-10)
    np.testing.assert_allclose(plane.coordinates.numpy(), steps @ plane.directions.numpy().T, atol=1e-8)
    np.testing.assert_allclose(plane.shares.numpy()[:5], (s**2 / np.sum(s**2))[:5], rtol=1e-9)
    left = steps - plane.coordinates.numpy() @ plane.directions.numpy()
    off = np.linalg.norm(left[:-1], axis=1) / np.linalg.norm(steps[:-1], axis=1)
    np.testing.assert_allclose(plane.off_plane.numpy()[:-1], off, rtol=1e-6)
    assert not plane.coordinates[-1].any() and plane.off_plane[-1] == 0, "the plane contains the last point"


def test_the_plane_of_a_path_has_fixed_sides():
    path = walk(30, 300)
    plane, mirrored = principal_pair(path, PLAIN), principal_pair(2 * path[-1] - path, PLAIN)
    assert plane.coordinates[0, 0] > 0
    torch.testing.assert_close(plane.coordinates, mirrored.coordinates)


def test_float32_gives_the_same_plane():
    path = walk(30, 300)
    full, half = principal_pair(path, PLAIN), principal_pair(path.float(), PLAIN)
    torch.testing.assert_close(half.coordinates, full.coordinates, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half.off_plane, full.off_plane, rtol=1e-3, atol=1e-4)


def test_the_plane_of_two_parts_takes_the_first_component_of_each():
    path = walk(30, 300)
    plane = principal_pair(path, PLAIN, ("a", "b"))
    for part, d in zip("ab", plane.directions, strict=True):
        steps = ((path - path[-1]) * PLAIN.mask(part)).numpy()
        assert abs(d.numpy() @ np.linalg.svd(steps)[2][0]) == pytest.approx(1)


def test_a_random_walk_explains_as_much_as_we_say():
    shares = torch.stack([principal_pair(walk(400, 300, seed), PLAIN).shares[:2] for seed in range(3)]).mean(0)
    assert shares.tolist() == pytest.approx([8 / math.pi**2, 8 / (9 * math.pi**2)], abs=0.03)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (walk(2, 300), "2 points"),
        (torch.arange(5.0)[:, None] * torch.ones(300), "on a line"),
        (torch.ones(5, 300), "on a line"),
    ],
)
def test_a_path_without_a_plane_is_refused(path, says):
    with pytest.raises(InputError, match=says):
        principal_pair(path, PLAIN)


def test_where_the_gradient_vanishes_there_is_no_downhill():
    with pytest.raises(InputError, match="vanishes"):
        downhill_pair(torch.zeros(300), torch.ones(300), PLAIN, seeded(0))
