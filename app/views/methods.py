"""The parts of the Methods page: choose one, switch and tune it, look at its evidence, read where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from modalscape.app import catalog
from modalscape.app.charts.method_panels import LAST, Panel, panels
from modalscape.app.runs.acknowledged import ready
from modalscape.app.server import live
from modalscape.app.text import literal
from modalscape.app.views import controls, shell, steering


def choice(entries: Sequence[Mapping[str, Any]], on: Sequence[str]) -> Mapping[str, Any]:
    """Draw the choice of a method, at first one that is `on`; return its catalogue entry."""
    known = catalog.named(entries)
    first = next((name for name in known if name in on), next(iter(known)))
    name = st.pills(
        "Method",
        list(known),
        format_func=lambda n: known[n]["title"],
        default=first,
        required=True,
        key="method-choice",
        persist_state="session",
        label_visibility="collapsed",
    )
    return known[name or first]


@st.fragment
def card(run: str, name: str) -> None:
    """Draw a method's switch and knobs as the engine has acknowledged them."""
    entry = catalog.named(catalog.methods())[name]
    now = shell.now(run)
    live.watch(run, "control", now.tags["control"], key=f"watch-method/{run}")
    with st.container(border=True, key="method-card"):
        head, switch = st.columns([3, 1], vertical_alignment="top")
        with head:
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.subheader(entry["title"], anchor=False, width="content")
                if entry["reconstructed"]:
                    st.badge(
                        "our reconstruction",
                        color="orange",
                        icon=":material/construction:",
                        help="Only part of the paper is public; what is ours is said below.",
                    )
                st.badge("acts at " + ", ".join(entry["points"]), color="gray")
            st.markdown(_sentence(entry))
            if entry["judged"]:
                st.caption(entry["judged"])
        with switch:
            steering.switch(now, entry, "card", "On")
        if now.refused:
            st.warning(literal(now.refused[1]), icon=":material/block:")
        optimizer = (shell.reader(run).meta("optimizer", {}) or {}).get("name", "")
        note = rescaled(entry, optimizer, catalog.load()["rescaling"])
        if note:
            st.info(f"This run's optimiser is {literal(optimizer)}. {note}", icon=":material/balance:")
        if entry["knobs"]:
            first, more = entry["knobs"][:3], entry["knobs"][3:]
            steering.tuning(now, entry | {"knobs": first}, key="first")
            if more:
                with st.expander(f"{len(more)} more knobs"):
                    steering.tuning(now, entry | {"knobs": more}, key="more")
            if ready(now):
                st.caption("A change takes effect before the next step and is marked on every time axis.")


def _sentence(entry: Mapping[str, Any]) -> str:
    """Return the summary of a method without its name in front."""
    text = entry["summary"].removeprefix(f"{entry['title']}: ")
    return text[:1].upper() + text[1:]


