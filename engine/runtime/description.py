"""What a reader needs to know of a run beside what it records: its data, its network, its settings."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from modalscape.engine.runtime.session import Training


def described(training: Training, steps: int) -> dict[str, Any]:
    """Return the facts of a run of `steps` steps that do not change while it trains."""
    problem = training.problem
    return {
        "config": training.config.to_json() | {"steps": steps},
        "steps": steps,
        "first_step": training.config.first_step,
        "title": problem.title,
        "modalities": list(problem.modalities),
        "parts": list(problem.layout.slices),
        "layout": {name: list(shape) for name, shape in problem.layout.shapes.items()},
        "parameters": problem.layout.size,
        "rows": {part: len(rows) for part, rows in problem.rows.items()},
        "batch": problem.batch_size,
        "protocol": problem.protocol,
        "score": problem.score,
        "device": str(training.device),
        "threads": training.settings.threads,
        "optimizer": {key: training.values[f"optimizer.{key}"] for key in ("name", "lr", "momentum", "nesterov")},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **_versions()},
    }


def methods_described(training: Training) -> dict[str, Any]:
    """Return the facts of a run that commands may change."""
    return {
        "methods": {name: {"params": vars(method.params)} for name, method in training.stack.methods.items()},
        "pipeline": training.stack.pipeline(),
        "settings": training.values,
        "learning_rate": training.optimizer.settings.lr,
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("numpy", "scipy")}
