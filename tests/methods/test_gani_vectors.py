"""Noise of recent vectors: the difference of halves, the ring, the covariance, the matched control, and the bound.

Statistical claims name their standard error (SE); draws are keyed, so a test that passes once passes always.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from modalscape.engine.core.method import Stack
from modalscape.engine.core.optimizer import Settings
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.stability import stability_bound
from modalscape.engine.core.step import gradient
from modalscape.engine.maths.gradients import noise_injection as maths, noise_ring
from modalscape.engine.methods.gani import Gani
from modalscape.engine.methods.isotropic_noise import IsotropicNoise
from tests import tiny
from tests.methods.noise import knobs

F64 = torch.float64
NOISES = (Gani, IsotropicNoise)


def halving(mode="halves", **values):
    return Gani(knobs(mode=mode, vectors=4, **values))


def looked_at(problem, batch=None, stack=None):
    """The view of a gradient at the first theta."""
    _, optimizer, stack, rng = tiny.started(problem, [halving()] if stack is None else stack)
    view = tiny.View(0, problem.init(), batch or problem.batch(0), problem, rng, optimizer.rate(0))
    return gradient(problem.init(), view, stack)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("rows", [15, 16])
def test_the_difference_of_halves_is_what_the_view_says(rows, heads):
    problem = tiny.problem(batch=rows, heads=heads)
    view, batch = looked_at(problem), problem.batch(0)
    theta, n = problem.init().requires_grad_(), rows // 2
    half, whole = (torch.autograd.grad(problem.loss(theta, b), theta)[0] for b in (batch.rows(slice(0, n)), batch))
    torch.testing.assert_close(view.halves, (half - whole) * math.sqrt(n / (rows - n)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro", [4, 5, 7])
def test_of_a_batch_in_pieces_the_first_half_of_the_pieces_is_taken_without_another_pass(micro, monkeypatch):
    problem = tiny.problem(batch=16, micro=micro)
    calls, plain = [], problem.encode
    monkeypatch.setattr(problem, "encode", lambda theta, batch: calls.append(len(batch)) or plain(theta, batch))
    view = looked_at(problem)
    pieces = problem.batch(0).chunks(micro)
    assert calls == [len(piece) for piece in pieces]
    n = sum(map(len, pieces[: len(pieces) // 2]))
    theta, batch = problem.init().requires_grad_(), problem.batch(0)
    half, whole = (torch.autograd.grad(problem.loss(theta, b), theta)[0] for b in (batch.rows(slice(0, n)), batch))
    torch.testing.assert_close(view.halves, (half - whole) * math.sqrt(n / (16 - n)), rtol=1e-9, atol=1e-12)


def test_the_covariance_over_all_halves_is_that_of_the_batch_gradient():
    """Exact: the mean of d·dᵀ over every choice of n of B rows is C/B, C the rows' unbiased covariance."""
    problem = tiny.problem(batch=7)
    batch, theta = problem.batch(0), problem.init().requires_grad_()
    rows = torch.stack([torch.autograd.grad(problem.loss(theta, batch.rows([i])), theta)[0] for i in range(7)])
    found = torch.zeros(theta.numel(), theta.numel(), dtype=F64)
    choices = list(itertools.combinations(range(7), 3))
    for chosen in choices:
        order = [*chosen, *(i for i in range(7) if i not in chosen)]
        d = looked_at(problem, batch.rows(order)).halves
        found += torch.outer(d, d) / len(choices)
    torch.testing.assert_close(found, torch.cov(rows.T) / 7, rtol=1e-9, atol=1e-14)


def test_asking_for_halves_leaves_the_gradient_as_it_is_to_the_last_bit():
    for micro in (0, 5):
        asked, plain = (looked_at(tiny.problem(micro=micro), stack=stack) for stack in (None, []))
        assert torch.equal(asked.grad, plain.grad) and plain.halves is None
    assert torch.equal(looked_at(tiny.problem(batch=1)).halves, torch.zeros_like(tiny.problem().init()))


def test_gradients_that_methods_change_are_halved_after_the_change():
    class Twice(tiny.Method):
        name, title = "twice", "Twice"

        def gradients(self, grads, view):
            return 2.0 * grads

    problem = tiny.problem(heads=True)
    plain, doubled = looked_at(problem), looked_at(problem, stack=[halving(), Twice()])
    torch.testing.assert_close(doubled.halves, 2 * plain.halves, rtol=1e-12, atol=1e-15)


