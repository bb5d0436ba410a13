"""A plane of losses from a few of its points: knots on its axes, splines through them, and how far these err."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from modalscape.engine.maths.landscape.evaluate import Field
from modalscape.engine.maths.progress import Tally

CHECKS = 24
"""Random grid points at which an interpolated plane is compared with the truth, at each refinement."""
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
    checked points; 0 where every point was evaluated, nan where none was checked. A bound from samples, so likely and
    not certain. In a final slice, points that were evaluated hold the truth. `evaluations` counts forward passes.
    """

    z: Tensor
    checked_error: float
    evaluations: int


class Knots:
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


class Plane:
    """The values of a plane that are known so far, in a mask of its own since a loss may be NaN; and its splines."""

    def __init__(self, field: Field, x: np.ndarray, y: np.ndarray, tally: Tally):
        self.field, self.x, self.y, self.tally = field, x, y, tally
        self.ahead = 0
        """Evaluations that are planned and not done."""
        self.z = np.zeros((0, len(y), len(x)))
        self.unknown = np.ones((len(y), len(x)), dtype=bool)
        self.guess: np.ndarray | None = None

    def spares(self, rows: Knots, cols: Knots) -> bool:
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

    def evaluate(self, places: np.ndarray, then: int = 0) -> None:
        """Compute the losses at places (N, 2), row and column, where they are not known; `then` more will follow."""
        places = places[self.unknown[places[:, 0], places[:, 1]]]
        if not len(places):
            return
        self.expect(len(places) + then)
        found = self.field(np.stack([self.x[places[:, 1]], self.y[places[:, 0]]], 1), self.tally)
        if not len(self.z):
            self.z = np.zeros((found.shape[1], *self.unknown.shape))
        rows, cols = places.T
        self.z[:, rows, cols] = found.T
        self.unknown[rows, cols] = False
        self.ahead -= len(places)

    def expect(self, count: int) -> None:
        """Plan `count` evaluations from here on."""
        self.tally.plan(count - self.ahead)
        self.ahead = count

    def learn(self, rows: Knots, cols: Knots) -> None:
        """Tell both axes how far the last splines are off at the knots that were added since, along the old knots."""
        if self.guess is None:
            return
        off, old_rows, old_cols = self.off, *([k for k in axis.at if k not in axis.new] for axis in (rows, cols))
        rows.learn({row: float(off[row, old_cols].max()) for row in rows.new})
        cols.learn({col: float(off[old_rows, col].max()) for col in cols.new})

    def fit(self, rows: Knots, cols: Knots) -> None:
        """Lay the splines through the knots."""
        y, x, grid = self.y[rows.at], self.x[cols.at], np.ix_(rows.at, cols.at)
        self.guess = np.stack([RectBivariateSpline(y, x, z[grid], kx=3, ky=3)(self.y, self.x) for z in self.z])

    def slices(self, final: bool = False, checked: bool = True) -> tuple[Slice, ...]:
        """Return the splines; when `final`, with the truth where it is known."""
        known = ~self.unknown
        count = int(known.sum())
        found = []
        for z, guess in zip(self.z, self.guess, strict=True):
            shown = torch.from_numpy(np.where(known, z, guess) if final else guess)
            found.append(Slice(shown, self._error(z, guess) if checked else math.nan, count))
        return tuple(found)

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
