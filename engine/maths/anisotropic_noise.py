"""Noise shaped by an exponential moving average (EMA) of gradients: curvature estimate, dose, kick.

Shared by GANI and its isotropic control, which differ in nothing but how the noise power is spread over coordinates.
Everything is elementwise on the flat vector (P,), at a cost linear in P, and pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import is_
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.knobs import InputError, assigned, checked, knob, nearest
from engine.layout import Layout
from engine.needs import PATIENCE
from engine.rng import Rng

BALANCES = ("even", "inverse")
"""Rules for the gains of the modalities, beside numbers."""
_GAIN = {"type": "float", "low": 0.0, "high": 100.0}


@dataclass(frozen=True)
class Dose:
    """The knobs of a noise method; what each means stands in `strength`, `curvature`, `gains` and `kick`."""

    sigma: float = knob(1.0, 0.0, 8.0, "Dose: multiplies the noise whatever the sizing; 0 is off.")
    mode: str = knob("central", help="Curvature proxy.", choices=("central", "second", "first"))
    sizing: str = knob(
        "virtual", help="What sets the noise's size.", choices=("virtual", "fixed", "relative", "langevin")
    )
    virtual_batch: int = knob(0, 0, 65536, "Batch size to imitate, in rows; 0 for an eighth of the batch.")
    rho: float = knob(0.25, 0.0, 1.0, "Share of the missing small-batch variance that is put back.")
    kappa: str = knob(
        "1", help="Gain on the noise: a number, one a part (image=2, text=0.5), or a rule, even or inverse."
    )
    exclude: str = knob("none", help="Tensors without noise; vectors: biases and gains.", choices=("none", "vectors"))
    beta: float = knob(0.99, 0.0, 0.9999, "Decay of the moving averages.")
    eps: float = knob(1e-12, 0.0, 1e-6, "Floor on c, in squared gradient units; 0 for none.")
    warmup: int = knob(20, 0, 100_000, "Gradients averaged before the first noise.")
    anneal: str = knob("cosine", help="How the noise ends over the run.", choices=("cosine", "cut", "none"))
    rest: float = knob(0.2, 0.0, 1.0, "Last share of the run without noise, unless anneal is none.")
    clip: float = knob(0.01, 0.0, 100.0, "Largest norm of the noise in one step; 0 for no limit.")
    clip_to: str = knob("weights", help="Unit of `clip`: ‖theta‖, or 1.", choices=("weights", "absolute"))
    placement: str = knob(
        "decoupled",
        help="After the descent, or as if added to the gradient.",
        choices=("decoupled", "through_grad"),
    )

    def __post_init__(self) -> None:
        """Refuse gains that cannot be read."""
        numbers(self.kappa)


class Pace(Protocol):
    """What is needed of the optimiser at one step: learning rate, heavy-ball coefficient, Nesterov, length of run."""

    lr: float
    momentum: float
    nesterov: bool
    horizon: int


class Moment(Protocol):
    """What is needed of a step once its gradient is known."""

    step: int
    theta: Tensor
    grad: Tensor
    batch: Any
    """Its length is the number of rows."""
    rate: Pace
    rng: Rng
    problem: Any
    """Has the `layout` of theta."""


def numbers(kappa: str) -> dict[str, float]:
    """Return part to gain for the knob `kappa`, under `""` what holds for parts that are not named; none for a rule.

    >>> numbers("2"), numbers("image=2"), numbers("even")
    ({'': 2.0}, {'image': 2.0}, {})

    Raises:
        InputError: the text is no number, no list of names with numbers, and no rule.
    """
    if kappa in BALANCES:
        return {}
    if "=" in kappa:
        return assigned(kappa, "kappa", 0.0, 100.0)
    try:
        return {"": checked(_GAIN, kappa, "kappa")}
    except InputError:
        raise InputError(
            f"kappa must be a number from 0 to 100, one a part such as image=2, text=0.5, or even or inverse, "
            f"not {kappa!r}."
        ) from None


def suits(kappa: str, layout: Layout) -> None:
    """Refuse gains that name a part which is not there.

    Raises:
        InputError: says which, and which there are.
    """
    for part in numbers(kappa):
        if part and part not in layout.slices:
            raise InputError(f"kappa names {part!r}{nearest(part, layout.slices)}")


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
        "square": (memory["square"] * beta).addcmul_(grad, grad, value=1 - beta),
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
    variance = (memory["square"] * total).addcmul_(mean, mean, value=-1)
    return variance.clamp_(min=0).div_(total**2 - memory["squares"])


def gains(kappa: str, square: Tensor, power: Tensor, layout: Layout) -> dict[str, float | Tensor]:
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
    """Return the noise variance of each coordinate (P,) at strength 1: κ²(c + eps), and 0 where `exclude` says so."""
    power = curvature(memory, dose.mode).add_(dose.eps)
    for part, gain in gains(dose.kappa, memory["square"], power, layout).items():
        power[layout.slices[part]] *= gain**2
    if dose.exclude == "vectors":
        for block in layout.unpack(power).values():
            if block.dim() < 2:
                block.zero_()
    return power


def virtual(batch: int, virtual_batch: int, rho: float) -> float:
    """Return σ = √(ρ(B/b - 1)), the strength at which noise of variance c = C/B imitates batches of b rows.

    C/B + (B/b - 1)·C/B = C/b. `virtual_batch` 0 stands for an eighth of the batch, at least one row; b ≥ B gives 0.

    >>> virtual(1024, 128, 0.25) == virtual(1024, 0, 0.25) == 1.75**0.5
    True
    >>> virtual(1, 0, 1.0)
    0.0
    """
    ratio = batch / (virtual_batch or max(batch / 8, 1.0))
    return math.sqrt(rho * max(ratio - 1.0, 0.0))


def annealed(kind: str, step: int, steps: int, rest: float) -> float:
    """Return the factor (0 to 1) on σ at `step` of a run of `steps`; the last `rest` (share of the run) has none.

    `cosine` falls from 1 to 0 until the rest begins, `cut` stays 1 until then, `none` is always 1.
    """
    if kind == "none":
        return 1.0
    share = step / max((1.0 - rest) * steps, 1.0)
    if share >= 1.0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * share)) if kind == "cosine" else 1.0


def strength(dose: Dose, seen: int, step: int, batch: int, pace: Pace) -> float:
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
        "langevin": math.sqrt(2.0 / pace.lr) if pace.lr > 0 else 0.0,
    }[dose.sizing]
    return dose.sigma * factor * annealed(dose.anneal, step, pace.horizon, dose.rest)


def stillness(name: str, dose: Dose, seen: int, batch: int, at: Moment) -> str:
    """Return why σ is zero for long, and what would raise it; empty where it is not. `name` is the method's.

    `seen` gradients have been absorbed of batches of `batch` rows; of `at`, step and rate are read.
    """
    if dose.sizing == "virtual" and virtual(batch, dose.virtual_batch, dose.rho) == 0.0:
        if dose.rho == 0.0:
            return f"{name}.rho is 0, so none of the missing variance is put back; raise it"
        rows = dose.virtual_batch or 1
        return (
            f"a batch of {batch:,} has no more rows than the {rows:,} that it should imitate; enlarge the batch, lower "
            f"{name}.virtual_batch, or set {name}.sizing to fixed"
        )
    if annealed(dose.anneal, at.step, at.rate.horizon, dose.rest) == 0.0:
        return f"the last {dose.rest:.0%} of the run is without; set {name}.anneal to none, or train longer"
    if dose.warmup - seen > PATIENCE:
        return f"it averages {dose.warmup:,} gradients before; lower {name}.warmup"
    return ""


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
        return noise.mul_(factor), torch.zeros_like(length, dtype=torch.bool)
    limit = dose.clip * theta.norm() if dose.clip_to == "weights" else torch.full_like(length, dose.clip)
    over = length > limit
    return noise.mul_(torch.where(over, factor * (limit / length), factor)), over


def explore(
    dose: Dose, memory: dict[str, Any], at: Moment, name: str, spread: Callable[[Tensor, Layout], Tensor]
) -> tuple[Tensor | None, dict[str, Any]]:
    """Return what noise adds to the update (P,), None for nothing, and the memory after the step.

    `spread` turns the `weighed` power into the standard deviation of each coordinate (P,), and may overwrite it; draws
    are keyed by `name`.
    `decoupled` placement adds lr·noise after the descent. `through_grad` sends the noise through a momentum buffer of
    its own, with the optimiser's coefficient: for SGD, which is linear, the same as adding it to the gradient, but the
    optimiser's memory and the EMA stay free of it.
    """
    pace = at.rate
    memory = absorbed(memory, at.grad, dose.beta)
    sigma = strength(dose, memory["seen"], at.step, len(at.batch), pace)
    carried = memory.get("push")
    if dose.placement != "through_grad" and carried is not None:
        memory = {key: value for key, value in memory.items() if key != "push"}
        carried = None
    if sigma == 0.0 and carried is None:
        return None, memory
    if sigma == 0.0:
        noise = torch.zeros_like(at.grad)
    else:
        layout = at.problem.layout
        std = spread(weighed(dose, memory, layout), layout)
        noise, over = kick(dose, sigma, std, at.rng.normal(name, at.step, at.grad), at.grad, at.theta, pace.lr)
        memory = memory | {"clipped": memory["clipped"] + over}
    if dose.placement != "through_grad":
        return noise.mul_(pace.lr), memory
    push = noise if carried is None else pace.momentum * carried + noise
    shift = noise + pace.momentum * push if pace.nesterov else push
    return -pace.lr * shift, memory | {"push": push}


class Explorer:
    """`explore` for one method, once a step: `commit` asks again for what `update` asked."""

    def __init__(self, name: str, spread: Callable[[Tensor, Layout], Tensor]) -> None:
        self.name, self.spread = name, spread
        self._asked: tuple = ()
        self._answer: tuple[Tensor | None, dict[str, Any]] = (None, {})

    def __call__(self, dose: Dose, memory: dict[str, Any], at: Moment) -> tuple[Tensor | None, dict[str, Any]]:
        """Return the step of the noise (P,), None for nothing, and the memory after it."""
        asked = (dose, memory, at.grad, at.theta, at.batch, at.rate, at.rng, at.step)
        if len(self._asked) != len(asked) or not all(map(is_, self._asked, asked)):
            self._asked, self._answer = asked, explore(dose, memory, at, self.name, self.spread)
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
