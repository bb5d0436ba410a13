"""GANI does what its formulas say, and is off where it should be; where it is stable has a file of its own.

The eigenvalue routine has tests of its own (tests/maths); several ranks of one run do not exist here.
Statistical claims name their standard error (SE); draws are keyed, so a test that passes once passes always.
"""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modalscape.engine.core.optimizer import Optimizer, Rate, Settings
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import View
from modalscape.engine.maths.gradients import noise_injection as maths
from modalscape.engine.maths.gradients.noise_dose import strength
from modalscape.engine.methods.gani import Gani, expected_cosine
from modalscape.engine.methods.isotropic_noise import IsotropicNoise
from tests import tiny
from tests.methods.noise import knobs

MODES = ("second", "central", "first")
EVERY_MODE = ("halves", "history", *MODES)
SIZINGS = ("virtual", "fixed", "relative", "langevin")
PLACEMENTS = ("decoupled", "through_grad")
NOISES = (Gani, IsotropicNoise)
F64 = torch.float64


def shaken(count: int = 64, size: float = 0.3, scale: float = 1.0, batch: int = 1024):
    """A quadratic of unequal curvatures whose gradient has noise of unequal size."""
    spread = torch.linspace(0.1, 2.0, count, dtype=F64)
    slope = lambda step: scale * size * spread * Rng(5).normal("slope", step, spread)  # noqa: E731
    return tiny.Quadratic(scale * spread.flip(0), torch.ones(count, dtype=F64), slope, batch)


def at(grad: torch.Tensor, theta: torch.Tensor, lr: float) -> SimpleNamespace:
    """What a kick looks at."""
    return SimpleNamespace(grad=grad, theta=theta, rate=pace(lr))


def pace(lr: float, horizon: int = 1000) -> Rate:
    return Rate(lr, 0.0, False, "sgd", horizon)


def frozen(c: torch.Tensor, sigma: float, lr: float, method=Gani, theta=None, **values):
    """A method and a view in which the curvature stays c: v̂ = c and the gradient's square is c as well."""
    problem = tiny.Quadratic(torch.ones_like(c), torch.zeros_like(c) if theta is None else theta)
    memory = maths.fresh(c) | {"square": c, "total": 1.0, "squares": 0.01, "seen": 1000}
    view = View(0, problem.start, problem.batch(0), problem, Rng(11), pace(lr), grad=c.sqrt())
    return method(knobs(method, sigma=sigma, **values), memory), view


