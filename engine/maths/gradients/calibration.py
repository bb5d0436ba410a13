"""Gradients at the features, calibrated: posteriors of the heads, moments, evidence and opinions, encoder by encoder.

Joins `laplace`, `last_layer` and `evidence` for the method that uses the result and the probe that shows it; what they
say about it is in `reports.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from modalscape.engine.maths.gradients import laplace
from modalscape.engine.maths.gradients.evidence import (
    EVIDENCE,
    READINGS,
    SIZES,
    Calibration,
    damped,
    precision,
    root_mean_square,
)
from modalscape.engine.maths.gradients.last_layer import Head, Moments, at_modalities, gradient_moments
from modalscape.engine.maths.modalities.unimodal import columns


class Choices(Protocol):
    """The knobs that say how; what each means stands where it is used."""

    reading: str
    evidence: str
    power: float
    average: bool
    by_coordinate: bool
    conflict: float
    size: str
    samples: int
    gamma: float
    centre: str
    form: str
    full_up_to: int


@dataclass(frozen=True)
class Found:
    """What the K sources of one modality say about its features; tensors (K, B, d)."""

    sources: list[str]
    moments: Moments
    precision: Tensor
    evidence: Tensor
    calibration: Calibration
    factor: Tensor
    """0-d, what the calibrated gradient is multiplied by, so that its size compares with a sum's."""

    @property
    def gradient(self) -> Tensor:
        """The calibrated gradient (B, d)."""
        return self.factor * self.calibration.parts.sum(0)


def posteriors(
    heads: Mapping[str, Head], features: Mapping[str, Tensor], y: Tensor, scale: float, choices: Choices
) -> tuple[dict[str, dict[str, Any]], dict[str, laplace.Factored]]:
    """Return each head's posterior as tensors, numbers and text, and its precision taken apart.

    A posterior is what the head reads, its curvature without the prior, and its mean (C, E), one Newton step from the
    head's weights. The rows (B, D), (B,) stand for `scale` times as many.
    """
    found, factors = {}, {}
    for name, head in heads.items():
        curvature = _curvature(head, features, choices).scaled(scale)
        slope = scale * _slope(head, features, y)
        factors[name] = curvature.factored(1 / choices.gamma)
        mean = laplace.newton_mean(factors[name], head.weight, slope, head.weight / choices.gamma)
        about = {"inputs": list(head.inputs), "classes": head.classes}
        found[name] = about | {"curvature": laplace.stored(curvature), "mean": mean}
    return found, factors


def heads_of(posterior: Mapping[str, Mapping[str, Any]]) -> dict[str, Head]:
    """Return the heads that the posteriors are of, at the posterior means."""
    return {name: Head(v["mean"], tuple(v["inputs"]), v["classes"]) for name, v in posterior.items()}


def draws(
    posterior: Mapping[str, Mapping[str, Any]],
    choices: Choices,
    noise: Callable[[str, Tensor], Tensor],
    batch: tuple[Mapping[str, Head], Mapping[str, Tensor], Tensor] | None = None,
    factors: Mapping[str, laplace.Factored] = MappingProxyType({}),
) -> tuple[dict[str, tuple[Tensor | None, Tensor]], int]:
    """Return each head's centre (C, E), None for its weights, with S draws around it (S, C, E); and the jitters.

    `noise(name, like)` gives standard normal numbers like its second argument. With `batch` (heads, features, y), the
    posterior is the prior of one more, which adds the batch: a Newton step that counts the batch twice if the posterior
    has seen it, as BayesAgg-MTL does. Without, `factors` of `posteriors`, where at hand, save taking it apart again.
    """
    drawn: dict[str, tuple[Tensor | None, Tensor]] = {}
    jitters = 0
    for name, values in posterior.items():
        curvature, mean = laplace.restored(values["curvature"]), values["mean"]
        tau = 1 / choices.gamma
        if batch is not None and name in batch[0]:
            head, features, y = batch[0][name], batch[1], batch[2]
            away = head.weight - mean
            pull = curvature.times(away) + tau * away
            factored = curvature.plus(_curvature(head, features, choices, curvature.kind)).factored(tau)
            mean = laplace.newton_mean(factored, head.weight, _slope(head, features, y), pull)
        else:
            factored = factors.get(name) or curvature.factored(tau)
        normal = noise(name, mean.expand(choices.samples, *mean.shape))
        drawn[name] = (mean if choices.centre == "newton" else None, factored.sample(laplace.centred(normal)))
        jitters += factored.jitters
    return drawn, jitters


