"""Singular values of features and weights: how many directions they fill, and what chance alone would give.

Letters: X (m, n) has m rows of n features, or is a weight matrix; σ (r,) are its singular values, largest first, with
r = min(m, n). Everything is worked out in double precision through the smaller of XᵀX and XXᵀ, which is exact to about
3e-7 of the largest singular value; what is smaller, or lost in the rounding of X itself, counts as 0.

No power law is fitted to a spectrum: its exponent would rest on the few dozen values that layers of this size have.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.maths.features.feature_noise import Directions, centred, directions, edge, effective_rank

SIZES = {
    "effective_rank": "exp of the entropy of σ²/Σσ²",
    "participation": "(Σσ²)²/Σσ⁴",
    "stable_rank": "Σσ²/σ₁²",
    "rank": "singular values that rounding leaves",
    "condition": "σ₁ over the smallest singular value that rounding leaves",
}
"""What `sizes` returns, to its definition."""


def decomposed(x: Tensor, *, centre: bool = False) -> Directions:
    """Return singular values (r,) and right singular vectors (n, r) of finite x (m, n), in double precision.

    `centre` takes the mean row away first. Values below max(m, n) times the rounding unit of x's own number format,
    relative to the largest, are set to exactly 0.

    >>> decomposed(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])).values.tolist()
    [4.0, 3.0]
    """
    x, size, floor = _scaled(x)
    if size == 0.0:
        return directions(x, gram=True)
    found = directions(x, centre=centre, gram=True)
    held = found.values > floor * max(float(found.values[0]), 1.0)
    return replace(found, values=torch.where(held, size * found.values, 0.0))


def singular_values(x: Tensor, *, centre: bool = False) -> Tensor:
    """Return the singular values (r,) that `decomposed` gives, in less than half of its time."""
    x, size, floor = _scaled(x)
    if size == 0.0:
        return x.new_zeros(min(x.shape))
    x = centred(x, centre)
    squares = torch.linalg.eigvalsh(x.mT @ x if len(x) >= x.shape[1] else x @ x.mT)
    values = squares.clamp(min=0).sqrt().flip(0)
    held = values > max(floor, math.sqrt(max(x.shape) * torch.finfo(x.dtype).eps)) * max(float(values[0]), 1.0)
    return torch.where(held, size * values, 0.0)


def sizes(values: Tensor) -> dict[str, float]:
    """Return the numbers of `SIZES` for singular values (r,): 0 where all vanish, and then no condition.

    >>> sizes(torch.tensor([2.0, 2.0, 0.0]))["stable_rank"], sizes(torch.zeros(2))["effective_rank"]
    (2.0, 0.0)
    """
    held = values[values > 0]
    if not len(held):
        return {"effective_rank": 0.0, "participation": 0.0, "stable_rank": 0.0, "rank": 0.0}
    power = (held / held[0]).square()
    return {
        "effective_rank": float(effective_rank(held / held[0])),
        "participation": float(power.sum().square() / power.square().sum()),
        "stable_rank": float(power.sum()),
        "rank": float(len(held)),
        "condition": float(held[0] / held[-1]),
    }


def mean_share(x: Tensor) -> float:
    """Return m·‖mean row‖²/‖X‖² of x (m, n): the share of the energy that all rows have in common; 0 for zeros.

    Close to 1, the features lie in a narrow cone and σ₁ is little else than their mean.
    """
    x = x.detach().double()
    total = float(x.square().sum())
    return len(x) * float(x.mean(0).square().sum()) / total if total > 0 else 0.0


def random_values(m: int, n: int) -> Tensor:
    """Return the singular values (min(m, n),) of an (m, n) matrix of i.i.d. numbers of variance 1, largest first.

    Quantiles (i - ½)/r of the Marchenko-Pastur law, the limit of large m and n: for i.i.d. numbers the values of one
    draw are this far apart and no further. With λ = 1 + β + 2√β·cos φ the law has the density (2/π)·sin²φ/λ in φ.

    >>> round(float(random_values(400, 100)[0])), round(float(random_values(400, 100)[-1]))
    (30, 10)
    """
    small, large = sorted((m, n))
    beta = small / large
    phi = torch.linspace(0, math.pi, 8193, dtype=torch.float64)
    lam = 1 + beta + 2 * math.sqrt(beta) * phi.cos()
    density = torch.where(lam > 1e-12, 2 / math.pi * phi.sin().square() / lam.clamp(min=1e-12), 2 / math.pi)
    share = torch.cumulative_trapezoid(density, phi).numpy()
    places = (np.arange(small) + 0.5) / small * share[-1]
    found = np.interp(places, np.concatenate([[0.0], share]), phi.numpy())
    return (large * (1 + beta + 2 * math.sqrt(beta) * torch.from_numpy(np.cos(found)))).sqrt()


def with_noise(x: Tensor, delta: float, draw: Tensor, *, centre: bool = False) -> Tensor:
    """Return the singular values (r,) of x (m, n) with i.i.d. noise of standard deviation δ, from a normal draw (m, n).

    Taken from a draw rather than from the limit theorems, which take few directions for strong among many: there
    √((σ² + δ²m)(σ² + δ²n))/σ above δ(mn)^¼ and the noise's own values below (Benaych-Georges and Nadakuditi, arXiv
    1103.2221). Features that fill half of their directions are far from that.
    """
    return singular_values(x.double() + delta * draw.double(), centre=centre)


def in_noise(found: Directions, change: Tensor) -> Tensor:
    """Return ‖E·vᵢ‖² (r,), the energy that a change E (m, n) has along each direction of the matrix it was added to."""
    return (change.double() @ found.basis).square().sum(0)


def kept(found: Directions, other: Directions) -> Tensor:
    """Return for k = 1…r how much of the k leading directions of one matrix lies in those of another (r,).

    ‖V_kᵀ·Ṽ_k‖²/k, the mean squared cosine of the principal angles: 1 where the spans agree, k/n by chance. Unlike the
    cosine of single vectors it does not ask in which order nearly equal singular values come.
    """
    squares = (found.basis.mT @ other.basis).square()
    inside = squares.cumsum(0).cumsum(1).diagonal()
    return inside / torch.arange(1, len(inside) + 1, dtype=inside.dtype)


def beyond(values: Tensor, deviation: float, m: int, n: int) -> int:
    """Return how many singular values lie beyond the edge s(√m + √n) of an i.i.d. matrix of standard deviation s.

    At finite size about one i.i.d. matrix in six has one value beyond (the Tracy-Widom law), so 0 and 1 mean chance.
    """
    return int((values > edge(deviation, m, n)).sum())


def leading(x: Tensor, share: float) -> Tensor:
    """Return orthonormal columns (m, p) that span what the p leading centred directions make of the rows of x (m, n).

    So many that they hold `share` of the energy, the rule of SVCCA (arXiv 1706.05806); none for a dead modality.
    """
    found = decomposed(x, centre=True)
    power = found.values.square()
    count = int((power.cumsum(0) < share * power.sum()).sum()) + 1
    count = min(count, int((found.values > 0).sum()))
    return centred(x.double()) @ found.basis[:, :count] / found.values[:count]


def canonical(u: Tensor, v: Tensor) -> Tensor:
    """Return the canonical correlations of two modalities, largest first, from `leading` columns (m, p) and (m, q).

    The cosines of the principal angles between the spans: invariant to any invertible linear map of what is kept.
    """
    return torch.linalg.svdvals(u.mT @ v).clamp(max=1.0)


def chance(p: int, q: int, rows: int) -> float:
    """Return the largest canonical correlation of p with q unrelated directions over centred rows, in the limit.

    √(x(1 - y)) + √(y(1 - x)) with x = p/(rows - 1), y = q/(rows - 1) (Wachter, 1980); 1 where x + y reaches 1, when
    some correlations are perfect by counting alone.

    >>> round(chance(10, 10, 1001), 3), chance(6, 6, 12)
    (0.199, 1.0)
    """
    x, y = (min(count / max(rows - 1, 1), 1.0) for count in (p, q))
    return 1.0 if x + y >= 1 else math.sqrt(x * (1 - y)) + math.sqrt(y * (1 - x))


def _scaled(x: Tensor) -> tuple[Tensor, float, float]:
    """Return x (m, n) with largest entry 1, in double precision; that entry; and what rounding makes of an entry.

    Scaled, since the squares of very small or very large numbers leave the range of the format. Rounding goes with the
    size of x itself, also where a mean row that is taken away was nearly all of it.
    """
    floor, x = max(x.shape) * torch.finfo(x.dtype).eps, x.detach().double()
    size = float(x.abs().max())
    return (x / size if size > 0 else x), size, floor
