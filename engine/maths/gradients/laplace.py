"""The Laplace posterior of a linear head: a Gaussian around its weights, as narrow as the data and the prior make it.

The precision of theta = [W | b] (C, E), E = d+1, is Λ = H + τI with H the generalised Gauss-Newton matrix (GGN) of the
summed loss, Σᵢ S_i ⊗ x_i x_iᵀ, S_i = diag(p_i) - p_i p_iᵀ for a softmax head and I for squared error, where Λ is exact;
τ = 1/γ is the prior's precision. H comes in three sizes: full (n, n) with n = CE, a Kronecker product, or its diagonal.
All three add up over batches, and the prior comes in only when Λ is factored, so it may change at any time.

*Source*: BayesAgg-MTL, arXiv 2402.04005, and the authors' code (full GGN, Newton mean); the Kronecker form follows
Ritter et al., ICLR 2018, with the prior added to the products of eigenvalues rather than split between the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from modalscape.engine.errors import InputError


@dataclass(frozen=True)
class Factored:
    """Λ = H + τI taken apart."""

    sample: Callable[[Tensor], Tensor]
    """Maps standard normal numbers (S, C, E) to draws from N(0, Λ⁻¹), same shape."""
    solve: Callable[[Tensor], Tensor]
    """Maps v (C, E) to Λ⁻¹ v."""
    jitters: int = 0
    """How often the diagonal had to be raised before Λ could be factored."""


class Curvature(Protocol):
    """H of one head; see the module."""

    kind: ClassVar[str]

    def plus(self, other: Curvature) -> Curvature:
        """Return the sum of two, of the same kind."""

    def times(self, v: Tensor) -> Tensor:
        """Return H v, (C, E)."""

    def factored(self, tau: float) -> Factored:
        """Return H + τI taken apart."""


@dataclass(frozen=True)
class Full:
    """H whole."""

    kind: ClassVar[str] = "full"

    matrix: Tensor
    """(n, n); entry c·E + j belongs to output c and input j."""

    @classmethod
    def of(cls, x: Tensor, p: Tensor | None, classes: int) -> Full:
        """Return Σᵢ S_i ⊗ x_i x_iᵀ of inputs (N, E) and probabilities (N, C), or None for squared error."""
        width = x.shape[1]
        matrix = x.new_zeros(classes, width, classes, width)
        if p is None:
            matrix += torch.einsum("cd,ij->cidj", torch.eye(classes, dtype=x.dtype, device=x.device), x.T @ x)
            return cls(matrix.view(classes * width, -1))
        joint = (p[:, :, None] * x[:, None, :]).flatten(1)
        flat = matrix.view(classes * width, -1)
        for c in range(classes):
            # H is symmetric: a block row from the diagonal on, and its mirror image, are half of the work
            here, on = slice(c * width, (c + 1) * width), slice(c * width, None)
            block = -(joint[:, here].T @ joint[:, on])
            block[:, :width] += (x * p[:, c, None]).T @ x
            flat[here, on], flat[on, here] = block, block.T
        return cls(flat)

    def plus(self, other: Full) -> Full:
        """Return the sum of two."""
        return Full(self.matrix + other.matrix)

    def scaled(self, factor: float) -> Full:
        """Return the curvature of `factor` times as many such rows."""
        return Full(factor * self.matrix)

    def times(self, v: Tensor) -> Tensor:
        """Return H v, (C, E)."""
        return (self.matrix @ v.flatten()).view_as(v)

    def factored(self, tau: float) -> Factored:
        """Return H + τI taken apart by Cholesky."""
        root, jitters = cholesky(self.matrix, tau)

        def sample(noise: Tensor) -> Tensor:
            found = torch.linalg.solve_triangular(root.T, noise.flatten(1).T, upper=True).T
            return found.contiguous().view(noise.shape)

        def solve(v: Tensor) -> Tensor:
            return torch.cholesky_solve(v.reshape(-1, 1), root).view_as(v)

        return Factored(sample, solve, jitters)


@dataclass(frozen=True)
class Kronecker:
    """H as (mean of S_i) ⊗ (Σ x_i x_iᵀ): exact for squared error, else as if S_i and x_i did not vary together."""

    kind: ClassVar[str] = "kronecker"

    inputs: Tensor
    """(E, E), Σ x xᵀ."""
    outputs: Tensor
    """(C, C), Σ S."""
    rows: Tensor
    """0-d, the number of rows N."""

    @classmethod
    def of(cls, x: Tensor, p: Tensor | None, classes: int) -> Kronecker:
        """Return the two sums for inputs (N, E) and probabilities (N, C), or None for squared error."""
        if p is None:
            outputs = len(x) * torch.eye(classes, dtype=x.dtype, device=x.device)
        else:
            outputs = p.sum(0).diag() - p.T @ p
        return cls(x.T @ x, outputs, x.new_tensor(float(len(x))))

    def plus(self, other: Kronecker) -> Kronecker:
        """Return the two sums over both sets of rows."""
        return Kronecker(self.inputs + other.inputs, self.outputs + other.outputs, self.rows + other.rows)

    def scaled(self, factor: float) -> Kronecker:
        """Return the curvature of `factor` times as many such rows."""
        return Kronecker(factor * self.inputs, factor * self.outputs, factor * self.rows)

    def times(self, v: Tensor) -> Tensor:
        """Return H v, (C, E)."""
        return self.outputs @ v @ self.inputs / self.rows

    def factored(self, tau: float) -> Factored:
        """Return H + τI taken apart by the eigenvectors of both factors; exact for the product."""
        a, u = _eigen(self.inputs)
        g, w = _eigen(self.outputs / self.rows)
        powers = g[:, None] * a + tau

        def sample(noise: Tensor) -> Tensor:
            return w @ (noise * powers.rsqrt()) @ u.T

        def solve(v: Tensor) -> Tensor:
            return w @ ((w.T @ v @ u) / powers) @ u.T

        return Factored(sample, solve)


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of H."""

    kind: ClassVar[str] = "diagonal"

    diagonal: Tensor
    """(C, E)"""

    @classmethod
    def of(cls, x: Tensor, p: Tensor | None, classes: int) -> Diagonal:
        """Return Σᵢ p(1-p) x² for inputs (N, E) and probabilities (N, C); Σᵢ x² without probabilities."""
        outputs = x.new_ones(len(x), classes) if p is None else p * (1 - p)
        return cls(outputs.T @ x.square())

    def plus(self, other: Diagonal) -> Diagonal:
        """Return the sum of two."""
        return Diagonal(self.diagonal + other.diagonal)

    def scaled(self, factor: float) -> Diagonal:
        """Return the curvature of `factor` times as many such rows."""
        return Diagonal(factor * self.diagonal)

    def times(self, v: Tensor) -> Tensor:
        """Return H v, (C, E)."""
        return self.diagonal * v

    def factored(self, tau: float) -> Factored:
        """Return H + τI taken apart, which it is already."""
        powers = self.diagonal + tau
        return Factored(lambda noise: noise * powers.rsqrt(), lambda v: v / powers)


