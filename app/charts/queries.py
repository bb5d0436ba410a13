"""What a chart reads of a run: numbers and records at a step, events on the time axis, and captions about them.

Free of Streamlit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modalscape.app import catalog
from modalscape.app.charts import learning_windows
from modalscape.app.charts.labels import matching
from modalscape.app.figures.curves import Line
from modalscape.app.figures.marks import Mark
from modalscape.app.runs.status import sentence
from modalscape.app.theme import Look
from modalscape.engine.errors import InputError
from modalscape.engine.store.lineage import fork_of, parent_of
from modalscape.engine.store.reader import RunReader, thinned
from modalscape.engine.store.words import EventKind

MOST_DRAWN = 1000
"""Points of one curve on the page; the store keeps each bucket's minimum and maximum."""
ERRORS = 150
"""Measurements whose error is read for one curve."""
MARKED = (EventKind.STARTED, EventKind.APPLIED, EventKind.RESUMED, EventKind.DIVERGED, EventKind.FAILED, EventKind.NOTE)
"""Kinds of event that belong on a time axis."""


def marks(reader, look: Look) -> list[Mark]:
    """Return the events of a run that belong on a time axis."""
    found, titles, forks = [], catalog.titles(), set()
    for event in reader.events(kinds=MARKED):
        if event.kind == EventKind.STARTED and "of" in event.detail:
            forks.add(event.step)
            found.append(Mark(event.step, "fork", look.muted))
        elif event.kind == EventKind.APPLIED:
            command = event.detail.get("command", {})
            if command.get("do") in ("toggle", "tune"):
                colour = look.methods.get(command["method"], look.muted)
                found.append(Mark(event.step, sentence(command, titles), colour))
        elif event.kind == EventKind.RESUMED and event.step not in forks:
            found.append(Mark(event.step, "resumed", look.muted))
        elif event.kind in (EventKind.DIVERGED, EventKind.FAILED):
            found.append(Mark(event.step, event.kind, look.alarm))
        elif event.kind == EventKind.NOTE:
            found.append(Mark(event.step, str(event.detail.get("text", ""))[:24], look.muted))
    return found


def recorded(reader, names: Sequence[str], look: Look, *, log: bool = False) -> list[Line]:
    """Return the numbers over time with their errors, labelled by their names, as far as something was recorded.

    Long ones are thinned, evenly over the steps or, for a `log` axis, over their logarithms.
    """
    found, since = [], own_from(reader)
    for name in names:
        at, values = reader.scalars(name, points=None)
        whole, (at, values) = len(at), thinned(at, values, MOST_DRAWN, log=log)
        if whole:
            sparse = 1 < whole < MOST_DRAWN and (at[-1] - at[0]) >= 2 * (len(at) - 1)
            error = errors(reader, name, at) if sparse else None
            line = Line(name, at, values, look.ink, error, sparse=sparse or whole == 1, thinned=len(at) < whole)
            found.append(replace(line, own_from=since))
    return found


def own_from(reader) -> int | None:
    """Return the step from which a fork trained by itself, None of any other run."""
    try:
        fork = fork_of(reader.path.parent)
    except InputError:  # the reader's own `damage` says so
        return None
    return fork["step"] if fork else None


def parent(reader):
    """Return the reader of the run that a fork comes from, or None where there is none to read."""
    try:
        fork, home = fork_of(reader.path.parent), reader.path.parent
        if fork is None:
            return None
        there, tails = parent_of(home, fork), getattr(reader, "tails", None)
        return RunReader(there) if tails is None else tails.reader(there)
    except InputError:
        return None


def parents_way(reader, names: Sequence[str], look: Look, *, log: bool = False) -> list[Line]:
    """Return the numbers of a fork's parent from the step at which the fork left it, to be drawn beside its own."""
    other, since, found = parent(reader), own_from(reader), []
    try:
        for name in names if other is not None else ():
            at, values = other.scalars(name, points=None)
            first = int(np.searchsorted(at, since))
            at, values = thinned(at[first:], values[first:], MOST_DRAWN, log=log)
            if len(at) > 1:
                found.append(Line(f"{name} of the parent", at, values, look.muted, width=1.0, beside=True))
    except InputError:  # a parent that is damaged only takes its line away
        return found
    return found


def errors(reader, name: str, at: np.ndarray) -> np.ndarray | None:
    """Return the standard error of each value (N,), NaN where it is not known, or None where none is."""
    if reader.names()["records"].get(name) != "scalar":
        return None
    newest = reader.latest(name)
    if newest is None or newest[1].error is None:  # each record is a read of its own
        return None
    held = reader.history(name)
    wanted = set(held[:: -(-len(held) // ERRORS)]) | {held[-1]} if len(held) else set()
    found = {}
    for step in sorted(wanted & set(at.tolist())):
        record = reader.at(name, step)
        if record is not None and record.error is not None:
            found[step] = record.error
    return np.array([found.get(s, np.nan) for s in at.tolist()]) if found else None


def located(reader, args, patterns) -> list[tuple[str, int, Any]]:
    """Return (name, step, record) of the records that match, at the asked step or the latest before it."""
    found = []
    for name in matching(reader.names()["records"], patterns)[:24]:
        steps = [s for s in reader.history(name) if args["step"] is None or s <= args["step"]]
        record = reader.at(name, steps[-1]) if steps else None
        if record is not None:
            found.append((name, int(steps[-1]), record))
    return found


def said(step: int, record) -> str:
    """Return the caption of one record."""
    return f"step {step:,}" + about(record)


def about(record, *, cost: bool = True) -> str:
    """Return n, mode, checked error and cost of a record, as the end of a caption."""
    words = []
    if record.n is not None:
        words.append(f"n = {record.n:,}")
    if record.mode:
        words.append(record.mode)
    if record.display.checked_error == 0:
        words.append("every point evaluated")
    if cost and record.seconds is not None:
        words.append(
            f"{record.seconds:.2g} s" if record.seconds >= 0.1 else f"{max(1, round(1000 * record.seconds))} ms"
        )
    return "".join(f" · {word}" for word in words)


def moving(reader, args) -> Any:
    """Return what changes when a series gets a new point or a time axis a new mark."""
    names = matching(reader.names()["scalars"], args["names"])[:24]
    ends = _ends(reader, names)
    other = parent(reader) if args.get("parent") else None
    if other is not None:
        try:
            ends += _ends(other, names)
        except InputError:  # drawn without it, too
            other = None
    return ends, marked(reader), learning_windows.stamp(reader, args["shade"])


def _ends(reader, names: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, int(steps[-1])) for name in names if len(steps := reader.scalars(name, points=2)[0])]


def marked(reader) -> int:
    """Return the number of the newest event on a time axis."""
    newest = reader.newest(*MARKED)
    return newest.id if newest is not None else 0


def measured(reader, args) -> Any:
    """Return what changes when one of the records that match is measured anew, or more finely."""
    return [(name, *reader.stamp(name)) for name in matching(reader.names()["records"], args["names"])]