def calibrated(
    heads: Mapping[str, Head],
    features: Mapping[str, Tensor],
    y: Tensor,
    drawn: Mapping[str, tuple[Tensor | None, Tensor]],
    choices: Choices,
) -> dict[str, Found]:
    """Return modality to its sources, moments, evidence and calibrated gradient, from features (B, D) by modality."""
    moments = {}
    for name, head in heads.items():
        centre, delta = drawn[name]
        centre = head.weight if centre is None else centre
        moments[name] = gradient_moments(head, head.joined(features), y, centre, delta)
    return {
        modality: weighed(names, m, choices) for modality, (names, m) in at_modalities(heads, moments, features).items()
    }


def weighed(names: list[str], m: Moments, choices: Choices) -> Found:
    """Return what the sources of these names, with moments (K, B, d), make of one modality's features.

    With `by_coordinate`, a source has one evidence for each coordinate, of mean squares and mean variances over the
    rows; with `average`, the precision alone is of the batch.
    """
    lam = precision(m.variance, 1 if choices.average or choices.by_coordinate else None)
    mean = root_mean_square(m.mean, 1) if choices.by_coordinate else m.mean
    e = EVIDENCE[choices.evidence](mean, lam, choices.power)
    calibration = damped(READINGS[choices.reading](m.mean, e), m.mean, e, choices.conflict)
    factor = SIZES[choices.size](calibration.parts, m.plain)
    return Found(names, m, lam, e, calibration, factor)


