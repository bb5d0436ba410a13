"""Curvature against the dense Hessian, against PyHessian, and against its own claims."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.hessian_spectrum import (
    hvp,
    lanczos,
    spectral_density,
    spectrum,
    top_eigenpairs,
    trace,
)
from tests.maths.nets import exact, problem


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(values: torch.Tensor):
    """Return a loss whose Hessian has these eigenvalues, in a random basis."""
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=seeded(9), dtype=values.dtype)).Q
    matrix = basis * values @ basis.T
    return lambda theta: 0.5 * theta @ matrix @ theta


def smooth(values, grid, width):
    z = (grid[:, None] - values) / width
    return (torch.exp(-0.5 * z**2) / (width * math.sqrt(2 * math.pi))).mean(1)


def l1(density, values):
    return ((density.total() - smooth(values, density.grid, density.width)).abs().sum() * spacing(density)).item()


def spacing(density):
    return density.grid[1] - density.grid[0]


def test_product_is_the_dense_product():
    _, _, theta, loss, _ = problem()
    hessian, _ = exact()
    v = torch.randn(3, len(theta), generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(hvp(loss, theta, v), v @ hessian)
    torch.testing.assert_close(hvp(loss, theta, v[0]), hessian @ v[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_spectrum_is_the_dense_one(dtype, tolerance):
    _, _, theta, loss, _ = problem(dtype=dtype)
    theta = problem()[2].to(dtype)
    hessian, values = exact()
    found = spectrum(loss, theta, k=5, steps=40, probes=16)
    assert ((found.values - values[:5]).abs() <= tolerance * values[:5]).all()
    assert ((found.values - values[:5]).abs() <= found.residuals).all()
    assert abs(found.smallest - values[-1].item()) <= found.smallest_residual
    image = found.vectors.double() @ hessian
    assert (torch.linalg.vector_norm(image - found.values[:, None] * found.vectors, dim=1) < 1e-4).all()
    assert abs(found.trace - values.sum().item()) <= 3 * found.trace_error
    assert found.products == 56


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_top_eigenpairs_meet_their_tolerance(dtype):
    _, _, theta, loss, _ = problem(dtype=dtype)
    theta = problem()[2].to(dtype)
    _, values = exact()
    for tol in (1e-1, 1e-3, 1e-5):
        found, vectors, residuals = top_eigenpairs(loss, theta, 4, tol)
        assert (residuals <= tol * found.abs()).all()
        assert ((found - values[:4]).abs() <= residuals).all()
        assert (found.diff() <= 0).all()
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(4, dtype=dtype), atol=1e-4, rtol=0)


def test_top_means_largest_algebraic():
    loss = quadratic(torch.tensor([-9.0, -5.0, 1.0, 2.0, 3.0, 0.5], dtype=torch.float64))
    values, _, _ = top_eigenpairs(loss, torch.zeros(6, dtype=torch.float64), 2)
    torch.testing.assert_close(values, torch.tensor([3.0, 2.0], dtype=torch.float64))


def test_trace_lies_within_three_standard_errors():
    _, _, theta, loss, _ = problem(24)
    truth = exact(24)[1].sum().item()
    scores = []
    for seed in range(30):
        value, error = trace(loss, theta, rel_error=0.05, generator=seeded(seed))
        assert error <= 0.05 * abs(value)
        scores.append((value - truth) / error)
    assert max(map(abs, scores)) < 3
    assert 0.3 < torch.tensor(scores).std() < 1.3, "the standard error must be neither idle nor inflated"


def test_trace_error_falls_as_one_over_root_probes():
    _, _, theta, loss, _ = problem(24)
    few, many = (spectrum(loss, theta, 3, 10, probes).trace_error for probes in (16, 256))
    assert few / many == pytest.approx(4, rel=0.35)


def test_trace_without_a_sign_is_exact_rather_than_endless():
    values = torch.linspace(-1, 1, 100, dtype=torch.float64)
    value, error = trace(quadratic(values), torch.zeros(100, dtype=torch.float64), 1e-3, most=150)
    assert abs(value) <= 3 * error < 1e-9


def test_density_is_the_smoothed_spectrum():
    _, _, theta, loss, _ = problem(24)
    _, values = exact(24)
    density = spectral_density(loss, theta, steps=60, probes=8)
    assert l1(density, values) < 0.03
    assert (density.density.sum() * spacing(density) + density.masses.sum()).item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(density.masses, torch.full_like(density.atoms, 1 / len(theta)))
    nearest = (density.atoms[:, None] - values).abs().min(1).values
    assert (nearest < 1e-3 * density.atoms.abs()).all() and len(density.atoms) >= 3


def test_density_error_covers_the_truth_and_falls_with_probes():
    _, _, theta, loss, _ = problem(24)
    _, values = exact(24)
    errors = []
    for probes in (1, 4, 32):
        density = spectral_density(loss, theta, steps=40, probes=probes)
        errors.append((density.error.sum() * spacing(density)).item())
        assert l1(density, values) < 3 * errors[-1] + 0.01
    assert errors[0] > errors[1] > errors[2]


def test_density_of_one_run_knows_its_error():
    _, _, theta, loss, _ = problem(24)
    runs = [spectrum(loss, theta, steps=40, generator=seeded(seed)).density for seed in range(24)]
    grid = runs[0].grid
    spread = torch.stack([torch.from_numpy(_at(grid, run)) for run in runs]).std(0).sum()
    claimed = sum(run.error.sum() * spacing(run) / spacing(runs[0]) for run in runs) / len(runs)
    assert 0.5 < (claimed / spread).item() < 2


def _at(grid, run):
    import numpy as np

    return np.interp(grid, run.grid, run.total())


def test_a_cluster_is_bulk_and_an_outlier_an_atom():
    values = torch.full((300,), 0.01, dtype=torch.float64)
    values[:2] = torch.tensor([5.0, 3.0])
    density = spectrum(quadratic(values), torch.zeros(300, dtype=torch.float64), k=2, steps=20).density
    # Copies of the cluster that a fresh start finds are single eigenvectors too, hence atoms at 0.01.
    torch.testing.assert_close(density.atoms[:2], values[:2])
    torch.testing.assert_close(density.total(), smooth(values, density.grid, density.width), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-7, 1e7])
def test_everything_scales_with_the_loss(dtype, scale):
    _, _, theta, loss, _ = problem(dtype=dtype)
    one, other = spectrum(loss, theta), spectrum(lambda w: loss(w) * scale, theta)
    torch.testing.assert_close(other.values / scale, one.values, rtol=1e-5, atol=0)
    torch.testing.assert_close(other.vectors.abs(), one.vectors.abs(), rtol=0, atol=1e-3)
    close = pytest.approx
    assert other.smallest / scale == close(one.smallest, rel=1e-4)
    assert other.trace / scale == close(one.trace, rel=1e-4)
    assert other.trace_error / scale == close(one.trace_error, rel=1e-3)
    torch.testing.assert_close(other.density.grid / scale, one.density.grid, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other.density.total() * scale, one.density.total(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        spectral_density(lambda w: loss(w) * scale, theta, 20, 2).error * scale,
        spectral_density(loss, theta, 20, 2).error, rtol=1e-2, atol=1e-3,
    )  # fmt: skip
    assert trace(lambda w: loss(w) * scale, theta, 0.02)[0] / scale == close(trace(loss, theta, 0.02)[0], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_ghosts_at_200_steps(dtype):
    _, _, theta, loss, _ = problem(24, dtype)
    theta = problem(24)[2].to(dtype)
    _, values = exact(24)
    run = lanczos(loss, theta, 200)
    gram = run.basis @ run.basis.T
    torch.testing.assert_close(gram, torch.eye(200, dtype=dtype), atol=5 * torch.finfo(dtype).eps ** 0.9, rtol=0)
    found, _, residuals = run.ritz()
    good = residuals < 1e-3 * found[0]
    assert good.sum() > 20
    for sign in (1, -1):
        top, truth = (sign * found).sort(descending=True).values[:8], (sign * values).sort(descending=True).values[:8]
        torch.testing.assert_close(top, truth, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_more_steps_than_parameters_give_the_whole_truth(dtype):
    _, _, theta, loss, _ = problem(1, dtype)
    theta = problem(1)[2].to(dtype)
    _, values = exact(1)
    found = spectrum(loss, theta, k=len(theta), steps=1000)
    tolerance = 1e-10 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(found.values, values, atol=tolerance, rtol=0)
    assert abs(found.trace - values.sum().item()) <= 3 * found.trace_error < 1e-4
    assert len(found.density.atoms) == len(theta) and found.density.masses.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    "values", [[2.0], [3.0, 3.0, 3.0], [0.0, 0.0], [1.0, 1.0, 0.0, -2.0], [5.0] + [0.0] * 20, [1.0] * 30 + [4.0] * 30]
)
def test_breakdown_goes_on_with_a_fresh_vector(values):
    values = torch.tensor(values, dtype=torch.float64).sort(descending=True).values
    loss, theta = quadratic(values), torch.zeros(len(values), dtype=torch.float64)
    found = spectrum(loss, theta, k=len(values), steps=100)
    torch.testing.assert_close(found.values, values, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(len(values), dtype=torch.float64))
    assert abs(trace(loss, theta)[0] - values.sum().item()) < 1e-10
    assert torch.isfinite(found.density.density).all()
    assert (spectral_density(loss, theta, 3, 3).total() >= 0).all()


def test_a_block_is_the_block_of_the_dense_hessian():
    _, layout, theta, loss, _ = problem()
    hessian, _ = exact()
    for part in ("a", "b", "shared"):
        mask = layout.mask(part)
        inside = mask.bool()
        truth = torch.linalg.eigvalsh(hessian[inside][:, inside]).flip(0)
        found = spectrum(loss, theta, 3, 200, mask=mask)
        torch.testing.assert_close(found.values, truth[:3])
        assert found.trace == pytest.approx(truth.sum().item())
        assert found.vectors.shape == (3, len(theta)) and not found.vectors[:, ~inside].any()
        values, vectors, _ = top_eigenpairs(loss, theta, 2, mask=inside)
        torch.testing.assert_close(values, truth[:2], rtol=1e-3, atol=0)
        assert trace(loss, theta, mask=mask)[0] == pytest.approx(truth.sum().item(), rel=0.05)


def test_pyhessian_agrees():
    pyhessian = pytest.importorskip("pyhessian")
    net, layout, theta, loss, (x, y) = problem()
    _, values = exact()
    with torch.no_grad():
        for name, value in layout.unpack(theta).items():
            net.get_parameter(name).copy_(value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = pyhessian.hessian(net, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
        theirs, _ = other.eigenvalues(maxIter=500, tol=1e-6, top_n=3)
        samples = torch.tensor(other.trace(maxIter=300, tol=0.0))
    found = spectrum(loss, theta, 3)
    torch.testing.assert_close(found.values, torch.tensor(theirs, dtype=torch.float64), rtol=1e-3, atol=0)
    their_error = (samples.std() / len(samples) ** 0.5).item()
    assert abs(found.trace - samples.mean().item()) < 3 * math.hypot(found.trace_error, their_error)
    assert abs(samples.mean().item() - values.sum().item()) < 3 * their_error


def test_analysis_leaves_no_trace():
    _, _, theta, loss, _ = problem()
    theta = theta.requires_grad_()
    before, state = theta.detach().clone(), torch.get_rng_state()
    first = spectrum(loss, theta)
    trace(loss, theta), top_eigenpairs(loss, theta, 2), spectral_density(loss, theta, 10, 2)
    assert torch.equal(theta, before) and theta.grad is None and torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cudnn.enabled
    again = spectrum(loss, theta)
    assert torch.equal(first.values, again.values) and first.trace == again.trace


def test_products_survive_training_in_place():
    from modalscape.engine.maths.curvature.hessian_spectrum import Products

    _, _, theta, loss, _ = problem()
    v = torch.ones_like(theta)
    truth = hvp(loss, theta, v)
    live = theta.clone()
    product = Products(loss, live)
    live += 1.0
    assert torch.equal(product(v), truth)


def test_attention_and_unused_parameters_need_no_help():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(4, 5, 8)

    def loss(theta):
        q, k, unused = theta.split([64, 64, 10])
        q, k = x @ q.view(8, 8), x @ k.view(8, 8)
        return nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], x[:, None]).square().mean()

    theta = torch.randn(138, generator=seeded(0))
    found = spectrum(loss, theta, 3, 138)
    truth = torch.linalg.eigvalsh(torch.stack([hvp(loss, theta, row) for row in torch.eye(138)]))
    torch.testing.assert_close(found.values.float(), truth.flip(0)[:3], rtol=1e-4, atol=1e-6)


def test_a_linear_loss_has_no_curvature():
    found = spectrum(lambda w: w.sum(), torch.ones(50), k=2)
    assert not found.values.any() and found.trace == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: spectrum(lambda w: (w**2).sum(), torch.ones(3), k=4), "k = 4"),
        (lambda: top_eigenpairs(lambda w: (w**2).sum(), torch.ones(3), 0), "k = 0"),
        (lambda: spectrum(lambda w: (w**2).sum(), torch.ones(30), k=9, steps=5), "raise steps"),
        (lambda: trace(lambda w: (w**2).sum() / 0, torch.ones(3)), "inf"),
        (lambda: trace(lambda w: (w**2).sum().detach(), torch.ones(3)), "no graph"),
        (lambda: trace(lambda w: torch.tensor(3.0), torch.ones(3)), "no graph"),
        (lambda: hvp(lambda w: w**2, torch.ones(3), torch.ones(3)), "one number"),
        (lambda: hvp(lambda w: (w**2).sum(), torch.ones(3), torch.ones(4)), "shape"),
        (lambda: spectrum(lambda w: w.abs().sqrt().sum(), torch.zeros(3), k=1), "not finite"),
        (lambda: lanczos(lambda w: (w**2).sum(), torch.ones(3), mask=torch.zeros(3)), "mask"),
        (lambda: trace(lambda w: (w**2).sum(), torch.ones(3), rel_error=0.0), "rel_error"),
        (lambda: spectral_density(lambda w: (w**2).sum(), torch.ones(3), probes=0), "probes"),
        (lambda: lanczos(lambda w: (w**2).sum(), torch.ones(3), steps=0), "steps"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(call, says):
    with pytest.raises(InputError, match=says) as refusal:
        call()
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)
