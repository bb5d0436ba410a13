"""Charts by name: what a page may ask to have drawn of a run, with the version by which a drawing is cached.

A chart is asked for by name and JSON arguments, the same from a page and from the poller. Free of Streamlit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from os.path import commonprefix
from typing import Any

import numpy as np

from modalscape.app import catalog, figures
from modalscape.app.charts import curvature, landscapes, learning_windows, scatter, spectra, unimodal_gap
from modalscape.app.charts.labels import colours, matching, named, part_of, ranked
from modalscape.app.charts.queries import (
    ERRORS,
    MOST_DRAWN,
    about,
    located,
    marked,
    marks,
    measured,
    moving,
    own_from,
    parents_way,
    recorded,
    said,
)
from modalscape.app.charts.request import Chart, ChartError, Drawing, arguments
from modalscape.app.charts.stability_edge import edges, noisy_edges, told, within
from modalscape.app.figures.bars import beside
from modalscape.app.figures.curves import Line, Scale, history, named_values, overlay, series
from modalscape.app.figures.pipeline import pipeline
from modalscape.app.figures.spectrum import density, sharpness, top
from modalscape.app.figures.styles import in_order, styles
from modalscape.app.figures.surface import surface
from modalscape.app.theme import Look
from modalscape.engine.core.display import Display
from modalscape.engine.core.points import Point

FAR = 4.0
"""Times the largest eigenvalue beyond which the edge of stability is told rather than drawn."""
HELD_OUT = ("loss/val", "error/val")
"""Starts of the names of held-out losses, drawn in the colours of the training losses."""
WORDY = 320
"""Characters of a caption that says of each line how it was measured; of longer ones, what all have in common."""


def checked(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of chart `name`, checked.

    Raises:
        ChartError: an unknown chart or an argument of the wrong kind.
    """
    if name not in CHARTS:
        raise ChartError("There is no such chart.")
    return arguments(args)


def _series(reader, args, look) -> Drawing:
    names = ranked(matching(reader.names()["scalars"], args["names"])[:24], look)
    drawn = recorded(reader, names, look, log=args["xlog"])
    if not drawn:
        return Drawing(None, empty=args["empty"] or "Nothing has been recorded here yet.")
    names = [line.label for line in drawn]
    asked = dict.fromkeys(names, Display()) | reader.drawn(names)
    scale = Scale(args["half"], args["xlog"], args["ylog"] or any(display.ylog for display in asked.values()))
    words, hues = named(names, asked, look, catalog.titles()), colours(names, look)
    if all(len(line.steps) < 2 for line in drawn):
        return Drawing(None, empty=_single(drawn, words))
    lines = [_styled(line, words[line.label], hues, asked, look) for line in drawn]
    beside = parents_way(reader, names, look, log=args["xlog"]) if args["parent"] else []
    levels = [] if args["level"] is None else [(args["level"], "")]
    told = dict.fromkeys(pair for display in asked.values() for pair in named_values(display.levels, scale.ylog))
    levels += [(value, text) for text, value in told]
    y = args["y"] or next((display.y for display in asked.values() if display.y), "")
    shades, seen = learning_windows.windows(reader, args["shade"], look, catalog.titles())
    bands = [(shade.spans, shade.colour) for shade in shades]
    figure = series(beside + lines, look, scale=scale, y=y, marks=marks(reader, look), levels=levels, bands=bands)
    within = None if scale.ylog else next((display.within for display in asked.values() if display.within), None)
    cut = _cut(lines, within) if within else None
    if cut:
        figure.update_yaxes(range=cut)
        seen += f" · drawn from {within[0]:g} to {within[1]:g}, though some values lie beyond"
    last = max(int(line.steps[-1]) for line in lines)
    caption = f"through step {last:,}" + _measured_as(reader, words) + seen
    if lines[0].own_from is not None:
        caption += f" · thin up to step {lines[0].own_from:,}: shared with the parent"
        caption += ", whose own way is grey" if beside else ""
    if any(line.thinned for line in lines):
        caption += f" · thinned to at most {MOST_DRAWN:,} points, extremes kept"
    if args["half"] > 0:
        caption += f" · smoothed with a half-life of {args['half']:g} steps, measured values behind"
    return Drawing(figure, caption)


def _single(drawn: list[Line], words: Mapping[str, str]) -> str:
    """Return what is said of lines that have one point each, in the place of axes."""
    values = ", ".join(f"{words[line.label]} {line.values[0]:.4g}" for line in drawn[:3] if len(line.values))
    more = f" and {len(drawn) - 3} more" if len(drawn) > 3 else ""
    step = max(int(line.steps[0]) for line in drawn if len(line.steps))
    return f"One value so far, at step {step:,}: {values}{more}. The line begins with the second."


