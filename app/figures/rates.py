"""A score over two missing rates: a heat map whose colours begin at chance."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go

from modalscape.app.figures.base import blank, numbers, short
from modalscape.app.theme import Look

WRITTEN = 11
"""Rates of one modality up to which each cell has its value written in it."""


def rates(record, look: Look) -> go.Figure:
    """Return a `matrix` record over two rates as a heat map with both at 0 in the lower left corner.

    The colours run from chance, or the lowest score if that is below, to the highest; chance is marked on their bar.
    """
    values = numbers(record.values)
    levels = {str(text): float(value) for text, value in (record.display.levels or {}).items()}
    held = [*levels.values(), *values[np.isfinite(values)].tolist()]
    low, high = (min(held), max(held)) if held else (0.0, 1.0)
    figure = blank(look, revision=f"rates/{record.name}", x=record.display.x, y=record.display.y)
    marked = [t for t in _round(low, high) if all(abs(t - at) > 0.08 * (high - low) for at in levels.values())]
    spread = "" if record.error is None else " ± %{customdata:.2~g}"
    rows, cols = (numbers(np.asarray(side, np.float64)) for side in (record.rows, record.cols))
    what = record.display.z or "score"
    figure.add_trace(
        go.Heatmap(
            x=cols,
            y=rows,
            z=values,
            colorscale=look.scale,
            zmin=low,
            zmax=high,
            texttemplate="%{z:.2f}" if len(rows) <= WRITTEN else None,
            textfont={"size": 11},
            customdata=None if record.error is None else numbers(record.error),
            hovertemplate=f"%{{y:.3f}} and %{{x:.3f}} missing: {what} %{{z:.3f}}{spread}<extra></extra>",
            xgap=1,
            ygap=1,
            colorbar={
                "thickness": 10,
                "outlinewidth": 0,
                "ticklen": 3,
                "title": {"text": what, "side": "right", "font": {"size": 12, "color": look.muted}},
                "tickfont": {"size": 11, "color": look.muted},
                "tickvals": [*levels.values(), *marked],
                "ticktext": [*(f"{text} {short(at)}" for text, at in levels.items()), *map(short, marked)],
            },
        )
    )
    for axis, held in ((figure.update_xaxes, cols), (figure.update_yaxes, rows)):
        shown = held[:: -(-len(held) // WRITTEN)]
        axis(tickvals=shown, ticktext=[f"{rate:.2f}" for rate in shown], showgrid=False, zeroline=False, ticks="")
    return figure


def _round(low: float, high: float) -> list[float]:
    """Return up to six round numbers from `low` to `high`."""
    rough = max((high - low) / 5, 1e-9)
    decade = 10.0 ** math.floor(math.log10(rough))
    step = decade * next(n for n in (1.0, 2.0, 2.5, 5.0, 10.0) if n * decade >= rough * 0.999)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
