"""Cost of a training step: the engine beside a plain torch loop of the same model, methods beside the bare step."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from engine import networks
from engine.catalog import catalog
from engine.config import RunConfig, validated
from engine.control import Mailbox
from engine.method import Method
from engine.registry import discover
from engine.run import Run
from engine.store import RunWriter, create
from engine.training import Training

REPEATS = 9

SIZES = {
    "small": {"batch": 64, "optimizer.name": "sgd", "optimizer.lr": 0.05, "digits_captions.inputs": "flat"},
    "1 M parameters": {
        "batch": 128,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.05,
        "digits_captions.inputs": "flat",
        "width": 256,
        "hidden": 640,
        "depth": 2,
    },
}


def training(settings: dict, methods: tuple[str, ...] = (), device: str = "cpu") -> Training:
    """Return a training on digits_captions."""
    config = RunConfig(problem="digits_captions", methods=methods, steps=10**6, device=device, settings=settings)
    return Training(validated(config, catalog()))


def plain(of: Training) -> Callable[[], None]:
    """Return one step of the plain loop: module, loss, backward, torch optimiser."""
    problem = of.problem
    net = networks.build(of.data, of.own).to(of.device)
    s = of.settings
    optimizer = torch.optim.SGD(net.parameters(), s["optimizer.lr"], momentum=s["optimizer.momentum"])
    rows = problem.rows["train"]
    state = {"step": 0, "order": torch.randperm(len(rows))}

    def step() -> None:
        size = problem.batch_size
        start = state["step"] * size % (len(rows) - size)
        where = state["order"][start : start + size]
        state["step"] += 1
        features = {m: net.encoders[m](rows.x[m][where]) for m in problem.modalities}
        logits = net.trunk(features)["fused"]
        loss = functional.cross_entropy(logits, rows.y[where])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def recorded(of: Training, folder: str) -> Callable[[], None]:
    """Return one step of the engine's loop with everything it records; evaluations and checkpoints left out."""
    home = Path(folder) / str(id(of))
    home.mkdir()
    create(home)
    run = Run(of, home)
    run._evaluate_every = 10**9
    of.own.__dict__["checkpoint"] = 10**9

    def step() -> None:
        run._obey()
        run._step()
        if run.writer.due():
            run.writer.flush()

    return step


def timed(arms: dict[str, Callable[[], None]], count: int) -> dict[str, float]:
    """Return the median seconds of a step of each arm, repeats interleaved."""
    for arm in arms.values():
        for _ in range(20):
            arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(REPEATS):
        for name, arm in arms.items():
            started = time.perf_counter()
            for _ in range(count):
                arm()
            seconds[name].append((time.perf_counter() - started) / count)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(device: str = "cpu") -> None:
    """Print the step ratios, the methods' costs and the logger's cost."""
    with tempfile.TemporaryDirectory() as folder:
        for size, settings in SIZES.items():
            bare = training(settings, device=device)
            count = 150 if size == "small" else 20
            arms = {"plain torch loop": plain(bare), "engine step": bare.step}
            arms |= {f"engine step + {m}": training(settings, (m,), device).step for m in ("gani", "ogm_ge", "sam")}
            arms["engine step, recorded"] = recorded(training(settings, device=device), folder)
            seconds = timed(arms, count)
            base, step = seconds["plain torch loop"], seconds["engine step"]
            print(f"\n{size}: {bare.problem.layout.size} parameters, batch {bare.problem.batch_size}, on {bare.device}")
            print(
                f"  {'':28} {'ms/step':>9} {'/ plain':>9} {'/ bare step':>12}   (median of {REPEATS} x {count} steps)"
            )
            for name, value in seconds.items():
                print(f"  {name:28} {value * 1e3:9.3f} {value / base:9.2f} {value / step:12.2f}")
        every_method(device)
        print(f"\nlogger and control: {logger(Path(folder)) * 1e6:.2f} µs a step (8 scalars; aim 5)")


def every_method(device: str = "cpu") -> None:
    """Print what each method costs on top of the bare step, on images and captions with unimodal heads."""
    settings = {"digits_captions.inputs": "raw", "unimodal": "heads"}
    arms = {"bare": training(settings, device=device).step}
    arms |= {m: training(settings, (m,), device).step for m in discover("engine.methods", Method)}
    seconds = timed(arms, 15)
    print(f"\nimages and captions with heads, on {device}; the bare step takes {seconds['bare'] * 1e3:.2f} ms")
    print(f"  {'':28} {'/ bare step':>12}")
    for name, value in seconds.items():
        print(f"  {name:28} {value / seconds['bare']:12.2f}   (median of {REPEATS} x 15 steps)")


def logger(folder: Path, count: int = 20_000) -> float:
    """Return the seconds a step spends on logging 8 scalars and looking for commands."""
    home = folder / "logger"
    home.mkdir()
    create(home)
    writer, mailbox = RunWriter(home), Mailbox(home)
    values = {f"scalar/{i}": float(i) for i in range(8)}
    repeats = []
    for repeat in range(5):
        started = time.perf_counter()
        for step in range(count):
            if mailbox.due():
                mailbox.unread(0)
            writer.scalars(repeat * count + step, values)
            if writer.due():
                writer.beat("running", step, {})
                writer.flush()
        repeats.append((time.perf_counter() - started) / count)
    return statistics.median(repeats)
