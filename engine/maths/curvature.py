"""Spectrum, trace and density of the Hessian of a loss at a point, from Hessian-vector products alone.

Everything rests on one Krylov basis: its Ritz pairs are the eigenpairs (with rigorous residual bounds), its complement
is where the trace still has to be sampled, and its nodes are the density. Every number comes with an error, and nothing
here adds a constant to a norm: multiply the loss by c and every result is multiplied by c.

All functions share three keyword arguments: `mask` (P,) restricts the Hessian to the block of the marked parameters,
for example `layout.mask("audio")`; `generator` supplies the random vectors (default: a fresh one with a fixed seed, so
equal calls give equal answers); torch's global generators are never touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.knobs import InputError
from engine.maths.density import Density, smoothed
from engine.maths.krylov import Complement, Krylov, Lanczos, Loss, Products, Space

__all__ = [
    "Density",
    "Lanczos",
    "Products",
    "Spectrum",
    "hvp",
    "lanczos",
    "spectral_density",
    "spectrum",
    "top_eigenpairs",
    "trace",
    "unhurried_spectrum",
]


@dataclass(frozen=True)
class Spectrum:
    """What one Lanczos run says of a Hessian; eigenvalues in units of the loss per squared parameter.

    `values` (k,) largest algebraic first, `vectors` (k, P) of unit norm, `residuals` (k,): some true eigenvalue lies
    within `residuals[i]` of `values[i]`. `trace_error` is one standard error.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    smallest: float
    trace: float
    trace_error: float
    density: Density
    smallest_residual: float
    products: int
    """Hessian-vector products spent."""


def hvp(loss: Loss, theta: Tensor, v: Tensor) -> Tensor:
    """Return the Hessian of `loss` at `theta` (P,) times `v` (P,) or times each row of `v` (N, P), in the same shape.

    Raises:
        InputError: `v` does not fit `theta`, or the loss has no second derivative to offer (see `Products`).

    >>> cubic = lambda w: (w**3).sum() / 6
    >>> hvp(cubic, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor([1., 2.])
    """
    if v.dim() not in (1, 2) or v.shape[-1:] != theta.shape:
        raise InputError(f"v has shape {tuple(v.shape)}; give ({len(theta)},) or (N, {len(theta)}).")
    product = Products(loss, theta)
    v = v.to(theta)
    return product(v) if v.dim() == 1 else torch.stack([product(row) for row in v]) if len(v) else v.clone()


