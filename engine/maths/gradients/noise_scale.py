"""How noisy a gradient is: the batch size at which its noise equals its signal, with an error, and cosines with one.

All from Gram matrices of mini-batch gradients, so that one pass serves the whole network, its parts and its layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from modalscape.engine.core.layout import Layout
from modalscape.engine.errors import InputError

LEAST = 3
"""Mini-batches below which no noise scale has an error."""


def grams(layout: Layout, vectors: Tensor, group: Callable[[str], Hashable]) -> dict[Hashable, Tensor]:
    """Return group to the inner products (N, N) of the vectors (N, P) on the parameters of the group, in float64.

    `group` maps a parameter's name to its group; groups come in packing order.
    """
    found: dict[Hashable, Tensor] = {}
    for name, block in zip(layout.shapes, vectors.split(layout.sizes, dim=-1), strict=True):
        own = block.double()
        product = own @ own.T
        key = group(name)
        found[key] = found[key] + product if key in found else product
    return found


def noise_scale(gram: Tensor, rows: int) -> tuple[float, float]:
    """Return the rows at which noise equals signal, B = tr(Σ)/‖G‖², and its standard error; nan where there is none.

    `gram` (N, N) has the inner products of the gradients of N mini-batches of `rows` rows each. With s² the variance
    of a mini-batch's gradient around their mean ḡ, tr(Σ) = rows·s² and ‖G‖² = ‖ḡ‖² - s²/N, both unbiased; where the
    latter is not positive the mean gradient drowns in its noise and the ratio means nothing. The error is that of the
    jackknife over mini-batches; the ratio of two unbiased estimates is not unbiased itself. Of a loss that is no mean
    over rows, such as InfoNCE, it is only the noise of batches of this size, in rows.

    Source: McCandlish et al., arXiv 1812.06162, appendix A.1, with N batches in the place of two batch sizes.

    Raises:
        InputError: fewer than three mini-batches.

    >>> round(noise_scale(torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]), 4)[0], 3)
    4.0
    """
    count = len(gram)
    if count < LEAST:
        raise InputError(f"A noise scale takes at least {LEAST} mini-batches, not {count}.")
    whole = _scale(gram, rows)
    left = [_scale(_without(gram, i), rows) for i in range(count)]
    return whole, jackknife(left)


def _scale(gram: Tensor, rows: int) -> float:
    count = len(gram)
    mean = float(gram.mean())
    spread = (float(gram.diagonal().mean()) - mean) * count / (count - 1)
    signal = mean - spread / count
    return rows * spread / signal if signal > 0 else math.nan


def _without(gram: Tensor, i: int) -> Tensor:
    kept = [j for j in range(len(gram)) if j != i]
    return gram[kept][:, kept]


def jackknife(left: list[float]) -> float:
    """Return the standard error of an estimate, given its values with each of the N observations left out.

    nan where one of them is.

    >>> round(jackknife([1.5, 2.0, 2.5]), 6)  # the mean of 1, 2, 3 is 2 ± 1/√3
    0.57735
    """
    values = torch.tensor(left, dtype=torch.float64)
    spread = (values - values.mean()).square().mean()
    return math.sqrt((len(left) - 1) * float(spread)) if torch.isfinite(spread) else math.nan


def mean_cosine(gram: Tensor) -> tuple[float, float]:
    """Return the mean cosine of two of N vectors with inner products `gram` (N, N), and its standard error.

    nan where a vector has no length; orthogonal gradients of different batches are what InfoReg's derivation takes.
    """
    whole = cosines(gram)
    count = len(whole)

    def mean(table: Tensor) -> float:
        return float((table.sum() - table.diagonal().sum()) / (len(table) * (len(table) - 1)))

    return mean(whole), jackknife([mean(_without(whole, i)) for i in range(count)]) if count > 2 else math.nan


def cosines(gram: Tensor) -> Tensor:
    """Return the cosines (K, K) of vectors with inner products `gram` (K, K), nan where one has no length."""
    sizes = gram.diagonal().clamp(min=0).sqrt()
    scale = sizes[:, None] * sizes[None, :]
    return torch.where(scale > 0, gram / scale, torch.full_like(gram, math.nan)).clamp(-1, 1)
