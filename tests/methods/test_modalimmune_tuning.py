"""The hyper-gradients of ModalImmune are those of its loss, move only what they are certain of, and resume exactly."""

import dataclasses

import pytest
import torch

from modalscape.engine.core.step import train_step
from modalscape.engine.maths.curvature.hypergradient import certain, neumann
from modalscape.engine.maths.curvature.krylov import Products
from modalscape.engine.methods.modalimmune import collapse, curvature as looks, memory
from modalscape.engine.methods.modalimmune.method import ModalImmune
from modalscape.engine.methods.modalimmune.omission import Omission
from tests import tiny
from tests.methods.immune import FORMER, NAMES, NOW, built, knobs, one_step

FEATURES = {name: torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) for name in NAMES}
TUNED = {"meta_every": 3, "terms": 40, "damping": 0.3, "adaptive": False, "floor": 0.0}


def trained_loss(problem, view, method):
    """L_train(theta, (log λ, log κ, and the move of logit ω)) written down afresh, strengths held as there."""
    name, p = NAMES[method.state["arm"]], method.params
    z = problem.encode(view.theta, view.batch)[name]
    noise, scale = view.rng.normal("modalimmune", view.step, z), collapse.rms(z)

    def loss(theta, logs):
        features = problem.encode(theta, view.batch)
        full, _ = problem.objectives(theta, features, view.batch)
        blind, _ = problem.objectives(theta, features | {name: torch.zeros_like(z)}, view.batch)
        weight = p.collapse * logs[0].exp()
        ratio, here = collapse.spectral_ratio(features[name]), features[name] - features[name].mean(0)
        top = (here.square().sum() / (len(z) - 1) / ratio).detach()
        pull = (here - p.target * scale * noise).square().sum(1).mean() / top
        share = torch.sigmoid(torch.logit(torch.tensor(p.share, dtype=torch.float64)) + logs[2])
        others = sum(value for row, value in full.items() if row != "fused")
        main = (1 - share) * full["fused"] + share * blind["fused"] + others
        return main + weight * (pull + p.ratio * logs[1].exp() * ratio)

    return loss


def found_by(method, view):
    return looks.hypergradient(method.params, method.state, NAMES[method.state["arm"]], view)


@pytest.mark.parametrize("matrix", ["ggn", "hessian"])
@pytest.mark.parametrize("reading", ["ift", "literal"])
def test_the_closed_form_is_the_generic_mixed_derivative(matrix, reading):
    view, method, problem = one_step(knobs(matrix=matrix, reading=reading, **TUNED))
    method.params = knobs(matrix=matrix, reading=reading, **TUNED)
    found = found_by(method, view)
    loss = trained_loss(problem, view, method)
    theta, logs = view.theta.clone().requires_grad_(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(theta, logs), theta, create_graph=True)
    (generic,) = torch.autograd.grad(grad @ found.series.solution, logs)
    factor = 1.0 if reading == "ift" else found.alpha
    torch.testing.assert_close(found.values, -factor * generic, atol=1e-13, rtol=1e-9)


def test_what_is_not_attacked_has_no_part_in_the_mixed_derivative(monkeypatch):
    view, method, problem = one_step(knobs(**TUNED))
    method.params, seen = knobs(**TUNED), []
    name = NAMES[method.state["arm"]]

    def noted(p, state, where, mixed):
        seen.append(mixed)
        return mixed

    monkeypatch.setattr(memory, "softened", noted)
    found_by(method, view)
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
    found = found_by(method, view)
    loss = trained_loss(problem, view, method)
    product = Products(lambda theta: loss(theta, torch.zeros(3, dtype=torch.float64)), view.theta)
    outer = Omission(problem, 0.5, neutral=False)
    theta = view.theta.clone().requires_grad_()
    (g,) = torch.autograd.grad(outer.held_out(theta, memory.judges(method.params, 96, view)), theta)
    again = neumann(lambda v: product(v) + found.damping * v, g, found.alpha, 0)
    torch.testing.assert_close(found.series.residual, again.residual, atol=1e-10, rtol=1e-8)
    assert found.margin > 0


