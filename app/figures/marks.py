"""Events on a time axis: a thin line where a command took effect, with a word at its top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from app.figures.base import steps

MOST = 60
"""Marks drawn; older ones are left out, since a comb says nothing."""
LETTER = 0.021
"""Width of a letter in a narrow chart, as a share of its width."""


@dataclass(frozen=True)
class Mark:
    """One event: the step, a few words, a colour."""

    step: int
    text: str
    colour: str


def marking(marks: Sequence[Mark], span: tuple[float, float], *, log: bool = False) -> tuple[list[dict], dict]:
    """Return traces that draw `marks` over the whole height of a figure, and the axis that they need, for its layout.

    `span` is the range of the time axis, `log` whether that is logarithmic; where words would run into each other,
    older ones stay and newer ones are left to the hover text.
    """
    marks = [mark for mark in list(marks)[-MOST:] if mark.step > 0 or not log]
    if not marks:
        return [], {}
    base = {"type": "scatter", "yaxis": "y2", "showlegend": False, "hoverinfo": "skip"}
    traces = []
    for colour in dict.fromkeys(m.colour for m in marks):
        own = [m.step for m in marks if m.colour == colour]
        height = np.tile(np.array([0, 1, np.nan], np.float32), len(own))
        line = {"color": colour, "width": 1, "dash": "dot"}
        traces.append(base | {"x": np.repeat(steps(own), 3), "y": height, "mode": "lines", "line": line})
    traces.append(
        base
        | {
            "x": steps([m.step for m in marks]),
            "y": np.ones(len(marks), np.float32),
            "mode": "markers",
            "marker": {"color": [m.colour for m in marks], "size": 7, "symbol": "triangle-down"},
            "text": [f"{m.text} at step {m.step:,}" for m in marks],
            "hoverinfo": "text",
            "hovertemplate": "%{text}<extra></extra>",
            "cliponaxis": False,
        }
    )
    place = {mark.step: math.log10(mark.step) if log else float(mark.step) for mark in marks}
    first, last = (math.log10(max(end, 1.0)) if log else end for end in span)
    late = {step for step, at in place.items() if at > first + 0.86 * (last - first)}
    worded = _worded(marks, place, late, last - first)
    traces.append(
        base
        | {
            "x": steps([m.step for m, _ in worded]),
            "y": np.array([y for _, y in worded], np.float32),
            "mode": "text",
            "text": [f"{m.text} " if m.step in late else f" {m.text}" for m, _ in worded],
            "textposition": ["middle left" if m.step in late else "middle right" for m, _ in worded],
            "textfont": {"size": 10.5, "color": [m.colour for m, _ in worded]},
        }
    )
    return traces, {"yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}}


def _worded(
    marks: Sequence[Mark], place: Mapping[int, float], late: Set[int], width: float
) -> list[tuple[Mark, float]]:
    """Return the marks whose words fit, with the height of each: three rows, in which no two words share a place."""
    worded, taken = [], {row: [] for row in range(3)}
    for mark in marks:
        room, at = LETTER * (len(mark.text) + 1) * width, place[mark.step]
        start, end = (at - room, at) if mark.step in late else (at, at + room)
        free = next((row for row, others in taken.items() if all(end <= a or start >= b for a, b in others)), None)
        if free is not None:
            taken[free].append((start, end))
            worded.append((mark, 0.955 - 0.07 * free))
    return worded
