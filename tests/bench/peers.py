"""Curvature and slices beside the tools that others use, on the same trained network, interleaved in one process.

Run by `make bench` in an environment of its own (`.venv-peers`), since these tools pin other versions of everything.
PyHessian's published wheel calls `torch.eig`, which torch no longer has; the shim below gives it what its repository
does today, `torch.linalg.eig`, so that its density runs.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from modalscape.engine.core.layout import Layout
from modalscape.engine.maths.curvature.hessian_spectrum import (
    Density,
    spectral_density,
    spectrum,
    top_eigenpairs,
    trace,
)
from modalscape.engine.maths.landscape.evaluate import single
from modalscape.engine.maths.landscape.slices import axis, direction_pair, refine, slice_2d
from modalscape.engine.networks.resnet import ResNet18
from tests.bench import mixed
from tests.bench.mid import Case, mid

REPEATS = int(os.environ.get("BENCH_REPEATS", "5"))
K, SIGMA, SIDE, TIMED = 5, 0.01, 51, 156

Result = dict[str, object]
"""What a tool found: `top` (5,), `trace`, `nodes` and `weights` of a quadrature or a `density`, `z` of a plane."""


def ours_40_8(case: Case) -> Result:
    """All three from one Lanczos run."""
    found = spectrum(case.loss(), case.theta, k=K, steps=40, probes=8, sigma=SIGMA)
    return {"top": found.values, "trace": found.trace, "density": found.density}


def ours_40_16(case: Case) -> Result:
    """The same with twice the probes for the trace."""
    found = spectrum(case.loss(), case.theta, k=K, steps=40, probes=16, sigma=SIGMA)
    return {"top": found.values, "trace": found.trace, "density": found.density}


def ours_top(case: Case) -> Result:
    """The largest eigenvalues alone."""
    return {"top": top_eigenpairs(case.loss(), case.theta, K, tol=1e-3)[0]}


def pyhessian_equal(case: Case) -> Result:
    """PyHessian with the effort that reaches 1e-3, 1 % and its 100-step density."""
    tool = _pyhessian(case)
    top = tool.eigenvalues(maxIter=1000, tol=1e-4, top_n=K)[0]
    draws = tool.trace(maxIter=187, tol=0.0)
    nodes, weights = tool.density(iter=100, n_v=1)
    return {"top": top, "trace": np.mean(draws), "nodes": nodes, "weights": weights}


def pyhessian_default(case: Case) -> Result:
    """PyHessian as it comes."""
    tool = _pyhessian(case)
    top, draws = tool.eigenvalues(top_n=K)[0], tool.trace()
    nodes, weights = tool.density()
    return {"top": top, "trace": np.mean(draws), "nodes": nodes, "weights": weights}


def pyhessian_top(case: Case) -> Result:
    """PyHessian's eigenvalues alone, to 1e-3."""
    return {"top": _pyhessian(case).eigenvalues(maxIter=1000, tol=1e-4, top_n=K)[0]}


def curvlinops(case: Case) -> Result:
    """Its operator under ARPACK, Hutchinson with 100 draws, its public density of 100 steps."""
    from curvlinops import HessianLinearOperator, hutchinson_trace, lanczos_approximate_spectrum
    from scipy.sparse.linalg import eigsh

    parameters = [p for p in case.model.parameters() if p.requires_grad]
    operator = HessianLinearOperator(case.model, torch.nn.CrossEntropyLoss(), parameters, [(case.x, case.y)])
    top = np.sort(eigsh(operator.to_scipy(), k=K, which="LA", return_eigenvectors=False))[::-1]
    value = float(hutchinson_trace(operator, num_matvecs=100))
    lanczos_approximate_spectrum(operator, 100)
    return {"top": top, "trace": value}


def eigenthings(case: Case) -> Result:
    """Its Lanczos of 50 steps, Hutch++ of 99 products and one density run of 100 steps."""
    import hessian_eigenthings as tool

    operator = tool.HessianOperator(case.model, [(case.x, case.y)], tool.supervised_loss(functional.cross_entropy))
    top = tool.lanczos(operator, k=K, max_iter=50, which="LA", seed=0).eigenvalues
    value = tool.trace(operator, num_matvecs=99, seed=0).estimate
    tool.spectral_density(operator, num_runs=1, lanczos_steps=100, seed=0)
    return {"top": top, "trace": float(value)}


def slice_ours(case: Case) -> Result:
    """A plane of 51 x 51 to a checked error of 1e-3 of its range."""
    found = slice_2d(case.loss(), case.theta, *_plane(case), tol=1e-3)
    return {"z": found.z, "evaluations": found.evaluations, "checked": found.checked_error}


