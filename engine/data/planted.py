"""Class-conditional Gaussians whose best possible accuracy is known, for each modality and for all together.

A class y of C is drawn uniformly. A *source* of evidence of strength a is s = a e_y + ε, ε ~ N(0, I_C). One source is
shared: all modalities see the same s, noise included, so what it says is redundant. Each modality has a source of its
own besides, with independent noise: unique information. Its input is x = Q (s_shared, s_own, N(0, I)) with a random
orthogonal Q, so nothing is lost and nothing sits on an axis.

Sources with independent noise add up as one of strength √(Σ a²), which makes every accuracy a single integral:
P(right) = ∫ φ(z - a) Φ(z)^(C-1) dz.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from modalscape.engine.core.knobs import knob
from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset
from modalscape.engine.errors import InputError

NAMES = ("vision", "audio", "text", "touch", "depth", "motion", "radar", "sonar", "thermal", "scent")
"""Names of the modalities, in the order of the knob `unique`."""

_HELD_OUT = 1000


@dataclass(frozen=True)
class Params:
    """What is planted."""

    unique: str = knob("2.5,1.5", help="Strength of each modality's own evidence; one number each, two to ten of them.")
    shared: float = knob(1.0, 0.0, 10.0, "Strength of the evidence that all modalities share (redundancy).")
    classes: int = knob(4, 2, 20, "Number of classes.")
    dimensions: int = knob(32, 4, 512, "Features of each modality; at least twice the number of classes.")
    rows: int = knob(1200, 20, 50_000, "Training rows; val and test have 1,000 each.")


def strengths(params: Params) -> dict[str, float]:
    """Return modality to the strength of its own evidence.

    Raises:
        InputError: `unique` is no list of two to ten non-negative numbers.
    """
    try:
        values = [float(text) for text in params.unique.split(",")]
    except ValueError:
        values = []
    if not 2 <= len(values) <= len(NAMES) or not all(0 <= value <= 10 for value in values):
        raise InputError(
            f"planted.unique must be two to ten numbers between 0 and 10 with commas between them, such as 2.5,1.5, "
            f"not {params.unique!r}."
        )
    return dict(zip(NAMES, values, strict=False))


def bayes_accuracy(params: Params) -> dict[str, float]:
    """Return the best possible accuracy (fraction) on clean labels: modality to its own, and `fused`."""
    own = strengths(params)
    table = {name: _accuracy(math.hypot(params.shared, a), params.classes) for name, a in own.items()}
    return table | {"fused": _accuracy(math.hypot(params.shared, *own.values()), params.classes)}


def _accuracy(strength: float, classes: int) -> float:
    """Return ∫ φ(z - a) Φ(z)^(C-1) dz by Simpson's rule over twelve standard deviations each way, to about 1e-12."""
    z = np.linspace(strength - 12.0, strength + 12.0, 4801)
    density = np.exp(-0.5 * (z - strength) ** 2) / math.sqrt(2.0 * math.pi)
    values = density * ndtr(z) ** (classes - 1)
    weights = np.where(np.arange(len(z)) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    return float(values @ weights * (z[1] - z[0]) / 3.0)


def planted(params: Params, rng: Rng) -> Dataset:
    """Return the data set.

    Raises:
        InputError: too few dimensions for the classes, or `unique` that cannot be read.
    """
    own = strengths(params)
    classes, width = params.classes, params.dimensions
    if width < 2 * classes:
        raise InputError(
            f"planted.dimensions must be at least twice the {classes} classes, {2 * classes}, not {width}."
        )
    draw = np.random.default_rng(rng.key("planted"))
    total = params.rows + 2 * _HELD_OUT
    y = draw.integers(classes, size=total)
    hot = np.eye(classes)[y]
    common = params.shared * hot + draw.standard_normal((total, classes))
    x = {}
    for name, strength in own.items():
        single = strength * hot + draw.standard_normal((total, classes))
        rest = draw.standard_normal((total, width - 2 * classes))
        turn, _ = np.linalg.qr(draw.standard_normal((width, width)))
        x[name] = (np.concatenate([common, single, rest], axis=1) @ turn).astype(np.float32)
    split = np.repeat(np.array([0, 1, 2], np.int8), [params.rows, _HELD_OUT, _HELD_OUT])
    return Dataset("planted", "Planted evidence", x, y, split, tuple(str(c) for c in range(classes)))
