"""What each modality says by itself, and where its encoder lies in the flat vector: shared by the balancing methods.

Logits are (B, C), features (B, D) by modality; a `fused` is a function from features to the fused logits, whose rows do
not see each other, so that several batches may pass it one below the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from modalscape.engine.core.layout import Layout
from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities import imbalance

Fused = Callable[[dict[str, Tensor]], Tensor]


def comparable(title: str, modalities: Sequence[str], y: Tensor, logits: Mapping[str, Tensor]) -> None:
    """Refuse a problem in which class probabilities cannot be compared between modalities; `title` names the method.

    Raises:
        InputError: the problem has no classes, or fewer than two modalities.
    """
    if y.is_floating_point() or "fused" not in logits:
        raise InputError(f"{title} compares class probabilities, but this problem has no classes; turn it off.")
    if len(modalities) < 2:
        raise InputError(f"{title} balances modalities, but this problem has only {modalities[0]!r}; turn it off.")


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """Return Σᵢ softmax(z)ᵢ,yᵢ (0-d), for logits (B, C) and classes y (B,)."""
    return logits.softmax(-1).gather(1, y[:, None]).sum()


def leads(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ρ_m, the score of each modality over the smallest of the others; for two, the products of ρ are 1."""
    return {
        name: score / torch.stack([s for other, s in scores.items() if other != name]).min()
        for name, score in scores.items()
    }


def fused_by(objectives: Callable[..., tuple[dict, dict]], theta: Tensor, batch: Any) -> Fused:
    """Return the function from features, a whole number of batches long, to the fused logits at theta (P,).

    `objectives` is a problem's, `batch` its (B,) labels, repeated for as many batches as come.
    """

    def fused(features: dict[str, Tensor]) -> Tensor:
        count = len(next(iter(features.values()))) // len(batch)
        return objectives(theta, features, replace(batch, y=batch.y.repeat(count)))[1]["fused"]

    return fused


def alone(
    modalities: Sequence[str], logits: Mapping[str, Tensor], features: Mapping[str, Tensor], fused: Fused
) -> dict[str, Tensor]:
    """Return modality to the logits (B, C) that it gives by itself, without graph.

    A modality's own logits where all have some (heads or slices); otherwise the fused ones with the features of all
    others at zero, where a linear fusion's bias counts whole for each.
    """
    if all(name in logits for name in modalities):
        return {name: logits[name].detach() for name in modalities}
    with torch.no_grad():
        # One pass over M batches, in the m-th of which only modality m is not zero.
        stacked = {name: _alone_at(i, features[name].detach(), len(modalities)) for i, name in enumerate(modalities)}
        return dict(zip(modalities, fused(stacked).split(len(features[modalities[0]])), strict=True))


def responses(present: Mapping[str, Tensor], absent: Mapping[str, Tensor], fused: Fused) -> dict[str, Tensor]:
    """Return φ_m (B, C), the share of each modality in the fused logits F; differentiable, and Σ_m φ_m = F(all).

    Shapley shares with F(none) = 0, from all 2^M - 1 sets of modalities in one pass: for two modalities
    φ_a = ½[F(a,v) - F(0,v) + F(a,0)]. `absent` (1, D) is what stands for a modality that is not in a set.
    """
    names = list(present)
    sets = [frozenset(s) for size in range(1, len(names) + 1) for s in combinations(names, size)]
    stacked = {
        name: torch.cat([present[name] if name in s else absent[name].expand_as(present[name]) for s in sets])
        for name in names
    }
    found = fused(stacked).split(len(present[names[0]]))
    shares = imbalance.shapley(dict(zip(sets, found, strict=True)) | {frozenset(): torch.zeros_like(found[0])})
    return {name: shares[name] for name in names}


def score(response: Tensor, y: Tensor) -> Tensor:
    """Return the batch mean of -log max(softmax(φ)_y, 1e-8) (0-d, nats), for φ (B, C) and classes y (B,)."""
    return -response.softmax(-1).gather(1, y[:, None]).clamp(min=1e-8).log().mean()


def ratio(scores: Tensor) -> Tensor:
    """Return exp(Σ_{j≠m} (s_j - s_m)/(M-1)) of scores (M,), (M,); for two the product is 1, for equal scores all are 1.

    >>> ratio(torch.tensor([2.0, 2.0, 2.0])).tolist()
    [1.0, 1.0, 1.0]
    """
    count = len(scores)
    return ((scores.sum() - count * scores) / (count - 1)).exp()


def places(layout: Layout, modality: str, convolutions: bool = False) -> list[slice]:
    """Return where the tensors of a modality's encoder lie in theta, heads left out; only 4-D weights if asked."""
    found, start = [], 0
    for (name, shape), size in zip(layout.shapes.items(), layout.sizes, strict=True):
        if name.startswith(f"encoders.{modality}.") and (len(shape) == 4 or not convolutions):
            found.append(slice(start, start + size))
        start += size
    return found


def encoder(layout: Layout, modality: str) -> list[slice]:
    """Return where a modality's encoder lies in theta, neighbours joined: one slice as a rule, none if frozen.

    >>> layout = Layout({"encoders.a.w": (2, 3), "encoders.a.b": (2,), "trunk.w": (4,)}, dict.fromkeys("abc", "shared"))
    >>> encoder(layout, "a")
    [slice(0, 8, None)]
    """
    joined: list[slice] = []
    for where in places(layout, modality):
        if joined and joined[-1].stop == where.start:
            where = slice(joined.pop().start, where.stop)
        joined.append(where)
    return joined


def columns(rows: Tensor, where: list[slice]) -> Tensor:
    """Return the columns of rows (K, P) that lie in the slices, side by side; a view where there is one slice."""
    return rows[:, where[0]] if len(where) == 1 else torch.cat([rows[:, :0], *(rows[:, w] for w in where)], 1)


def _alone_at(place: int, value: Tensor, count: int) -> Tensor:
    """Return `count` copies of value (B, D) below each other, all but one of them zero."""
    rows = len(value)
    copies = value.new_zeros(count * rows, *value.shape[1:])
    copies[place * rows : (place + 1) * rows] = value
    return copies
