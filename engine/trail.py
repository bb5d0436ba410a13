"""The past of theta, kept as a few small files in `HOME/path`, so that a measurement can look back along the way.

One file for each kept step, written once. Steps are multiples of a power of two that grows with the run, so a young
run has a path too, and one that is resumed finds the path that it would have had anyway.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine import checkpoint
from engine.knobs import InputError
from engine.outside import opened

MOST = 48
"""Points kept at most; a long run has between half as many and all."""
FEWEST = 8
"""Points kept however large theta is."""
MOST_BYTES = 32 * 2**20
"""Bytes that the points of a run may take on disk, unless these are FEWEST."""


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

    def keep(self, step: int, theta: Tensor) -> None:
        """Keep theta (P,) if the step is one to keep and is not kept yet; drop what a younger run kept in between.

        Raises:
            OSError: the folder cannot be written.
        """
        every = stride(step, theta)
        if step % every:
            return
        path = self.folder / f"{step:08d}.npy"
        if path.exists():
            return
        self.folder.mkdir(exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.save(file, theta.detach().cpu().numpy(), allow_pickle=False)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        for old in self.folder.glob("[0-9]*.npy"):
            if int(old.stem) % every:
                old.unlink(missing_ok=True)


def kept(home: Path, before: int, like: Tensor) -> list[tuple[int, Tensor]]:
    """Return (step, theta) of the kept steps before step `before`, oldest first, thetas (P,) like `like`.

    A run that kept no path, made by an older version, has at least its checkpoints.

    Raises:
        InputError: a file is damaged.
    """
    folder = Path(home) / "path"
    steps = sorted(int(path.stem) for path in folder.glob("[0-9]*.npy"))
    if not steps:
        found = [(s, checkpoint.load(home, s, like.device)) for s in checkpoint.steps(home) if s < before]
        return [(s, content["theta"]) for s, content in found if content is not None]
    read = [(step, _read(folder / f"{step:08d}.npy", like)) for step in steps if step < before]
    return [(step, theta) for step, theta in read if theta is not None]


def _read(path: Path, like: Tensor) -> Tensor | None:
    """Return a kept theta, or None where the run that trains on has just dropped it."""
    try:
        with opened(path) as file:
            theta = torch.from_numpy(np.load(file, allow_pickle=False)).to(like)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"The point {path} of the path is damaged ({error}); delete it to go without.") from None
    if theta.shape != like.shape:
        raise InputError(f"The point {path} has {len(theta)} parameters, the run {len(like)}; delete it to go without.")
    return theta
