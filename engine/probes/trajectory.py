"""The way that theta came: its path in the plane of two principal components, with what that picture leaves out.

The path is what the run kept of it, up to some fifty points, and the present, which is subtracted, so the plane holds
it. Shares of explained variance near 1 prove nothing: a random walk has 81 % + 9 % about its end. So beside each
projected point stand its true losses and the share of its distance that lies off the plane. Distances and update
lengths need no projection.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.layout import Layout
from modalscape.engine.core.probe import Bars, Curve, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.maths.landscape.directions import Principal, principal_pair
from modalscape.engine.maths.progress import tracked
from modalscape.engine.reports.planes import whose

WALK = "this proves nothing: a random walk has 81 % + 9 %"
"""What explained variance must never be shown without; (8 / π²) / (2k - 1)² for a long walk seen from its end."""
SHOWN = 6
"""Principal components whose share is shown."""


class Trajectory(Probe):
    """The path in its principal plane, true losses and off-plane share beside it, distances and update lengths."""

    name = "trajectory"
    title = "Trajectory"
    every = 200
    cost = "medium"

    @dataclass(frozen=True)
    class Params:
        """Whose path."""

        part: str = knob("", help="Parameters whose plane is shown: empty for all, or a part.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield the records under `trajectory/`; the true losses also as `trajectory/loss/<modality>`."""
        started = time.perf_counter()
        past = [(step, theta) for step, theta in snap.path() if step < snap.step]
        steps = np.array([*(step for step, _ in past), snap.step])
        path = torch.stack([*(theta for _, theta in past), snap.theta])
        plane = principal_pair(path, snap.problem.layout, self.params.part or None)
        names, losses = snap.losses()
        true = []
        for theta in tracked(path, "points", len(path)):
            with torch.no_grad():
                true.append(losses(theta).cpu().double().numpy())
        seconds = time.perf_counter() - started
        n = len(snap.problem.probe_batch())
        who = f"{self.params.part or 'all parameters'}, {len(path)} points of the path"
        yield _path(plane, steps, np.stack(true)[:, 0], who, n, seconds)
        for name, values in zip(names, np.stack(true).T, strict=True):
            yield Curve(
                f"trajectory/loss/{name}" if name else "trajectory/loss",
                steps,
                values,
                n=n,
                mode=f"{whose(name)} at the points themselves, no method active",
                seconds=seconds,
                display=Display(title="True losses along the path", x="step", y="loss", label="" if name else "joint"),
            )
        yield from _shape(plane, steps, who)
        yield from _lengths(path, steps, snap.problem.layout)


def _path(plane: Principal, steps: np.ndarray, losses: np.ndarray, who: str, n: int, seconds: float) -> Curve:
    x, y = plane.coordinates.T.cpu().numpy()
    first, second = (100 * share for share in plane.shares[:2].tolist())
    return Curve(
        "trajectory/path",
        x,
        y,
        n=n,
        mode=f"{who}; the plane holds {first:.0f} % + {second:.0f} % of the squared distances from the last; {WALK}",
        seconds=seconds,
        display=Display(
            title="The path in its principal plane",
            x=f"first principal component ({first:.0f} %)",
            y=f"second principal component ({second:.0f} %)",
            path={
                "x": x.tolist(),
                "y": y.tolist(),
                "step": steps.tolist(),
                "loss": losses.tolist(),
                "off": plane.off_plane.tolist(),
            },
        ),
    )


def _shape(plane: Principal, steps: np.ndarray, who: str) -> Iterator[Record]:
    # The last point has no distance from itself, so no share of one.
    yield Curve(
        "trajectory/off_plane",
        steps[:-1],
        plane.off_plane[:-1].cpu().numpy(),
        mode=f"{who}; distance from the last point",
        display=Display(title="What the plane leaves out", x="step", y="share of the distance off the plane"),
    )
    shares = plane.shares[:SHOWN].cpu().numpy()
    yield Bars(
        "trajectory/shares",
        np.array([f"PC{i + 1}" for i in range(len(shares))]),
        shares,
        mode=f"{who}; {WALK}",
        display=Display(title="Explained share, which proves nothing", y="share of the squared distances"),
    )


def _lengths(path: Tensor, steps: np.ndarray, layout: Layout) -> Iterator[Record]:
    """Yield the distance from the start and the length of the net update a step, whole and of each part."""
    for part, piece in {"": path, **layout.split(path)}.items():
        away = torch.linalg.vector_norm(piece - piece[0], dim=1, dtype=torch.float64).cpu().numpy()
        moved = torch.linalg.vector_norm(piece[1:] - piece[:-1], dim=1, dtype=torch.float64).cpu().numpy()
        tail, of, label = (f"/{part}", part, Display()) if part else ("", "all parameters", Display(label="all"))
        yield Curve(
            f"trajectory/distance{tail}",
            steps,
            away,
            mode=f"Euclidean, {of}",
            display=Display(title="Distance from the start", x="step", y="distance from the start") | label,
        )
        yield Curve(
            f"trajectory/update{tail}",
            steps[1:],
            moved / np.diff(steps),
            mode=f"net movement between kept points over the steps between, {of}",
            display=Display(title="Length of the net update", x="step", y="distance a step", ylog=True) | label,
        )
        yield Scalar(f"trajectory/from_start{tail}", float(away[-1]), mode=f"Euclidean, {of}")
