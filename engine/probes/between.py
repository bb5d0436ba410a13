"""What lies between this run and others: the line to another run's parameters, its barrier, and a plane through both.

The barrier is max_t [L(w_t) - (1 - t) L(w_0) - t L(w_1)] along the straight line (Frankle et al. 2020): near 0, both
lie in one basin. A high one need not mean two basins: permuting hidden units gives the same function at another point,
and curved paths often avoid it (Garipov et al. 2018). Losses are those of this run's rows; the other run's parameters
are those of its last checkpoint. Networks here keep no running statistics, so none are recomputed on the way. A barrier
is a mean over rows, and its error that of one; it says nothing of the points of the line that were not looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Neighbour, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.core.problem import Batch
from modalscape.engine.errors import InputError
from modalscape.engine.maths.landscape.directions import direction_pair
from modalscape.engine.maths.landscape.evaluate import at_once
from modalscape.engine.maths.landscape.slices import axis_over, line, refine, rise
from modalscape.engine.maths.progress import Tally, tracked
from modalscape.engine.maths.standard_error import mean_and_error
from modalscape.engine.reports.planes import Cutting, under

LEAST = 25
"""Points on the way between two runs, at least: fewer miss a narrow barrier."""
BEYOND = 0.3
"""How far the plane goes beyond the runs in it, as a share of the distance between the first two."""


class Between(Probe):
    """The line from this run to another with the barrier on it, and a plane through two or three runs."""

    name = "between"
    title = "Between runs"
    every = 500
    cost = "high"
    usual = False
    needs = "other"

    @dataclass(frozen=True)
    class Params:
        """Which runs, and how finely."""

        other: str = knob("", help="Id of the other run: the name of a folder beside this run's own.")
        third: str = knob("", help="Id of a third run, through which the plane goes too; empty for a random direction.")
        line: int = knob(41, LEAST, 401, "Points on the line between the two runs, both included.")
        points: int = knob(31, 9, 101, "Points on each side of the plane.")
        tol: float = knob(1e-3, 0.0, 0.1, "Interpolation error allowed on the plane, as a fraction of the range.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield, under `between/<other>/`, the line, the barrier and the plane, joint and of each modality."""
        p = self.params
        if not p.other:
            raise InputError("between.other names no run; give the id of a run beside this one.")
        runs = [snap.other(p.other), *([snap.other(p.third)] if p.third else [])]
        names, losses = snap.losses()
        d = runs[0].theta - snap.theta
        if not d.any():
            raise InputError(f"{p.other} has the parameters of this run, so there is nothing between them.")
        tally, n = Tally("points", self.params.line), len(snap.problem.probe_batch())
        options = {"chunk": at_once(losses, snap.theta), "tally": tally}
        yield from self._line(snap, names, losses, d, n, _mode(runs[:1]), options)
        yield from self._plane(snap, runs, names, losses, d, n, options)

    def _line(self, snap: Snapshot, names, losses, d: Tensor, n: int, words: str, options: dict) -> Iterator[Record]:
        """Yield the line of each loss, then its barrier with the error of a mean over rows."""
        t = torch.linspace(0, 1, self.params.line, dtype=torch.float64)
        across = f"from this run (0) to {self.params.other} (1)"
        display = Display(title="Loss on the straight line between the two", x=across)
        records, lines, started = Cutting(self._named("line"), words, n, display), [], time.perf_counter()
        found = line(losses, snap.theta, d, t, **options)
        heights, places = rise(t, found).max(-1)
        seconds = time.perf_counter() - started
        for name, values, height in zip(names, found, heights.tolist(), strict=True):
            lines.append(records.line(name, t, values, seconds, Display(barrier=height)))
        yield from lines
        errors = _errors(snap, names, d, t[places].tolist())
        seconds = time.perf_counter() - started
        for name, own, error in zip(names, lines, errors, strict=True):
            how = "" if error is None else "; error: one standard error over the rows"
            about = {"n": n, "mode": own.mode + how, "seconds": seconds}
            display = Display(y="barrier", label=own.display.label)
            place = under(self._named("barrier"), name)
            yield Scalar(place, own.display.barrier, error, **about, display=display)

    def _plane(
        self, snap: Snapshot, runs: list[Neighbour], names, losses, d: Tensor, n: int, options: dict
    ) -> Iterator[Record]:
        """Yield the plane, in units of the distance between the first two runs, which lie at (0, 0) and (1, 0)."""
        scale = torch.linalg.vector_norm(d)
        marks = [("this run", 0.0, 0.0), (runs[0].run, 1.0, 0.0)]
        if len(runs) == 2:
            e = runs[1].theta - snap.theta
            along = ((e @ d) / scale**2).item()
            across = e - along * d
            up = (torch.linalg.vector_norm(across) / scale).item()
            if not up > 1e-4:
                raise InputError(f"{runs[1].run} lies on the line between the other two, so there is no plane.")
            across, marks = across / up, [*marks, (runs[1].run, along, up)]
            words, label = _mode(runs), f"towards {runs[1].run}"
        else:
            _, across = direction_pair(snap.theta, snap.problem.layout, snap.rng.generator("between"))
            across = across - (across @ d) / scale**2 * d
            length = torch.linalg.vector_norm(across)
            if not length > 0:
                raise InputError("every weight row of this run is zero, so there is no random direction; name a third.")
            across = across * (scale / length)
            words, label = f"{_mode(runs)}; upwards a random direction", "random direction"
        x = self._axis([x for _, x, _ in marks])
        y = self._axis([y for _, _, y in marks])
        shown = [{"text": text, "x": a, "y": b} for text, a, b in marks]
        display = Display(title="Plane through the runs:", x=f"towards {runs[0].run}", y=label, marks=shown)
        records, checks = Cutting(self._named("plane"), words, n, display), snap.rng.generator("between checks")
        started = time.perf_counter()
        for slices in refine(losses, snap.theta, d, across, x, y, self.params.tol, generator=checks, **options):
            seconds = time.perf_counter() - started
            for name, found in zip(names, slices, strict=True):
                yield records.plane(name, x, y, found, seconds, Display())

    def _axis(self, places: list[float]) -> Tensor:
        """Return evenly spaced numbers around the places of the runs that contain 0."""
        return axis_over(min(places) - BEYOND, max(*places, 0.3) + BEYOND, self.params.points)

    def _named(self, kind: str) -> str:
        return f"between/{self.params.other}/{kind}"