def filled(count, size=4, width=6):
    memory, vectors = noise_ring.fresh(torch.zeros(width, dtype=F64), size), []
    for i in range(count):
        vectors.append(Rng(1).normal("d", i, torch.empty(width, dtype=F64)))
        memory = noise_ring.write(memory, vectors[-1])
    return memory, torch.stack(vectors[-size:])


@pytest.mark.parametrize("trace", [None, 2.5])
@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_the_covariance_of_the_noise_is_that_of_the_vectors(count, trace):
    """Exact: the noise is linear in its normal weights, so its covariance is that of unit weights."""
    memory, vectors = filled(count)
    total = None if trace is None else torch.tensor(trace, dtype=F64)
    columns = torch.stack([noise_ring.mixed(memory, weights, total) for weights in torch.eye(4, dtype=F64)])
    wanted = vectors.T @ vectors / len(vectors)
    wanted = wanted if trace is None else wanted * trace / wanted.trace()
    torch.testing.assert_close(columns.T @ columns, wanted)
    torch.testing.assert_close(noise_ring.power(memory, total), wanted.diagonal())
    u = torch.nn.functional.normalize(torch.arange(6, dtype=F64), dim=0)
    torch.testing.assert_close(noise_ring.along(memory, u, total), u @ wanted @ u)


def test_a_vector_that_is_not_finite_is_left_out():
    memory, _ = filled(6)
    before = memory["ring"].clone()
    after = noise_ring.write(memory, torch.full((6,), math.nan, dtype=F64))
    assert torch.equal(after["ring"], before) and int(after["written"]) == 6
    assert torch.isfinite(after["squares_of"]).all()


@pytest.mark.parametrize("mode", noise_ring.MODES)
def test_the_noise_of_a_step_has_the_stated_covariance(mode):
    """The whole way through the method: drawn 4,000 times at one state; SE of a covariance √((1 + δ)/n)·s·s'."""
    sigma, lr, n = 0.7, 0.1, 4000
    problem = tiny.Quadratic(torch.ones(4, dtype=F64), torch.ones(4, dtype=F64), batch=8)
    memory = maths.begun(knobs(mode=mode, vectors=4), problem.start) | filled(7, 4, 4)[0]
    memory |= {"seen": torch.tensor(50), "total": torch.tensor(0.9, dtype=F64), "squares": torch.tensor(0.01)}
    memory |= {"square": torch.tensor([1.0, 0.5, 2.0, 0.1], dtype=F64)}
    method = Gani(knobs(mode=mode, vectors=4, sigma=sigma), memory)
    view = tiny.View(0, problem.start, problem.batch(0), problem, Rng(0), tiny.Optimizer(tiny.sgd(lr), 100).rate(0))
    view = view.having(grad=torch.ones(4, dtype=F64), halves=torch.zeros(4, dtype=F64), descent=torch.zeros(4))
    still = torch.zeros(4, dtype=F64)
    noise = torch.stack([method.update(still, view.having(rng=Rng(seed))) for seed in range(n)])
    vectors = memory["ring"]
    wanted = vectors.T @ vectors
    after = maths.absorbed(memory, view.grad, method.params.beta)
    trace = float(maths.curvature(after, "central").sum())
    wanted *= (1 / 4 if mode == "halves" else trace / float(vectors.square().sum())) * (sigma * lr) ** 2
    found = noise.T @ noise / n
    spread = wanted.diagonal().sqrt()
    error = torch.sqrt((torch.outer(spread, spread) ** 2 + wanted**2) / n)
    assert torch.all((found - wanted).abs() < 4 * error) and torch.all(noise.mean(0).abs() < 4 * spread / math.sqrt(n))
    if mode == "history":
        assert float(wanted.trace()) == pytest.approx((sigma * lr) ** 2 * trace)


def test_history_keeps_the_gradients_minus_their_moving_average():
    problem = tiny.problem()
    _, views, stack = tiny.train(problem, [halving("history", beta=0.9)], 7)
    mean, total, wanted = torch.zeros_like(views[0].grad), 0.0, []
    for view in views:
        mean, total = 0.9 * mean + 0.1 * view.grad, 0.9 * total + 0.1
        wanted.append(view.grad - mean / total)
    ring = stack.methods["gani"].state["ring"]
    torch.testing.assert_close(ring, torch.stack([wanted[i] for i in (4, 5, 6, 3)]), rtol=1e-9, atol=1e-12)