def _cut(lines: list[Line], within: list[float]) -> list[float] | None:
    """Return the range of an axis that shows the values as far as they lie `within` bounds, None where all do."""
    values = np.concatenate([line.values for line in lines])
    values = values[np.isfinite(values)]
    if not values.size or (values.min() >= within[0] and values.max() <= within[1]):
        return None
    low, high = max(float(values.min()), within[0]), min(float(values.max()), within[1])
    room = 0.06 * max(high - low, 1e-12)
    return [low - room, high + room]


def _measured_as(reader, words: Mapping[str, str]) -> str:
    """Return n and protocol where what is drawn, name to words, was measured by a probe or reported by a method."""
    known = reader.names()["records"]
    held = {words[n]: found[1] for n in words if known.get(n) == "scalar" and (found := reader.latest(n)) is not None}
    return protocols(held)


def protocols(held: Mapping[str, Any]) -> str:
    """Return n and modes of records by their labels, each mode once."""
    if not held:
        return ""
    modes: dict[str, list[str]] = {}
    for label, record in held.items():
        modes.setdefault(record.mode, []).append(label)
    first = next(iter(held.values()))
    if len(modes) == 1:
        return about(first, cost=False)
    told = " · ".join(
        f"{' and '.join(labels)}: {mode}" for mode, labels in sorted(modes.items(), key=lambda pair: pair[1]) if mode
    )
    told = told if len(told) <= WORDY else _alike(list(modes))
    return (f" · n = {first.n:,}" if first.n is not None else "") + (f" · {told}" if told else "")


def _alike(modes: list[str]) -> str:
    """Return the words with which all modes begin, whole phrases only."""
    start = commonprefix(modes)
    return start[: max(start.rfind(","), start.rfind(";"), 0)]


def _styled(line: Line, words: str, hues: Mapping[str, str], asked: Mapping[str, Display], look: Look) -> Line:
    name = line.label
    held_out = name.startswith(HELD_OUT)
    # Training and held-out scores of one part differ by dash and width; other lines as the records say.
    alike = [n for n in hues if held_out == n.startswith(HELD_OUT)]
    style = styles([(hues[n], asked.get(n, Display())) for n in alike], look)[alike.index(name)]
    dash, width = (
        ("dash", 1.8) if held_out else (style.dash, 1.3 if "train" in name.split("/") else min(style.width, 1.8))
    )
    return replace(line, label=words, colour=style.colour, dash=dash, width=width)


def _sharpness(reader, args, look) -> Drawing:
    names = ranked(matching(reader.names()["scalars"], ["hessian/lambda_max", "hessian/*/lambda_max"]), look)
    lines = recorded(reader, names, look)
    if not lines:
        return Drawing(None, empty=args["empty"] or "λ_max has not been measured yet.")
    rate = dict(reader.meta("optimizer", {}) or {})
    rate["lr"] = reader.meta("learning_rate", rate.get("lr")) or rate.get("lr")
    known = rate if str(rate.get("name", "sgd")).lower() == "sgd" else {}
    words = {name: part_of(name, "whole") for name in names}
    hues = {name: look.part(name) for name in names}
    lines = [_styled(line, words[line.label], hues, {}, look) for line in lines]
    # One part often holds all of it: the whole shows below that part's line.
    lines = [replace(line, width=3.0) if line.label == "whole" else line for line in lines]
    highest = max(float(np.nanmax(line.values)) for line in lines)
    above = [words for value, words in edges(known) if not args["ylog"] and value > FAR * max(highest, 1e-30)]
    bounds = noisy_edges(reader, lines[0].steps.tolist()[-ERRORS:], look, catalog.titles())
    figure = sharpness(
        lines + within(bounds, np.inf if args["ylog"] else FAR * highest),
        look,
        levels=() if above else edges(known),
        marks=marks(reader, look),
        ylog=args["ylog"],
    )
    last = max(int(line.steps[-1]) for line in lines)
    caption = f"through step {last:,}"
    latest = reader.latest("hessian/lambda_max")
    if latest is not None:
        caption += about(latest[1], cost=False)
    if known:
        caption += f" · η = {float(rate['lr']):g}" + (
            f", β = {float(rate['momentum']):g}" if rate.get("momentum") else ""
        )
        caption += (f" · the edge {above[0]} lies far above" if above else "") + told(bounds)
    else:
        caption += " · no stability edge is drawn: 2/η holds for SGD; for others see Edge of stability above"
    return Drawing(figure, caption)


def _record(reader, args, look) -> Drawing:
    found = located(reader, args, args["names"][:1])
    if not found:
        return Drawing(None, empty=args["empty"] or "This has not been measured yet.")
    name, step, record = found[0]
    kept = tuple(reader.history(name))
    if record.kind == "scalar" and len(kept) > 1:
        records = [(s, r) for s in kept[-ERRORS:] if (r := reader.at(name, s)) is not None]
        drawn = history(records, look, marks=marks(reader, look), own_from=own_from(reader))
        return Drawing(drawn, said(step, record), steps=kept)
    if record.kind == "surface":
        draw = surface if args["as"] == "surface" else figures.FOR_KIND["surface"]
        return Drawing(draw(record, look, log=args["log"]), said(step, record), steps=kept)
    return Drawing(figures.default(record, look), said(step, record), steps=kept)


