"""Sharpness against quadratics with known answers, and against what each measure must and must not be blind to."""

import math

import pytest
import torch
from torch import nn

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.sharpness import ascent, average_rise, mean_ascent
from modalscape.engine.maths.progress import listening
from tests.maths.nets import exact, problem

DOUBLE = {"dtype": torch.float64}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(values, slope: float = 0.0, seed: int = 9):
    """½ e'He + slope·e for these eigenvalues in a random basis; the slope is a random vector of that length."""
    values = torch.tensor(values, **DOUBLE)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=seeded(seed), **DOUBLE)).Q
    matrix, g = basis * values @ basis.T, torch.randn(len(values), generator=seeded(4), **DOUBLE)
    g = slope * g / g.norm()
    return lambda theta: 0.5 * theta @ matrix @ theta + g @ theta, matrix, g


def highest(matrix, g, rho: float) -> float:
    """max g·e + ½ e'He over |e| ≤ rho, from the secular equation of the boundary."""
    values, vectors = torch.linalg.eigh(matrix)
    weights = (vectors.T @ g).square()
    low = high = max(values[-1].item(), 0.0)
    high += g.norm().item() / rho
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (weights / (middle - values).square()).sum() > rho**2 else (low, middle)
    e = torch.linalg.solve(high * torch.eye(len(g), **DOUBLE) - matrix, g)
    return (g @ e + 0.5 * e @ matrix @ e).item()


def test_one_step_from_a_slope_is_that_of_sam():
    loss, matrix, g = quadratic([3.0, 1.0, -0.5, 0.1], slope=0.7)
    e = 0.2 * g / g.norm()
    found = ascent(loss, torch.zeros(4, **DOUBLE), 0.2, 0)
    assert found.first == pytest.approx(loss(e).item(), rel=1e-12) and found.slope == pytest.approx(0.7)
    torch.testing.assert_close(found.move, e)


