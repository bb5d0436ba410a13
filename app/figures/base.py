"""What every figure shares: an empty figure in the page's look, axis settings, small numbers turned into words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from modalscape.app.theme import Look, template

HEIGHT = 340
LOGARITHMIC = {"type": "log", "tickformat": "~g", "exponentformat": "power"}
"""A logarithmic axis, its ticks written in full."""


def logarithmic(values: Sequence[np.ndarray]) -> dict:
    """Return a logarithmic axis for such values, (N,) each.

    Its ticks are at 1, 2 and 5 where all digits would collide and those do not, evenly spaced within less than half a
    decade, and at powers of ten, six at most, where labels are long.
    """
    held = [v[np.isfinite(v) & (v > 0)] for v in map(np.asarray, values)]
    ends = [end for v in held if v.size for end in (float(v.min()), float(v.max()))]
    span = math.log10(max(ends) / min(ends)) if ends else 0.0
    if 0.0 < span <= 0.5:
        rough = (max(ends) - min(ends)) / 3
        power = 10.0 ** math.floor(math.log10(rough))
        return LOGARITHMIC | {"dtick": f"L{power * next(n for n in (1, 2, 5, 10) if n * power >= rough):.6g}"}
    long = bool(ends) and min(ends) < 1e-3  # labels of many digits: beyond a decade, powers of ten alone have room
    if 0.5 < span < (1.0 if long else 2.5):
        return LOGARITHMIC | {"dtick": "D2"}
    return LOGARITHMIC | ({"dtick": max(1, math.ceil(span / 6))} if long and span else {})


def blank(look: Look, *, revision: str, x: str = "", y: str = "") -> go.Figure:
    """Return an empty figure with axis titles `x` and `y`; `revision` stays the same as long as zoom should."""
    figure = go.Figure(layout={"template": template(look), "uirevision": revision, "showlegend": False})
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def numbers(values) -> np.ndarray:
    """Return `values` as float32, the width in which figures travel; what is not finite becomes a gap."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan).astype(np.float32)


def steps(values) -> np.ndarray:
    """Return step numbers as int32."""
    return np.asarray(values, dtype=np.int32)


def band(x, low, high, colour: str, look: Look, *, name: str = "", log: bool = False) -> dict:
    """Return a filled band between `low` (N,) and `high` (N,) over `x` (N,), as a trace.

    On a `log` axis a low end that is not positive becomes half of the smallest value that is.
    """
    x, low, high = np.asarray(x), numbers(low), numbers(high)
    if log:
        ends = np.concatenate([low, high])
        ends = ends[np.isfinite(ends) & (ends > 0)]
        low = np.where(low > 0, low, ends.min() / 2 if ends.size else np.nan).astype(np.float32)
    held = np.isfinite(low) & np.isfinite(high)
    x, low, high = x[held], low[held], high[held]
    return {
        "type": "scatter",
        "x": np.concatenate([x, x[::-1]]),
        "y": np.concatenate([high, low[::-1]]),
        "fill": "toself",
        "fillcolor": look.faint(colour, 0.16),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "name": name,
    }


def symlog(values, threshold: float) -> np.ndarray:
    """Return signed logarithms: linear within ±`threshold`, decades outside.

    >>> symlog([-100.0, 0.0, 1.0, 100.0], 1.0).tolist()
    [-3.0, 0.0, 1.0, 3.0]
    """
    values = np.asarray(values, dtype=np.float64)
    size = np.abs(values) / threshold
    with np.errstate(divide="ignore"):
        return np.sign(values) * np.where(size <= 1, size, 1 + np.log10(np.maximum(size, 1)))


def symlog_ticks(low: float, high: float, threshold: float) -> tuple[np.ndarray, list[str]]:
    """Return tick places and labels for a symmetric-log axis from `low` to `high`."""
    start = math.floor(math.log10(threshold))
    marks = [0.0]
    for sign, reach in ((-1, -low), (1, high)):
        if reach > threshold:
            decades = range(start, math.floor(math.log10(reach)) + 1)
            every = max(1, math.ceil(len(decades) / 5))
            marks += [sign * 10.0**d for d in decades if 10.0**d >= threshold and (d - decades[-1]) % every == 0]
    marks.sort()
    return symlog(marks, threshold).astype(np.float32), [short(m) for m in marks]


def free_side(lines: Sequence[np.ndarray], height: float, log: bool) -> str:
    """Return the side, `left` or `right`, on which the lines, values (N,) each, keep further away from a level."""
    room = {"left": np.inf, "right": np.inf}
    for values in lines:
        y = np.asarray(values, dtype=np.float64)
        y = y[np.isfinite(y) & ((y > 0) | (not log))]
        away = np.abs(np.log(y / height) if log else y - height)
        part = max(1, len(y) // 3)
        for side, near in (("left", away[:part]), ("right", away[-part:])) if len(y) else ():
            room[side] = min(room[side], float(near.min()))
    return max(room, key=room.get)


def short(value: float) -> str:
    """Return a number in few characters.

    >>> short(0.01234), short(1234567.0), short(-1000.0), short(3.0)
    ('0.0123', '1.23e6', '−1000', '3')
    """
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "–")
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e5:
        text = f"{size:.3g}" if size < 1000 else f"{size:.0f}"
    else:
        mantissa, _, exponent = f"{size:.2e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return ("−" if value < 0 else "") + text
