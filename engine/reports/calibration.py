"""The records that show what calibration made of the gradients at one modality's features. See `calibration`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.needs import PATIENCE
from modalscape.engine.core.records import Bars, Matrix, Record, Scalar
from modalscape.engine.maths.gradients.angles import cosine
from modalscape.engine.maths.gradients.calibration import Choices, Found, gains

_PANELS: dict[str, Display] = {
    "weight": Display(panel="Weight of each loss", place=1),
    "precision": Display(
        panel="Precision of each loss's gradient",
        place=2,
        note="Median; the band is as wide as 5 % to 95 % lie apart. A saturated row is precise, but about nothing.",
    ),
    "cosine_to_sum": Display(
        panel="Calibrated beside plain: direction",
        place=3,
        levels={"same direction": 1.0},
        note="Where the cosine stays at 1, calibration changes nothing but the length.",
    ),
    "norm_ratio": Display(panel="Calibrated beside plain: length", place=4, levels={"as long": 1.0}),
    "gain": Display(
        panel="Calibrated beside plain: sensitive coordinates",
        place=4.5,
        levels={"as all": 1.0},
        note="Length over the losses', beside that of all coordinates; a quarter each, by variance over mean².",
    ),
    "sign_disagreement": Display(panel="Do the losses contradict each other?", place=5, label="signs differ"),
    "uncertainty": Display(panel="Uncertainty of each opinion", place=6),
    "fused_uncertainty": Display(panel="Uncertainty of the fused opinion", place=6.5),
}
"""Quantity to the chart that it shares; other quantities have charts of their own, folded."""

_CONFLICT = _PANELS["sign_disagreement"] | Display(label="conflict mass", role="limit")


def unweighed(params: Any, state: Mapping[str, Any], wanted: tuple[bool, ...], view: Any) -> str:
    """Return why BOGC-MML weighs no losses, and what would let it; empty where it does, or will within some steps.

    `wanted` says whether losses that are, or are not, a modality's own are calibrated. Of `view` theta, batch and
    problem are read.
    """
    problem, few = view.problem, view.batch.rows(slice(0, 2))
    with torch.no_grad():
        losses, _ = problem.objectives(view.theta, problem.encode(view.theta, few), few)
    taken = [name for name in losses if (name in problem.modalities) in wanted]
    if not any({"fused", name} <= set(taken) for name in problem.modalities):
        own = [name for name in problem.modalities if name in losses]
        remedy = "set bogc.calibrate to all" if own else "start a run with unimodal set to heads"
        return f"BOGC-MML has one loss on each encoder, so it averages over heads and weighs nothing; {remedy}."
    epoch = max(state["rows"] // len(view.batch), 1)
    if round(params.warmup * epoch) - state["seen"] > PATIENCE:
        return f"BOGC-MML trains plainly for {params.warmup:g} epochs of {epoch:,} steps; lower bogc.warmup."
    return ""


READING_NOTES = {
    "trust": "Reading O1, trust: each loss's opinion is whether its gradient can be trusted, weights go by belief.",
    "confident_trust": "Reading O1 with confidence: as trust, and shorter where all opinions together are unsure.",
    "sources": "Reading O2, sources: the losses are the hypotheses of one opinion, weights are smoothed evidence.",
    "signed": "Reading O3, signed: opinions are about up or down, so gradients of opposite sign make conflict.",
    "inverse_variance": "Reading O4, inverse variance: weights go by evidence alone; by precision it is BayesAgg-MTL.",
}
"""Reading to a sentence on it."""


def summaries(prefix: str, modality: str, found: Found, mode: str, choices: Choices) -> Iterator[Scalar]:
    """Yield the numbers of one modality: precision, uncertainty, weights, directions, reliability of the moments."""
    reading, whole = choices.reading, _whole(found)
    heeded = reading == "signed" or choices.conflict > 0
    c, m, plain = found.calibration, found.moments, found.moments.plain.sum(0)
    tiny = torch.finfo(plain.dtype).tiny
    logs = found.precision.flatten(1).log10()
    low, middle, high = torch.quantile(logs, logs.new_tensor([0.05, 0.5, 0.95]), dim=1)
    spread = c.weights.flatten(1).std(1, correction=0)
    gradient = found.gradient
    single = {
        "precision": (middle, "median log10 of 1/variance; band: ± half the 5-95 % range", "log10 precision"),
        "precision_low": (low, "5 % quantile of log10 precision", "log10 precision"),
        "precision_high": (high, "95 % quantile of log10 precision", "log10 precision"),
        "uncertainty": (c.uncertainty.flatten(1).mean(1), "mean u of the source's opinion", "uncertainty u"),
        "weight": (c.weights.flatten(1).mean(1), "mean weight share; band: spread over rows and coordinates", "share"),
        "shift": (norms(m.mean - m.plain) / norms(m.plain).clamp(min=tiny), "‖mean - plain‖/‖plain‖", "share"),
        "snr": ((m.mean.square() / m.variance).flatten(1).median(1).values, "median mean²/variance", "SNR"),
        "cosine_to": (cosines(gradient, m.plain), "cosine of calibrated and this source's gradient", "cosine"),
        "sampling_to_posterior": (
            m.plain.var(1, correction=0).mean(1) / len(plain) / m.variance.flatten(1).mean(1),
            "variance of the batch mean by its rows / mean posterior variance",
            "ratio",
        ),
    }
    bands = {"precision": (high - low) / 2, "weight": spread}
    rows = [*(value for value, _, _ in single.values()), *bands.values()]
    table = torch.stack([row.double() for row in rows]).tolist()
    errors = dict(zip(bands, table[len(single) :], strict=True))
    numbers = torch.stack([value.double() for value, _, _ in whole.values()]).tolist()
    n, equal = len(plain), 1 / len(found.sources)
    notes = {
        "weight": Display(
            levels={"equal": equal}, note=f"{READING_NOTES[reading]} No band: a plain mean of the losses."
        ),
        "sign_disagreement": Display() if heeded else Display(note=f"There is no conflict mass in reading {reading}."),
        "conflict": _CONFLICT if heeded else Display(),
    }
    for (name, (_, what, axis)), values in zip(single.items(), table[: len(single)], strict=True):
        for k, source in enumerate(found.sources):
            display = Display(y=axis) | _PANELS.get(name, Display()) | notes.get(name, Display())
            display |= Display(label=_label(modality, source))
            error = errors[name][k] if name in errors else None
            path = f"{prefix}/{name}/{modality}/{source}"
            yield Scalar(path, values[k], error, n=n, mode=f"{what}; {mode}", display=display)
    for (name, (_, what, axis)), value in zip(whole.items(), numbers, strict=True):
        display = Display(y=axis) | _PANELS.get(name, Display()) | notes.get(name, Display())
        yield Scalar(f"{prefix}/{name}/{modality}", value, n=n, mode=f"{what}; {mode}", display=display)
    for kind, value in zip(("insensitive", "sensitive"), gains(found).tolist(), strict=True):
        what = f"length over that of the losses' gradients, the {kind} quarter of coordinates beside all of them"
        display = Display(y="ratio", label=f"{modality}, {kind}") | _PANELS["gain"]
        yield Scalar(f"{prefix}/gain/{modality}/{kind}", value, n=n, mode=f"{what}; {mode}", display=display)


def precision_map(prefix: str, modality: str, found: Found, mode: str) -> Matrix:
    """Return log10 precision by source and coordinate, batch mean, coordinates sorted by the first source's."""
    logs = found.precision.log10().mean(1)
    order = logs[0].argsort(descending=True)
    title = f"Precision by coordinate: {modality}"
    display = Display(panel=title, place=7, note="log10, mean over the rows; sorted by the first row.")
    return _map(
        f"{prefix}/precision_map/{modality}", found, logs[:, order], f"mean log10 precision; {mode}", order, display
    )


