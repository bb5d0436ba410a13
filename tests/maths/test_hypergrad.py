"""The truncated series does what its closed form says, and its certificates hold wherever they are given."""

import math

import pytest
import torch
from torch.nn import functional

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.hypergradient import (
    READINGS,
    Operator,
    begun,
    bounds,
    certain,
    certified_step,
    gauss_newton,
    hypergradient,
    krylov,
    neumann,
    prior_bound,
    residual_bound,
)
from tests.maths import nets

DOUBLE = torch.float64


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spd(n: int, seed: int, low: float = 0.02, high: float = 1.0) -> torch.Tensor:
    """A random symmetric matrix (n, n) with eigenvalues spread over decades, the largest `high`."""
    g = draw(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=DOUBLE))
    values = low * (high / low) ** torch.rand(n, generator=g, dtype=DOUBLE)
    values[0] = high
    return q @ values.diag() @ q.T


def operator(matrix: torch.Tensor) -> Operator:
    return Operator(lambda v: matrix @ v, torch.zeros(len(matrix), dtype=DOUBLE), draw(0))


def test_the_two_readings_amplify_opposite_directions():
    h, g = torch.tensor([1.0, 0.1], dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)
    literal = neumann(lambda v: h * v, g, 0.5, 2000, "literal").solution
    ift = neumann(lambda v: h * v, g, 0.5, 2000, "ift").solution
    torch.testing.assert_close(literal, torch.tensor([2.0, 1 / 0.95], dtype=DOUBLE))
    torch.testing.assert_close(ift, torch.tensor([1.0, 10.0], dtype=DOUBLE))


@pytest.mark.parametrize("terms", [0, 1, 5, 20])
def test_the_error_of_each_eigenvalue_is_the_closed_form(terms):
    h = torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=DOUBLE)
    g = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=DOUBLE)
    alpha = 0.9
    ift = neumann(lambda v: h * v, g, alpha, terms, "ift")
    torch.testing.assert_close((ift.solution - g / h).abs(), (1 - alpha * h) ** (terms + 1) / h * g.abs())
    literal = neumann(lambda v: h * v, g, alpha, terms, "literal")
    wanted = (alpha * h) ** (terms + 1) / (1 - alpha * h) * g.abs()
    torch.testing.assert_close((literal.solution - g / (1 - alpha * h)).abs(), wanted)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("seed", range(5))
def test_error_is_within_the_residual_bound_and_that_within_the_prior_one(reading, seed):
    matrix = spd(8, seed)
    values = torch.linalg.eigvalsh(matrix)
    g = torch.randn(8, generator=draw(100 + seed), dtype=DOUBLE)
    alpha, eye = 0.9, torch.eye(8, dtype=DOUBLE)
    if reading == "ift":
        exact, margin, rate = torch.linalg.solve(matrix, g), values[0].item(), (1 - alpha * values).abs().max().item()
    else:
        rate = alpha * values[-1].item()
        exact, margin = torch.linalg.solve(eye - alpha * matrix, g), 1 - rate
    for terms in range(0, 60, 3):
        series = neumann(lambda v: matrix @ v, g, alpha, terms, reading)
        error = (series.solution - exact).norm().item()
        after = residual_bound(reading, series.residual.norm().item(), margin)
        before = prior_bound(reading, rate, alpha, terms, g.norm().item())
        assert error <= after * (1 + 1e-9) + 1e-13
        assert after <= before * (1 + 1e-9)


@pytest.mark.parametrize("reading", READINGS)
def test_the_residual_is_the_next_term(reading):
    matrix, g, alpha = spd(7, 1), torch.randn(7, generator=draw(1), dtype=DOUBLE), 0.7
    for terms in (0, 1, 9):
        series = neumann(lambda v: matrix @ v, g, alpha, terms, reading)
        left = matrix @ series.solution if reading == "ift" else series.solution - alpha * matrix @ series.solution
        torch.testing.assert_close(g - left, series.residual)
        assert series.norms[-1] == pytest.approx(series.residual.norm().item())
        assert len(series.norms) == terms + 2


def ridge():
    """Inner loss ½|Xw - y|²/n + ½e^φ|w|², outer ½|Aw - b|²/m: everything about it is known in closed form."""
    g = draw(5)
    x, y = torch.randn(30, 4, generator=g, dtype=DOUBLE), torch.randn(30, generator=g, dtype=DOUBLE)
    a, b = torch.randn(20, 4, generator=g, dtype=DOUBLE), torch.randn(20, generator=g, dtype=DOUBLE)
    phi = torch.tensor(-1.0, dtype=DOUBLE, requires_grad=True)
    hessian = x.T @ x / 30 + phi.exp() * torch.eye(4, dtype=DOUBLE)
    w = torch.linalg.solve(hessian, x.T @ y / 30)
    outer = 0.5 * (a @ w - b).square().mean()
    exact = torch.autograd.grad(outer, phi)[0].item()
    w, hessian = w.detach(), hessian.detach()
    return x, y, w, hessian, a.T @ (a @ w - b) / 20, math.exp(-1.0) * w, exact


