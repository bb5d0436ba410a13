"""What the command line prints of a run as one JSON object. Free of torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from modalscape.engine.client.handle import UNREADABLE, RunHandle
from modalscape.engine.errors import InputError
from modalscape.engine.store.lineage import fork_of
from modalscape.engine.store.reader import RunReader

BEST = "best/"
"""What stands before the name of a scalar of the best step, in `numbers`."""
_JUDGE = "loss/val"


def summary(home: Path | str) -> dict[str, Any]:
    """Return home, state, step, seconds, theta (SHA-256 at that step, or None), last scalars, record steps, events.

    `best` has the step at which the loss on validation rows was lowest, and the scalars written for just this step:
    what early stopping would have kept. It is None where no such loss was recorded.
    `measuring` lists what observers are at, the one at work first: probe, step, what is counted, done, planned, seconds
    so far and left.
    Of a fork also `fork`, the run and the step that it comes from.

    Raises:
        InputError: there is no run, or one of its files cannot be read.
    """
    handle = RunHandle.attach(home)
    status, reader = handle.status(), handle.reader()
    if status.state == UNREADABLE:
        raise InputError(status.error)
    theta = reader.meta("theta", None) or {}
    return {
        "home": str(home),
        "state": status.state,
        "step": status.step,
        "steps": status.steps,
        "seconds": round(reader.meta("seconds", 0.0) or 0.0, 3),
        "theta": theta.get("sha256") if theta.get("step") == status.step else None,
        "scalars": {name: _finite(value) for name, value in reader.last().items()},
        "best": _best(reader),
        "records": {name: max(reader.history(name), default=0) for name in reader.names()["records"]},
        "events": len(reader.events()),
        "error": status.error or reader.damage or None,
        "measuring": [job for said in handle.observers(reader) for job in said.get("observing", {}).get("jobs", ())],
    } | _origin(home)


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """Return the scalars of a summary as numbers: the last ones, and under `best/` those of the best step.

    >>> numbers({"scalars": {"lr": 0.5}, "best": {"step": 20, "scalars": {"loss/val": "inf"}}})
    {'lr': 0.5, 'best/loss/val': inf}
    """
    best = found["best"]["scalars"] if found["best"] else {}
    values = found["scalars"] | {f"{BEST}{name}": value for name, value in best.items()}
    return {name: float(value) for name, value in values.items()}


def _best(reader: RunReader) -> dict[str, Any] | None:
    """Return step and scalars of the first lowest validation loss; what was never trained is no candidate."""
    steps, losses = reader.scalars(_JUDGE, points=None)
    if not len(steps):
        return None
    trained = slice(1, None) if len(steps) > 1 else slice(None)
    step = int(steps[trained][np.where(np.isfinite(losses), losses, np.inf)[trained].argmin()])
    return {"step": step, "scalars": {name: _finite(value) for name, value in reader.numbers_at(step).items()}}


def _origin(home: Path | str) -> dict[str, Any]:
    """Return, of a fork, where it comes from."""
    fork = fork_of(home)
    return {"fork": {"of": fork["of"], "step": fork["step"]}} if fork else {}


def listed(home: Path | str) -> dict[str, Any]:
    """Return the summary of a run for a list: one that cannot be read is `unreadable`, with the reason as its error."""
    try:
        return summary(home)
    except InputError as error:
        nothing = {"step": 0, "steps": 0, "seconds": 0.0, "theta": None, "scalars": {}, "records": {}, "events": 0}
        nothing |= {"best": None, "measuring": []}
        return {"home": str(home), "state": UNREADABLE} | nothing | {"error": str(error)}


def _finite(value: float) -> float | str:
    """Return the number, or its name where JSON has none."""
    return value if math.isfinite(value) else str(value)
