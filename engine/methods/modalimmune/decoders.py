"""Linear decoders of each modality's features from the others', refitted in closed form from running second moments.

Z (B, D) holds the features of all modalities side by side, R (D, D) is their running correlation matrix. The decoder of
modality m from all others s is the ridge regression on standardised features, A_m = R_ms (R_ss + λI)⁻¹. One inverse
gives all of them: with Θ = (R + λI)⁻¹, A_m = -(Θ_mm)⁻¹ Θ_ms, by the inverse of a matrix of blocks; λ on the target's
own block has no part in it. Nothing is asked of the host.

What is minimised is the share of m's variance that its decoder leaves, 1 - R² as the probe `reconstruction` has it, the
decoder held as it is and the target without gradient: the gradient goes to the sources only. Were it to go to the
target as well, the nearest way to a small error would be a target that keeps what the others know already and loses
the rest, or shrinks; with the sources alone, an encoder is asked to carry what another modality holds. It is the
asymmetry by which self-distillation does not collapse (Grill et al., 2020), here for another reason: no source can make
the target easier. Over many steps each modality is source as well as target, and a source may still drop what does not
help, so this is no guarantee against features that hold the class and nothing else.

*Source*: ours. Ridge regression by the precision matrix: Lauritzen, Graphical Models, 1996, proposition 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DECAY = 0.99
"""What is left of a step's share in the moments after the next one."""
RIDGE = 0.01
"""λ, in units of a standardised feature's variance."""


def followed(state: Mapping[str, Tensor] | None, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the moments after the features (B, D_m) of one more batch; `state` is None before the first.

    `weight` () is 1 - DECAY^t; `mean` (D,) and `covariance` (D, D) are averages over all rows so far, a batch t steps
    back with the share DECAY^t of the newest one's: exactly the moments of the rows with those weights, since what
    the batches' means differ by is in the covariance. A batch that is not finite leaves everything as it was.
    """
    z = torch.cat([h.detach() for h in features.values()], 1)
    mean = z.mean(0)
    centred = z - mean
    covariance = centred.T @ centred / len(z)
    if state is None:
        state = {"weight": z.new_zeros(()), "mean": torch.zeros_like(mean), "covariance": torch.zeros_like(covariance)}
    weight = DECAY * state["weight"] + (1 - DECAY)
    share, apart = (1 - DECAY) / weight, mean - state["mean"]
    changed = {
        "weight": weight,
        "mean": state["mean"] + share * apart,
        "covariance": (1 - share) * state["covariance"] + share * covariance + share * (1 - share) * apart.outer(apart),
    }
    sound = z.isfinite().all()
    return {key: torch.where(sound, changed[key], state[key]) for key in changed}


def remembered(weight: float, state: Mapping[str, Any], features: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what changes in a method's state: its `decoders`, the moments, go on where the term has a weight.

    Without weight they are forgotten, so that decoders begin anew when the term does.
    """
    if weight > 0.0:
        return {"decoders": followed(state.get("decoders"), features)}
    return {"decoders": None} if state.get("decoders") is not None else {}


def decoders(moments: Mapping[str, Tensor], sizes: Mapping[str, int], ridge: float = RIDGE) -> dict[str, Tensor]:
    """Return modality to its decoder (D_m, D) from all features as they are: zero at its own, in the features' units.

    `sizes` maps the modalities to D_m, in the order of the moments. Constant features are not read.
    """
    spread = _spread(moments)
    inverse = torch.where(spread > 0, 1.0 / spread, 0.0)
    correlation = inverse[:, None] * moments["covariance"] * inverse
    penalty = ridge * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
    lower, _ = torch.linalg.cholesky_ex(correlation + penalty)
    precision, found = torch.cholesky_inverse(lower), {}
    for name, where in _places(sizes).items():
        block, _ = torch.linalg.cholesky_ex(precision[where, where])
        weights = -torch.cholesky_solve(precision[where], block)
        weights = weights * _outside(where, weights)
        found[name] = spread[where, None] * weights * inverse
    return found


def unexplained(features: Mapping[str, Tensor], moments: Mapping[str, Tensor], ridge: float = RIDGE) -> Tensor:
    """Return for each modality the share of its variance that the others' decoder leaves, (M,), for features (B, D_m).

    Σ|z_m - decoded|²/(B·Σ var), the variances being those of the moments; 0 for a modality that is constant. The
    gradient goes to the sources only: `moments`, decoders and targets are held as they are.
    """
    sizes = {name: h.shape[1] for name, h in features.items()}
    with torch.no_grad():
        maps, spread = decoders(moments, sizes, ridge), _spread(moments)
    z, shares = torch.cat(list(features.values()), 1) - moments["mean"], []
    for name, where in _places(sizes).items():
        missed = z[:, where].detach() - z @ maps[name].T
        total = spread[where].square().sum()
        shares.append(missed.square().sum() / len(z) * torch.where(total > 0, 1.0 / total, 0.0))
    return torch.stack(shares)


def term(features: Mapping[str, Tensor], moments: Mapping[str, Tensor] | None, target: Any) -> Tensor:
    """Return the share of the variance of one modality that the others' decoder leaves (0-d), 0 without moments.

    `target` is its number, or a tensor that holds it (0-d); of a negative one the term is 0.
    """
    if moments is None:
        return next(iter(features.values()))[:0].sum()
    shares = unexplained(features, moments)
    return torch.where(torch.arange(len(shares), device=shares.device) == target, shares, 0.0).sum()


def _spread(moments: Mapping[str, Tensor]) -> Tensor:
    """Return the standard deviations (D,) of the moments, 0 where rounding is all there is."""
    variance, mean = moments["covariance"].diagonal(), moments["mean"]
    rounding = (4 * torch.finfo(mean.dtype).eps * mean).square()
    return torch.where(variance > rounding, variance, 0.0).sqrt()


def _places(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Return modality to the columns of its features."""
    found, start = {}, 0
    for name, size in sizes.items():
        found[name] = slice(start, start + size)
        start += size
    return found


def _outside(where: slice, like: Tensor) -> Tensor:
    """Return 1 in the columns outside `where` and 0 within, (D,)."""
    kept = torch.ones_like(like[0])
    kept[where] = 0.0
    return kept
