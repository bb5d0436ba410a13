"""Linear heads read off a network by what they do, and the gradients that arrive at the features through random heads.

A *source* is one loss with its head: z = W h + b on one modality's features or on several side by side, followed by
cross-entropy or by squared error. Its gradient at the features of one row is g = Wᵀ(σ(z) - t), σ the softmax or the
identity and t the one-hot label or the target; the mean over the batch, 1/B, is left out here. B rows, d features,
C outputs, S draws; a head is (C, d+1) with the bias in the last column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from modalscape.engine.errors import InputError

FLOOR = 1e-8
"""Smallest variance of a gradient coordinate; keeps precisions finite where a row is saturated."""

_DRAWS, _CACHED = 256, 131_072
"""Draws whose heads are made at a time, and numbers in the gradients made at a time, so that these stay in cache."""

Objectives = Callable[[dict[str, Tensor], Tensor], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]


@dataclass(frozen=True)
class Head:
    """One source's last layer."""

    weight: Tensor
    """(C, d+1), the bias last."""
    inputs: tuple[str, ...]
    """The modalities whose features it reads, side by side."""
    classes: bool
    """True: softmax and cross-entropy. False: squared error, ½ ‖z - t‖² a row."""

    def joined(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return its input (B, d+1), the last column one, from features (B, D) by modality."""
        x = torch.cat([features[name] for name in self.inputs], -1)
        return F.pad(x, (0, 1), value=1.0)

    def targets(self, y: Tensor) -> Tensor:
        """Return t (B, C) of classes (B,) int, or of real targets (B,)."""
        if y.is_floating_point():
            return y[:, None].to(self.weight.dtype)
        classes = torch.arange(len(self.weight), device=y.device)  # one_hot would ask for the largest label
        return (y[:, None] == classes).to(self.weight.dtype)

    def outputs(self, z: Tensor, axis: int = -1) -> Tensor:
        """Return σ(z) of logits whose classes lie along `axis`."""
        return z.softmax(axis) if self.classes else z


@dataclass(frozen=True)
class Moments:
    """A gradient at the features: as it is, and its mean and variance when the head is drawn; each (…, B, d)."""

    plain: Tensor
    mean: Tensor
    variance: Tensor

    def at(self, where) -> Moments:
        """Return the moments that `where` selects."""
        return Moments(self.plain[where], self.mean[where], self.variance[where])


def linear_heads(objectives: Objectives, features: Mapping[str, Tensor], y: Tensor) -> dict[str, Head]:
    """Return the head of every loss that has logits.

    `objectives(features, y)` returns losses and logits; `features` (B, D) by modality, `y` (B,). The head is found by
    evaluating the unit vectors, so no parameter's name matters, and is checked on the given rows. A row named after a
    modality whose logits depend on that modality alone has this one input; any other row has all.

    Raises:
        InputError: no loss has logits, logits are not linear in the features, or a loss is neither of the two known.
    """
    unit, _ = _at_unit_vectors(objectives, features, y)
    with torch.no_grad():
        losses, logits = objectives({name: value.detach() for name, value in features.items()}, y)
    named = [name for name in losses if name in logits]
    heads = {name: _head(name, unit[name], logits[name], losses[name], features, y) for name in named}
    if not heads:
        raise InputError(
            f"Gradient evidence needs a loss on logits, and {', '.join(losses) or 'nothing'} is on features alone; "
            f"choose objective=cross_entropy or squared_error."
        )
    return heads


def reread(
    heads: Mapping[str, Head], objectives: Objectives, features: Mapping[str, Tensor], y: Tensor
) -> dict[str, Head]:
    """Return the heads with the weights that they have now; what `linear_heads` found out about them is not checked.

    `features` (B, D) by modality and `y` (B,) only say how wide the inputs and of what type the labels are.
    """
    unit, widths = _at_unit_vectors(objectives, features, y)
    found = {}
    for name, head in heads.items():
        weight, bias = _affine(unit[name])
        if len(head.inputs) < len(widths):
            pieces = dict(zip(widths, weight.split(list(widths.values()), -1), strict=True))
            weight = torch.cat([pieces[modality] for modality in head.inputs], -1)
        found[name] = Head(torch.cat([weight, bias[:, None]], -1), head.inputs, head.classes)
    return found


def gradient_moments(head: Head, x: Tensor, y: Tensor, centre: Tensor, draws: Tensor, floor: float = FLOOR) -> Moments:
    """Return the gradient (B, d) of each row at its features, and its mean and variance over heads centre + draws.

    `x` (B, d+1) is the head's input, `centre` (C, d+1), `draws` (S, C, d+1). The relative error of the variance is
    about √(2/S), more where rows are saturated: there few draws make the most of it. Sums are of g_s - g, so nothing
    cancels where the draws are small, and the class axis is contracted away draw by draw ("scd,scb->sdb"), where the
    multiclass code of BayesAgg-MTL keeps (S, B, C, d).
    """
    target = head.targets(y).T
    plain = head.weight[:, :-1].T @ (head.outputs(head.weight @ x.T, 0) - target)
    few = min(max(_CACHED // max(plain.numel(), 1), 8), _DRAWS)
    ones = plain.new_ones(1, few)
    total, squares = plain.new_zeros(1, plain.numel()), plain.new_zeros(1, plain.numel())
    for delta in draws.split(_DRAWS):
        weights = centre + delta
        z = (weights.view(-1, x.shape[1]) @ x.T).view(len(delta), -1, len(x))
        errors = head.outputs(z, 1).sub_(target)
        for w, error in zip(weights[..., :-1].mT.split(few), errors.split(few), strict=True):
            off = torch.bmm(w, error).sub_(plain).flatten(1)
            # sums over draws as products: several times faster than a reduction over the first axis
            total.addmm_(ones[:, : len(off)], off)
            squares.addmm_(ones[:, : len(off)], off.square_())
    shift = total.view_as(plain) / len(draws)
    variance = (squares.view_as(plain) / len(draws) - shift.square()).clamp(min=floor)
    return Moments(plain.T, (plain + shift).T, variance.T)


def at_modalities(
    heads: Mapping[str, Head], moments: Mapping[str, Moments], features: Mapping[str, Tensor]
) -> dict[str, tuple[list[str], Moments]]:
    """Return modality to its sources and their moments, stacked (K, B, D); both by source, `moments` (B, d).

    The sources of a modality are those whose head reads it: the fused loss, and its own where there is one. That is two
    gradients an encoder, whatever the widths. A modality that no head reads is left out.
    """
    found = {}
    for modality, value in features.items():
        names, pieces = [], []
        for name, head in heads.items():
            if modality in head.inputs:
                start = sum(features[other].shape[1] for other in head.inputs[: head.inputs.index(modality)])
                names.append(name)
                pieces.append(moments[name].at((..., slice(start, start + value.shape[1]))))
        if names:
            stacked = (torch.stack([getattr(p, field) for p in pieces]) for field in ("plain", "mean", "variance"))
            found[modality] = (names, Moments(*stacked))
    return found


def _at_unit_vectors(
    objectives: Objectives, features: Mapping[str, Tensor], y: Tensor
) -> tuple[Mapping[str, Tensor], dict[str, int]]:
    """Return the logits (1 + ΣD, C) at zero and at the unit vectors, and each modality's width D."""
    widths = {name: value.shape[1] for name, value in features.items()}
    like = next(iter(features.values()))
    unit = torch.eye(sum(widths.values()) + 1, dtype=like.dtype, device=like.device)[:, 1:]
    with torch.no_grad():
        _, logits = objectives(
            dict(zip(widths, unit.split(list(widths.values()), -1), strict=True)), y[:1].expand(len(unit))
        )
    return logits, widths


def _affine(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (C, ΣD) and bias (C,) from the logits at zero and at the unit vectors."""
    return (z[1:] - z[0]).T, z[0]


def _head(name: str, unit: Tensor, z: Tensor, loss: Tensor, features: Mapping[str, Tensor], y: Tensor) -> Head:
    """Return the head of one loss from its logits at zero and the unit vectors, checked on those of real rows."""
    weight, bias = _affine(unit)
    x = torch.cat([value.detach() for value in features.values()], -1)
    # a comparison with nan is false: a run that has diverged is not mistaken for a network of another kind
    if ((x @ weight.T + bias - z).abs() > 1e-3 * (1 + z.abs().max())).any():
        raise InputError(
            f"Gradient evidence needs logits that are linear in the features, and those of {name!r} are not; choose "
            f"fusion=concat or fusion=sum."
        )
    inputs = tuple(features)
    if name in features:
        pieces = dict(zip(features, weight.split([v.shape[1] for v in features.values()], -1), strict=True))
        if not any(piece.any() for other, piece in pieces.items() if other != name):
            inputs, weight = (name,), pieces[name]
    weight = torch.cat([weight, bias[:, None]], -1)
    for classes in (True, False):
        if not (classes and y.is_floating_point()):
            head = Head(weight, inputs, classes)
            expected = F.cross_entropy(z, y) if classes else 0.5 * (z - head.targets(y)).square().sum(1).mean()
            if not (expected - loss).abs() > 1e-3 * (1 + loss.abs()):
                return head
    raise InputError(
        f"Gradient evidence knows the mean of cross-entropy or of ½‖z - t‖² over a batch, and the loss {name!r} is "
        f"neither; choose objective=cross_entropy or squared_error."
    )
