"""Functions of two variables: a landscape as contours or in three dimensions, and matrices as heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go

from modalscape.app.figures.around import over_plane, over_surface
from modalscape.app.figures.base import blank, numbers, short
from modalscape.app.theme import Look

LEVELS = 20
"""About how many steps of colour lie between the lowest and the highest loss of a plane."""


def contour(record, look: Look, *, log: bool = False) -> go.Figure:
    """Return a `surface` record as filled contours; `log` colours by the logarithm of the height.

    Over it lies what the record names: the path of the run, its points filled with their true losses, or other runs;
    else the centre alone. What is lowest and highest stands in `layout.meta`, so that several can have one scale.
    """
    height, bar = _height(record, look, log)
    z, (low, high) = height(record.z), _span(record, height)
    figure = blank(look, revision=f"contour/{record.name}", x=record.display.x, y=record.display.y)
    figure.add_trace(
        go.Contour(
            x=numbers(record.x),
            y=numbers(record.y),
            z=z,
            zmin=low,
            zmax=high,
            colorscale=look.scale,
            autocontour=False,
            contours=levels(low, high),
            customdata=numbers(record.z),
            hovertemplate="(%{x:.3f}, %{y:.3f}): %{customdata:.5~g}<extra></extra>",
            line={"width": 0.6, "color": "rgba(255,255,255,0.35)"},
            colorbar=bar,
        )
    )
    scale = {"colorscale": look.scale, "cmin": low, "cmax": high}
    figure.add_traces(over_plane(record, height, scale))
    figure.update_xaxes(showgrid=False, constrain="domain")
    figure.update_yaxes(showgrid=False, scaleanchor="x", constrain="domain")
    figure.update_layout(meta={"span": [low, high], "log": "tickvals" in bar})
    return figure


def levels(low: float, high: float) -> dict[str, float]:
    """Return round contour levels, the first at least half a step above the lowest.

    A level at the ground itself would draw the interpolation's last digits. The page's script does the same when it
    puts several figures on one scale.

    >>> levels(0.02, 9.7)
    {'start': 0.5, 'end': 9.7, 'size': 0.5}
    """
    rough = (high - low) / LEVELS
    if not rough > 0:
        return {"start": high, "end": high, "size": 1.0}
    decade = 10.0 ** math.floor(math.log10(rough))
    size = decade * next(step for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * decade >= rough * 0.999)
    return {"start": math.ceil(low / size + 0.5) * size, "end": high, "size": size}


def surface(record, look: Look, *, log: bool = False) -> go.Figure:
    """Return a `surface` record in three dimensions, with `layout.meta` as of a `contour`.

    The camera is the viewer's and survives updates.
    """
    height, bar = _height(record, look, log)
    z, span = height(record.z), _span(record, height)
    figure = blank(look, revision=f"surface/{record.name}")
    figure.add_trace(
        go.Surface(
            x=numbers(record.x),
            y=numbers(record.y),
            z=z,
            colorscale=look.scale,
            showscale=False,
            customdata=numbers(record.z),
            hovertemplate="(%{x:.3f}, %{y:.3f}): %{customdata:.5~g}<extra></extra>",
            contours={"z": {"show": True, "usecolormap": True, "width": 1}},
            lighting={"ambient": 0.75, "diffuse": 0.5, "specular": 0.05},
        )
    )
    figure.add_traces(over_surface(record, height, look))
    ticks = {key: bar[key] for key in ("tickvals", "ticktext") if key in bar}
    figure.update_layout(
        meta={"span": span, "log": "tickvals" in bar},
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
            "camera": {"eye": {"x": 1.42, "y": -1.42, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.12}},
            "xaxis": {"title": {"text": _short(record.display.x or "x")}},
            "yaxis": {"title": {"text": _short(record.display.y or "y")}},
            "zaxis": {"title": {"text": record.display.z or "loss"}} | ticks,
        },
    )
    return figure


CROWDED = 16
"""Columns up to which each has its name below."""


def matrix(record, look: Look) -> go.Figure:
    """Return a `matrix` record as a heat map, diverging around zero when it has both signs.

    A record whose `display` has `log` is coloured by its logarithm, what is not positive stays empty; one that has
    `signed` is coloured from -1 to 1.
    """
    values = numbers(record.values)
    log = record.display.log
    figure = blank(look, revision=f"matrix/{record.name}", x=record.display.x, y=record.display.y)
    low, high = (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else (0.0, 1.0)
    fixed = record.display.signed
    reach = 1.0 if fixed else max(abs(low), abs(high)) or 1.0
    signed = fixed or (low < 0 < high and not log)
    small = values.size <= 144 and values.shape[1] <= 12
    spread = "" if record.error is None else " ± %{customdata:.2~g}"
    rows, cols = [str(r) for r in record.rows], [str(c) for c in record.cols]
    z = numbers(np.log10(np.where(values > 0, values, np.nan))) if log else values
    filled = np.isfinite(z)
    words = [
        [short(float(v)) if kept else "" for v, kept in zip(*row, strict=True)]
        for row in zip(values, filled, strict=True)
    ]
    figure.add_trace(
        go.Heatmap(
            x=cols,
            y=rows,
            z=z,
            colorscale="RdBu" if signed else look.scale,
            reversescale=signed,
            zmin=-reach if signed else None,
            zmax=reach if signed else None,
            text=words if small or log else None,
            texttemplate="%{text}" if small else None,
            textfont={"size": 11},
            customdata=record.error,
            hovertemplate=f"%{{y}}, %{{x}}: {'%{text}' if log else '%{z:.5~g}'}{spread}<extra></extra>",
            hoverongaps=False,
            showscale=not log,
            colorbar={"thickness": 10, "outlinewidth": 0},
        )
    )
    if small:  # the colour of words in a cell is made for its colour, which an empty cell has not
        font = {"size": 11, "color": look.muted}
        empty = [{"x": int(j), "y": int(i), "text": short(float(values[i, j]))} for i, j in np.argwhere(~filled)]
        figure.update_layout(annotations=[cell | {"showarrow": False, "font": font} for cell in empty])
    figure.update_xaxes(showgrid=False, type="category")
    if len(cols) > CROWDED:
        figure.update_xaxes(tickvals=cols[:: -(-len(cols) // CROWDED)], tickangle=0)
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed")
    return figure


def _height(record, look: Look, log: bool) -> tuple[Callable, dict]:
    """Return what maps losses to heights, and the colour bar; logarithms when asked for and everything is positive."""
    z = np.asarray(record.z, dtype=np.float64)
    bar = {
        "orientation": "h",
        "x": 0.5,
        "xanchor": "center",
        "y": 1.0,
        "yanchor": "bottom",
        "len": 0.55,
        "thickness": 8,
        "outlinewidth": 0,
        "ticklen": 0,
        "tickfont": {"size": 11, "color": look.muted},
        "ticklabelposition": "outside top",
    }
    held = z[np.isfinite(z)]
    if not log or not held.size or held.min() <= 0:
        return numbers, bar
    low, high = np.log10(held.min()), np.log10(held.max())
    ticks = np.linspace(low, high, 6)
    logarithm = lambda values: numbers(np.log10(np.maximum(np.asarray(values, np.float64), 1e-300)))  # noqa: E731
    return logarithm, bar | {"tickvals": ticks.astype(np.float32), "ticktext": [short(10**t) for t in ticks]}


def _span(record, height: Callable) -> list[float]:
    """Return the lowest and the highest that is drawn, the true losses of a path among it."""
    values = np.concatenate([height(record.z).ravel(), height((record.display.path or {}).get("loss", []))])
    held = values[np.isfinite(values)]
    return [float(held.min()), float(held.max())] if held.size else [0.0, 1.0]


def _short(text: str) -> str:
    return text if len(text) <= 28 else f"{text[:26]}…"
