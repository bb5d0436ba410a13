"""The curvature of the training loss: largest and smallest eigenvalues, trace and density, whole and part by part.

One Lanczos run of the whole, and one of each part's block (`maths.curvature`), on the rows of the probe batch,
with no method active. Random vectors that live on one part each give the trace of the whole, the trace of each block
and the coupling between parts, all from the same products.

λ_max and λ_min come with the Lanczos residual bound, traces and coupling with one standard error, the density and the
negative mass with that of their random start. λ_max of few rows is biased upwards (it is convex in the matrix), the
trace is not: read n with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Matrix, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.core.problem import Batch, Problem
from modalscape.engine.maths.curvature.batch_chunks import cut
from modalscape.engine.maths.curvature.hessian_spectrum import PartedHessian, Spectrum, planned, spectrum_in_stages
from modalscape.engine.maths.curvature.krylov import Loss
from modalscape.engine.maths.progress import Tally
from modalscape.engine.reports.spectrum import About, coupled, eigenvalues, labels, largest, traced

MATRIX = "Hessian of the training loss, no method active"
ANGLE = "bound from the angle to a true eigenvector"
GLANCE = 6
"""Lanczos steps after which λ_max is shown for the first time, at a seventh of the whole cost."""


class Hessian(Probe):
    """Top eigenvalues with residuals, λ_min, trace, density, negative mass; whole and of each part; their coupling."""

    name = "hessian"
    title = "Hessian spectrum"
    every = 100
    cost = "high"

    @dataclass(frozen=True)
    class Params:
        """How much to spend: Lanczos steps, and random vectors, each of which costs one product a part."""

        k: int = knob(5, 1, 50, "Eigenvalues to follow, from the largest down; at most `steps`.")
        steps: int = knob(40, 5, 300, "Lanczos steps at most; more give more eigenvalues and a finer density.")
        probes: int = knob(6, 1, 200, "Random vectors for traces and coupling; each costs one product a part.")
        sigma: float = knob(
            0.01, 0.001, 0.1, "Smoothing of the density, as a fraction of the spectrum's range.", log=True
        )
        parts: bool = knob(True, help="Also the block of each modality and of the shared part, and their coupling.")
        part_k: int = knob(3, 1, 50, "Eigenvalues to follow in each of these blocks.")
        part_steps: int = knob(15, 5, 300, "Lanczos steps at most for each of these blocks.")
        micro: int = knob(0, 0, 1_000_000, "Rows in one piece of a product; 0 lets the network's size decide.")
        memory: int = knob(1024, 1, 1_000_000, "Megabytes that the Lanczos basis may take; fewer steps if it is full.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield the records of the whole network, then those of each part, under `hessian/<part>`."""
        p, problem, layout, batch = self.params, snap.problem, snap.problem.layout, snap.problem.probe_batch()
        parts = layout.slices if p.parts and len(layout.slices) > 1 else {}
        pieces, how = cut(problem.loss, snap.theta, batch, p.micro)
        products = planned(layout.size, p.steps, p.probes, len(parts))
        sizes = [where.stop - where.start for where in parts.values()]
        tally = Tally("products", products + sum(planned(size, p.part_steps) for size in sizes))
        started = time.perf_counter()

        def told(found: Spectrum, coarse: str = "") -> About:
            words = "; ".join(filter(None, (MATRIX, how, coarse, found.note)))
            return About(words, len(batch), time.perf_counter() - started)

        stages = spectrum_in_stages(
            [(PartedHessian(_of_parts(problem, piece), layout.slices), share) for piece, share in pieces],
            snap.theta,
            k=min(p.k, p.steps, layout.size),
            steps=p.steps,
            probes=p.probes,
            sigma=p.sigma,
            parts=parts,
            memory=p.memory * 2**20,
            generator=snap.rng.generator("hessian", 0),
            early=True,
            glance=GLANCE,
            tally=tally,
        )
        found = next(stages)
        yield largest(found, "hessian", told(found, f"after {found.products} Lanczos steps"))
        found = next(stages)  # what needs no random vector
        about = told(found)
        yield from eigenvalues(found, "hessian", layout.size, about)
        yield _concentration(found, about)
        if len(layout.slices) > 1:
            yield _shares(found, snap, about)
        (found,) = stages
        about = told(found)
        yield from traced(found, "hessian", layout.size, snap.theta.square().sum().item(), about)
        if found.coupling:
            yield coupled(found.coupling, "hessian", about)
        for part, where in parts.items():
            block, rest = snap.theta[where], layout.split(snap.theta)
            started = time.perf_counter()
            *_, inner = spectrum_in_stages(
                [(_of_block(problem, piece, part, rest), share) for piece, share in pieces],
                block,
                k=min(p.part_k, p.part_steps, len(block)),
                steps=p.part_steps,
                sigma=p.sigma,
                memory=p.memory * 2**20,
                generator=snap.rng.generator("hessian", 0),
                known=found.traces[part],
                early=True,
                tally=tally,
            )
            about = told(inner)
            yield from eigenvalues(inner, f"hessian/{part}", len(block), about)
            yield from traced(inner, f"hessian/{part}", len(block), block.square().sum().item(), about)


def _of_parts(problem: Problem, piece: Batch) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda blocks: problem.loss(problem.layout.joined(blocks), piece)


def _of_block(problem: Problem, piece: Batch, part: str, rest: Mapping[str, Tensor]) -> Loss:
    """Return the loss of one part's block, all others fixed: its graph is that of the one part."""
    of_parts = _of_parts(problem, piece)
    return lambda block: of_parts({**rest, part: block})


def _concentration(found: Spectrum, about: About) -> Scalar:
    """Return Σu⁴ of the top eigenvector u: 1 where it is a single coordinate, 1/P where it is spread evenly.

    Noise of each coordinate's own size acts on u with this share of its variance, so stability under it needs the sum.
    """
    squares = found.vectors[0].double().square()
    value, error = squares.square().sum().item(), 4 * squares.pow(3).sum().sqrt().item() * found.angles[0].item()
    display = Display(title="Concentration of the top eigenvector", y="Σu⁴")
    return Scalar("hessian/concentration", value, min(error, 1.0), **about.fields(ANGLE), display=display)


def _shares(found: Spectrum, snap: Snapshot, about: About) -> Matrix:
    """Return how much of each top eigenvector lies in each part: squared entries, each row sums to 1."""
    pieces = snap.problem.layout.split(found.vectors.double().square())
    shares = torch.stack([piece.sum(-1) for piece in pieces.values()], 1).cpu()
    error = (2 * found.angles).clamp(max=1.0)[:, None].expand_as(shares)
    return Matrix(
        "hessian/shares",
        labels(found),
        np.array(list(pieces)),
        shares.numpy(),
        error.numpy(),
        **about.fields(ANGLE),
        display=Display(title="Share of each top eigenvector in each part", x="part", y="eigenvector"),
    )