def slice_exact(case: Case) -> Result:
    """The same plane with every point evaluated."""
    return {"z": slice_2d(case.loss(), case.theta, *_plane(case), tol=0.0).z}


def slice_first(case: Case) -> Result:
    """The first picture of the plane."""
    next(refine(single(case.loss()), case.theta, *_plane(case), tol=1e-3))
    return {}


def slice_loader(case: Case) -> Result:
    """The way of the loss-landscape scripts: set the weights, walk a DataLoader; 156 points timed, scaled to 2,601."""
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(case.x, case.y), batch_size=128)
    d1, d2, x, y = _plane(case)
    start, model = case.theta, case.model
    for point in range(TIMED):
        theta = start + float(x[point % SIDE]) * d1 + float(y[point // SIDE]) * d2
        torch.nn.utils.vector_to_parameters(theta, model.parameters())
        total = hits = 0
        with torch.no_grad():
            for rows, labels in loader:
                out = model(rows)
                total += functional.cross_entropy(out, labels).item() * len(labels)
                hits += (out.argmax(1) == labels).sum().item()
    torch.nn.utils.vector_to_parameters(start, model.parameters())
    return {"scale": SIDE * SIDE / TIMED}


def slice_package(case: Case) -> Result:
    """The loss-landscapes package on the whole batch in memory."""
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    metric = Loss(torch.nn.CrossEntropyLoss(), case.x, case.y)
    loss_landscapes.random_plane(
        case.model, metric, distance=10, steps=SIDE, normalization="filter", deepcopy_model=True
    )
    return {}


TOOLS: dict[str, Callable[[Case], Result]] = {
    "ours, 40 steps + 8 probes": ours_40_8,
    "ours, 40 steps + 16 probes": ours_40_16,
    "PyHessian, equal accuracy": pyhessian_equal,
    "PyHessian, defaults": pyhessian_default,
    "curvlinops + ARPACK": curvlinops,
    "hessian-eigenthings": eigenthings,
    "ours, top-5": ours_top,
    "PyHessian, top-5": pyhessian_top,
    "slice, ours, checked 1e-3": slice_ours,
    "slice, ours, every point": slice_exact,
    "slice, ours, first picture": slice_first,
    "slice, DataLoader loop": slice_loader,
    "slice, loss-landscapes": slice_package,
}
AIMS = (
    ("PyHessian, equal accuracy", "ours, 40 steps + 8 probes", 8.0),
    ("PyHessian, defaults", "ours, 40 steps + 8 probes", 5.0),
    ("curvlinops + ARPACK", "ours, 40 steps + 8 probes", 6.0),
    ("hessian-eigenthings", "ours, 40 steps + 8 probes", 6.0),
    ("PyHessian, top-5", "ours, top-5", 7.0),
    ("slice, DataLoader loop", "slice, ours, checked 1e-3", 50.0),
    ("slice, loss-landscapes", "slice, ours, checked 1e-3", 12.0),
    ("slice, loss-landscapes", "slice, ours, every point", 1.0),
)
"""Slower tool, faster tool, and the ratio aimed at."""


def report() -> None:
    """Print times, errors, ratios with their aims, peak memory and growth."""
    print(f"\n{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {REPEATS} repeats")
    case = mid()
    truth = _truth(case)
    seconds, results = timed(case)
    print(f"{'':32}{'median s':>10}{'range':>16}{'top-5':>10}{'trace':>9}{'density':>9}")
    for name, found in results.items():
        times = seconds[name]
        print(
            f"{name:32}{statistics.median(times):10.2f}{f'{min(times):.2f} to {max(times):.2f}':>16}"
            + _errors(found, truth)
        )
    exact = results["slice, ours, every point"]["z"]
    found = results["slice, ours, checked 1e-3"]
    error = float((found["z"] - exact).abs().max() / (exact.max() - exact.min()))
    print(
        f"slice: {found['evaluations']} of {SIDE * SIDE} losses, error {error:.1e} of the range,"
        f" checks said {found['checked']:.1e}"
    )
    for slow, fast, aim in AIMS:
        ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
        ratio = statistics.median(ratios)
        print(
            f"{slow} / {fast}: {ratio:.1f} ({min(ratios):.1f} to {max(ratios):.1f}; aim {aim:g}, "
            f"{'met' if ratio >= aim else 'missed'})"
        )
    torch.eig = _eig
    mixed.report(REPEATS)
    memory(("ours, 40 steps + 8 probes", "PyHessian, equal accuracy", "curvlinops + ARPACK", "hessian-eigenthings"))
    growth()


def timed(case: Case) -> tuple[dict[str, list[float]], dict[str, Result]]:
    """Return the seconds of each tool, one repeat of all after the other, and what it found last."""
    seconds: dict[str, list[float]] = {name: [] for name in TOOLS}
    results: dict[str, Result] = {}
    for repeat in range(REPEATS):
        for name, tool in TOOLS.items():
            began = time.perf_counter()
            results[name] = tool(case)
            seconds[name].append((time.perf_counter() - began) * float(results[name].get("scale", 1.0)))
        print(f"repeat {repeat + 1} of {REPEATS} done", file=sys.stderr)
    return seconds, results


def memory(names: tuple[str, ...]) -> None:
    """Print the peak memory that each tool adds, each in a process of its own."""
    for name in names:
        line = [sys.executable, "-m", "tests.bench.peers", "--memory", name]
        added = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
        print(f"peak memory added by {name}: {added} MiB")


def growth() -> None:
    """Print how the spectrum's cost grows with parameters and with samples."""
    sizes = ((96, 2000), (96, 10_000), (96, 50_000), (96, 500), (480, 500), (1640, 500))
    for case in (*(mid(rows, hidden, rest=3.0) for hidden, rows in sizes), _resnet18()):
        before, began = _forget_peak(), time.perf_counter()
        spectrum(case.loss(), case.theta, k=K, steps=40, probes=8, sigma=SIGMA)
        print(
            f"{len(case.theta):>10,} parameters, {len(case.x):>6,} rows: {time.perf_counter() - began:7.1f} s,"
            f" peak {_resident('VmHWM') - before:6.0f} MiB above before"
        )


def _resnet18() -> Case:
    """Return an untrained ResNet-18 on 32 images of 16 x 16."""
    torch.manual_seed(0)
    return Case(ResNet18((3, 16, 16), 10, 0, 0, functional.gelu), torch.randn(32, 3, 16, 16), torch.arange(32) % 10)


def _truth(case: Case) -> Result:
    exact = case.double()
    loss, theta = exact.loss(), exact.theta
    value, error = trace(loss, theta, rel_error=0.002)
    print(f"reference: trace {value:.4f} with standard error {error:.4f}, 16 density runs of 100 steps, float64")
    return {
        "top": top_eigenpairs(loss, theta, K, tol=1e-9)[0],
        "trace": value,
        "density": spectral_density(loss, theta, steps=100, probes=16, sigma=SIGMA),
    }


def _errors(found: Result, truth: Result) -> str:
    words = ""
    if "top" in found:
        top, true = torch.tensor([float(value) for value in found["top"]], dtype=torch.float64), truth["top"]
        words += f"{float(((top - true) / true).abs().max()):10.0e}"
    if "trace" in found:
        words += f"{abs(float(found['trace']) / float(truth['trace']) - 1):9.1%}"
    density = truth["density"]
    if "density" in found:
        own = np.interp(density.grid, found["density"].grid, found["density"].total())
        words += f"{_distance(own, density):9.3f}"
    elif "nodes" in found:
        nodes, weights = np.array(found["nodes"]).real.ravel(), np.array(found["weights"]).real.ravel()
        z = (density.grid.numpy()[:, None] - nodes) / density.width
        kernel = np.exp(-0.5 * z**2) / (density.width * np.sqrt(2 * np.pi))
        words += f"{_distance(kernel @ (weights / weights.sum()), density):9.3f}"
    return words


def _distance(own: np.ndarray, truth: Density) -> float:
    """Return the L1 distance of two densities of mass 1."""
    return float(np.trapezoid(np.abs(own - truth.total().numpy()), truth.grid.numpy()))


def _plane(case: Case) -> tuple[torch.Tensor, ...]:
    layout: Layout = case.layout
    d1, d2 = direction_pair(case.theta, layout, torch.Generator().manual_seed(0))
    return d1, d2, axis(1.0, SIDE), axis(1.0, SIDE)


def _pyhessian(case: Case):
    from pyhessian import hessian

    torch.eig = _eig
    case.model.zero_grad()
    return hessian(case.model, torch.nn.CrossEntropyLoss(), data=(case.x, case.y), cuda=False)


def _eig(matrix: torch.Tensor, eigenvectors: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eig(matrix)
    return torch.stack([values.real, values.imag], 1), vectors.real


def _resident(field: str) -> float:
    """Return `VmRSS`, what this process holds now, or `VmHWM`, its peak since `_forget_peak`, in MiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _forget_peak() -> float:
    """Reset the peak of this process; return what it holds now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _added(name: str) -> None:
    case = mid(rest=3.0)
    before = _forget_peak()
    TOOLS[name](case)
    print(f"{_resident('VmHWM') - before:.0f}")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
    if sys.argv[1:2] == ["--memory"]:
        _added(sys.argv[2])
    else:
        report()
