"""The pipeline picture: the seven points of a training step in order, with the methods that act at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from modalscape.app.figures.base import blank
from modalscape.app.theme import Look
from modalscape.engine.core.points import Point

WORDS = {
    "features": "change the<br>features",
    "losses": "add a<br>loss",
    "gradients": "change<br>gradients",
    "fuse": "one owner,<br>one gradient",
    "around": "evaluate<br>elsewhere",
    "update": "change the<br>step",
    "commit": "remember",
}
"""Point to what a method does there, in the order of a step."""
BOLD = {"weight": 700}


def pipeline(places: Mapping[str, Sequence[tuple[str, str]]], look: Look) -> go.Figure:
    """Return the seven points as boxes joined by arrows; `places` maps each to its (title, colour)s in order."""
    figure = blank(look, revision="pipeline")
    deepest = max([len(places.get(point, ())) for point in Point] + [1])
    for i, (point, words) in enumerate(WORDS.items()):
        held = places.get(point, ())
        figure.add_shape(
            type="rect",
            x0=i + 0.05,
            x1=i + 0.87,
            y0=0.1,
            y1=1,
            line={"color": look.ink if held else look.grid, "width": 1.2},
            fillcolor=look.faint(look.ink, 0.04) if held else "rgba(0,0,0,0)",
            layer="below",
        )
        strong = look.ink if held else look.muted
        figure.add_annotation(
            x=i + 0.46, y=0.72, text=point, showarrow=False, font=BOLD | {"size": 12.5, "color": strong}, yshift=4
        )
        figure.add_annotation(x=i + 0.46, y=0.36, text=words, showarrow=False, font={"size": 10.5, "color": look.muted})
        if i:
            figure.add_annotation(
                x=i + 0.045,
                y=0.55,
                ax=i - 0.13,
                ay=0.55,
                axref="x",
                ayref="y",
                xref="x",
                yref="y",
                text="",
                showarrow=True,
                arrowhead=2,
                arrowsize=0.9,
                arrowwidth=1.1,
                arrowcolor=look.muted,
            )
        for depth, (title, colour) in enumerate(held):
            figure.add_annotation(
                x=i + 0.46,
                y=-0.14 - 0.34 * depth,
                text=title,
                showarrow=False,
                font=BOLD | {"size": 11, "color": colour},
            )
        if not held:
            figure.add_annotation(
                x=i + 0.46, y=-0.14, text="–", showarrow=False, font={"size": 12, "color": look.muted}
            )
    figure.update_layout(margin={"l": 2, "r": 2, "t": 4, "b": 2}, dragmode=False, hovermode=False)
    figure.update_xaxes(visible=False, range=[0, 6.95], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.4 - 0.34 * (deepest - 1), 1.08], fixedrange=True)
    return figure