@pytest.mark.parametrize("sizing", SIZINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", NOISES)
def test_zero_dose_is_bit_identical_to_off(method, mode, sizing):
    settings = tiny.sgd(0.1, 0.9)
    for placement in PLACEMENTS:
        zero = method(method.Params(**method.neutral, mode=mode, sizing=sizing, warmup=0, placement=placement))
        off, on = (tiny.train(shaken(), methods, 12, settings)[0] for methods in ([], [zero]))
        assert torch.equal(on.theta, off.theta)
        loud = method(method.Params(mode=mode, sizing=sizing, warmup=0, placement=placement, virtual_batch=16))
        assert not torch.equal(tiny.train(shaken(), [loud], 12, settings)[0].theta, off.theta)


@pytest.mark.parametrize("virtual_batch", [1024, 4096])
def test_a_virtual_batch_no_smaller_than_the_batch_is_off(virtual_batch):
    off = tiny.train(shaken(), [], 12)[0]
    same = tiny.train(shaken(), [Gani(Gani.Params(virtual_batch=virtual_batch, warmup=0))], 12)[0]
    assert torch.equal(same.theta, off.theta)


def test_the_noise_has_mean_zero_and_the_stated_covariance():
    c, n, sigma, lr = torch.tensor([4.0, 1.0, 0.25, 0.0, 9.0], dtype=F64), 100_000, 1.5, 0.2
    method, view = frozen(c.repeat(n), sigma, lr, eps=1e-3)
    noise = method.update(torch.zeros_like(view.theta), view).view(n, len(c)).numpy()
    wanted = lr**2 * sigma**2 * (c + 1e-3).numpy()
    assert np.all(np.abs(noise.mean(0)) < 4 * np.sqrt(wanted / n))
    covariance = noise.T @ noise / n
    # SE of a sampled (co)variance: √(2/n)·s² on the diagonal, √(1/n)·s·s' off it
    error = np.sqrt(np.outer(wanted, wanted) * (1 + np.eye(len(c))) / n)
    assert np.all(np.abs(covariance - np.diag(wanted)) < 4 * error)


@pytest.mark.parametrize("sizing", ["fixed", "relative"])
def test_the_expected_update_is_the_noiseless_one(sizing):
    c, n, lr = torch.tensor([4.0, 1.0, 0.25], dtype=F64), 50_000, 0.2
    method, view = frozen(c.repeat(n), 1.0, lr, theta=torch.ones(3 * n, dtype=F64), sizing=sizing, clip=0.01)
    descent = torch.tensor([1.0, -2.0, 0.5], dtype=F64).repeat(n)
    moved = (method.update(descent, view) - descent).view(n, 3)
    assert int(method.commit(view)["clipped"]) == 1
    assert torch.all(moved.mean(0).abs() < 4 * moved.std(0) / math.sqrt(n))


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.99])
def test_a_constant_gradient_is_its_own_average_at_every_step(beta):
    grad = torch.tensor([2.0, -0.5, 0.0], dtype=F64)
    memory = maths.fresh(grad)
    for step in range(1, 60):
        memory = maths.absorbed(memory, grad, beta)
        torch.testing.assert_close(maths.curvature(memory, "second"), grad**2, rtol=1e-13, atol=0)
        torch.testing.assert_close(maths.curvature(memory, "first"), grad**2, rtol=1e-13, atol=0)
        if step > 1 and beta > 0:
            assert maths.curvature(memory, "central").max() < 1e-12


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_the_weights_follow_their_closed_forms(beta):
    memory = maths.fresh(torch.zeros(1, dtype=F64))
    for t in range(1, 40):
        memory = maths.absorbed(memory, torch.ones(1, dtype=F64), beta)
        w = (1 - beta) * (1 + beta**t) / ((1 + beta) * (1 - beta**t))
        assert memory["total"] == pytest.approx(1 - beta**t)
        assert memory["squares"] / memory["total"] ** 2 == pytest.approx(w)


@pytest.mark.parametrize("steps", [2, 3, 10, 400])
def test_central_curvature_is_an_unbiased_variance(steps):
    n, variance = 40_000, 2.5
    memory = maths.fresh(torch.zeros(n, dtype=F64))
    for step in range(steps):
        grad = 3.0 + math.sqrt(variance) * Rng(2).normal("grad", step, memory["mean"])
        memory = maths.absorbed(memory, grad, 0.95)
    c = maths.curvature(memory, "central")
    assert float(c.mean()) == pytest.approx(variance, abs=4 * float(c.std()) / math.sqrt(n))


def test_the_estimate_stays_unbiased_when_beta_is_tuned():
    n = 40_000
    memory = maths.fresh(torch.zeros(n, dtype=F64))
    for step in range(60):
        grad = Rng(2).normal("grad", step, memory["mean"])
        memory = maths.absorbed(memory, grad, 0.5 if step < 30 else 0.97)
    c = maths.curvature(memory, "central")
    assert float(c.mean()) == pytest.approx(1.0, abs=4 * float(c.std()) / math.sqrt(n))


def test_central_makes_no_noise_before_the_second_gradient():
    off = tiny.train(shaken(), [], 1)[0]
    assert torch.equal(tiny.train(shaken(), [Gani(Gani.Params(warmup=0))], 1)[0].theta, off.theta)


def test_a_virtual_batch_has_the_variance_of_a_small_one():
    """Linear regression: variance over large batches plus the noise's equals that over batches of 64 rows."""
    draw, big, small, rows = torch.Generator().manual_seed(0), 1024, 64, 4096
    x = torch.randn(rows, 6, generator=draw, dtype=F64) * torch.linspace(0.3, 2, 6, dtype=F64)
    y = x.sum(1) + torch.randn(rows, generator=draw, dtype=F64)
    residual = (x @ torch.linspace(-1, 1, 6, dtype=F64) - y)[:, None] * x

    def grads(count, size):
        return torch.stack([residual[torch.randint(rows, (size,), generator=draw)].mean(0) for _ in range(count)])

    large, memory, seen = grads(5000, big), maths.fresh(residual[0]), []
    for grad in large:
        memory = maths.absorbed(memory, grad, 0.99)
        seen.append(maths.curvature(memory, "central"))
    sigma = strength(Gani.Params(virtual_batch=small, rho=1.0), 1000, 0, big, pace(0.1))
    total = large.var(0) + sigma**2 * torch.stack(seen[200:]).mean(0)
    # each side has a relative SE of about √(2/5000) = 2 %
    torch.testing.assert_close(total, grads(5000, small).var(0), rtol=0.1, atol=0)


