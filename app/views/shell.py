"""What every page has: which run is in view, the sidebar with its state and controls, the page's head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from modalscape.app import catalog
from modalscape.app.charts.labels import spoken as words
from modalscape.app.runs.acknowledged import why
from modalscape.app.runs.status import Standing, folder, home_of, listed, origin, standing
from modalscape.app.runs.supervisor import note_of
from modalscape.app.server import live
from modalscape.app.text import literal
from modalscape.app.views import steering
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.config import read
from modalscape.engine.errors import InputError
from modalscape.engine.store.words import State
from modalscape.engine.store.writer import RunReader

PAGES = Path(__file__).resolve().parents[2] / "pages"
NEWEST = 200
"""Runs offered in the picker."""
COMPARED = 60
"""Newest runs among which another of the same network is looked for."""


def catalogue() -> dict[str, Any]:
    """Return the catalogue; where the engine cannot list it, say so on the page and stop there."""
    try:
        with st.spinner("Reading the catalogue of methods …", show_time=False):
            return catalog.load()
    except InputError as error:
        st.error(literal(error), icon=":material/error:")
        st.stop()


def page_path(name: str) -> Path:
    """Return the file of the page whose name without its number is `name`."""
    return next(path for path in sorted(PAGES.glob("*.py")) if path.stem.partition("_")[2] == name)


def go(name: str, run: str) -> None:
    """Leave for another page with `run` in view."""
    st.session_state["run"] = run
    st.switch_page(page_path(name), query_params={"run": run})


def choose(known: list[str]) -> str | None:
    """Return the id of the run in view: from the URL, else from this session, else the newest; None without runs."""
    asked = st.query_params.get("run", "")
    if asked == "latest" and known:
        asked = known[0]
    for run in (asked, st.session_state.get("run", "")):
        if run in known or home_of(folder(), run):
            return run
    return known[0] if known else None


def sidebar() -> None:
    """Draw the sidebar and settle which run the page is about."""
    known = [run for run, _ in listed(folder())[:NEWEST]]
    run = choose(known)
    with st.sidebar:
        if run is None:
            st.markdown("**No run yet**")
            st.caption("Start one on the Start page; its state and controls appear here.")
            return
        if run not in known:
            known.insert(0, run)
        st.session_state["run"] = run
        if st.query_params.get("run") != run:
            st.query_params["run"] = run
        _picker(known, run)
        st.fragment(_steering, run_every=None if live.served() else 1.0)(run)


def _picker(known: list[str], run: str) -> None:
    """Draw the choice of the run in view, as another widget whenever that is another run.

    The browser resends what its widget shows until it has received the next one; an old one says nothing new.
    """
    drawn, count = st.session_state.get("picker", ("", 0))
    if drawn != run:
        st.session_state["picker"] = (run, count + 1)
    key = f"picker/{st.session_state['picker'][1]}"
    st.selectbox("Run", known, known.index(run), key=key, format_func=words, on_change=_picked, args=(key, run))


def _picked(key: str, drawn: str) -> None:
    run = st.session_state.get(key)
    if run and run != drawn:
        st.session_state["run"] = st.query_params["run"] = run


def _steering(run: str) -> None:
    """Draw state, buttons and one switch per method; drawn again when the run's state is another."""
    if st.session_state.get("run", run) != run:  # what was asked for leads to another run: the whole page is to show it
        st.rerun()
    home = home_of(folder(), run)
    if home is None:
        st.caption("This run has been deleted.")
        return
    now, methods = standing(run, home), catalog.methods()
    knob = steering.rate(catalog.load()["settings"]) if methods else None
    problem = steering.supervisor().problems.get(run)
    if problem:
        st.error(literal(problem))
    if live.served():
        described = steering.described(knob) if knob else None
        probes = [entry["name"] for entry in catalogue()["probes"] if not entry["needs"]]
        live.steering(now, methods, described, probes, received=steering.received, confirmed=steering.confirmed())
        return
    _facts(now)
    with st.container(gap="xsmall", key="steering"):
        steering.buttons(now)
    if now.refused:
        st.warning(literal(now.refused[1]), icon=":material/block:")
    st.markdown("**Methods**")
    if why(now):
        st.caption(why(now))
    with st.container(gap="xsmall", key="method-switches"):
        for entry in methods:
            steering.switch(now, entry, "side")
    if knob:
        steering.tuning(now, {"name": "optimizer", "knobs": [knob]}, columns=1)


