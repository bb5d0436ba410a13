"""From the variance of a gradient to trust in it: precision, evidence, opinions and their fusion, calibrated gradient.

K sources send a gradient to the same coordinates; every tensor here is (K, …) with one entry a source and coordinate.
A subjective-logic opinion is a belief b_k for each of some hypotheses and an uncertainty u, with Σb + u = 1: evidence
e_k ≥ 0 gives α_k = e_k + 1, b_k = e_k/Σα and u = (number of hypotheses)/Σα. Opinions are fused by the reduced Dempster
rule. What the hypotheses are is not public for BOGC-MML; the readings differ in that.

*Source*: opinions and rule from TMC, Han et al., ICLR 2021, arXiv 2102.02051, equations 2 to 5; inverse-variance
weights from BayesAgg-MTL, arXiv 2402.04005; how the two are joined, and `relative`, `snr`, `signed` and `damped`, are
ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """What a reading makes of K gradients."""

    parts: Tensor
    """(K, …), what each source gives; the calibrated gradient is their sum."""
    weights: Tensor
    """(K, …), between 0 and 1, summing to 1 over the sources."""
    uncertainty: Tensor
    """(K, …), u of each source's opinion, between 0 and 1."""
    fused: Tensor
    """(…), u of the fused opinion."""
    conflict: Tensor
    """(…), mass on contradicting hypotheses, between 0 and 1; 0 in readings without contradiction."""


