"""Noise shaped by recent gradients: curvature estimate or ring of vectors, dose, kick.

Shared by GANI and its isotropic control, which differ in nothing but how the noise power is spread over directions.
Everything has a cost linear in P and asks nothing of the host; all is pure but `remembered`, which is for `commit`.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any, Protocol

import torch
from torch import Tensor

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.rng import Rng
from modalscape.engine.maths.gradients import noise_ring
from modalscape.engine.maths.gradients.noise_dose import BALANCES, Dose, Pace, numbers, planned, ready


class Moment(Protocol):
    """What is needed of a step once its gradient is known."""

    step: int
    theta: Tensor
    grad: Tensor
    halves: Tensor | None
    descent: Tensor
    batch: Any
    """Its length is the number of rows."""
    rate: Pace
    rng: Rng
    problem: Any
    """Has the `layout` of theta."""


def fresh(like: Tensor) -> dict[str, Any]:
    """Return the memory before the first gradient, for parameters `like` (P,)."""
    zero = torch.zeros_like(like)
    count = torch.zeros((), dtype=torch.int64, device=like.device)
    weight = torch.zeros((), dtype=torch.float64, device=like.device)
    counts = dict.fromkeys(("seen", "clipped", "nonfinite"), count)
    return {"mean": zero, "square": zero, "total": weight, "squares": weight} | counts


def begun(dose: Dose, like: Tensor) -> dict[str, Any]:
    """Return the memory before the first gradient, with an empty ring where the shape is one of vectors."""
    ring = noise_ring.fresh(like, dose.vectors) if dose.mode in noise_ring.MODES else {}
    return fresh(like) | ring


def absorbed(memory: dict[str, Any], grad: Tensor, beta: float) -> dict[str, Any]:
    """Return the memory after one more gradient (P,): m ← βm + (1-β)g, v ← βv + (1-β)g².

    `total` and `squares` follow the sum and the sum of squares of the EMA's weights, which for a constant β are
    1-βᵗ and (1-β)(1-β²ᵗ)/(1+β); so β may be changed while training goes on. A gradient that is not finite is counted
    and leaves the averages alone.
    """
    memory = memory | _numbers(memory)
    finite = torch.isfinite(grad.sum())
    clean, still, one = torch.where(finite, grad, 0.0), grad.new_zeros(()), grad.new_ones(())
    weights = {
        "total": beta * memory["total"] + (1 - beta),
        "squares": beta**2 * memory["squares"] + (1 - beta) ** 2,
    }
    return memory | {
        "mean": memory["mean"].lerp(clean, torch.where(finite, one * (1 - beta), still)),
        "square": (memory["square"] * torch.where(finite, one * beta, one)).addcmul_(clean, clean, value=1 - beta),
        "seen": memory["seen"] + finite,
        "nonfinite": memory["nonfinite"] + ~finite,
        **{key: torch.where(finite, value, memory[key]) for key, value in weights.items()},
    }


def _numbers(memory: dict[str, Any]) -> dict[str, Tensor]:
    """Return the counts and weights of a memory that an older version kept as plain numbers, on the device."""
    kinds = {"seen": torch.int64, "nonfinite": torch.int64, "total": torch.float64, "squares": torch.float64}
    device = memory["mean"].device
    plain = {key: kind for key, kind in kinds.items() if not torch.is_tensor(memory[key])}
    return {key: torch.tensor(memory[key], dtype=kind, device=device) for key, kind in plain.items()}


def curvature(memory: dict[str, Any], mode: str) -> Tensor:
    """Return the curvature proxy c (P,), in squared gradient units.

    `second`: v̂, the diagonal empirical Fisher of the batch gradient. `central`: max(v̂ - m̂², 0)/(1-w), the variance of
    the batch gradient; w is the sum of squares of the normalised weights, for a constant β
    (1-β)(1+βᵗ)/((1+β)(1-βᵗ)), and dividing by 1-w makes the estimate unbiased for independent gradients; zero before
    the second gradient. `first`: m̂².

    Raises:
        ValueError: another mode.
    """
    total = memory["total"].clamp(min=torch.finfo(torch.float64).tiny)
    if mode == "second":
        return memory["square"] / total
    if mode == "first":
        return (memory["mean"] / total) ** 2
    if mode != "central":
        raise ValueError(f"The curvature mode must be second, central or first, not {mode!r}.")
    mean = memory["mean"]
    variance = (memory["square"] * total).addcmul_(mean, mean, value=-1)
    # before the second gradient the divisor is 0, and the variance too
    return variance.clamp_(min=0).div_(torch.where(memory["seen"] >= 2, total**2 - memory["squares"], torch.inf))


def gains(kappa: str, square: Tensor, power: Tensor | None, layout: Layout) -> dict[str, float | Tensor]:
    """Return part to the gain κ on its noise; parts that are left out have 1.

    `square` (P,) is the EMA of g² and `power` (P,) the noise variance of each coordinate before any gain. With G the
    root of a modality's summed `square`, and N that of its summed `power`: `even` gives κ ∝ G/N, one noise-to-gradient
    ratio for all; `inverse` gives κ ∝ 1/G, most noise to the modality that learns least. Either leaves the noise power
    of all modalities together as it was, and that of the shared part. A modality without a gradient gets no noise.
    """
    if kappa not in BALANCES:
        found = numbers(kappa)
        common = found.pop("", 1.0)
        return found if common == 1.0 else dict.fromkeys(layout.slices, common) | found
    own = {part: where for part, where in layout.slices.items() if part != "shared"}
    if not own:
        return {}
    grad, noise = (torch.stack([v[where].sum() for where in own.values()]).sqrt() for v in (square, power))
    least = torch.finfo(power.dtype).tiny
    wanted = (grad / noise.clamp(min=least) if kappa == "even" else 1 / grad.clamp(min=least)) * (grad > 0)
    # divided by the largest first, so that no square overflows
    wanted = wanted / wanted.max().clamp(min=least)
    wanted = wanted * (noise.norm() / (wanted * noise).norm().clamp(min=least))
    return dict(zip(own, wanted, strict=True))


def weighed(dose: Dose, memory: dict[str, Any], layout: Layout) -> Tensor:
    """Return the noise variance of each coordinate (P,) at strength 1: κ²(c + eps), and 0 where `exclude` says so.

    Where the shape is that of vectors, c is the diagonal of their covariance, and there is no `eps`.
    """
    if dose.mode in noise_ring.MODES:
        plain = noise_ring.power(memory, trace(dose, memory))
    else:
        plain = curvature(memory, dose.mode).add_(dose.eps)
    return _gained(plain, plain, dose, memory, layout, 2)


def shaped(dose: Dose, memory: dict[str, Any], at: Moment, name: str) -> Tensor:
    """Return the noise (P,) at strength 1, drawn by the key `name`: κ√(c + eps)⊙ξ, or κ⊙Σ_j w_j d_j of the vectors."""
    layout = at.problem.layout
    if dose.mode not in noise_ring.MODES:
        return weighed(dose, memory, layout).sqrt_().mul_(at.rng.normal(name, at.step, at.grad))
    total = trace(dose, memory)
    noise = noise_ring.mixed(memory, at.rng.normal(name, at.step, memory["squares_of"]), total)
    plain = noise_ring.power(memory, total) if dose.kappa in BALANCES else None
    return _gained(noise, plain, dose, memory, layout, 1)


def trace(dose: Dose, memory: dict[str, Any]) -> Tensor | None:
    """Return the expected squared norm (0-d) that the noise of vectors is scaled to; None where it is not."""
    return curvature(memory, "central").sum() if dose.mode == "history" else None


def _gained(
    value: Tensor, plain: Tensor | None, dose: Dose, memory: dict[str, Any], layout: Layout, power: int
) -> Tensor:
    """Return `value` (P,), overwritten, times each part's gain to a `power`, and 0 at tensors that are left out."""
    for part, gain in gains(dose.kappa, memory["square"], plain, layout).items():
        value[layout.slices[part]] *= gain**power
    if dose.exclude == "vectors":
        for block in layout.unpack(value).values():
            if block.dim() < 2:
                block.zero_()
    return value