def test_halves_are_kept_in_the_order_of_the_steps():
    _, views, stack = tiny.train(tiny.problem(), [halving()], 6)
    ring = stack.methods["gani"].state["ring"]
    assert torch.equal(ring, torch.stack([views[i].halves for i in (4, 5, 2, 3)]))


@pytest.mark.parametrize("sizing", ["virtual", "relative", "fixed"])
@pytest.mark.parametrize("mode", ["halves", "history", "central"])
def test_the_matched_control_has_the_norm_of_ganis_noise_at_every_step(mode, sizing):
    """In the control's own run, what GANI would have added at each step from the same memory."""
    values = {"mode": mode, "sizing": sizing, "vectors": 4, "warmup": 2, "clip": 0.003, "virtual_batch": 4, "rho": 1.0}
    control = IsotropicNoise(IsotropicNoise.Params(level="matched", **values))
    shaped = Gani(Gani.Params(**values))
    problem, settings = tiny.problem(), tiny.sgd(0.1, 0.9)
    state, optimizer, stack, rng = tiny.started(problem, [control], settings)
    clipped = directions = 0
    for step in range(25):
        before = copy.deepcopy(control.state)
        state, view = tiny.train_step(state, problem, optimizer, stack, rng)
        shaped.state = before
        still = torch.zeros_like(state.theta)
        ours, theirs = view.applied_update - view.descent, shaped.update(still, view)
        torch.testing.assert_close(ours.norm(), theirs.norm(), rtol=1e-10, atol=1e-16)
        assert (float(ours.norm()) > 0) == (step >= 2)
        directions += bool(step >= 2 and torch.cosine_similarity(ours, theirs, dim=0).abs() < 0.9)
        clipped = int(control.state["clipped"])
    assert directions == 23 and (clipped > 0 or sizing == "virtual")


def recursion(lr, h, batch, sigma, delay):
    """The exact growth in one step of E θ² for losses ½hᵢθ² of many rows, batches with replacement, noise of halves.

    Batches add lr²·Var(h)/B·E θ², and noise of the vectors of `delay` steps lr²σ²·Var(h)/B times their mean E θ².
    """
    spread = float(np.var(h)) / batch
    still = (1 - lr * float(np.mean(h))) ** 2 + lr**2 * spread
    matrix = np.eye(delay + 1, k=-1)
    matrix[0] = [still, *[lr**2 * sigma**2 * spread / delay] * delay]
    return max(abs(np.linalg.eigvals(matrix)))


ROWS = np.array([0.2, 0.5, 1.0, 2.5, 5.8])
"""Curvature of each row's loss: mean 2, variance 4.236."""


@pytest.mark.parametrize("small", [1, 2, 4])
@pytest.mark.parametrize("delay", [1, 4, 16])
def test_with_a_virtual_batch_the_stability_bound_is_that_of_small_batches(small, delay):
    """σ² = B/b - 1 gives 2/(lr(1 + q)) with q = Var(h)/(b·mean(h)²), whatever the number of vectors."""
    batch, mean = 8, float(ROWS.mean())
    ratio = float(ROWS.var()) / mean**2
    bound = stability_bound(1.0, math.sqrt(ratio / small))
    for factor, stable in ((0.995, True), (1.005, False)):
        lr = bound * factor / mean
        assert (recursion(lr, ROWS, batch, math.sqrt(batch / small - 1), delay) < 1) == stable


