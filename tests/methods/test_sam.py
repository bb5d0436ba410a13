"""SAM takes the gradient at the worst nearby point, and with no radius it is off."""

import pytest
import torch

from modalscape.engine.methods.gani import Gani
from modalscape.engine.methods.ogm_ge import OgmGe
from modalscape.engine.methods.sam import Sam, ascent
from tests import tiny

SETTINGS = tiny.sgd(0.2, 0.9)


def others():
    return [Gani(Gani.Params(warmup=0)), OgmGe()]


def test_no_radius_is_off_with_everything_else_on():
    off = tiny.train(tiny.problem(), others(), 20, SETTINGS)[0]
    zero = tiny.train(tiny.problem(), [*others(), Sam(Sam.Params(rho=0.0))], 20, SETTINGS)[0]
    assert torch.equal(zero.theta, off.theta)
    assert torch.equal(zero.moments["slots"]["momentum_buffer"], off.moments["slots"]["momentum_buffer"])


def test_a_vanishing_offset_is_off_too():
    off = tiny.train(tiny.problem(), others(), 20, SETTINGS)[0]
    near = tiny.train(tiny.problem(), [*others(), Sam(Sam.Params(rho=1e-300))], 20, SETTINGS)[0]
    assert torch.equal(near.theta, off.theta)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_step_equals_two_passes_by_hand(adaptive):
    problem, rho = tiny.problem(), 0.3
    theta, batch = problem.init(), problem.batch(0)

    def slope(at):
        return torch.func.grad(lambda t: problem.loss(t, batch))(at)

    first = slope(theta)
    scale = theta.abs() + 0.01 if adaptive else torch.ones_like(theta)
    worst = theta + rho * scale**2 * first / (scale * first).norm()
    expected = theta - 0.2 * slope(worst)
    state, _, _ = tiny.train(problem, [Sam(Sam.Params(rho=rho, adaptive=adaptive))], 1, tiny.sgd(0.2))
    torch.testing.assert_close(state.theta, expected, rtol=0, atol=1e-14)


def test_on_a_quadratic_the_gradient_is_known_on_paper():
    h, theta = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([3.0, 1.0], dtype=torch.float64)
    state, _, _ = tiny.train(tiny.Quadratic(h, theta), [Sam(Sam.Params(rho=0.5))], 1, tiny.sgd(0.1))
    # gradient (3, 4), unit (0.6, 0.8), perturbed theta (3.3, 1.4), its gradient (3.3, 5.6)
    torch.testing.assert_close(state.theta, torch.tensor([2.67, 0.44], dtype=torch.float64), rtol=0, atol=1e-14)


def test_the_offset_has_the_radius_and_vanishes_with_the_gradient():
    grad, theta = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    assert ascent(grad, theta, 0.7, False).norm() == pytest.approx(0.7)
    scaled = ascent(grad, theta, 0.7, True) / (theta.abs() + 0.01)
    assert scaled.norm() == pytest.approx(0.7)
    assert torch.equal(ascent(torch.zeros(50), torch.ones(50), 0.7, False), torch.zeros(50))


def test_the_report_measures_the_rise_of_the_loss():
    problem = tiny.problem()
    _, views, stack = tiny.train(problem, [Sam(Sam.Params(rho=0.3))], 3, SETTINGS)
    view = views[-1]
    records = {record.name: record.value for record in stack.methods["sam"].report(view)}
    offset = 0.3 * view.grad / view.grad.norm()
    rise = problem.loss(view.theta + offset, view.batch) - problem.loss(view.theta, view.batch)
    assert records["sam/sharpness"] == pytest.approx(float(rise))
    assert records["sam/relative_radius"] == pytest.approx(0.3 / float(view.theta.norm()))
