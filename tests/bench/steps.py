"""Cost of a training step: the engine beside a plain torch loop of the same model, methods beside the bare step."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from modalscape.engine import networks
from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.method import Method
from modalscape.engine.registry import discover
from modalscape.engine.runtime.loop import Run
from modalscape.engine.runtime.session import Training
from modalscape.engine.store.commands import Mailbox
from modalscape.engine.store.writer import RunWriter, create

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


def training(settings: dict, methods: tuple[str, ...] = (), device: str = "cpu", data: str | None = None) -> Training:
    """Return a training on digits_captions, or on a data file; of the fused loss alone unless the settings say more."""
    settings = {"unimodal": "none"} | settings
    problem = None if data else "digits_captions"
    config = RunConfig(problem=problem, data=data, methods=methods, steps=10**6, device=device, settings=settings)
    return Training(validated(config, catalog()))


def plain(of: Training) -> Callable[[], None]:
    """Return one step of the plain loop: module, loss, backward, torch optimiser."""
    problem = of.problem
    net = networks.build(of.data, of.settings).to(of.device)
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
    of.settings.__dict__["checkpoint"] = 10**9

    def step() -> None:
        run._obey()
        run.take_step()
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


AIMS = {
    "agm": 2.5,
    "bogc": 2.0,
    "fanoise": 1.15,
    "gani": 1.6,
    "inforeg": 1.15,
    "isotropic_noise": 1.6,
    "mmpareto": 1.25,
    "modalimmune": 2.5,
    "moddrop": 1.25,
    "ogm_ge": 1.15,
    "opm": 1.5,
    "pmr": 1.5,
    "sam": 2.1,
}
"""Largest ratio to the bare step that we mean each method to have: a seventh more for what only adds arithmetic, a
quarter for rows that are solved against each other or features that are masked, half for a further pass through the
heads, a pass of half the batch or a term of its own, twice for a second pass or posterior moments, and beyond that for
several forward passes, a second loss and looks at curvature.
"""


def every_method(device: str = "cpu") -> None:
    """Print what each method costs beside the bare step with unimodal heads, on images and captions and on avdigits."""
    cases = {"images and captions": ({"digits_captions.inputs": "raw", "unimodal": "heads"}, None)}
    file = Path(os.environ.get("MODALSCAPE_DATA", "")) / "avdigits.npz"
    if os.environ.get("MODALSCAPE_DATA") and file.is_file():
        cases["avdigits"] = ({"unimodal": "heads"}, str(file))
    for title, (settings, data) in cases.items():
        names = sorted(discover("modalscape.engine.methods", Method))
        own = settings | {"optimizer.name": "sgd", "optimizer.lr": 0.01}
        bare = training(own, device=device, data=data)
        arms = {"bare": bare.step} | {m: training(own, (m,), device, data).step for m in names}
        seconds = timed(arms, 15)
        size, batch = bare.problem.layout.size, bare.problem.batch_size
        print(f"\n{title} with heads, {size} parameters, batch {batch}, {device}: bare {seconds['bare'] * 1e3:.2f} ms")
        print(f"  {'':28} {'/ bare step':>12} {'aim':>6}          (median of {REPEATS} x 15 steps, arms in turn)")
        for name in names:
            _told(name, seconds[name] / seconds["bare"], AIMS.get(name))
        readings(own, device, data)


READINGS = {
    "gani, history": ({"gani.mode": "history"}, 1.2),
    "gani, halves": ({"gani.mode": "halves"}, 1.6),
    "gani, halves in 4 pieces": ({"gani.mode": "halves", "micro": 16}, 1.1),
    "gani, diagonal": ({"gani.mode": "central"}, 1.15),
}
"""Readings of a method, and the largest ratio that we mean them to have to the bare step, in as many pieces."""


def readings(own: dict, device: str = "cpu", data: str | None = None) -> None:
    """Print what the readings of a method cost, each beside a bare step that takes the batch in the same pieces."""
    for name, (settings, aim) in READINGS.items():
        pieces = {key: value for key, value in settings.items() if key == "micro"}
        arms = {"bare": training(own | pieces, device=device, data=data).step}
        arms[name] = training(own | settings, ("gani",), device, data).step
        seconds = timed(arms, 15)
        _told(name, seconds[name] / seconds["bare"], aim)


def _told(name: str, ratio: float, aim: float | None) -> None:
    told = "" if aim is None else "met" if ratio <= aim else "missed"
    print(f"  {name:28} {ratio:12.2f} {'–' if aim is None else f'{aim:.2f}':>6}   {told}")


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
