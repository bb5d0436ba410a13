"""How fast noise climbs out of a minimum: the trace of curvature times noise covariance, and how well the two align.

Everything is estimated from noise vectors z with covariance Σ and their Hessian-vector products, so neither matrix is
ever formed.
"""

from __future__ import annotations

import math

from torch import Tensor


def alignment(
    products: Tensor, squares: Tensor, trace: float, trace_error: float, size: int
) -> tuple[float, float] | None:
    """Return A = P·tr(HΣ)/(tr H·tr Σ) and its standard error, from z'Hz (n,) and ‖z‖² (n,) of n noise vectors.

    Isotropic noise has 1; noise along the top eigenvector has the largest value, P·λ_max/tr H. The error is that of a
    ratio to first order. None where there is no noise, or where tr H is not two errors above zero.
    """
    if not trace > 2 * trace_error or not squares.sum() > 0:
        return None
    products, squares = products.double(), squares.double()
    scale = size / (trace * float(squares.mean()))
    value = scale * float(products.mean())
    off = products - products.mean() / squares.mean() * squares
    error = scale * float(off.square().sum() / (len(off) - 1)) ** 0.5 / math.sqrt(len(off))
    return value, math.hypot(error, value * trace_error / trace)
