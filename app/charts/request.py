"""What a chart is: how it is drawn and when anew, and which arguments it takes from a page.

Free of Streamlit. Every argument is checked, since requests come from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from modalscape.app.theme import Look
from modalscape.engine.errors import InputError

_NAME = re.compile(r"[^<>\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,180}")
"""A record's name, or a pattern of names: whatever can be written on a line, but no markup."""
KINDS = ("scalar", "curve", "surface", "bars", "matrix")
"""Kinds of record."""


@dataclass(frozen=True)
class Drawing:
    """A figure with the words below it, or the words that stand in its place."""

    figure: go.Figure | None
    caption: str = ""
    empty: str = ""
    steps: tuple[int, ...] = ()
    """Steps at which the drawn record was measured, for scrubbing."""


class ChartError(ValueError):
    """A request that no page makes."""


@dataclass(frozen=True)
class Chart:
    """How a chart is drawn, what must change before it is drawn again, and which kinds of record it draws."""

    drawn: Callable[[Any, Mapping[str, Any], Look], Drawing]
    stamp: Callable[[Any, Mapping[str, Any]], Any]
    kinds: tuple[str, ...] = KINDS

    def draw(self, reader: Any, args: Mapping[str, Any], look: Look) -> Drawing:
        """Return the drawing; where a record or the run cannot be read, the words that say so in its place.

        Raises:
            ChartError: a record of another kind is asked for by its name.
        """
        try:
            known = reader.names()["records"]
            for name in args["names"]:
                if known.get(name, self.kinds[0]) not in self.kinds:
                    raise ChartError(f"This chart draws {' or '.join(self.kinds)}, and {name} is {known[name]}.")
            return self.drawn(_Kinds(reader, self.kinds), args, look)
        except InputError as error:
            return Drawing(None, empty=str(error))


class _Kinds:
    """A reader to which the run has no records but those of some kinds."""

    def __init__(self, reader: Any, kinds: tuple[str, ...]) -> None:
        self.reader, self.kinds = reader, kinds

    def names(self) -> dict[str, Any]:
        """Return the names of numbers, and of the records of these kinds."""
        known = self.reader.names()
        records = {name: kind for name, kind in known["records"].items() if kind in self.kinds}
        return {"scalars": known["scalars"], "records": records}

    def at(self, name: str, step: int) -> Any:
        """Return the newest record at or before a step, None where it is of another kind or empty."""
        record = self.reader.at(name, step)
        return record if record is not None and self._fits(record) else None

    def latest(self, name: str) -> tuple[int, Any] | None:
        """Return step and record of the newest measurement, None where it is of another kind or empty."""
        found = self.reader.latest(name)
        return found if found is not None and self._fits(found[1]) else None

    def _fits(self, record: Any) -> bool:
        return record.kind in self.kinds and all(np.size(getattr(record, key)) for key in record.arrays)

    def __getattr__(self, key: str) -> Any:
        return getattr(self.reader, key)


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
    if level is not None and (isinstance(level, bool) or not isinstance(level, int | float) or not abs(level) < 1e30):
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
        **{flag: bool(args.get(flag, False)) for flag in ("xlog", "ylog", "log", "parent")},
    }