def test_the_implicit_reading_is_the_hyper_gradient_of_ridge_regression():
    _, _, w, hessian, g, mixed, exact = ridge()
    assert -(torch.linalg.solve(hessian, g) @ mixed).item() == pytest.approx(exact, abs=1e-12)
    alpha = 1 / torch.linalg.eigvalsh(hessian)[-1].item()
    found = [-(neumann(lambda v: hessian @ v, g, alpha, k).solution @ mixed).item() for k in (0, 5, 40, 400)]
    errors = [abs(value - exact) for value in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12
    margin, norm = torch.linalg.eigvalsh(hessian)[0].item(), mixed.norm().item()
    for k in range(0, 60, 5):
        series = neumann(lambda v: hessian @ v, g, alpha, k)
        bound = norm * residual_bound("ift", series.residual.norm().item(), margin)
        assert abs(-(series.solution @ mixed).item() - exact) <= bound * (1 + 1e-9) + 1e-14
    literal = neumann(lambda v: hessian @ v, g, 0.9 * alpha, 2000, "literal").solution
    assert abs(-0.9 * alpha * (literal @ mixed).item() - exact) > 0.1 * abs(exact)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_it_equals_that_many_unrolled_steps_from_the_optimum(count):
    x, y, start, hessian, g, mixed, _ = ridge()
    alpha = 0.8 / torch.linalg.eigvalsh(hessian)[-1].item()
    phi = torch.tensor(-1.0, dtype=DOUBLE, requires_grad=True)
    w = start
    for _ in range(count):
        w = w - alpha * (x.T @ (x @ w - y) / 30 + phi.exp() * w)
    # the outer gradient is held at the optimum, where the steps stay
    unrolled = torch.autograd.grad(g @ w, phi)[0].item()
    series = neumann(lambda v: hessian @ v, g, alpha, count - 1).solution
    assert -(series @ mixed).item() == pytest.approx(unrolled, abs=1e-12)
    if count == 1:
        literal = neumann(lambda v: hessian @ v, g, alpha, 0, "literal").solution
        assert -alpha * (literal @ mixed).item() == pytest.approx(unrolled, abs=1e-14)


def test_only_the_implicit_reading_finds_the_direction():
    """600 SPD problems with α‖H‖ = 0.9; the mean cosine to H⁻¹g, five standard errors apart.

    And how often a hyper-gradient of three meta-parameters, -Cv, is no descent direction.
    """
    cosines, wrong = {"literal": [], "one step": [], "ift": []}, dict.fromkeys(("literal", "one step", "ift"), 0)
    for seed in range(600):
        matrix = spd(6, seed, 0.003)
        g, *mixed = torch.randn(4, 6, generator=draw(9000 + seed), dtype=DOUBLE)
        mixed = torch.stack(mixed)
        exact = torch.linalg.solve(matrix, g)
        found = {
            "literal": torch.linalg.solve(torch.eye(6, dtype=DOUBLE) - 0.9 * matrix, g),
            "one step": g,
            "ift": neumann(lambda v, h=matrix: h @ v, g, 0.9, 200).solution,
        }
        for name, v in found.items():
            cosines[name].append(functional.cosine_similarity(v, exact, dim=0))
            wrong[name] += bool((mixed @ v) @ (mixed @ exact) < 0)
    means = {name: torch.stack(values).mean().item() for name, values in cosines.items()}
    error = max(torch.stack(values).std().item() for values in cosines.values()) / math.sqrt(600)
    assert means["literal"] + 5 * error < means["one step"]
    assert means["one step"] + 5 * error < means["ift"]
    assert means["ift"] > 0.95
    assert wrong["literal"] > wrong["one step"] + 20 > wrong["ift"] + 40, wrong


def test_the_literal_reading_with_a_small_step_is_one_plain_gradient_step():
    """α → 0: -α⟨v, c⟩ → -α⟨g, c⟩, and K = 0 is just that in both readings."""
    matrix, g = spd(6, 2), torch.randn(6, generator=draw(3), dtype=DOUBLE)
    found = neumann(lambda v: matrix @ v, g, 1e-7, 50, "literal").solution
    torch.testing.assert_close(found, g, atol=1e-6, rtol=1e-6)
    assert torch.equal(neumann(lambda v: matrix @ v, g, 0.3, 0, "literal").solution, g)
    assert torch.equal(neumann(lambda v: matrix @ v, g, 0.3, 0, "ift").solution, 0.3 * g)


def test_an_indefinite_matrix_makes_the_implicit_series_grow_and_damping_mends_it():
    h, g = torch.tensor([1.0, 0.5, -0.2], dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)
    series = neumann(lambda v: h * v, g, 0.9, 500)
    assert series.diverged
    assert len(series.norms) < 30
    literal = neumann(lambda v: h * v, g, 0.9, 500, "literal")
    assert not literal.diverged
    torch.testing.assert_close(literal.solution, g / (1 - 0.9 * h))
    damped = neumann(lambda v: (h + 0.3) * v, g, 0.7, 2000)
    torch.testing.assert_close(damped.solution, torch.tensor([1 / 1.3, 1.25, 10.0], dtype=DOUBLE))
    found = hypergradient(operator(h.diag()), g, torch.eye(3, dtype=DOUBLE), positive=False, terms=3000, steps=3)
    assert found.damping >= 0.3 - 1e-9
    torch.testing.assert_close(-found.values, 1 / (h + found.damping), atol=1e-6, rtol=1e-6)


def test_whatever_is_certified_is_a_descent_direction():
    """And the bound on each entry holds; some are certain and some are not, or the test says nothing."""
    accepted = refused = 0
    for seed in range(300):
        matrix = spd(6, seed)
        values = torch.linalg.eigvalsh(matrix)
        g = torch.randn(6, generator=draw(seed + 1), dtype=DOUBLE)
        mixed = torch.randn(2, 6, generator=draw(seed + 2), dtype=DOUBLE)
        terms = seed % 60
        series = neumann(lambda v, h=matrix: h @ v, g, 0.9, terms)
        exact = -mixed @ torch.linalg.solve(matrix, g)
        found = -mixed @ series.solution
        error = mixed.norm(dim=1) * residual_bound("ift", series.residual.norm().item(), values[0].item())
        assert ((found - exact).abs() <= error * (1 + 1e-9)).all()
        sure = certain(found, error)
        prior = prior_bound("ift", 1 - 0.9 * values[0].item(), 0.9, terms, g.norm().item())
        early = certain(found, mixed.norm(dim=1) * prior)
        assert (sure | ~early).all(), "what is certain beforehand is certain afterwards"
        accepted, refused = accepted + int(sure.sum()), refused + int((~sure).sum())
        assert (found[sure] * exact[sure] > 0).all()
    assert accepted > 50
    assert refused > 50


@pytest.mark.parametrize("terms", [0, 3, 30, 300])
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_the_damped_gauss_newton_certificate_is_rigorous(terms, share):
    """Positive semi-definite with a null space, largest eigenvalue under-estimated by a short Lanczos run."""
    j = torch.randn(12, 40, generator=draw(3), dtype=DOUBLE)
    matrix = j.T @ j
    g = torch.randn(40, generator=draw(4), dtype=DOUBLE)
    mixed = torch.randn(2, 40, generator=draw(5), dtype=DOUBLE)
    found = hypergradient(operator(matrix), g, mixed, terms=terms, damping=share, steps=2)
    exact = torch.linalg.solve(matrix + found.damping * torch.eye(40, dtype=DOUBLE), g)
    assert (found.series.solution - exact).norm().item() <= found.certificate * (1 + 1e-9)
    assert ((found.values + mixed @ exact).abs() <= found.errors * (1 + 1e-9)).all()
    if terms == 300 and share == 0.3:
        assert found.certificate < 1e-6


def test_a_wrong_alpha_cannot_fool_the_residual():
    matrix = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=DOUBLE)) + 0.1 * torch.eye(3, dtype=DOUBLE)
    g = torch.ones(3, dtype=DOUBLE)
    exact = torch.linalg.solve(matrix, g)
    for alpha in (0.01, 0.2, 0.6, 1.5):
        for terms in (0, 2, 10):
            series = neumann(lambda v: matrix @ v, g, alpha, terms)
            assert (series.solution - exact).norm() <= series.residual.norm() / 0.1 * (1 + 1e-9)


