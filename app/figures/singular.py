"""Singular values by rank: several spectra of one matrix in one figure, with random-matrix limits as levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from modalscape.app.figures.base import blank, free_side, logarithmic, numbers, short
from modalscape.app.theme import Look


@dataclass(frozen=True)
class Spectrum:
    """One line: a `curve` record with the way it is drawn."""

    label: str
    record: object
    colour: str
    dash: str = "solid"
    width: float = 2.0
    dots: bool = False
    hidden: bool = False
    """Named in the legend, drawn when it is clicked."""


def ranked(lines: Sequence[Spectrum], look: Look, *, limits: Mapping[str, float] | None = None) -> go.Figure:
    """Return curves over a rank or another abscissa, axes as the first record asks, with `limits` (words to height).

    On a logarithmic axis what is not positive is left out: a singular value of 0 has no place there.
    """
    display = lines[0].record.display
    figure = blank(look, revision=f"ranked/{lines[0].record.name}", x=display.x, y=display.y)
    for line in lines:
        x, y = (np.asarray(values, dtype=np.float64) for values in (line.record.x, line.record.y))
        held = np.isfinite(x) & np.isfinite(y)
        held &= (y > 0) | (not display.ylog)
        held &= (x > 0) | (not display.xlog)
        dotted = line.dots and held.sum() <= 80
        figure.add_trace(
            go.Scatter(
                x=numbers(x[held]),
                y=numbers(y[held]),
                name=line.label,
                mode="lines+markers" if dotted or held.sum() == 1 else "lines",
                line={"color": line.colour, "width": line.width, "dash": line.dash},
                marker={"size": 4, "color": line.colour},
                visible="legendonly" if line.hidden else True,
                hovertemplate="%{x:.4~g}: %{y:.4~g}<extra>" + line.label + "</extra>",
            )
        )
    for words, height in (limits or {}).items():
        if np.isfinite(height) and (height > 0 or not display.ylog):
            log = display.ylog
            _limit(
                figure,
                words,
                float(height),
                log,
                free_side([line.record.y for line in lines], float(height), log),
                look,
            )
    figure.update_layout(showlegend=len(lines) > 1)
    if display.range:
        figure.layout.yaxis.range = display.range
    if display.xlog:
        figure.layout.xaxis.update(logarithmic([line.record.x for line in lines]))
    if display.ylog:
        figure.layout.yaxis.update(logarithmic([line.record.y for line in lines]))
    return figure


def _limit(figure: go.Figure, words: str, height: float, log: bool, side: str, look: Look) -> None:
    """Draw a level across the figure with its words at one side: on the left below it, since spectra fall."""
    line = {"color": look.muted, "width": 1, "dash": "dash"}
    figure.add_shape(type="line", xref="x domain", x0=0, x1=1, y0=height, y1=height, line=line)
    figure.add_annotation(
        xref="x domain",
        x=0.01 if side == "left" else 1,
        y=float(np.log10(height)) if log else height,
        xanchor=side,
        yanchor="top" if side == "left" else "bottom",
        showarrow=False,
        text=f"{words} {short(height)}",
        font={"size": 11, "color": look.muted},
    )
