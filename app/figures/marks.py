"""Events on a time axis: a thin line where each took effect, and words at the top as far as they fit.

Every event has its line. Those that fall on one place of the axis share a handle there, which names them on hover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from modalscape.app.figures.base import steps

PLACES = 240
"""Places of an axis at which handles stand apart; on a narrow chart they are two pixels wide."""
NAMED = 4
"""Events that the handle of a place names, and up to how many it counts the others."""
LETTER = 0.021
"""Width of a letter in a narrow chart, as a share of its width."""


@dataclass(frozen=True)
class Mark:
    """One event: the step, a few words, a colour."""

    step: int
    text: str
    colour: str


def marking(marks: Sequence[Mark], span: tuple[float, float], *, log: bool = False) -> tuple[list[dict], dict]:
    """Return traces that draw all `marks` over the height of a figure, and the axis that they need, for its layout.

    `span` is the range of the time axis, `log` whether that is logarithmic, which has no place for step 0; where words
    would run into each other, older ones stay and newer ones are left to the hover text.
    """
    marks = [mark for mark in marks if mark.step > 0 or not log]
    if not marks:
        return [], {}
    base = {"type": "scatter", "yaxis": "y2", "showlegend": False, "hoverinfo": "skip"}
    traces = []
    for colour in dict.fromkeys(m.colour for m in marks):
        own = sorted({m.step for m in marks if m.colour == colour})
        height = np.tile(np.array([0, 1, np.nan], np.float32), len(own))
        line = {"color": colour, "width": 1, "dash": "dot"}
        traces.append(base | {"x": np.repeat(steps(own), 3), "y": height, "mode": "lines", "line": line})
    place = {mark.step: math.log10(mark.step) if log else float(mark.step) for mark in marks}
    first, last = (math.log10(max(end, 1.0)) if log else end for end in span)
    handles = _gathered(marks, place, first, last - first)
    traces.append(
        base
        | {
            "x": steps([held[0].step for held in handles]),
            "y": np.ones(len(handles), np.float32),
            "mode": "markers",
            "marker": {"color": [held[0].colour for held in handles], "size": 7, "symbol": "triangle-down"},
            "text": [_named(held) for held in handles],
            "hoverinfo": "text",
            "hovertemplate": "%{text}<extra></extra>",
            "cliponaxis": False,
        }
    )
    late = {step for step, at in place.items() if at > first + 0.86 * (last - first)}
    worded = _worded([mark for held in handles for mark in held[:3]], place, late, last - first)
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


def _gathered(marks: Sequence[Mark], place: Mapping[int, float], first: float, width: float) -> list[list[Mark]]:
    """Return the marks of each place of the axis that has any, in their order."""
    found: dict[int, list[Mark]] = {}
    for mark in marks:
        found.setdefault(int(PLACES * (place[mark.step] - first) / width) if width > 0 else 0, []).append(mark)
    return list(found.values())


def _named(held: Sequence[Mark]) -> str:
    """Return what is said of the marks at one place."""
    words = [f"{mark.text} at step {mark.step:,}" for mark in held[:NAMED]]
    rest = len(held) - NAMED
    return "<br>".join([*words, f"and {rest:,} more to step {held[-1].step:,}"] if rest > 0 else words)


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
