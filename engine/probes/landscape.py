"""Slices of the training loss through the parameters as they are: lines and planes, joint and of each modality.

Four kinds of plane. *Random*: filter-normalised directions, drawn once a run, so slices at different steps can be
compared: 1 on an axis moves every row of every weight matrix by its own length. Invariant to rescaling whole layers of
a ReLU network, not to rescaling single neurons; the average case, about trace / P. *Eigen*: the two eigenvectors of
largest curvature, the worst case; their signs are fixed by a reference drawn once a run. *Gradient*: downhill, and a
random direction across. *Trajectory*: the plane of the way the run came (PCA, the present subtracted), with the true
losses of its points: the heights of a plane under a projected path are not the path's losses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Probe, Record, Snapshot, knob
from modalscape.engine.errors import InputError
from modalscape.engine.maths.landscape.directions import (
    Parts,
    curved_pair,
    direction_pair,
    downhill_pair,
    principal_pair,
)
from modalscape.engine.maths.landscape.evaluate import at_once
from modalscape.engine.maths.landscape.slices import axis_over, line, refine
from modalscape.engine.maths.progress import Tally, tracked
from modalscape.engine.reports.planes import Cutting

MARGIN = 0.15
"""How far a trajectory's plane goes beyond the path, as a share of its extent."""


@dataclass(frozen=True)
class Cut:
    """Where to cut: two directions (P,), the ends of both axes, and how they are called."""

    d1: Tensor
    d2: Tensor
    ends: tuple[tuple[float, float], tuple[float, float]]
    axes: tuple[str, str]
    words: str
    path: dict[str, Any] = field(default_factory=dict)
    """For a trajectory: `step`, `x`, `y` and `off` (share of the distance off the plane) of each point."""
    losses: np.ndarray | None = None
    """For a trajectory: the true losses (N, L) of its points."""

    @property
    def cosine(self) -> float:
        """The cosine between the two directions."""
        return torch.nn.functional.cosine_similarity(self.d1.double(), self.d2.double(), dim=0).item()

    def path_of(self, place: int) -> Display:
        """Return how the path is drawn with the true losses of one of the L, nothing where there is none."""
        return Display() if self.losses is None else Display(path=self.path | {"loss": self.losses[:, place].tolist()})