def lanczos(
    loss: Loss,
    theta: Tensor,
    steps: int = 40,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Lanczos:
    """Return the Krylov basis of min(steps, n) vectors that starts from a vector drawn on the sphere.

    Full re-orthogonalisation, twice, so no eigenvalue appears as a ghost; vectors live in the masked block (n,).
    """
    space = Space(loss, theta, mask, generator)
    return Krylov(space).extended(steps).result()


def spectrum(
    loss: Loss,
    theta: Tensor,
    k: int = 5,
    steps: int = 40,
    probes: int = 8,
    sigma: float = 0.01,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Return top-k eigenpairs, smallest eigenvalue, trace and density from `steps` + `probes` products.

    The trace is exact inside the basis and sampled by `probes` Rademacher vectors outside it. The density is read from
    the same run; its error is the standard error of a start vector drawn on the sphere (see `density.smoothed`). An
    eigenvalue that is exactly repeated shows once, unless the basis breaks down or is complete. A k beyond the number
    of parameters or of steps is refused by an `InputError`; see also `Products`.
    """
    *_, found = unhurried_spectrum(loss, theta, k, steps, probes, sigma, mask=mask, generator=generator)
    return found


def unhurried_spectrum(
    loss: Loss,
    theta: Tensor,
    k: int = 5,
    steps: int = 40,
    probes: int = 8,
    sigma: float = 0.01,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Spectrum | None]:
    """Yield None after every product, a breathing point, and at last the `spectrum`."""
    space = Space(loss, theta, mask, generator)
    steps = min(steps, space.n)
    _check_k(k, space.n)
    if k > steps:
        raise InputError(f"k = {k} eigenpairs need at least {k} Lanczos steps, not {steps}; raise steps.")
    krylov = Krylov(space, room=steps)
    for _ in range(steps):
        krylov.extended(1)
        yield
    run = krylov.result()
    values, coordinates, residuals = run.ritz()
    rest = Complement(space, run)
    for _ in range(probes if len(run.basis) < space.n else 0):
        rest.probe()
        yield
    value, error = rest.trace()
    yield Spectrum(
        values=values[:k],
        vectors=space.embed(run.vectors(coordinates[:, :k])),
        residuals=residuals[:k],
        smallest=values[-1].item(),
        trace=value,
        trace_error=error,
        density=smoothed([_nodes(run)], _atoms(run, space.n)[0], space.n, sigma),
        smallest_residual=residuals[-1].item(),
        products=space.product.count,
    )


def top_eigenpairs(
    loss: Loss,
    theta: Tensor,
    k: int,
    tol: float = 1e-3,
    *,
    most: int = 300,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest eigenvalues (k,), unit eigenvectors (k, P) and residual bounds (k,), largest first.

    The basis grows until every residual is below `tol` times its eigenvalue (or is down to rounding) at two looks in a
    row, so that a pair that surfaces late is not missed, or until `most` steps: then the residuals say how far it got.

    Raises:
        InputError: k exceeds the number of parameters, or `tol` is not positive; see also `Products`.
    """
    space = Space(loss, theta, mask, generator)
    _check_k(k, space.n)
    if not tol > 0:
        raise InputError(f"tol must be positive, not {tol}; 1e-3 gives three digits.")
    krylov, settled = Krylov(space), 0
    krylov.extended(k + 5)
    while True:
        run = krylov.result()
        values, coordinates, residuals = run.ritz()
        good = residuals[:k] <= torch.clamp(tol * values[:k].abs(), min=2 * run.rounding)
        settled = settled + 1 if good.all() else 0
        if settled == 2 or krylov.complete or krylov.size >= max(most, k):
            return values[:k], space.embed(run.vectors(coordinates[:, :k])), residuals[:k]
        krylov.extended(2)


def trace(
    loss: Loss,
    theta: Tensor,
    rel_error: float = 0.01,
    *,
    steps: int = 20,
    most: int = 400,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Return the trace and its standard error, which is below `rel_error` of the trace unless `most` probes were spent.

    Hutchinson's estimate in the complement of `steps` Lanczos vectors, where few probes do; exact up to 64 parameters,
    and up to `most` where probes would cost as many products as a complete basis.

    Raises:
        InputError: `rel_error` is not positive; see also `Products`.
    """
    if not rel_error > 0:
        raise InputError(f"rel_error must be positive, not {rel_error}; 0.01 gives one per cent.")
    space = Space(loss, theta, mask, generator)
    krylov = Krylov(space).extended(space.n if space.n <= 64 else steps)
    rest = Complement(space, krylov.result())
    value, error = rest.trace() if krylov.complete else (0.0, math.inf)
    while error > rel_error * abs(value) or 0 < rest.count < 4:
        if rest.count >= min(most, space.n - krylov.size):
            return Complement(space, krylov.extended(space.n).result()).trace() if space.n <= most else (value, error)
        rest.probe()
        value, error = rest.trace()
    return value, error


def spectral_density(
    loss: Loss,
    theta: Tensor,
    steps: int = 40,
    probes: int = 8,
    sigma: float = 0.01,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Density:
    """Return the density of eigenvalues from `probes` Lanczos runs of `steps` steps (stochastic Lanczos quadrature).

    Converged, isolated pairs of the first run become atoms of mass 1/n and are projected out of the further runs; the
    rest is smoothed by a Gaussian of width `sigma` times the spectrum's range. The error is the standard error over the
    runs; with one probe it is the one that follows from the draw on the sphere.
    """
    if probes < 1 or not sigma > 0:
        raise InputError(f"probes = {probes} and sigma = {sigma} must both be positive; 8 and 0.01 are usual.")
    space = Space(loss, theta, mask, generator)
    first = Krylov(space).extended(steps).result()
    atoms, vectors = _atoms(first, space.n)
    nodes = [_nodes(first)]
    for _ in range(probes - 1 if len(first.basis) < space.n else 0):
        run = Krylov(space, against=vectors).extended(min(steps, space.n - len(vectors))).result()
        nodes.append(_nodes(run))
    return smoothed(nodes, atoms, space.n, sigma)


def _nodes(run: Lanczos) -> tuple[Tensor, Tensor]:
    """Return the nodes (m,) and weights (m,) of the Gauss quadrature of a run."""
    values, coordinates, _ = run.ritz()
    return values, coordinates[0] ** 2


def _atoms(run: Lanczos, n: int) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (a,) of a run that stand for one eigenvalue each, and their vectors (a, n).

    Converged to 1e-3 of itself, and with a weight that a single eigenvalue can have: n times the weight is chi-square
    with one degree of freedom, beyond 15 once in ten thousand; a heavier node is a cluster (dead units, weight decay)
    and belongs to the bulk. In a complete basis every pair is one eigenvalue.
    """
    values, coordinates, residuals = run.ritz()
    single = (residuals <= 1e-3 * values.abs()) & (coordinates[0] ** 2 <= 15 / n)
    if len(values) == n:
        single = torch.ones_like(single)
    elif single.all():
        single[coordinates[0].abs().argmax()] = False
    return values[single], run.vectors(coordinates[:, single])


def _check_k(k: int, n: int):
    if not 1 <= k <= n:
        raise InputError(f"k = {k} eigenpairs were asked of {n} parameters; choose k between 1 and {n}.")
