"""Directions and angles of vectors that may be so short that the squares of their entries vanish."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(v: Tensor) -> Tensor:
    """Return v (N,) at length 1, or all zero where it is zero.

    >>> unit(torch.tensor([3e-30, 4e-30]))
    tensor([0.6000, 0.8000])
    """
    peak = v.abs().max()
    if not peak > 0:
        return torch.zeros_like(v)
    v = v / peak
    return v / torch.linalg.vector_norm(v)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of the angle between a and b (N,), a scalar; 0 where one of them vanishes."""
    return (unit(a) @ unit(b)).clamp(-1.0, 1.0)
