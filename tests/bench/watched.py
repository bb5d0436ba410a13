"""What it costs training to have its curvature watched: the engine's loop with and without, on the data of *mid*.

The same network of 50,602 parameters and 2,000 training rows, in a run of its own an arm; blocks of steps interleaved.
A spectrum is asked for every 50 steps. The budget keeps its cost to a tenth of the time by asking less often where one
costs more than that; lifted, it shows what one every 50 steps really costs.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from engine.catalog import catalog
from engine.config import RunConfig, validated
from engine.run import Run
from engine.store import RunReader, create
from engine.training import Training
from tests.bench.mid import WIDTH, samples

REPEATS = int(os.environ.get("BENCH_REPEATS", "9"))
EVERY = 50
BLOCK = {64: 500, 2000: 100}
"""Batch size to the steps of one block."""
TOP = {"hessian.k": 1, "hessian.steps": 10, "hessian.probes": 3, "hessian.parts": False}
"""λ_max, trace and density of the whole, without the blocks: thirteen products."""
ARMS = {
    "not watched": None,
    "λ_max, trace, density; budget 10 %": TOP,
    "… budget lifted": TOP | {"budget": 1.0},
    "all, with blocks and coupling; budget 10 %": {},
    "… budget lifted ": {"budget": 1.0},
}


def run(home: Path, data: Path, batch: int, watched: dict | None) -> Run:
    """Return a run on the file, ready for its first step."""
    settings = {"unimodal": "none", "batch": batch, "width": 96, "hidden": 96, "depth": 2, "optimizer.lr": 1e-3}
    probes = {} if watched is None else {"hessian": EVERY}
    config = RunConfig(data=str(data), probes=probes, steps=10**6, device="cpu", settings=settings | (watched or {}))
    home.mkdir()
    create(home)
    return Run(Training(validated(config, catalog())), home)


def block(of: Run, steps: int) -> float:
    """Return the seconds of so many steps and the measurements between them."""
    began = time.perf_counter()
    for _ in range(steps):
        started = time.perf_counter()
        of._step()
        of.seconds += time.perf_counter() - started
        of.measuring.turn(of.seconds)
        if of.writer.due():
            of.writer.flush()
    return time.perf_counter() - began


def report() -> None:
    """Print steps a second with and without, and how often a spectrum came."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "mid.npz"
        x, y = samples(2000)
        np.savez(
            data,
            left=x[:, :WIDTH].numpy(),
            right=x[:, WIDTH:].numpy(),
            labels=y.numpy(),
            split=np.repeat([0, 1], [2000 - 1, 1]),
        )
        for batch, steps in BLOCK.items():
            _table(Path(folder), data, batch, steps)


def _table(folder: Path, data: Path, batch: int, steps: int) -> None:
    runs = {name: run(folder / f"{batch}-{i}", data, batch, watched) for i, (name, watched) in enumerate(ARMS.items())}
    bare = next(iter(runs.values()))
    for one in runs.values():
        block(one, steps)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begun = bare.training.state.step
    for _ in range(REPEATS):
        for name, one in runs.items():
            seconds[name].append(block(one, steps))
    size, rows = bare.training.problem.layout.size, len(bare.training.problem.probe_batch())
    base = seconds["not watched"]
    print(
        f"\n{size:,} parameters, batch {batch}, {statistics.median(base) / steps * 1e3:.2f} ms a step; Hessian of "
        f"{rows} rows every {EVERY} steps; steps a second beside those of the bare run, median and range of "
        f"{REPEATS} x {steps} steps, arms in turn"
    )
    for name, one in runs.items():
        one.writer.flush()
        ended = [
            e for e in RunReader(one.home).events() if e.kind == "probe" and e.detail.get("records") and e.step >= begun
        ]
        fewer = [100 * (b / a - 1) for a, b in zip(seconds[name], base, strict=True)]
        often = ""
        if ended:
            _, top = RunReader(one.home).latest("hessian/lambda_max")
            often = f"one in {steps * REPEATS / len(ended):5.0f} steps, {ended[-1].detail['seconds']:.3f} s"
            often += f", λ_max to {top.error / top.value:.0e}"
        print(
            f"  {name:44} {statistics.median(fewer):+6.1f} % ({min(fewer):+.1f} to {max(fewer):+.1f})   {often}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    report()
