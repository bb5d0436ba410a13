"""Losses at many points of a line or a plane, several points at once where that is faster.

Batching points (vmap) pays where one evaluation is too small to fill the machine, as on a GPU. On a CPU it does not:
MLPs and sequence networks of 25,000 to 140,000 parameters on 256 rows took 0.8 to 1.5 times as long a point for 4 to
64 points at once, convolutional ones 1.6 to 6.7 times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.progress import Tally

Losses = Callable[[Tensor], Tensor]
"""Theta (P,) to losses (L,)."""
AT_ONCE = 16
"""Points at once where there is an accelerator; not timed."""
MOST_BYTES = 64 * 2**20
"""Bytes that the parameters of one chunk may take."""


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


def at_once(losses: Losses, theta: Tensor) -> int:
    """Return how many points to evaluate at once: 1 on a CPU, elsewhere AT_ONCE where MOST_BYTES and the losses allow.

    A rule and no race of timings, so that the last bits of a slice are those of theta and the machine's kind alone.
    """
    most = min(AT_ONCE, int(MOST_BYTES // (theta.numel() * theta.element_size())))
    return most if theta.device.type != "cpu" and most > 1 and batches(losses, theta, most) else 1


@torch.no_grad()
def batches(losses: Losses, theta: Tensor, count: int) -> bool:
    """Return whether the losses can be evaluated at `count` points at once, and are the same then."""
    try:
        together = torch.func.vmap(losses)(theta.repeat(count, 1))
    except (RuntimeError, ValueError):  # vmap names what it cannot batch; one point after the other always works
        return False
    return torch.allclose(together, losses(theta).expand_as(together), rtol=1e-3, atol=1e-6, equal_nan=True)


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
