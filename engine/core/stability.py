"""Where descent, with or without noise of its own making, ceases to be stable. Free of torch: the dashboard uses it."""

from __future__ import annotations

import math


def edge_of_stability(optimizer: str, lr: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """Return the largest curvature λ of a quadratic on which the optimiser is stable, without noise and weight decay.

    For sgd λ is one of the Hessian, for adam, adamw and rmsprop one of the Hessian preconditioned by what they divide
    the gradient by. Heavy-ball μ: 2(1+μ)/lr; Nesterov: 2(1+μ)/((1+2μ)lr); a moving average, as in adam:
    2(1+μ)/((1-μ)lr), 38/lr at μ = 0.9 (Cohen et al., arXiv 2103.00065, appendix B, and 2207.14484, section 2).

    >>> edge_of_stability("sgd", 0.1), round(edge_of_stability("adam", 1.0, 0.9), 6)
    (20.0, 38.0)
    """
    if optimizer in ("adam", "adamw"):
        return 2 * (1 + momentum) / ((1 - momentum) * lr)
    return 2 * (1 + momentum) / ((1 + 2 * momentum * nesterov) * lr)


def stability_bound(lr: float, sigma: float, momentum: float = 0.0, placement: str = "decoupled") -> float:
    """Return the largest curvature λ at which descent with noise that grows with the gradient is mean-square stable.

    σ is the noise's standard deviation along the top eigenvector u over the gradient's length along it, √(uᵀΣu)/|uᵀg|,
    for a noise covariance Σ in gradient units. In `second` mode that is its strength σ.

    Plain: 2/(lr(1+σ²)). With heavy-ball μ and a = lr·λ, for decoupled noise the root of
    σ²a[(1+μ)(1-μ)² + 2μa] = (1-μ)(2(1+μ) - a); through the momentum buffer
    a = 2(1-μ)(1+μ)/[(1-μ) + σ²(1+μ)]. σ = 0 gives the bound of plain descent, 2(1+μ)/lr.

    Our derivation, from the exact recursion of second moments, for a diagonal Hessian and every β. Where the top
    eigenvector u is spread over coordinates, put σ·√(Σuᵢ⁴) for σ: an approximation that we have only seen hold roughly.
    For losses ½hᵢθ² of the rows, noise of halves that imitates batches of b rows in full, with the noise that the batch
    has itself, has σ² = Var(h)/(b·mean(h)²), however many steps its vectors come from: the bound of descent with
    batches of b rows (Wu et al., NeurIPS 2018, for the latter).

    >>> round(stability_bound(1.0, 1.0, 0.9), 4), round(stability_bound(1.0, 1.0, 0.9, "through_grad"), 4)
    (0.4276, 0.19)
    """
    mu, s = momentum, sigma**2
    if placement == "through_grad":
        return 2 * (1 - mu) * (1 + mu) / ((1 - mu) + s * (1 + mu)) / lr
    # 2μs·a² + b·a - c = 0, solved in the form that has no 0/0 at μ = 0 or σ = 0
    b = s * (1 + mu) * (1 - mu) ** 2 + (1 - mu)
    c = 2 * (1 - mu) * (1 + mu)
    return 2 * c / (b + math.sqrt(b * b + 8 * mu * s * c)) / lr
