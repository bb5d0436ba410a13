"""Krylov bases of a symmetric matrix: the space they live in, and Lanczos steps that stay orthogonal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.matrix_products import Loss, Matrix, Products, terms, twice_differentiable
from modalscape.engine.maths.progress import Tally

__all__ = ["Krylov", "Lanczos", "Loss", "Products", "Space", "twice_differentiable"]


class Space:
    """The block of parameters under study: its products, its random vectors, its way back to all parameters."""

    def __init__(
        self,
        matrix: Matrix,
        theta: Tensor,
        mask: Tensor | None,
        generator: torch.Generator | None,
        tally: Tally | None = None,
    ):
        theta = theta.detach()
        if theta.dim() != 1 or not theta.is_floating_point() or not len(theta):
            raise InputError(f"theta has shape {tuple(theta.shape)} and type {theta.dtype}; give floats (P,), P > 0.")
        self.index, self.size = None, len(theta)
        if mask is not None:
            if mask.shape != theta.shape or not mask.any():
                raise InputError(
                    f"mask has shape {tuple(mask.shape)} and marks {int(mask.count_nonzero())} of the "
                    f"{len(theta)} parameters; give ({len(theta)},) with at least one marked."
                )
            self.index = index = mask.to(theta.device).nonzero().squeeze(1)
            whole = theta.clone()
            theta = whole[index]

            def embed(block):
                return whole.index_copy(0, index, block)

            matrix = [(term.within(embed), weight) for term, weight in terms(matrix)]
        self.product = Products(matrix, theta, tally=tally)
        self.theta, self.n = theta, len(theta)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def embed(self, vectors: Tensor) -> Tensor:
        """Return vectors (k, n) of the block as vectors (k, P), zero outside the block."""
        if self.index is None:
            return vectors
        return vectors.new_zeros(len(vectors), self.size).index_copy(1, self.index, vectors)

    def room(self, memory: float) -> int:
        """Return how many vectors fit into `memory` bytes."""
        return int(memory // (self.n * self.theta.element_size()))

    def gaussian(self) -> Tensor:
        """Return a Gaussian vector (n,), the same in every precision."""
        draw = torch.randn(self.n, generator=self.generator, device=self.generator.device, dtype=torch.float32)
        return draw.to(self.theta)

    def signs(self) -> Tensor:
        """Return a Rademacher vector (n,)."""
        draw = torch.randint(0, 2, (self.n,), generator=self.generator, device=self.generator.device)
        return draw.to(self.theta) * 2 - 1


@dataclass(frozen=True)
class Lanczos:
    """An orthonormal basis (m, n) of a Krylov space and the projection of the matrix onto it.

    `alpha` (m,) is the diagonal and `beta` (m,) the off-diagonal, in float64 on the CPU; `beta[-1]` is the norm of what
    the basis leaves out, 0 where the basis is invariant. After a restart the first len(`spikes`) vectors are Ritz
    vectors, coupled not to each other but to the one after them, by `spikes`.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor
    spikes: Tensor

    @property
    def matrix(self) -> Tensor:
        """The projection (m, m): tridiagonal, or after a restart an arrow and then tridiagonal."""
        kept, inner = len(self.spikes), self.beta[:-1].clone()
        inner[:kept] = 0.0
        found = self.alpha.diag() + inner.diag(1) + inner.diag(-1)
        if kept and kept < len(found):
            found[kept, :kept] = found[:kept, kept] = self.spikes
        return found

    @property
    def rounding(self) -> float:
        """The error that arithmetic alone leaves in an eigenvalue, as a number of the matrix's unit."""
        return 16 * torch.finfo(self.basis.dtype).eps * (self.alpha.abs() + self.beta).max().item()

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values (m,) largest first, coordinates (m, m) by column, and residual bounds (m,)."""
        values, coordinates = torch.linalg.eigh(self.matrix)
        values, coordinates = values.flip(0), coordinates.flip(1)
        return values, coordinates, (self.beta[-1] * coordinates[-1]).abs() + self.rounding

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return the unit vectors (k, n) with the given coordinates (m, k), the largest entry of each positive."""
        vectors = coordinates.T.to(self.basis) @ self.basis
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()


