"""The records that show what feature noise did to a batch: spectra, signal to noise, sizes. See `feature_noise`.

x (m, n) is a batch of one modality's features and `noisy` (m, n) what became of it; `shapes` and `noise` hold, for each
scaling, the shape and one draw of (m, n).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Curve, Record, Scalar
from modalscape.engine.maths.features import feature_noise as maths
from modalscape.engine.maths.features.contrastive import normalised
from modalscape.engine.maths.features.feature_noise import SCALINGS, Directions, Mixture, Shape
from modalscape.engine.methods.fanoise import logit_noise as logits
from modalscape.engine.methods.fanoise.design import Design, drawn

_PANELS = {
    "spectrum": Display(
        panel="Singular values",
        place=1,
        note="Dashed: the energy that each clean direction has with noise. Below θc, i.i.d. noise would hide it.",
        x="direction",
        y="singular value",
        ylog=True,
    ),
    "snr": Display(
        panel="Signal to noise by direction",
        place=2,
        note="Slope 2 for uniform, 0 for linear, 1 for sublinear noise: points are measured, lines are predicted.",
        x="singular value",
        y="SNR",
        xlog=True,
        ylog=True,
    ),
    "scale": Display(panel="Noise scale", place=4, x="direction", y="S"),
    "alignment": Display(
        panel="What is left of each direction",
        place=5,
        x="direction",
        y="|cosine| of clean and noisy vector",
        note="Dotted: a lone direction in i.i.d. noise of the same energy. Equal values turn into each other.",
    ),
    "cosine": Display(panel="Rows by cos(x, x̃)", place=7.5, x="cosine with and without noise", y="share of rows"),
}
_ROLES = (
    {
        "before": Display(role="before"),
        "noise": Display(role="limit"),
        "predicted": Display(role="expected"),
        "limit": Display(role="limit"),
    }
    | {key: Display(hue=i) for i, key in enumerate(SCALINGS)}
    | {f"{key}/measured": Display(hue=i, points=True) for i, key in enumerate(SCALINGS)}
    | {f"{key}/predicted": Display(hue=i, role="expected") for i, key in enumerate(SCALINGS)}
)
_SLOPES = Display(
    panel="Slope of SNR against the singular value", place=3, label="", levels={"uniform: 2": 2.0, "sublinear: 1": 1.0}
)
_LINES = {
    "mean_cosine": Display(panel="Mean cos(x, x̃)", place=7.7, label="", y="cosine"),
    "noise_norm": Display(panel="Length of the noise", place=8, label=""),
    "noise_norm_expected": Display(panel="Length of the noise", place=8, label="expected", role="expected"),
    "rank": Display(panel="Effective rank", place=9, label="before", role="before"),
    "rank_noisy": Display(panel="Effective rank", place=9, label="with noise"),
    "positive": Display(panel="Cosine of pairs and of non-pairs", place=10),
    "negative": Display(panel="Cosine of pairs and of non-pairs", place=10),
    "confidence": Display(panel="Largest softmax probability", place=11, y="mean over the rows"),
}
_SIZES = {
    "threshold": "δ(mn)^¼ for i.i.d. noise of the same energy",
    "edge": "δ(√m + √n) for i.i.d. noise of the same energy",
    "hidden": "share of the directions whose singular value is below the threshold",
    "mean_square": "mean S²; 1 + CV² unless matched",
    "noise_norm": "root mean square length of a row of noise, measured",
    "noise_norm_expected": "α·√(ΣS²/n)",
    "mean_cosine": "mean over rows of cos(x, x̃)",
    "rank": "exp of the entropy of σ²/Σσ², without noise",
    "rank_noisy": "the same with noise",
}


def shown(
    name: str,
    design: Design,
    form: Shape | Mixture,
    x: Tensor,
    noisy: Tensor,
    alpha: float,
    draw: Callable[[Tensor], Tensor],
) -> Iterator[Record]:
    """Yield all that noise of a form did to one modality, beside what the other scalings would have done."""
    started = time.perf_counter()
    found = design.directions(maths.centred(x, False))
    seconds = time.perf_counter() - started
    shapes = {scaling: design.shape(found, scaling) for scaling in SCALINGS}
    z = draw(found.basis.new_empty(x.shape))
    noise = {key: alpha * maths.noise(z, other) for key, other in shapes.items()}
    noise[design.scaling] = alpha * drawn(form, x, draw)
    yield Scalar(f"fanoise/seconds/{name}", seconds, n=1, mode=f"one decomposition, {design.route}")
    yield from measured(name, found, shapes, noise, design.scaling, x, noisy, alpha)
    yield from compared(name, found, shapes, noise, len(x))


def logit_noise(
    name: str, form: Shape | Mixture, alpha: float, x: Tensor, features: Mapping[str, Tensor], temperature: float
) -> Scalar:
    """Return what the noise of a modality adds to a logit, x (m, n) its rows in the units of α."""
    size = float(logits.spread(form, logits.keys_of(features, name)))
    length = float(x.square().sum(1).mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny))
    how = "standard deviation that this modality's noise adds to a logit, before noisy rows are normalised anew"
    display = Display(panel="Noise of a logit", place=8.5, label="", y="standard deviation")
    return Scalar(
        f"fanoise/logit_noise/{name}", alpha * size / (length * temperature), n=len(x), mode=how, display=display
    )


def measured(
    name: str,
    found: Directions,
    shapes: Mapping[str, Shape],
    noise: Mapping[str, Tensor],
    scaling: str,
    x: Tensor,
    noisy: Tensor,
    alpha: float,
) -> Iterator[Record]:
    """Yield the single numbers and the curves of what noise of one scaling did to a modality; a group makes a chart."""
    values = maths.sizes(found, shapes[scaling], noise[scaling], x, noisy, alpha)
    sizes = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    for key, value in sizes.items():
        yield Scalar(f"fanoise/{key}/{name}", value, n=len(x), mode=_SIZES[key], display=_LINES.get(key, Display()))
    limits = {"edge of noise alone": sizes["edge"], "θ<sub>c</sub>": sizes["threshold"]}
    how = f"{scaling}, α = {alpha:g}, one draw"
    for (group, label), (place, value) in maths.curves(found, shapes, noise, scaling, x, noisy, alpha).items():
        display = _PANELS[group] | _ROLES.get(label, Display()) | Display(levels=limits if group == "spectrum" else ())
        display |= Display(panel=f"{display.panel}: {name}", label=label.replace("/", ", "))
        path = f"fanoise/{group}/{name}/{label}"
        yield Curve(path, place.numpy(), value.numpy(), n=len(x), mode=how, display=display)


def compared(
    name: str, found: Directions, shapes: Mapping[str, Shape], noise: Mapping[str, Tensor], rows: int
) -> Iterator[Record]:
    """Yield the slope of SNR and the top shares of the noise energy under all three scalings, from the same draw."""
    labels, power = np.array(SCALINGS), found.values.square()
    slopes = [maths.slope(found.values, power / maths.powers(noise[key], found.basis)) for key in SCALINGS]
    if all(math.isfinite(error) for _, error in slopes):
        values, errors = np.array(slopes).T
        how = "log-log fit of SNR on σ, one draw, one standard error; expected are 2, 0 and 1"
        yield Bars(f"fanoise/snr_slope/{name}", labels, values, errors, n=rows, mode=how, display=_SLOPES)
    for place, count in enumerate((1, 10)):
        values = np.array([float(maths.top_shares(shapes[key])[place]) for key in SCALINGS])
        title = f"Share of the noise energy in the first {f'{count} directions' if count > 1 else 'direction'}"
        display = Display(panel=title, place=6 + place, label="")
        yield Bars(f"fanoise/top_{count}/{name}", labels, values, mode="ΣS² of these over all", display=display)


def pairs(features: Mapping[str, Tensor], losses: Mapping[str, Tensor], temperature: float | None) -> Iterator[Record]:
    """Yield how the features (m, n) of each pair of modalities that has a loss lie on the sphere."""
    for a, b in combinations(features, 2):
        if f"{a}-{b}" in losses and features[a].shape == features[b].shape:
            yield from pair(f"{a}-{b}", *(normalised(features[m]) for m in (a, b)), temperature)


def pair(name: str, a: Tensor, b: Tensor, temperature: float | None) -> Iterator[Record]:
    """Yield how paired unit rows a, b (m, n) lie on the sphere, and how sure the softmax of their logits is."""
    values = maths.pairing(a, b)
    if temperature:
        logits = a @ b.mT / temperature
        values["confidence"] = (logits.softmax(1).amax(1).mean() + logits.softmax(0).amax(0).mean()) / 2
    for key, value in zip(values, torch.stack(list(values.values())).tolist(), strict=True):
        how = "mean of the largest softmax, both ways; " if key == "confidence" else ""
        display = _LINES.get(key, Display())
        yield Scalar(f"fanoise/{key}/{name}", value, n=len(a), mode=f"{how}unit rows, without noise", display=display)
