"""Curves: numbers over training steps, smoothed or not, and functions of one variable with their error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from modalscape.app.figures.base import LOGARITHMIC, band, free_side, logarithmic, numbers, steps
from modalscape.app.figures.marks import Mark, marking
from modalscape.app.figures.styles import styles
from modalscape.app.theme import Look, template


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
    thinned: bool = False
    """Whether only some of what was recorded is drawn."""
    own_from: int | None = None
    """Step from which a fork trained by itself; what comes before is its parent's and is drawn thinner."""
    beside: bool = False
    """Drawn for comparison only, without a name in the legend."""


@dataclass(frozen=True)
class Scale:
    """How a time chart is scaled: `half_life` of smoothing in steps (0: off), logarithmic axes."""

    half_life: float = 0.0
    xlog: bool = False
    ylog: bool = False


TALL = 8
"""Stretches of one colour that are shaded over the whole height of a figure; more would hide the curves."""


WHOLE = 5
"""Steps of a chart below which each has its tick, since there is nothing between two steps."""


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
    bands: Sequence[tuple[Sequence[tuple[float, float]], str]] = (),
) -> go.Figure:
    """Return numbers over training steps with bands of one standard error, event marks and horizontal `levels`.

    `bands` are ranges of steps (spans, colour) that are shaded, each colour with a lane of its own at the bottom.
    """
    ends = [s for line in lines for s in (line.steps[:1], line.steps[-1:])] + [np.array([m.step for m in marks])]
    ends = np.concatenate(ends) if ends else np.zeros(1)
    span = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)
    marked, axis = marking(marks, span, log=scale.xlog)
    # Built in one go: plotly checks every later change again, which costs several times as much.
    return go.Figure(
        data=[trace for line in lines for trace in _traces(line, scale, look)] + marked,
        layout={
            "template": template(look),
            "uirevision": f"series/{scale.xlog}/{scale.ylog}",
            "showlegend": sum(not line.beside for line in lines) > 1,
            "hovermode": "x unified",
            "xaxis": {"title": {"text": "step"}, "rangemode": "nonnegative", "exponentformat": "none"}
            | (LOGARITHMIC if scale.xlog else _whole(span)),
            "yaxis": {"title": {"text": y}} | (logarithmic(_reach(lines)) if scale.ylog else {}),
            "shapes": [_level(value, look) for value, _ in levels] + _bands(bands, span, look),
            "annotations": _worded(levels, [line.values for line in lines], scale.ylog, look),
        }
        | axis,
    )


THIN = 0.5
"""Width of what a fork shares with its parent, as a part of the width of its own line."""


def _reach(lines: Sequence[Line]) -> list[np.ndarray]:
    """Return the values of lines and the ends of their error bands."""
    ends = [line.values + sign * line.error for line in lines if line.error is not None for sign in (-1, 1)]
    return [line.values for line in lines] + ends


def _whole(span: tuple[float, float]) -> dict:
    """Return the ticks of a time axis from `span`; never a `dtick`, by which an event far away costs a tick a step."""
    first, last = int(span[0]), int(span[1])
    return {"tickvals": list(range(first, last + 1))} if last - first < WHOLE else {}


def _bands(bands: Sequence[tuple[Sequence[tuple[float, float]], str]], span: tuple, look: Look) -> list[dict]:
    """Return a lane for each colour, since shades that overlap mix, and shades over the whole height where few."""
    shapes = []
    for lane, (spans, colour) in enumerate(bands):
        held = [(max(start, span[0]), min(end, span[1])) for start, end in spans]
        held = [(start, end) for start, end in held if end > start]
        base = {"yref": "y domain", "line": {"width": 0}, "layer": "below"}
        if len(held) <= TALL:
            tall = base | {"type": "rect", "y0": 0, "y1": 1, "fillcolor": look.faint(colour, 0.07)}
            shapes += [tall | {"x0": start, "x1": end} for start, end in held]
        low, high = 0.03 * lane, 0.03 * lane + 0.022
        path = " ".join(f"M{start:.10g},{low:g} H{end:.10g} V{high:g} H{start:.10g} Z" for start, end in held)
        shapes += [base | {"type": "path", "path": path, "fillcolor": look.faint(colour, 0.7)}] if held else []
    return shapes


