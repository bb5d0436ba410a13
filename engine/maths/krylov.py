"""Krylov bases of a Hessian: products, Lanczos steps that stay orthogonal, and the trace outside a basis."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.knobs import InputError

Loss = Callable[[Tensor], Tensor]


class Products:
    """The map v -> H v at one point, (n,) to (n,): double backward on a graph that is built once and kept.

    The graph belongs to a detached copy of `theta`, so training may go on while products are taken.

    Raises:
        InputError: the loss is not a finite scalar, or has no graph that leads to `theta`.
    """

    def __init__(self, loss: Loss, theta: Tensor):
        """Evaluate the loss and its gradient once, with a graph."""
        self.theta = theta.detach().clone().requires_grad_()
        self.count = 0
        with torch.enable_grad(), twice_differentiable(theta.device):
            value = _checked(loss(self.theta))
            (self.grad,) = torch.autograd.grad(value, self.theta, create_graph=True, materialize_grads=True)

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v for `v` (n,)."""
        self.count += 1
        if not self.grad.requires_grad:
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(self.grad, self.theta, v, retain_graph=True, materialize_grads=True)
        return product


class Space:
    """The block of parameters under study: its products, its random vectors, its way back to all parameters."""

    def __init__(self, loss: Loss, theta: Tensor, mask: Tensor | None, generator: torch.Generator | None):
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
            whole, inner = theta.clone(), loss
            theta = whole[index]

            def loss(block):
                return inner(whole.index_copy(0, index, block))

        self.product = Products(loss, theta)
        self.theta, self.n = theta, len(theta)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def embed(self, vectors: Tensor) -> Tensor:
        """Return vectors (k, n) of the block as vectors (k, P), zero outside the block."""
        if self.index is None:
            return vectors
        return vectors.new_zeros(len(vectors), self.size).index_copy(1, self.index, vectors)

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
    """An orthonormal basis (m, n) of a Krylov space and the tridiagonal matrix of the Hessian in it.

    `alpha` (m,) is the diagonal and `beta` (m,) the off-diagonal, in float64 on the CPU; `beta[-1]` is the norm of what
    the basis leaves out, 0 where the basis is invariant.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor

    @property
    def matrix(self) -> Tensor:
        """The tridiagonal matrix (m, m)."""
        return self.alpha.diag() + self.beta[:-1].diag(1) + self.beta[:-1].diag(-1)

    @property
    def rounding(self) -> float:
        """The error that arithmetic alone leaves in an eigenvalue, as a number of the Hessian's unit."""
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
    """A Lanczos run that can be lengthened; orthogonal throughout to the rows of `against` (a, n)."""

    def __init__(self, space: Space, against: Tensor | None = None, room: int = 0):
        self.space, self.product = space, space.product
        self.fixed = 0 if against is None else len(against)
        self.rows = space.theta.new_empty(self.fixed + room, space.n)
        if against is not None:
            self.rows[: self.fixed] = against
        self.size, self.alpha, self.beta, self.scale = 0, [], [], 0.0
        self.following = self._fresh() if self.fixed < space.n else None

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.fixed + self.size == self.space.n

    def extended(self, steps: int) -> Krylov:
        """Take up to `steps` more steps; a basis that is complete stays as it is."""
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}.")
        steps = min(steps, self.space.n - self.fixed - self.size)
        used = self.fixed + self.size
        if used + steps > len(self.rows):
            more = max(steps, used // 2)
            self.rows = torch.cat([self.rows[:used], self.rows.new_empty(more, self.space.n)])
        for _ in range(steps):
            self._step()
        return self

    def _step(self):
        at = self.fixed + self.size
        v = self.rows[at] = self.following
        w = self.product(v)
        self.alpha.append(_dot(v, w))
        self.size += 1
        w = self._orthogonal(w)
        beta = 0.0 if self.complete else _norm(w)
        if not math.isfinite(self.alpha[-1] + beta):
            raise InputError("a product with the Hessian is not finite; the loss has no second derivative at theta.")
        self.scale = max(self.scale, abs(self.alpha[-1]) + beta)
        # Below a few units of rounding, w is noise: the space is invariant and a fresh vector continues. The
        # specification's n eps |T| would cut real coupling (6e-3 of |T| at n = 50,000 in float32).
        broken = beta <= 8 * torch.finfo(w.dtype).eps * self.scale
        self.beta.append(0.0 if broken else beta)
        if not self.complete:
            self.following = self._fresh() if broken else w / beta

    def _orthogonal(self, w: Tensor) -> Tensor:
        basis = self.rows[: self.fixed + self.size]
        for _ in range(2):
            w = w - basis.T @ (basis @ w)
        return w

    def _fresh(self) -> Tensor:
        w = self._orthogonal(self.space.gaussian())
        w = self._orthogonal(w / _norm(w))
        return w / _norm(w)

    def result(self) -> Lanczos:
        """Return the run so far."""
        basis = self.rows[self.fixed : self.fixed + self.size]
        return Lanczos(*(torch.tensor(x, dtype=torch.float64) for x in (self.alpha, self.beta)), basis)


class Complement:
    """The trace: exact on the basis Q of a run, sampled on the projection P = I - Q Q' by Rademacher vectors z.

    tr H = sum alpha + E[z' P H P z]. With A = P H P the variance is 2 (|A|_F^2 - sum A_ii^2); both terms come from the
    same products, and the larger of this and the sample variance is used, since a few probes may agree by chance.
    """

    def __init__(self, space: Space, run: Lanczos):
        self.space, self.basis = space, run.basis
        self.inside = run.alpha.sum().item()
        self.floor = run.rounding + torch.finfo(run.basis.dtype).eps * run.alpha.abs().sum().item()
        self.found: list[float] = []
        self.diagonal, self.squares = torch.zeros_like(space.theta), 0.0

    @property
    def count(self) -> int:
        """Probes spent."""
        return len(self.found)

    def probe(self) -> None:
        """Spend one product."""
        z = self.space.signs()
        image = self._outside(self.space.product(self._outside(z)))
        self.found.append(_dot(z, image))
        self.diagonal, self.squares = self.diagonal + z * image, self.squares + _norm(image) ** 2

    def _outside(self, v: Tensor) -> Tensor:
        return v - self.basis.T @ (self.basis @ v)

    def trace(self) -> tuple[float, float]:
        """Return the trace so far and its standard error, never below rounding."""
        if len(self.basis) == self.space.n:
            return self.inside, self.floor
        count = self.count
        if not count:
            raise InputError(
                f"probes must be at least 1, not {count}; {len(self.basis)} steps leave some of the trace out."
            )
        mean = sum(self.found) / count
        squares = (_norm(self.diagonal) ** 2 - self.squares) / max(count * (count - 1), 1)
        variance = 2 * max(self.squares / count - max(squares, 0.0), 0.0)
        sample = sum((x - mean) ** 2 for x in self.found) / max(count - 1, 1)
        return self.inside + mean, math.hypot(math.sqrt(max(variance, sample) / count), self.floor)


def _checked(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError(f"the loss must return one number, not {getattr(value, 'shape', type(value).__name__)}.")
    if not value.requires_grad:
        raise InputError("the loss has no graph that leads to theta; compute it from theta without detach or no_grad.")
    if not torch.isfinite(value):
        raise InputError(f"the loss is {value.item()} at theta; its curvature exists only where it is finite.")
    return value.reshape(())


@contextmanager
def twice_differentiable(device: torch.device) -> Generator[None]:
    """Fused attention and cuDNN's recurrent kernels have no second derivative, and autocast would round it."""
    with ExitStack() as stack:
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()


def _dot(a: Tensor, b: Tensor) -> float:
    return (_double(a) @ _double(b)).item()


def _norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(_double(x)).item()