class Krylov:
    """A Lanczos run that can be lengthened or restarted; orthogonal throughout to the rows of `against` (a, n)."""

    def __init__(self, space: Space, against: Tensor | None = None, room: int = 0):
        self.space, self.product = space, space.product
        self.fixed = 0 if against is None else len(against)
        self.rows = space.theta.new_empty(self.fixed + room, space.n)
        if against is not None:
            self.rows[: self.fixed] = against
        self.size, self.alpha, self.beta, self.scale = 0, [], [], 0.0
        self.spikes = torch.zeros(0, dtype=torch.float64)
        self.following = self._fresh() if self.fixed < space.n else None
        """The unit vector (n,) that the next step adds; None where the basis is complete."""

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.fixed + self.size == self.space.n

    def extended(self, steps: int) -> Krylov:
        """Take up to `steps` more steps; a basis that is complete stays as it is."""
        for _ in range(self.prepared(steps)):
            self.absorb(self.product(self.following))
        return self

    def prepared(self, steps: int) -> int:
        """Return how many of `steps` more steps there can be, and make room for them."""
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}.")
        used = self.fixed + self.size
        steps = min(steps, self.space.n - used)
        if used + steps > len(self.rows):
            more = max(steps, used // 2)
            self.rows = torch.cat([self.rows[:used], self.rows.new_empty(more, self.space.n)])
        return steps

    def absorb(self, w: Tensor) -> None:
        """Take one step: `w` (n,) is the product with `following`."""
        at = self.fixed + self.size
        v = self.rows[at] = self.following
        self.alpha.append(_dot(v, w))
        self.size += 1
        w = self._orthogonal(w)
        beta = 0.0 if self.complete else norm(w)
        if not math.isfinite(self.alpha[-1] + beta):
            raise InputError("a product with the Hessian is not finite; the loss has no second derivative at theta.")
        self.scale = max(self.scale, abs(self.alpha[-1]) + beta)
        # Below a few units of rounding, w is noise: the space is invariant and a fresh vector continues. The
        # specification's n eps |T| would cut real coupling (6e-3 of |T| at n = 50,000 in float32).
        broken = beta <= 8 * torch.finfo(w.dtype).eps * self.scale
        self.beta.append(0.0 if broken else beta)
        self.following = None if self.complete else self._fresh() if broken else w / beta

    def restart(self, coordinates: Tensor, values: Tensor) -> None:
        """Keep of the basis only the Ritz vectors with `coordinates` (m, l) and `values` (l,), and what comes next.

        The thick restart of Wu and Simon (SIAM J. Matrix Anal. Appl. 22, 2000): what the kept vectors leave out is a
        multiple of `following`, so it goes on as a Krylov space of the same matrix.
        """
        kept, last = coordinates.shape[1], self.beta[-1]
        basis = self.rows[self.fixed : self.fixed + self.size]
        # a few columns at a time, so that no second basis stands in memory
        for columns in basis.split(2**16, 1):
            columns[:kept] = coordinates.T.to(basis) @ columns
        self.spikes = last * coordinates[-1]
        self.alpha, self.beta, self.size = values.tolist(), [0.0] * (kept - 1) + [last], kept

    def _orthogonal(self, w: Tensor) -> Tensor:
        basis = self.rows[: self.fixed + self.size]
        for _ in range(2):
            w = w - basis.T @ (basis @ w)
        return w

    def _fresh(self) -> Tensor:
        w = self._orthogonal(self.space.gaussian())
        w = self._orthogonal(w / norm(w))
        return w / norm(w)

    def result(self) -> Lanczos:
        """Return the run so far."""
        basis = self.rows[self.fixed : self.fixed + self.size]
        return Lanczos(*(torch.tensor(x, dtype=torch.float64) for x in (self.alpha, self.beta)), basis, self.spikes)


def _dot(a: Tensor, b: Tensor) -> float:
    pairs = zip(_blocks(a), _blocks(b), strict=True)
    return sum((x.double() @ y.double()).item() for x, y in pairs)


def norm(x: Tensor) -> float:
    """Return the Euclidean norm, accumulated in float64."""
    return math.hypot(*(torch.linalg.vector_norm(block.double()).item() for block in _blocks(x)))


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Return x in pieces, so that no copy of it in float64 stands in memory; on the CPU where there is no float64."""
    return (x.cpu() if x.device.type == "mps" else x).split(2**20)