KINDS: dict[str, Any] = {kind.kind: kind for kind in (Full, Kronecker, Diagonal)}
"""Name to form of H."""


def form(wanted: str, classes: int, width: int, full_up_to: int) -> str:
    """Return the form of H for a head (C, E): the wanted one, or for `auto` full as far as n = CE allows.

    >>> form("auto", 6, 513, 4000), form("auto", 31, 513, 4000)
    ('full', 'kronecker')
    """
    if wanted != "auto":
        return wanted
    return "full" if classes * width <= full_up_to else "kronecker"


def stored(curvature: Any) -> dict[str, Any]:
    """Return the curvature as tensors and text, from which `restored` makes the same."""
    return {"kind": curvature.kind} | vars(curvature)


def restored(values: Mapping[str, Any]) -> Any:
    """Return the curvature that `stored` described."""
    return KINDS[values["kind"]](**{name: value for name, value in values.items() if name != "kind"})


def newton_mean(factored: Factored, weight: Tensor, slope: Tensor, pull: Tensor) -> Tensor:
    """Return the posterior mean (C, E) by one Newton step: θ - Λ⁻¹(∇ summed loss + pull).

    `slope` is the summed loss's gradient at θ (C, E), `pull` the prior's, Λ_prior (θ - μ_prior). Exact for squared
    error, where it is the ridge solution.
    """
    return weight - factored.solve(slope + pull)


def centred(noise: Tensor) -> Tensor:
    """Return standard normal numbers (S, …) with sample mean zero and the variance kept, S > 1.

    So the mean of anything linear in the draws has no Monte-Carlo error.
    """
    return (noise - noise.mean(0)) * (len(noise) / (len(noise) - 1)) ** 0.5


def cholesky(matrix: Tensor, tau: float) -> tuple[Tensor, int]:
    """Return the lower factor of matrix + τI and how often the diagonal had to be raised.

    The jitter starts at 1e-6 of the mean diagonal and grows tenfold.

    Raises:
        InputError: it cannot be factored even so.
    """
    size = matrix.diagonal().mean().abs() + tau
    jitter = 0.0
    for tries in range(7):
        raised = matrix.clone()
        raised.diagonal().add_(tau + jitter * size)
        root, failed = torch.linalg.cholesky_ex(raised)
        if not failed and torch.isfinite(root.diagonal()).all():
            return root, tries
        jitter = 10.0 * jitter or 1e-6
    raise InputError(
        f"The head's posterior cannot be factored, mean diagonal {float(size):.3g}: its features are not finite or far "
        f"too large; lower the learning rate."
    )


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0), vectors
