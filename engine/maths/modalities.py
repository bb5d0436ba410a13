"""What one modality says by itself, and where its encoder lies in the flat vector: shared by the balancing methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from engine.knobs import InputError
from engine.layout import Layout


def comparable(title: str, modalities: Sequence[str], y: Tensor, logits: Mapping[str, Tensor]) -> None:
    """Refuse a problem in which class probabilities cannot be compared between modalities; `title` names the method.

    Raises:
        InputError: the problem has no classes, or fewer than two modalities.
    """
    if y.is_floating_point() or "fused" not in logits:
        raise InputError(f"{title} compares class probabilities, but this problem has no classes; turn it off.")
    if len(modalities) < 2:
        raise InputError(f"{title} balances modalities, but this problem has only {modalities[0]!r}; turn it off.")


def alone(
    modalities: Sequence[str],
    logits: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    fused: Callable[[dict[str, Tensor]], Tensor],
) -> dict[str, Tensor]:
    """Return modality to the logits (B, C) that it gives by itself, without graph.

    A modality's own logits where all have some (heads or slices). Otherwise `fused(features)`, the logits (B, C) of
    features (B, D), with the features of all others at zero: a linear fusion's bias then counts whole for each.
    """
    if all(name in logits for name in modalities):
        return {name: logits[name].detach() for name in modalities}
    with torch.no_grad():
        zero = {name: torch.zeros_like(value) for name, value in features.items()}
        return {name: fused(zero | {name: features[name].detach()}) for name in modalities}


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
