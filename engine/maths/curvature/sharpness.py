"""Sharpness: how far a loss rises near a point, in the worst direction within a ball or on average over random ones.

The worst case is searched by projected gradient ascent in the coordinates u = e / T, where the ball is |u| <= rho. With
T = 1 the first step is that of SAM; with T = |theta| + eta it is that of ASAM, and at eta = 0 the whole path is the
same after every rescaling of single parameters that keeps the function. What is found is a lower bound, exact on a
quadratic as the steps grow. Multiply the loss by c > 0 and every result is multiplied by c.

*Source*: Foret et al., arXiv 2010.01412, for the ball, its first step and m-sharpness; Kwon et al., arXiv 2102.11600,
for T. The further steps, which start from the first and go back where the loss falls, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients.angles import unit
from modalscape.engine.maths.progress import Tally

Loss = Callable[[Tensor], Tensor]
LONG = 4.0
"""Length of a step in units of the radius: nearly a power iteration, yet one that turns away from negative curvature.
A step that does not rise is taken back, and the next is `LONG` times shorter; one that does lets it grow again."""


@dataclass(frozen=True)
class Ascent:
    """The highest point found in a ball.

    `rises` (steps + 1,) is the largest rise so far after each step, never below 0, in units of the loss; `first` the
    rise of the one step of full length, which may be negative. `move` (P,) leads to the highest point and `slope` is
    the gradient's norm |T g| at the centre, so that `rho * slope` is the rise to first order.
    """

    rises: tuple[float, ...]
    first: float
    move: Tensor
    slope: float

    @property
    def rise(self) -> float:
        """The largest rise found."""
        return self.rises[-1]

    @property
    def gain(self) -> float:
        """What the last step still added, a measure of how far the search has settled."""
        return self.rises[-1] - self.rises[-2] if len(self.rises) > 1 else self.rises[-1]


@dataclass(frozen=True)
class Mean:
    """A mean of rises with one standard error (infinite for a single one) and their number."""

    value: float
    error: float
    count: int


def ascent(
    loss: Loss,
    theta: Tensor,
    rho: float,
    steps: int = 8,
    *,
    scale: Tensor | None = None,
    generator: torch.Generator | None = None,
    tally: Tally | None = None,
) -> Ascent:
    """Return the highest point with |e / T| <= rho that one step of full length and `steps` projected ones find.

    `scale` (P,) is T, 1 for all parameters by default; where it is 0 the parameter stays. `generator` gives a first
    direction where the gradient is exactly zero. Each gradient, `steps` + 2 in all, is added to `tally`.

    Raises:
        InputError: the loss is not a finite number at `theta` or in the ball, or `rho` is not positive.

    >>> round(ascent(lambda w: 0.5 * (w @ w), torch.zeros(3), 0.5).rise, 6)
    0.125
    """
    if not rho > 0 or steps < 0:
        raise InputError(f"rho = {rho} must be positive and steps = {steps} not negative; 0.05 and 8 are usual.")
    tally = tally or Tally("gradients", steps + 2)
    theta = theta.detach()
    scale = torch.ones_like(theta) if scale is None else scale.to(theta)
    base, slope = _climbing(loss, theta, scale, "at theta")
    norm = _norm(slope)
    if norm == 0.0:
        slope = _gaussian(theta, generator) * scale
    tally.add()
    where = f"within rho = {rho:g} of theta, so lower rho"
    best, at, stride = 0.0, torch.zeros_like(theta), rho
    rises: list[float] = []
    first = 0.0
    for step in range(1 + steps):
        there = _inside(at + stride * unit(slope), rho)
        value, uphill = _climbing(loss, theta + scale * there, scale, where)
        rise = value - base
        first = rise if step == 0 else first
        if rise > best:
            best, at, stride = rise, there, LONG * rho if step == 0 else min(LONG * rho, 2 * stride)
            slope = uphill if _norm(uphill) > 0 else slope
        else:
            stride /= LONG
        rises.append(best)
        tally.add()
    return Ascent(tuple(rises), first, scale * at, norm)


def mean_ascent(
    losses: Sequence[Loss],
    theta: Tensor,
    rho: float,
    steps: int = 8,
    *,
    scale: Tensor | None = None,
    generator: torch.Generator | None = None,
    tally: Tally | None = None,
) -> Mean:
    """Return the mean rise of several losses, each in its own worst direction; with micro-batches, m-sharpness.

    The mean of the maxima is at least the maximum of the mean, so it grows as the micro-batches shrink.
    """
    tally = tally or Tally("gradients", len(losses) * (steps + 2))
    options = {"scale": scale, "generator": generator, "tally": tally}
    return _mean([ascent(loss, theta, rho, steps, **options).rise for loss in losses])


def average_rise(
    loss: Loss,
    theta: Tensor,
    sigma: float,
    pairs: int = 16,
    *,
    scale: Tensor | None = None,
    generator: torch.Generator | None = None,
    tally: Tally | None = None,
) -> Mean:
    """Return the mean of L(theta + sigma T z) - L(theta) over normal z (P,), about sigma² tr H / 2 where T = 1.

    Each draw is used with both signs, which cancels the slope; the standard error is over the `pairs` draws, never
    below the rounding of the loss. Each draw is added to `tally`.

    Raises:
        InputError: the loss is not a finite number at `theta` or near it, `sigma` is not positive, or no pair is asked.
    """
    if not sigma > 0 or pairs < 1:
        raise InputError(f"sigma = {sigma} and pairs = {pairs} must both be positive; 0.01 and 16 are usual.")
    tally = tally or Tally("draws", pairs)
    theta = theta.detach()
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    where = f"at sigma = {sigma:g} from theta, so lower sigma"
    rises = []
    with torch.no_grad():
        base = _finite(loss(theta), "at theta").item()
    for _ in range(pairs):
        step = sigma * _gaussian(theta, generator)
        step = step if scale is None else step * scale.to(theta)
        with torch.no_grad():
            ends = [_finite(loss(theta + sign * step), where).item() for sign in (1, -1)]
        rises.append(sum(ends) / 2 - base)
        tally.add()
    found = _mean(rises)
    return Mean(found.value, math.hypot(found.error, torch.finfo(theta.dtype).eps * abs(base)), pairs)


def _climbing(loss: Loss, at: Tensor, scale: Tensor, where: str) -> tuple[float, Tensor]:
    """Return the loss and T g, its gradient in the coordinates in which the ball is round."""
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        value = _finite(loss(at), where)
        if not value.requires_grad:
            return value.item(), torch.zeros_like(scale)
        (grad,) = torch.autograd.grad(value, at, materialize_grads=True)
    return value.item(), scale * grad


def _finite(value: Tensor, where: str) -> Tensor:
    if value.numel() != 1:
        raise InputError(f"the loss must return one number, not {tuple(value.shape)}.")
    if not torch.isfinite(value):
        raise InputError(f"the loss is {value.item()} {where}; sharpness compares finite losses.")
    return value.reshape(())


def _norm(v: Tensor) -> float:
    """Return the Euclidean norm, also where the squares of the entries are too small for their type."""
    peak = v.abs().max().item() if len(v) else 0.0
    return peak * torch.linalg.vector_norm(v / peak).item() if peak > 0 else 0.0


def _inside(u: Tensor, rho: float) -> Tensor:
    length = torch.linalg.vector_norm(u).item()
    return u * (rho / length) if length > rho else u


def _gaussian(theta: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a Gaussian vector (P,), the same in every precision."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    draw = torch.randn(len(theta), generator=generator, device=generator.device, dtype=torch.float32)
    return draw.to(theta)


def _mean(values: Sequence[float]) -> Mean:
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Mean(mean, math.inf, count)
    return Mean(mean, math.sqrt(sum((x - mean) ** 2 for x in values) / (count - 1) / count), count)
