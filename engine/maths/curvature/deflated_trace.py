"""What a Krylov basis leaves out, sampled: the trace, whole and by part, and how strongly the parts are coupled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.krylov import Krylov, norm


@dataclass(frozen=True)
class Coupling:
    """How strongly the parts of theta act on each other through a matrix H, with one standard error each.

    `norms` (K, K) are |H_ab|_F; `values` (K, K) are |H_ab|_F / sqrt(|H_aa|_F |H_bb|_F): 1 on the diagonal, 0 where the
    curvature in one part does not depend on the other, and at most 1 if H is positive semi-definite.
    """

    names: tuple[str, ...]
    norms: Tensor
    norms_error: Tensor
    values: Tensor
    error: Tensor


class Complement:
    """The traces of H and of its diagonal blocks, and the norms of all blocks: known on a basis Q, sampled outside.

    With P = I - QQ' and S the basis and the vector that follows it, H = S'KS + C, where K is the projection of H,
    bordered by beta, and C = PHP. The first term is known. C is sampled by Rademacher vectors z_a that live on one part
    a each: z_a'C z_a has the mean tr C_aa, and |C z_a|^2 on part b the mean |C_ba|_F^2. So the whole and the parts
    share every product, and the terms z_a'C z_b, which would only add noise to the trace of the whole, never arise.

    Var(z_a'C z_a) = 2 (|C_aa|_F^2 - sum C_ii^2); both terms come from the same products, and the larger of this and the
    sample variance is used, since a few probes may agree by chance. H is applied to z_a, not to P z_a, which lives on
    all parts: products with what lives on one part may cost less (`PartedHessian`).
    """

    def __init__(self, krylov: Krylov, parts: Mapping[str, slice] | None = None):
        """Prepare for a basis, never restarted, as it is now; `parts` are slices that together cover theta (n,)."""
        run = krylov.result()
        self.space, self.basis, self.following = krylov.space, run.basis, krylov.following
        self.parts = parts or {"": slice(0, self.space.n)}
        self.inner, self.leak = run.matrix, run.beta[-1].item()
        if self.following is not None:
            self.inner = torch.nn.functional.pad(self.inner, (0, 1, 0, 1))
            self.inner[-1, -2] = self.inner[-2, -1] = self.leak
        self.inside = run.alpha.sum().item()
        self.floor = run.rounding + torch.finfo(run.basis.dtype).eps * run.alpha.abs().sum().item()
        self.grams = {name: self._gram(where) for name, where in self.parts.items()} if parts else {}
        self.found: list[list[float]] = []
        self.crossed: list[list[Tensor]] = []
        self.diagonal = torch.zeros_like(self.space.theta)
        self.squares = torch.zeros(len(self.parts), dtype=torch.float64)

    @property
    def count(self) -> int:
        """Probes spent; each costs one product a part."""
        return len(self.found)

    def probe(self, count: int = 1) -> None:
        """Spend `count` probes."""
        jobs = self._jobs(count)
        while group := list(islice(jobs, self.space.product.width)):
            z = torch.stack([row for _, row in group])
            images = self.space.product(z)
            images = images - images @ self.basis.T @ self.basis
            if self.following is not None:
                # PHQQ'z is known: H takes the basis out of itself by beta alone, from its last vector to the next.
                images -= (self.leak * (z @ self.basis[-1]))[:, None] * self.following
            for (part, row), image in zip(group, images, strict=True):
                self._noted(part, row, image)

    def _jobs(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """Return each part's number with its share (n,) of a random vector, one vector after the other."""
        for _ in range(count):
            z = self.space.signs()
            for i, where in enumerate(self.parts.values()):
                row = torch.zeros_like(z)
                row[where] = z[where]
                yield i, row

    def _noted(self, part: int, z: Tensor, image: Tensor) -> None:
        if not part:
            self.found.append([])
            self.crossed.append([])
        where = list(self.parts.values())[part]
        on = z[where] * image[where]
        self.found[-1].append(on.double().sum().item() if on.device.type != "mps" else on.sum().item())
        self.diagonal[where] += on
        self.squares[part] += norm(on) ** 2
        if self.grams:
            known = self.inner @ self._coordinates(z)
            self.crossed[-1].append(torch.stack([self._squared(where, image, known) for where in self.parts.values()]))

    def _squared(self, where: slice, image: Tensor, known: Tensor) -> Tensor:
        """Return |C_ba z_a|^2 + 2 (S'KS)_ba z_a . C_ba z_a; with its mean, |H_ba|_F^2 - |(S'KS)_ba|_F^2."""
        return norm(image[where]) ** 2 + 2 * self._coordinates(image, where) @ known

    def _coordinates(self, v: Tensor, where: slice = slice(None)) -> Tensor:
        """Return S v (m + 1,), of the entries in `where`."""
        found = self.basis[:, where] @ v[where]
        if self.following is not None:
            found = torch.cat([found, (self.following[where] @ v[where])[None]])
        return found.cpu().double()

    def _gram(self, where: slice) -> Tensor:
        """Return S S' (m + 1, m + 1), of the entries in `where`."""
        rows = self.basis[:, where]
        found = (rows @ rows.T).cpu().double()
        if self.following is None:
            return found
        found = torch.nn.functional.pad(found, (0, 1, 0, 1))
        found[-1] = found[:, -1] = self._coordinates(self.following, where)
        return found

    def trace(self) -> tuple[float, float]:
        """Return the trace so far and its standard error, never below rounding."""
        samples, variances = self._sampled()
        return self._estimate(self.inside, samples.sum(1), variances.sum().item())

    def traces(self) -> dict[str, tuple[float, float]]:
        """Return part to the trace of its diagonal block and its standard error."""
        samples, variances = self._sampled()
        inside = {name: (self.inner * gram).sum().item() for name, gram in self.grams.items()}
        columns = zip(inside, samples.T, variances.tolist(), strict=True)
        return {name: self._estimate(inside[name], column, variance) for name, column, variance in columns}

    def coupling(self) -> Coupling | None:
        """Return how strongly the parts are coupled, errors by the jackknife; None where one probe tells no error."""
        if len(self.basis) < self.space.n and self.count < 2:
            return None
        bent = [self.inner @ gram for gram in self.grams.values()]
        known = torch.stack([torch.stack([(a * b.T).sum() for b in bent]) for a in bent])
        known = 0.5 * (known + known.T)
        if len(self.basis) == self.space.n:
            norms, values = _coupled(known)
            rounding = self.floor * torch.ones_like(norms)
            return Coupling(tuple(self.grams), norms, rounding, values, rounding / norms.diagonal().max())
        samples = torch.stack([torch.stack(rows) for rows in self.crossed])
        samples = 0.5 * (samples + samples.mT)
        norms, values = _coupled(known + samples.mean(0))
        without = (samples.sum(0) - samples) / (self.count - 1)
        errors = [_spread(torch.stack(kind)) for kind in zip(*[_coupled(known + w) for w in without], strict=True)]
        return Coupling(tuple(self.grams), norms, errors[0], values, errors[1])

    def _sampled(self) -> tuple[Tensor, Tensor]:
        """Return the samples (count, K) of tr C_aa and the variance (K,) of one of them."""
        if len(self.basis) == self.space.n:
            return torch.zeros(1, len(self.parts), dtype=torch.float64), torch.zeros(len(self.parts))
        count = self.count
        if not count:
            raise InputError(
                f"probes must be at least 1, not {count}; {len(self.basis)} steps leave some of the trace out."
            )
        totals = torch.tensor([norm(self.diagonal[where]) ** 2 for where in self.parts.values()], dtype=torch.float64)
        diagonal = ((totals - self.squares) / max(count * (count - 1), 1)).clamp(min=0.0)
        return torch.tensor(self.found, dtype=torch.float64), 2 * (self.squares / count - diagonal).clamp(min=0.0)

    def _estimate(self, inside: float, samples: Tensor, variance: float) -> tuple[float, float]:
        variance = max(variance, samples.var().item() if len(samples) > 1 else 0.0)
        return inside + samples.mean().item(), math.hypot(math.sqrt(variance / len(samples)), self.floor)


def _coupled(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return |H_ab|_F and |H_ab|_F / sqrt(|H_aa|_F |H_bb|_F) from estimates (K, K) of |H_ab|_F^2; 0 where H_aa is 0."""
    norms = squares.clamp(min=0.0).sqrt()
    scale = (norms.diagonal()[:, None] * norms.diagonal()).sqrt()
    return norms, torch.where(scale > 0, norms / scale, 0.0)


def _spread(without: Tensor) -> Tensor:
    """Return the jackknife's standard error from the estimates (count, …) that leave one sample out each."""
    count = len(without)
    return ((count - 1) / count * (without - without.mean(0)).square().sum(0)).sqrt()
