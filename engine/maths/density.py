"""A density of eigenvalues from quadrature nodes: isolated eigenvalues as atoms, the bulk smoothed, with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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


def smoothed(runs: list[tuple[Tensor, Tensor]], atoms: Tensor, n: int, sigma: float, points: int = 1000) -> Density:
    """Return the density of n eigenvalues from the quadrature `runs` of (nodes (m,), weights (m,)).

    Nodes of the first run that are `atoms` (A,) are left out of the bulk, whose mass is 1 - A/n in every run. `sigma`
    is the smoothing width as a fraction of the range of the first run. The error is the standard error over the runs;
    of a single run, that of a vector drawn on the sphere of the d = n - A remaining dimensions, where
    Var(v' f v) = 2 (<f^2> - <f>^2) / (d + 2).
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
    if len(runs) > 1:
        error = first.std(0) / math.sqrt(len(runs))
    else:
        error = (2 * (second - first**2).clamp(min=0) / (n - len(atoms) + 2)).sqrt().squeeze(0)
    return Density(grid, share * first.mean(0), share * error, atoms, masses, width)


def _gaussian(grid: Tensor, centres: Tensor, width: float) -> Tensor:
    """Return Gaussians (len(centres), G) of unit mass."""
    z = (grid - centres[:, None]) / width
    return torch.exp(-0.5 * z**2) / (width * math.sqrt(2 * math.pi))
