"""Slices of a loss through a point: lines, planes drawn from coarse to fine, and the barrier between two points.

f(a, b) = L(theta + a d1 + b d2), on the same rows of data for every point. Several losses of one network (the joint one
and each modality's) are read off the same forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.krylov import Loss
from modalscape.engine.maths.landscape.directions import direction_pair, filter_normalised
from modalscape.engine.maths.landscape.evaluate import Field, Losses, single
from modalscape.engine.maths.landscape.interpolation import CHECKS, MARGIN, Knots, Plane, Slice
from modalscape.engine.maths.progress import Tally

__all__ = ["Slice", "axis", "axis_over", "barrier", "direction_pair", "filter_normalised", "gaps", "line", "refine"]
__all__ += ["rise", "slice_1d", "slice_2d"]

AT_ONCE = 6
"""Checks of the first, coarse grid between two looks at whether they have refuted it, so that the rest are in vain."""


def axis(reach: float, points: int) -> Tensor:
    """Return `points` evenly spaced numbers (points,) from -reach to reach that contain 0 exactly.

    Raises:
        InputError: `points` is even or below 3, or `reach` is not positive.

    >>> axis(1.0, 5).tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    if points < 3 or points % 2 == 0 or not reach > 0:
        raise InputError(f"an axis of {points} points and reach {reach} has no centre; give an odd number from 3 up.")
    half = points // 2
    return torch.arange(-half, half + 1, dtype=torch.float64) * reach / half


def axis_over(low: float, high: float, points: int) -> Tensor:
    """Return `points` evenly spaced numbers (points,) that cover `low` < 0 < `high` and contain 0 exactly.

    One end is exact, the other as near as even spacing allows; both are where `low` is -`high` and `points` is odd.

    Raises:
        InputError: 0 does not lie between the ends, or there are fewer than 3 points.

    >>> axis_over(-0.9, 3.0, 5).tolist()
    [-1.0, 0.0, 1.0, 2.0, 3.0]
    """
    if points < 3 or not low < 0 < high:
        raise InputError(f"an axis of {points} points from {low} to {high} cannot hold 0 inside; give 3 or more.")
    before = min(max(round(-low / (high - low) * (points - 1)), 1), points - 2)
    after = points - 1 - before
    span, count = max((-low, before), (high, after), key=lambda end: end[0] / end[1])
    return torch.arange(-before, after + 1, dtype=torch.float64) * span / count


def barrier(t: Sequence[float] | Tensor, losses: Tensor) -> Tensor:
    """Return how far the losses (…, N) on the way t (N,) from 0 to 1 rise above the chord at most, (…), in their unit.

    max_t [L(w_t) - (1 - t) L(w_0) - t L(w_1)] (Frankle et al. 2020): 0 where the way never leaves the chord upwards.

    >>> barrier([0.0, 0.5, 1.0], torch.tensor([1.0, 3.0, 2.0])).item()
    1.5
    """
    return rise(t, losses).max(-1).values


def rise(t: Sequence[float] | Tensor, losses: Tensor) -> Tensor:
    """Return how far the losses (…, N) on the way t (N,) from 0 to 1 lie above the chord, (…, N), in the loss's unit.

    Raises:
        InputError: t does not run from 0 to 1, or a loss at its ends is not finite.
    """
    t = torch.from_numpy(_axis(t, "t"))
    if t[0] != 0 or t[-1] != 1 or losses.shape[-1:] != t.shape:
        raise InputError(f"a barrier needs a loss at each t from 0 to 1, not {losses.shape[-1]} on {t.tolist()!s:.60}.")
    ends = losses[..., [0, -1]]
    if not ends.isfinite().all():
        raise InputError(f"the losses at the ends are {ends.tolist()!s:.80}; a barrier needs finite ones.")
    return losses - (1 - t) * losses[..., :1] - t * losses[..., -1:]


def gaps(values: Tensor) -> str:
    """Return how many losses are not finite as the end of a sentence, or nothing.

    >>> gaps(torch.tensor([1.0, torch.inf]))
    '; 1 of 2 points are not finite and drawn as gaps'
    """
    count = int((~values.isfinite()).sum())
    return f"; {count:,} of {values.numel():,} points are not finite and drawn as gaps" if count else ""


def slice_1d(loss: Loss, theta: Tensor, d: Tensor, t: Sequence[float] | Tensor) -> Tensor:
    """Return L(theta + t d) for each t, (len(t),) in float64 on the CPU; at t = 0 exactly the loss at theta.

    With d = theta' - theta and t from 0 to 1 it is the line between two runs. Shapes that do not fit, or t that does
    not increase, are refused by an `InputError`.
    """
    return line(single(loss), theta, d, t)[0]


def line(
    losses: Losses,
    theta: Tensor,
    d: Tensor,
    t: Sequence[float] | Tensor,
    *,
    chunk: int = 1,
    tally: Tally | None = None,
) -> Tensor:
    """Return the losses (L, len(t)), float64 on the CPU, `chunk` points at once; a `tally` has len(t) in its plan.

    Raises:
        InputError: shapes that do not fit, t that does not increase, or a centre that is not finite.
    """
    _fits(theta, d)
    t = _axis(t, "t")
    found = Field(losses, theta.detach(), d.detach()[None], chunk)(t[:, None], tally).T
    _holds(found[:, t == 0])
    return torch.from_numpy(found.copy())


