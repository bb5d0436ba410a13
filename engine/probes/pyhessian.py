"""A second opinion on the Hessian: PyHessian's eigenvalues and trace beside ours, on the same rows at the same step.

The published PyHessian 0.1 is run as it is, on a copy of the parameters as one flat tensor, its fastest form. What it
cannot do: its density fails on current torch; its largest eigenvalues are largest by magnitude; both of its loops stop
when two successive results agree, which is not when they are right; and it gives no error. The standard error of its
trace is computed here, from the samples that it returns.

*Source*: Yao et al., PyHessian, arXiv 1912.07145.
"""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyhessian
import torch
from torch import Tensor, nn

from modalscape.engine.core.display import Display
from modalscape.engine.core.probe import Bars, Probe, Record, Scalar, Snapshot, knob
from modalscape.engine.maths.curvature.hessian_spectrum import planned, spectrum_in_stages
from modalscape.engine.maths.curvature.krylov import Loss, twice_differentiable
from modalscape.engine.maths.progress import Tally
from modalscape.engine.maths.standard_error import mean_and_error

THEIRS = f"PyHessian {importlib.metadata.version('pyhessian')}"
OURS = "Hessian of the training loss, no method active"
ONE = "error: one standard error"
TITLE = "Largest eigenvalues by magnitude"


class PyHessian(Probe):
    """The largest eigenvalues and the trace by PyHessian and by our Lanczos run, with their difference and cost."""

    name = "pyhessian"
    title = "Check with PyHessian"
    every = 1000
    cost = "high"
    usual = False

    @dataclass(frozen=True)
    class Params:
        """What PyHessian is asked, its own defaults, and what ours may spend."""

        k: int = knob(3, 1, 50, "Eigenvalues, largest by magnitude.")
        tol: float = knob(1e-3, 1e-8, 1.0, "PyHessian stops when two results in a row agree to this share.", log=True)
        most: int = knob(100, 2, 10_000, "Products that PyHessian may spend on each eigenvalue, and on the trace.")
        steps: int = knob(40, 5, 300, "Our Lanczos steps, which serve all eigenvalues and the trace.")
        probes: int = knob(8, 1, 200, "Our random vectors for the trace outside the Lanczos basis.")

    def measure(self, snap: Snapshot) -> Iterator[Record]:
        """Yield our eigenvalues and trace, then PyHessian's, their difference, and the products that each took."""
        p, size, n = self.params, len(snap.theta), len(snap.problem.probe_batch())
        loss = partial(snap.problem.loss, batch=snap.problem.probe_batch())
        k, steps = min(p.k, p.steps, size), min(p.steps, size)
        probes = p.probes if steps < size else 0
        # All Ritz values, since the largest by magnitude may lie at either end.
        generator = snap.rng.generator("hessian", 0)
        tally = Tally("products", planned(size, steps, probes) + (k + 1) * p.most)
        started = time.perf_counter()
        *_, ours = spectrum_in_stages(loss, snap.theta, steps, steps, probes, generator=generator, tally=tally)
        own_seconds = time.perf_counter() - started
        largest = ours.values.abs().argsort(descending=True)[:k]
        values, residuals = ours.values[largest].numpy(), ours.residuals[largest].numpy()
        labels, display = np.array([f"λ{i + 1}" for i in range(k)]), Display(y="eigenvalue", title=TITLE)
        mode = f"{OURS}, {steps} Lanczos steps, largest by magnitude; error: Lanczos residual bound"
        about = {"n": n, "seconds": own_seconds}
        yield Bars("pyhessian/ours/top", labels, values, residuals, mode=mode, **about, display=display)
        mode = f"{OURS}, {steps} Lanczos steps and {probes} products outside them; {ONE}"
        yield Scalar(
            "pyhessian/ours/trace", ours.trace, ours.trace_error, mode=mode, **about, display=Display(y="trace")
        )

        module = _Module(loss, snap.theta, tally)
        with _own_draws(snap.rng.key("pyhessian"), snap.theta.device):
            try:
                started = time.perf_counter()
                theirs = np.array(module.eigenvalues(k, p.most, p.tol))
                eigen_seconds, products = time.perf_counter() - started, module.products
                started = time.perf_counter()
                samples = torch.tensor(module.trace(p.most, p.tol), dtype=torch.float64)
                trace_seconds = time.perf_counter() - started
            finally:
                module.theta.grad = None  # ends the cycle that its gradient makes
        tally.finish()

        loops = f"until two iterates agree to {p.tol:g}, {products} products; it gives no error"
        mode = f"{THEIRS}, power iteration on one batch, largest by magnitude, {loops}"
        yield Bars("pyhessian/top", labels, theirs, n=n, mode=mode, seconds=eigen_seconds, display=display)
        mode, display = f"{THEIRS} minus ours; error: our Lanczos residual bound", Display(y="difference")
        about["seconds"] = eigen_seconds + own_seconds
        yield Bars("pyhessian/difference", labels, theirs - values, residuals, mode=mode, **about, display=display)
        mode = f"{THEIRS}, Hutchinson on one batch, until two means agree to {p.tol:g}, {len(samples)} products"
        about = {"n": n, "seconds": trace_seconds, "display": Display(y="trace")}
        mean, error = mean_and_error(samples)
        yield Scalar("pyhessian/trace", mean.item(), error.item(), mode=f"{mode}; {ONE}, computed here", **about)
        names = np.array(["PyHessian, eigenvalues", "PyHessian, trace", "ours, both"])
        counts = np.array([products, len(samples), steps + probes])
        seconds, display = eigen_seconds + trace_seconds + own_seconds, Display(y="products with the Hessian")
        yield Bars("pyhessian/products", names, counts, n=n, mode=f"{THEIRS}; {OURS}", seconds=seconds, display=display)


class _Module(nn.Module):
    """The training loss as PyHessian wants it: a module with one flat parameter, a copy of theta."""

    def __init__(self, loss: Loss, theta: Tensor, tally: Tally) -> None:
        super().__init__()
        self.loss, self.theta = loss, nn.Parameter(theta.detach().clone())
        self.products, self.tally, self.inner = 0, tally, None

    def forward(self, nothing: None) -> Tensor:
        return self.loss(self.theta)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Count the products: PyHessian clears the gradients before each one."""
        super().zero_grad(set_to_none)
        self.products += 1
        self.tally.add()

    def eigenvalues(self, k: int, most: int, tol: float) -> list[float]:
        self.inner = pyhessian.hessian(self, lambda loss, nothing: loss, data=(None, None), cuda=False)
        # The class knows "cuda" and "cpu" alone; its vectors follow this attribute to the device of theta.
        self.inner.device = self.theta.device
        return self.inner.eigenvalues(maxIter=most, tol=tol, top_n=k)[0]

    def trace(self, most: int, tol: float) -> list[float]:
        return self.inner.trace(maxIter=most, tol=tol)


@contextmanager
def _own_draws(seed: int, device: torch.device) -> Generator[None]:
    """Seed torch's global generators, from which PyHessian draws, and put them back afterwards; one warning less."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), twice_differentiable(device), warnings.catch_warnings():
        # Its gradients do make a cycle, which its next `zero_grad` breaks.
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
        for generator in [torch.default_generator, *(torch.cuda.default_generators[d.index or 0] for d in devices)]:
            generator.manual_seed(seed)
        yield
