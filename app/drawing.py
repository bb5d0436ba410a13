"""What a chart is: how it is drawn and when anew, and which arguments it takes from a page.

Free of Streamlit. Every argument is checked, since requests come from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from app.theme import Look

_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,120}")


@dataclass(frozen=True)
class Drawing:
    """A figure with the words below it, or the words that stand in its place."""

    figure: go.Figure | None
    caption: str = ""
    empty: str = ""
    steps: tuple[int, ...] = ()
    """Steps at which the drawn record was measured, for scrubbing."""


@dataclass(frozen=True)
class Chart:
    """How a chart is drawn, and what must change before it is drawn again."""

    draw: Callable[[Any, Mapping[str, Any], Look], Drawing]
    stamp: Callable[[Any, Mapping[str, Any]], Any]


class ChartError(ValueError):
    """A request that no page makes."""


def arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a chart, checked.

    Raises:
        ChartError: an argument of the wrong kind.
    """
    if not isinstance(args, Mapping):
        raise ChartError("The arguments of a chart are an object.")
    names = args.get("names", [])
    if (
        not isinstance(names, list)
        or len(names) > 24
        or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in names)
    ):
        raise ChartError("The names of a chart must be a list of up to 24 record names.")
    shade = args.get("shade", [])
    if (
        not isinstance(shade, list)
        or len(shade) > 4
        or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in shade)
    ):
        raise ChartError("The shades of a chart must be a list of up to 4 record names.")
    number = args.get("half", 0)
    step, level = args.get("step"), args.get("level")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int | float) or abs(level) > 1e30):
        raise ChartError("The level must be a number.")
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1e7:
        raise ChartError("The half-life must be a number of steps.")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= 2**40):
        raise ChartError("The step must be a whole number.")
    return {
        "names": names,
        "shade": shade,
        "half": float(number),
        "level": level,
        "step": step,
        "as": str(args.get("as", ""))[:20],
        "y": str(args.get("y", ""))[:80],
        "empty": str(args.get("empty", ""))[:300],
        **{flag: bool(args.get(flag, False)) for flag in ("xlog", "ylog", "log")},
    }
