"""The past of theta, kept as a few small files in `HOME/path`, so that a measurement can look back along the way.

One file for each kept step, written once, with its SHA-256 behind the array. Steps are multiples of a power of two that
grows with the run, so a young run has a path too, and one that is resumed finds the path that it would have had anyway.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.runtime import checkpoint
from modalscape.engine.store.files import replacement
from modalscape.engine.store.lineage import ancestors

MOST = 48
"""Points kept at most; a long run has between half as many and all."""
FEWEST = 8
"""Points kept however large theta is."""
MOST_BYTES = 32 * 2**20
"""Bytes that the points of a run may take on disk, unless these are FEWEST."""

_MARK = b"\nSHA-256\n"


def stride(step: int, theta: Tensor) -> int:
    """Return how many steps lie between the points that are kept at `step` of parameters like theta (P,)."""
    most = min(max(MOST_BYTES // (theta.numel() * theta.element_size()), FEWEST), MOST)
    found = 1
    while step >= found * most:
        found *= 2
    return found


class Trail:
    """Keeps theta in the home of a run, every so many steps."""

    def __init__(self, home: Path) -> None:
        self.folder = Path(home) / "path"
        self.waiting: dict[int, np.ndarray] = {}
        """Points that the disk refused; as few as it would hold."""

    def due(self, step: int, theta: Tensor) -> bool:
        """Return whether the step is one to keep and is not kept yet."""
        return step % stride(step, theta) == 0 and step not in self.waiting and not self._path(step).exists()

    def keep(self, step: int, theta: Tensor) -> None:
        """Keep theta (P,) if it is due; drop what a younger run kept in between.

        Raises:
            OSError: the folder cannot be written; the point waits.
        """
        if not self.due(step, theta):
            return
        every = stride(step, theta)
        self.waiting = {at: point for at, point in self.waiting.items() if at % every == 0}
        self.waiting[step] = theta.detach().cpu().numpy()
        self.write()
        for at, path in checkpoint.numbered(self.folder, ".npy").items():
            if at % every:
                path.unlink(missing_ok=True)

    def write(self) -> None:
        """Write the points that wait.

        Raises:
            OSError: the folder cannot be written; they go on waiting.
        """
        self.folder.mkdir(exist_ok=True)
        for step in list(self.waiting):
            path = self._path(step)
            buffer = io.BytesIO()
            np.save(buffer, self.waiting[step], allow_pickle=False)
            with replacement(path) as file:
                file.write(buffer.getbuffer())
                file.write(_MARK + hashlib.sha256(buffer.getbuffer()).digest())
            del self.waiting[step]

    def forget(self, after: int) -> None:
        """Drop the points after step `after`, of a past that the run's records do not know."""
        for step, path in checkpoint.numbered(self.folder, ".npy").items():
            if step > after:
                path.unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.npy"


def kept(
    home: Path, before: int, like: Tensor, say: Callable[[str], None] = checkpoint.said
) -> list[tuple[int, Tensor]]:
    """Return (step, theta) of the kept steps before step `before`, oldest first, thetas (P,) like `like`.

    Those of a fork begin with its ancestors', as far as these are there. A run that kept no path, made by an older
    version, has at least its checkpoints. `say` is told of points that are damaged, which are left out.
    """
    line, _ = ancestors(home)
    ends = {ancestor.home: min(before, ancestor.step) for ancestor in reversed(line)} | {Path(home): before}
    found = {step: theta for place, end in ends.items() for step, theta in _kept(place, end, like, say)}
    return sorted(found.items())


def _kept(home: Path, before: int, like: Tensor, say: Callable[[str], None]) -> list[tuple[int, Tensor]]:
    """Return (step, theta) of what one run kept itself, as `kept` does."""
    points = checkpoint.numbered(home / "path", ".npy")
    if not points:
        found = [(c["step"], c["theta"]) for c in checkpoint.newest_first(home, before - 1, like.device, say=say)]
        return [(step, theta.to(like)) for step, theta in reversed(found) if theta.shape == like.shape]
    read = [(step, _read(path, like, say)) for step, path in sorted(points.items()) if step < before]
    return [(step, theta) for step, theta in read if theta is not None]


def _read(path: Path, like: Tensor, say: Callable[[str], None]) -> Tensor | None:
    """Return a kept theta, or None where it is damaged or the run that trains on has just dropped it."""
    try:
        data, mark, digest = path.read_bytes().rpartition(_MARK)
        if mark and hashlib.sha256(data).digest() != digest:
            raise ValueError("it does not match its checksum")
        theta = torch.from_numpy(np.load(io.BytesIO(data if mark else digest), allow_pickle=False)).to(like)
        if theta.shape != like.shape:
            raise ValueError(f"it has {theta.numel()} parameters, the run {len(like)}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, TypeError) as error:
        say(f"The point {path.name} of the path is damaged ({error}) and left out.")
        return None
    return theta