def _several(draw: Callable, whole: str, tail: bool) -> Callable:
    """Return a chart that draws several records in one figure, labelled by their part."""

    def chart(reader, args, look) -> Drawing:
        found = located(reader, args, args["names"])
        if not found:
            return Drawing(None, empty=args["empty"] or "This has not been measured yet.")
        label = (lambda n: part_of(n, whole)) if tail else (lambda n: "/".join(n.split("/")[2:]) or whole)
        place = {name: i for i, name in enumerate(ranked([name for name, _, _ in found], look))}
        found.sort(key=lambda entry: place[entry[0]])
        blocks = [(label(name), record, look.part(name)) for name, _, record in found]
        name, step, record = found[0]
        if all(r.kind == blocks[0][1].kind for _, r, _ in blocks):
            return Drawing(draw(blocks, look), said(step, record), steps=tuple(reader.history(name)))
        return Drawing(figures.default(record, look), said(step, record), steps=tuple(reader.history(name)))

    return chart


def _panel(reader, args, look) -> Drawing:
    """Draw records that ask for one chart: numbers over time, curves or bars in one figure, else the first of them."""
    found = located(reader, args, args["names"])
    if all(record.kind == "scalar" for _, _, record in found):
        return _series(reader, args, look)
    place = {name: i for i, name in enumerate(ranked([name for name, _, _ in found], look))}
    part = {name: look.part(name) for name in place}
    first = {part[name]: i for name, i in reversed(place.items())}
    found.sort(key=lambda entry: (first[part[entry[0]]], in_order(entry[2].display), place[entry[0]]))
    words = named([name for name, _, _ in found], {name: record.display for name, _, record in found}, look)
    blocks = [(words[name], record, look.part(name)) for name, _, record in found]
    name, step, record = found[0]
    alike = len(found) > 1 and all(other.kind == record.kind for _, _, other in found)
    together = {"curve": overlay, "bars": beside}.get(record.kind) if alike else None
    figure = together(blocks, look) if together else figures.default(record, look)
    told = protocols({label: other for label, other, _ in blocks}) if together else about(record)
    return Drawing(figure, f"step {step:,}{told}", steps=tuple(reader.history(name)))


def _steps(reader, args, look) -> Drawing:
    names = matching(reader.names()["records"], args["names"])
    return Drawing(None, steps=tuple(reader.history(names[0])) if names else ())


def _pipeline(reader, args, look) -> Drawing:
    known = {entry["name"]: entry for entry in catalog.methods()}
    on = reader.meta("methods", {}) or {}
    order = reader.meta("pipeline", {}) or {}
    places = {
        point: [(known[n]["title"] if n in known else n, look.methods.get(n, look.muted)) for n in order.get(point, [])]
        for point in Point
    }
    words = ", ".join(known[n]["title"] if n in known else n for n in on) or "none"
    return Drawing(pipeline(places, look), f"methods on: {words}")


CHARTS: dict[str, Chart] = {
    "series": Chart(_series, moving),
    "sharpness": Chart(
        _sharpness, lambda reader, args: (measured(reader, {"names": ["hessian/*"]}), marked(reader)), ("scalar",)
    ),
    "record": Chart(_record, lambda reader, args: (measured(reader, args), marked(reader))),
    "overlay": Chart(_several(overlay, "joint", tail=False), measured, ("curve",)),
    "panel": Chart(_panel, lambda reader, args: (moving(reader, args), measured(reader, args))),
    "density": Chart(_several(density, "whole", tail=True), measured, ("curve",)),
    "top": Chart(_several(top, "whole", tail=True), measured, ("bars",)),
    "leading": Chart(curvature.leading, lambda reader, args: (measured(reader, args), marked(reader)), ("bars",)),
    "matrices": Chart(curvature.matrices, moving, ("scalar",)),
    "densities": Chart(curvature.densities, measured, ("curve",)),
    "opinions": Chart(curvature.opinions, measured, ("bars", "scalar")),
    "steps": Chart(_steps, measured),
    "along": Chart(landscapes.along, measured, ("curve",)),
    "barrier": Chart(landscapes.line, measured, ("curve",)),
    "barriers": Chart(landscapes.barriers, moving, ("scalar",)),
    "between": Chart(landscapes.plane, measured, ("surface",)),
    "spectrum": Chart(spectra.spectrum, spectra.stamp, ("curve",)),
    "alone": Chart(unimodal_gap.gap, unimodal_gap.stamp),
    "against": Chart(scatter.against, moving, ("scalar",)),
    "pipeline": Chart(_pipeline, lambda reader, args: (sorted(reader.meta("methods", {}) or {}), catalog.titles())),
}
"""Name of a chart to how it is drawn, by what it is drawn anew, and the kinds of record that it draws."""
