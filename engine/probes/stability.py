"""How close training is to the edge of stability: the Hessian as the optimiser sees it, beside what it can bear.

Gradient descent on a quadratic diverges along every direction whose curvature exceeds 2/η; trained long enough at a
constant rate on whole batches, networks climb to this edge and stay near it (Cohen et al., arXiv 2103.00065). An
optimiser that divides the gradient by P meets the edge where λ_max(P⁻¹H) does, for adam 38/η at its usual β₁ = 0.9
(arXiv 2207.14484): the Hessian's own λ_max then says little. Mini-batches hold training below the edge.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.batch_chunks import cut
from modalscape.engine.maths.curvature.hessian_spectrum import top_eigenpairs
from modalscape.engine.reports.spectrum import About

MATRIX = "P⁻¹H: Hessian of the training loss over what the optimiser divides the gradient by, no method active"
TOL = 1e-3
"""Residual bound of λ_max, as a share of it, at which the search ends; the error is far smaller."""
_TOP = "λ<sub>max</sub>(P⁻¹H)"


class Stability(Probe):
    """λ_max of the preconditioned Hessian, the optimiser's edge, and their ratio: 1 at the edge of stability."""

    name = "stability"
    title = "Edge of stability"
    every = 100
    cost = "high"

    @dataclass(frozen=True)
    class Params:
        """How much to spend."""

        steps: int = knob(30, 5, 300, "Lanczos steps at most, a product each; fewer where λ_max is found sooner.")
        micro: int = knob(0, 0, 1_000_000, "Rows in one piece of a product; 0 lets the network's size decide.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield `stability/lambda_max`, `stability/edge` and `stability/ratio`.

        Raises:
            InputError: the snapshot knows no optimiser.
        """
        if snap.optimizer is None:
            raise InputError("No optimiser is known here, so neither is its edge of stability; measure a run.")
        problem, batch = snap.problem, snap.problem.probe_batch()
        pieces, how = cut(problem.loss, snap.theta, batch, self.params.micro)
        # In coordinates u with theta = theta_0 + P⁻½u the Hessian is P⁻½HP⁻½, which has the eigenvalues of P⁻¹H.
        narrow = snap.optimizer.preconditioner(snap.moments, snap.theta).rsqrt()
        losses = [
            (lambda u, piece=piece: problem.loss(snap.theta + narrow * u, piece), share) for piece, share in pieces
        ]
        started = time.perf_counter()
        generator = snap.rng.generator("stability", 0)
        values, _, residuals = top_eigenpairs(
            losses, torch.zeros_like(snap.theta), 1, TOL, most=self.params.steps, generator=generator
        )
        edge, seconds = snap.optimizer.edge(snap.step), time.perf_counter() - started
        about = About("; ".join(filter(None, (MATRIX, how))), len(batch), seconds)
        top, residual = values[0].item(), residuals[0].item()
        name = snap.optimizer.settings.name
        yield Scalar(
            "stability/lambda_max",
            top,
            residual,
            **about.bound(),
            display=Display(title="λ<sub>max</sub> as the optimiser sees it", y=_TOP, label=_TOP),
        )
        yield Scalar(
            "stability/edge",
            edge,
            mode=f"largest λ at which {name} is stable on a quadratic, without noise",
            display=Display(title="Edge of stability", y="λ", label=f"edge of {name}", role="limit"),
        )
        yield Scalar(
            "stability/ratio",
            top / edge,
            residual / edge,
            **about.bound(),
            display=Display(title="Sharpness over the edge of stability", y=f"{_TOP} / edge"),
        )
