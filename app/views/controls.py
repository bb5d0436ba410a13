"""What forms and pages are made of: knobs, the row of a probe, the scales of a time chart, a line for notes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from modalscape.app.runs.acknowledged import measurable
from modalscape.app.runs.progress import USUAL
from modalscape.app.runs.status import folder, home_of, sentence, standing
from modalscape.app.server import live
from modalscape.app.text import literal
from modalscape.app.views.steering import interval, measure, send, widget
from modalscape.engine.store.commands import Cancel, Measure, Note


def knobs(
    owner: str, entries, values: Mapping[str, Any], key: str, *, columns: int = 3, **options: Any
) -> dict[str, Any]:
    """Draw the knobs of `owner` in columns; return setting key to value."""
    found = {}
    if not entries:
        return found
    for start in range(0, len(entries), columns):
        for column, knob in zip(st.columns(columns), entries[start : start + columns], strict=False):
            path = f"{owner}.{knob['name']}" if owner else knob["name"]
            with column:
                found[path] = widget(knob, f"{key}/{path}", values.get(path, knob["default"]), **options)
    return found


@st.fragment
def measuring(
    run: str, probe: Mapping[str, Any], button: str = "Measure now", given: Mapping[str, Any] | None = None
) -> None:
    """Draw how a probe is scheduled: how often it measures, its settings, and a `button` that measures now.

    `given` are settings that the page has chosen for that button.
    """
    home = home_of(folder(), run)
    if home is None:
        return
    now = standing(run, home)
    live.watch(run, "records", now.tags["records"], key=f"watch/{run}/{probe['name']}")
    name = probe["name"]
    known = now.settings or {}
    may = measurable(now)
    busy = name in now.busy
    with st.container(
        horizontal=True, vertical_alignment="bottom", gap="small", width="content", key=f"measure-{name}"
    ):
        interval(now, probe)
        with st.popover("Settings", icon=":material/tune:", key=f"settings/{run}/{name}", disabled=not may):
            st.caption("For the next measurement on request; the scheduled ones keep the run's own settings.")
            own = {f"{name}.{k['name']}": k["default"] for k in probe["knobs"]}
            own |= known
            open_ones = [knob for knob in probe["knobs"] if knob["name"] not in (given or {})]
            asked = knobs(name, open_ones, own, f"ask/{run}", columns=2) | {
                f"{name}.{k}": v for k, v in (given or {}).items()
            }
            chosen = {k.partition(".")[2]: v for k, v in asked.items() if v is not None and v != own[k]}
        st.button(
            button,
            key=f"now/{run}/{name}",
            icon=":material/straighten:",
            disabled=not may,
            on_click=measure,
            args=(run, Measure(name, chosen)),
            help="Measures the newest step, before what is scheduled; of a run that is over, the last one.",
        )
        if busy and not live.served():  # else it stands beside the progress, which is drawn without this page
            st.button(
                "Cancel", key=f"cancel/{run}/{name}", icon=":material/close:", on_click=send, args=(run, Cancel(name))
            )
        waiting = [sentence(command) for command in now.commands if command.get("probe") == name]
        if waiting and not busy:
            st.caption(literal(f"requested: {waiting[-1]}"))
        elif not may:
            st.caption("Measurements are for a run that has started.")
    if may:
        live.progress(now, name, USUAL.get(probe["cost"], ""), key=f"progress/{run}/{name}")


def scales(place: str) -> dict[str, Any]:
    """Draw the choices of a time chart: smoothing with a real off, logarithmic axes; return them as chart arguments."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key=f"{place}-scales"):
        half = st.segmented_control(
            "Smoothing, half-life in steps",
            [0, 5, 20, 50, 200],
            default=0,
            required=True,
            key=f"{place}-smooth",
            format_func=lambda n: str(n) if n else "off",
            persist_state="session",
        )
        xlog = st.toggle("Log steps", key=f"{place}-xlog", persist_state="session")
        ylog = st.toggle("Log values", key=f"{place}-ylog", persist_state="session")
    return {"half": half or 0, "xlog": xlog, "ylog": ylog}


def noting(run: str) -> None:
    """Draw a line in which to leave a note in the run's log; it is marked on every time axis."""
    with (
        st.form(f"note-{run}", clear_on_submit=True, border=False),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        text = st.text_input(
            "Note",
            key=f"note-text-{run}",
            placeholder="Write a note into the log; it is marked on every time axis",
            label_visibility="collapsed",
            max_chars=200,
        )
        if st.form_submit_button("Note", icon=":material/edit_note:", key=f"note-send-{run}") and text.strip():
            send(run, Note(text.strip()))


def files() -> dict[str, Path]:
    """Return name to path of the data files that may be trained on: those in `$MODALSCAPE_FILES`, and no others."""
    listed = os.environ.get("MODALSCAPE_FILES")
    if not listed or not Path(listed).is_dir():
        return {}
    root = Path(listed).resolve()
    return {path.name: path for path in sorted(root.glob("*.npz")) if path.resolve().is_relative_to(root)}
