"""Curves: numbers over training steps, smoothed or not, and functions of one variable with their error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from app.figures.base import band, blank, logarithmic, numbers, steps
from app.figures.marks import Mark, add_marks
from app.theme import Look


@dataclass(frozen=True)
class Line:
    """One number over time: `steps` (N,), `values` (N,) and, where known, one standard error (N,)."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    colour: str
    error: np.ndarray | None = None
    sparse: bool = False
    """Measured now and then, so drawn with its points and never smoothed."""
    dash: str = "solid"
    width: float = 1.8


@dataclass(frozen=True)
class Scale:
    """How a time chart is scaled: `half_life` of smoothing in steps (0: off), logarithmic axes."""

    half_life: float = 0.0
    xlog: bool = False
    ylog: bool = False


def smoothed(x: np.ndarray, y: np.ndarray, half_life: float) -> np.ndarray:
    """Return the running mean of `y` (N,) whose weights halve every `half_life` steps of `x` (N,); gaps stay gaps.

    >>> smoothed(np.array([0, 1]), np.array([0.0, 3.0]), 1.0).tolist()
    [0.0, 2.0]
    """
    if half_life <= 0 or len(y) < 2:
        return np.asarray(y, dtype=np.float64)
    keep = 0.5 ** (np.diff(x, prepend=x[0]).astype(np.float64) / half_life)
    out, total, weight = np.empty(len(y)), 0.0, 0.0
    for i, (k, value) in enumerate(zip(keep.tolist(), np.asarray(y, np.float64).tolist(), strict=True)):
        total, weight = total * k, weight * k
        if value == value and abs(value) < float("inf"):
            total, weight = total + value, weight + 1.0
            out[i] = total / weight
        else:
            out[i] = np.nan
    return out


def series(
    lines: Sequence[Line],
    look: Look,
    *,
    scale: Scale = Scale(),
    y: str = "",
    marks: Sequence[Mark] = (),
    levels: Sequence[tuple[float, str]] = (),
) -> go.Figure:
    """Return numbers over training steps with bands of one standard error, event marks and horizontal `levels`."""
    figure = blank(look, revision=f"series/{scale.xlog}/{scale.ylog}", x="step", y=y)
    ends = [s for line in lines for s in (line.steps[:1], line.steps[-1:])]
    ends = np.concatenate(ends) if ends else np.zeros(1)
    span = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)
    for line in lines:
        for trace in _traces(line, scale, look):
            figure.add_trace(trace)
    for value, text in levels:
        figure.add_hline(
            y=value,
            line={"color": look.muted, "width": 1, "dash": "dash"},
            annotation_text=text,
            annotation_font={"size": 11, "color": look.muted},
            annotation_position="top left",
        )
    add_marks(figure, marks, span)
    figure.update_layout(showlegend=len(lines) > 1, hovermode="x unified")
    figure.update_xaxes(rangemode="nonnegative", exponentformat="none")
    if scale.xlog:
        logarithmic(figure.layout.xaxis)
    if scale.ylog:
        logarithmic(figure.layout.yaxis)
    return figure


def _traces(line: Line, scale: Scale, look: Look) -> list[go.Scatter]:
    x, y = steps(line.steps), numbers(line.values)
    if scale.xlog:
        held = x > 0
        x, y = x[held], y[held]
    if line.sparse or len(x) < 3:
        scale = Scale(0.0, scale.xlog, scale.ylog)
    out = []
    if line.error is not None and not scale.xlog:
        error = numbers(line.error)
        if np.isfinite(error).any():
            out.append(band(x, y - error, y + error, line.colour, look, name=line.label))
    if scale.half_life > 0:
        out.append(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": look.faint(line.colour, 0.28), "width": 1},
                hoverinfo="skip",
                showlegend=False,
            )
        )
        y = numbers(smoothed(x, y, scale.half_life))
    out.append(
        go.Scatter(
            x=x,
            y=y,
            name=line.label,
            mode="lines+markers" if line.sparse and len(x) <= 80 else "lines",
            line={"color": line.colour, "width": line.width, "dash": line.dash},
            marker={"size": 5, "color": line.colour},
            hovertemplate="%{y:.5~g}",
            connectgaps=False,
        )
    )
    return out


def curve(record, look: Look) -> go.Figure:
    """Return a `curve` record with its error band; `draw` may ask for logarithmic axes and marked values."""
    return overlay([(record.draw.get("label", ""), record, look.part(record.name))], look)


def overlay(curves: Sequence[tuple[str, object, str]], look: Look) -> go.Figure:
    """Return several `curve` records (label, record, colour) in one figure, axes as the first one asks."""
    first = curves[0][1]
    draw = first.draw
    figure = blank(look, revision=f"curve/{first.name}", x=draw.get("x", ""), y=draw.get("y", ""))
    for label, record, colour in curves:
        x, y = numbers(record.x), numbers(record.y)
        if record.error is not None:
            error = numbers(record.error)
            figure.add_trace(band(x, y - error, y + error, colour, look))
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                name=label,
                mode="lines" if len(x) > 60 else "lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 4, "color": colour},
                hovertemplate="%{x:.4~g}: %{y:.5~g}" + (f"<extra>{label}</extra>"),
            )
        )
    add_lines(figure, draw.get("lines"), look)
    figure.update_layout(showlegend=len(curves) > 1)
    if draw.get("xlog"):
        logarithmic(figure.layout.xaxis)
    if draw.get("ylog"):
        logarithmic(figure.layout.yaxis)
    return figure


def add_lines(figure: go.Figure, lines, look: Look) -> None:
    """Mark the values that a record names in `draw["lines"]`: text to value, or just values, on its x axis."""
    pairs = lines.items() if isinstance(lines, dict) else [("", value) for value in lines or ()]
    for text, value in pairs:
        if isinstance(value, int | float):
            figure.add_vline(
                x=value,
                line={"color": look.muted, "width": 1, "dash": "dash"},
                annotation_text=str(text),
                annotation_font={"size": 11, "color": look.muted},
                annotation_position="top right",
            )


def history(records: Sequence[tuple[int, object]], look: Look, *, marks: Sequence[Mark] = ()) -> go.Figure:
    """Return the history of a `scalar` record, (step, record) pairs, with error bars where they are known."""
    at = np.array([step for step, _ in records], dtype=np.int64)
    values = np.array([record.value for _, record in records], dtype=np.float64)
    errors = np.array([np.nan if record.error is None else record.error for _, record in records], dtype=np.float64)
    name = records[-1][1].name
    line = Line(name, at, values, look.part(name), errors, sparse=True)
    return series([line], look, y=records[-1][1].draw.get("y", ""), marks=marks)
