"""Bars and single numbers, with error bars where an error is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from modalscape.app.figures.base import blank, logarithmic, numbers, short
from modalscape.app.figures.curves import add_levels
from modalscape.app.theme import Look

WRITTEN = 20
"""Bars up to which each has its value written above."""
NAMED = 18
"""Lying bars up to which each has its name beside it, twice as many in a tall chart; of more, every second has."""


def bars(record, look: Look) -> go.Figure:
    """Return a `bars` record; each bar takes the colour of the modality or part that it is named after."""
    labels = [str(label) for label in record.labels]
    values = numbers(record.values)
    plain = look.part(record.name)
    colours = [look.part(label) if look.part(label) != look.ink else plain for label in labels]
    figure = blank(look, revision=f"bars/{record.name}", x=record.display.x, y=record.display.y)
    error = None if record.error is None else numbers(record.error)
    if len(labels) > 4 and max(map(len, labels)) > 12:
        return _lying(figure, labels, values, error, colours, look, record.display)
    figure.add_trace(
        go.Bar(
            x=labels,
            y=values,
            marker={"color": [look.faint(c, 0.85) for c in colours], "line": {"width": 0}},
            error_y=None if error is None else _whiskers(error, look),
            text=[short(float(v)) for v in values],
            textposition="outside" if error is None and len(labels) <= WRITTEN else "none",
            textfont={"size": 11, "color": look.muted},
            cliponaxis=False,
            customdata=np.full(len(labels), np.nan, np.float32) if error is None else error,
            hovertemplate=_hover(error, len(labels)),
        )
    )
    figure.update_layout(bargap=0.45 if len(labels) < 8 else 0.25)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(zeroline=True, zerolinecolor=look.grid)
    if record.display.ylog:
        figure.update_yaxes(logarithmic([values]))
    add_levels(figure, record.display.levels, look, log=record.display.ylog)
    return figure


def beside(blocks: Sequence[tuple[str, object, str]], look: Look) -> go.Figure:
    """Return several `bars` records, (label, record, colour), beside each other, error bars where they are known."""
    first = blocks[0][1]
    figure = blank(look, revision=f"bars/{first.name}", x=first.display.x, y=first.display.y)
    for label, record, colour in blocks:
        error = None if record.error is None else numbers(record.error)
        figure.add_trace(
            go.Bar(
                x=[str(name) for name in record.labels],
                y=numbers(record.values),
                name=label,
                marker={"color": look.faint(colour, 0.85), "line": {"width": 0}},
                error_y=None if error is None else _whiskers(error, look),
                hovertemplate="%{x}: %{y:.5~g}<extra>" + label + "</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.35, showlegend=len(blocks) > 1)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(zeroline=True, zerolinecolor=look.grid)
    if first.display.ylog:
        figure.update_yaxes(logarithmic([record.values for _, record, _ in blocks]))
    add_levels(figure, first.display.levels, look, log=first.display.ylog)
    return figure


def shortened(labels: Sequence[str], most: int = 24) -> dict[str, str]:
    """Return each label in about `most` characters: its last words, after the first word that sets it apart.

    >>> list(shortened(["encoders.audio.blocks.0.conv.weight", "encoders.image.blocks.0.conv.weight"]).values())
    ['audio…0.conv.weight', 'image…0.conv.weight']
    """
    ends = {label: label if len(label) <= most else f"…{_end(label, most)}" for label in labels}
    whole = dict(ends)
    for label, end in whole.items():
        alike = [other.split(".") for other, theirs in whole.items() if theirs == end]
        if len(alike) > 1:
            apart = next(parts for parts in zip(*alike, strict=False) if len(set(parts)) > 1)
            word = next(part for part in label.split(".") if part in apart)
            ends[label] = f"{word}…{_end(label, most - len(word))}"
    return ends


def _end(label: str, most: int) -> str:
    """Return the last words of a dotted name, whole ones as far as they fit."""
    tail = label[-(most - 1) :]
    return tail.partition(".")[2] or tail if len(tail) < len(label) else label


def _lying(figure: go.Figure, labels, values, error, colours, look: Look, display) -> go.Figure:
    """Return bars that lie, for many long names: the end of each name is shown, all of it on hover."""
    figure.add_trace(
        go.Bar(
            x=values,
            y=labels,
            orientation="h",
            marker={"color": [look.faint(c, 0.85) for c in colours], "line": {"width": 0}},
            error_x=None if error is None else _whiskers(error, look),
            hovertemplate="%{y}: %{x:.5~g}<extra></extra>",
        )
    )
    named = labels[:: -(-len(labels) // (2 * NAMED if display.tall else NAMED))]
    shown = shortened(labels)
    shown = [shown[label] for label in named]
    x, y = figure.layout.xaxis.title.text, figure.layout.yaxis.title.text
    figure.update_layout(bargap=0.3)
    figure.update_xaxes(title_text=y)
    if display.ylog:
        figure.update_xaxes(logarithmic([values]))
    figure.update_yaxes(
        type="category",
        autorange="reversed",
        tickvals=named,
        ticktext=shown,
        tickfont_size=9,
        showgrid=False,
        title_text=x,
    )
    return figure


def scalar(record, look: Look) -> go.Figure:
    """Return a `scalar` record as a point with its error on a horizontal axis."""
    figure = blank(look, revision=f"scalar/{record.name}", x=record.display.x or record.display.y)
    colour = look.part(record.name)
    error = None if record.error is None else _whiskers(numbers([record.error]), look)
    figure.add_trace(
        go.Scatter(
            x=numbers([record.value]),
            y=[record.name],
            mode="markers",
            marker={"size": 11, "color": colour},
            error_x=error,
            hovertemplate="%{x:.6~g}<extra></extra>",
        )
    )
    return figure


def _hover(error: np.ndarray | None, count: int) -> str | list[str]:
    """Return the words for each of `count` bars, with its error where that is known; once where they are all alike."""
    known = np.broadcast_to(False if error is None else np.isfinite(error), count)
    words = [f"%{{x}}: %{{y:.5~g}}{' ± %{customdata:.2~g}' if one else ''}<extra></extra>" for one in known]
    return words[0] if len(set(words)) == 1 else words


def _whiskers(error: np.ndarray, look: Look) -> dict:
    return {"type": "data", "array": error, "color": look.ink, "thickness": 1.2, "width": 4}