def reading(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return which readings of a method are in force: its choices and switches, those changed from the default in bold.

    >>> knobs = [{"name": "per_row", "type": "bool", "default": False, "choices": None}]
    >>> reading({"name": "m", "knobs": knobs}, {"m.per_row": True})
    '**per row on**'
    """
    words = []
    for knob in entry["knobs"]:
        if knob["type"] != "bool" and not knob.get("choices"):
            continue
        value = settings.get(f"{entry['name']}.{knob['name']}", knob["default"])
        shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else literal(str(value).replace("_", " "))
        text = f"{knob['name'].replace('_', ' ')} {shown}"
        words.append(text if value == knob["default"] else f"**{text}**")
    return " · ".join(words)


def rescaled(entry: Mapping[str, Any], optimizer: str, rescaling: Sequence[str]) -> str:
    """Return what becomes of a method under the run's optimiser, where that divides gradients by their running size."""
    return entry["rescaled"] if optimizer in rescaling else ""


def evidence(run: str, entry: Mapping[str, Any]) -> None:
    """Draw what the method reports about itself: its telling panels at once, all other numbers on request."""
    st.markdown("##### Is it doing what it says?")
    _evidence(run, entry["name"])


@st.fragment
def _evidence(run: str, name: str) -> None:
    now, entry = shell.now(run), catalog.named(catalog.methods())[name]
    _told(run, entry)
    # Last, since a component takes some height even where it shows nothing.
    live.watch(run, "records", now.tags["records"], key=f"watch-evidence/{run}/{name}")
    live.watch(run, "control", now.tags["control"], key=f"watch-reading/{run}/{name}")


def _told(run: str, entry: Mapping[str, Any]) -> None:
    name, reader = entry["name"], shell.reader(run)
    own = {n: kind for n, kind in reader.names()["records"].items() if n.startswith(f"{name}/")}
    if not own:
        st.info(
            f"{entry['title']} has reported nothing in this run: switch it on and let a few steps pass.",
            icon=":material/toggle_on:",
        )
        return
    chosen = reading(entry, reader.meta("settings", {}) or {})
    if chosen:
        st.caption(f"The reading in force: {chosen}")
    found = panels(own, reader.drawn(own), reader.meta("modalities", []) or [])
    telling = [panel for panel in found if panel.place < LAST]
    _grid(run, telling, 2, 260)
    rest = [panel for panel in found if panel.place == LAST]
    if rest and (not telling or st.toggle(f"{len(rest)} more of its charts", key=f"more-evidence/{name}")):
        _grid(run, rest, 3, 210)


def measured(run: str, entry: Mapping[str, Any]) -> None:
    """Draw what probes that the method names have measured of it, and the choice to measure."""
    for name in entry["shown_by"]:
        probe = shell.probe(name)
        if probe is not None:
            st.markdown(f"##### Measured beside it: {probe['title'].lower()}")
            controls.measuring(run, probe)
            _measured(run, name)


@st.fragment
def _measured(run: str, probe: str) -> None:
    reader = shell.reader(run)
    known = {n: kind for n, kind in reader.names()["records"].items() if n.startswith(f"{probe}/")}
    _grid(run, panels(known, reader.drawn(known), reader.meta("modalities", []) or []), 3, 230)
    if not known and probe not in shell.now(run).busy:
        st.caption("Nothing has been measured here: choose an interval above, or press Measure now.")
    live.watch(run, "records", shell.now(run).tags["records"], key=f"watch-measured/{run}/{probe}")


def _grid(run: str, found: Sequence[Panel], width: int, height: int) -> None:
    for start in range(0, len(found), width):
        row = found[start : start + width]
        own = height + 140 * any(panel.tall for panel in row)
        for column, panel in zip(st.columns(width, gap="medium"), row, strict=False):
            with column:
                key = f"own/{run}/{panel.names[0]}"
                live.chart(run, "panel", key=key, title=panel.title, names=panel.names, height=own)
                if panel.note:
                    st.caption(literal(panel.note))


def about(entry: Mapping[str, Any]) -> None:
    """Draw where the method comes from, what of it is ours, and everything that its file says."""
    st.markdown("##### Where it comes from")
    if entry["source"]:
        st.markdown(prose(entry["source"]))
    if entry["after"]:
        st.caption("Acts after " + ", ".join(catalog.titles().get(n, n) for n in entry["after"]) + " where both act.")
    if entry["reconstructed"]:
        st.markdown(prose(entry["doc"].partition("\n\n")[2].partition("\n*Acts at*")[0]))
    with st.expander("All that its file says"):
        st.markdown(prose(entry["doc"]))


_SET = re.compile(r"`[^`]+`|^\*[A-Z][\w ]*\*:|^- \*[^*]+\*:")
"""What a line of a docstring sets by marks: code, the head of a section, the head of a list's entry."""
_MARKS = re.compile(r"([\\`*_\[\]<>$#|~])")


def prose(text: str) -> str:
    r"""Return a docstring as Markdown in which only its own marks count; indented formulas stay as they are.

    >>> print(prose("a_b and `c_d` * e"))
    a\_b and `c_d` \* e
    """
    return "\n".join(line if line.startswith("    ") else _escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    parts, last = [], 0
    for found in _SET.finditer(line):
        parts += [_MARKS.sub(r"\\\1", line[last : found.start()]), found.group()]
        last = found.end()
    return "".join([*parts, _MARKS.sub(r"\\\1", line[last:])])
