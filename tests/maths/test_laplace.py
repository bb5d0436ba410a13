"""The head's posterior against dense matrices, ridge regression and its own limits."""

import pytest
import torch
from torch.nn import functional as F

from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients import laplace
from modalscape.engine.maths.gradients.laplace import KINDS, Diagonal, Full, Kronecker

N, CLASSES, WIDTH = 40, 3, 5
TAU = 0.7


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def x():
    return F.pad(normal(N, WIDTH - 1), (0, 1), value=1.0)


@pytest.fixture
def weight():
    return normal(CLASSES, WIDTH, seed=1)


@pytest.fixture
def y():
    return torch.randint(CLASSES, (N,), generator=torch.Generator().manual_seed(2))


def dense(curvature, tau=0.0):
    """H + τI (n, n), column by column."""
    basis = torch.eye(CLASSES * WIDTH, dtype=torch.float64).view(-1, CLASSES, WIDTH)
    return torch.stack([curvature.times(v).flatten() + tau * v.flatten() for v in basis], 1)


def test_the_full_form_is_the_hessian_of_the_summed_loss(x, y, weight):
    def loss(w):
        return F.cross_entropy(x @ w.view(CLASSES, WIDTH).T, y, reduction="sum")

    hessian = torch.autograd.functional.hessian(loss, weight.flatten())
    torch.testing.assert_close(Full.of(x, (x @ weight.T).softmax(-1), CLASSES).matrix, hessian)


def test_the_full_form_of_squared_error_is_its_hessian(x, weight):
    target = normal(N, CLASSES, seed=5)

    def loss(w):
        return 0.5 * (x @ w.view(CLASSES, WIDTH).T - target).square().sum()

    hessian = torch.autograd.functional.hessian(loss, weight.flatten())
    torch.testing.assert_close(Full.of(x, None, CLASSES).matrix, hessian)
    torch.testing.assert_close(dense(Kronecker.of(x, None, CLASSES)), hessian)


def test_the_diagonal_is_the_diagonal(x, weight):
    p = (x @ weight.T).softmax(-1)
    full = Full.of(x, p, CLASSES).matrix.diagonal().view(CLASSES, WIDTH)
    torch.testing.assert_close(Diagonal.of(x, p, CLASSES).diagonal, full)
    torch.testing.assert_close(Diagonal.of(x, None, CLASSES).diagonal[0], x.square().sum(0))


def test_the_kronecker_form_is_exact_where_all_rows_are_equally_sure(x):
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).expand(N, -1)
    torch.testing.assert_close(dense(Kronecker.of(x, p, CLASSES)), Full.of(x, p, CLASSES).matrix)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("classes", [True, False])
def test_solving_and_drawing_fit_the_dense_matrix(kind, classes, x, weight):
    curvature = kind.of(x, (x @ weight.T).softmax(-1) if classes else None, CLASSES)
    covariance = torch.linalg.inv(dense(curvature, TAU))
    factored = curvature.factored(TAU)
    v = normal(CLASSES, WIDTH, seed=3)
    torch.testing.assert_close(factored.solve(v).flatten(), covariance @ v.flatten())
    basis = torch.eye(CLASSES * WIDTH, dtype=torch.float64).view(-1, CLASSES, WIDTH)
    drawn = factored.sample(basis).flatten(1)
    torch.testing.assert_close(drawn.T @ drawn, covariance)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_batches_add_up(kind, x, weight):
    p = (x @ weight.T).softmax(-1)
    halves = kind.of(x[:15], p[:15], CLASSES).plus(kind.of(x[15:], p[15:], CLASSES))
    v = normal(CLASSES, WIDTH, seed=3)
    if kind is not Kronecker:
        torch.testing.assert_close(halves.times(v), kind.of(x, p, CLASSES).times(v))
    assert all(
        torch.allclose(a, b) for a, b in zip(vars(halves).values(), vars(kind.of(x, p, CLASSES)).values(), strict=True)
    )
    torch.testing.assert_close(kind.of(x, p, CLASSES).scaled(2.5).times(v), 2.5 * kind.of(x, p, CLASSES).times(v))


@pytest.mark.parametrize("kind", [Full, Kronecker])
def test_a_linear_gaussian_head_has_the_ridge_posterior(kind, x, weight):
    target = normal(N, CLASSES, seed=5)
    factored = kind.of(x, None, CLASSES).factored(TAU)
    mean = laplace.newton_mean(factored, weight, (x @ weight.T - target).T @ x, TAU * weight)
    ridge = torch.linalg.solve(x.T @ x + TAU * torch.eye(WIDTH, dtype=torch.float64), x.T @ target).T
    torch.testing.assert_close(mean, ridge)


def test_more_data_make_the_precision_grow(x, weight):
    p = (x @ weight.T).softmax(-1)
    for kind in KINDS.values():
        if kind is Kronecker:
            continue
        less, more = (dense(kind.of(x[:n], p[:n], CLASSES)) for n in (20, N))
        assert torch.linalg.eigvalsh(more - less).min() > -1e-10


def test_a_tight_prior_collapses_the_posterior_to_its_mean(x, y, weight):
    p = (x @ weight.T).softmax(-1)
    slope = (p - F.one_hot(y, CLASSES)).T @ x
    for kind in KINDS.values():
        tau = 1e9
        factored = kind.of(x, p, CLASSES).factored(tau)
        assert laplace.newton_mean(factored, weight, slope, tau * weight).abs().max() < 1e-6
        assert factored.sample(normal(20, CLASSES, WIDTH)).abs().max() < 1e-3


def test_a_singular_matrix_is_lifted_and_counted():
    root, jitters = laplace.cholesky(torch.diag(torch.tensor([1.0, -1e-7, 0.0], dtype=torch.float64)), 0.0)
    assert jitters == 1 and torch.isfinite(root).all()
    assert laplace.cholesky(torch.eye(3, dtype=torch.float64), 1.0)[1] == 0


def test_a_matrix_that_is_not_finite_is_refused_with_a_sentence():
    with pytest.raises(InputError, match="cannot be factored"):
        laplace.cholesky(torch.full((2, 2), float("nan")), 1.0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_what_is_stored_comes_back(kind, x, weight):
    curvature = kind.of(x, (x @ weight.T).softmax(-1), CLASSES)
    again = laplace.restored(laplace.stored(curvature))
    assert type(again) is kind and torch.equal(again.times(weight), curvature.times(weight))


def test_auto_follows_the_size():
    assert laplace.form("auto", 10, 129, 4000) == "full"
    assert laplace.form("auto", 101, 129, 4000) == "kronecker"
    assert laplace.form("diagonal", 10, 129, 4000) == "diagonal"


def test_centred_draws_have_no_mean_and_all_the_variance():
    noise = laplace.centred(normal(5000, 4))
    assert noise.mean(0).abs().max() < 1e-14
    # a variance from n draws has the standard error √(2/n), here 0.02; five of them
    assert (noise.var(0, correction=0) - 1).abs().max() < 0.1
