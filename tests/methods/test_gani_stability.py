"""The stability bound is where GANI's second moments cease to shrink; beyond it, sharp valleys are left."""

import math

import numpy as np
import pytest
import torch

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.optimizer import Rate
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.stability import stability_bound
from modalscape.engine.core.step import View
from modalscape.engine.maths.gradients import noise_injection as maths
from modalscape.engine.methods.gani import Gani
from modalscape.engine.methods.isotropic_noise import IsotropicNoise
from tests import tiny
from tests.methods.noise import knobs

PLACEMENTS = ("decoupled", "through_grad")
F64 = torch.float64


def chains(count: int, h=1.0, start=1.0, **others):
    """A quadratic of `count` independent coordinates."""
    return tiny.Quadratic(torch.full((count,), h, dtype=F64), torch.full((count,), start, dtype=F64), **others)


def recursion(a: float, sigma: float, mu: float, placement: str, beta: float, correction: float = 1.0) -> np.ndarray:
    """The exact map of (E[x²], E[xu], E[u²], E[v]) over one step with gradient x, buffer u and lr·λ = a."""
    descent = np.array([1.0, 2 * mu, mu**2, 0.0])  # (x + μu)²
    cross = np.array([1.0, mu, 0.0, 0.0])  # x(x + μu)
    square = np.array([1.0, 0.0, 0.0, 0.0])
    v = (1 - beta) * square + np.array([0.0, 0.0, 0.0, beta])
    noise = sigma**2 * v / correction
    buffer = descent + noise if placement == "through_grad" else descent
    added = 0.0 * v if placement == "through_grad" else a**2 * noise
    return np.stack([square - 2 * a * cross + a**2 * buffer + added, cross - a * buffer, buffer, v])


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mu", [0.0, 0.9])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_second_moments_are_stable_just_below_the_bound_and_not_above(sigma, mu, placement, beta):
    bound = stability_bound(1.0, sigma, mu, placement)
    below, above = (
        max(abs(np.linalg.eigvals(recursion(bound * factor, sigma, mu, placement, beta)))) for factor in (0.995, 1.005)
    )
    assert below < 1 < above


def test_the_bound_has_its_known_values():
    assert stability_bound(0.1, 0.0) == pytest.approx(20.0)
    assert stability_bound(0.1, 2.0) == pytest.approx(4.0)
    assert stability_bound(1.0, 0.0, 0.9) == pytest.approx(3.8)
    assert stability_bound(1.0, 1.0, 0.9) == pytest.approx(0.4276, abs=5e-5)
    assert stability_bound(1.0, 1.0, 0.9, "through_grad") == pytest.approx(0.19)
    for sigma in (0.3, 1.0):
        same = [stability_bound(1.0, sigma, 0.0, placement) for placement in PLACEMENTS]
        assert same[0] == pytest.approx(same[1])


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_the_method_follows_the_recursion(mu, placement):
    """One coordinate a chain: the mean of x² over 200,000 chains is E[x²] of the recursion, within 4 SE."""
    count, beta, sigma, lr = 200_000, 0.9, 0.7, 0.5
    method = Gani(knobs(sigma=sigma, beta=beta, placement=placement))
    _, views, _ = tiny.train(chains(count), [method], 7, tiny.sgd(lr, mu))
    moments = np.array([1.0, 0.0, 0.0, 0.0])
    for step, view in enumerate(views, start=1):
        moments = recursion(lr, sigma, mu, placement, beta, 1 - beta**step) @ moments
        squares = (view.theta + view.applied_update) ** 2
        assert float(squares.mean()) == pytest.approx(moments[0], abs=4 * float(squares.std()) / math.sqrt(count))


@pytest.mark.parametrize("factor, sign", [(0.85, -1), (1.15, 1)])
def test_typical_paths_grow_above_the_bound_and_shrink_below(factor, sign):
    count, steps, sigma = 1000, 1500, 1.0
    lr = factor * stability_bound(1.0, sigma)
    method = Gani(knobs(sigma=sigma, beta=0.99))
    state, _, stack = tiny.train(chains(count), [method], steps, tiny.sgd(lr))
    size = 0.5 * torch.log(state.theta**2 + stack.methods["gani"].state["square"])
    assert sign * float(size.mean()) > 4 * float(size.std()) / math.sqrt(count)


