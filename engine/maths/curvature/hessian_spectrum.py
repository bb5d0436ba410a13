"""Spectrum, trace and density of a curvature matrix at a point, from products with vectors alone.

Everything rests on one Krylov basis: its Ritz pairs are the eigenpairs (with rigorous residual bounds), its complement
is where the trace still has to be sampled, and its nodes are the density. Every number comes with an error, and nothing
here adds a constant to a norm: multiply the loss by c and every result is multiplied by c.

`loss` is a function of theta (P,), whose Hessian is meant; or `PartedHessian(loss, parts)`, the same in less time where
parts are asked for; or `GaussNewton(outputs, loss)`; or `empirical_fisher(losses)`; or a list of (one of these,
weight), whose sum is meant: a batch in chunks, so that memory stays bounded. For a module of your own,
`modalscape.engine.maths.curvature.user_module.analysed` gives loss and theta, and makes it fit for second derivatives.

All functions share these keyword arguments: `mask` (P,) restricts the matrix to the block of the marked parameters, for
example `layout.mask("audio")`; `generator` supplies the random vectors (default: a fresh one with a fixed seed, so that
equal calls give equal answers); torch's global generators are never touched. `memory` is the most that a basis may
take, in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.deflated_trace import Complement, Coupling
from modalscape.engine.maths.curvature.density import Density, smoothed
from modalscape.engine.maths.curvature.krylov import Krylov, Lanczos, Space
from modalscape.engine.maths.curvature.matrix_products import (
    GaussNewton,
    Hessian,
    Matrix,
    PartedHessian,
    Products,
    empirical_fisher,
)
from modalscape.engine.maths.curvature.quadrature import atoms_of, negative_mass, nodes_of, settled, shorter
from modalscape.engine.maths.progress import Tally

__all__ = [
    "Coupling",
    "Density",
    "GaussNewton",
    "Hessian",
    "Lanczos",
    "PartedHessian",
    "Products",
    "Spectrum",
    "empirical_fisher",
    "hvp",
    "lanczos",
    "spectral_density",
    "spectrum",
    "spectrum_in_stages",
    "top_eigenpairs",
    "trace",
]

MEMORY = 2**30
"""Bytes that a basis may take unless a caller says otherwise."""


@dataclass(frozen=True)
class Spectrum:
    """What one Lanczos run says of a matrix; eigenvalues in units of the loss per squared parameter.

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
    """Products with a vector spent."""
    negative_mass: float
    """Sum of |negative eigenvalues| over the sum of |all|, a fraction."""
    negative_mass_error: float
    traces: dict[str, tuple[float, float]]
    """Part to the trace of its diagonal block and one standard error; empty where no parts were asked for."""
    coupling: Coupling | None
    angles: Tensor
    """(k,), bounds on the sine of the angle between each vector and a true eigenvector: 1 where values are repeated."""
    note: str
    """A sentence where less was done than asked, or nothing."""


def hvp(loss: Matrix, theta: Tensor, v: Tensor) -> Tensor:
    """Return the Hessian of `loss` at `theta` (P,) times `v` (P,) or times each row of `v` (N, P), in the same shape.

    Raises:
        InputError: `v` does not fit `theta`, or the loss has no second derivative to offer (see `Products`).

    >>> cubic = lambda w: (w**3).sum() / 6
    >>> hvp(cubic, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor([1., 2.])
    """
    if v.dim() not in (1, 2) or v.shape[-1:] != theta.shape:
        raise InputError(f"v has shape {tuple(v.shape)}; give ({len(theta)},) or (N, {len(theta)}).")
    return Products(loss, theta)(v.to(theta))