def slice_2d(
    loss: Loss,
    theta: Tensor,
    d1: Tensor,
    d2: Tensor,
    x: Sequence[float] | Tensor,
    y: Sequence[float] | Tensor,
    tol: float = 1e-3,
    *,
    generator: torch.Generator | None = None,
) -> Slice:
    """Return the plane L(theta + x d1 + y d2), (len(y), len(x)); where x = y = 0, exactly the loss at theta.

    Interpolated from a coarse grid where that is within `tol` of the range of z, exact otherwise; `tol` 0 evaluates
    every point. See `refine`.
    """
    *_, last = refine(single(loss), theta, d1, d2, x, y, tol, generator=generator)
    return last[0]


def refine(
    losses: Losses,
    theta: Tensor,
    d1: Tensor,
    d2: Tensor,
    x: Sequence[float] | Tensor,
    y: Sequence[float] | Tensor,
    tol: float = 1e-3,
    *,
    generator: torch.Generator | None = None,
    chunk: int = 1,
    tally: Tally | None = None,
) -> Iterator[tuple[Slice, ...]]:
    """Yield ever better slices, one for each of the losses (L,), the last ones final; the first ones are unchecked.

    A coarse grid, denser towards the ends and with the ends and the zero of each axis, is spread over the plane by a
    bicubic spline and compared with the truth at random points. Then every interval of either axis is halved; how far
    the spline was off at the new knots tells, by the fourth power of the distance, which of the halves need halving
    again: a plane that is steep along one axis or in one corner is refined there alone. Final is the first slice whose
    bound is within `tol` of the range for every loss, or of NARROW of the widest range where a loss hardly varies. A
    surface that defies the spline, or is not finite somewhere, ends with the exact grid. What each round will
    evaluate is added to the plan of `tally`.

    Raises:
        InputError: shapes that do not fit, axes that do not increase, a negative `tol`, or a centre that is not finite.
    """
    _fits(theta, d1, d2)
    if not tol >= 0:
        raise InputError(f"tol is a fraction of the range and must not be negative, not {tol}; 0 is exact.")
    x, y = _axis(x, "x"), _axis(y, "y")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    field = Field(losses, theta.detach(), torch.stack([d1, d2]).detach(), chunk)
    plane = Plane(field, x, y, tally or Tally("points", 0))
    rows, cols = Knots(y), Knots(x)
    plane.evaluate(np.argwhere((y[:, None] == 0) & (x == 0)))
    _holds(plane.z[:, ~plane.unknown])
    while tol > 0 and plane.spares(rows, cols):
        plane.evaluate(np.array([(row, col) for row in rows.at for col in cols.at]), CHECKS)
        if not plane.finite:
            break
        first = plane.guess is None
        plane.learn(rows, cols)
        plane.fit(rows, cols)
        if first:
            yield plane.slices(checked=False)
        _check(plane, generator, tol if first else None)
        if not plane.finite:
            break
        plane.expect(0)
        yield plane.slices(final := plane.bound <= tol)
        if final:
            return
        share = tol / MARGIN
        if not (rows.doubtful(share) or cols.doubtful(share)):
            for knots, at in zip((rows, cols), plane.worst, strict=True):
                knots.doubt(at)
        if not (rows.halve(share) + cols.halve(share)):
            break
    plane.evaluate(np.argwhere(plane.unknown))
    yield plane.exact()


def _check(plane: Plane, generator: torch.Generator, most: float | None) -> None:
    """Evaluate CHECKS random unknown points of the plane, or fewer once its bound is above `most`, if that is given."""
    order = torch.randperm(int(plane.unknown.sum()), generator=generator, device=generator.device)[:CHECKS]
    for checks in np.array_split(np.argwhere(plane.unknown)[order.cpu().numpy()], CHECKS // AT_ONCE):
        if plane.finite and (most is None or plane.bound <= most):
            plane.evaluate(checks, max(plane.ahead - len(checks), 0))


def _axis(values: Sequence[float] | Tensor, name: str) -> np.ndarray:
    axis = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if axis.ndim != 1 or not len(axis) or not np.isfinite(axis).all() or (np.diff(axis) <= 0).any():
        raise InputError(f"{name} must be finite numbers in increasing order, not {axis.tolist()!s:.80}.")
    return axis


def _fits(theta: Tensor, *directions: Tensor) -> None:
    for d in directions:
        if d.shape != theta.shape or theta.dim() != 1:
            raise InputError(f"a direction of shape {tuple(d.shape)} does not fit theta {tuple(theta.shape)}.")
    for what, values in (("theta", theta), *(("a direction", d) for d in directions)):
        count = int((~values.isfinite()).sum())
        if count:
            raise InputError(
                f"{what} has {count:,} numbers that are not finite; cut the loss where training is finite."
            )


def _holds(losses: np.ndarray) -> None:
    """Check the losses at the centre.

    Raises:
        InputError: one is not finite.
    """
    bad = losses[~np.isfinite(losses)]
    if bad.size:
        raise InputError(f"the loss at the centre of the slice is {bad[0]}; cut it where training is finite.")
