"""Events on a time axis: a thin line where a command took effect, with a word at its top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from app.figures.base import steps

MOST = 60
"""Marks drawn; older ones are left out, since a comb says nothing."""


@dataclass(frozen=True)
class Mark:
    """One event: the step, a few words, a colour."""

    step: int
    text: str
    colour: str


def add_marks(figure: go.Figure, marks: Sequence[Mark], span: tuple[float, float]) -> None:
    """Draw `marks` over the whole height of `figure`; `span` is the range of its time axis, to thin crowded words."""
    marks = list(marks)[-MOST:]
    if not marks:
        return
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    gap = 0.07 * max(span[1] - span[0], 1)
    for colour in dict.fromkeys(m.colour for m in marks):
        own = [m for m in marks if m.colour == colour]
        at = np.repeat(steps([m.step for m in own]).astype(np.float32), 3)
        height = np.tile(np.array([0, 1, np.nan], np.float32), len(own))
        figure.add_trace(
            go.Scatter(
                x=at,
                y=height,
                yaxis="y2",
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                line={"color": colour, "width": 1, "dash": "dot"},
            )
        )
    figure.add_trace(
        go.Scatter(
            x=steps([m.step for m in marks]),
            y=np.ones(len(marks), np.float32),
            yaxis="y2",
            mode="markers",
            marker={"color": [m.colour for m in marks], "size": 7, "symbol": "triangle-down"},
            text=[f"{m.text} at step {m.step}" for m in marks],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            cliponaxis=False,
        )
    )
    worded, row = [], {0: -1e30, 1: -1e30, 2: -1e30}
    for mark in marks:
        free = next((r for r, last in row.items() if mark.step - last >= 3.2 * gap), None)
        if free is not None:
            row[free] = mark.step
            worded.append((mark, 0.955 - 0.07 * free))
    figure.add_trace(
        go.Scatter(
            x=steps([m.step for m, _ in worded]),
            y=np.array([y for _, y in worded], np.float32),
            yaxis="y2",
            mode="text",
            text=[f" {m.text}" for m, _ in worded],
            textposition=[
                "middle left" if m.step > span[0] + 0.86 * (span[1] - span[0]) else "middle right" for m, _ in worded
            ],
            textfont={"size": 10.5, "color": [m.colour for m, _ in worded]},
            hoverinfo="skip",
            showlegend=False,
        )
    )
