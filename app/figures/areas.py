"""Shares of a whole over time, as stacked areas, with a mark where one of them was drawn."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from modalscape.app.figures.base import blank, numbers
from modalscape.app.theme import Look


def areas(record, look: Look) -> go.Figure:
    """Return a `matrix` record whose first `display.stack` rows are shares over its columns, stacked.

    As many rows more, where they are there, are 1 in the columns in which that share was drawn: a mark in its area.
    """
    count = record.display.stack
    names, values = [str(row) for row in record.rows], numbers(record.values)
    x = np.array([float(c) for c in record.cols], np.float32)
    figure = blank(look, revision=f"areas/{record.name}", x=record.display.x, y=record.display.y)
    base = np.zeros(values.shape[1], np.float32)
    for i, name in enumerate(names[:count]):
        colour = look.part(name)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=values[i],
                name=name,
                stackgroup="shares",
                mode="lines",
                line={"color": colour, "width": 1, "shape": "hv"},
                fillcolor=look.faint(colour, 0.4),
                hovertemplate="%{y:.3f}",
            )
        )
        if len(values) >= 2 * count:
            drawn = values[count + i] > 0.5
            figure.add_trace(
                go.Scatter(
                    x=x[drawn],
                    y=(base + values[i] / 2)[drawn],
                    name=f"{name} drawn",
                    mode="markers",
                    marker={"symbol": "line-ns", "size": 7, "line": {"width": 1.3, "color": look.ink}},
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        base = base + values[i]
    figure.update_layout(showlegend=True, hovermode="x unified")
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(range=[0, max(1.0, float(np.nanmax(base)) if base.size else 1.0)])
    return figure
