"""Charts of the landscape that tell runs from one another: the line between two and the plane through them.

Free of Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modalscape.app.charts.labels import matching, named, spoken
from modalscape.app.charts.queries import located, marks, recorded, said
from modalscape.app.charts.request import Drawing
from modalscape.app.figures.around import barrier
from modalscape.app.figures.curves import overlay, series
from modalscape.app.figures.surface import contour, surface
from modalscape.app.theme import Look
from modalscape.engine.core.records import Record

NOTHING = "This has not been measured yet."


def along(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the curves of one measurement in one figure, each modality's by its name; the first is captioned."""
    found = located(reader, args, args["names"])
    if not found:
        return Drawing(None, empty=args["empty"] or NOTHING)
    label = named([name for name, _, _ in found], {name: record.display for name, _, record in found}, look)
    figure = overlay([(label[name], record, look.part(name)) for name, _, record in found], look)
    name, step, record = found[0]
    return Drawing(figure, said(step, record), steps=tuple(reader.history(name)))


def line(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the losses on the way from this run to another, each above its chord and with its barrier."""
    found = located(reader, args, args["names"])
    if not found:
        return Drawing(None, empty=args["empty"] or NOTHING)
    label = named([name for name, _, _ in found], {name: record.display for name, _, record in found}, look)
    lines = [(label[name], _spoken(name, record), look.part(name)) for name, _, record in found]
    name, step, _ = found[0]
    return Drawing(barrier(lines, look), said(step, lines[0][1]), steps=tuple(reader.history(name)))


def barriers(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the barriers of every loss over time with their errors; the newest joint one is captioned."""
    names = matching(reader.names()["scalars"], args["names"])
    lines, latest = recorded(reader, names, look), [found for n in names if (found := reader.latest(n)) is not None]
    if not lines or not latest:
        return Drawing(None, empty=args["empty"] or NOTHING)
    label = named(names, reader.drawn(names), look)
    lines = [replace(drawn, label=label[drawn.label], colour=look.part(drawn.label)) for drawn in lines]
    figure = series(lines, look, y="barrier", marks=marks(reader, look), levels=[(0.0, "")])
    step, record = latest[0]
    return Drawing(figure, f"through {said(step, _spoken(names[0], record))}")


def plane(reader, args: Mapping[str, Any], look: Look) -> Drawing:
    """Return the plane through two or three runs, flat or (`as` "surface") in space."""
    found = located(reader, args, args["names"][:1])
    if not found:
        return Drawing(None, empty=args["empty"] or NOTHING)
    name, step, record = found[0]
    record = _spoken(name, record)
    draw = surface if args["as"] == "surface" else contour
    return Drawing(draw(record, look, log=args["log"]), said(step, record), steps=tuple(reader.history(name)))


def _spoken(name: str, record: Record) -> Record:
    """Return a record of `between/<run>/…` that calls runs as a person would."""
    display = record.display
    runs = {*name.split("/")[1:2], *(mark["text"] for mark in display.marks)}

    def words(text: str) -> str:
        for run in runs:
            text = text.replace(run, spoken(run)) if run else text
        return text

    marks = [{**mark, "text": words(mark["text"])} for mark in display.marks]
    display = replace(display, x=words(display.x), y=words(display.y), marks=marks)
    return replace(record, mode=words(record.mode), display=display)
