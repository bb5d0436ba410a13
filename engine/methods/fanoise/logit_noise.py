"""How far noise on features moves the logits of InfoNCE, and the dose that moves them by a wanted amount.

Letters as in `feature_noise`; K (M, n) are the rows that a modality is compared with, its keys, and τ the temperature.
A row of noise N for α = 1 has the covariance C (n, n). With x̃ = x + α·N the logit x̃·k/τ has the expectation x·k/τ and
the variance α²·kᵀCk/τ². The mean of kᵀCk over the keys is tr(C·KᵀK)/M, and its root is the *spread* here:

- uniform, all n directions, keys of length 1: 1/√n, so that the noise of a logit is α/(√n·τ);
- any shape S: √(Σᵢ Sᵢ²·mean_k (k·vᵢ)²/n), more than that of uniform noise of the same energy as far as the keys lie
  along the directions where S is large;
- mixtures of rows, (1/(√n·c))·g·X: ‖X·Kᵀ‖/(√(n·M)·c).

Exact for the product of noisy rows with clean ones. Noise on both sides adds the variances of the two and
αₐ²·α_b²·tr(CₐC_b)/τ². A loss that normalises noisy rows anew divides by their length, about √(1 + α²·energy).

*Source*: ours; of FANoise (arXiv 2511.20997) is the noise alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from modalscape.engine.maths.features.feature_noise import Mixture, Shape

MOST = 10.0
"""The largest dose α, for whoever sets it and for the one that is worked out here."""


def keys_of(features: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the rows of length 1 (M, n) of all modalities but `name`, without graph; rows of length 0 stay 0.

    In single precision at least. `features` maps modalities to (m, n).
    """
    rows = torch.cat([h.detach() for other, h in features.items() if other != name])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def spread(form: Shape | Mixture, keys: Tensor) -> Tensor:
    """Return the root of the mean of kᵀCk (0-d) over keys (M, n), for noise of that form and α = 1."""
    if isinstance(form, Mixture):
        return (form.rows @ keys.mT).norm() / (math.sqrt(len(keys)) * form.size)
    inside = (keys @ form.basis).square().mean(0)
    across = keys.square().sum(1).mean() - inside.sum()
    total = (inside * form.scale.square()).sum() + across.clamp(min=0) * form.rest.square()
    return (total / keys.shape[1]).sqrt()


def alpha_for(target: float, temperature: float, spread: Tensor) -> Tensor:
    """Return the dose α (0-d) whose noise has the standard deviation `target` in a logit: target·τ/spread.

    At most `MOST`; 0 where the noise reaches no logit.
    """
    wanted = target * temperature / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    return torch.where(spread > 0, wanted.clamp(max=MOST), 0.0)
