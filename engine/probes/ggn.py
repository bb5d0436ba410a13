"""The curvature that the loss has through the network's outputs, JᵀH_L J, and beside it the empirical Fisher.

The Hessian is the GGN (generalised Gauss-Newton matrix) plus a term in the network's own second derivatives, which
fades as the rows are fitted. The GGN is positive semi-definite, and for cross-entropy and squared error in the logits
it is the Fisher matrix. The *empirical* Fisher, the mean over rows of gᵢgᵢᵀ with gᵢ the gradient of one row's loss, is
another matrix: it vanishes where every row is fitted, however sharp the loss is there. Gradient-based scores such as
InfoReg's are traces of the latter.

The outputs are the logits; for InfoNCE they are the similarities between rows, in which the loss is convex. A row's
loss is then its share as a query in both directions, and depends on the other rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from modalscape.engine.core.probe import Probe, Record, Snapshot, knob
from modalscape.engine.core.problem import Batch, Problem
from modalscape.engine.maths.curvature.batch_chunks import cut
from modalscape.engine.maths.curvature.hessian_spectrum import (
    GaussNewton,
    empirical_fisher,
    planned,
    spectrum_in_stages,
)
from modalscape.engine.maths.progress import Tally
from modalscape.engine.reports.spectrum import About, eigenvalues, traced

GGN = "GGN (generalised Gauss-Newton matrix) of the training loss, no method active"
FISHER = "empirical Fisher (mean of per-row gradient outer products; not the Hessian), no method active"


class Ggn(Probe):
    """λ_max, trace and density of the GGN; λ_max and trace of the empirical Fisher; for the whole network."""

    name = "ggn"
    title = "GGN and empirical Fisher"
    every = 200
    cost = "high"
    usual = False

    @dataclass(frozen=True)
    class Params:
        """How much to spend: `steps` + `probes` products for the GGN, and fewer for the empirical Fisher."""

        k: int = knob(5, 1, 50, "Eigenvalues to follow, from the largest down; at most `steps`.")
        steps: int = knob(40, 5, 300, "Lanczos steps at most; more give more eigenvalues and a finer density.")
        probes: int = knob(8, 1, 200, "Random vectors for the trace outside the Lanczos basis.")
        sigma: float = knob(
            0.01, 0.001, 0.1, "Smoothing of the density, as a fraction of the spectrum's range.", log=True
        )
        fisher: bool = knob(True, help="Also the empirical Fisher.")
        fisher_steps: int = knob(20, 5, 300, "Lanczos steps at most for the empirical Fisher.")
        micro: int = knob(0, 0, 1_000_000, "Rows in one piece of a product; 0 lets the network's size decide.")
        memory: int = knob(1024, 1, 1_000_000, "Megabytes that the Lanczos basis may take; fewer steps if it is full.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield the records of the GGN under `ggn`, then two numbers of the empirical Fisher."""
        p, problem, batch = self.params, snap.problem, snap.problem.probe_batch()
        pieces, how = cut(problem.loss, snap.theta, batch, p.micro)
        size = len(snap.theta)
        matrices = [("ggn", GGN, _gauss_newton, p.k, p.steps, ("lambda_max", "trace", "top", "spectrum"))]
        if p.fisher:
            one = ("ggn/empirical_fisher", FISHER, _fisher, 1, p.fisher_steps, ("lambda_max", "trace"))
            matrices.append(one)
        tally = Tally("products", sum(planned(size, steps, p.probes) for *_, steps, _ in matrices))
        for path, words, matrix, k, steps, shown in matrices:
            started = time.perf_counter()
            *_, found = spectrum_in_stages(
                [(matrix(problem, piece), share) for piece, share in pieces],
                snap.theta,
                k=min(k, steps, size),
                steps=steps,
                probes=p.probes,
                sigma=p.sigma,
                memory=p.memory * 2**20,
                generator=snap.rng.generator("ggn", 0),
                early=True,
                tally=tally,
            )
            seconds = time.perf_counter() - started
            about = About("; ".join(filter(None, (words, how, found.note))), len(batch), seconds)
            records = (*eigenvalues(found, path, size, about), *traced(found, path, size, 0.0, about))
            for record in records:
                if record.name.removeprefix(f"{path}/") in shown:
                    yield record


def _gauss_newton(problem: Problem, piece: Batch) -> GaussNewton:
    return GaussNewton(
        lambda theta: problem.outputs(theta, piece), lambda outputs: problem.row_losses(outputs, piece).mean()
    )


def _fisher(problem: Problem, piece: Batch) -> GaussNewton:
    return empirical_fisher(lambda theta: problem.row_losses(problem.outputs(theta, piece), piece))