@pytest.mark.parametrize("rho", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("values", [[3.0, 1.0, -0.5, 0.1], [2.0, 1.2, 1.0, -4.0], [-1.0, -2.0, -3.0, -0.5]])
def test_projected_steps_find_the_maximum_of_a_quadratic(values, rho):
    loss, matrix, g = quadratic(values, slope=0.7)
    if max(values) < 0 and (torch.linalg.solve(matrix, g)).norm() < rho:
        truth = (-0.5 * g @ torch.linalg.solve(matrix, g)).item()
    else:
        truth = highest(matrix, g, rho)
    found = ascent(loss, torch.zeros(4, **DOUBLE), rho, 150)
    assert found.rise == pytest.approx(truth, rel=1e-6) and found.rise <= truth * (1 + 1e-12)
    assert found.move.norm().item() <= rho * (1 + 1e-12)
    assert loss(found.move).item() == pytest.approx(found.rise)
    assert found.gain <= 1e-6 * truth


def test_at_a_minimum_it_is_half_the_largest_eigenvalue_times_the_radius_squared():
    loss, _, _ = quadratic([4.0, 1.0, 0.5, 0.2, 0.0])
    found = ascent(loss, torch.zeros(5, **DOUBLE), 0.1, 12, generator=seeded(1))
    assert found.slope == 0 and found.rise == pytest.approx(0.1**2 * 4.0 / 2, rel=1e-6)


def test_a_quadratics_bounds_enclose_the_sharpness_of_a_network_in_a_small_ball():
    _, _, theta, loss, _ = problem()
    top, rho = exact()[1][0].item(), 1e-3
    found = ascent(loss, theta, rho, 30)
    assert rho**2 * top / 2 <= found.rise <= (rho * found.slope + rho**2 * top / 2) * (1 + 1e-3)
    assert list(found.rises) == sorted(found.rises) and found.gain < 1e-6 * found.rise


def test_average_rise_is_half_the_trace_times_the_variance():
    loss, matrix, _ = quadratic([3.0, 1.0, -0.5, 0.1, 2.0, 2.0], slope=5.0)
    found = average_rise(loss, torch.zeros(6, **DOUBLE), 0.02, 400, generator=seeded(2))
    truth = 0.02**2 * matrix.trace().item() / 2
    assert abs(found.value - truth) <= 3 * found.error
    # Var(z'Hz) = 2 |H|_F²: the slope, ten thousand times the curvature here, has left no noise behind.
    assert found.error == pytest.approx(0.02**2 / 2 * math.sqrt(2 * matrix.square().sum().item() / 400), rel=0.2)


@pytest.mark.parametrize("c", [2.0**-30, 2.0**20])
def test_the_scale_of_the_loss_scales_everything(c):
    _, _, theta, loss, _ = problem()
    scaled = lambda w: c * loss(w)  # noqa: E731
    one, other = ascent(loss, theta, 0.3), ascent(scaled, theta, 0.3)
    assert [c * r for r in one.rises] == list(other.rises) and c * one.first == other.first
    assert torch.equal(one.move, other.move) and other.slope == pytest.approx(c * one.slope)
    one, other = average_rise(loss, theta, 0.1, 4), average_rise(scaled, theta, 0.1, 4)
    assert c * one.value == other.value and other.error == pytest.approx(c * one.error)


@pytest.mark.parametrize("flat", [lambda w: (0 * w).sum() + 3, lambda w: torch.tensor(3.0)])
def test_a_flat_loss_is_not_sharp(flat):
    found, mean = ascent(flat, torch.ones(7), 0.5), average_rise(flat, torch.ones(7), 0.5)
    assert found.rise == found.first == found.slope == 0 and not found.move.any()
    assert mean.value == 0 and mean.error <= 1e-6
    assert ascent(lambda w: (w**2).sum(), torch.zeros(4), 0.5, scale=torch.zeros(4)).rise == 0


def test_a_summit_has_nothing_higher():
    found = ascent(lambda w: -(w @ w), torch.zeros(5, **DOUBLE), 0.5)
    assert found.rise == 0 and found.first < 0


def relu(rows: int = 40):
    """A one-hidden-layer ReLU network (5 → 7 → 3) as a loss of theta, and its theta."""
    x = torch.randn(rows, 5, generator=seeded(5), **DOUBLE)
    y = torch.randint(3, (rows,), generator=seeded(6))
    sizes = [35, 7, 21, 3]

    def loss(theta):
        w, b, v, c = theta.split(sizes)
        return nn.functional.cross_entropy(torch.relu(x @ w.view(7, 5).T + b) @ v.view(3, 7).T + c, y)

    return loss, torch.randn(sum(sizes), generator=seeded(7), **DOUBLE), sizes


def rescaled(theta, sizes, factors):
    """The same function: each hidden neuron's input times its factor, its output divided by it."""
    w, b, v, c = theta.split(sizes)
    return torch.cat([(w.view(7, 5) * factors[:, None]).flatten(), b * factors, (v.view(3, 7) / factors).flatten(), c])


def test_asam_is_blind_to_rescaled_neurons_and_the_others_are_not():
    loss, theta, sizes = relu()
    other = rescaled(theta, sizes, torch.tensor([10.0, 0.1, 3.0, 1.0, 0.02, 7.0, 50.0], **DOUBLE))
    assert loss(other).item() == pytest.approx(loss(theta).item(), rel=1e-12)
    one, two = (ascent(loss, t, 0.5, 8, scale=t.abs()) for t in (theta, other))
    assert two.rises == pytest.approx(one.rises, rel=1e-9) and two.first == pytest.approx(one.first, rel=1e-9)
    sam = [ascent(loss, t, 0.05).rise for t in (theta, other)]
    assert sam[1] > 3 * sam[0]
    shifted = [ascent(loss, t, 0.5, scale=t.abs() + 0.1).rise for t in (theta, other)]
    assert shifted[1] != pytest.approx(shifted[0], rel=1e-2)


def test_mean_sharpness_grows_as_micro_batches_shrink():
    _, _, theta, _, (x, y) = problem()
    net, layout, *_ = problem()

    def on(rows):
        piece = {k: v[rows] for k, v in x.items()}
        return lambda w: nn.functional.cross_entropy(
            torch.func.functional_call(net, layout.unpack(w), (piece,)), y[rows]
        )

    found = [
        mean_ascent([on(slice(i, i + m)) for i in range(0, 120, m)], theta, 0.05, 20) for m in (120, 60, 30, 10, 2)
    ]
    assert [f.count for f in found] == [1, 2, 4, 12, 60]
    values = [f.value for f in found]
    assert values == sorted(values) and values[-1] > 2 * values[0]
    assert found[0].value == pytest.approx(ascent(on(slice(0, 120)), theta, 0.05, 20).rise)
    assert found[0].error == math.inf and 0 < found[1].error < math.inf


def test_the_standard_error_of_the_mean_is_over_its_losses():
    losses = [lambda w, c=c: c * (w @ w) for c in (1.0, 2.0, 6.0)]
    found = mean_ascent(losses, torch.zeros(3, **DOUBLE), 1.0)
    assert found.value == pytest.approx(3.0) and found.error == pytest.approx(math.sqrt(7.0 / 3))


def test_a_part_moves_alone():
    _, layout, theta, loss, _ = problem()
    mask = layout.mask("a").double()
    part, whole = ascent(loss, theta, 0.1, 20, scale=mask), ascent(loss, theta, 0.1, 20)
    assert not part.move[mask == 0].any() and part.move[mask == 1].any()
    assert 0 < part.rise < whole.rise


def test_what_is_not_finite_is_said_in_a_sentence():
    with pytest.raises(InputError, match="the loss is nan at theta"):
        ascent(lambda w: (w - w - torch.nan).sum(), torch.ones(3), 0.1)
    with pytest.raises(InputError, match="nan within rho = 2 of theta, so lower rho"):
        ascent(lambda w: -torch.log(w).sum(), torch.ones(3), 2.0)
    with pytest.raises(InputError, match="sigma = 3 from theta, so lower sigma"):
        average_rise(lambda w: -torch.log(w).sum(), torch.ones(30), 3.0)
    with pytest.raises(InputError, match="rho = 0.0 must be positive"):
        ascent(lambda w: w.sum(), torch.ones(3), 0.0)
    with pytest.raises(InputError, match="one number"):
        ascent(lambda w: w, torch.ones(3), 0.1)


def test_looking_leaves_no_trace_and_reports_each_look():
    _, _, theta, loss, _ = problem()
    theta, state = theta.requires_grad_(), torch.get_rng_state()
    before = theta.detach().clone()
    told = []
    with listening(lambda *report: told.append(report)):
        ascent(loss, theta, 0.1, 5)
        average_rise(loss, theta, 0.1, 3)
    assert told == [("gradients", i, 7) for i in range(8)] + [("draws", i, 3) for i in range(4)]
    assert torch.equal(theta, before) and theta.grad is None and torch.equal(torch.get_rng_state(), state)


def test_small_slopes_in_single_precision_do_not_vanish():
    loss = lambda w: 1e-25 * (w[0] + w @ w)  # noqa: E731
    found = ascent(loss, torch.zeros(3), 0.5, 8)
    assert found.rise == pytest.approx(1e-25 * 0.75, rel=1e-3)
