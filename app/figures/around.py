"""What is drawn over a surface: the centre, the way the run came with its true losses, other runs; and the barrier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from app.figures.base import numbers, short
from app.figures.curves import overlay
from app.theme import Look

SMALLEST, LARGEST = 7.0, 17.0
"""Sizes of a point of the path that lies in the plane and of one that lies wholly off it, in pixels."""


def over_plane(record, height, scale: dict) -> list[dict]:
    """Return the traces that lie over a contour drawing; `height` maps losses to what the `scale` colours."""
    draw = record.draw
    if draw.get("path"):
        return _path(draw["path"], height, scale)
    if draw.get("marks"):
        return _marks(draw["marks"])
    mark = {"symbol": "x-thin", "size": 11, "line": {"width": 2, "color": "#FFFFFF"}}
    return [_flat([0.0], [0.0]) | {"mode": "markers", "hoverinfo": "skip", "marker": mark}]


def _path(path: dict, height, scale: dict) -> list[dict]:
    x, y = path["x"], path["y"]
    off = np.clip(numbers(path["off"]), 0, 1)
    words = [
        f"step {step:,}<br>true loss {short(loss)}<br>{100 * share:.0f} % of its distance off the plane"
        for step, loss, share in zip(path["step"], path["loss"], off.tolist(), strict=True)
    ]
    line = {"mode": "lines", "hoverinfo": "skip", "line": {"width": 1.5, "color": "rgba(255,255,255,0.75)"}}
    points = {
        "mode": "markers",
        "text": words,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": SMALLEST + (LARGEST - SMALLEST) * off,
            "color": height(path["loss"]),
            "line": {"width": 1.5, "color": "#FFFFFF"},
        }
        | scale,
    }
    end = {"symbol": "x-thin", "size": 13, "line": {"width": 2.5, "color": "#FFFFFF"}}
    return [
        _flat(x, y) | line,
        _flat(x, y) | points,
        _flat(x[-1:], y[-1:]) | {"mode": "markers", "hoverinfo": "skip", "marker": end},
    ]


def _marks(marks: Sequence[dict]) -> list[dict]:
    where = _flat([mark["x"] for mark in marks], [mark["y"] for mark in marks])
    dots = {"size": 11, "color": "#FFFFFF", "line": {"width": 2, "color": "#1C2430"}}
    text = {"size": 12, "color": "#FFFFFF", "shadow": "0 0 4px #000, 0 0 2px #000"}
    return [
        where
        | {
            "mode": "markers+text",
            "text": [mark["text"] for mark in marks],
            "textposition": "top center",
            "textfont": text,
            "marker": dots,
            "hovertemplate": "%{text}<extra></extra>",
        }
    ]


def _flat(x, y) -> dict:
    return {"type": "scatter", "x": numbers(x), "y": numbers(y), "showlegend": False}


def over_surface(record, height, look: Look) -> list[dict]:
    """Return the traces that stand in a drawing in space: the path at its true losses, runs or the centre."""
    draw, dot = record.draw, {"size": 4, "color": look.alarm}
    solid = {"type": "scatter3d", "showlegend": False, "hovertemplate": "%{text}<extra></extra>"}
    if draw.get("path"):
        path = draw["path"]
        words = [f"step {s:,}<br>true loss {short(v)}" for s, v in zip(path["step"], path["loss"], strict=True)]
        where = {"x": numbers(path["x"]), "y": numbers(path["y"]), "z": height(path["loss"])}
        return [
            solid
            | where
            | {"mode": "lines+markers", "text": words, "marker": dot, "line": {"width": 4, "color": look.alarm}}
        ]
    marks = draw.get("marks") or [{"text": "now", "x": 0.0, "y": 0.0}]
    ground = [record.z[_nearest(record.y, m["y"]), _nearest(record.x, m["x"])] for m in marks]
    where = {"x": numbers([m["x"] for m in marks]), "y": numbers([m["y"] for m in marks]), "z": height(ground)}
    words = [f"{m['text']}: {short(float(z))}" for m, z in zip(marks, ground, strict=True)]
    named = {"mode": "markers+text" if draw.get("marks") else "markers", "text": words}
    return [solid | where | named | {"marker": dot, "textfont": {"size": 11, "color": look.ink}}]


def _nearest(axis, value: float) -> int:
    return int(np.abs(np.asarray(axis) - value).argmin())


def barrier(lines: Sequence[tuple[str, object, str]], look: Look) -> go.Figure:
    """Return the losses on the way between two runs (label, record, colour), each above its chord, barriers marked."""
    figure = overlay(lines, look)
    for label, record, colour in lines:
        x, y = np.asarray(record.x, np.float64), np.asarray(record.y, np.float64)
        chord = (1 - x) * y[0] + x * y[-1]
        rise = y - chord
        figure.add_trace(
            {
                "type": "scatter",
                "x": numbers(x[[0, -1]]),
                "y": numbers(chord[[0, -1]]),
                "mode": "lines",
                "line": {"color": colour, "width": 1, "dash": "dot"},
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
        if not np.isfinite(rise).any() or np.nanmax(rise) <= 0:
            continue
        top = int(np.nanargmax(rise))
        figure.add_trace(
            {
                "type": "scatter",
                "x": numbers([x[top], x[top]]),
                "y": numbers([chord[top], y[top]]),
                "mode": "lines+markers",
                "line": {"color": colour, "width": 2},
                "marker": {"symbol": "line-ew", "size": 10, "line": {"width": 2, "color": colour}},
                "showlegend": False,
                "hovertemplate": f"barrier {short(float(rise[top]))}<extra>{label}</extra>",
            }
        )
        figure.add_annotation(
            x=float(x[top]),
            y=float((chord[top] + y[top]) / 2),
            text=f"barrier {short(float(rise[top]))}" + (f", {label}" if len(lines) > 1 else ""),
            showarrow=False,
            xanchor="left",
            xshift=6,
            font={"size": 11, "color": colour},
        )
    return figure