class Valley:
    """½(1 + x²)y² and 98 idle coordinates: curvature 1 + x² along y, a valley that gets wider towards x = 0."""

    name, title, modalities, micro = "valley", "Valley", ("x", "y"), 0

    def __init__(self) -> None:
        self.layout = Layout({"x": (99,), "y": (1,)}, {"x": "x", "y": "y"})

    def init(self):
        theta = torch.zeros(100, dtype=F64)
        theta[0], theta[99] = 3.0, 0.1
        return theta

    def batch(self, step):
        return Batch({}, torch.zeros(1))

    def encode(self, theta, batch):
        return {name: value[None] for name, value in self.layout.unpack(theta).items()}

    def objectives(self, theta, features, batch):
        return {"loss": 0.5 * (1 + features["x"][0, 0] ** 2) * features["y"][0, 0] ** 2}, {}

    def gradient(self, theta):
        x, y = theta[0].item(), theta[99].item()
        grad = torch.zeros_like(theta)
        grad[0], grad[99] = x * y**2, (1 + x**2) * y
        return grad


def in_the_valley(method, sigma: float, clip: float = 0.2):
    return method(knobs(method, sigma=sigma, beta=0.99, clip=clip, clip_to="absolute"))


def curvature_after(method, seed: int, steps: int = 20_000, lr: float = 0.1) -> float:
    """The curvature 1 + x² where a method ends; the gradient is written out, so that twelve seeds take seconds."""
    problem, rate, rng = Valley(), Rate(lr, 0.0, False, "sgd"), Rng(seed)
    theta, batch = problem.init(), problem.batch(0)
    method.state = maths.fresh(theta)
    for step in range(steps):
        view = View(step, theta, batch, problem, rng, rate, grad=problem.gradient(theta))
        theta = theta + method.update(-lr * view.grad, view)
        method.state = method.commit(view)
    return 1 + float(theta[0]) ** 2


def test_the_written_gradient_is_the_engines():
    state, _, _ = tiny.train(Valley(), [in_the_valley(Gani, 1.5)], 200, tiny.sgd(0.1))
    same = curvature_after(in_the_valley(Gani, 1.5), seed=7, steps=200)
    assert 1 + float(state.theta[0]) ** 2 == pytest.approx(same, rel=1e-9)


SEEDS = range(4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_more_noise_along_the_gradient_the_flatter_the_end():
    """The table of our trials, of which every seed is in order: descent ends at 9.98, where it began."""
    ends = {
        (kind, sigma): [curvature_after(in_the_valley(kind, sigma), seed) for seed in SEEDS]
        for kind, sigma in ((Gani, 2.0), (Gani, 1.5), (Gani, 1.0), (IsotropicNoise, 2.0))
    }
    descent = curvature_after(in_the_valley(Gani, 0.0), 0)
    assert descent == pytest.approx(9.98, abs=0.01)
    for (_, sigma), found in list(ends.items())[:3]:
        assert max(found) < stability_bound(0.1, sigma)
    assert max(ends[Gani, 2.0]) < min(ends[Gani, 1.5]) and max(ends[Gani, 2.0]) < 2.0
    assert max(ends[Gani, 1.5]) < min(ends[Gani, 1.0]) and max(ends[Gani, 1.5]) < 3.2
    assert max(ends[Gani, 1.0]) < min(ends[IsotropicNoise, 2.0])
    assert all(abs(value - descent) < 1.0 for value in ends[IsotropicNoise, 2.0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_without_the_clip_some_paths_diverge():
    ends = [curvature_after(in_the_valley(Gani, 2.0, clip=0.0), seed) for seed in range(12)]
    assert 0 < sum(not math.isfinite(value) for value in ends) < len(ends)
