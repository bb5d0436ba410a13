"""Losses at many points of a line or a plane, several points at once where that is faster.

Batching points (vmap) pays where one evaluation is too small to fill the machine: few rows, small networks, a GPU. On a
CPU it mostly costs, up to five times for convolutions, so it is measured before it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.knobs import InputError

Losses = Callable[[Tensor], Tensor]
"""Theta (P,) to losses (L,)."""
CHUNKS = (4, 16, 64)
"""Numbers of points at once that are tried beside one."""
WORTH = 0.85
"""Share of the present best time per point below which a larger chunk is taken; noise alone does not reach it."""
MOST_BYTES = 64 * 2**20
"""Bytes that the parameters of one chunk may take."""
BREATH = 0.02
"""Seconds of evaluating one point after the other between two breathing points."""
MOST = 1000
"""Points evaluated one after the other between two breathing points at most."""
MOST_SECONDS = 0.1
"""Seconds that one chunk may take, since training waits for it."""


@dataclass(frozen=True)
class Field:
    """The losses L(theta + c @ directions) as a function of the coordinates c (D,), `chunk` points at once."""

    losses: Losses
    theta: Tensor
    """(P,)"""
    directions: Tensor
    """(D, P)"""
    chunk: int = 1

    def __call__(self, coordinates: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the losses (N', L), float64, of coordinates (N, D), piece after piece in order.

        The origin is evaluated alone whatever the chunk, so its losses are bit for bit those at theta.
        """
        start = 0
        while start < len(coordinates):
            if self.chunk > 1 and coordinates[start].any():
                origins = np.flatnonzero(~coordinates[start : start + self.chunk].any(1))
                stop = start + (int(origins[0]) if len(origins) else self.chunk)
                piece = self._together(coordinates[start:stop])
            elif self.chunk > 1:
                piece = self._in_turn(coordinates[start : start + 1])
            else:
                piece = self._in_turn(coordinates[start:])
            yield piece
            start += len(piece)

    @torch.no_grad()
    def _together(self, coordinates: np.ndarray) -> np.ndarray:
        shift = torch.as_tensor(coordinates, dtype=self.theta.dtype, device=self.theta.device)
        return torch.func.vmap(self.losses)(self.theta + shift @ self.directions).cpu().double().numpy()

    @torch.no_grad()
    def _in_turn(self, coordinates: np.ndarray) -> np.ndarray:
        """Return the losses of as many of the first points as BREATH allows; one transfer from the device for all."""
        until = time.perf_counter() + BREATH
        first, *others = self.directions
        found, count, rest, base = self.theta.new_empty(0), 0, None, self.theta
        for c, *more in map(np.ndarray.tolist, coordinates):  # one at a time: most are left for later calls
            if more != rest:
                rest, base = more, self.theta
                for b, d in zip(more, others, strict=True):
                    base = base.add(d, alpha=b)
            losses = self.losses(base.add(first, alpha=c))
            if not count:
                found = losses.new_empty(min(len(coordinates), MOST), len(losses))
            # Copied, not kept: small blocks that outlive an evaluation cut up the memory in which the next one works.
            found[count] = losses
            count += 1
            if count == len(found) or time.perf_counter() > until:
                break
        return found[:count].cpu().double().numpy()


def fastest_chunk(losses: Losses, theta: Tensor) -> Iterator[int | None]:
    """Yield None at breathing points, and at last how many points (1, 4, 16 or 64) are evaluated fastest at once.

    Larger chunks are tried as long as each pays, within MOST_BYTES and MOST_SECONDS, unless one point fills the machine
    by itself. 1 where the losses cannot be batched, or differ when they are.
    """
    alone, cost = _timed(lambda: losses(theta))
    best = 1
    for chunk in CHUNKS:
        yield
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
    yield best


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