def _level(value: float, look: Look) -> dict:
    line = {"color": look.muted, "width": 1, "dash": "dash"}
    return {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}


def _worded(levels: Sequence[tuple[float, str]], lines: Sequence[np.ndarray], log: bool, look: Look) -> list[dict]:
    """Return the words of levels where the lines, values (N,) each, leave room; those of the lowest stand below it."""
    shown = [(value, text) for value, text in levels if text and (value > 0 or not log)]
    lowest = min((value for value, _ in shown), default=0.0) if len(shown) > 1 and len(lines) else -np.inf
    out = []
    for value, text in shown:
        side = free_side(lines, value, log) if len(lines) else "right"
        place = {"xref": "x domain", "x": int(side == "right"), "y": float(np.log10(value)) if log else value}
        place |= {"xanchor": side, "yanchor": "top" if value == lowest else "bottom", "showarrow": False}
        out.append(place | {"text": text, "font": {"size": 11, "color": look.muted}})
    return out


def _traces(line: Line, scale: Scale, look: Look) -> list[dict]:
    x, y = steps(line.steps), numbers(line.values)
    if scale.ylog:
        y = np.where(y > 0, y, np.float32("nan"))
    error = None if line.error is None else numbers(line.error)
    if scale.xlog:
        held = x > 0
        x, y, error = x[held], y[held], None if error is None else error[held]
    out = []
    if error is not None and np.isfinite(error).any():
        out.append(band(x, y - error, y + error, line.colour, look, name=line.label, log=scale.ylog))
    if scale.half_life > 0 and not line.sparse and len(x) > 2:
        faint = {"color": look.faint(line.colour, 0.28), "width": 1}
        raw = {"type": "scatter", "x": x, "y": y, "mode": "lines", "line": faint}
        out += [] if line.beside else [raw | {"hoverinfo": "skip", "showlegend": False}]
        y = numbers(smoothed(x, y, scale.half_life))
    dotted = line.sparse and len(x) <= 80
    trace = {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": line.label,
        "mode": "lines+markers" if dotted else "lines",
        "line": {"color": line.colour, "width": line.width, "dash": line.dash},
        "hovertemplate": "%{y:.5~g}",
    }
    trace |= {"marker": {"size": 5, "color": line.colour}} if dotted else {}
    trace |= {"showlegend": False, "hoverinfo": "skip", "hovertemplate": None} if line.beside else {}
    return out + (_parted(trace, line.own_from) if line.own_from is not None else [trace])


def _parted(trace: dict, own_from: int) -> list[dict]:
    """Return a line in two: up to step `own_from` thinner, and the rest; they share one name in the legend."""
    x, y = trace["x"], trace["y"]
    cut = int(np.searchsorted(x, own_from))
    if cut == 0:
        return [trace]
    slim = trace["line"] | {"width": THIN * trace["line"]["width"]}
    before = trace | {"x": x[:cut], "y": y[:cut], "line": slim, "legendgroup": trace["name"]}
    if trace.get("marker"):
        before |= {"marker": trace["marker"] | {"size": 3}}
    if cut == len(x):
        return [before]
    bridge = {"x": x[cut - 1 : cut + 1], "y": y[cut - 1 : cut + 1], "mode": "lines", "hoverinfo": "skip"}
    bridge |= {"hovertemplate": None, "showlegend": False}
    own = trace | {"x": x[cut:], "y": y[cut:], "legendgroup": trace["name"]}
    return [before | {"showlegend": False}, before | bridge, own]


def curve(record, look: Look) -> go.Figure:
    """Return a `curve` record with its error band; `draw` may ask for logarithmic axes and marked values."""
    return overlay([(record.display.label or "", record, look.part(record.name))], look)


