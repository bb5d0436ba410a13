"""The hyper-gradients of ModalImmune are those of its loss, move only what they are certain of, and resume exactly."""

import dataclasses
from functools import partial

import pytest
import torch

from engine.maths import collapse, immunity
from engine.maths.hypergrad import neumann
from engine.maths.krylov import Products
from engine.maths.omission import Omission
from engine.methods.modalimmune import ModalImmune
from engine.step import train_step
from tests import tiny
from tests.methods.immune import NAMES, NOW, knobs, one_step

TUNED = {"meta_every": 3, "terms": 40, "damping": 0.3, "adaptive": False, "floor": 0.0}


def trained_loss(problem, view, method):
    """L_train(theta, (log λ, log κ)) written down afresh, its strength held as the method holds it."""
    name, p = NAMES[method.state["arm"]], method.params
    z = problem.encode(view.theta, view.batch)[name]
    noise, scale = view.rng.normal("modalimmune", view.step, z), collapse.rms(z)

    def loss(theta, logs):
        features = problem.encode(theta, view.batch)
        full, _ = problem.objectives(theta, features, view.batch)
        blind, _ = problem.objectives(theta, features | {name: torch.zeros_like(z)}, view.batch)
        weight = p.collapse * logs[0].exp()
        pull = (features[name] - p.target * scale * noise).square().mean() / scale**2
        ratio = collapse.spectral_ratio(features[name])
        others = sum(value for row, value in full.items() if row != "fused")
        main = (1 - p.share) * full["fused"] + p.share * blind["fused"] + others
        return main + weight * (pull + p.ratio * logs[1].exp() * ratio)

    return loss


@pytest.mark.parametrize("matrix", ["ggn", "hessian"])
@pytest.mark.parametrize("reading", ["ift", "literal"])
def test_the_closed_form_is_the_generic_mixed_derivative(matrix, reading):
    view, method, problem = one_step(knobs(matrix=matrix, reading=reading, **TUNED))
    method.params = knobs(matrix=matrix, reading=reading, **TUNED)
    found = method._hypergradient(NAMES[method.state["arm"]], view)
    loss = trained_loss(problem, view, method)
    theta, logs = view.theta.clone().requires_grad_(), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(theta, logs), theta, create_graph=True)
    (generic,) = torch.autograd.grad(grad @ found.series.solution, logs)
    factor = 1.0 if reading == "ift" else found.alpha
    torch.testing.assert_close(found.values, -factor * generic, atol=1e-13, rtol=1e-9)


def test_what_is_not_attacked_has_no_part_in_the_mixed_derivative():
    view, method, problem = one_step(knobs(**TUNED))
    method.params, seen = knobs(**TUNED), []
    name = NAMES[method.state["arm"]]
    terms = partial(method._collapse, name=name, view=view, twice=False)
    method._omission(view).hypergradient(
        view.theta,
        name,
        view.batch,
        immunity.judges(method.params, 16, view),
        terms,
        lambda mixed: seen.append(mixed) or mixed,
        generator=torch.Generator(),
        p=method.params,
    )
    inside = problem.layout.mask(name).bool()
    assert seen[0][:, inside].any(1).all()
    assert not seen[0][:, ~inside].any()


def test_the_outer_loss_is_the_mean_over_all_present_and_each_left_out():
    problem = tiny.problem(heads=True)
    theta, batch = problem.init(), problem.batch(3)
    features, cases = problem.encode(theta, batch), []
    for gone in ("", *NAMES):
        left = {name: torch.zeros_like(z) if name == gone else z for name, z in features.items()}
        logits = problem.objectives(theta, left, batch)[1]["fused"]
        cases.append(torch.nn.functional.cross_entropy(logits, batch.y).item())
    assert Omission(problem, 0.5, neutral=False).held_out(theta, batch).item() == pytest.approx(sum(cases) / 3)


