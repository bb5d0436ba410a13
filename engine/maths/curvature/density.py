"""A density of eigenvalues from quadrature nodes: isolated eigenvalues as atoms, the bulk smoothed, with its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modalscape.engine.maths.standard_error import mean_and_error

Quadrature = tuple[Tensor, Tensor]
"""Nodes (m,) and weights (m,) of a run."""


@dataclass(frozen=True)
class Density:
    """How eigenvalues are spread: a smooth bulk and single atoms, together of mass 1.

    `density` (G,) is the bulk per unit of eigenvalue on `grid` (G,), `error` (G,) its standard error; `atoms` (A,) are
    eigenvalues that stand apart, each with mass 1/n in `masses` (A,). Multiplied by n it counts eigenvalues.
    `width` is the standard deviation of the smoothing Gaussian, in units of the eigenvalues.
    """

    grid: Tensor
    density: Tensor
    error: Tensor
    atoms: Tensor
    masses: Tensor
    width: float

    def total(self) -> Tensor:
        """Return bulk and atoms (G,) on the grid, the atoms smoothed as the bulk is."""
        return self.density + self.masses @ _gaussian(self.grid, self.atoms, self.width)


def negative_mass(nodes: Tensor, weights: Tensor, atoms: Tensor, n: int) -> tuple[float, float]:
    """Return sum |negative| / sum |all| over n eigenvalues (a fraction), and its standard error.

    From the quadrature, nodes (m,) and weights (m,), of one run whose start was drawn on the sphere; the nodes that are
    `atoms` (A,) count 1/n each. To first order the error of the ratio R is that of the mean of f = |negative| - R |all|
    over the bulk, whose variance is 2 (<f^2> - <f>^2) / (d + 2), d = n - A, as in `smoothed`.
    """
    bulk = ~torch.isin(nodes, atoms)
    nodes, weights = nodes[bulk], weights[bulk]
    weights = weights / weights.sum() * (1 - len(atoms) / n) if len(nodes) else weights
    values = torch.cat([nodes, atoms])
    shares = torch.cat([weights, torch.full_like(atoms, 1 / n)])
    whole = (shares @ values.abs()).item()
    if not whole:
        return 0.0, 0.0
    ratio = (shares @ values.clamp(max=0.0).abs()).item() / whole
    f = nodes.clamp(max=0.0).abs() - ratio * nodes.abs()
    share = weights.sum().item()
    if share <= 0:
        return ratio, 0.0
    spread = max((weights @ f**2).item() / share - ((weights @ f).item() / share) ** 2, 0.0)
    return ratio, share * math.sqrt(2 * spread / (n - len(atoms) + 2)) / whole


def smoothed(
    runs: list[Quadrature],
    atoms: Tensor,
    n: int,
    sigma: float,
    points: int = 1000,
    shorter: Sequence[tuple[Quadrature, Tensor]] = (),
) -> Density:
    """Return the density of n eigenvalues from the quadrature `runs` of (nodes (m,), weights (m,)).

    Nodes of the first run that are `atoms` (A,) are left out of the bulk, whose mass is 1 - A/n in every run. `sigma`
    is the smoothing width as a fraction of the range of the first run. The error is the standard error over the runs;
    of a single run, that of a vector drawn on the sphere of the d = n - A remaining dimensions, where
    Var(v' f v) = 2 (<f^2> - <f>^2) / (d + 2). The change from `shorter` runs, each given as quadrature and atoms, is
    added in quadrature: what more steps would still change.
    """
    nodes, weights = runs[0]
    bulk = ~torch.isin(nodes, atoms)
    runs = [(nodes[bulk], weights[bulk])] + runs[1:]
    low, high = nodes.min().item(), nodes.max().item()
    scale = max(abs(low), abs(high)) or 1.0
    width = sigma * (high - low if high - low > 1e-6 * scale else scale)
    pad = 5 * width
    grid = torch.linspace(low - pad, high + pad, max(points, math.ceil(10 / sigma)), dtype=torch.float64)
    masses = torch.full((len(atoms),), 1 / n, dtype=torch.float64)
    share = 1 - len(atoms) / n
    if len(atoms) == n or not bulk.any():
        zero = torch.zeros_like(grid)
        return Density(grid, zero, zero, atoms, masses, width)
    first, second = [], []
    for values, weight in runs:
        kernel, weight = _gaussian(grid, values, width), weight / weight.sum()
        first.append(weight @ kernel)
        second.append(weight @ kernel**2)
    first, second = torch.stack(first), torch.stack(second)
    mean, error = mean_and_error(first)
    if len(runs) == 1:
        error = (2 * (second - first**2).clamp(min=0) / (n - len(atoms) + 2)).sqrt().squeeze(0)
    density = Density(grid, share * mean, share * error, atoms, masses, width)
    if not shorter:
        return density
    other = sum(_plain(grid, width, *run, n) for run in shorter) / len(shorter)
    return replace(density, error=torch.hypot(density.error, other - density.total()))


def _plain(grid: Tensor, width: float, run: Quadrature, atoms: Tensor, n: int) -> Tensor:
    """Return bulk and atoms (G,) on a given grid."""
    nodes, weights = run
    bulk = ~torch.isin(nodes, atoms)
    share = weights[bulk] / weights[bulk].sum() * (1 - len(atoms) / n)
    nodes, share = torch.cat([nodes[bulk], atoms]), torch.cat([share, torch.full_like(atoms, 1 / n)])
    return share @ _gaussian(grid, nodes, width)


def _gaussian(grid: Tensor, centres: Tensor, width: float) -> Tensor:
    """Return Gaussians (len(centres), G) of unit mass."""
    z = (grid - centres[:, None]) / width
    return torch.exp(-0.5 * z**2) / (width * math.sqrt(2 * math.pi))
