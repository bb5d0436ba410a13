"""A Lanczos run read as a quadrature of the spectrum: which nodes are eigenvalues, and what more steps would change."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from modalscape.engine.maths.curvature import density
from modalscape.engine.maths.curvature.density import Quadrature, smoothed
from modalscape.engine.maths.curvature.krylov import Lanczos


def nodes_of(run: Lanczos) -> Quadrature:
    """Return the nodes (m,) and weights (m,) of the Gauss quadrature of a run."""
    values, coordinates, _ = run.ritz()
    return values, coordinates[0] ** 2


def atoms_of(run: Lanczos, n: int) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (a,) of a run that stand for one eigenvalue each, and their coordinates (m, a).

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
    return values[single], coordinates[:, single]


def negative_mass(run: Lanczos, atoms: Tensor, n: int) -> tuple[float, float]:
    """Return the negative mass and its error: of the random start, and of the quadrature, told by a quarter less."""
    value, error = density.negative_mass(*nodes_of(run), atoms, n)
    for (nodes, weights), fewer in shorter(run, n):
        error = math.hypot(error, value - density.negative_mass(nodes, weights, fewer, n)[0])
    return value, error


def shorter(run: Lanczos, n: int, atoms: Tensor | None = None) -> list[tuple[Quadrature, Tensor]]:
    """Return quadrature and atoms of the run with a quarter fewer steps; nothing where the basis is complete.

    A run that was kept orthogonal to the vectors of known `atoms` has those.
    """
    size = len(run.alpha)
    if size in (1, n):
        return []
    size -= max(size // 4, 1)
    run = replace(run, alpha=run.alpha[:size], beta=run.beta[:size], basis=run.basis[:size])
    return [(nodes_of(run), atoms_of(run, n)[0] if atoms is None else atoms)]


def settled(run: Lanczos, k: int, n: int, sigma: float) -> bool:
    """Return whether more steps would change little.

    That is: the residual bounds of the top k are below 1e-3 of themselves (their errors, which are quadratic in them,
    are far smaller) and that of a negative smallest one below 0.1, or all that is down to rounding; a quarter fewer
    steps change the density by less than its random start does (root mean square) or than a fiftieth of its mass; and
    they change the negative mass by less than 0.05.
    """
    values, _, residuals = run.ritz()
    floor = 2 * run.rounding
    if (residuals[:k] > (1e-3 * values[:k].abs()).clamp(min=floor)).any():
        return False
    if values[-1] < 0 and residuals[-1] > max(0.1 * values[-1].abs().item(), floor):
        return False
    quadrature, atoms = [nodes_of(run)], atoms_of(run, n)[0]
    if negative_mass(run, atoms, n)[1] > math.hypot(density.negative_mass(*quadrature[0], atoms, n)[1], 0.05):
        return False
    by_start = smoothed(quadrature, atoms, n, sigma)
    both = smoothed(quadrature, atoms, n, sigma, shorter=shorter(run, n)).error
    change = (both.square() - by_start.error.square()).clamp(min=0)
    spacing = by_start.grid[1] - by_start.grid[0]
    return bool(change.sum() < by_start.error.square().sum() or change.sqrt().sum() * spacing < 0.02)
