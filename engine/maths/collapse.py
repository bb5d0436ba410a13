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


def centred(z: Tensor) -> Tensor:
    """Return features (B, D) less their mean over the batch, in float32 at least."""
    z = z if z.dtype in (torch.float32, torch.float64) else z.float()
    return z - z.mean(0)


def eigenvalues(z: Tensor) -> Tensor:
    """Return the eigenvalues of the covariance of z (B, D), (min(B, D),), smallest first; B must be at least 2.

    Taken from the smaller of ZᵀZ and ZZᵀ, which share what is not zero.
    """
    zc = centred(z)
    gram = zc @ zc.T if len(zc) < zc.shape[1] else zc.T @ zc
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
    """Return r(Σ) (0-d) of the covariance of features z (B, D), differentiable."""
    return ratio(eigenvalues(z), guard)


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


def terms(z: Tensor, noise: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Return the two terms of the collapse (0-d each): the pull mean(z - g)²/s² and the ratio r(Σ).

    g = η·s·ξ with ξ (B, D) standard normal and s the root mean square of z, no gradient through either. Since ξ is
    fresh, E (z - g)² = z² + η²s²: in expectation this shrinks z towards 0 and no more; η adds gradient noise alone.
    The mean is over all entries of z (B, D).
    """
    scale = rms(z).clamp(min=SMALLEST)
    pull = (z - target * scale * noise).square().mean() / scale.square()
    return pull, spectral_ratio(z)


def strength(weight: float, z: Tensor, found: Tensor, adaptive: bool, limit: float) -> Tensor:
    """Return λ_eff (0-d, no graph): λ·clip((r - 1)/(r_max - 1), 0, 1), or λ as it is if not `adaptive`.

    0 where the scale of z (B, D) has fallen to `limit`, or to where dividing by it means nothing. r is `found`.
    """
    share = ((found.detach() - 1.0) / max(most(z) - 1.0, 1.0)).clamp(0.0, 1.0) if adaptive else torch.ones_like(found)
    return weight * share * ~spent(rms(z), limit)


def spent(scale: Tensor, limit: float | Tensor) -> Tensor:
    """Return whether features of root mean square `scale` have fallen below `limit`, or to nearly nothing."""
    return (scale <= SMALLEST) | (scale < limit)


def information_gain(without: Tensor, full: Tensor, signed: bool) -> Tensor:
    """Return (L_without - L_full)² (M,); where `signed`, 0 for a modality whose absence helps.

    >>> information_gain(torch.tensor([3.0, 1.0]), torch.tensor(2.0), True).tolist()
    [1.0, 0.0]
    """
    change = without - full
    return (change.clamp(min=0) if signed else change).square()


def rewards(gains: Tensor, scale: float) -> tuple[Tensor, float]:
    """Return gains over their decayed maximum (M,), 0 to 1, and that maximum."""
    scale = max(DECAY * scale, gains.max().item())
    return (gains / scale if scale > 0 else torch.zeros_like(gains)).clamp(max=1.0), scale


def probabilities(weights: Tensor, explore: float, controller: str) -> Tensor:
    """Return p_m = (1 - γ)·softmax(w)_m + γ/M (M,): never below γ/M; 1/M for `uniform`."""
    count = len(weights)
    if controller == "uniform":
        return torch.full_like(weights, 1.0 / count)
    return (1.0 - explore) * weights.softmax(0) + explore / count


def rewarded(weights: Tensor, found: dict[int, float], chance: float, explore: float, controller: str) -> Tensor:
    """Return the log-weights (M,) after the rewards (0 to 1) that were seen, their maximum at 0.

    EXP3 sees one arm and divides by the chance at which it was drawn, w_a += γ/M·r_a/p_a; hedge sees every arm,
    w_m += γ/M·r_m.
    """
    weights = weights.clone()
    for arm, reward in found.items():
        weights[arm] += explore / len(weights) * reward / (chance if controller == "exp3" else 1.0)
    return weights - weights.max()


def drawn(chances: Tensor, uniform: float) -> int:
    """Return the arm on which a uniform number (0 to 1) falls.

    >>> drawn(torch.tensor([0.25, 0.75], dtype=torch.float64), 0.3)
    1
    """
    return min(int((chances.cumsum(0) <= uniform).sum()), len(chances) - 1)


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


def clipped(vector: Tensor, limit: Tensor) -> Tensor:
    """Return the vector (n,) shortened to the norm `limit` (0-d) where it is longer."""
    norm = vector.norm()
    return torch.where(norm > limit, vector * (limit / norm.clamp(min=torch.finfo(vector.dtype).tiny)), vector)
