"""What the dashboard may be asked for: everyone who can open it can start runs, so their number and size are bounded.

The command line on one's own machine is not. Each limit has an environment variable. Free of Streamlit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from modalscape.engine.config import RunSettings
from modalscape.engine.errors import InputError
from modalscape.engine.store import files
from modalscape.engine.store.archive import Archive

MIB = 2**20
_COPIES = 12
"""Vectors as long as the parameters that a run holds beside one for each loss: moments, methods, a product's parts."""
_KEPT = 4
"""Arrays as long as the activations of a batch that a backward pass holds, for each loss."""
_UNKNOWN = 100
"""Numbers of a modality's row where the data are made by the problem."""
_VOCABULARY = 20_000
_RESNET = 11_200_000


@dataclass(frozen=True)
class Limit:
    """A largest number: its usual value, the environment variable that replaces it, and what it counts."""

    usual: int | Callable[[], int]
    variable: str
    what: str
    words: str = ""
    """The usual value in words, where it depends on the machine."""

    @property
    def most(self) -> int:
        """The number in force.

        Raises:
            InputError: the environment variable holds no whole number of 1 or more.
        """
        text = os.environ.get(self.variable, "")
        if text and not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) > 0):
            raise InputError(f"{self.variable} must be a whole number of 1 or more, not {text[:40]!r}; mend it.")
        return int(text) if text else self.usual() if callable(self.usual) else self.usual

    def hold(self, asked: float, why: str = "") -> None:
        """Refuse more than there may be.

        Raises:
            InputError: more is asked for.
        """
        if asked > self.most:
            raise InputError(
                f"{asked:,.0f} {self.what} are more than this dashboard takes, which is {self.most:,}{why}; choose "
                f"less, use the command line, or have {self.variable} raised."
            )


def _cores() -> int:
    return os.cpu_count() or 2


def _working() -> int:
    """Return how many engines a machine bears: all cores but one, at least one."""
    return max(1, _cores() - 1)