def maps(prefix: str, modality: str, found: Found, mode: str) -> Iterator[Record]:
    """Yield batch means by source and coordinate: moments, precision, evidence, uncertainty, weight, conflict."""
    c, m = found.calibration, found.moments
    quantities = {
        "mean_map": (m.mean.mean(1), "mean gradient"),
        "variance_map": (m.variance.log10().mean(1), "mean log10 variance"),
        "precision_map": (found.precision.log10().mean(1), "mean log10 precision"),
        "evidence_map": (found.evidence.mean(1), "mean evidence"),
        "uncertainty_map": (c.uncertainty.mean(1), "mean uncertainty u"),
        "weight_map": (c.weights.mean(1), "mean weight share"),
    }
    for name, (values, what) in quantities.items():
        yield _map(f"{prefix}/{name}/{modality}", found, values, f"{what}; {mode}")
    labels = np.array([str(i) for i in range(m.mean.shape[2])])
    values = c.conflict.mean(0).double().cpu().numpy()
    what = f"mean conflict of a coordinate; {mode}"
    yield Bars(
        f"{prefix}/conflict_map/{modality}", labels, values, n=m.mean.shape[1], mode=what, display=Display(title=what)
    )


def _whole(found: Found) -> dict[str, tuple[Tensor, str, str]]:
    """Return name to the number (0-d) of all sources together, what it is, and its axis."""
    c, m, gradient = found.calibration, found.moments, found.gradient
    plain, tiny = m.plain.sum(0), torch.finfo(m.plain.dtype).tiny
    return {
        "fused_uncertainty": (c.fused.mean(), "mean u of the fused opinion", "uncertainty u"),
        "conflict": (c.conflict.mean(), "mean mass on contradicting hypotheses", "share"),
        "sign_disagreement": (
            (m.mean.sign().amax(0) > m.mean.sign().amin(0)).double().mean(),
            "share of coordinates whose sources differ in sign",
            "share",
        ),
        "cosine_to_sum": (cosines(gradient, plain[None])[0], "cosine of calibrated and summed gradient", "cosine"),
        "norm_ratio": (
            norms(gradient[None])[0] / norms(plain[None])[0].clamp(min=tiny),
            "‖calibrated‖/‖sum‖",
            "ratio",
        ),
        "damped": (
            (gradient.abs() < 0.5 * plain.abs()).double().mean(),
            "share of coordinates shortened by more than half",
            "share",
        ),
    }


def _map(
    name: str, found: Found, values: Tensor, what: str, order: Tensor | None = None, asked: Display | None = None
) -> Matrix:
    places = range(values.shape[1]) if order is None else order.tolist()
    cols = np.array([str(i) for i in places])
    display = Display(title=what.split(";")[0].capitalize(), x="coordinate of the features", y="source") | (
        asked or Display()
    )
    values = values.double().cpu().numpy()
    return Matrix(
        name, np.array(found.sources), cols, values, n=found.moments.mean.shape[1], mode=what, display=display
    )


def _label(modality: str, source: str) -> str:
    return "own loss" if source == modality else f"{source} loss"


def norms(values: Tensor) -> Tensor:
    """Return the length of each of `values` (K, B, d), of small ones too, whose squares no float holds."""
    values = values.flatten(1)
    largest = values.abs().amax(1).clamp(min=torch.finfo(values.dtype).tiny)
    return (values / largest[:, None]).norm(dim=1) * largest


def cosines(one: Tensor, others: Tensor) -> Tensor:
    """Return the cosine of `one` (B, d) with each of `others` (K, B, d), 0 where one of them vanishes."""
    return torch.stack([cosine(one.flatten(), other.flatten()) for other in others])