def _facts(now: Standing) -> None:
    """Draw the state where there is no live panel."""
    st.markdown(f"**{now.to_json()['word']}** · step {now.step:,} of {now.steps:,}")
    st.progress(min(1.0, now.step / now.steps) if now.steps else 0.0)
    if now.pending:
        st.caption(literal("requested: " + ", ".join(now.pending)))
    if now.error:
        st.error(literal(now.error))


def page(title: str, purpose: str) -> str:
    """Draw a page's head and return the run in view; without one, say how to start one and stop."""
    st.title(title, anchor=False)
    st.caption(purpose)
    run = st.session_state.get("run")
    if run and home_of(folder(), run) is not None and now(run).state == State.UNREADABLE:
        st.error(literal(now(run).error), icon=":material/error:")
        st.stop()
    if not run or home_of(folder(), run) is None:
        st.info(
            "There is no run to look at yet. Open a lesson or start a run of your own.", icon=":material/rocket_launch:"
        )
        st.page_link(page_path("start"), label="Go to Start", icon=":material/arrow_forward:")
        st.stop()
    return run


def reader(run: str) -> RunReader:
    """Return the reader of a run."""
    return RunHandle.attach(folder() / run).reader()


def now(run: str) -> Standing:
    """Return how a run stands."""
    return standing(run, folder() / run)


def switched_on(run: str) -> list[str]:
    """Return the methods that are on in a run or, before its engine has said anything, on from its start."""
    known = now(run)
    if known.settings is None:
        return list(read(folder() / run).methods)
    return [name for name, stand in known.methods.items() if stand.on]


def probe(name: str) -> dict[str, Any] | None:
    """Return the catalogue entry of a probe, or None where it is not installed."""
    return catalog.named(catalogue()["probes"]).get(name)


def asked_for(run: str, probe: str) -> bool:
    """Return whether the run was started with an interval of its own for a probe, as lessons do that are about it."""
    asked = (reader(run).meta("config", {}) or {}).get("probes", {})
    return isinstance(asked, dict) and bool(asked.get(probe))


def several(run: str, otherwise: str) -> None:
    """Of a run of one modality say what there is instead of a comparison, `otherwise`, and stop the page there."""
    known = reader(run).meta("modalities", []) or []
    if len(known) == 1:
        st.info(f"This run trains on {literal(known[0])} alone, so {otherwise}", icon=":material/info:")
        st.stop()


def facts(run: str) -> str:
    """Return in one line what the run trains, as far as its engine has said so."""
    known = reader(run)
    rows, parameters = known.meta("rows", {}) or {}, known.meta("parameters")
    said = [known.meta("title"), " + ".join(known.meta("modalities", []) or [])]
    said += [
        f"{parameters:,} parameters" if parameters else "",
        f"{rows['train']:,} training rows" if "train" in rows else "",
    ]
    optimizer = known.meta("optimizer", {}) or {}
    rate = known.meta("learning_rate", optimizer.get("lr"))
    said += [
        f"{optimizer['name']}, learning rate {rate:g}" if optimizer.get("name") and rate else "",
        known.meta("device"),
    ]
    comes = origin(folder() / run)
    said += [f"from step {comes[1]:,} of {words(comes[0])}"] if comes else []
    return " · ".join(word for word in said if word)


def others(run: str) -> list[str]:
    """Return the numbers of a run that the Live page does not draw by itself."""
    drawn = ("loss/", "accuracy/", "error/", "grad_norm/", "update_norm/", "lr")
    return sorted(name for name in reader(run).names()["scalars"] if not name.startswith(drawn))


def neighbours(run: str, start: str = "") -> list[str]:
    """Return the newest runs that have the network of `run` and, if asked for, a record whose name has this start."""
    layout = reader(run).meta("layout")
    found = []
    for other, home in listed(folder())[:COMPARED]:
        if other == run:
            continue
        known = RunReader(home)
        try:
            alike = layout and known.meta("layout") == layout
            if alike and (not start or any(name.startswith(start) for name in known.names()["records"])):
                found.append(other)
        except InputError:  # a damaged run beside this one is none to compare with
            continue
    return found


def protocol(run: str) -> str:
    """Return how the unimodal scores of a run arise, in words."""
    said = reader(run).meta("protocol", "") or ""
    if said:
        return f"Unimodal scores: {literal(said)}."
    return "This run has one loss; a score of one modality alone needs a loss for each."


def note(run: str) -> str:
    """Return the note that a person left on a run."""
    return note_of(folder() / run)
