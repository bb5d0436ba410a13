"""How the time and the memory of a spectrum grow with parameters and with samples.

Times are beside the gradient of the same loss, so that they compare across networks; memory is the peak of what the
process holds beyond what it held before, a network, its data and one gradient included there.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from modalscape.engine.maths.curvature.hessian_spectrum import spectrum
from modalscape.engine.networks.resnet import ResNet18
from tests.bench.mid import Case, mid

STEPS, PROBES, K = 10, 2, 3
CHUNK = 2000
"""Rows of a chunk in the growth with samples."""


@dataclass(frozen=True)
class Cost:
    """What a spectrum took."""

    parameters: int
    rows: int
    gradient: float
    """Seconds of one gradient."""
    seconds: float
    products: int
    peak: float
    """Bytes beyond those held before; not a number where the system does not tell."""
    basis: float
    """Bytes of the Krylov basis, which are part of `peak`."""

    @property
    def ratio(self) -> float:
        """Seconds of one product, its share of the rest included, over those of one gradient."""
        return self.seconds / self.products / self.gradient


def held(kind: str) -> float:
    """Return `VmRSS` or `VmHWM` of this process in bytes, not a number where there is no such thing."""
    status = Path("/proc/self/status")
    found = re.search(rf"{kind}:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * float(found.group(1)) if found else float("nan")


def peak(work: Callable[[], object]) -> tuple[object, float]:
    """Return what `work` returns and the bytes that the process held at most beyond those before (Linux, glibc)."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        # What was freed is given back first, or new allocations would hide in it.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        forget.write_text("5")
    before = held("VmRSS")
    found = work()
    return found, held("VmHWM") - before


def cost(case: Case, *, chunk: int = 0) -> Cost:
    """Return what a spectrum of `STEPS` steps and `PROBES` probes takes, in chunks of so many rows or whole."""
    rows, theta = len(case.x), case.theta
    pieces = [slice(i, i + (chunk or rows)) for i in range(0, rows, chunk or rows)]
    loss = [(case.loss(case.x[p], case.y[p]), len(case.x[p]) / rows) for p in pieces]
    at = theta.clone().requires_grad_()

    def gradient() -> None:
        for one, share in loss:
            torch.autograd.grad(share * one(at), at)

    gradient()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        gradient()
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    found, extra = peak(lambda: spectrum(loss, theta, K, STEPS, PROBES))
    seconds = time.perf_counter() - started
    # The basis, and the vectors that are given back.
    basis = (found.products - PROBES + K) * theta.numel() * theta.element_size()
    return Cost(len(theta), rows, statistics.median(times), seconds, found.products, extra, basis)


def larger() -> Iterator[tuple[str, Case]]:
    """Yield networks of 50 thousand, a million and eleven million parameters; untrained, since nothing here asks."""
    yield "two branches", mid(512, 96, rest=float("inf"))
    yield "two branches, wider", mid(512, 480, rest=float("inf"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ResNet18((3, 16, 16), 10, 0, 0, functional.gelu)
        yield "ResNet-18", Case(net, torch.randn(8, 3, 16, 16), torch.arange(8))


def report() -> None:
    """Print both tables."""
    head = f"{'parameters':>12} {'rows':>8} {'gradient s':>11} {'all s':>8} {'product/gradient':>17} {'peak MB':>9}"
    print(
        f"\ncurvature, k = {K}, {STEPS} steps and {PROBES} probes: growth with parameters\n  {head} {'of it basis':>12}"
    )
    for name, case in larger():
        _row(cost(case), name)
    print(f"\ngrowth with samples, chunks of {CHUNK}\n  {head} {'of it basis':>12}")
    for rows in (2_000, 10_000, 50_000):
        _row(cost(mid(rows, rest=float("inf")), chunk=CHUNK), "two branches")


def _row(found: Cost, name: str) -> None:
    size = f"{found.parameters:12,} {found.rows:8,} {found.gradient:11.4f} {found.seconds:8.2f} {found.ratio:17.2f}"
    print(f"  {size} {found.peak / 2**20:9.0f} {found.basis / 2**20:12.0f}  {name}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    report()