def test_the_certificate_holds_for_the_damped_gauss_newton_matrix():
    view, method, problem = one_step(knobs(**TUNED))
    method.params = knobs(**(TUNED | {"terms": 4}))
    short = found_by(method, view)
    method.params = knobs(**(TUNED | {"terms": 500}))
    exact = found_by(method, view)
    assert len(exact.values) == 3
    assert exact.certificate < 1e-6 * short.certificate
    assert ((short.values - exact.values).abs() <= short.errors + exact.errors).all()
    assert (short.series.solution - exact.series.solution).norm() <= short.certificate + exact.certificate


def test_certified_hyper_gradients_move_the_weights_and_the_rest_is_counted():
    _, _, stack = tiny.train(tiny.problem(), [ModalImmune(knobs(**TUNED))], 40)
    state = stack.methods["modalimmune"].state
    asked = 40 // 3
    assert int(state["accepted"].sum()) + state["counts"]["skipped"] == 3 * asked
    assert state["accepted"].sum() > 0
    assert torch.equal(state["offset"] != 0, state["accepted"] > 0)
    assert (state["offset"].abs() <= 0.2 * asked).all()
    uncertain = knobs(**(TUNED | {"terms": 0, "damping": 1e-4}))
    _, _, stack = tiny.train(tiny.problem(), [ModalImmune(uncertain)], 40)
    state = stack.methods["modalimmune"].state
    assert state["counts"]["skipped"] == 3 * asked
    assert not state["offset"].any()


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [({}, (1e-3, 0.1, 0.2), (0.5, 10.0, 0.7)), ({"share": 0.8}, (1e-3, 0.1, 0.2), (0.5, 10.0, 0.8)),
     (FORMER, (1e-3, 1e-3, 0.5), (0.5, 1.0, 0.5))],
)  # fmt: skip
def test_tuned_weights_stay_in_their_range(values, least, most):
    found, params = memory.fresh(FEATURES, torch.zeros(5), torch.ones(2).bool()), knobs(**values)
    assert memory.weights(params, found) == (params.collapse, params.ratio)
    assert memory.share(params, found) == params.share
    view, method, _ = one_step(knobs(**TUNED))
    gradient = found_by(method, view)
    params = dataclasses.replace(params, meta_lr=0.5)
    for sign, wanted in ((1.0, least), (-1.0, most)):
        count = 3 if memory.by_share(params) else 2
        pressed = dataclasses.replace(gradient, values=sign * torch.ones(count), errors=torch.zeros(count))
        state = found
        for _ in range(30):
            state = state | memory.tuned(params, state, pressed)
        assert (*memory.weights(params, state), memory.share(params, state)) == pytest.approx(wanted)


def test_a_state_of_an_older_version_goes_on_with_its_meaning():
    """Two tuned weights and no reference of richness: λ and κ go on, ω stays, and its own bits are those of before."""
    values, runs = FORMER | TUNED | {"gate": "off"}, []
    for old in (False, True):
        state, optimizer, stack, rng = tiny.started(tiny.problem(), [ModalImmune(ModalImmune.Params(**NOW, **values))])
        method = stack.methods["modalimmune"]
        for step in range(20):
            if old and step == 10:
                method.state = {key: value for key, value in method.state.items() if key != "richness"}
                method.state |= {key: method.state[key][:2] for key in ("offset", "second", "accepted")}
            state, view = train_step(state, tiny.problem(), optimizer, stack, rng)
        runs.append((state.theta, method.state["offset"], [r.name for r in method.report(view)]))
    assert runs[0][1][:2].any() and not runs[0][1][2]
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1]) and runs[0][2] == runs[1][2]
    method.params = ModalImmune.Params(**NOW, meta_every=1)
    method.state = {key: value for key, value in method.state.items() if key != "richness"}
    for _ in range(3):
        state, _ = train_step(state, tiny.problem(), optimizer, stack, rng)
    assert len(method.state["offset"]) == 3 and method.state["richness"].isfinite().all()


