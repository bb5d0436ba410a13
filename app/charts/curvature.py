"""Charts of curvature that compare: eigenvalues over time, one matrix with another, one program with another.

Free of Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from modalscape.app.charts.labels import matching
from modalscape.app.charts.queries import ERRORS, about, located, marks, own_from, recorded, said
from modalscape.app.charts.request import Drawing
from modalscape.app.figures.bars import bars
from modalscape.app.figures.base import short
from modalscape.app.figures.curves import Line, Scale, series
from modalscape.app.figures.spectrum import density, top
from modalscape.app.figures.styles import hue
from modalscape.app.theme import Look
from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars

MATRICES = {"hessian": "Hessian", "ggn": "Gauss–Newton", "ggn/empirical_fisher": "empirical Fisher"}
"""Start of a record's name to the matrix that was measured."""
NOTHING = "This has not been measured yet."
WORDY = 110
"""Characters of a measurement's mode in a caption that says several."""


def leading(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the largest eigenvalues of one block over time, each with the band of its residual bound."""
    name = next(iter(matching(reader.names()["records"], args["names"])), None)
    kept = list(reader.history(name))[-ERRORS:] if name else []
    found = [(step, record) for step in kept if (record := reader.at(name, step)) is not None]
    if not found:
        return Drawing(None, empty=args["empty"] or NOTHING)
    at, ranks = np.array([step for step, _ in found]), max(len(record.values) for _, record in found)
    values, errors = np.full((ranks, len(at)), np.nan), np.full((ranks, len(at)), np.nan)
    for i, (_, record) in enumerate(found):
        values[: len(record.values), i] = record.values
        if record.error is not None:
            errors[: len(record.error), i] = record.error
    since, shades = own_from(reader), [look.part(name)] + [hue(rank, look) for rank in range(ranks - 1)]
    lines = [Line(f"λ{r + 1}", at, values[r], shades[r], errors[r], sparse=True, own_from=since) for r in range(ranks)]
    figure = series(lines, look, scale=Scale(ylog=args["ylog"]), y="eigenvalue", marks=marks(reader, look))
    return Drawing(figure, f"through {said(*found[-1])}")


def matrices(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the same number of several matrices over time, each line named after its matrix."""
    names = [n for n in matching(reader.names()["scalars"], args["names"]) if _matrix(n) in MATRICES]
    names.sort(key=lambda name: list(MATRICES).index(_matrix(name)))
    lines = [
        replace(line, label=MATRICES[_matrix(line.label)], colour=_colour(line.label, look))
        for line in recorded(reader, names, look)
    ]
    if not lines:
        return Drawing(None, empty=args["empty"] or NOTHING)
    figure = series(lines, look, scale=Scale(ylog=args["ylog"]), y=args["y"], marks=marks(reader, look))
    latest = {name: found for name in names if (found := reader.latest(name)) is not None}
    return Drawing(figure, f"through step {max(int(line.steps[-1]) for line in lines):,}" + _together(latest))


def densities(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the eigenvalue densities of several matrices in one figure, all of them shown."""
    found = [f for f in located(reader, args, args["names"]) if _matrix(f[0]) in MATRICES]
    found.sort(key=lambda f: list(MATRICES).index(_matrix(f[0])))
    if not found:
        return Drawing(None, empty=args["empty"] or NOTHING)
    curves = [(MATRICES[_matrix(name)], record, _colour(name, look)) for name, _, record in found]
    words = _together({name: (step, record) for name, step, record in found})
    steps = tuple(reader.history(found[0][0]))
    return Drawing(density(curves, look, shown=len(curves)), f"step {found[0][1]:,}{words}", steps=steps)


def opinions(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return what PyHessian and we found at one step: eigenvalues (`as` "top"), the trace, or what it cost."""
    kind = {"top": ("bars",), "seconds": ("bars", "scalar")}.get(args["as"], ("scalar",))
    found = {name: (step, record) for name, step, record in located(reader, args, args["names"]) if record.kind in kind}
    if not found:
        return Drawing(None, empty=args["empty"] or NOTHING)
    (name, (step, first)), *_ = found.items()
    whose = ["ours" if "/ours/" in name else "PyHessian" for name in found]
    steps = tuple(reader.history(name))
    if args["as"] == "top":
        hues = {"ours": look.ink, "PyHessian": hue(1, look)}
        blocks = [(who, record, hues[who]) for who, (_, record) in zip(whose, found.values(), strict=True)]
        words = "".join(f"{about(record)}" for _, record in found.values())
        return Drawing(top(blocks, look), f"step {step:,}{words}", steps=steps)
    if args["as"] == "seconds":
        whose = [COSTS.get(name, name) for name in found]
        seconds = np.array([np.nan if r.seconds is None else r.seconds for _, r in found.values()])
        shown = Bars(first.name, np.array(whose), seconds, display=Display(y="seconds"))
        return Drawing(
            bars(shown, look), f"step {step:,} · time spent in these calls, training not counted", steps=steps
        )
    values = np.array([record.value for _, record in found.values()])
    errors = [record.error for _, record in found.values()]
    known = np.array([np.nan if error is None else error for error in errors])
    shown = Bars(first.name, np.array(whose), values, known, display=first.display)
    spreads = ["" if error is None else f" ± {short(error)}" for error in errors]
    told = ", ".join(f"{w} {short(v)}{spread}" for w, v, spread in zip(whose, values, spreads, strict=True))
    return Drawing(bars(shown, look), f"step {step:,} · {told}{about(first, cost=False)}", steps=steps)


COSTS = {
    "pyhessian/top": "PyHessian, eigenvalues",
    "pyhessian/trace": "PyHessian, trace",
    "pyhessian/ours/top": "ours, both",
}
"""Record of the second opinion to the call whose seconds it carries."""


def _matrix(name: str) -> str:
    return name.rpartition("/")[0]


def _colour(name: str, look: Look) -> str:
    place = list(MATRICES).index(_matrix(name))
    return look.ink if place == 0 else hue(place - 1, look)


def _together(found: Mapping[str, tuple[int, Any]]) -> str:
    """Return n, and for each record its matrix, mode and cost."""
    first = next(iter(found.values()))[1] if found else None
    words = f" · n = {first.n:,}" if first is not None and first.n is not None else ""
    for name, (_, record) in found.items():
        mode = record.mode if len(record.mode) <= WORDY else ""
        cost = "" if record.seconds is None else f"{record.seconds:.2g} s"
        told = ", ".join(word for word in (mode, cost) if word)
        words += f" · {MATRICES[_matrix(name)]}: {told}" if told else ""
    return words
