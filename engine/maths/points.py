"""Losses at many points of a line or a plane, several points at once where that is faster.

Batching points (vmap) pays where one evaluation is too small to fill the machine: few rows, small networks, a GPU. On a
CPU it mostly costs, up to five times for convolutions, so it is measured before it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.knobs import InputError
from engine.maths.progress import Tally

Losses = Callable[[Tensor], Tensor]
"""Theta (P,) to losses (L,)."""
CHUNKS = (4, 16, 64)
"""Numbers of points at once that are tried beside one."""
WORTH = 0.85
"""Share of the present best time per point below which a larger chunk is taken; noise alone does not reach it."""
MOST_BYTES = 64 * 2**20
"""Bytes that the parameters of one chunk may take."""
MOST_SECONDS = 0.1
"""Seconds that one chunk may take, so that what waits for a report does not wait long."""


@dataclass(frozen=True)
class Field:
    """The losses L(theta + c @ directions) as a function of the coordinates c (D,), `chunk` points at once."""

    losses: Losses
    theta: Tensor
    """(P,)"""
    directions: Tensor
    """(D, P)"""
    chunk: int = 1

    @torch.no_grad()
    def __call__(self, coordinates: np.ndarray, tally: Tally | None = None) -> np.ndarray:
        """Return the losses (N, L), float64, of coordinates (N, D), N > 0; each point is added to `tally`.

        The origin is evaluated alone whatever the chunk, so its losses are bit for bit those at theta.
        """
        tally = tally or Tally("points", len(coordinates))
        found, start, rest, base = self.theta.new_empty(0), 0, None, self.theta
        first, *others = self.directions
        while start < len(coordinates):
            if self.chunk > 1 and coordinates[start].any():
                origins = np.flatnonzero(~coordinates[start : start + self.chunk].any(1))
                losses = self._together(coordinates[start : start + (int(origins[0]) if len(origins) else self.chunk)])
            else:
                c, *more = coordinates[start].tolist()
                if more != rest:
                    rest, base = more, self.theta
                    for b, d in zip(more, others, strict=True):
                        base = base.add(d, alpha=b)
                losses = self.losses(base.add(first, alpha=c))[None]
            if not start:
                found = losses.new_empty(len(coordinates), losses.shape[1])
            # Copied, not kept: small blocks that outlive an evaluation cut up the memory in which the next one works.
            found[start : start + len(losses)] = losses
            start += len(losses)
            tally.add(len(losses))
        return found.cpu().double().numpy()

    def _together(self, coordinates: np.ndarray) -> Tensor:
        shift = torch.as_tensor(coordinates, dtype=self.theta.dtype, device=self.theta.device)
        return torch.func.vmap(self.losses)(self.theta + shift @ self.directions)


def fastest_chunk(losses: Losses, theta: Tensor) -> int:
    """Return how many points (1, 4, 16 or 64) are evaluated fastest at once; it decides about last bits alone.

    Larger chunks are tried as long as each pays, within MOST_BYTES and MOST_SECONDS, unless one point fills the machine
    by itself. 1 where the losses cannot be batched, or differ when they are.
    """
    alone, cost = _timed(lambda: losses(theta))
    best = 1
    for chunk in CHUNKS:
        if chunk * theta.numel() * theta.element_size() > MOST_BYTES or chunk * cost > MOST_SECONDS / 2:
            break
        points = theta.repeat(chunk, 1)
        try:
            together, seconds = _timed(lambda points=points: torch.func.vmap(losses)(points))
        except (RuntimeError, ValueError):  # vmap names what it cannot batch; one point after the other always works
            break
        same = torch.allclose(together, alone.expand_as(together), rtol=1e-3, atol=1e-6, equal_nan=True)
        if not same or seconds > MOST_SECONDS or seconds > WORTH * chunk * cost:
            break
        best, cost = chunk, seconds / chunk
    return best


@torch.no_grad()
def _timed(evaluate: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return the value on the CPU and the shortest of three times in seconds, after one that warms up.

    One that takes long is not repeated: it needs no warming up.
    """
    seconds = []
    while len(seconds) < 4 and sum(seconds) < MOST_SECONDS:
        started = time.perf_counter()
        found = evaluate().cpu()
        seconds.append(time.perf_counter() - started)
    return found, min(seconds[1:] or seconds)


def single(loss: Callable[[Tensor], Tensor]) -> Losses:
    """Return a loss as losses (1,).

    Raises:
        InputError: when called, where the loss is not one number.
    """

    def losses(theta: Tensor) -> Tensor:
        value = loss(theta)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError("the loss must return one number for each theta.")
        return value.reshape(1)

    return losses
