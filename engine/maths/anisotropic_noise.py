"""Noise shaped by an exponential moving average (EMA) of gradients: curvature estimate, dose, kick, stability bound.

Shared by GANI and its isotropic control, which differ in nothing but how the noise power is spread over coordinates.
Everything is elementwise on the flat vector (P,), at a cost linear in P, and pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.knobs import knob


@dataclass(frozen=True)
class Dose:
    """The knobs of a noise method; what each means stands in `strength`, `curvature` and `kick`."""

    sigma: float = knob(1.0, 0.0, 8.0, "Dose: multiplies the noise whatever the sizing; 0 is off.")
    mode: str = knob("central", help="Curvature proxy.", choices=("central", "second", "first"))
    sizing: str = knob(
        "virtual", help="What sets the noise's size.", choices=("virtual", "fixed", "relative", "langevin")
    )
    virtual_batch: int = knob(0, 0, 65536, "Batch size to imitate, in rows; 0 for an eighth of the batch.")
    rho: float = knob(0.25, 0.0, 1.0, "Share of the missing small-batch variance that is put back.")
    beta: float = knob(0.99, 0.0, 0.9999, "Decay of the moving averages.")
    eps: float = knob(1e-12, 0.0, 1e-6, "Floor on c, in squared gradient units; 0 for none.")
    warmup: int = knob(20, 0, 100_000, "Gradients averaged before the first noise.")
    anneal: str = knob("cosine", help="How the noise ends, given `steps`.", choices=("cosine", "cut", "none"))
    steps: int = knob(0, 0, 10_000_000, "Length of the run for `anneal`, in steps; 0 for no end.")
    rest: float = knob(0.2, 0.0, 1.0, "Last share of the run without noise, so that it settles.")
    clip: float = knob(0.01, 0.0, 100.0, "Largest norm of the noise in one step; 0 for no limit.")
    clip_to: str = knob("weights", help="Unit of `clip`: ‖theta‖, or 1.", choices=("weights", "absolute"))
    placement: str = knob(
        "decoupled",
        help="After the descent, or as if added to the gradient.",
        choices=("decoupled", "through_grad"),
    )


class Pace(Protocol):
    """What is needed of the optimiser at one step: learning rate, heavy-ball coefficient, whether it is Nesterov's."""

    lr: float
    momentum: float
    nesterov: bool


def fresh(like: Tensor) -> dict[str, Any]:
    """Return the memory before the first gradient, for parameters `like` (P,)."""
    zero = torch.zeros_like(like)
    count = torch.zeros((), dtype=torch.int64, device=like.device)
    return {"mean": zero, "square": zero, "seen": 0, "total": 0.0, "squares": 0.0, "clipped": count, "nonfinite": 0}


def absorbed(memory: dict[str, Any], grad: Tensor, beta: float) -> dict[str, Any]:
    """Return the memory after one more gradient (P,): m ← βm + (1-β)g, v ← βv + (1-β)g².

    `total` and `squares` follow the sum and the sum of squares of the EMA's weights, which for a constant β are
    1-βᵗ and (1-β)(1-β²ᵗ)/(1+β); so β may be changed while training goes on. A gradient that is not finite is counted
    and leaves the averages alone.
    """
    if not torch.isfinite(grad.sum()):
        return memory | {"nonfinite": memory["nonfinite"] + 1}
    return memory | {
        "mean": memory["mean"].lerp(grad, 1 - beta),
        "square": memory["square"].lerp(grad * grad, 1 - beta),
        "seen": memory["seen"] + 1,
        "total": beta * memory["total"] + (1 - beta),
        "squares": beta**2 * memory["squares"] + (1 - beta) ** 2,
    }


def curvature(memory: dict[str, Any], mode: str) -> Tensor:
    """Return the curvature proxy c (P,), in squared gradient units.

    `second`: v̂, the diagonal empirical Fisher of the batch gradient. `central`: max(v̂ - m̂², 0)/(1-w), the variance of
    the batch gradient; w is the sum of squares of the normalised weights, for a constant β
    (1-β)(1+βᵗ)/((1+β)(1-βᵗ)), and dividing by 1-w makes the estimate unbiased for independent gradients; zero before
    the second gradient. `first`: m̂².

    Raises:
        ValueError: another mode.
    """
    total = memory["total"]
    if mode == "second":
        return memory["square"] / total
    if mode == "first":
        return (memory["mean"] / total) ** 2
    if mode != "central":
        raise ValueError(f"The curvature mode must be second, central or first, not {mode!r}.")
    if memory["seen"] < 2:
        return torch.zeros_like(memory["mean"])
    mean = memory["mean"]
    variance = torch.addcmul(memory["square"] * total, mean, mean, value=-1)
    return variance.clamp_(min=0).div_(total**2 - memory["squares"])


def virtual(batch: int, virtual_batch: int, rho: float) -> float:
    """Return σ = √(ρ(B/b - 1)), the strength at which noise of variance c = C/B imitates batches of b rows.

    C/B + (B/b - 1)·C/B = C/b. `virtual_batch` 0 stands for an eighth of the batch; b ≥ B gives 0.

    >>> virtual(1024, 128, 0.25) == virtual(1024, 0, 0.25) == 1.75**0.5
    True
    """
    ratio = batch / virtual_batch if virtual_batch else 8.0
    return math.sqrt(rho * max(ratio - 1.0, 0.0))


def annealed(kind: str, step: int, steps: int, rest: float) -> float:
    """Return the factor (0 to 1) on σ at `step` of a run of `steps`; the last `rest` (share of the run) has none.

    `cosine` falls from 1 to 0 until the rest begins, `cut` stays 1 until then, `none` is always 1. With `steps` 0 the
    length is unknown and the factor 1.
    """
    if kind == "none" or steps <= 0:
        return 1.0
    share = step / max((1.0 - rest) * steps, 1.0)
    if share >= 1.0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * share)) if kind == "cosine" else 1.0


