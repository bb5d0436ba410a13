"""Controlled collapse of one modality's features: what is collapsed, how hard, whom it meets, and when it must not.

Three small parts, all pure. *Spectrum*: the ratio r(Σ) = tr Σ / λ_max(Σ) of a batch of features, between 1 and
min(B - 1, D), the pull towards a Gaussian target, and the strength that fades as the spectrum does. *Controller*: a
bandit over the modalities, paid by what leaving one out does to the loss. *Gate*: whether, or where, the destructive
gradient may act.

r(Σ) is the intrinsic dimension of Σ and the stable rank of the centred features Z, ‖Z‖_F²/‖Z‖_op²; it is not the stable
rank of Σ. From one batch it is at most B - 1 and biased low, so compare it at equal B only.

*Source*: as described of arXiv 2602.16197 by others; forms, scales and defaults are our reading. EXP3: Auer et al.,
SIAM J. Comput. 32(1), 2002, figure 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

SMALLEST = 1e-3
"""Floor on the scale of features that the target is made from; below it a collapse would divide by next to nothing."""

GUARD = 1e-6
"""Share of the trace that is added to λ_max, so that a ratio of two vanishing numbers stays finite."""

DECAY = 0.99
"""Of the largest gain seen, by which rewards are scaled to at most 1."""

CONTROLLERS = ("exp3", "hedge", "uniform")
GATES = ("hessian", "soft", "directional", "literal", "off")
PULLS = ("rows", "entries")
FADES = ("reference", "batch")

LEAST = 0.1
"""Least r - 1 of a reference that a strength is measured against, so that what is nearly of rank one is left alone."""

SQUARINGS = 5
"""How often a covariance is squared in the search for its largest eigenvalue: weights λ_i^32."""


def centred(z: Tensor) -> Tensor:
    """Return features (B, D) less their mean over the batch, in float32 at least."""
    z = z if z.dtype in (torch.float32, torch.float64) else z.float()
    return z - z.mean(0)


def eigenvalues(z: Tensor) -> Tensor:
    """Return the eigenvalues of the covariance of z (B, D), (min(B, D),), smallest first; B must be at least 2.

    Taken from the smaller of ZᵀZ and ZZᵀ, which share what is not zero; nan throughout where z is not finite.
    """
    zc = centred(z)
    gram = zc @ zc.T if len(zc) < zc.shape[1] else zc.T @ zc
    if not torch.isfinite(gram).all():
        return gram.diagonal() * torch.nan
    return torch.linalg.eigvalsh(gram / (len(zc) - 1))


def ratio(values: Tensor, guard: float = GUARD) -> Tensor:
    """Return tr Σ / λ_max (0-d) from the eigenvalues of Σ; 0 where Σ vanishes.

    The trace in the guard is detached: without it the gradient would be that of a slightly different ratio.

    >>> float(ratio(torch.tensor([1.0, 1.0, 1.0, 1.0, 4.0]), guard=0.0))
    2.0
    """
    trace = values.sum()
    return trace / (values.max() + guard * trace.detach() + 1e-24)


def spectral_ratio(z: Tensor, guard: float = GUARD) -> Tensor:
    """Return r(Σ) (0-d) of the covariance of features z (B, D), differentiable, and twice where z has full rank."""
    return ratio(eigenvalues(z), guard)


def ratio_once(zc: Tensor, trace: Tensor, guard: float = GUARD) -> Tensor:
    """Return r(Σ) (0-d) of centred, finite features Z (B, D) with its first derivative alone, at half the cost.

    `trace` is ‖Z‖². λ_max = ‖Zu‖²/(B - 1) at the leading eigenvector u, which is held: by the envelope theorem it moves
    nothing to first order. No gradient runs through u, so a repeated eigenvalue gives a subgradient and never nan.
    """
    tall, held = len(zc) >= zc.shape[1], zc.detach()
    top = torch.linalg.eigh(held.T @ held if tall else held @ held.T)[1][:, -1]
    image = zc @ top if tall else top @ zc
    return trace / (image.dot(image) + (guard * trace.item() + 1e-24 * (len(zc) - 1)))


def largest(sigma: Tensor) -> Tensor:
    """Return λ_max (0-d) of a covariance (D, D) from below, by products alone: tr Σ^33/tr Σ^32; 0 where Σ vanishes.

    A mean of the eigenvalues with the weights λ_i^32: too low by at most 1 % with one rival, 7 % with 63 equal
    ones, and exact where they are equal or far off. It asks the host nothing.
    """
    power = unit = sigma / sigma.trace().clamp(min=torch.finfo(sigma.dtype).tiny)
    for _ in range(SQUARINGS):
        power = power @ power
        power = power / power.trace().clamp(min=torch.finfo(sigma.dtype).tiny)
    return (power * unit).sum() * sigma.trace()


def most(z: Tensor) -> int:
    """Return the largest r(Σ) that a batch z (B, D) can have."""
    return min(len(z) - 1, z.shape[1])


def dimensions(values: Tensor) -> dict[str, float]:
    """Return four effective dimensions of a spectrum of eigenvalues (n,) >= 0: n for a flat one, 1 for rank one."""
    values = values.double().clamp(min=0)
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return {
        "tr/λmax": ratio(values, 0.0).item(),
        "participation": (1 / share.square().sum().clamp(min=1e-300)).item() if share.sum() > 0 else 0.0,
        "entropy": torch.exp(-torch.xlogy(share, share).sum()).item() if share.sum() > 0 else 0.0,
        "stable rank of Σ": (share.square().sum() / share.max().square().clamp(min=1e-300)).item(),
    }


def rms(z: Tensor) -> Tensor:
    """Return the root mean square of the centred features (B, D), 0-d, without graph."""
    return centred(z.detach()).square().mean().sqrt()


@dataclass(frozen=True)
class Terms:
    """The two terms of the collapse of features (B, D), 0-d each, and their scale."""

    pull: Tensor
    """See `terms`."""
    ratio: Tensor
    """r(Σ); nan where the features are not finite."""
    scale: float
    """s, the root mean square of the centred features."""


def terms(z: Tensor, noise: Tensor, target: float, twice: bool = False, pull: str = "entries") -> Terms:
    """Return the two terms of the collapse, differentiable once or, if asked for, `twice`.

    g = η·s·ξ with ξ (B, D) standard normal and s the root mean square of the centred z, no gradient through either.
    Since ξ is fresh, E (z - g)² = z² + η²s²: in expectation the pull shrinks and no more; η adds gradient noise alone.
    It is, for features z (B, D), with

    - `rows`: mean over rows of ‖z_i - z̄ - g_i‖²/λ_max(Σ), no gradient through λ_max. Its expectation over ξ is
      (B-1)/B·(1 + η²)·r(Σ): both terms have the size of r, whatever B, D and the scale are, and z̄ stays.
    - `entries`: mean over all entries of (z - g)²/s², of size 1 + η². Its gradient is 1/r(Σ) of that by rows where
      z̄ is 0, and draws z̄ there.
    """
    zc = centred(z)
    flat = zc.reshape(-1)
    trace = flat.dot(flat)
    scale = math.sqrt(trace.item() / len(flat))
    floored = max(scale, SMALLEST)
    if not math.isfinite(scale):
        return Terms(trace * math.nan, trace * math.nan, scale)
    ratio = spectral_ratio(z) if twice else ratio_once(zc, trace)
    if pull == "entries":
        return Terms(torch.nn.functional.mse_loss(z, (target * floored) * noise) / floored**2, ratio, scale)
    top = trace.detach() / (ratio.detach().clamp(min=1.0) * (len(z) - 1))
    distance = (zc - (target * floored) * noise).square().sum() / len(z)
    return Terms(distance / top.clamp(min=SMALLEST**2), ratio, scale)


def expected_pull(z: Tensor, ratio: float, scale: float, target: float, pull: str) -> float:
    """Return the pull of features z (B, D) of a `ratio` and a `scale`, in expectation over its target."""
    if pull == "rows":
        return (len(z) - 1) / len(z) * (1 + target**2) * ratio
    return z.detach().square().mean().item() / max(scale, SMALLEST) ** 2 + target**2


def strength(
    weight: float, z: Tensor, found: float, scale: float, adaptive: bool, limit: float, richest: float | None = None
) -> float:
    """Return λ_eff: λ·clip((r - 1)/(r_0 - 1), 0, 1), or λ as it is if not `adaptive`; r is `found`.

    r_0 is the `richest`, r - 1 of which counts as `LEAST` at least; without one, or where it is no number, the largest
    that a batch z (B, D) can have. 0 where the `scale` of z has fallen to `limit`, or to where dividing by it means
    nothing.
    """
    known = richest is not None and math.isfinite(richest)
    span = max(richest - 1.0, LEAST) if known else max(most(z) - 1.0, 1.0)
    share = min(max((found - 1.0) / span, 0.0), 1.0) if adaptive else 1.0
    return 0.0 if spent(scale, limit) else weight * share


def spent(scale: float, limit: float) -> bool:
    """Return whether features of root mean square `scale` have fallen below `limit`, or to nearly nothing."""
    return scale <= SMALLEST or scale < limit


def information_gain(without: Sequence[float], full: float, signed: bool) -> list[float]:
    """Return (L_without - L_full)² of M modalities; where `signed`, 0 for one whose absence helps.

    >>> information_gain([3.0, 1.0], 2.0, True)
    [1.0, 0.0]
    """
    return [0.0 if signed and loss < full else (loss - full) ** 2 for loss in without]


def rewards(gains: Sequence[float], scale: float) -> tuple[list[float], float]:
    """Return gains over their decayed maximum, 0 to 1, and that maximum."""
    scale = max(DECAY * scale, *gains)
    return [gain / scale if scale > 0 else 0.0 for gain in gains], scale


def probabilities(weights: Sequence[float], explore: float, controller: str) -> list[float]:
    """Return p_m = (1 - γ)·softmax(w)_m + γ/M: never below γ/M; 1/M for `uniform`."""
    count, top = len(weights), max(weights)
    if controller == "uniform":
        return [1.0 / count] * count
    raised = [math.exp(w - top) for w in weights]
    total = sum(raised)
    return [(1.0 - explore) * value / total + explore / count for value in raised]


def rewarded(
    weights: Sequence[float], found: Mapping[int, float], chance: float, explore: float, controller: str
) -> list[float]:
    """Return the log-weights of M modalities after the rewards (0 to 1) that were seen, their maximum at 0.

    EXP3 sees one arm and divides by the chance at which it was drawn, w_a += γ/M·r_a/p_a; hedge sees every arm,
    w_m += γ/M·r_m.
    """
    rate = explore / len(weights) / (chance if controller == "exp3" else 1.0)
    raised = [w + rate * found.get(m, 0.0) for m, w in enumerate(weights)]
    top = max(raised)
    return [w - top for w in raised]


def drawn(chances: Sequence[float], uniform: float) -> int:
    """Return the arm on which a uniform number (0 to 1) falls.

    >>> drawn([0.25, 0.75], 0.3)
    1
    """
    return min(bisect_right(list(accumulate(chances)), uniform), len(chances) - 1)


def readiness(age: int, warmup: int, ramp: int, top: float) -> float:
    """Return the chance of an intervention: 0 while warming up, then linearly to `top` within `ramp` steps.

    >>> [readiness(age, 10, 4, 1.0) for age in (9, 10, 12, 40)]
    [0.0, 0.25, 0.75, 1.0]
    """
    return 0.0 if age < warmup else top * min((age - warmup + 1) / max(ramp, 1), 1.0)


def fisher_ends(grads: Tensor, width: int) -> tuple[float, float]:
    """Return λ_min and λ_max of the empirical Fisher matrix GᵀG/B of single gradients G (B, n), n = `width`.

    With fewer rows than parameters λ_min is 0, whatever G holds, and both are given as 0. It never is negative but by
    rounding, which is why a gate that closes below a negative threshold never closes.
    """
    if len(grads) < width:
        return 0.0, 0.0
    values = torch.linalg.eigvalsh(grads.T @ grads / len(grads))
    return values[0].item(), values[-1].item()


def closed(smallest: float, largest: float, tau: float) -> bool:
    """Return whether the gate is closed: λ_min < -τ with τ a share of |λ_max|."""
    return smallest < -tau * abs(largest)


def too_steep(along: float, largest: float, tau: float, lr: float) -> bool:
    """Return whether a direction of curvature `along` is refused: below -τ, or so high that the step overshoots."""
    return closed(along, largest, tau) or lr * along > 2.0


def soft_mask(fisher: Tensor, tau: float) -> Tensor:
    """Return 1/(1 + F/τ) elementwise (n,), τ a multiple of the median of the diagonal Fisher F (n,) >= 0.

    >>> soft_mask(torch.tensor([0.0, 1.0, 3.0]), 1.0).tolist()
    [1.0, 0.5, 0.25]
    """
    level = (tau * fisher.median()).clamp(min=torch.finfo(fisher.dtype).tiny)
    return level / (level + fisher)


def clipped(vector: Tensor, limit: float) -> Tensor:
    """Return the vector (n,) shortened to the norm `limit` where it is longer."""
    norm = vector.norm().item()
    return vector * (limit / norm) if norm > limit else vector
