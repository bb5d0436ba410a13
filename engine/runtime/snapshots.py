"""What observers measure: the newest state of a run, handed over by its engine between two steps when one waits for it.

The engine writes a file only when an observer has asked; it is never forced to the disk, so it lies in the memory of
the system and is gone after a power cut, when nobody needs it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from modalscape.engine.runtime import checkpoint
from modalscape.engine.store.files import replacement

WANTED, SNAPSHOT = "snapshot.wanted", "snapshot.pt"
LOOK_EVERY = 0.01
"""Seconds between two looks of the engine whether an observer waits."""
RETRY_EVERY = 1.0
"""Seconds until the next attempt after the disk refused."""


class Offer:
    """The engine's side."""

    def __init__(self, home: Path) -> None:
        """Offer the states of the run in `home`, whose lock the caller holds."""
        self._wanted, self._path = os.fspath(Path(home) / WANTED), Path(home) / SNAPSHOT
        self._next = 0.0

    def turn(self, content: Callable[[], dict[str, Any]]) -> None:
        """Write `content()` if an observer waits; a look that costs well under a microsecond when it is not time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK_EVERY
        if not os.path.exists(self._wanted):
            return
        try:
            with replacement(self._path) as file:
                torch.save(content(), file)
            os.unlink(self._wanted)
        except (OSError, RuntimeError):  # a full disk: observers wait, and `recorder` tells what the disk refuses
            self._next = now + RETRY_EVERY

    def close(self) -> None:
        """Take back what is offered: from now on the last checkpoint is the newest state."""
        for path in (self._path, Path(self._wanted)):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def newest(home: Path, patience: float, device: torch.device, wait: Callable[[], None]) -> dict[str, Any] | None:
    """Return the state of the run in `home` as its engine hands it over within `patience` seconds, or None.

    `wait()` is called again and again meanwhile, and lets a moment pass.
    """
    wanted, until = Path(home) / WANTED, time.monotonic() + patience
    try:
        wanted.touch()
        while wanted.exists():
            if time.monotonic() > until:
                return None
            wait()
        content = torch.load(Path(home) / SNAPSHOT, map_location=device, weights_only=True)
    except OSError:  # the engine has ended, or the disk is full
        return None
    except RuntimeError:  # the engine ended while it wrote
        return None
    missing = checkpoint.KEYS - set(content) if isinstance(content, dict) else checkpoint.KEYS
    return None if missing else content
