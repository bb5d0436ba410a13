"""The curvature of the training loss: largest and smallest eigenvalues, trace and density, whole and part by part.

One Lanczos run a block (engine/maths/curvature.py) on the rows of the probe batch, with no method active. λ_max and
λ_min come with the Lanczos residual bound, the trace with one standard error, the density with the standard error of
its random start. λ_max of few rows is biased upwards (it is convex in the matrix), the trace is not: read n with them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from engine.maths.curvature import Spectrum, unhurried_spectrum
from engine.probe import Bars, Curve, Matrix, Probe, Record, Scalar, Snapshot, knob

BOUND = "Hessian of the training loss, no method active; error: Lanczos residual bound"
SAMPLED = "Hessian of the training loss, no method active; error: one standard error"


class Hessian(Probe):
    """Top eigenvalues with residuals, λ_min, trace with its error, density; for the whole network and each part."""

    name = "hessian"
    title = "Hessian spectrum"
    every = 100
    cost = "dear"

    @dataclass(frozen=True)
    class Params:
        """How much to spend: `steps` + `probes` Hessian-vector products, and fewer for the block of each part."""

        k: int = knob(5, 1, 50, "Eigenvalues to follow, from the largest down; at most `steps`.")
        steps: int = knob(40, 5, 300, "Lanczos steps; more give more eigenvalues and a finer density.")
        probes: int = knob(8, 1, 200, "Random vectors for the trace outside the Lanczos basis.")
        sigma: float = knob(
            0.01, 0.001, 0.1, "Smoothing of the density, as a fraction of the spectrum's range.", log=True
        )
        parts: bool = knob(True, help="Also the diagonal block of each modality and of the shared part.")
        part_k: int = knob(3, 1, 50, "Eigenvalues to follow in each of these blocks.")
        part_steps: int = knob(20, 5, 300, "Lanczos steps for each of these blocks.")
        part_probes: int = knob(4, 1, 200, "Random vectors for the trace of each of these blocks.")

    def measure(self, snap: Snapshot) -> Iterator[Record | None]:
        """Yield the records of the whole network, then those of each part, under `hessian/<part>`."""
        batch = snap.problem.probe_batch()
        layout = snap.problem.layout
        blocks = {"": None}
        if self.params.parts and len(layout.slices) > 1:
            blocks |= {part: layout.mask(part) for part in layout.slices}
        for part, mask in blocks.items():
            size = len(snap.theta) if mask is None else int(mask.sum())
            p = self.params
            k, steps, probes = (p.k, p.steps, p.probes) if mask is None else (p.part_k, p.part_steps, p.part_probes)
            measurement = unhurried_spectrum(
                lambda theta: snap.problem.loss(theta, batch),
                snap.theta,
                k=min(k, steps, size),
                steps=steps,
                probes=probes,
                sigma=p.sigma,
                mask=mask,
                generator=snap.rng.generator("hessian", 0),
            )
            found, seconds = None, 0.0
            while found is None:
                started = time.perf_counter()
                found = next(measurement)
                seconds += time.perf_counter() - started
                yield None
            yield from _records(found, f"hessian/{part}" if part else "hessian", size, len(batch), seconds)
            if not part:
                yield _concentration(found, len(batch), seconds)
            if not part and len(layout.slices) > 1:
                yield _shares(found, snap, len(batch), seconds)


def _records(found: Spectrum, path: str, size: int, n: int, seconds: float) -> Iterator[Record]:
    bound = {"n": n, "mode": BOUND, "seconds": seconds}
    sampled = {"n": n, "mode": SAMPLED, "seconds": seconds}
    top, residual = found.values[0].item(), found.residuals[0].item()
    yield Scalar(f"{path}/lambda_max", top, residual, **bound, draw={"y": "λ_max"})
    yield Scalar(f"{path}/lambda_min", found.smallest, found.smallest_residual, **bound, draw={"y": "λ_min"})
    yield Scalar(f"{path}/trace", found.trace, found.trace_error, **sampled, draw={"y": "trace"})
    yield Bars(
        f"{path}/top",
        _labels(found),
        found.values.numpy(),
        found.residuals.numpy(),
        **bound,
        draw={"title": "Largest eigenvalues", "y": "eigenvalue"},
    )
    density = found.density
    # In units of one eigenvalue under the smoothing kernel: an eigenvalue that stands apart has height 1.
    unit = size * density.width * math.sqrt(2 * math.pi)
    y, error = density.total() * unit, density.error * unit
    seen = y > 1e-3
    yield Curve(
        f"{path}/spectrum",
        density.grid.numpy(),
        torch.where(seen, y, 0.0).numpy(),
        torch.where(seen, error, 0.0).numpy(),
        **sampled,
        draw={
            "title": f"Eigenvalue density of {size:,} parameters",
            "x": "eigenvalue",
            "y": "eigenvalues within a smoothing width (one that stands apart: 1)",
            "ylog": True,
            "lines": density.atoms.tolist(),
        },
    )


def _concentration(found: Spectrum, n: int, seconds: float) -> Scalar:
    """Return Σu⁴ of the top eigenvector u: 1 where it is a single coordinate, 1/P where it is spread evenly.

    Noise of each coordinate's own size acts on u with this share of its variance, so stability under it needs the sum.
    """
    value = float(found.vectors[0].double().pow(4).sum())
    draw = {"title": "Concentration of the top eigenvector", "y": "Σu⁴"}
    return Scalar("hessian/concentration", value, n=n, mode=BOUND.partition(";")[0], seconds=seconds, draw=draw)


def _shares(found: Spectrum, snap: Snapshot, n: int, seconds: float) -> Matrix:
    """Return how much of each top eigenvector lies in each part: squared entries, each row sums to 1."""
    pieces = snap.problem.layout.split(found.vectors.double().square())
    shares = torch.stack([piece.sum(-1) for piece in pieces.values()], 1).cpu()
    title = "Share of each top eigenvector in each part"
    return Matrix(
        "hessian/shares",
        _labels(found),
        np.array(list(pieces)),
        shares.numpy(),
        n=n,
        mode=BOUND,
        seconds=seconds,
        draw={"title": title, "x": "part", "y": "eigenvector"},
    )


def _labels(found: Spectrum) -> np.ndarray:
    return np.array([f"λ{i + 1}" for i in range(len(found.values))])
