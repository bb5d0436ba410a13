"""A second opinion on the Hessian: PyHessian's eigenvalues and trace beside ours, on the same rows at the same step.

The published PyHessian 0.1 is run as it is, on a copy of the parameters as one flat tensor, its fastest form. What it
cannot do: its density fails on current torch; its largest eigenvalues are largest by magnitude; both of its loops stop
when two successive results agree, which is not when they are right; and it gives no error. The standard error of its
trace is computed here, from the samples that it returns. Its calls know no breathing points, so they run in a thread
that waits before every product until training has had its turn (engine/maths/slices.py).

*Source*: Yao et al., PyHessian, arXiv 1912.07145.
"""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyhessian
import torch
from torch import Tensor, nn

from engine.maths.curvature import unhurried_spectrum
from engine.maths.krylov import Loss, twice_differentiable
from engine.maths.slices import Pause, Timed, in_slices
from engine.probe import Bars, Probe, Record, Scalar, Snapshot, knob

THEIRS = f"PyHessian {importlib.metadata.version('pyhessian')}"
OURS = "Hessian of the training loss, no method active"


class PyHessian(Probe):
    """The largest eigenvalues and the trace by PyHessian and by our Lanczos run, with their difference and cost."""

    name = "pyhessian"
    title = "Check with PyHessian"
    every = 1000
    cost = "dear"

    @dataclass(frozen=True)
    class Params:
        """What PyHessian is asked, its own defaults, and what ours may spend."""

        k: int = knob(3, 1, 50, "Eigenvalues, largest by magnitude.")
        tol: float = knob(1e-3, 1e-8, 1.0, "PyHessian stops when two results in a row agree to this share.", log=True)
        most: int = knob(100, 2, 10_000, "Products that PyHessian may spend on each eigenvalue, and on the trace.")
        steps: int = knob(40, 5, 300, "Our Lanczos steps, which serve all eigenvalues and the trace.")
        probes: int = knob(8, 1, 200, "Our random vectors for the trace outside the Lanczos basis.")

    def measure(self, snap: Snapshot) -> Iterator[Record | None]:
        """Yield the eigenvalues of both, their difference, both traces, and the seconds that each took."""
        p, size, n = self.params, len(snap.theta), len(snap.problem.probe_batch())
        loss = partial(snap.problem.loss, batch=snap.problem.probe_batch())
        k, steps = min(p.k, p.steps, size), min(p.steps, size)
        probes = p.probes if steps < size else 0
        # All Ritz values, since the largest by magnitude may lie at either end.
        generator = snap.rng.generator("hessian", 0)
        ours = Timed(unhurried_spectrum(loss, snap.theta, steps, steps, probes, generator=generator))
        yield from ours
        largest = ours.found.values.abs().argsort(descending=True)[:k]
        values, residuals = ours.found.values[largest].numpy(), ours.found.residuals[largest].numpy()

        module = _Module(loss, snap.theta)
        draws = _Draws(snap.rng.key("pyhessian"), snap.theta.device)
        eigen = Timed(in_slices(partial(module.eigenvalues, k, p.most, p.tol), draws.own))
        yield from eigen
        products = module.products
        traced = Timed(in_slices(partial(module.trace, p.most, p.tol), draws.own))
        yield from traced
        theirs, samples = np.array(eigen.found), np.array(traced.found)

        labels = np.array([f"λ{i + 1}" for i in range(k)])
        loops = f"until two iterates agree to {p.tol:g}, {products} products; it gives no error"
        lanczos = f"{OURS}, {steps} Lanczos steps, largest by magnitude; error: Lanczos residual bound"
        draw = {"y": "eigenvalue", "title": "Largest eigenvalues by magnitude"}
        about = {"n": n, "mode": f"{THEIRS}, power iteration on one batch, largest by magnitude, {loops}"}
        yield Bars("pyhessian/top", labels, theirs, **about, seconds=eigen.seconds, draw=draw)
        about = {"n": n, "seconds": ours.seconds}
        yield Bars("pyhessian/ours/top", labels, values, residuals, mode=lanczos, **about, draw=draw)
        mode, draw = f"{THEIRS} minus ours; error: our Lanczos residual bound", {"y": "difference"}
        about["seconds"] = eigen.seconds + ours.seconds
        yield Bars("pyhessian/difference", labels, theirs - values, residuals, mode=mode, **about, draw=draw)
        draw, error_of_one = {"y": "trace"}, "error: one standard error"
        mode = f"{THEIRS}, Hutchinson on one batch, until two means agree to {p.tol:g}, {len(samples)} products"
        about = {"n": n, "seconds": traced.seconds, "draw": draw}
        mean, deviation = float(samples.mean()), _standard_error(samples)
        yield Scalar("pyhessian/trace", mean, deviation, mode=f"{mode}; {error_of_one}, computed here", **about)
        mode, about["seconds"] = f"{OURS}, {steps} Lanczos steps and {probes} products outside them", ours.seconds
        trace, error = ours.found.trace, ours.found.trace_error
        yield Scalar("pyhessian/ours/trace", trace, error, mode=f"{mode}; {error_of_one}", **about)
        names = np.array(["PyHessian, eigenvalues", "PyHessian, trace", "ours, both"])
        counts = np.array([products, len(samples), steps + probes])
        seconds, draw = eigen.seconds + traced.seconds + ours.seconds, {"y": "products with the Hessian"}
        yield Bars("pyhessian/products", names, counts, n=n, mode=f"{THEIRS}; {OURS}", seconds=seconds, draw=draw)


class _Module(nn.Module):
    """The training loss as PyHessian wants it: a module with one flat parameter, a copy of theta."""

    def __init__(self, loss: Loss, theta: Tensor) -> None:
        super().__init__()
        self.loss, self.theta = loss, nn.Parameter(theta.detach().clone())
        self.products, self.pause, self.inner = 0, None, None

    def forward(self, nothing: None) -> Tensor:
        return self.loss(self.theta)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Count the products: PyHessian clears the gradients before each one, which is where training has its turn."""
        super().zero_grad(set_to_none)
        self.products += 1
        self.pause()

    def eigenvalues(self, k: int, most: int, tol: float, pause: Pause) -> list[float]:
        self.pause = pause
        self.inner = pyhessian.hessian(self, lambda loss, nothing: loss, data=(None, None), cuda=False)
        # The class knows "cuda" and "cpu" alone; its vectors follow this attribute to the device of theta.
        self.inner.device = self.theta.device
        return self.inner.eigenvalues(maxIter=most, tol=tol, top_n=k)[0]

    def trace(self, most: int, tol: float, pause: Pause) -> list[float]:
        self.pause = pause
        return self.inner.trace(maxIter=most, tol=tol)


class _Draws:
    """PyHessian draws from torch's global generators: for each slice they are set to a stream of its own, then back."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.device, self.seed, self.states = device, seed, None

    @contextmanager
    def own(self) -> Generator[None]:
        """Surround one slice: draws of its own, kernels that can be differentiated twice, one warning less."""
        with (
            torch.random.fork_rng(self.devices),
            twice_differentiable(self.device),
            warnings.catch_warnings(),
        ):
            # Its gradients do make a cycle, which its next `zero_grad` breaks.
            warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
            generators = [torch.default_generator] + [torch.cuda.default_generators[d.index or 0] for d in self.devices]
            for i, generator in enumerate(generators):
                if self.states is None:
                    generator.manual_seed(self.seed)
                else:
                    generator.set_state(self.states[i])
            yield
            self.states = [generator.get_state() for generator in generators]


def _standard_error(samples: np.ndarray) -> float:
    return float(samples.std(ddof=1)) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
