"""Figures: pure functions from records and arrays to plotly figures. No Streamlit, no store."""

from __future__ import annotations

import plotly.graph_objects as go

from modalscape.app.figures.areas import areas
from modalscape.app.figures.bars import bars, scalar
from modalscape.app.figures.curves import curve
from modalscape.app.figures.rates import rates
from modalscape.app.figures.surface import contour, matrix
from modalscape.app.theme import Look

FOR_KIND = {"scalar": scalar, "curve": curve, "surface": contour, "bars": bars, "matrix": matrix}
"""Kind of record to its default figure."""


def default(record, look: Look) -> go.Figure:
    """Return the default figure of a record; a matrix of shares of a whole is stacked, one over two rates mapped."""
    if record.kind == "matrix" and record.display.stack:
        return areas(record, look)
    if record.kind == "matrix" and record.display.rates:
        return rates(record, look)
    return FOR_KIND[record.kind](record, look)