def _half_of_memory() -> int:
    """Return half of the machine's memory in MiB, 2,048 where that is not known."""
    held = files.memory()
    return 2048 if held is None else max(256, held // (2 * MIB))


LIMITS = {
    "working": Limit(_working, "MODALSCAPE_MAX_WORKING", "runs at work", "the cores but one"),
    "waiting": Limit(20, "MODALSCAPE_MAX_WAITING", "waiting runs"),
    "steps": Limit(10_000_000, "MODALSCAPE_MAX_STEPS", "steps"),
    "methods": Limit(8, "MODALSCAPE_MAX_METHODS", "methods from the start"),
    "probes": Limit(12, "MODALSCAPE_MAX_PROBES", "probes from the start"),
    "threads": Limit(_cores, "MODALSCAPE_MAX_THREADS", "threads", "the cores"),
    "observers": Limit(_cores, "MODALSCAPE_MAX_OBSERVERS", "observers", "the cores"),
    "file": Limit(1024, "MODALSCAPE_MAX_FILE", "MiB of unpacked data"),
    "memory": Limit(_half_of_memory, "MODALSCAPE_MAX_MEMORY", "MiB of memory", "half of the machine's"),
}
"""Name to limit."""


def room(waiting: int) -> None:
    """Refuse one more run where enough of them wait.

    Raises:
        InputError: the queue is full.
    """
    most = LIMITS["waiting"].most
    if waiting >= most:
        raise InputError(
            f"{waiting:,} runs wait already, and this dashboard lets {most:,} wait; come back when some have begun, or "
            "take one out of the queue."
        )


def bounded(config: Mapping[str, Any]) -> None:
    """Refuse a run, given as JSON values, that asks for more than this dashboard gives.

    Raises:
        InputError: too many steps, methods, probes or threads, too large a file, or too much memory.
    """
    settings = config.get("settings") or {}
    LIMITS["steps"].hold(config.get("steps") or 0)
    LIMITS["methods"].hold(len(config.get("methods") or ()))
    LIMITS["probes"].hold(len(config.get("probes") or ()))
    LIMITS["threads"].hold(settings.get("threads", 1))
    LIMITS["observers"].hold(settings.get("observers", 1))
    held, size = contents(config["data"]) if config.get("data") else ({}, 0)
    LIMITS["file"].hold(size / MIB)
    need = memory(settings, shapes(held, settings), size)
    why = " (an estimate from batch, width, hidden, depth, encoder and data)"
    LIMITS["memory"].hold(need / MIB, why)


def contents(path: str | Path) -> tuple[dict[str, tuple[tuple[int, ...], bool]], int]:
    """Return (array to its shape and whether it may hold tokens, bytes of all when unpacked) of an `.npz` file.

    Only headers are read. A file that cannot be read has none: the engine says what is wrong with it.
    """
    try:
        about = os.stat(path)
        return _contents(str(path), about.st_mtime_ns, about.st_size)
    except (OSError, ValueError):
        return {}, 0


@lru_cache(maxsize=64)
def _contents(path: str, changed: int, size: int) -> tuple[dict[str, tuple[tuple[int, ...], bool]], int]:
    found = {}
    with files.opened(path) as file, Archive(file) as archive:
        for name in archive.files:
            with suppress(ValueError):  # no array, or one that the engine refuses if it is asked for
                shape, dtype = archive.header(name)
                found[name] = shape, dtype.kind in "iu" and dtype.itemsize > 1 and len(shape) == 2
        return found, archive.unpacked


def shapes(held: Mapping[str, tuple[tuple[int, ...], bool]], settings: Mapping[str, Any]) -> list[tuple]:
    """Return (rows, shape of a row, whether it may hold tokens) of each modality, as far as headers tell."""
    rows = held.get("labels", ((0,), False))[0][0] if held.get("labels", ((), False))[0] else 0
    wanted = str(settings.get("modalities") or "").replace(",", " ").split()
    found = [
        (rows, shape[1:], words)
        for name, (shape, words) in held.items()
        if len(shape) > 1 and shape[0] == rows and (not wanted or name in wanted)
    ]
    return found or [(2000, (_UNKNOWN,), False)] * 2


def memory(settings: Mapping[str, Any], modalities: list[tuple], size: int = 0) -> float:
    """Return the bytes that a run may take beside torch itself, to a factor of two or so; `size` is the data's."""
    value = {name: field.default for name, field in RunSettings.__dataclass_fields__.items()} | dict(settings)
    each = [encoder(shape, words, value) for _, shape, words in modalities]
    parameters, units = sum(p for p, _ in each), sum(u for _, u in each)
    if value["fusion"] == "gated":
        parameters += (len(each) * value["width"]) ** 2
    losses = 1 + len(each) * (value["unimodal"] != "none")
    rows = min(value["micro"] or value["batch"], max(rows for rows, _, _ in modalities))
    numbers = parameters * (losses + _COPIES) + max(rows, value["probe_rows"]) * units * _KEPT * losses
    return numbers * (8 if value["dtype"] == "float64" else 4) + 2 * size


def encoder(shape: tuple[int, ...], words: bool, value: Mapping[str, Any]) -> tuple[float, float]:
    """Return (parameters, activations of a row) of the encoder of rows of this shape, about."""
    hidden, depth, width = value["hidden"], value["depth"], value["width"]
    inputs, chosen = float(np.prod(shape, dtype=float)), value["encoder"]
    if len(shape) == 3 and chosen == "resnet18":
        return _RESNET + 512 * width, 640.0 * shape[1] * shape[2]
    if len(shape) == 3 and chosen != "mlp":
        return _convolved(shape, hidden, depth, width)
    if len(shape) == 2 and chosen != "mlp":
        channels = max(16, hidden // 4)
        return 5.0 * channels * (shape[1] + channels * depth) + channels * width, channels * shape[0] + inputs
    if words and chosen in ("auto", "tokens"):
        half = max(8, hidden // 2)
        attended = inputs * (8 * half + inputs) * depth
        return half * (_VOCABULARY + inputs) + 8.0 * half**2 * depth + half * width, attended + inputs * half
    layers = inputs * hidden + max(depth - 1, 0) * hidden**2 + hidden * width if depth else inputs * width
    return layers, inputs + depth * hidden + width


def _convolved(shape: tuple[int, ...], hidden: int, depth: int, width: int) -> tuple[float, float]:
    """Return (parameters, activations of a row) of blocks that halve an image, as in `engine/networks/cnn.py`."""
    channels, *sides = shape
    base = 8 * max(1, round(hidden / 64))
    after, parameters, units = base, 0.0, float(np.prod(shape, dtype=float))
    for _ in range(max(1, math.ceil(math.log2(max(sides[0], sides[1], 1) / 4)))):
        sides = [(side + 1) // 2 for side in sides]
        parameters, units = parameters + 9.0 * channels * after, units + 2.0 * after * sides[0] * sides[1]
        channels, after = after, min(2 * after, 4 * base)
    parameters += 9.0 * channels**2 * max(depth - 1, 0) + channels * sides[0] * sides[1] * width
    return parameters, units + 2.0 * channels * sides[0] * sides[1] * max(depth - 1, 0)
