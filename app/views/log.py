"""The parts of the Log page: events, records, configuration, export."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from modalscape.app import catalog
from modalscape.app.runs.status import folder, sentence
from modalscape.app.server import live
from modalscape.app.text import literal
from modalscape.app.views import controls, shell
from modalscape.engine.config import read
from modalscape.engine.errors import InputError
from modalscape.engine.store import export as tables
from modalscape.engine.store.files import brief, opened, text_of, value_of
from modalscape.engine.store.words import EventKind

ICONS = {
    EventKind.STARTED: "▶",
    EventKind.RESUMED: "▶",
    EventKind.APPLIED: "✓",
    EventKind.REFUSED: "✕",
    EventKind.CHECKPOINT: "▪",
    EventKind.PAUSED: "‖",
    EventKind.STOPPED: "■",
    EventKind.FINISHED: "■",
    EventKind.FAILED: "✕",
    EventKind.DIVERGED: "✕",
    EventKind.NOTE: "✎",
    EventKind.PROBE: "◦",
    EventKind.PROBE_FAILED: "✕",
    EventKind.IDLE: "○",
    EventKind.LOST: "✕",
    EventKind.UNSAVED: "✕",
    EventKind.TROUBLE: "✕",
    EventKind.MENDED: "✓",
}
WRONG = (EventKind.FAILED, EventKind.DIVERGED, EventKind.PROBE_FAILED)
WRONG += (EventKind.LOST, EventKind.UNSAVED, EventKind.TROUBLE)
"""Kinds of event that say what went wrong."""
MOST = 2000


@st.fragment
def events(run: str) -> None:
    """Draw errors with their tracebacks, then every event, newest first."""
    now = shell.now(run)
    live.watch(run, "events", now.tags["events"], key=f"watch-events/{run}")
    found = shell.reader(run).events()
    if not found:
        st.info("Nothing has happened yet: the engine has not started.", icon=":material/hourglass_empty:")
        return
    for event, times in troubles(found)[-5:]:
        words = literal(event.detail.get("error") or told(event))
        often = f" This happened {times:,} times, the last of them here." if times > 1 else ""
        st.error(f"Step {event.step:,}: {words}{often}", icon=":material/error:")
        if event.detail.get("traceback"):
            with st.expander(f"Traceback of step {event.step:,}"):
                st.code(event.detail["traceback"], language=None)
    kinds = sorted({e.kind for e in found})
    telling = [kind for kind in kinds if kind not in (EventKind.PROBE, EventKind.CHECKPOINT)]
    shown = st.pills(
        "Kinds",
        kinds,
        format_func=literal,
        selection_mode="multi",
        default=telling,
        key="log-kinds",
        persist_state="session",
        label_visibility="collapsed",
    )
    rows = [e for e in found if not shown or e.kind in shown][-MOST:][::-1]
    st.dataframe(
        pd.DataFrame(
            {
                "step": [e.step for e in rows],
                "time": [datetime.fromtimestamp(e.time) for e in rows],
                "event": [f"{ICONS.get(e.kind, '·')} {e.kind}" for e in rows],
                "what": [told(e) for e in rows],
            }
        ),
        hide_index=True,
        height="auto" if len(rows) <= 10 else 480,
        key=f"events/{run}",
        column_config={
            "step": st.column_config.NumberColumn(format="localized", width=90),
            "time": st.column_config.DatetimeColumn(format="HH:mm:ss", width=90),
            "event": st.column_config.TextColumn(width=130),
            "what": st.column_config.TextColumn(width=900),
        },
    )
    st.caption(f"{len(found):,} events")
    controls.noting(run)
    tail = logged(run)
    if tail:
        with st.expander("What the engine printed"):
            st.code(tail, language=None)


def troubles(events) -> list[tuple[Any, int]]:
    """Return what went wrong, the last of a kind and how often, in the order of the last."""
    found: dict[tuple[str, str], tuple[Any, int]] = {}
    for event in events:
        if event.kind in WRONG:
            key = (event.kind, event.detail.get("error") or told(event))
            found[key] = (event, found.pop(key, (event, 0))[1] + 1)
    return list(found.values())


def told(event) -> str:
    """Return what an event says in words."""
    detail = event.detail
    if event.kind in (EventKind.APPLIED, EventKind.REFUSED):
        said = sentence(detail.get("command", {}), catalog.titles())
        return f"{said}: {detail['error']}" if "error" in detail else said
    if event.kind == EventKind.PROBE:
        return f"{detail.get('name')} took {detail.get('seconds', 0):.3g} s"
    if "error" in detail:
        return str(detail["error"])
    if event.kind == EventKind.MENDED:
        return str(detail["text"])
    if event.kind == EventKind.IDLE:
        title = catalog.titles().get(detail.get("method"), detail.get("method"))
        return f"{title} leaves training as it is: {detail.get('text')}"
    return ", ".join(f"{k} {v}" for k, v in detail.items() if k != "traceback")


def logged(run: str, most: int = 6000) -> str:
    """Return the end of what the engine printed, the last state of each progress line only."""
    try:
        with opened(folder() / run / "log.txt") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 50 * most))
            text = file.read().decode(errors="replace")
    except (OSError, ValueError):
        return ""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))[-most:].strip()


@st.fragment
def records(run: str) -> None:
    """Draw any record by its default figure, at any step at which it was measured."""
    now = shell.now(run)
    live.watch(run, "records", now.tags["records"], key=f"watch-records/{run}")
    known = shell.reader(run).names()["records"]
    if not known:
        st.info(
            "No records yet. Probes leave them: open Landscape, Curvature or Balance and press Measure now.",
            icon=":material/straighten:",
        )
        return
    name = st.selectbox(
        "Record", sorted(known), key="log-record", persist_state="session", format_func=lambda n: f"{n}  ({known[n]})"
    )
    live.scrubber(run, [name], key=f"scrub-record/{run}", group="record")
    live.chart(run, "record", key=f"record/{run}", title=name, names=[name], height=420, group="record")


def configuration(run: str) -> None:
    """Draw the configuration as it was asked for, and what the engine made of it."""
    reader = shell.reader(run)
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Asked for**")
        try:
            st.json(value_of(text_of(folder() / run / "config.json")))
        except (OSError, ValueError) as error:
            st.error(f"config.json cannot be read ({literal(brief(error))}).", icon=":material/error:")
    with right:
        st.markdown("**As it runs**")
        facts = (
            "title",
            "modalities",
            "parameters",
            "rows",
            "batch",
            "protocol",
            "device",
            "threads",
            "optimizer",
            "versions",
        )
        known = {key: reader.meta(key) for key in facts}
        st.json({key: value for key, value in known.items() if value is not None} or {"state": "not started"})
    with st.expander("Every setting with its value"):
        st.dataframe(
            pd.DataFrame(
                sorted((k, str(v)) for k, v in (reader.meta("settings", {}) or {}).items()),
                columns=["setting", "value"],
            ),
            hide_index=True,
            key=f"settings/{run}",
        )
    with st.expander("Parameters of the model"):
        shapes = reader.meta("layout", {}) or {}
        st.dataframe(
            pd.DataFrame([(n, " × ".join(map(str, s))) for n, s in shapes.items()], columns=["parameter", "shape"]),
            hide_index=True,
            key=f"layout/{run}",
        )


def export(run: str) -> None:
    """Offer the run's numbers, events and configuration as files."""
    st.markdown("Every number, event and setting of this run, to keep or to draw elsewhere.")
    files = (
        (
            "Numbers as CSV",
            lambda: numbers_csv(run),
            f"{run}.csv",
            "text/csv",
            "csv",
            ":material/table:",
        ),
        (
            "Events as CSV",
            lambda: events_csv(run),
            f"{run}-events.csv",
            "text/csv",
            "events",
            ":material/event_note:",
        ),
        (
            "Records as NPZ files",
            lambda: records_zip(run),
            f"{run}-records.zip",
            "application/zip",
            "records",
            ":material/data_array:",
        ),
        (
            "Configuration",
            lambda: json.dumps(read(folder() / run).to_json(), indent=1),
            f"{run}-config.json",
            "application/json",
            "config",
            ":material/settings:",
        ),
    )
    with st.container(horizontal=True):
        for label, made, name, kind, key, icon in files:
            st.download_button(label, made, name, kind, key=f"export-{key}", icon=icon, on_click="ignore")
    st.caption("The camera above each chart saves it as a picture.")


