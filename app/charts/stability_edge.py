"""How sharp a place may be before training leaves it: by its step alone, or by what a method's noise adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from modalscape.app.charts.labels import matching
from modalscape.app.figures.base import short
from modalscape.app.figures.curves import Line
from modalscape.app.theme import Look
from modalscape.engine.core.stability import edge_of_stability, stability_bound

LATE = 2
"""Reports that may be missing before a method counts as switched off."""

ALONG = ", by its noise along the gradient"
"""End of the label of a line that takes the noise along the gradient for that along the top eigenvector."""


def edges(rate: Mapping[str, float]) -> list[tuple[float, str]]:
    """Return the stability edges (value, words) of sgd that `lr`, `momentum` and `nesterov` imply.

    >>> edges({"lr": 0.1})
    [(20.0, '2/η = 20')]
    """
    lr, momentum, nesterov = (rate.get(key) or 0 for key in ("lr", "momentum", "nesterov"))
    if lr <= 0:
        return []
    edge = edge_of_stability("sgd", lr, momentum, nesterov=bool(nesterov))
    rule = ("2(1+β)/((1+2β)η)" if nesterov else "2(1+β)/η") if momentum > 0 else "2/η"
    return [(edge, f"{rule} = {short(edge)}")]


def noisy_edges(reader, steps: Sequence[int], look: Look, titles: Mapping[str, str]) -> list[Line]:
    """Return for each method that reports a `lambda_bound` the largest stable λ at `steps` (N,), NaN where it was off.

    The noise that the method adds per coordinate has the share Σu⁴ of its variance along the top eigenvector u: the
    strength is multiplied by √Σu⁴, as the Hessian probe measured it at the same step. Where a method has measured its
    noise `along` the gradient, that is taken as it is.
    """
    lines, age = [], LATE * int((reader.meta("settings", {}) or {}).get("report", 1))
    measured = set(reader.history("hessian/concentration"))
    for name in matching(reader.names()["records"], ["*/lambda_bound"]):
        method = name.partition("/")[0]
        reported = np.array(reader.history(name))
        values, along = [], ""
        for step in steps:
            last = reported[reported <= step].max(initial=-1)
            known = step in measured and last >= 0 and step - last <= age
            edge = reader.at(name, int(last)).display.edge if known else None
            if edge:
                along = edge.get("along", "")
                spread = 1.0 if along else math.sqrt(reader.at("hessian/concentration", int(step)).value)
                edge = stability_bound(edge["lr"], spread * edge["sigma"], edge["momentum"], edge["placement"])
            values.append(edge or math.nan)
        if np.isfinite(values).any():
            label = f"stable below, with {titles.get(method, method)}" + (ALONG if along else "")
            colour = look.methods.get(method, look.muted)
            lines.append(Line(label, np.asarray(steps), np.array(values), colour, sparse=True, dash="dash"))
    return lines


def within(lines: Sequence[Line], most: float) -> list[Line]:
    """Return the lines with gaps where they lie beyond `most`; a line that lies there altogether is left out."""
    kept = [replace(line, values=np.where(line.values <= most, line.values, np.nan)) for line in lines]
    return [line for line in kept if np.isfinite(line.values).any()]


def told(lines: Sequence[Line]) -> str:
    """Return the end of a caption: each line's latest value, and under what assumption it holds."""
    words = "".join(f" · {line.label}: λ = {short(line.values[np.isfinite(line.values)][-1])}" for line in lines)
    if any(not line.label.endswith(ALONG) for line in lines):
        words += " (σ²·Σu⁴ for σ²; derived for noise that follows a deterministic gradient)"
    return words