def strength(dose: Dose, seen: int, step: int, batch: int, lr: float) -> float:
    """Return σ of a step: the factor on √(c + eps), in which `sigma` multiplies whatever the sizing.

    `fixed`: sigma. `virtual`: sigma·√(ρ(B/b - 1)). `langevin`: sigma·√(2/lr), so that lr·σ = √(2·lr·T) with T = sigma².
    `relative`: sigma, meant as ‖noise‖/‖gradient‖ (`kick` rescales). Zero until `warmup` gradients have been absorbed,
    and in `central` before the second.
    """
    if dose.sigma == 0.0 or seen <= dose.warmup or (dose.mode == "central" and seen < 2):
        return 0.0
    factor = {
        "fixed": 1.0,
        "relative": 1.0,
        "virtual": virtual(batch, dose.virtual_batch, dose.rho),
        "langevin": math.sqrt(2.0 / lr) if lr > 0 else 0.0,
    }[dose.sizing]
    return dose.sigma * factor * annealed(dose.anneal, step, dose.steps, dose.rest)


def kick(
    dose: Dose, sigma: float, std: Tensor, xi: Tensor, grad: Tensor, theta: Tensor, lr: float
) -> tuple[Tensor, Tensor]:
    """Return the noise of one step in gradient units (P,), and whether it was clipped (0-d bool).

    σ·std⊙ξ; in `relative` sizing scaled to σ‖grad‖. Its share of the step, lr·‖noise‖, is at most `clip` (0: no
    limit), or `clip`·‖θ‖ where `clip_to` is `weights`.
    """
    noise = std * xi
    length = noise.norm()
    factor = torch.full_like(length, sigma)
    if dose.sizing == "relative":
        factor = factor * (grad.norm() / length.clamp(min=torch.finfo(noise.dtype).tiny))
    length = lr * factor * length
    if dose.clip == 0.0:
        return noise * factor, torch.zeros_like(length, dtype=torch.bool)
    limit = dose.clip * theta.norm() if dose.clip_to == "weights" else torch.full_like(length, dose.clip)
    over = length > limit
    return noise * torch.where(over, factor * (limit / length), factor), over


def explore(
    dose: Dose,
    memory: dict[str, Any],
    step: int,
    batch: int,
    grad: Tensor,
    theta: Tensor,
    pace: Pace,
    spread: Callable[[Tensor], Tensor],
    draw: Callable[[], Tensor],
) -> tuple[Tensor | None, dict[str, Any]]:
    """Return what noise adds to the update (P,), None for nothing, and the memory after the step.

    `spread` turns c + eps into the noise variance of each coordinate (P,); `draw` gives ξ (P,). `decoupled` placement
    adds lr·noise after the descent. `through_grad` sends the noise through a momentum buffer of its own, with the
    optimiser's coefficient: for SGD, which is linear, the same as adding it to the gradient, but the optimiser's memory
    and the EMA stay free of it.
    """
    memory = absorbed(memory, grad, dose.beta)
    sigma = strength(dose, memory["seen"], step, batch, pace.lr)
    carried = memory.get("push")
    if dose.placement != "through_grad" and carried is not None:
        memory = {key: value for key, value in memory.items() if key != "push"}
        carried = None
    if sigma == 0.0 and carried is None:
        return None, memory
    if sigma == 0.0:
        noise = torch.zeros_like(grad)
    else:
        std = spread(curvature(memory, dose.mode) + dose.eps).sqrt()
        noise, over = kick(dose, sigma, std, draw(), grad, theta, pace.lr)
        memory = memory | {"clipped": memory["clipped"] + over}
    if dose.placement != "through_grad":
        return pace.lr * noise, memory
    push = noise if carried is None else pace.momentum * carried + noise
    shift = noise + pace.momentum * push if pace.nesterov else push
    return -pace.lr * shift, memory | {"push": push}


def uniform(power: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Return the mean of `power` (P,) at every coordinate: over all, or over each block of the given sizes."""
    if sizes is None:
        return power.mean().expand_as(power)
    return torch.cat([block.mean().expand_as(block) for block in power.split(sizes)])


def anisotropy(power: Tensor, share: float = 0.01) -> tuple[Tensor, Tensor]:
    """Return the participation ratio (Σc)²/(P·Σc²) of noise power c (P,), and what the top `share` of coordinates hold.

    Both are 0-d and lie in (0, 1]. Equal power gives 1 and about `share`; a single coordinate gives 1/P and 1.
    """
    total = power.sum()
    ratio = total**2 / (len(power) * (power**2).sum())
    top = power.topk(max(1, round(share * len(power)))).values.sum() / total
    return ratio, top


def stability_bound(lr: float, sigma: float, momentum: float = 0.0, placement: str = "decoupled") -> float:
    """Return the largest curvature λ at which descent with `second`-mode noise of strength σ is mean-square stable.

    Plain: 2/(lr(1+σ²)). With heavy-ball μ and a = lr·λ, for decoupled noise the root of
    σ²a[(1+μ)(1-μ)² + 2μa] = (1-μ)(2(1+μ) - a); through the momentum buffer
    a = 2(1-μ)(1+μ)/[(1-μ) + σ²(1+μ)]. σ = 0 gives the bound of plain descent, 2(1+μ)/lr.

    Our derivation, from the exact recursion of second moments, for a diagonal Hessian and every β. Where the top
    eigenvector u is spread over coordinates, put σ·√(Σuᵢ⁴) for σ: an approximation that we have only seen hold roughly.

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