@pytest.mark.parametrize("others", [0.0, 0.5])
@pytest.mark.parametrize("omission", ["mixture", "rows"])
def test_the_share_is_tuned_by_the_exact_inverse_with_others_missing_and_no_collapse(omission, others):
    """d(held-out loss)/d(logit ω) from losses that are written down afresh and a dense, inverted Hessian."""
    problem = built("1,1,1", batch=24, rows=200, double=True, width=3, hidden=4)
    values = {"collapse": 0.0, "omission": omission, "others": others, "share": 0.3, "matrix": "hessian"}
    params = knobs(**(TUNED | {"terms": 500, "damping": 0.5, "meta_every": 0} | values))
    view, method, _ = one_step(params, problem)
    arm, count = method.state["arm"], len(problem.modalities)
    found = looks.hypergradient(params, method.state, problem.modalities[arm], view, collapses=False)
    rows = memory.judges(params, len(view.batch), view)

    def loss(theta, batch, mask):
        features = problem.encode(theta, batch)
        features = {other: z * mask[:, m : m + 1] for m, (other, z) in enumerate(features.items())}
        return problem.objectives(theta, features, batch)[0]["fused"]

    every = torch.ones(len(rows), count, dtype=torch.bool)
    alone = [every & (torch.arange(count) != m) for m in range(count)]
    kept = memory.kept(params, arm, view) if others else alone[arm]
    judged = memory.judging(params, len(rows), view) if others else alone
    theta = view.theta.clone().requires_grad_()
    (aim,) = torch.autograd.grad(sum(loss(theta, rows, mask) for mask in (every, *judged)) / (count + 1), theta)
    (mixed,) = torch.autograd.grad(loss(theta, view.batch, kept) - loss(theta, view.batch, every), theta)
    trained = lambda at: 0.7 * loss(at, view.batch, every) + 0.3 * loss(at, view.batch, kept)  # noqa: E731
    matrix = torch.func.hessian(trained)(view.theta) + found.damping * torch.eye(len(theta), dtype=torch.float64)
    wanted = -0.3 * 0.7 * (torch.linalg.solve(matrix, aim) @ mixed)
    assert wanted.abs() > 1e-6
    torch.testing.assert_close(found.values[2], wanted, atol=1e-10, rtol=1e-6)
    assert (found.values[2] - wanted).abs() <= found.errors[2]
    assert not found.values[:2].any() and not certain(found.values, found.errors)[:2].any()


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


@pytest.mark.parametrize("omission", ["mixture", "rows"])
def test_resume_is_exact_at_the_defaults_with_three_modalities(omission, tmp_path):
    """Every tensor of the state goes through a checkpoint, and draws depend on the step alone."""
    params, case = ModalImmune.Params(**NOW | {"meta_every": 4}, omission=omission), built("2,1,1", batch=24, micro=10)
    through, _, whole = tiny.train(case, [ModalImmune(params)], 18)
    half, _, stack = tiny.train(case, [ModalImmune(params)], 9)
    torch.save(stack.methods["modalimmune"].state, tmp_path / "state.pt")
    again = ModalImmune(params, torch.load(tmp_path / "state.pt", weights_only=True))
    _, optimizer, rest, rng = tiny.started(case, [])
    rest = rest.having(again)
    for _ in range(9):
        half, _ = train_step(half, case, optimizer, rest, rng)
    assert torch.equal(half.theta, through.theta)
    for key in ("offset", "richness", "reference", "fisher"):
        assert torch.equal(again.state[key], whole.methods["modalimmune"].state[key]), key
    assert again.state["accepted"][2] > 0 or again.state["counts"]["skipped"] > 0