def test_the_bound_is_where_a_simulation_of_the_noise_ceases_to_shrink():
    """Real rings and draws of halves, 20,000 chains; the slope of log E θ² over steps changes its sign at the bound."""
    batch, small, chains, steps = 8, 2, 20_000, 60
    mean, q = float(ROWS.mean()), float(ROWS.var() / ROWS.mean() ** 2) / small
    sigma, curvature = math.sqrt(batch / small - 1), torch.tensor(ROWS)
    bound = stability_bound(1.0, math.sqrt(q)) / mean
    growth = {}
    for factor in (0.9, 1.1):
        lr, draw = bound * factor, torch.Generator().manual_seed(3)
        theta, memory = torch.ones(chains, dtype=F64), [torch.zeros(chains, dtype=F64)] * 4
        moments = []
        for step in range(steps):
            rows = curvature[torch.randint(len(ROWS), (batch, chains), generator=draw)]
            whole, half = rows.mean(0) * theta, rows[: batch // 2].mean(0) * theta
            weights = torch.randn(4, chains, generator=draw, dtype=F64)
            noise = sum(w * d for w, d in zip(weights, memory, strict=True)) / math.sqrt(max(min(step, 4), 1))
            theta = theta - lr * whole + lr * sigma * noise
            memory = [*memory[1:], half - whole]
            moments.append(float(theta.square().mean()))
        growth[factor] = np.polyfit(range(20, steps), np.log(moments[20:]), 1)[0]
    assert growth[0.9] < 0 < growth[1.1]


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_noise_in_units_of_the_update_has_the_ratio_to_it_that_it_has_to_the_gradient(rule):
    problem, settings = tiny.problem(), Settings(name=rule, lr=0.05, momentum=0.9)
    method = halving(sizing="relative", sigma=0.5, units="update")
    _, views, _ = tiny.train(problem, [method], 8, settings)
    noise, view = views[-1].applied_update - views[-1].descent, views[-1]
    assert float(noise.norm() / view.descent.norm()) == pytest.approx(0.5)
    clipped = halving(sizing="relative", sigma=0.5, units="update", clip=1e-4)
    _, views, stack = tiny.train(problem, [clipped], 8, settings)
    noise = views[-1].applied_update - views[-1].descent
    assert float(noise.norm()) == pytest.approx(1e-4 * float(views[-1].theta.norm()))
    assert int(stack.methods["gani"].state["clipped"]) == 7


@pytest.mark.parametrize("method", NOISES)
def test_a_state_of_an_older_version_goes_on_to_the_last_bit(method):
    """It held counts and weights as plain numbers."""
    params = method.Params(**vars(knobs(method, mode="central", warmup=3)))
    problem = tiny.problem()
    whole, _, _ = tiny.train(problem, [method(params)], 16)
    half, _, stack = tiny.train(problem, [method(params)], 9)
    old = dict(stack.methods[method.name].state)
    old |= {key: old[key].item() for key in ("seen", "total", "squares", "nonfinite")}
    _, optimizer, _, rng = tiny.started(problem, [])
    for _ in range(7):
        half, _ = tiny.train_step(half, problem, optimizer, Stack([again := method(params, old)]), rng)
        old = again.state
    assert torch.equal(half.theta, whole.theta)


@pytest.mark.parametrize("changes", [{"mode": "history"}, {"mode": "central"}, {"vectors": 7}, {"sigma": 0.0}], ids=str)
def test_knobs_that_change_the_ring_may_be_tuned_while_it_trains(changes):
    problem = tiny.problem()
    state, _, stack = tiny.train(problem, [halving()], 6)
    _, optimizer, _, rng = tiny.started(problem, [])
    method = stack.methods["gani"]
    for key, value in changes.items():
        method = method.tuned(key, value)
    stack = Stack([method])
    for _ in range(10):
        state, view = tiny.train_step(state, problem, optimizer, stack, rng)
    assert torch.isfinite(state.theta).all()
    ring = stack.methods["gani"].state.get("ring")
    assert (ring is None) == (changes.get("mode") == "central")
    assert ring is None or len(ring) == method.params.vectors
    assert torch.equal(view.applied_update, view.descent) == (method.params.sigma == 0.0)


@pytest.mark.parametrize("mode", noise_ring.MODES)
def test_gains_and_left_out_tensors_hold_for_vectors_too(mode):
    """At one state, so that nothing but the gains differs."""
    problem = tiny.problem()
    _, views, stack = tiny.train(problem, [halving(mode)], 6)
    state, view, layout = stack.methods["gani"].state, views[-1], problem.layout
    still = torch.zeros_like(view.theta)
    plain, loud, bare = (
        Gani(knobs(mode=mode, vectors=4, **values), state).update(still, view)
        for values in ({}, {"kappa": "text=3"}, {"exclude": "vectors"})
    )
    for part, where in layout.slices.items():
        torch.testing.assert_close(loud[where], plain[where] * (3 if part == "text" else 1))
    for name, block in layout.unpack(bare).items():
        wanted = layout.unpack(plain)[name]
        assert torch.equal(block, torch.zeros_like(block) if block.dim() < 2 else wanted), name


def test_a_view_without_halves_is_refused():
    problem = tiny.problem()
    _, views, stack = tiny.train(problem, [halving()], 3)
    with pytest.raises(ValueError, match="no difference of halves"):
        stack.methods["gani"].commit(views[-1].having(halves=None))