class Landscape(Probe):
    """The joint loss and each unimodal loss on a plane and along its first direction, coarse first."""

    name = "landscape"
    title = "Loss landscape"
    every = 200
    cost = "high"

    @dataclass(frozen=True)
    class Params:
        """Where to cut, how far and how finely."""

        plane: str = knob(
            "random",
            help="Directions: random (average case), eigen (largest curvature), gradient (downhill and across), "
            "trajectory (the way the run came).",
            choices=("random", "eigen", "gradient", "trajectory"),
        )
        reach: float = knob(
            1.0,
            0.01,
            10.0,
            "Half the side of the slice. Random: 1 is each weight row's own length; eigen and gradient: a distance; "
            "trajectory: 1 is the path with a margin.",
            log=True,
        )
        line: int = knob(51, 3, 401, "Points on the line; an even number is raised by one, so that 0 is among them.")
        points: int = knob(51, 3, 101, "Points on each side of the plane; an even number is raised by one.")
        tol: float = knob(
            1e-3, 0.0, 0.1, "Interpolation error allowed, as a fraction of the range; 0 evaluates all points."
        )
        part: str = knob(
            "", help="Parameters that move: empty for all, a part, or two parts with a comma: one an axis."
        )
        draw: int = knob(0, 0, 1000, "Which random directions; the same number gives the same plane all through a run.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield `landscape/2d` and `landscape/1d`, each also as `…/<modality>` where there is a unimodal loss.

        Other planes than random ones of all parameters have their kind and their parts in the name, such as
        `landscape/eigen/2d` and `landscape/random@image+text/2d`, so that each kind has a history of its own.
        """
        p, n = self.params, len(snap.problem.probe_batch())
        names, losses = snap.losses()
        started = time.perf_counter()
        cut = self._cut(snap)
        options = {"chunk": at_once(losses, snap.theta), "tally": Tally("points", p.line | 1)}
        x, y = (axis_over(low, high, p.points | 1) for low, high in cut.ends)
        generator = snap.rng.generator("landscape checks", p.draw)
        drawn = False
        display = Display(title="Plane through the parameters:", x=cut.axes[0], y=cut.axes[1], cosine=cut.cosine)
        records = Cutting(self._named("2d"), cut.words, n, display)
        for slices in refine(losses, snap.theta, cut.d1, cut.d2, x, y, p.tol, generator=generator, **options):
            seconds = time.perf_counter() - started
            for place, (name, found) in enumerate(zip(names, slices, strict=True)):
                center = Display(center=found.z[int((y == 0).nonzero()), int((x == 0).nonzero())].item())
                yield records.plane(name, x, y, found, seconds, center | cut.path_of(place))
            if not drawn:  # the line comes after the first, coarse plane and before the finer ones
                yield from self._lines(snap, names, losses, cut, n, options)
                drawn = True

    def _lines(self, snap: Snapshot, names, losses, cut: Cut, n: int, options: dict) -> Iterator[Record]:
        t = axis_over(*cut.ends[0], self.params.line | 1)
        center = int((t == 0).nonzero())
        display = Display(title="Line through the parameters", x=cut.axes[0])
        records = Cutting(self._named("1d"), cut.words, n, display)
        started = time.perf_counter()
        found = line(losses, snap.theta, cut.d1, t, **options)
        seconds = time.perf_counter() - started
        for name, values in zip(names, found, strict=True):
            yield records.line(name, t, values, seconds, Display(center=values[center].item()))

    def _named(self, kind: str) -> str:
        parts = "+".join(word.strip() for word in self.params.part.split(",") if word.strip())
        cut = f"{self.params.plane}@{parts}" if parts else self.params.plane
        return "/".join(["landscape", *([] if cut == "random" else [cut]), kind])

    def _cut(self, snap: Snapshot) -> Cut:
        """Return where to cut."""
        kinds = {"eigen": self._eigen, "gradient": self._gradient, "trajectory": self._trajectory}
        return kinds.get(self.params.plane, self._random)(snap, _part(self.params.part))

    def _random(self, snap: Snapshot, part: Parts) -> Cut:
        p = self.params
        d1, d2 = direction_pair(snap.theta, snap.problem.layout, snap.rng.generator("landscape", p.draw), part)
        words = f"filter-normalised random directions {p.draw}"
        return self._about_here(d1, d2, ("step along d1", "step along d2"), words)

    def _gradient(self, snap: Snapshot, part: Parts) -> Cut:
        theta = snap.theta.detach().requires_grad_()
        (grad,) = torch.autograd.grad(snap.problem.loss(theta, snap.problem.probe_batch()), theta)
        generator = snap.rng.generator("landscape", self.params.draw)
        d1, d2 = downhill_pair(grad, snap.theta, snap.problem.layout, generator, part)
        axes = ("distance downhill", "distance along a random direction")
        words = f"steepest descent and a random direction {self.params.draw} of unit length"
        if isinstance(part, tuple):
            axes = tuple(f"distance downhill in {name}" for name in part)
            words = "steepest descent in each of the two, of unit length"
        return self._about_here(d1, d2, axes, words)

    def _eigen(self, snap: Snapshot, part: Parts) -> Cut:
        problem, rng = snap.problem, snap.rng
        batch = problem.probe_batch()
        found = curved_pair(
            lambda theta: problem.loss(theta, batch),
            snap.theta,
            problem.layout,
            rng.generator("landscape eigen"),
            rng.normal("landscape sides", 0, snap.theta),
            part,
        )
        values, errors = found.values.tolist(), found.residuals.tolist()
        said = " and ".join(f"{v:.3g} (± {e:.1g})" for v, e in zip(values, errors, strict=True))
        axes = tuple(f"distance along eigenvector {i} (λ = {v:.3g})" for i, v in enumerate(values, 1))
        words = f"top Hessian eigenvectors, λ = {said}, of unit length, signs by a fixed reference"
        return self._about_here(*found.directions, axes, words)

    def _trajectory(self, snap: Snapshot, part: Parts) -> Cut:
        past = [(step, theta) for step, theta in snap.path() if step < snap.step]
        steps, path = [step for step, _ in past], torch.stack([*(theta for _, theta in past), snap.theta])
        plane = principal_pair(path, snap.problem.layout, part)
        _, losses = snap.losses()
        true = []
        for theta in tracked(path, "points", len(path)):
            with torch.no_grad():
                true.append(losses(theta).cpu().double().numpy())
        x, y = plane.coordinates.T.tolist()
        off = plane.off_plane.tolist()
        share = " + ".join(f"{100 * s:.0f} %" for s in plane.shares[:2].tolist())
        return Cut(
            *plane.directions,
            _around(x, y, self.params.reach),
            ("first principal component", "second principal component"),
            f"{self._who()}, plane of the path ({len(path)} points), which holds {share} of its squared distances "
            f"(a random walk has 81 % + 9 %) and leaves out up to {100 * max(off[:-1]):.0f} % of a point's distance; "
            "points coloured by their true loss, no method active",
            {"step": [*steps, snap.step], "x": x, "y": y, "off": off},
            np.stack(true),
        )

    def _about_here(self, d1: Tensor, d2: Tensor, axes: tuple[str, str], words: str) -> Cut:
        reach = self.params.reach
        return Cut(d1, d2, ((-reach, reach), (-reach, reach)), axes, f"{self._who()}, {words}, no method active")

    def _who(self) -> str:
        return self.params.part or "all parameters"


def _around(x: list[float], y: list[float], reach: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ends of two axes that show a path whose last point is the origin, neither much flatter than wide."""
    ends = []
    least = 0.25 * max(max(x) - min(x), max(y) - min(y))
    for values in (x, y):
        low, high = min(values), max(values)
        spare = max(MARGIN * (high - low), (least - (high - low)) / 2)
        ends.append((reach * (low - spare), reach * (high + spare)))
    return tuple(ends)


def _part(text: str) -> Parts:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > 2:
        raise InputError(f"landscape.part names {len(names)} parts, {text!r}; give none, one, or two with a comma.")
    return tuple(names) if len(names) == 2 else next(iter(names), None)