def numbers_csv(run: str) -> str:
    """Return every recorded number as `numbers` of the engine's export has them."""
    return tables.csv(tables.numbers(shell.reader(run)))


def events_csv(run: str) -> str:
    """Return the events as `events` of the engine's export has them."""
    return tables.csv(tables.events(shell.reader(run)))


def records_zip(run: str) -> bytes:
    """Return the latest record of every name as an NPZ file, with what is known about it as JSON beside it."""
    reader, made = shell.reader(run), io.BytesIO()
    with zipfile.ZipFile(made, "w") as bundle:
        for name in reader.names()["records"]:
            path = tables.file_of(name)
            try:
                step, record = reader.latest(name)
            except InputError as error:
                bundle.writestr(f"{path}.txt", str(error))
                continue
            arrays: Mapping[str, Any] = {k: getattr(record, k) for k in record.arrays if getattr(record, k) is not None}
            content = io.BytesIO()
            np.savez(content, **arrays)
            bundle.writestr(f"{path}.npz", content.getvalue())
            about = {
                "name": name,
                "step": step,
                "kind": record.kind,
                "n": record.n,
                "mode": record.mode,
                "seconds": record.seconds,
            }
            bundle.writestr(f"{path}.json", json.dumps(about | {"draw": record.display.to_json()}, default=str))
    return made.getvalue()
