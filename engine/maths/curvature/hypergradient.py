"""How a held-out loss changes with a meta-parameter of the training loss, and how far off the answer may be.

With g = ∇L_val, H = ∇²L_train and c_i = ∂²L_train/∂w∂φ_i at the same w, implicit differentiation gives
dL_val/dφ_i = -⟨H⁻¹g, c_i⟩. The inverse is a truncated Neumann series. Two operators go by that name:

- reading `ift`: v = α Σ_{k≤K} (I - αH)ᵏ g → H⁻¹g, for H ≻ 0 and α < 2/‖H‖.
- reading `literal`: v = Σ_{k≤K} (αH)ᵏ g → (I - αH)⁻¹g, for α‖H‖ < 1, used as -α⟨v, c_i⟩. It converges where H is
  indefinite too, but to another vector: it amplifies stiff directions, where the hyper-gradient amplifies flat ones.

In both the residual of the linear system is the next term of the series, t_{K+1}, so ‖v_K - v‖ ≤ ‖t_{K+1}‖/μ (`ift`)
or ‖t_{K+1}‖/(1 - α‖H‖) (`literal`), never looser than the bounds known beforehand. For the Gauss-Newton matrix with
damping, G + δI, μ = δ is certain and the certificate holds whatever α is; for the Hessian μ comes from Lanczos and the
certificate is an estimate. Neither covers an inner problem that has not converged, or the noise of a mini-batch.

*Source*: the literal reading is equation 15 of arXiv 2602.16197 as a third party describes it; `ift` is Lorraine et
al., arXiv 1911.02590, algorithm 3, there with α times the sum of K + 1 terms. The residual certificate, the
per-parameter sign test and the damped Gauss-Newton mode are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.krylov import Krylov
from modalscape.engine.maths.curvature.matrix_products import GaussNewtonGraph

READINGS = ("ift", "literal")
PATIENCE = 3
"""Rises of ‖t_k‖ in a row after which a series counts as divergent."""


@dataclass(frozen=True)
class Series:
    """A truncated Neumann series: `solution` v_K (P,), `residual` t_{K+1} (P,), `norms` ‖t_0‖ … ‖t_{K+1}‖."""

    solution: Tensor
    residual: Tensor
    norms: Tensor
    diverged: bool


@dataclass(frozen=True)
class Begun:
    """The first terms of a series: Σ_{k<j} t_k (P,), t_j (P,), and ‖t_0‖ … ‖t_j‖."""

    total: Tensor
    term: Tensor
    norms: list[float]


def neumann(
    product: Callable[[Tensor], Tensor],
    g: Tensor,
    alpha: float,
    terms: int,
    reading: str = "ift",
    begun: Begun | None = None,
) -> Series:
    """Return the series of K = `terms` after the first, for a symmetric `product` v (P,) -> Hv and g (P,).

    It stops early where ‖t_k‖ has risen three times in a row, or is no longer finite. What is `begun` is gone on with.

    >>> h = torch.tensor([1.0, 0.1], dtype=torch.float64)
    >>> [round(x, 4) for x in neumann(lambda v: h * v, torch.ones_like(h), 0.5, 400).solution.tolist()]
    [1.0, 10.0]
    """
    _known(reading)
    begun = Begun(torch.zeros_like(g), g, [g.norm().item()]) if begun is None else begun
    total, term, norms = begun.total, begun.term, list(begun.norms)
    while len(norms) < terms + 2 and not _grows(norms):
        total = total + term
        image = alpha * product(term)
        term = term - image if reading == "ift" else image
        norms.append(term.norm().item())
    solution = alpha * total if reading == "ift" else total
    return Series(solution, term, torch.tensor(norms, dtype=torch.float64), _grows(norms))


def _grows(norms: list[float]) -> bool:
    """Return whether the last of the norms is no number, or the end of `PATIENCE` rises in a row."""
    last = norms[-PATIENCE - 1 :]
    return not math.isfinite(norms[-1]) or (len(last) > PATIENCE and all(b > a for a, b in pairwise(last)))


def prior_bound(reading: str, rate: float, alpha: float, terms: int, size: float) -> float:
    """Return a bound on ‖v_K - v‖ known before the series is summed, for ‖g‖ = `size`; infinite where `rate` >= 1.

    `rate` is q = ‖I - αH‖ (`ift`, bound α·q^{K+1}/(1 - q)·‖g‖) or α‖H‖ (`literal`, the same without α).
    """
    _known(reading)
    if rate >= 1.0:
        return math.inf
    bound = rate ** (terms + 1) / (1.0 - rate) * size
    return alpha * bound if reading == "ift" else bound


def residual_bound(reading: str, residual: float, margin: float) -> float:
    """Return a bound on ‖v_K - v‖ from ‖t_{K+1}‖; `margin` is μ, or 1 - α‖H‖; infinite where it is not positive."""
    _known(reading)
    return residual / margin if margin > 0 else math.inf


def gauss_newton(theta: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> GaussNewtonGraph:
    """Return the map v -> Gv, G = Σ Jᵀ(∇²ℓ)J >= 0 over pairs of an output and a loss () that is convex in it.

    A graph leads from `theta` (P,), which requires a gradient, over each output to its loss.
    """
    return GaussNewtonGraph(theta, [([output], [output], loss) for output, loss in pairs])


@dataclass(frozen=True)
class Operator:
    """A symmetric map of vectors like `theta` (n,), in the form in which a Lanczos run asks for one."""

    product: Callable[[Tensor], Tensor]
    theta: Tensor
    generator: torch.Generator

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return len(self.theta)

    def gaussian(self) -> Tensor:
        """Return a normal vector (n,), the same in every precision."""
        draw = torch.randn(self.n, generator=self.generator, device=self.generator.device, dtype=torch.float32)
        return draw.to(self.theta)


def krylov(operator: Operator, g: Tensor, steps: int) -> Krylov:
    """Return a Lanczos run of at most `steps` steps from g (P,), in whose basis the first terms of a series lie."""
    run, size = Krylov(operator, room=min(steps, operator.n)), g.norm()
    if size > 0:
        run.following = g / size
    return run.extended(steps)


def bounds(run: Krylov) -> tuple[float, float]:
    """Return estimates of λ_min from below and λ_max from above: Ritz values less and plus their residuals.

    A Ritz value alone errs inwards, which would make α‖H‖ < 1 look true; the residual is no proof, but errs outwards.
    Directions that g has no part in are not seen, nor are they needed.
    """
    values, _, residuals = run.result().ritz()
    return (values[-1] - residuals[-1]).item(), (values[0] + residuals[0]).item()


def begun(run: Krylov, size: float, alpha: float, delta: float, terms: int, reading: str) -> Begun:
    """Return the first terms of the series for H + δI and g of norm `size`, from a run from g: no further product.

    HV = VT + βqeᵀ for the basis V, so that t_k has the coordinates of the same recurrence with T, up to t_m in (V, q).
    """
    found = run.result()
    inner, m = found.matrix + delta * torch.eye(len(found.alpha), dtype=torch.float64), len(found.alpha)
    at = torch.zeros(m + 1, dtype=torch.float64)
    at[0] = size
    total, norms = torch.zeros_like(at), [size]
    while len(norms) <= min(m, terms + 1) and not _grows(norms):
        total = total + at
        image = alpha * torch.cat([inner @ at[:m], found.beta[-1:] * at[m - 1]])
        at = at - image if reading == "ift" else image
        norms.append(at.norm().item())
    basis = found.basis if run.complete else torch.cat([found.basis, run.following[None]])
    total, at = (x[: len(basis)].to(basis) @ basis for x in (total, at))
    return Begun(total, at, norms)


@dataclass(frozen=True)
class HyperGradient:
    """dL_val/dφ (n,) with its error bounds (n,), and how it was reached."""

    values: Tensor
    errors: Tensor
    series: Series
    largest: float
    """Estimate of ‖H‖ from above, before damping."""
    margin: float
    """μ, or 1 - α‖H‖: what the residual is divided by."""
    damping: float
    """δ."""
    alpha: float
    rate: float
    """Factor by which the residual shrinks a term at least, if the bounds hold; 1 or more: no promise."""
    certificate: float
    """Bound on ‖v_K - v‖."""


def hypergradient(
    operator: Operator,
    g: Tensor,
    mixed: Tensor,
    *,
    reading: str = "ift",
    terms: int = 20,
    damping: float = 0.05,
    steps: int = 8,
    positive: bool = True,
) -> HyperGradient:
    """Return -⟨v, c_i⟩ for the rows c_i of `mixed` (n, P), with bounds ‖c_i‖·‖v_K - v‖.

    `damping` is in shares of ‖H‖, `steps` are those of the Lanczos run from g that estimates it, and whose products are
    the first of the series. Where the operator is known
    to be `positive` semi-definite, `ift` divides by μ = δ and the bound is rigorous for H + δI. Otherwise μ is the
    estimate of λ_min, damped only where that is not positive, by at least half as much again as it is below zero. An
    allowance for rounding is part of the certificate.
    """
    _known(reading)
    run, size = krylov(operator, g, steps), g.norm().item()
    low, high = bounds(run)
    high = max(high, -low, torch.finfo(g.dtype).tiny)
    delta = 0.0
    if reading == "ift":
        if positive:
            delta = damping * high
        elif low <= 0:
            delta = max(damping * high, -1.5 * low)
        alpha = 1.0 / (high + delta)
        margin = delta if positive else low + delta
        rate = 1.0 - alpha * margin
    else:
        alpha = 0.9 / high
        rate = alpha * high
        margin = 1.0 - rate
    first = begun(run, size, alpha, delta, terms, reading)
    series = neumann(lambda v: operator.product(v) + delta * v, g, alpha, terms, reading, first)
    # the recurrence goes on shrinking where rounding no longer lets the solution follow it
    eps, reach = torch.finfo(g.dtype).eps, series.solution.norm().item()
    rounding = 16 * eps * (size + (high + delta if reading == "ift" else 1.0) * reach)
    certificate = residual_bound(reading, series.residual.norm().item() + rounding, margin)
    factor = 1.0 if reading == "ift" else alpha
    values = -factor * (mixed @ series.solution)
    errors = factor * mixed.norm(dim=1) * certificate
    return HyperGradient(values, errors, series, high, margin, delta, alpha, rate, certificate)


def certain(values: Tensor, errors: Tensor) -> Tensor:
    """Return which entries (n,) have a certain sign: |h_i| > E_i, both finite."""
    return torch.isfinite(values) & torch.isfinite(errors) & (values.abs() > errors)


def certified_step(
    values: Tensor, second: Tensor, seen: Tensor, sure: Tensor, lr: float, decay: float = 0.999
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the step (n,) and the next memory of Adam with β1 = 0, which keeps signs; 0 where not `sure`.

    `second` (n,) holds averages of squares and `seen` (n,) how many they hold. A step along a certain sign is a descent
    direction of the true value by itself; momentum or a shared scale could turn it.
    """
    held = torch.where(sure, values, torch.zeros_like(values))
    second = torch.where(sure, decay * second + (1.0 - decay) * held.square(), second)
    seen = seen + sure
    mean = second / (1.0 - decay ** seen.clamp(min=1).to(second.dtype))
    return -lr * held / mean.sqrt().clamp(min=torch.finfo(second.dtype).tiny), second, seen


def _known(reading: str) -> None:
    if reading not in READINGS:
        raise InputError(f"reading must be one of {', '.join(READINGS)}, not {reading!r}.")
