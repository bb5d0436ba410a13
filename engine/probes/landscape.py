"""Slices of the training loss through the parameters as they are: a line and a plane in filter-normalised directions.

The directions are drawn once a run, so slices at different steps can be compared: 1 on an axis moves every row of every
weight matrix by its own length. Invariant to rescaling whole layers of a ReLU network, not to rescaling single neurons;
what a random plane shows is the average case, about trace / P, not the worst.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.knobs import InputError
from engine.maths.landscape import Loss, axis, direction_pair, refine, slice_1d
from engine.probe import Curve, Probe, Record, Snapshot, Surface, knob


class Landscape(Probe):
    """The joint loss and each unimodal loss along a line, and the joint loss on a plane."""

    name = "landscape"
    title = "Loss landscape"
    every = 200
    cost = "dear"

    @dataclass(frozen=True)
    class Params:
        """Where to cut, how far and how finely."""

        reach: float = knob(1.0, 0.01, 10.0, "Half the side of the slice; 1 is each weight row's own length.", log=True)
        line: int = knob(41, 3, 401, "Points on the line; an even number is raised by one, so that 0 is among them.")
        points: int = knob(21, 3, 101, "Points on each side of the plane; an even number is raised by one.")
        tol: float = knob(
            0.0, 0.0, 0.1, "Interpolation error allowed, as a fraction of the range; 0 evaluates all points."
        )
        part: str = knob(
            "", help="Parameters that move: empty for all, a part, or two parts with a comma: one an axis."
        )
        draw: int = knob(0, 0, 1000, "Which random directions; the same number gives the same plane all through a run.")

    def measure(self, snap: Snapshot) -> Iterator[Record | None]:
        """Yield `landscape/1d`, `landscape/1d/<modality>` where there is a unimodal loss, and `landscape/2d`."""
        p, batch = self.params, snap.problem.probe_batch()
        generator = snap.rng.generator("landscape", p.draw)
        d1, d2 = direction_pair(snap.theta, snap.problem.layout, generator, _part(p.part))
        where = f"{p.part or 'all parameters'}, filter-normalised random directions {p.draw}, no method active"
        yield None

        t = axis(p.reach, p.line | 1)
        for name, loss in _losses(snap).items():
            pieces, seconds = [], 0.0
            for piece in t.split(8):
                started = time.perf_counter()
                pieces.append(slice_1d(loss, snap.theta, d1, piece))
                seconds += time.perf_counter() - started
                yield None
            y = torch.cat(pieces)
            what = name or "training loss"
            yield Curve(
                f"landscape/1d/{name}" if name else "landscape/1d",
                t.numpy(),
                y.numpy(),
                n=len(batch),
                mode=f"{what}, {where}",
                seconds=seconds,
                draw={"title": f"Line through the parameters: {what}", "x": "step along d1", "y": "loss"}
                | {"center": y[len(t) // 2].item()},
            )
        yield from self._plane(snap, d1, d2, where, len(batch))

    def _plane(self, snap: Snapshot, d1: Tensor, d2: Tensor, where: str, n: int) -> Iterator[Record | None]:
        """Yield the plane, coarse first where it may be interpolated, with a breathing point after each row."""
        x = axis(self.params.reach, self.params.points | 1)
        cosine = torch.nn.functional.cosine_similarity(d1.double(), d2.double(), dim=0).item()
        started, seconds = time.perf_counter(), 0.0
        for found in refine(_losses(snap)[""], snap.theta, d1, d2, x, x, self.params.tol):
            seconds += time.perf_counter() - started
            if found is None:
                yield None
            else:
                yield Surface(
                    "landscape/2d",
                    x.numpy(),
                    x.numpy(),
                    found.z.numpy(),
                    n=n,
                    mode=f"training loss, {where}"
                    + (f"; interpolated, checked error {found.checked_error:.1e}" if found.checked_error else ""),
                    seconds=seconds,
                    draw={
                        "title": "Plane through the parameters: training loss",
                        "x": "step along d1",
                        "y": "step along d2",
                        "center": found.z[len(x) // 2, len(x) // 2].item(),
                        "checked_error": found.checked_error,
                        "evaluations": found.evaluations,
                        "cosine": cosine,
                    },
                )
            started = time.perf_counter()


def _part(text: str) -> str | tuple[str, str] | None:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > 2:
        raise InputError(f"landscape.part names {len(names)} parts, {text!r}; give none, one, or two with a comma.")
    return tuple(names) if len(names) == 2 else next(iter(names), None)


def _losses(snap: Snapshot) -> dict[str, Loss]:
    """Return the training loss under the empty name and each unimodal loss under its modality."""
    problem, batch = snap.problem, snap.problem.probe_batch()

    def losses(theta: Tensor) -> dict[str, Tensor]:
        return problem.objectives(theta, problem.encode(theta, batch), batch)[0]

    with torch.no_grad():
        single = [name for name in losses(snap.theta) if name in problem.modalities]
    joint = {"": lambda theta: problem.loss(theta, batch)}
    return joint | {name: (lambda theta, name=name: losses(theta)[name]) for name in single}