def combined(b1: Tensor, u1: Tensor, b2: Tensor, u2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return belief (H, …), uncertainty and conflict (…) of two opinions by the reduced Dempster rule.

    C = Σ_{i≠j} b1_i b2_j; b = (b1 b2 + b1 u2 + b2 u1)/(1 - C), u = u1 u2/(1 - C). Associative and commutative; b = 0,
    u = 1 changes nothing, so a missing source may enter like that. Two certain opinions that contradict each other
    leave 1 - C = 0, held at 1e-12: their masses vanish.

    >>> b, u, c = combined(torch.tensor([0.5, 0.0]), torch.tensor(0.5), torch.tensor([0.0, 0.5]), torch.tensor(0.5))
    >>> [round(float(v), 4) for v in (b[0], b[1], u, c)]
    [0.3333, 0.3333, 0.3333, 0.25]
    """
    agree = b1 * b2
    conflict = b1.sum(0) * b2.sum(0) - agree.sum(0)
    left = (1 - conflict).clamp(min=1e-12)
    return (agree + b1 * u2 + b2 * u1) / left, u1 * u2 / left, conflict


def pooled(beliefs: Tensor, uncertainty: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return belief (H, …), uncertainty and conflict (…) of K opinions, from beliefs (K, H, …) and uncertainty (K, …).

    The conflict is 1 - Π(1 - C) over the pairwise steps, the mass that renormalising removed in all.
    """
    belief, u = beliefs[0], uncertainty[0]
    agreed = torch.ones_like(u)
    for b, v in zip(beliefs[1:], uncertainty[1:], strict=True):
        belief, u, conflict = combined(belief, u, b, v)
        agreed = agreed * (1 - conflict)
    return belief, u, 1 - agreed


def shares(e: Tensor) -> Tensor:
    """Return e (K, …) over its sum, 1/K where all vanish."""
    e = e + torch.finfo(e.dtype).tiny * 1e4
    return e / e.sum(0)


def trust(mean: Tensor, e: Tensor) -> Calibration:
    """Return O1: one hypothesis, "this gradient can be trusted"; G = Σ w_i μ_i, w_i = b_i/Σb, b = e/(1+e), u = 1/(1+e).

    Never a conflict: the fused u is Π u_i. Much evidence gives uniform weights, little gives weights like e.
    """
    u = 1 / (1 + e)
    weights = shares(e * u)
    fused = u.prod(0)
    return Calibration(weights * mean, weights, u, fused, torch.zeros_like(fused))


def confident_trust(mean: Tensor, e: Tensor) -> Calibration:
    """Return O1 times the fused confidence, 1 - Π u_i."""
    found = trust(mean, e)
    return Calibration((1 - found.fused) * found.parts, found.weights, found.uncertainty, found.fused, found.conflict)


def sources(mean: Tensor, e: Tensor) -> Calibration:
    """Return O2: the sources are the hypotheses of one opinion; w_i = α_i/Σα, smoothed inverse variance.

    Little evidence gives uniform weights, much gives weights like e. The uncertainty of a source is that of `trust`.
    """
    alpha = e + 1
    total = alpha.sum(0)
    weights = alpha / total
    fused = len(e) / total
    return Calibration(weights * mean, weights, 1 / alpha, fused, torch.zeros_like(fused))


def signed(mean: Tensor, e: Tensor) -> Calibration:
    """Return O3: two hypotheses, up and down; the evidence of a source goes to the sign of its mean.

    G = (b_up - b_down) Σ w_i |μ_i|, w_i = b_i/Σb; opposite signs make conflict and shorten G.
    """
    u = 2 / (e + 2)
    belief = e / (e + 2)
    up = (mean >= 0).to(mean.dtype)
    b, fused, conflict = pooled(torch.stack([belief * up, belief * (1 - up)], 1), u)
    weights = shares(belief)
    return Calibration((b[0] - b[1]) * weights * mean.abs(), weights, u, fused, conflict)


def inverse_variance(mean: Tensor, e: Tensor) -> Calibration:
    """Return O4, the rule of BayesAgg-MTL: w_i = e_i/Σe with e = λ^q; uncertainties are those of `trust`."""
    weights = shares(e)
    u = 1 / (1 + e)
    fused = 1 / (1 + e.sum(0))
    return Calibration(weights * mean, weights, u, fused, torch.zeros_like(fused))


def contradiction(mean: Tensor, e: Tensor) -> Tensor:
    """Return the conflict mass C (…) of K opinions on up or down, between 0 and 1, from means and evidence (K, …).

    All of a source's evidence goes to the sign of its mean, b = e/(e+2); a mean of zero has no opinion. For two
    sources C is b_1 b_2 where the signs differ, and 0 where they do not.
    """
    belief = e / (e + 2)
    b = torch.stack([torch.where(mean > 0, belief, 0.0), torch.where(mean < 0, belief, 0.0)], 1)
    return pooled(b, 1 - b.sum(1))[2]


def damped(found: Calibration, mean: Tensor, e: Tensor, share: float) -> Calibration:
    """Return the calibration with its parts times 1 - share · C, C the `contradiction` of the sources.

    Where all signs agree nothing changes. With a share of 1, nothing is left where certain sources contradict each
    other, whatever the lengths of their gradients; a plain mean would follow the longer one.
    """
    if share == 0:
        return found
    conflict = contradiction(mean, e)
    return replace(found, parts=(1 - share * conflict) * found.parts, conflict=conflict)


READINGS: dict[str, Callable[[Tensor, Tensor], Calibration]] = {
    "trust": trust,
    "confident_trust": confident_trust,
    "sources": sources,
    "signed": signed,
    "inverse_variance": inverse_variance,
}
"""Name to what it makes of means and evidence (K, …)."""


def precision(variance: Tensor, over: int | None = None) -> Tensor:
    """Return λ = 1/variance (K, B, d); with `over`, of the variance averaged over that axis, which keeps its place.

    >>> precision(torch.tensor([[1.0, 3.0]]), 1).tolist()
    [[0.5, 0.5]]
    """
    if over is not None:
        variance = variance.mean(over, keepdim=True).expand_as(variance)
    return 1 / variance


def root_mean_square(mean: Tensor, over: int) -> Tensor:
    """Return the root of the mean square of `mean` (K, B, d) over an axis, which keeps its place.

    With `precision` over the same axis, `snr` becomes mean square over mean variance: one evidence for all rows.

    >>> root_mean_square(torch.tensor([[1.0, 7.0]]), 1).tolist()
    [[5.0, 5.0]]
    """
    return mean.square().mean(over, keepdim=True).sqrt().expand_as(mean)


def raw(mean: Tensor, lam: Tensor, q: float) -> Tensor:
    """Return e = λ. Precisions are large, so uncertainties are small and `trust` becomes a plain mean."""
    return lam


def power(mean: Tensor, lam: Tensor, q: float) -> Tensor:
    """Return e = λ^q, the tempering of BayesAgg-MTL."""
    return lam**q


def relative(mean: Tensor, lam: Tensor, q: float) -> Tensor:
    """Return e = (λ / its median over sources and coordinates)^q, so that u is 1/2 in the middle."""
    return (lam / lam.median()) ** q


def snr(mean: Tensor, lam: Tensor, q: float) -> Tensor:
    """Return e = (μ²λ / its median)^q: evidence that a saturated row, which has no gradient, does not have.

    The unit of each loss cancels: one loss times a constant has μ times it and λ over its square. By precision alone it
    would lose its weight, for being large.
    """
    ratio = mean.square() * lam
    return (ratio / ratio.median().clamp(min=torch.finfo(ratio.dtype).tiny * 1e12)) ** q


EVIDENCE: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "snr": snr,
    "relative": relative,
    "power": power,
    "raw": raw,
}
"""Name to evidence (K, …) from means, precisions λ and an exponent."""


def times_sources(parts: Tensor, plain: Tensor) -> Tensor:
    """Return K: a mean of K gradients becomes comparable with their sum."""
    return parts.new_full((), float(len(parts)))


def mean_of_sources(parts: Tensor, plain: Tensor) -> Tensor:
    """Return 1: the calibrated gradient as it is, about half the sum of two."""
    return parts.new_ones(())


def matched_norm(parts: Tensor, plain: Tensor) -> Tensor:
    """Return what gives the calibrated gradient the norm of the plain sum, so that only its direction differs."""
    return plain.sum(0).norm() / parts.sum(0).norm().clamp(min=torch.finfo(parts.dtype).tiny)


SIZES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sources": times_sources,
    "mean": mean_of_sources,
    "norm": matched_norm,
}
"""Name to the factor (0-d) on a calibrated gradient, from its parts and the plain gradients (K, B, d)."""