def test_the_hessian_series_solves_the_system_of_the_trained_loss():
    view, method, problem = one_step(knobs(**TUNED), tiny.problem(batch=96))
    method.params = knobs(matrix="hessian", **(TUNED | {"terms": 0}))
    found = method._hypergradient(NAMES[method.state["arm"]], view)
    loss = trained_loss(problem, view, method)
    product = Products(lambda theta: loss(theta, torch.zeros(2, dtype=torch.float64)), view.theta)
    outer = Omission(problem, 0.5, neutral=False)
    theta = view.theta.clone().requires_grad_()
    (g,) = torch.autograd.grad(outer.held_out(theta, immunity.judges(method.params, 96, view)), theta)
    again = neumann(lambda v: product(v) + found.damping * v, g, found.alpha, 0)
    torch.testing.assert_close(found.series.residual, again.residual, atol=1e-10, rtol=1e-8)
    assert found.margin > 0


def test_the_certificate_holds_for_the_damped_gauss_newton_matrix():
    view, method, problem = one_step(knobs(**TUNED))
    name = NAMES[method.state["arm"]]
    method.params = knobs(**(TUNED | {"terms": 4}))
    short = method._hypergradient(name, view)
    method.params = knobs(**(TUNED | {"terms": 500}))
    exact = method._hypergradient(name, view)
    assert exact.certificate < 1e-6 * short.certificate
    assert ((short.values - exact.values).abs() <= short.errors + exact.errors).all()
    assert (short.series.solution - exact.series.solution).norm() <= short.certificate + exact.certificate


def test_certified_hyper_gradients_move_the_weights_and_the_rest_is_counted():
    _, _, stack = tiny.train(tiny.problem(), [ModalImmune(knobs(**TUNED))], 40)
    state = stack.methods["modalimmune"].state
    asked = 40 // 3
    assert int(state["accepted"].sum()) + state["counts"]["skipped"] == 2 * asked
    assert state["accepted"].sum() > 0
    assert torch.equal(state["offset"] != 0, state["accepted"] > 0)
    assert (state["offset"].abs() <= 0.2 * asked).all()
    uncertain = knobs(**(TUNED | {"terms": 0, "damping": 1e-4}))
    _, _, stack = tiny.train(tiny.problem(), [ModalImmune(uncertain)], 40)
    state = stack.methods["modalimmune"].state
    assert state["counts"]["skipped"] == 2 * asked
    assert not state["offset"].any()


def test_tuned_weights_stay_in_their_range():
    found = immunity.fresh({name: torch.randn(4, 3) for name in NAMES}, torch.zeros(5), torch.ones(2).bool())
    assert immunity.weights(knobs(), found) == pytest.approx((0.02, 0.1))
    view, method, _ = one_step(knobs(**TUNED))
    gradient = method._hypergradient(NAMES[method.state["arm"]], view)
    for sign in (1.0, -1.0):
        pressed = dataclasses.replace(gradient, values=sign * torch.ones(2), errors=torch.zeros(2))
        state = found
        for _ in range(30):
            state = state | immunity.tuned(knobs(meta_lr=0.5), state, pressed)
        wanted = (1e-3, 1e-3) if sign > 0 else (0.5, 1.0)
        assert immunity.weights(knobs(), state) == pytest.approx(wanted)


@pytest.mark.parametrize("outer", ["val", "train"])
def test_resume_is_exact_with_hyper_gradients_and_gate(outer, tmp_path):
    params = ModalImmune.Params(**NOW, meta_every=4, gate_every=3, tau=10.0, outer=outer)
    case = tiny.problem(heads=True)
    through, _, whole = tiny.train(case, [ModalImmune(params)], 20)
    half, _, stack = tiny.train(case, [ModalImmune(params)], 11)
    torch.save(stack.methods["modalimmune"].state, tmp_path / "state.pt")
    again = ModalImmune(params, torch.load(tmp_path / "state.pt", weights_only=True))
    _, optimizer, rest, rng = tiny.started(case, [])
    rest = rest.having(again)
    for _ in range(9):
        half, _ = train_step(half, case, optimizer, rest, rng)
    assert torch.equal(half.theta, through.theta)
    assert torch.equal(again.state["offset"], whole.methods["modalimmune"].state["offset"])
    assert again.state["meta"]
