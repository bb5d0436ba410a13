"""Widgets made from the catalogue, and what they send to a run."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from app import live
from app.outlook import USUAL
from app.status import ALIVE, Standing, folder, home_of, standing
from engine.control import Cancel, Measure, Note, Toggle, Tune, Watch
from engine.handle import RunHandle
from engine.knobs import InputError


def send(run: str, command: Any) -> None:
    """Send a command to a run; a run that cannot take it says so in a toast."""
    home = home_of(folder(), run)
    try:
        if home is None:
            raise InputError(f"There is no run {run}.")
        RunHandle.attach(home).send(command)
    except (InputError, OSError, sqlite3.Error) as error:
        st.toast(f"The command was not sent: {error}", icon=":material/error:")


_WORDS = {"optimizer.name": "Optimiser", "optimizer.lr": "Learning rate", "lr": "Learning rate"}


def label(knob: Mapping[str, Any]) -> str:
    """Return a knob's name as words.

    >>> label({"name": "virtual_batch"}), label({"name": "optimizer.lr"})
    ('Virtual batch', 'Learning rate')
    """
    words = knob["name"].rpartition(".")[2].replace("_", " ")
    return _WORDS.get(knob["name"], words[:1].upper() + words[1:])


def widget(
    knob: Mapping[str, Any],
    key: str,
    value: Any,
    *,
    on_change: Callable | None = None,
    args: tuple = (),
    disabled: bool = False,
) -> Any:
    """Draw the widget of a knob, first at `value`; return what it stands at.

    The value is the widget's own default, not written into the session: what lies in a closed popover or expander would
    otherwise open at the lowest value of its range.
    """
    changed = {"on_change": on_change, "args": args} if on_change else {}
    common = {"key": key, "help": knob.get("help") or None, "disabled": disabled} | changed
    kind = knob["type"]
    if kind == "bool":
        return st.toggle(label(knob), bool(value), **common)
    if knob.get("choices"):
        choices = list(knob["choices"])
        place = choices.index(value) if value in choices else 0
        return st.selectbox(label(knob), choices, place, format_func=lambda c: str(c).replace("_", " "), **common)
    if kind in ("int", "float"):
        number = int if kind == "int" else float
        low, high = (None if knob.get(edge) is None else number(knob[edge]) for edge in ("low", "high"))
        form = "%d" if kind == "int" else "%.6g"
        return st.number_input(label(knob), low, high, number(value), _step(knob, value), form, **common)
    return st.text_input(label(knob), str(value), **common)


def _step(knob: Mapping[str, Any], value: Any) -> int | float:
    """Return how far one click moves a number: a tenth of its decade, at least 1 for whole numbers."""
    size = abs(float(value or knob["default"] or 1)) or 1.0
    step = 10.0 ** math.floor(math.log10(size))
    if knob["type"] == "int":
        return max(1, int(step if knob.get("log") else step / 10))
    return step / 10 if size / step < 2 else step / 2 if not knob.get("log") else step


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


def toggle(now: Standing, entry: Mapping[str, Any], place: str, text: str = "") -> None:
    """Draw the switch of a method as the run has acknowledged it or, while a command waits, as it was asked for."""
    stand = now.methods.get(entry["name"])
    on = bool(stand and (stand.on if stand.asked is None else stand.asked))
    key = f"{place}/{now.id}/{entry['name']}"
    st.session_state[key] = on
    st.toggle(
        text or entry["title"],
        key=key,
        help=entry.get("summary") or None,
        disabled=now.state not in ALIVE,
        on_change=_toggled,
        args=(now.id, entry["name"], key),
    )
    if stand and stand.words:
        st.caption(stand.words)


def _toggled(run: str, method: str, key: str) -> None:
    send(run, Toggle(method, bool(st.session_state[key])))


def tuning(now: Standing, entry: Mapping[str, Any], settings: Mapping[str, Any], *, columns: int = 3) -> None:
    """Draw the knobs of a method or the optimiser at the values that the run acknowledges; a change is sent at once."""
    owner = entry["name"]
    entries = entry["knobs"]
    for start in range(0, len(entries), columns):
        for column, knob in zip(st.columns(columns), entries[start : start + columns], strict=False):
            path = f"{owner}.{knob['name']}"
            value = now.asked.get(path, settings.get(path, knob["default"]))
            with column:
                # A key of its own for each value: once the engine says otherwise, the widget is another one.
                key, off = f"tune/{now.id}/{path}={value}", now.state not in ALIVE
                widget(knob, key, value, on_change=_tuned, args=(now.id, owner, knob["name"], key), disabled=off)


def rate(now: Standing, entries, settings: Mapping[str, Any]) -> None:
    """Draw the learning rate as a knob; a change is sent at once, as those of methods are."""
    found = [entry | {"name": "lr"} for entry in entries if entry["name"] == "optimizer.lr"]
    tuning(now, {"name": "optimizer", "knobs": found}, settings, columns=1)
    if "optimizer.lr" in now.asked:
        st.caption(f"requested: {now.asked['optimizer.lr']:g}")


def _tuned(run: str, method: str, knob: str, key: str) -> None:
    value = st.session_state[key]
    if value is not None:
        send(run, Tune(method, knob, value))


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
    every = now.asked.get(f"probe {name}", now.probes.get(name, 0))
    alive = now.state in ALIVE
    busy = name in now.busy
    with st.container(
        horizontal=True, vertical_alignment="bottom", gap="small", width="content", key=f"measure-{name}"
    ):
        key = f"every/{run}/{name}"
        options = sorted({0, 10, 25, 50, 100, 200, 500, 1000, int(probe["every"]), int(every)})
        known = RunHandle(home).reader().meta("settings", {}) or {}
        if probe["needs"] and not known.get(f"{name}.{probe['needs']}"):
            options = sorted({0, int(every)})  # on a schedule it would be refused every time
        st.session_state[key] = int(every)
        st.selectbox(
            "Measure",
            options,
            key=key,
            format_func=lambda n: f"every {n:,} steps" if n else "on request only",
            width=190,
            disabled=not alive,
            on_change=_watched,
            args=(run, name, key),
            help=f"{probe['title']}: {probe['cost']}. Intervals stretch so that the run keeps to its budget.",
        )
        with st.popover("Settings", icon=":material/tune:", key=f"settings/{run}/{name}", disabled=not alive):
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
            disabled=not alive,
            on_click=send,
            args=(run, Measure(name, chosen)),
            help="Not held back by the budget; a scheduled measurement under way is given up for it.",
        )
        if busy:
            st.button(
                "Cancel", key=f"cancel/{run}/{name}", icon=":material/close:", on_click=send, args=(run, Cancel(name))
            )
        waiting = [words for words in now.pending if name in words]
        if waiting and not busy:
            st.caption(f"requested: {waiting[-1]}")
        elif not alive:
            st.caption("Resume the run to measure.")
    if alive:
        live.outlook(now, name, USUAL.get(probe["cost"], ""), key=f"outlook/{run}/{name}")


def _watched(run: str, probe: str, key: str) -> None:
    every = int(st.session_state[key] or 0)
    send(run, Watch(probe, every > 0, every))


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
