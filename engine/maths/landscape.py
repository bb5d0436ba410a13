"""Slices of a loss through a point: lines, planes drawn from coarse to fine, and the barrier between two points.

f(a, b) = L(theta + a d1 + b d2), on the same rows of data for every point. Several losses of one network (the joint one
and each modality's) are read off the same forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from engine.knobs import InputError
from engine.maths.directions import direction_pair, filter_normalised
from engine.maths.krylov import Loss
from engine.maths.points import Field, Losses, single

__all__ = ["Slice", "axis", "axis_over", "barrier", "direction_pair", "filter_normalised", "gaps", "line", "refine"]
__all__ += ["rise", "slice_1d", "slice_2d"]

CHECKS = 24
"""Random grid points at which an interpolated plane is compared with the truth, at each refinement."""
AT_ONCE = 6
"""Checks of the first, coarse grid between two looks at whether they have refuted it, so that the rest are in vain."""
MARGIN = 3.0
"""What the largest deviation at checked points is multiplied by: the largest of 24 is about half the true maximum."""
FIRST = 7
"""Knots a side of the first, coarse grid; where they miss the zero of an axis, it is one more.

An odd number keeps the spacing of an even axis even about its zero. On 44 planes of 51 x 51 through six trained
networks, each with three draws of the checks, at a tolerance of 1e-3 of the range: with 7 all 132 kept it, for 198 to
344 evaluations on average of a network; with 6, and the zero between the middle two, 131 for 199 to 466.
"""
DENSE = 0.7
"""Share of all points from which on the exact grid is as cheap as a finer coarse one."""
NARROW = 0.1
"""Share of the widest loss's range that a narrower loss is judged by: below it, much of a range is rounding."""


@dataclass(frozen=True)
class Slice:
    """A plane of losses `z` (len(y), len(x)), float64 on the CPU, in the loss's unit.

    `checked_error` bounds the interpolation error as a fraction of the range of z: 3 times the largest deviation at the
    checked points; 0 where every point was evaluated. A bound from samples, so likely and not certain. In a final
    slice, points that were evaluated hold the truth. `evaluations` counts forward passes.
    """

    z: Tensor
    checked_error: float
    evaluations: int


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
    *_, found = line(single(loss), theta, d, t)
    return found[0]


