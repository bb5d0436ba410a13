"""Checkpoints: everything a run is at one step, written so that a reader finds a whole file or none."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.knobs import InputError
from engine.outside import opened

_MOST = 40


def sha256(theta: Tensor) -> str:
    """Return the SHA-256 of the bytes of theta (P,), in hexadecimal."""
    return hashlib.sha256(theta.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def save(home: Path, content: dict[str, Any]) -> Path:
    """Write `content` (tensors, numbers, strings, nested dicts) as the checkpoint of its step; return the file.

    The file is complete on disk before it gets its name. Older ones are thinned to about forty, first and last kept.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(home) / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / f"{content['step']:08d}.pt"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _thin(folder)
    return path


def steps(home: Path) -> list[int]:
    """Return the steps that have a checkpoint, in order."""
    return sorted(int(path.stem) for path in (Path(home) / "checkpoints").glob("[0-9]*.pt"))


def load(home: Path, step: int | None = None, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the newest checkpoint, or the newest at or before `step`; None when there is none.

    Raises:
        InputError: the file is damaged.
    """
    found = [s for s in steps(home) if step is None or s <= step]
    if not found:
        return None
    path = Path(home) / "checkpoints" / f"{found[-1]:08d}.pt"
    try:
        with opened(path) as file:
            return torch.load(file, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The checkpoint {path} is damaged ({reason}); delete it to go on from the one before."
        ) from None


def _thin(folder: Path) -> None:
    """Delete every second of the older checkpoints once there are too many; the last ten always stay."""
    kept = sorted(folder.glob("[0-9]*.pt"))
    if len(kept) > _MOST:
        for path in kept[1:-10:2]:
            path.unlink(missing_ok=True)