@torch.no_grad()
def _rows(snap: Snapshot, theta: Tensor, names: tuple[str, ...], batch: Batch) -> dict[str, Tensor]:
    """Return each row's loss (B,) at theta by the names of `Snapshot.losses`."""
    outputs = snap.problem.outputs(theta, batch)
    kept = {name: {name: outputs[name]} if name else outputs for name in names}
    return {name: snap.problem.row_losses(part, batch).double().cpu() for name, part in kept.items()}


def _errors(snap: Snapshot, names: tuple[str, ...], d: Tensor, places: list[float]) -> list[float | None]:
    """Return the standard error over the rows of each rise above the chord.

    Each loss rises at its own place between 0 and 1. None where a row's loss depends on the other rows (contrastive),
    or is not finite.
    """
    batch = snap.problem.probe_batch()
    half = batch.rows(slice(0, (len(batch) + 1) // 2))
    start, end = (_rows(snap, theta, names, batch) for theta in (snap.theta, snap.theta + d))
    found: list[float | None] = []
    for name, t in tracked(list(zip(names, places, strict=True)), "points"):
        theta = snap.theta.add(d, alpha=t)
        top, apart = (_rows(snap, theta, (name,), rows)[name] for rows in (batch, half))
        risen = top - (1 - t) * start[name] - t * end[name]
        error = mean_and_error(risen)[1].item()
        alone = torch.allclose(apart, top[: len(half)], rtol=1e-3, atol=1e-5)
        found.append(error if alone and math.isfinite(error) else None)
    return found


def _mode(runs: list[Neighbour]) -> str:
    """Return whose rows and which checkpoints were used, in words."""
    told = [f"{run.run} at step {run.step:,}{f' ({run.words})' if run.words else ''}" for run in runs]
    return f"rows of this run, {' and '.join(told)}, no method active"
