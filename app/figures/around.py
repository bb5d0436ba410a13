"""What is drawn over a surface: the centre, the way the run came with its true losses, other runs; and the barrier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from modalscape.app.figures.base import numbers, short
from modalscape.app.figures.curves import overlay
from modalscape.app.theme import Look

SMALLEST, LARGEST = 7.0, 17.0
"""Sizes of a point of the path that lies in the plane and of one that lies wholly off it, in pixels."""


def over_plane(record, height, scale: dict) -> list[dict]:
    """Return the traces that lie over a contour drawing; `height` maps losses to what the `scale` colours."""
    display = record.display
    if display.path:
        return _path(display.path, height, scale)
    if display.marks:
        return _marks(display.marks)
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
    display, dot = record.display, {"size": 4, "color": look.alarm}
    solid = {"type": "scatter3d", "showlegend": False, "hovertemplate": "%{text}<extra></extra>"}
    if display.path:
        path = display.path
        words = [f"step {s:,}<br>true loss {short(v)}" for s, v in zip(path["step"], path["loss"], strict=True)]
        where = {"x": numbers(path["x"]), "y": numbers(path["y"]), "z": height(path["loss"])}
        return [
            solid
            | where
            | {"mode": "lines+markers", "text": words, "marker": dot, "line": {"width": 4, "color": look.alarm}}
        ]
    marks = display.marks or [{"text": "now", "x": 0.0, "y": 0.0}]
    ground = [float(record.z[_nearest(record.y, m["y"]), _nearest(record.x, m["x"])]) for m in marks]
    heights, z = height(ground), height(record.z)
    # A little above the ground, or the surface would hide half of each.
    above = 0.02 * (np.nanmax(z) - np.nanmin(z)) if np.isfinite(z).any() else 0.0
    where = {"x": numbers([m["x"] for m in marks]), "y": numbers([m["y"] for m in marks]), "z": heights + above}
    words = [f"{m['text']}: {short(value)}" for m, value in zip(marks, ground, strict=True)]
    return [solid | where | {"mode": "markers", "text": words, "marker": dot}]


def _nearest(axis, value: float) -> int:
    return int(np.abs(np.asarray(axis) - value).argmin())


def barrier(lines: Sequence[tuple[str, object, str]], look: Look) -> go.Figure:
    """Return the losses on the way between two runs (label, record, colour), each above its chord, barriers marked."""
    risen = [(label, record, colour, *_risen(record)) for label, record, colour in lines]
    told = [
        (f"{label}, barrier {short(y[top] - chord[top])}", record, colour)
        for label, record, colour, y, chord, top in risen
    ]
    figure = overlay(told, look)
    for label, record, colour, y, chord, top in risen:
        x = np.asarray(record.x, np.float64)
        line = {"type": "scatter", "showlegend": False}
        figure.add_trace(
            line
            | {"x": numbers(x[[0, -1]]), "y": numbers(chord[[0, -1]]), "mode": "lines", "hoverinfo": "skip"}
            | {"line": {"color": colour, "width": 1, "dash": "dot"}}
        )
        figure.add_trace(
            line
            | {"x": numbers(x[[top, top]]), "y": numbers([chord[top], y[top]]), "mode": "lines+markers"}
            | {"line": {"color": colour, "width": 1.5}, "marker": {"symbol": "line-ew", "size": 9, "color": colour}}
            | {"hovertemplate": f"barrier {short(y[top] - chord[top])}<extra>{label}</extra>"}
        )
    figure.update_layout(showlegend=True)
    return figure


def _risen(record) -> tuple[np.ndarray, np.ndarray, int]:
    """Return losses (N,), the chord below them (N,), and where they rise farthest above it."""
    x, y = np.asarray(record.x, np.float64), np.asarray(record.y, np.float64)
    chord = (1 - x) * y[0] + x * y[-1]
    rise = np.where(np.isfinite(y - chord), y - chord, -np.inf)
    return y, chord, int(rise.argmax())