def line(
    losses: Losses, theta: Tensor, d: Tensor, t: Sequence[float] | Tensor, *, chunk: int = 1
) -> Iterator[Tensor | None]:
    """Yield None after every `chunk` points, a breathing point, and at last the losses (L, len(t)).

    Raises:
        InputError: shapes that do not fit, t that does not increase, or a centre that is not finite.
    """
    _fits(theta, d)
    pieces, t = [], _axis(t, "t")
    for piece in Field(losses, theta.detach(), d.detach()[None], chunk)(t[:, None]):
        pieces.append(piece)
        yield None
    found = np.concatenate(pieces).T
    _holds(found[:, t == 0])
    yield torch.from_numpy(found.copy())


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
) -> Iterator[tuple[Slice, ...] | None]:
    """Yield ever better slices, one for each of the losses (L,), the last ones final; a yielded None is a breath.

    A coarse grid, denser towards the ends and with the ends and the zero of each axis, is spread over the plane by a
    bicubic spline and compared with the truth at random points. Then every interval of either axis is halved; how far
    the spline was off at the new knots tells, by the fourth power of the distance, which of the halves need halving
    again: a plane that is steep along one axis or in one corner is refined there alone. Final is the first slice whose
    bound is within `tol` of the range for every loss, or of NARROW of the widest range where a loss hardly varies. A
    surface that defies the spline, or is not finite somewhere, ends with the exact grid.

    Raises:
        InputError: shapes that do not fit, axes that do not increase, a negative `tol`, or a centre that is not finite.
    """
    _fits(theta, d1, d2)
    if not tol >= 0:
        raise InputError(f"tol is a fraction of the range and must not be negative, not {tol}; 0 is exact.")
    x, y = _axis(x, "x"), _axis(y, "y")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    plane = _Plane(Field(losses, theta.detach(), torch.stack([d1, d2]).detach(), chunk), x, y)
    rows, cols = _Knots(y), _Knots(x)
    yield from plane.evaluated(np.argwhere((y[:, None] == 0) & (x == 0)))
    _holds(plane.z[:, ~plane.unknown])
    while tol > 0 and plane.spares(rows, cols):
        yield from plane.evaluated(np.array([(row, col) for row in rows.at for col in cols.at]))
        if not plane.finite:
            break
        first = plane.guess is None
        plane.learn(rows, cols)
        plane.fit(rows, cols)
        order = torch.randperm(int(plane.unknown.sum()), generator=generator, device=generator.device)[:CHECKS]
        for checks in np.array_split(np.argwhere(plane.unknown)[order.cpu().numpy()], CHECKS // AT_ONCE):
            if plane.finite and (plane.bound <= tol or not first):
                yield from plane.evaluated(checks)
        if not plane.finite:
            break
        final = plane.bound <= tol
        yield plane.slices(final)
        if final:
            return
        share = tol / MARGIN
        if not (rows.doubtful(share) or cols.doubtful(share)):
            row, col = plane.worst
            rows.doubt(row)
            cols.doubt(col)
        if not (rows.halve(share) + cols.halve(share)):
            break
    yield from plane.evaluated(np.argwhere(plane.unknown))
    yield plane.exact()


class _Knots:
    """The knots of one axis, as indices, and the error that is expected between each of them and the next."""

    def __init__(self, axis: np.ndarray):
        # Half way between even and Chebyshev spacing: a spline errs most at the ends. On a plane through a trained
        # network this has a third of the error of even spacing.
        t = np.linspace(-1, 1, min(FIRST, len(axis)))
        spread = (t + np.sin(t * np.pi / 2)) / 2
        chosen = ((spread + 1) / 2 * (len(axis) - 1)).round().astype(int)
        self.at = sorted({*chosen.tolist(), *np.flatnonzero(axis == 0).tolist()})
        self.expected = dict.fromkeys(self.at[:-1], np.inf)
        self.new: dict[int, int] = {}
        """Knots that were just added, to the knot before them."""

    def doubtful(self, most: float) -> list[int]:
        """Return the knots that start an interval in which more than `most` is expected and which can be halved."""
        return [a for a, b in zip(self.at, self.at[1:], strict=False) if b - a > 1 and self.expected[a] > most]

    def halve(self, most: float) -> int:
        """Halve the doubtful intervals; return how many there were."""
        following = dict(zip(self.at, self.at[1:], strict=False))
        self.new = {(a + following[a]) // 2: a for a in self.doubtful(most)}
        self.at = sorted({*self.at, *self.new})
        return len(self.new)

    def learn(self, surplus: Mapping[int, float]) -> None:
        """Take in how far the spline was off at each new knot: halved, an interval keeps a sixteenth of that."""
        for knot, before in self.new.items():
            self.expected[knot] = self.expected[before] = surplus[knot] / 16
        self.new = {}

    def doubt(self, place: int) -> None:
        """Expect too large an error around a place."""
        for a, b in zip(self.at, self.at[1:], strict=False):
            if a <= place <= b:
                self.expected[a] = np.inf


class _Plane:
    """The values of a plane that are known so far, in a mask of its own since a loss may be NaN; and its splines."""

    def __init__(self, field: Field, x: np.ndarray, y: np.ndarray):
        self.field, self.x, self.y = field, x, y
        self.z = np.zeros((0, len(y), len(x)))
        self.unknown = np.ones((len(y), len(x)), dtype=bool)
        self.guess: np.ndarray | None = None

    def spares(self, rows: _Knots, cols: _Knots) -> bool:
        """Return whether a spline through a sub-grid is possible and saves evaluations."""
        enough = min(len(rows.at), len(cols.at)) >= 4
        return enough and len(rows.at) * len(cols.at) + CHECKS < DENSE * self.unknown.size

    @property
    def finite(self) -> bool:
        """Whether all known losses are."""
        return bool(np.isfinite(self.z[:, ~self.unknown]).all())

    @property
    def off(self) -> np.ndarray:
        """How far the splines are off at known points, as a fraction of each loss's range, the worst loss, (ny, nx)."""
        spans = np.ptp(self.z[:, ~self.unknown], axis=1)
        scales = np.maximum(spans, NARROW * spans.max())
        scales[scales == 0] = 1.0
        return np.where(self.unknown, 0.0, np.abs(self.guess - self.z) / scales[:, None, None]).max(0)

    @property
    def bound(self) -> float:
        """What the error may be, as a fraction of the range."""
        return MARGIN * self.off.max()

    @property
    def worst(self) -> tuple[int, int]:
        """Row and column at which the splines are farthest off."""
        return np.unravel_index(self.off.argmax(), self.unknown.shape)

    def evaluated(self, places: np.ndarray) -> Iterator[None]:
        """Compute the losses at places (N, 2), row and column, where they are not known; yield at breathing points."""
        places = places[self.unknown[places[:, 0], places[:, 1]]]
        done = 0
        for found in self.field(np.stack([self.x[places[:, 1]], self.y[places[:, 0]]], 1)):
            if not len(self.z):
                self.z = np.zeros((found.shape[1], *self.unknown.shape))
            rows, cols = places[done : done + len(found)].T
            self.z[:, rows, cols] = found.T
            self.unknown[rows, cols] = False
            done += len(found)
            yield None

    def learn(self, rows: _Knots, cols: _Knots) -> None:
        """Tell both axes how far the last splines are off at the knots that were added since, along the old knots."""
        if self.guess is None:
            return
        off, old_rows, old_cols = self.off, *([k for k in axis.at if k not in axis.new] for axis in (rows, cols))
        rows.learn({row: float(off[row, old_cols].max()) for row in rows.new})
        cols.learn({col: float(off[old_rows, col].max()) for col in cols.new})

    def fit(self, rows: _Knots, cols: _Knots) -> None:
        """Lay the splines through the knots."""
        y, x, grid = self.y[rows.at], self.x[cols.at], np.ix_(rows.at, cols.at)
        self.guess = np.stack([RectBivariateSpline(y, x, z[grid], kx=3, ky=3)(self.y, self.x) for z in self.z])

    def slices(self, final: bool) -> tuple[Slice, ...]:
        """Return the splines; when `final`, with the truth where it is known."""
        known = ~self.unknown
        count = int(known.sum())
        return tuple(
            Slice(torch.from_numpy(np.where(known, z, guess) if final else guess), self._error(z, guess), count)
            for z, guess in zip(self.z, self.guess, strict=True)
        )

    def _error(self, z: np.ndarray, guess: np.ndarray) -> float:
        known = ~self.unknown
        span = np.ptp(z[known])
        # A loss that the directions leave alone differs by rounding only, of which no fraction has a meaning.
        if span <= 64 * torch.finfo(self.field.theta.dtype).eps * np.abs(z[known]).max():
            return 0.0
        return float(MARGIN * np.abs(guess - z)[known].max() / span)

    def exact(self) -> tuple[Slice, ...]:
        """Return the planes with every point computed."""
        return tuple(Slice(torch.from_numpy(z.copy()), 0.0, z.size) for z in self.z)


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