def lanczos(
    loss: Matrix,
    theta: Tensor,
    steps: int = 40,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Lanczos:
    """Return the Krylov basis of min(steps, n) vectors that starts from a vector drawn on the sphere.

    Full re-orthogonalisation, twice, so no eigenvalue appears as a ghost; vectors live in the masked block (n,).
    """
    space = Space(loss, theta, mask, generator, Tally("products", planned(_size(theta, mask), steps)))
    return Krylov(space).extended(steps).result()


def spectrum(
    loss: Matrix,
    theta: Tensor,
    k: int = 5,
    steps: int = 40,
    probes: int = 8,
    sigma: float = 0.01,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    parts: Mapping[str, slice] | None = None,
    memory: float = MEMORY,
) -> Spectrum:
    """Return top-k eigenpairs, smallest eigenvalue, trace, density and negative mass from `steps` + `probes` products.

    The trace is exact inside the basis and sampled by `probes` Rademacher vectors outside it. Density and negative mass
    are read from the same run; their errors are those of a start vector drawn on the sphere (see `density.smoothed`).
    An eigenvalue that is exactly repeated shows once, unless the basis breaks down or is complete.

    With `parts`, such as `layout.slices`, each probe costs one product a part, and also gives the trace of each part's
    block and the coupling between parts. Where `memory` holds fewer than `steps` vectors fewer steps are taken, and
    `note` says so.

    Raises:
        InputError: k exceeds the number of parameters, of steps or of what `memory` holds; parts together with a mask;
            see also `Products`.
    """
    *_, found = spectrum_in_stages(
        loss, theta, k, steps, probes, sigma, mask=mask, generator=generator, parts=parts, memory=memory
    )
    return found


def planned(size: int, steps: int, probes: int = 0, parts: int = 1) -> int:
    """Return the products that a spectrum of a matrix of `size` rows takes at most; `parts` may be 0 for none."""
    steps = min(steps, size)
    return steps + (probes * max(parts, 1) if steps < size else 0)


def spectrum_in_stages(
    loss: Matrix,
    theta: Tensor,
    k: int = 5,
    steps: int = 40,
    probes: int = 8,
    sigma: float = 0.01,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    parts: Mapping[str, slice] | None = None,
    memory: float = MEMORY,
    known: tuple[float, float] | None = None,
    early: bool = False,
    glance: int = 0,
    tally: Tally | None = None,
) -> Iterator[Spectrum]:
    """Yield the `spectrum` before any probe is spent, without coupling and with nan for a trace, and then whole.

    Where `glance` is positive, first of all after that many steps, with as many of the k pairs as there are. With a
    trace that is `known`, value and standard error, no probe is spent. With `early` the run ends before `steps` where
    neither the k eigenvalues, the smallest one nor the density would change much (see `quadrature.settled`). A `tally`
    has the `planned` products in it, and loses those that turn out not to be needed.
    """
    if parts and mask is not None:
        raise InputError("parts divide all parameters and a mask selects some; give one of the two.")
    expected = planned(_size(theta, mask), steps, 0 if known else probes, len(parts or ()))
    space = Space(loss, theta, mask, generator, tally or Tally("products", expected))
    _check_k(k, space.n)
    steps, note = _affordable(space, k, min(steps, space.n), memory)
    krylov = Krylov(space, room=steps)
    least = min(max(k + 5, 15), steps) if early else steps
    if glance:
        yield _read(krylov.extended(min(glance, least)), k, sigma, note)
    if krylov.size < least:
        krylov.extended(least - krylov.size)
    while krylov.size < steps and not settled(krylov.result(), k, space.n, sigma):
        krylov.extended(min(5, steps - krylov.size))
    rest = Complement(krylov, parts)
    probes = 0 if known or krylov.complete else probes
    space.product.tally.plan(krylov.size + probes * len(rest.parts) - expected)
    yield (found := _read(krylov, k, sigma, note))
    rest.probe(probes)
    value, error = known or rest.trace()
    yield replace(
        found,
        trace=value,
        trace_error=error,
        products=space.product.count,
        traces=rest.traces() if parts else {},
        coupling=rest.coupling() if parts else None,
    )


def top_eigenpairs(
    loss: Matrix,
    theta: Tensor,
    k: int,
    tol: float = 1e-3,
    *,
    most: int = 300,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    memory: float = MEMORY,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest eigenvalues (k,), unit eigenvectors (k, P) and residual bounds (k,), largest first.

    The basis grows until every residual is below `tol` times its eigenvalue (or is down to rounding) at two looks in a
    row, so that a pair that surfaces late is not missed, or until `most` steps: then the residuals say how far it got.
    A basis that fills `memory` is restarted from its best vectors, at the price of some more products.

    Raises:
        InputError: k exceeds the number of parameters or of what `memory` holds, or `tol` is not positive; see also
            `Products`.
    """
    space = Space(loss, theta, mask, generator, Tally("products", max(most, k)))
    _check_k(k, space.n)
    if not tol > 0:
        raise InputError(f"tol must be positive, not {tol}; 1e-3 gives three digits.")
    room, _ = _affordable(space, min(k + 4, space.n), space.n, memory)
    krylov, looks = Krylov(space), 0
    krylov.extended(min(k + 5, room))
    while True:
        run = krylov.result()
        values, coordinates, residuals = run.ritz()
        good = residuals[:k] <= torch.clamp(tol * values[:k].abs(), min=2 * run.rounding)
        looks = looks + 1 if good.all() else 0
        if looks == 2 or krylov.complete or space.product.count >= max(most, k):
            space.product.tally.finish()
            return values[:k], space.embed(run.vectors(coordinates[:, :k])), residuals[:k]
        if krylov.size + 2 > room:
            kept = k + (room - k - 2) // 2
            krylov.restart(coordinates[:, :kept], values[:kept])
        krylov.extended(2)


def trace(
    loss: Matrix,
    theta: Tensor,
    rel_error: float = 0.01,
    *,
    steps: int = 20,
    most: int = 400,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    memory: float = MEMORY,
) -> tuple[float, float]:
    """Return the trace and its standard error, which is below `rel_error` of the trace unless `most` probes were spent.

    Hutchinson's estimate in the complement of `steps` Lanczos vectors, where few probes do; exact up to 64 parameters,
    and up to `most` where probes would cost as many products as a complete basis.

    Raises:
        InputError: `rel_error` is not positive; see also `Products`.
    """
    if not rel_error > 0:
        raise InputError(f"rel_error must be positive, not {rel_error}; 0.01 gives one per cent.")
    tally = Tally("products", planned(_size(theta, mask), steps, most))
    space = Space(loss, theta, mask, generator, tally)
    steps, _ = _affordable(space, 1, min(steps, space.n), memory)
    krylov = Krylov(space).extended(space.n if space.n <= 64 else steps)
    rest = Complement(krylov)
    value, error = rest.trace() if krylov.complete else (0.0, math.inf)
    while error > rel_error * abs(value) or 0 < rest.count < 4:
        left = min(most, space.n - krylov.size) - rest.count
        if left <= 0:
            if space.n <= most:
                tally.plan(space.n - krylov.size)
                value, error = Complement(krylov.extended(space.n)).trace()
            break
        rest.probe(min(left, space.product.width))
        value, error = rest.trace()
    tally.finish()
    return value, error


def spectral_density(
    loss: Matrix,
    theta: Tensor,
    steps: int = 40,
    probes: int = 8,
    sigma: float = 0.01,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    memory: float = MEMORY,
) -> Density:
    """Return the density of eigenvalues from `probes` Lanczos runs of `steps` steps (stochastic Lanczos quadrature).

    Converged, isolated pairs of the first run become atoms of mass 1/n and are projected out of the further runs; the
    rest is smoothed by a Gaussian of width `sigma` times the spectrum's range. The error is the standard error over the
    runs; with one probe it is the one that follows from the draw on the sphere. The runs take fewer steps where
    `memory` holds fewer vectors, and several side by side where products with several vectors pay.
    """
    if probes < 1 or not sigma > 0:
        raise InputError(f"probes = {probes} and sigma = {sigma} must both be positive; 8 and 0.01 are usual.")
    tally = Tally("products", steps * probes)
    space = Space(loss, theta, mask, generator, tally)
    if steps >= 1:
        steps, _ = _affordable(space, 1, min(steps, space.n), memory)
    first = Krylov(space).extended(steps).result()
    atoms, coordinates = atoms_of(first, space.n)
    vectors = first.vectors(coordinates)
    nodes, fewer = [nodes_of(first)], shorter(first, space.n)
    left = probes - 1 if len(first.basis) < space.n else 0
    abreast = max(1, min(space.product.width, space.room(memory) // (len(vectors) + steps)))
    while left > 0:
        runs = [Krylov(space, against=vectors) for _ in range(min(abreast, left))]
        left -= len(runs)
        for _ in range(min(run.prepared(steps) for run in runs)):
            for run, w in zip(runs, space.product(torch.stack([run.following for run in runs])), strict=True):
                run.absorb(w)
        nodes += [nodes_of(run.result()) for run in runs]
        fewer += [pair for run in runs for pair in shorter(run.result(), space.n, atoms)]
    tally.finish()
    return smoothed(nodes, atoms, space.n, sigma, shorter=fewer)


def _angles(values: Tensor, residuals: Tensor) -> Tensor:
    """Return residual over distance to the next Ritz value (m,), at most 1 (Davis and Kahan)."""
    apart = torch.nn.functional.pad((values[:-1] - values[1:]), (1, 1), value=torch.inf)
    apart = torch.minimum(apart[:-1], apart[1:])
    return torch.where(apart > residuals, residuals / apart, 1.0)


def _read(krylov: Krylov, k: int, sigma: float, note: str) -> Spectrum:
    """Return what a run says so far, without any probe."""
    run, space = krylov.result(), krylov.space
    values, coordinates, residuals = run.ritz()
    atoms, _ = atoms_of(run, space.n)
    mass, mass_error = negative_mass(run, atoms, space.n)
    return Spectrum(
        values=values[:k],
        vectors=space.embed(run.vectors(coordinates[:, :k])),
        residuals=residuals[:k],
        smallest=values[-1].item(),
        trace=math.nan,
        trace_error=math.nan,
        density=smoothed([nodes_of(run)], atoms, space.n, sigma, shorter=shorter(run, space.n)),
        smallest_residual=residuals[-1].item(),
        products=space.product.count,
        negative_mass=mass,
        negative_mass_error=mass_error,
        traces={},
        coupling=None,
        angles=_angles(values, residuals)[:k],
        note=note,
    )


def _size(theta: Tensor, mask: Tensor | None) -> int:
    return len(theta) if mask is None else int(mask.count_nonzero())


def _check_k(k: int, n: int):
    if not 1 <= k <= n:
        raise InputError(f"k = {k} eigenpairs were asked of {n} parameters; choose k between 1 and {n}.")


def _affordable(space: Space, least: int, steps: int, memory: float) -> tuple[int, str]:
    """Return as many of `steps` as `memory` bytes hold vectors, and a sentence where that is fewer."""
    if least > steps:
        raise InputError(f"k = {least} eigenpairs need at least {least} Lanczos steps, not {steps}; raise steps.")
    room = space.room(memory)
    if room >= steps:
        return steps, ""
    if room < least:
        raise InputError(
            f"a basis of {least} vectors of {space.n:,} parameters does not fit into {memory / 2**20:,.0f} MB; give "
            f"{least * space.n * space.theta.element_size() / 2**20:,.0f} MB or more, or ask for fewer pairs."
        )
    return room, f"the basis was kept to {room} of {steps} Lanczos vectors, which is what {memory / 2**20:,.0f} MB hold"
