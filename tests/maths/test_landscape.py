"""Slices: the point they pass through, the directions they take, and the error of their interpolation."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.errors import InputError
from modalscape.engine.maths.landscape.evaluate import single
from modalscape.engine.maths.landscape.slices import (
    axis,
    axis_over,
    barrier,
    direction_pair,
    filter_normalised,
    refine,
    slice_1d,
    slice_2d,
)
from modalscape.engine.maths.progress import listening
from tests.maths.nets import problem


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counted(loss):
    calls = []

    def counting(theta):
        calls.append(1)
        return loss(theta)

    return counting, calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tol", [0, 1e-3, 0.3])
def test_plane_contains_the_trained_point_exactly(dtype, tol):
    _, layout, theta, loss, _ = problem(dtype=dtype)
    d1, d2 = direction_pair(theta, layout, seeded(0))
    x, y = axis(1.0, 31), axis(0.7, 21)
    plane = slice_2d(loss, theta, d1, d2, x, y, tol)
    with torch.no_grad():
        assert plane.z[10, 15].item() == loss(theta).item()
        assert slice_1d(loss, theta, d1, x)[15].item() == loss(theta).item()


def test_exact_plane_is_the_double_loop():
    _, layout, theta, loss, _ = problem()
    d1, d2 = direction_pair(theta, layout, seeded(0))
    x, y = axis(1.0, 5), axis(2.0, 3)
    plane = slice_2d(loss, theta, d1, d2, x, y, tol=0)
    slow = torch.tensor([[loss(theta + a * d1 + b * d2) for a in x] for b in y], dtype=torch.float64)
    torch.testing.assert_close(plane.z, slow)
    assert (plane.checked_error, plane.evaluations) == (0.0, 15)


@pytest.mark.parametrize(("act", "most"), [(torch.tanh, 700), (torch.relu, 2601)])
@pytest.mark.parametrize("seed", range(3))
def test_interpolated_plane_keeps_its_tolerance(act, most, seed):
    _, layout, theta, loss, _ = problem(24, act=act)
    d1, d2 = direction_pair(theta, layout, seeded(seed))
    x = axis(1.0, 51)
    exact = slice_2d(loss, theta, d1, d2, x, x, tol=0).z
    loss, calls = counted(loss)
    plane = slice_2d(loss, theta, d1, d2, x, x, tol=1e-3)
    error = ((plane.z - exact).abs().max() / (exact.max() - exact.min())).item()
    assert error <= 1e-3 and plane.checked_error <= 1e-3
    assert plane.evaluations == len(calls) <= most


def test_a_rough_surface_gets_the_exact_grid():
    theta, x = torch.zeros(2, dtype=torch.float64), axis(1.0, 41)
    d1, d2 = torch.eye(2, dtype=torch.float64)

    def rough(w):
        return torch.sin(300 * w).prod()

    loss, calls = counted(rough)
    plane = slice_2d(loss, theta, d1, d2, x, x)
    assert plane.checked_error == 0 and plane.evaluations == len(calls) == 41**2
    torch.testing.assert_close(plane.z, torch.sin(300 * x)[:, None] * torch.sin(300 * x))


def test_a_loss_that_is_not_finite_somewhere_gets_the_exact_grid():
    plane = slice_2d(lambda w: w.sum().log(), torch.ones(2), *torch.eye(2), axis(2.0, 21), axis(2.0, 21))
    assert plane.evaluations == 441 and plane.z.isnan().any() and plane.z[10, 10].isfinite()


def test_a_flat_plane_is_no_division_by_zero():
    plane = slice_2d(lambda w: 0 * w.sum() + 2, torch.ones(2), *torch.eye(2), axis(2.0, 51), axis(2.0, 51))
    assert plane.checked_error == 0 and plane.evaluations < 100 and (plane.z - 2).abs().max() < 1e-12


def test_first_picture_comes_early_and_improves():
    _, layout, theta, loss, _ = problem(act=torch.relu)
    d1, d2 = direction_pair(theta, layout, seeded(1))
    told = []
    with listening(lambda *report: told.append(report)):
        slices = [found for (found,) in refine(single(loss), theta, d1, d2, axis(1.0, 51), axis(1.0, 51), tol=1e-5)]
    assert len(slices) > 2
    assert told[-1] == ("points", slices[-1].evaluations, slices[-1].evaluations)
    assert all(b[1] - a[1] <= 1 and b[1] <= b[2] for a, b in pairwise(told))
    assert slices[0].evaluations == 49 and math.isnan(slices[0].checked_error)
    assert [s.evaluations for s in slices] == sorted(s.evaluations for s in slices)
    assert slices[1].checked_error > slices[-1].checked_error


def test_several_losses_share_each_forward_pass_and_the_tolerance():
    _, layout, theta, loss, _ = problem()
    d1, d2 = direction_pair(theta, layout, seeded(1))
    x, calls = axis(1.0, 41), []

    def losses(w):
        calls.append(1)
        return torch.stack([loss(w), 3 + loss(w).sqrt() / 100, (w[:6] ** 2).sum()])

    *_, planes = refine(losses, theta, d1, d2, x, x, tol=1e-3)
    assert len(calls) == planes[0].evaluations < 41**2
    *_, slow = refine(losses, theta, d1, d2, x, x, tol=0)
    for plane, true in zip(planes[:2], slow[:2], strict=True):
        assert (plane.z - true.z).abs().max() <= 2e-3 * (slow[0].z.max() - slow[0].z.min())
        assert plane.checked_error > 0
    assert planes[0].checked_error <= 1e-3


def test_the_range_doubles_and_the_grid_doubles():
    _, layout, theta, loss, _ = problem()
    d1, d2 = direction_pair(theta, layout, seeded(0))
    near, far = (slice_2d(loss, theta, d1, d2, axis(r, 5), axis(r, 5), tol=0).z for r in (1.0, 2.0))
    torch.testing.assert_close(near[::2, ::2], far[1:4, 1:4])


def test_the_barrier_between_two_quadratic_wells_is_the_closed_form():
    h, a, b = 3.0, torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    wells = lambda w: torch.minimum(h / 2 * (w - a).square().sum(), h / 2 * (w - b).square().sum() + 0.5)  # noqa: E731
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    found = barrier(t, slice_1d(wells, a.double(), (b - a).double(), t))
    # On the line the wells meet where h/2 D² t² = h/2 D² (1 - t)² + c, at t = 1/2 + c / (h D²); the chord there is c t.
    depth, meet = h / 2 * 25, 0.5 + 0.5 / (h * 25)
    assert found.item() == pytest.approx(depth * meet**2 - 0.5 * meet, rel=1e-3)
    assert barrier(t, slice_1d(lambda w: (w - a).square().sum(), a.double(), b.double(), t)) == 0


def test_an_axis_over_a_range_holds_zero_and_both_ends():
    for low, high, points in ((-1.0, 1.0, 5), (-0.3, 1.3, 31), (-7.0, 0.01, 9)):
        found = axis_over(low, high, points)
        assert len(found) == points and (found == 0).sum() == 1
        assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12
        torch.testing.assert_close(found.diff(), found.diff()[:1].expand(points - 1))


def test_axes_without_zero_and_uneven_axes_are_allowed():
    x = torch.tensor([0.1, 0.2, 0.25, 0.4, 0.8, 0.9, 1.5]).double()
    plane = slice_2d(lambda w: (w**2).sum(), torch.zeros(2).double(), *torch.eye(2).double(), x, x)
    torch.testing.assert_close(plane.z, x**2 + x[:, None] ** 2)


def test_axis_is_monotone_symmetric_and_holds_zero():
    for points in (3, 25, 51, 101):
        x = axis(0.3, points)
        assert len(x) == points and x[points // 2] == 0 and (x.diff() > 0).all() and torch.equal(x, -x.flip(0))
    torch.testing.assert_close(axis(0.6, 25), 2 * axis(0.3, 25))


def test_directions_are_filter_normalised():
    _, layout, theta, _, _ = problem()
    for d in direction_pair(theta, layout, seeded(0)):
        weights = layout.unpack(theta)
        for name, piece in layout.unpack(d).items():
            if piece.dim() < 2:
                assert not piece.any()
            else:
                torch.testing.assert_close(piece.norm(dim=1), weights[name].norm(dim=1))


def test_directions_differ_between_seeds_and_are_nearly_orthogonal():
    _, layout, theta, _, _ = problem(24)
    d1, d2 = direction_pair(theta, layout, seeded(0))
    e1, _ = direction_pair(theta, layout, seeded(1))
    cosine = torch.nn.functional.cosine_similarity
    for a, b in ((d1, d2), (d1, e1)):
        assert cosine(a, b, dim=0).abs() < 5 / len(theta) ** 0.5
    assert torch.equal(d1, direction_pair(theta, layout, seeded(0))[0])


def test_directions_of_one_part_leave_the_others_alone():
    _, layout, theta, _, _ = problem()
    for d in direction_pair(theta, layout, seeded(0), "a"):
        assert d.any() and not d[layout.mask("a") == 0].any()
    d1, d2 = direction_pair(theta, layout, seeded(0), ("a", "b"))
    assert not d1[layout.mask("a") == 0].any() and not d2[layout.mask("b") == 0].any() and d1.any() and d2.any()


def test_output_axis_may_be_another():
    layout = Layout({"w": (3, 4, 2)}, {"w": "a"})
    theta, d = torch.randn(2, 24, generator=seeded(0))
    done = filter_normalised(d, theta, layout, {"w": 1}).view(3, 4, 2)
    torch.testing.assert_close(done.norm(dim=(0, 2)), theta.view(3, 4, 2).norm(dim=(0, 2)))


def test_a_zero_row_neither_moves_nor_divides_by_zero():
    layout = Layout({"w": (2, 2)}, {"w": "a"})
    theta, d = torch.tensor([0.0, 0.0, 3.0, 4.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert filter_normalised(d, theta, layout).tolist() == [0, 0, 0, 0]


def test_layer_rescaling_leaves_slices_unchanged():
    """Dinh et al. 2017: sharper by any Hessian, the same function and the same slice."""
    _, layout, theta, loss, _ = problem(act=torch.relu)
    scale = {"a.weight": 10, "a.bias": 10, "b.weight": 10, "b.bias": 10, "head.weight": 0.1}
    scaled = layout.pack({name: p * scale.get(name, 1) for name, p in layout.unpack(theta).items()})
    x = axis(0.5, 9)
    planes = [
        slice_2d(loss, point, *direction_pair(point, layout, seeded(2)), x, x, tol=0).z for point in (theta, scaled)
    ]
    torch.testing.assert_close(*planes)


def test_slicing_leaves_no_trace():
    _, layout, theta, loss, _ = problem()
    theta = theta.requires_grad_()
    before, state = theta.detach().clone(), torch.get_rng_state()
    d1, d2 = direction_pair(theta.detach(), layout, seeded(0))
    plane = slice_2d(loss, theta, d1, d2, axis(1.0, 31), axis(1.0, 31))
    assert torch.equal(theta, before) and theta.grad is None and torch.equal(torch.get_rng_state(), state)
    assert not plane.z.requires_grad
    assert torch.equal(plane.z, slice_2d(loss, theta, d1, d2, axis(1.0, 31), axis(1.0, 31)).z)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda loss, w: slice_2d(loss, w, w, w[:2], [0, 1], [0, 1]), "does not fit"),
        (lambda loss, w: slice_2d(loss, w, w, w, [1, 0], [0, 1]), "increasing"),
        (lambda loss, w: slice_2d(loss, w, w, w, [0, 1], [0, 1], tol=-1), "tol"),
        (lambda loss, w: slice_1d(loss, w, w, []), "increasing"),
        (lambda loss, w: slice_1d(loss, w * torch.nan, w, [0, 1]), "3 numbers that are not finite"),
        (lambda loss, w: slice_2d(loss, w, w, w / 0, [0, 1], [0, 1]), "3 numbers that are not finite"),
        (lambda loss, w: slice_1d(lambda v: v.sum().log(), -w, w, [0, 1]), "centre of the slice is nan"),
        (lambda loss, w: slice_2d(lambda v: v.sum().log(), 0 * w, w, w, [0, 1], [0, 1]), "centre of the slice is -inf"),
        (lambda loss, w: barrier([0, 0.5], torch.ones(2)), "from 0 to 1"),
        (lambda loss, w: barrier([0, 1], torch.tensor([1, torch.inf])), "ends"),
        (lambda loss, w: axis_over(1.0, 2.0, 5), "cannot hold 0"),
        (lambda loss, w: slice_1d(lambda v: v, w, w, [0, 1]), "one number"),
        (lambda loss, w: axis(1.0, 10), "odd"),
        (lambda loss, w: direction_pair(w, Layout({"b": (3,)}, {"b": "a"}), seeded(0)), "weight matrix"),
        (lambda loss, w: direction_pair(w, Layout({"b": (3, 1)}, {"b": "a"}), seeded(0), "c"), "'c' is no part"),
    ],
)
def test_what_cannot_be_sliced_is_refused_in_one_sentence(call, says):
    with pytest.raises(InputError, match=says) as refusal:
        call(lambda w: (w**2).sum(), torch.ones(3))
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("wide", "high", "rate"), [(31, 9, 1.0), (31, 11, 2.0), (33, 7, 0.5)])
def test_a_small_kinked_plane_is_checked_however_few_points_are_left(wide, high, rate):
    theta, d1, d2 = torch.zeros(2, dtype=torch.float64), *torch.eye(2, dtype=torch.float64)
    loss = lambda w: torch.sin(rate * w[0]) * torch.cos(rate * w[1]) + (w[0] > 0.6) * 0.02  # noqa: E731
    plane, truth = (slice_2d(loss, theta, d1, d2, axis(1.0, wide), axis(1.0, high), tol) for tol in (1e-3, 0.0))
    assert plane.checked_error <= 1e-3 and plane.evaluations <= wide * high
    assert (plane.z - truth.z).abs().max() <= 1e-3 * (truth.z.max() - truth.z.min())
