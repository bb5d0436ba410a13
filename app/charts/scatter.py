"""One number of a run against another, a point for each step at which both are known. Free of Streamlit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from modalscape.app.charts.queries import recorded
from modalscape.app.charts.request import Drawing
from modalscape.app.figures.base import blank, numbers
from modalscape.app.theme import Look

FEWEST = 3
"""Points below which there is nothing to see."""


def against(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the second of two numbers over the first, each point with the step that it is of.

    The first one's value is the last that was known at the step of the second.
    """
    lines = {line.label: line for line in recorded(reader, args["names"], look)}
    x, y = map(lines.get, (*args["names"], "", "")[:2])
    if x is None or y is None:
        return Drawing(None, empty=args["empty"] or "Nothing has been measured here yet.")
    known = np.searchsorted(x.steps, y.steps, side="right") - 1
    kept = (known >= 0) & np.isfinite(y.values)
    steps, over, values = y.steps[kept], x.values[known[kept]], y.values[kept]
    good = np.isfinite(over)
    steps, over, values = steps[good], over[good], values[good]
    if len(steps) < FEWEST:
        return Drawing(None, empty=f"{len(steps)} of at least {FEWEST} points so far; it is drawn when they are there.")
    figure = blank(look, revision=f"against/{args['names']}", x=args["as"], y=args["y"])
    figure.add_trace(
        go.Scatter(
            x=numbers(over),
            y=numbers(values),
            mode="lines+markers",
            line={"color": look.muted, "width": 1},
            marker={"size": 8, "color": steps, "colorscale": look.scale, "colorbar": _bar(look)},
            customdata=steps,
            hovertemplate="step %{customdata:,}: %{x:.3f}, %{y:.3f}<extra></extra>",
        )
    )
    return Drawing(figure, f"through step {int(steps[-1]):,} · {_told(over, values)}")


def _bar(look: Look) -> dict[str, Any]:
    return {
        "thickness": 10,
        "outlinewidth": 0,
        "title": {"text": "step", "side": "right", "font": {"size": 12, "color": look.muted}},
        "tickfont": {"size": 11, "color": look.muted},
    }


def _told(x: np.ndarray, y: np.ndarray) -> str:
    """Return the rank correlation in words, and what it is not."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"n = {len(x)}; one of the two does not change"
    rank = float(pd.Series(x).corr(pd.Series(y), method="spearman"))
    return f"Spearman's ρ = {rank:+.2f}, n = {len(x)} steps of one run, which are not independent"
