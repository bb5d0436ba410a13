"""What the command line prints of a run as one JSON object. Free of torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from engine.handle import RunHandle


def summary(home: Path | str) -> dict[str, Any]:
    """Return home, state, step, seconds, theta (SHA-256 at that step, or None), last scalars, record steps, events."""
    handle = RunHandle.attach(home)
    status, reader = handle.status(), handle.reader()
    theta = reader.meta("theta", None) or {}
    return {
        "home": str(home),
        "state": status.state,
        "step": status.step,
        "steps": status.steps,
        "seconds": round(reader.meta("seconds", 0.0), 3),
        "theta": theta.get("sha256") if theta.get("step") == status.step else None,
        "scalars": {name: _finite(value) for name, value in reader.last().items()},
        "records": {name: max(reader.history(name)) for name in reader.names()["records"]},
        "events": len(reader.events()),
        "error": status.error,
    }


def _finite(value: float) -> float | str:
    """Return the number, or its name where JSON has none."""
    return value if math.isfinite(value) else str(value)