def overlay(curves: Sequence[tuple[str, object, str]], look: Look) -> go.Figure:
    """Return several `curve` records (label, record, colour) in one figure, axes as the first one asks.

    A record whose `display` has `points`, a name for each, is drawn as single points.
    """
    first = curves[0][1]
    display, data, bands = first.display, [], []
    looks = styles([(colour, record.display) for _, record, colour in curves], look)
    for (label, record, _), style in zip(curves, looks, strict=True):
        x, y = numbers(record.x), numbers(record.y)
        if record.error is not None:
            error = numbers(record.error)
            data.append(band(x, y - error, y + error, style.colour, look, log=display.ylog))
        dotted = len(x) <= 60 and not record.display.role
        names = points if isinstance(points := record.display.points, list) else []
        data.append(
            {
                "type": "scatter",
                "x": x,
                "y": y,
                "name": label,
                "mode": "markers" if style.points else "lines+markers" if dotted else "lines",
                "line": {"color": style.colour, "width": style.width, "dash": style.dash},
                "marker": {"size": 8 if names else 4, "color": style.colour},
                "text": names or None,
                "hovertemplate": ("%{text}<br>" if names else "") + "%{x:.4~g}: %{y:.5~g}" + f"<extra>{label}</extra>",
            }
        )
        bands += [(record.display.spans, style.colour)] if record.display.spans else []
    xlog, ylog = display.xlog, display.ylog
    across, along = named_values(display.levels, ylog), named_values(display.lines, xlog)
    words = _worded([(v, text) for text, v in across], [record.y for _, record, _ in curves], ylog, look)
    # Built in one go, as `series` is.
    return go.Figure(
        data=data,
        layout={
            "template": template(look),
            "uirevision": f"curve/{first.name}",
            "showlegend": len(curves) > 1,
            "xaxis": {"title": {"text": display.x}} | (logarithmic([r.x for _, r, _ in curves]) if xlog else {}),
            "yaxis": {"title": {"text": display.y}} | (logarithmic([r.y for _, r, _ in curves]) if ylog else {}),
            "shapes": _bands(bands, (-np.inf, np.inf), look)
            + [_level(v, look) for _, v in across]
            + [_upright(v, look) for _, v in along],
            "annotations": words + [_heading(value, text, xlog, look) for text, value in along],
        },
    )


def _upright(value: float, look: Look) -> dict:
    line = {"color": look.muted, "width": 1, "dash": "dash"}
    return {"type": "line", "yref": "y domain", "y0": 0, "y1": 1, "x0": value, "x1": value, "line": line}


def _heading(value: float, text: str, log: bool, look: Look) -> dict:
    # plotly places annotations of a logarithmic axis by the exponent, unlike lines
    place = {"x": float(np.log10(value)) if log else value, "y": 1, "yref": "y domain", "showarrow": False}
    return place | {"text": text, "font": {"size": 11, "color": look.muted}, "xanchor": "left", "yanchor": "top"}


def add_levels(figure: go.Figure, levels, look: Look, *, log: bool = False) -> None:
    """Mark the values that a record names in `display.levels`: text to value, on its y axis, logarithmic if `log`."""
    for _, value in named_values(levels, log):
        figure.add_shape(_level(value, look))
    for words in _worded([(v, text) for text, v in named_values(levels, log)], [], log, look):
        figure.add_annotation(words)


def named_values(values, log: bool = False) -> list[tuple[str, float]]:
    """Return (text, value) of what a record marks on an axis, as far as the axis, perhaps logarithmic, has a place."""
    pairs = values.items() if isinstance(values, dict) else [("", value) for value in values or ()]
    return [(str(text), value) for text, value in pairs if isinstance(value, int | float) and (value > 0 or not log)]


def history(
    records: Sequence[tuple[int, object]], look: Look, *, marks: Sequence[Mark] = (), own_from: int | None = None
) -> go.Figure:
    """Return the history of a `scalar` record, (step, record) pairs, with error bars where they are known.

    What comes before step `own_from` is drawn thinner.
    """
    at = np.array([step for step, _ in records], dtype=np.int64)
    values = np.array([record.value for _, record in records], dtype=np.float64)
    errors = np.array([np.nan if record.error is None else record.error for _, record in records], dtype=np.float64)
    name = records[-1][1].name
    line = Line(name, at, values, look.part(name), errors, sparse=True, own_from=own_from)
    return series([line], look, y=records[-1][1].display.y, marks=marks)