def kick(
    dose: Dose, sigma: Tensor | float, noise: Tensor, at: Moment, unit: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return σ·noise (P,), which is overwritten, in gradient units, and whether it was clipped (0-d bool).

    In `relative` sizing it is scaled to σ‖gradient‖. Its share of the step, lr·`unit`·‖noise‖, is at most `clip` (0: no
    limit), or `clip`·‖θ‖ where `clip_to` is `weights`.
    """
    length = noise.norm()
    factor = torch.ones_like(length) * sigma
    if dose.sizing == "relative":
        factor = factor * torch.where(length > 0, at.grad.norm() / length, 0.0)
    length = at.rate.lr * factor * length * unit
    if dose.clip == 0.0:
        return noise.mul_(factor), torch.zeros_like(length, dtype=torch.bool)
    limit = dose.clip * at.theta.norm() if dose.clip_to == "weights" else torch.full_like(length, dose.clip)
    over = length > limit
    return noise.mul_(torch.where(over, factor * (limit / length), factor)), over


def explore(
    dose: Dose, memory: dict[str, Any], at: Moment, made: Callable[[Dose, dict[str, Any], Moment], Tensor]
) -> tuple[Tensor | None, dict[str, Any]]:
    """Return what noise adds to the update (P,), None for nothing, and the memory after the step.

    `made` gives the noise (P,) at strength 1 from the memory. `decoupled` placement adds lr·noise after the descent.
    `through_grad` sends the noise through a momentum buffer of its own, with the optimiser's coefficient: for SGD,
    which is linear, the same as adding it to the gradient, but the optimiser's memory and the EMA stay free of it. In
    `units` of the update decoupled noise is multiplied by ‖descent‖/(lr·‖gradient‖): 1 for plain SGD, and beside Adam
    what gives the noise the ratio to the step that it has to the gradient.
    """
    pace = at.rate
    memory = absorbed(memory, at.grad, dose.beta)
    through, carried = dose.placement == "through_grad", memory.get("push")
    if not through and carried is not None:
        memory = {key: value for key, value in memory.items() if key != "push"}
        carried = None
    sigma = planned(dose, at.step, len(at.batch), pace)
    if dose.mode in noise_ring.MODES and not noise_ring.suits(memory, dose.vectors):
        sigma = 0.0  # the ring comes with the next commit
    if sigma == 0.0 and carried is None:
        return None, memory
    noise, unit = None, 1.0
    if sigma > 0.0:
        if dose.units == "update" and not through:
            unit = at.descent.norm() / (pace.lr * at.grad.norm()).clamp(min=torch.finfo(at.grad.dtype).tiny)
        noise, over = kick(dose, sigma * ready(dose, memory["seen"]), made(dose, memory, at), at, unit)
        memory = memory | {"clipped": memory["clipped"] + over}
    if not through:
        return noise.mul_(pace.lr * unit), memory
    noise = torch.zeros_like(at.grad) if noise is None else noise
    push = noise if carried is None else pace.momentum * carried + noise
    shift = noise + pace.momentum * push if pace.nesterov else push
    return -pace.lr * shift, memory | {"push": push}


def remembered(dose: Dose, memory: dict[str, Any], at: Moment) -> dict[str, Any]:
    """Return a memory, as `explore` leaves it, with this step's vector in its ring, where the shape is one of vectors.

    For `commit` alone: the ring is written in place.

    Raises:
        ValueError: the step has not taken the gradient of half its batch, which `halves` needs.
    """
    if dose.mode not in noise_ring.MODES:
        return noise_ring.without(memory) if "ring" in memory else memory
    if not noise_ring.suits(memory, dose.vectors):
        memory = noise_ring.without(memory) | noise_ring.fresh(at.grad, dose.vectors)
    if dose.sigma == 0.0:
        return memory
    if dose.mode == "history":
        return noise_ring.write(memory, at.grad - memory["mean"] / memory["total"])
    if at.halves is None:
        raise ValueError("There is no difference of halves of this step.")
    return noise_ring.write(memory, at.halves)


class Explorer:
    """`explore` for one method, once a step: `commit` asks again for what `update` asked."""

    def __init__(self, made: Callable[[Dose, dict[str, Any], Moment], Tensor]) -> None:
        self._made = made
        self._asked: tuple = ()
        self._answer: tuple[Tensor | None, dict[str, Any]] = (None, {})

    def __call__(self, dose: Dose, memory: dict[str, Any], at: Moment) -> tuple[Tensor | None, dict[str, Any]]:
        """Return the step of the noise (P,), None for nothing, and the memory after it."""
        asked = (dose, memory, at.grad, at.theta, at.batch, at.rate, at.rng, at.step)
        if len(self._asked) != len(asked) or not all(map(is_, self._asked, asked)):
            self._asked, self._answer = asked, explore(dose, memory, at, self._made)
        return self._answer


def uniform(power: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Return the mean of `power` (P,) at every coordinate: over all, or over each block of the given sizes."""
    if sizes is None:
        return power.mean().expand_as(power)
    return torch.cat([block.mean().expand_as(block) for block in power.split(sizes)])


def anisotropy(power: Tensor, share: float = 0.01) -> tuple[Tensor, Tensor]:
    """Return the participation ratio (Σc)²/(P·Σc²) of noise power c (P,), and what the top `share` of coordinates hold.

    Both are 0-d and lie in (0, 1]. Equal power gives 1 and about `share`; a single coordinate gives 1/P and 1. Both are
    0 where there is no power.
    """
    c = power / power.sum().clamp(min=torch.finfo(power.dtype).tiny)
    ratio = c.sum() / (len(c) * c.square().sum()).clamp(min=torch.finfo(power.dtype).tiny)
    return ratio, c.topk(max(1, round(share * len(c)))).values.sum()