def test_one_step_escape_is_half_the_trace_of_curvature_times_noise():
    h, c, n, sigma, lr = torch.tensor([5.0, 1.0, 0.1]), torch.tensor([2.0, 0.5, 3.0]), 60_000, 1.2, 0.3
    h, c = h.double(), c.double()
    method, view = frozen(c.repeat(n), sigma, lr)
    theta = method.update(torch.zeros_like(view.theta), view).view(n, 3)
    rise = 0.5 * (h * theta**2).sum(1)
    wanted = 0.5 * lr**2 * sigma**2 * float((h * c).sum())
    assert float(rise.mean()) == pytest.approx(wanted, abs=4 * float(rise.std()) / math.sqrt(n))


def test_the_stationary_variance_is_the_closed_form():
    n, lr, sigma = 40_000, 0.3, 1.5
    h, c = torch.tensor([0.5, 2.0, 5.0], dtype=F64).repeat(n), torch.tensor([1.0, 0.3, 2.0], dtype=F64).repeat(n)
    theta = torch.zeros_like(h)
    for step in range(60):
        xi = Rng(4).normal("xi", step, theta)
        noise, _ = maths.kick(knobs(), sigma, c.sqrt() * xi, at(h * theta, theta, lr))
        theta = theta - lr * h * theta + lr * noise
    wanted = lr * sigma**2 * c / (h * (2 - lr * h))
    torch.testing.assert_close(theta.view(n, 3).var(0), wanted[:3], rtol=4 * math.sqrt(2 / n), atol=0)


@pytest.mark.parametrize("level", ["all", "tensor"])
def test_the_control_has_the_same_trace(level):
    c = torch.rand(1000, dtype=F64, generator=torch.Generator().manual_seed(1)) ** 8
    sizes = [300, 700] if level == "tensor" else None
    flat = maths.uniform(c, sizes)
    assert float(flat.sum()) == pytest.approx(float(c.sum()), rel=1e-12)
    assert len(flat.unique()) == (2 if level == "tensor" else 1)


@pytest.mark.parametrize("level", ["all", "tensor"])
def test_the_control_makes_as_much_noise_evenly(level):
    c, n = torch.cat([torch.full((20_000,), 0.01), torch.full((20_000,), 4.0)]).double(), 20_000
    noise = {}
    for method, extra in ((Gani, {}), (IsotropicNoise, {"level": level})):
        made, view = frozen(c, 1.0, 0.1, method, **extra)
        noise[method] = made.update(torch.zeros_like(c), view)
    power = {method: (value**2).sum() for method, value in noise.items()}
    torch.testing.assert_close(power[IsotropicNoise], power[Gani], rtol=5 * math.sqrt(2 / n), atol=0)
    halves = [float(half.std()) for half in noise[IsotropicNoise].split(n)]
    # the quadratic's two tensors are the two halves, so levelling within a tensor keeps them apart
    wanted = [0.1 * math.sqrt(2.005)] * 2 if level == "all" else [0.1 * 0.1, 0.1 * 2.0]
    assert halves == pytest.approx(wanted, rel=5 * math.sqrt(1 / (2 * n)))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_the_first_step_leans_off_the_gradient_by_the_known_angle(sigma):
    start = Rng(0).normal("start", 0, torch.empty(200_000, dtype=F64))
    problem = tiny.Quadratic(torch.ones_like(start), start)
    _, (view,), stack = tiny.train(problem, [Gani(knobs(sigma=sigma))], 1, tiny.sgd(0.1))
    records = {r.name: r for r in stack.methods["gani"].report(view)}
    assert records["gani/alignment"].value == pytest.approx(expected_cosine(sigma), rel=0.01)
    assert records["gani/alignment_expected"].value == expected_cosine(sigma)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw", "rmsprop"])