def gains(found: Found) -> Tensor:
    """Return how much the least and the most sensitive quarter of coordinates are lengthened, (2,).

    1 is as much as all coordinates together. Length is that of the calibrated gradient over the root of the sum of
    squares of the plain ones, which losses that cancel each other do not shorten. The sensitivity of a coordinate is
    its relative variance, Σ variance over Σ mean², over sources and rows.
    """
    m, tiny = found.moments, torch.finfo(found.precision.dtype).tiny
    order = (m.variance.sum((0, 1)) / m.mean.square().sum((0, 1)).clamp(min=tiny)).argsort()
    largest = m.plain.abs().amax().clamp(min=tiny)  # squares of small gradients are no floats
    calibrated, plain = found.gradient[:, order] / largest, m.plain[..., order] / largest
    few = max(len(order) // 4, 1)
    ratios = [
        calibrated[:, part].norm() / plain[..., part].norm().clamp(min=tiny)
        for part in (slice(None), slice(0, few), slice(-few, None))
    ]
    return torch.stack(ratios[1:]) / ratios[0].clamp(min=tiny)


def kept_shares(grads: Tensor, raw: Tensor, rows: list[int], where: list[slice]) -> Tensor:
    """Return by how much other methods scaled each row on slices of theta (len(rows),): ⟨grads, raw⟩/⟨raw, raw⟩.

    1 where a row vanishes. For a constant factor it is the factor; what was added at random hardly counts.
    """
    if grads is raw:
        return raw.new_ones(len(rows))
    before, after = columns(raw[rows], where), columns(grads[rows], where)
    power = before.square().sum(1)
    return torch.where(power > 0, (before * after).sum(1) / power.clamp(min=torch.finfo(power.dtype).tiny), 1.0)


def smallest_cosine(rows: Tensor) -> Tensor:
    """Return the smallest cosine (0-d) between two of the rows (K, P) that do not vanish; infinite if there is one."""
    return smallest_cosines((rows @ rows.T)[None])[0]


def smallest_cosines(tables: Tensor) -> Tensor:
    """Return the smallest cosine (N,) in each of N tables of inner products (N, K, K), as `smallest_cosine` does.

    A row whose squares are so small that their sum has lost its digits vanishes too.
    """
    numbers = torch.finfo(tables.dtype)
    powers = tables.diagonal(dim1=1, dim2=2)
    norms, there = powers.sqrt(), powers > numbers.tiny / numbers.eps**2
    pairs = torch.ones_like(tables[0]).triu(1).bool() & there[:, None] & there[:, :, None]
    cosines = (tables / (norms[:, None] * norms[:, :, None])).clamp(-1.0, 1.0)
    return torch.where(pairs, cosines, math.inf).flatten(1).amin(1)


def no_changes(like: Tensor) -> dict[str, Tensor]:
    """Return the memory before the first accuracy, on the device of `like`.

    `last` is the accuracy of the step before (not-a-number: none), `conflict` whether it was one of conflict, 1 or 0,
    and `table` (2, 3) count, sum and sum of squares of the changes after steps of conflict and after others.
    """
    about = {"dtype": torch.float64, "device": like.device}
    none = torch.full((), math.nan, **about)
    return {"last": none, "conflict": torch.zeros((), **about), "table": torch.zeros(2, 3, **about)}


def noted_change(memory: Mapping[str, Any], accuracy: Tensor, conflict: Tensor) -> dict[str, Tensor]:
    """Return the memory after a step with this batch accuracy and conflict, both 0-d; not-a-number: no accuracy.

    The change from one step's batch to the next is booked on the kind of the first of the two. Nothing is asked of the
    device. The memory may be one of an older version, which was made of lists.
    """
    if "table" not in memory:
        memory = _former_changes(memory, accuracy)
    change = accuracy.double() - memory["last"]
    row = torch.stack([torch.ones_like(change), change, change.square()])
    kind = torch.stack([memory["conflict"], 1 - memory["conflict"]])
    table = memory["table"] + kind[:, None] * torch.where(change.isfinite(), row, 0.0)
    return {"last": accuracy.double(), "conflict": conflict.double(), "table": table}


def _former_changes(memory: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    none = no_changes(like)
    last = none["last"] if memory["last"] is None else torch.full_like(none["last"], memory["last"])
    table = torch.tensor([memory["conflict"], memory["other"]], dtype=torch.float64, device=like.device)
    return {"last": last, "conflict": torch.full_like(last, float(memory["kind"] == "conflict")), "table": table}


def mean_changes(memory: Mapping[str, Any]) -> dict[str, tuple[float, float, int]]:
    """Return kind of step to the mean change, its standard error and the count, where there are two steps or more."""
    found = {}
    rows = memory["table"].tolist() if "table" in memory else [memory["conflict"], memory["other"]]
    for kind, (count, total, squares) in zip(("conflict", "other"), rows, strict=True):
        if count > 1:
            mean = total / count
            variance = max(squares / count - mean * mean, 0.0) * count / (count - 1)
            found[kind] = (mean, math.sqrt(variance / count), int(count))
    return found


def _curvature(head: Head, features: Mapping[str, Tensor], choices: Choices, kind: str = "") -> Any:
    x = head.joined(features)
    kind = kind or laplace.form(choices.form, *head.weight.shape, choices.full_up_to)
    p = head.outputs(x @ head.weight.T) if head.classes else None
    return laplace.KINDS[kind].of(x, p, len(head.weight))


def _slope(head: Head, features: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """Return the gradient (C, E) of the summed loss at the head's weights."""
    x = head.joined(features)
    return (head.outputs(x @ head.weight.T) - head.targets(y)).T @ x
