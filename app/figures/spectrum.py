"""Curvature: the density of a Hessian's eigenvalues, its largest ones with residuals, and sharpness over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from modalscape.app.figures.base import band, blank, numbers, symlog, symlog_ticks
from modalscape.app.figures.curves import Line, Scale, series
from modalscape.app.figures.marks import Mark
from modalscape.app.theme import Look

FLOOR = 1e-6
"""Densities below this share of the peak are cut off, so that the logarithmic axis shows the spectrum."""


def density(curves: Sequence[tuple[str, object, str]], look: Look, *, shown: int = 1) -> go.Figure:
    """Return eigenvalue densities, (label, `curve` record, colour), over a symmetric-logarithmic axis.

    The first `shown` of them are seen at once, the others when their name is clicked.
    """
    at_once = {label for label, _, _ in curves[:shown]}
    first = curves[0][1]
    unit = first.display.y or "density"
    figure = blank(look, revision=f"density/{first.name}", x="eigenvalue (symmetric log)", y=unit.partition(" (")[0])
    values = np.concatenate([np.asarray(r.x, np.float64) for _, r, _ in curves])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.ones(1)
    low, high = float(values.min()), float(values.max())
    reach = max(abs(low), abs(high)) or 1.0
    threshold = 10.0 ** np.floor(np.log10(reach) - 2.5)
    floors: list[float] = []
    for label, record, colour in curves:
        y = np.asarray(record.y, dtype=np.float64)
        bottom = FLOOR * max(float(np.nanmax(y)), 1e-30)
        floors.append(float(y[y > bottom].min()) if (y > bottom).any() else bottom)
        x = numbers(symlog(record.x, threshold))
        grouped = {"legendgroup": label, "visible": True if label in at_once else "legendonly"}
        if record.error is not None:
            error = np.asarray(record.error, dtype=np.float64)
            figure.add_trace(
                band(x, np.maximum(y - error, bottom), np.maximum(y + error, bottom), colour, look) | grouped
            )
        figure.add_trace(
            go.Scatter(
                x=x,
                y=numbers(np.where(y >= bottom, y, np.nan)),
                name=label,
                mode="lines",
                line={"color": colour, "width": 2.2 if label in at_once else 1.2},
                customdata=numbers(record.x),
                hovertemplate="λ = %{customdata:.4~g}: %{y:.3~g}<extra>" + label + "</extra>",
                **grouped,
            )
        )
    for label, record, colour in curves:
        atoms = np.asarray([a for a in record.display.lines if np.isfinite(a)], dtype=np.float64)
        if atoms.size:
            figure.add_trace(
                go.Scatter(
                    x=numbers(symlog(atoms, threshold)),
                    y=np.full(len(atoms), 0.6 * min(floors), np.float32),
                    mode="markers",
                    marker={"symbol": "line-ns", "size": 9, "line": {"width": 1.4, "color": colour}},
                    customdata=numbers(atoms),
                    hovertemplate="eigenvalue %{customdata:.5~g}<extra>" + label + "</extra>",
                    showlegend=False,
                    legendgroup=label,
                    visible=True if label in at_once else "legendonly",
                )
            )
    places, words = symlog_ticks(low, high, threshold)
    figure.update_xaxes(tickvals=places, ticktext=words)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_layout(showlegend=len(curves) > 1)
    figure.add_vline(x=0, line={"color": look.muted, "width": 1})
    return figure


def top(blocks: Sequence[tuple[str, object, str]], look: Look) -> go.Figure:
    """Return the largest eigenvalues, (label, `bars` record, colour), with their residuals as error bars."""
    first = blocks[0][1]
    figure = blank(look, revision=f"top/{first.name}", x="rank", y="eigenvalue")
    for label, record, colour in blocks:
        values = numbers(record.values)
        error = np.zeros(len(values), np.float32) if record.error is None else numbers(record.error)
        figure.add_trace(
            go.Bar(
                x=[f"λ{i + 1}" for i in range(len(values))],
                y=values,
                name=label,
                marker={"color": look.faint(colour, 0.85)},
                error_y={"type": "data", "array": error, "color": look.ink, "thickness": 1.2, "width": 4},
                customdata=error,
                hovertemplate="%{x} = %{y:.5~g}, residual %{customdata:.1~e}<extra>" + label + "</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.35, showlegend=len(blocks) > 1)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(zeroline=True, zerolinecolor=look.grid)
    return figure


def sharpness(
    lines: Sequence[Line],
    look: Look,
    *,
    levels: Sequence[tuple[float, str]] = (),
    marks: Sequence[Mark] = (),
    ylog: bool = False,
) -> go.Figure:
    """Return λ_max over time with standard errors and `levels`, value and words, at which it ceases to be stable."""
    return series(lines, look, scale=Scale(ylog=ylog), y="λ<sub>max</sub>", marks=marks, levels=levels)