def test_the_optimisers_memory_is_free_of_noise(rule, placement):
    """The gradient does not depend on theta here, so both runs see the same sequence."""

    def problem():
        slope = lambda step: Rng(8).normal("slope", step, torch.empty(40, dtype=F64))  # noqa: E731
        return tiny.Quadratic(torch.zeros(40, dtype=F64), torch.ones(40, dtype=F64), slope)

    settings = Settings(name=rule, lr=0.05, momentum=0.9)
    off, _, _ = tiny.train(problem(), [], 15, settings)
    on, _, stack = tiny.train(problem(), [Gani(knobs(placement=placement))], 15, settings)
    assert not torch.equal(on.theta, off.theta)
    for key, value in off.moments["slots"].items():
        assert torch.equal(torch.as_tensor(on.moments["slots"][key]), torch.as_tensor(value)), key
    quiet = tiny.train(problem(), [Gani(knobs(sigma=0.0))], 15, settings)[2].methods["gani"].state
    assert torch.equal(stack.methods["gani"].state["square"], quiet["square"])


@pytest.mark.parametrize("nesterov", [False, True])
def test_noise_through_the_gradient_equals_adding_it_there(nesterov):
    problem, settings = shaken(), tiny.sgd(0.05, 0.8, nesterov=nesterov)
    method = Gani(knobs(placement="through_grad", sigma=0.5, beta=0.9))
    state, views, _ = tiny.train(problem, [method], 20, settings)
    optimizer = Optimizer(settings, 1000)
    theta, moments, memory = problem.init(), optimizer.init(), maths.fresh(problem.init())
    for step in range(20):
        grad = problem.h * theta + problem.batch(step).x["slope"][0]
        memory = maths.absorbed(memory, grad, 0.9)
        noise = 0.5 * maths.curvature(memory, "second").sqrt() * Rng(7).normal("gani", step, theta)
        update, moments = optimizer.update(grad + noise, moments, theta)
        theta = theta + update
    torch.testing.assert_close(state.theta, theta, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("method", NOISES)
def test_resume_is_exact(method, placement, tmp_path):
    params = method.Params(warmup=3, virtual_batch=16, placement=placement)
    problem, settings = shaken(), tiny.sgd(0.1, 0.9)
    through, _, whole = tiny.train(problem, [method(params)], 16, settings)
    half, _, stack = tiny.train(problem, [method(params)], 9, settings)
    torch.save(stack.methods[method.name].state, tmp_path / "state.pt")
    again = method(params, torch.load(tmp_path / "state.pt", weights_only=True))
    _, optimizer, _, rng = tiny.started(problem, [], settings)
    state = half
    for _ in range(7):
        state, _ = tiny.train_step(state, problem, optimizer, tiny.Stack([again]), rng)
    assert torch.equal(state.theta, through.theta)
    ended = whole.methods[method.name].state
    assert all(np.array_equal(np.asarray(again.state[key]), np.asarray(value)) for key, value in ended.items())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_scaling_the_loss_and_the_rate_against_each_other_changes_nothing(mode, placement):
    params = knobs(mode=mode, placement=placement, clip=0.02)
    paths = [
        tiny.train(shaken(scale=k), [Gani(params)], 20, tiny.sgd(0.1 / k, 0.9))[0].theta for k in (1.0, 4.0, 0.125)
    ]
    assert torch.equal(paths[0], paths[1])
    assert torch.equal(paths[0], paths[2])


@pytest.mark.parametrize("mode", MODES)
def test_a_coordinate_without_gradient_gets_no_noise(mode):
    problem = shaken()
    mask = torch.ones_like(problem.h)
    mask[10:20] = 0
    slope = problem.slope
    dead = tiny.Quadratic(problem.h * mask, problem.start, lambda step: slope(step) * mask, 1024)
    state, _, _ = tiny.train(dead, [Gani(knobs(mode=mode))], 15)
    assert torch.equal(state.theta[10:20], problem.start[10:20])
    assert (state.theta != problem.start).sum() == len(mask) - 10


def test_the_clip_caps_the_noise_and_is_counted():
    c = torch.ones(400, dtype=F64)
    for to, limit in (("absolute", 0.05), ("weights", 0.05 * 40.0)):
        method, view = frozen(c, 30.0, 1.0, theta=torch.full((400,), 2.0, dtype=F64), clip=0.05, clip_to=to)
        free, _ = frozen(c, 30.0, 1.0)
        noise, wild = (m.update(torch.zeros_like(c), view) for m in (method, free))
        assert float(noise.norm()) == pytest.approx(limit)
        torch.testing.assert_close(noise / noise.norm(), wild / wild.norm())
        assert int(method.commit(view)["clipped"]) == 1
        assert int(free.commit(view)["clipped"]) == 0


def test_relative_noise_has_the_asked_ratio_to_the_gradient():
    _, views, stack = tiny.train(shaken(), [Gani(knobs(mode="central", sizing="relative", sigma=0.7))], 12)
    noise = views[-1].applied_update + 0.1 * views[-1].grad
    assert float(noise.norm() / (0.1 * views[-1].grad.norm())) == pytest.approx(0.7)


def test_a_temperature_gives_the_step_of_langevin_dynamics():
    params = Gani.Params(sizing="langevin", sigma=0.5)
    assert 0.08 * strength(params, 1000, 0, 64, pace(0.08)) == pytest.approx(math.sqrt(2 * 0.08 * 0.25))


def test_noise_waits_for_the_warm_up_and_ends_before_the_run():
    params, run = Gani.Params(sizing="fixed", warmup=5, rest=0.2), pace(0.1, horizon=100)
    loud = [strength(params, step + 1, step, 64, run) for step in range(110)]
    assert loud[:5] == [0.0] * 5
    assert all(early > late > 0 for early, late in zip(loud[5:79], loud[6:80], strict=True))
    assert loud[40] == pytest.approx(0.5)
    assert loud[80:] == [0.0] * 30
    cut = dataclasses.replace(params, anneal="cut")
    assert [strength(cut, 50, step, 64, run) for step in (0, 79, 80)] == [1.0, 1.0, 0.0]
    for_ever = dataclasses.replace(params, anneal="none")
    assert strength(for_ever, 50, 10**6, 64, run) == 1.0


def test_a_gradient_that_is_not_finite_is_counted_and_left_out():
    memory = maths.absorbed(maths.fresh(torch.zeros(3)), torch.ones(3), 0.9)
    after = maths.absorbed(memory, torch.tensor([1.0, math.nan, 0.0]), 0.9)
    assert int(after["nonfinite"]) == 1 and int(after["seen"]) == 1
    assert all(torch.equal(after[key], memory[key]) for key in ("mean", "square", "total", "squares"))


def test_anisotropy_is_known_for_flat_and_for_single_power():
    flat, single = torch.ones(1000, dtype=F64), torch.zeros(1000, dtype=F64)
    single[3] = 2.0
    assert [float(x) for x in maths.anisotropy(flat)] == pytest.approx([1.0, 0.01])
    assert [float(x) for x in maths.anisotropy(single)] == pytest.approx([0.001, 1.0])


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_the_report_says_what_the_noise_was(rule):
    problem = shaken()
    method = Gani(knobs(mode="central", sizing="virtual", virtual_batch=64, rho=1.0, sigma=0.5))
    settings = Settings(name=rule, lr=0.1, momentum=0.0)
    _, views, stack = tiny.train(problem, [method], 30, settings)
    view, records = views[-1], {r.name: r for r in stack.methods["gani"].report(views[-1])}
    assert records["gani/sigma"].value == pytest.approx(0.5 * math.sqrt(15))
    assert ("gani/lambda_bound" in records) == (rule == "sgd")
    if rule == "sgd":
        assert records["gani/lambda_bound"].value == pytest.approx(20 / (1 + 0.25 * 15))
        assert records["gani/lambda_edge"].value == pytest.approx(20)
        noise = view.applied_update + 0.1 * view.grad
        for part, where in problem.layout.slices.items():
            ratio = float(noise[where].norm() / (0.1 * view.grad[where].norm()))
            assert records[f"gani/noise_to_gradient/{part}"].value == pytest.approx(ratio)
    cosine = torch.nn.functional.cosine_similarity(view.applied_update, -view.grad, dim=0)
    assert records["gani/alignment"].value == pytest.approx(float(cosine))
    assert records["gani/noise_share"].values.sum() == pytest.approx(1.0)
    assert 0 < records["gani/participation"].value < 1
    assert 0.01 < records["gani/top_share"].value < 1


def test_both_noises_have_the_same_knobs_but_one():
    gani, control = ({k["name"]: k["default"] for k in method.knobs()} for method in NOISES)
    assert control.pop("level") == "matched"
    assert gani == control