def test_terms_needed_at_condition_number_twenty():
    h, g = torch.tensor([1.0, 0.05], dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    for error, terms in ((0.1, 44), (0.01, 89), (0.001, 134)):
        near, far = (neumann(lambda v: h * v, g, 1.0, k).solution[1].item() for k in (terms, terms - 1))
        assert abs(near / 20 - 1) <= error < abs(far / 20 - 1)


def test_bounds_err_outwards():
    for seed in range(10):
        matrix = spd(40, seed) - 0.1 * torch.eye(40, dtype=DOUBLE)
        values = torch.linalg.eigvalsh(matrix)
        low, high = bounds(krylov(operator(matrix), torch.randn(40, generator=draw(seed), dtype=DOUBLE), 40))
        assert low <= values[0] + 1e-9
        assert high >= values[-1] - 1e-9
        assert high == pytest.approx(values[-1].item(), rel=1e-6)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("steps", [1, 4, 12, 40])
def test_the_first_terms_come_from_the_basis_and_cost_no_product(reading, steps):
    """Against the plain recurrence, with K below, at and above the length of the run; a short one spans all of R^12."""
    matrix, g = spd(12, 3), torch.randn(12, generator=draw(8), dtype=DOUBLE)
    alpha, delta = 0.7, 0.05
    for terms in (0, 2, 3, 4, 11, 12, 25):
        count = []
        where = operator(matrix)
        run = krylov(where, g, steps)

        def product(v, count=count):
            count.append(1)
            return matrix @ v + delta * v

        head = begun(run, g.norm().item(), alpha, delta, terms, reading)
        found = neumann(product, g, alpha, terms, reading, head)
        plain = neumann(lambda v: matrix @ v + delta * v, g, alpha, terms, reading)
        torch.testing.assert_close(found.solution, plain.solution, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(found.residual, plain.residual, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(found.norms, plain.norms, atol=1e-12, rtol=1e-10)
        assert len(count) == max(terms + 1 - min(steps, 12), 0)


def test_a_gradient_of_nothing_has_a_hyper_gradient_of_nothing():
    found = hypergradient(operator(spd(5, 0)), torch.zeros(5, dtype=DOUBLE), torch.eye(5, dtype=DOUBLE))
    assert not found.values.any()
    assert not certain(found.values, found.errors).any()


def test_gauss_newton_equals_the_dense_one_and_is_positive():
    net, layout, theta, _, (x, y) = nets.problem(width=3)
    theta = theta.clone().requires_grad_()

    def logits(at):
        return torch.func.functional_call(net, layout.unpack(at), (x,))

    out = logits(theta)
    features = torch.tanh(out)
    pairs = [(out, functional.cross_entropy(out, y)), (features, 0.3 * features.square().mean())]
    product = gauss_newton(theta, pairs)
    found = torch.stack([product(row) for row in torch.eye(len(theta), dtype=DOUBLE)])
    j = torch.func.jacrev(logits)(theta.detach()).flatten(0, 1)
    jf = torch.func.jacrev(lambda at: torch.tanh(logits(at)))(theta.detach()).flatten(0, 1)
    p = out.detach().softmax(-1)
    blocks = torch.block_diag(*[(row.diag() - torch.outer(row, row)) / len(p) for row in p])
    dense = j.T @ blocks @ j + 0.6 / out.numel() * jf.T @ jf
    torch.testing.assert_close(found, dense, atol=1e-12, rtol=1e-9)
    assert torch.linalg.eigvalsh(found)[0] > -1e-12


def test_the_certified_step_keeps_signs_and_skips_the_uncertain():
    zeros, seen = torch.zeros(2, dtype=DOUBLE), torch.zeros(2, dtype=torch.int64)
    sure = torch.tensor([True, False])
    step, second, seen = certified_step(torch.tensor([3.0, 5.0], dtype=DOUBLE), zeros, seen, sure, 0.01)
    assert step.tolist() == pytest.approx([-0.01, 0.0])
    assert second[1] == 0 and seen.tolist() == [1, 0]
    step, _, seen = certified_step(torch.tensor([-1.0, -2.0], dtype=DOUBLE), second, seen, ~sure, 0.01)
    assert step.tolist() == pytest.approx([0.0, 0.01])
    assert seen.tolist() == [1, 1]


def test_nothing_is_certain_of_what_is_not_finite():
    values, errors = torch.tensor([math.nan, 1.0, 2.0, math.inf]), torch.tensor([0.0, math.inf, 1.0, 0.0])
    assert certain(values, errors).tolist() == [False, False, True, False]
    assert prior_bound("ift", 1.0, 1.0, 5, 1.0) == math.inf
    assert residual_bound("literal", 1.0, 0.0) == math.inf
    series = neumann(lambda v: v * math.nan, torch.ones(2), 0.5, 10)
    assert series.diverged


def test_an_unknown_reading_is_refused():
    with pytest.raises(InputError, match="one of ift, literal, not 'c'"):
        neumann(lambda v: v, torch.ones(2), 0.5, 1, "c")
