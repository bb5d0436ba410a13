"""Prime learning windows: when an encoder takes in information fastest, as shades behind curves over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modalscape.app.charts.labels import matching, ranked
from modalscape.app.theme import Look

GROWTH = 0.04
"""Growth of a Fisher trace, as a share of itself, above which a window is open: K of InfoReg."""
MOST = 400
"""Windows of one part that are drawn; a comb says nothing."""


@dataclass(frozen=True)
class Shade:
    """From where to where a window of one part is open, in steps, with the part's colour."""

    part: str
    spans: Sequence[tuple[float, float]]
    colour: str


def growing(steps: np.ndarray, values: np.ndarray, growth: float = GROWTH) -> list[tuple[float, float]]:
    """Return from where to where values (N,) over steps (N,) grow by more than a share of themselves, joined up.

    >>> growing(np.array([0, 10, 20, 30]), np.array([1.0, 2.0, 4.0, 4.0]))
    [(0.0, 20.0)]
    """
    spans: list[tuple[float, float]] = []
    for i in range(1, len(values)):
        if values[i] > 0 and (values[i] - values[i - 1]) / values[i] > growth:
            start, end = float(steps[i - 1]), float(steps[i])
            spans = [*spans[:-1], (spans[-1][0], end)] if spans and spans[-1][1] == start else [*spans, (start, end)]
    return spans


def windows(reader, patterns: Sequence[str], look: Look, titles: Mapping[str, str]) -> tuple[list[Shade], str]:
    """Return the windows of the first of the patterns that this run has records of, and the end of a caption.

    A record that names its windows has them from the method that acts by them; of a Fisher trace alone it is seen
    where it grows.
    """
    kinds = reader.names()["records"]
    for pattern in patterns:
        names = ranked(matching(kinds, [pattern]), look)
        if not names:
            continue
        asked = reader.drawn(names)
        told = [name for name in names if name in asked and asked[name].spans is not None]
        if told:
            found = {name: [(float(a), float(b)) for a, b in asked[name].spans] for name in told}
            words = f"prime learning window by {titles.get(names[0].split('/')[0], names[0].split('/')[0])}"
        else:
            found = {name: growing(*reader.scalars(name, points=None)) for name in names}
            words = f"Fisher trace grows by more than {GROWTH:.0%} from one measurement to the next"
        shades = [Shade(name.rpartition("/")[2], spans[-MOST:], look.part(name)) for name, spans in found.items()]
        shades = [shade for shade in shades if shade.spans]
        parts = ", ".join(shade.part for shade in shades)
        return shades, f" · shaded: {words} ({parts})" if shades else f" · nothing to shade yet: {words}"
    return [], ""


def stamp(reader, patterns: Sequence[str]) -> list[tuple]:
    """Return what changes when a window may have."""
    return [(name, reader.history(name)[-1:]) for name in matching(reader.names()["records"], patterns)]
