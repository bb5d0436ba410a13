"""How far the training loss rises around the parameters: in the worst direction, for small batches, and on average.

SAM sharpness is the highest point found within a ball (`maths.curvature`), ASAM sharpness the same in a ball
that stretches with each parameter, m-sharpness the mean over micro-batches of m rows of which each has its own worst
direction. Beside them stands what a quadratic would give: ρ²λ₁/2 and, with the slope, ρ‖∇L‖ + ρ²λ₁/2 enclose the SAM
sharpness of a quadratic, σ² tr/2 is its average. SAM, m and average sharpness change when a ReLU network is rescaled
without changing its function, ASAM sharpness does not. None of them predicts generalisation by itself (Andriushchenko
et al., arXiv 2302.07011): they describe, they do not grade.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Bars, Curve, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.maths.curvature.hessian_spectrum import planned, spectrum_in_stages
from modalscape.engine.maths.curvature.sharpness import Ascent, Loss, ascent, average_rise, mean_ascent
from modalscape.engine.maths.progress import Tally

LOSS = "training loss, no method active"
GAIN = "error: what the last step still added"
SAMPLED = "error: one standard error"
RISE = Display(y="rise of the loss")
EXPECTED = RISE | Display(role="expected")


@dataclass(frozen=True)
class Climbed:
    """A highest point and the seconds that its search took."""

    found: Ascent
    seconds: float


class Sharpness(Probe):
    """SAM, ASAM, m- and average sharpness beside their quadratic estimates; SAM, ASAM and average for each part."""

    name = "sharpness"
    title = "Sharpness measures"
    every = 200
    cost = "high"

    @dataclass(frozen=True)
    class Params:
        """How far to go and how hard to look."""

        rho: float = knob(0.05, 1e-5, 100.0, "Radius ρ of the ball of SAM and m-sharpness.", log=True)
        steps: int = knob(8, 0, 100, "Projected steps after the one step of SAM; 0 leaves that step alone.")
        rho_adaptive: float = knob(0.5, 1e-5, 100.0, "Radius of the ball of ASAM, in units of |θ|.", log=True)
        eta: float = knob(0.0, 0.0, 1.0, "Added to |θ| in ASAM; above 0 the measure is no longer invariant.")
        m: int = knob(32, 1, 100_000, "Rows of a micro-batch for m-sharpness; also 4m, 16m … up to all.", log=True)
        sigma: float = knob(0.01, 1e-6, 10.0, "Standard deviation of the random moves of each parameter.", log=True)
        pairs: int = knob(16, 2, 1000, "Random directions for the average, each taken both ways.")
        lanczos: int = knob(15, 0, 300, "Lanczos steps for the quadratic estimates; 0 leaves them out.")
        probes: int = knob(4, 1, 200, "Random vectors for the trace in the quadratic estimate of the average.")
        parts: bool = knob(True, help="Also each modality's parameters and the shared ones, moved alone.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield the records of the whole network, then those of each part, under `sharpness/<part>`."""
        p, layout, found = self.params, snap.problem.layout, {}
        parts = list(layout.slices) if p.parts and len(layout.slices) > 1 else []
        tally = Tally("evaluations", self._planned(snap, len(parts)))
        for part in ["", *parts]:
            mask = layout.mask(part).to(snap.theta) if part else torch.ones_like(snap.theta)
            found[part or "all"] = sam = self._climb(snap, part, p.rho, None, tally)
            yield self._scalar(snap, part, "sam", sam, self._mode(part))
            yield self._stretched(snap, part, tally)
            yield self._average(snap, part, mask, tally)
            if not part:
                yield from self._search(snap, sam)
                yield from self._quadratic(snap, sam.found, tally)
                yield from self._micro(snap, sam.found, tally)
        if parts:
            yield Bars(
                "sharpness/parts",
                np.array(list(found)),
                np.array([sam.found.rise for sam in found.values()]),
                np.array([sam.found.gain for sam in found.values()]),
                n=len(snap.problem.probe_batch()),
                mode=f"{self._worst()}, moving one part alone; {GAIN}",
                seconds=sum(sam.seconds for sam in found.values()),
                display=RISE | Display(title="SAM sharpness of each part", x="part"),
            )

    def _planned(self, snap: Snapshot, parts: int) -> int:
        """Return how many gradients, products and pairs of losses are evaluated at most, on however many rows."""
        p, n = self.params, len(snap.problem.probe_batch())
        micro = (2 + p.steps) * sum(n // m for m in self._sizes(n))
        lanczos = planned(len(snap.theta), p.lanczos, p.probes) if p.lanczos else 0
        return (1 + parts) * (2 * (2 + p.steps) + p.pairs) + micro + lanczos

    def _climb(self, snap: Snapshot, part: str, rho: float, eta: float | None, tally: Tally) -> Climbed:
        """Return the highest point that a part's parameters reach alone, in a ball stretched by |θ| + `eta` if any."""
        started, options = time.perf_counter(), {"generator": snap.rng.generator("sharpness", 0), "tally": tally}
        loss, theta = _loss(snap, part), snap.problem.layout.split(snap.theta)[part] if part else snap.theta
        scale = None if eta is None else theta.abs() + eta
        found = ascent(loss, theta, rho, self.params.steps, scale=scale, **options)
        return Climbed(found, time.perf_counter() - started)

    def _scalar(self, snap: Snapshot, part: str, name: str, climbed: Climbed, mode: str) -> Scalar:
        path = f"sharpness/{part}/{name}" if part else f"sharpness/{name}"
        about = {"n": len(snap.problem.probe_batch()), "mode": mode, "seconds": climbed.seconds, "display": RISE}
        return Scalar(path, climbed.found.rise, climbed.found.gain, **about)

    def _stretched(self, snap: Snapshot, part: str, tally: Tally) -> Scalar:
        """Return ASAM sharpness of a part's parameters."""
        p = self.params
        found = self._climb(snap, part, p.rho_adaptive, p.eta, tally)
        ball = f"|e / (|θ| + {p.eta:g})|" if p.eta else "|e / θ|"
        return self._scalar(snap, part, "asam", found, self._mode(part, f"{ball} ≤ {p.rho_adaptive:g}"))

    def _average(self, snap: Snapshot, part: str, mask: Tensor, tally: Tally) -> Scalar:
        """Return the mean rise over random moves of the parameters that `mask` marks."""
        p, started = self.params, time.perf_counter()
        options = {"scale": mask, "generator": snap.rng.generator("sharpness", 0), "tally": tally}
        found = average_rise(_loss(snap), snap.theta, p.sigma, p.pairs, **options)
        seconds = time.perf_counter() - started
        how = f"mean over {p.pairs} normal moves both ways, σ = {p.sigma:g}, {_moved(part)}; {SAMPLED}"
        return Scalar(
            f"sharpness/{part}/average" if part else "sharpness/average",
            found.value,
            found.error,
            n=len(snap.problem.probe_batch()),
            mode=f"{LOSS}, {how}",
            seconds=seconds,
            display=RISE,
        )

    def _search(self, snap: Snapshot, sam: Climbed) -> Iterator[Record]:
        """Yield the one step of SAM, and how the further steps rose above it."""
        p, n, rises = self.params, len(snap.problem.probe_batch()), sam.found.rises
        mode = f"{LOSS}, one step of SAM of length {p.rho:g}, {_moved('')}"
        yield Scalar(
            "sharpness/sam_step",
            sam.found.first,
            n=n,
            mode=mode,
            seconds=sam.seconds,
            display=RISE | Display(label="one step"),
        )
        yield Curve(
            "sharpness/ascent",
            np.arange(1, len(rises) + 1),
            np.array(rises),
            n=n,
            mode=f"{self._worst()}, {_moved('')}",
            seconds=sam.seconds,
            display=RISE | Display(title="The search for the highest point", x="step of the search"),
        )

    def _quadratic(self, snap: Snapshot, sam: Ascent, tally: Tally) -> Iterator[Record]:
        """Yield what a quadratic with the same slope, largest eigenvalue and trace would give."""
        p, n, steps = self.params, len(snap.problem.probe_batch()), min(self.params.lanczos, len(snap.theta))
        if not steps:
            return
        options = {"generator": snap.rng.generator("sharpness/hessian", 0), "tally": tally}
        started = time.perf_counter()
        *_, found = spectrum_in_stages(_loss(snap), snap.theta, 1, steps, p.probes, **options)
        words = f"Hessian of the training loss, no method active, {steps} Lanczos steps"
        seconds = time.perf_counter() - started
        top, bound = max(found.values[0].item(), 0.0), found.residuals[0].item()
        half, slope = p.rho**2 / 2, p.rho * sam.slope
        about = {"n": n, "seconds": seconds}
        mode = f"{words}, ρ = {p.rho:g}; error: Lanczos residual bound"
        for name, label, height in (
            ("curvature", "ρ²λ₁/2", half * top),
            ("bound", "ρ‖∇L‖ + ρ²λ₁/2", slope + half * top),
        ):
            display = EXPECTED | Display(label=label)
            yield Scalar(f"sharpness/sam_{name}", height, half * bound, mode=mode, **about, display=display)
        half, mode, display = (
            p.sigma**2 / 2,
            f"{words}, σ = {p.sigma:g}; {SAMPLED}",
            EXPECTED | Display(label="σ² tr/2"),
        )
        error = half * found.trace_error
        yield Scalar("sharpness/average_trace", half * found.trace, error, mode=mode, **about, display=display)

    def _micro(self, snap: Snapshot, whole: Ascent, tally: Tally) -> Iterator[Record]:
        """Yield m-sharpness: its value at the smallest m, and its growth as m falls from all rows."""
        p, batch = self.params, snap.problem.probe_batch()
        order = torch.randperm(len(batch), generator=snap.rng.generator("sharpness/rows", 0)).to(batch.y.device)
        batch, n, sizes = batch.rows(order), len(batch), self._sizes(len(batch))
        values, errors, started = [], [], time.perf_counter()
        for m in sizes:
            # A shorter last piece would be another m, so it is left out.
            losses = [partial(snap.problem.loss, batch=batch.rows(slice(i, i + m))) for i in range(0, n - m + 1, m)]
            options = {"generator": snap.rng.generator("sharpness", 0), "tally": tally}
            found = mean_ascent(losses, snap.theta, p.rho, p.steps, **options)
            seconds = time.perf_counter() - started
            values.append(found.value)
            errors.append(found.error if found.count > 1 else 0.0)
            if len(values) == 1:
                yield Scalar(
                    "sharpness/m",
                    found.value,
                    found.error if found.count > 1 else None,
                    n=m * found.count,
                    mode=f"{self._worst()}, mean over {found.count} micro-batches of m = {m} rows; {SAMPLED}",
                    seconds=seconds,
                    display=RISE,
                )
        if sizes[-1] < n:
            sizes, values, errors = [*sizes, n], [*values, whole.rise], [*errors, 0.0]
        yield Curve(
            "sharpness/by_m",
            np.array(sizes),
            np.array(values),
            np.array(errors),
            n=n,
            mode=f"{self._worst()}, mean over the micro-batches; {SAMPLED}",
            seconds=seconds,
            display=RISE | Display(title="m-sharpness", x="rows m of a micro-batch", xlog=True),
        )

    def _sizes(self, n: int) -> list[int]:
        """Return the rows of micro-batches: m, 4m, 16m … below n, the first at most n."""
        sizes = [min(self.params.m, n)]
        while 4 * sizes[-1] < n:
            sizes.append(4 * sizes[-1])
        return sizes

    def _worst(self, ball: str = "") -> str:
        return f"{LOSS}, highest point within {ball or f'ρ = {self.params.rho:g}'} after 1 + {self.params.steps} steps"

    def _mode(self, part: str, ball: str = "") -> str:
        return f"{self._worst(ball)}, {_moved(part)}; {GAIN}"


def _moved(part: str) -> str:
    return f"{part} parameters alone" if part else "all parameters"


def _loss(snap: Snapshot, part: str = "") -> Loss:
    """Return the loss of theta, or of one part's block of it: its gradient goes back through that part alone."""
    problem, batch, layout = snap.problem, snap.problem.probe_batch(), snap.problem.layout
    if not part:
        return partial(problem.loss, batch=batch)
    blocks = layout.split(snap.theta)
    return lambda block: problem.loss(layout.joined({**blocks, part: block}), batch)
