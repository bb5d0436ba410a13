"""The mean of samples and its standard error."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mean_and_error(samples: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Return the mean of samples along a dimension, and its standard error, the deviation by sqrt(N); both in float64.

    The samples (…, N, …) leave two tensors (…). One sample says nothing of its spread: its error is nan, not 0, which
    would claim certainty.

    >>> [float(v) for v in mean_and_error(torch.tensor([1.0, 3.0]))]
    [2.0, 1.0]
    >>> [float(v) for v in mean_and_error(torch.tensor([2.0]))]
    [2.0, nan]
    """
    samples = samples.double()
    mean, count = samples.mean(dim), samples.shape[dim]
    return mean, samples.std(dim) / math.sqrt(count) if count > 1 else torch.full_like(mean, math.nan)
