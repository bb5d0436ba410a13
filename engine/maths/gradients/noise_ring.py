"""Noise with the covariance of a few recent vectors: Σ_j w_j d_j with w normal, at a cost linear in P.

The vectors lie in a ring of K rows. Each is a deviation of the gradient at one of the last steps, in one of two
readings:

- `history`: d_j = g_j - m̂_j, the batch's gradient minus its moving average. The noise is scaled so that its expected
  squared norm is the trace of the moving average's variance.
- `halves`: d_j = √(n/(B - n))(g_A - g), where g_A is the gradient of the first n of the B rows of step j: half the
  difference of the two halves. Its covariance is that of the batch's gradient, C/B, without what the drift of the
  parameters and the noise itself moved. For a loss that couples rows, such as InfoNCE, a half has fewer negatives, and
  the difference holds that as well.

So the noise has the covariance Σ_j d_j d_jᵀ/K, of rank K, where noise of the variances alone has a diagonal one, which
is far more even. Wu et al., arXiv 1906.07405, mix gradients in the same way, those of the present batch's pieces; here
they are of the last steps, so that few are enough at each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MODES = ("halves", "history")
"""The readings of d_j."""


def fresh(like: Tensor, size: int) -> dict[str, Any]:
    """Return the memory of `size` vectors before the first one, for parameters `like` (P,)."""
    written = torch.zeros((), dtype=torch.int64, device=like.device)
    return {"ring": like.new_zeros(size, len(like)), "squares_of": like.new_zeros(size), "written": written}


def suits(memory: dict[str, Any], size: int) -> bool:
    """Return whether a memory has a ring of `size` vectors."""
    ring = memory.get("ring")
    return ring is not None and len(ring) == size


def without(memory: dict[str, Any]) -> dict[str, Any]:
    """Return the memory without its ring."""
    return {key: value for key, value in memory.items() if key not in ("ring", "squares_of", "written")}


def write(memory: dict[str, Any], vector: Tensor) -> dict[str, Any]:
    """Put a vector (P,) into the ring, in the place of the oldest, and return the memory after it.

    The rows are written in place, since a copy of K vectors would cost more than the step: for `commit` alone. A vector
    that is not finite is left out.
    """
    ring, written = memory["ring"], memory["written"]
    place = (written % len(ring)).reshape(1)
    square = vector.square().sum()
    good = torch.isfinite(square)
    ring.index_copy_(0, place, torch.where(good, vector, ring.index_select(0, place)[0])[None])
    squares = memory["squares_of"].index_copy(0, place, torch.where(good, square, memory["squares_of"][place][0])[None])
    return memory | {"squares_of": squares, "written": written + good}


def scale(memory: dict[str, Any], trace: Tensor | None) -> Tensor:
    """Return the factor (0-d) on Σ_j w_j d_j: 1/√(number of vectors), or what makes E‖noise‖² equal to `trace`."""
    if trace is None:
        return memory["written"].clamp(1, len(memory["ring"])).rsqrt().to(memory["ring"].dtype)
    total = memory["squares_of"].sum()
    return (trace / total.clamp(min=torch.finfo(total.dtype).tiny)).sqrt()


def mixed(memory: dict[str, Any], weights: Tensor, trace: Tensor | None) -> Tensor:
    """Return the noise (P,) of normal `weights` (K,); rows that hold nothing yet are zero."""
    return torch.mv(memory["ring"].t(), weights * scale(memory, trace))


def power(memory: dict[str, Any], trace: Tensor | None) -> Tensor:
    """Return the variance of the noise at each coordinate (P,)."""
    return (memory["ring"] * scale(memory, trace)).square_().sum(0)


def along(memory: dict[str, Any], direction: Tensor, trace: Tensor | None) -> Tensor:
    """Return uᵀΣu (0-d), the variance of the noise along a direction u (P,) of length 1."""
    return (torch.mv(memory["ring"], direction) * scale(memory, trace)).square().sum()
