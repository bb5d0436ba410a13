"""The parts of the Start page: lessons as cards, the form of a new run, the list of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import streamlit as st

from modalscape.app import catalog
from modalscape.app.charts import unimodal_gap
from modalscape.app.runs import limits
from modalscape.app.runs.lessons import watched
from modalscape.app.runs.status import ALIVE, DEAD, WORDS, branches, folder, home_of, listed, origin, standing, tag
from modalscape.app.runs.supervisor import delete, write_note
from modalscape.app.server import live
from modalscape.app.server.routes import roll
from modalscape.app.text import literal
from modalscape.app.views import controls, shell, steering
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.errors import InputError
from modalscape.engine.store.words import State

COLOURS = {
    State.RUNNING: "green",
    State.STARTING: "blue",
    State.QUEUED: "blue",
    State.PAUSED: "orange",
    State.STOPPING: "orange",
} | dict.fromkeys((State.FAILED, State.CRASHED, State.STALLED), "red")
SHOWN = 40
"""Runs listed at first."""
INDENT, DEEPEST = 0.05, 6
"""Part of the width by which a fork is moved in below its parent, and how often at most."""


def lessons(catalogue: Mapping[str, Any]) -> None:
    """Draw each lesson as a card with one button for each of its arms."""
    entries = catalogue["lessons"]
    if not entries:
        return
    st.markdown("##### Lessons")
    titles, width = catalog.titles(), min(3, len(entries))
    for start in range(0, len(entries), width):
        for column, entry in zip(st.columns(width, gap="medium"), entries[start : start + width], strict=False):
            with column.container(border=True, height="stretch", key=f"lesson-{entry['name']}"):
                st.markdown(f"**{entry['title']}**")
                st.caption(f"What it shows: {entry['claim']}")
                with st.container(horizontal=True, gap="small"):
                    for arm, config in entry["arms"].items():
                        words = titles.get(arm) or arm.replace("_", " ").capitalize()
                        key = f"lesson/{entry['name']}/{arm}"
                        if st.button(words, key=key, icon=":material/play_arrow:"):
                            note, page = f"{entry['title']}: {words}", (*entry["show"], "live")[0]
                            begin(watched(config, catalogue), catalogue, note=note, page=page)
                with st.expander("What to watch"):
                    st.markdown(entry["words"])


def form(catalogue: Mapping[str, Any]) -> None:
    """Draw the form of a new run; its widgets come from the catalogue."""
    st.markdown("##### New run")
    with st.container(border=True, key="new-run"):
        config, values = _what(catalogue)
        first = st.columns(3)
        steps = first[0].number_input("Steps", 1, 100_000_000, 1000, step=100, key="new-steps", persist_state="session")
        seed = first[1].number_input(
            "Seed",
            0,
            2**53 - 1,
            0,
            step=1,
            key="new-seed",
            persist_state="session",
            help="Source of every random draw; the same seed gives the same run.",
        )
        device = first[2].selectbox(
            "Device",
            ["auto", "cpu", "cuda", "mps"],
            key="new-device",
            persist_state="session",
            help="auto takes a GPU when there is one.",
        )
        asked = _settings(catalogue, values, config)
        methods = _methods(catalogue, asked, values)
        probes = _probes(catalogue)
        note = st.text_input("Note", key="new-note", placeholder="What do you want to see? (optional)", max_chars=200)
        kept = {key: value for key, value in asked.items() if value is not None and value != values.get(key)}
        rest = {"probes": probes, "steps": steps, "seed": seed, "device": device, "settings": kept}
        made = config | {"methods": methods} | rest
        ready = bool(config["problem"] or config["data"])
        if st.button(
            "Start",
            key="new-start",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=not ready or _objected(made, catalogue),
        ):
            begin(made, catalogue, note=note)


def _objected(config: Mapping[str, Any], catalogue: Mapping[str, Any]) -> bool:
    """Say what speaks against starting a run, and offer what mends it; return whether it cannot be started at all."""
    try:
        limits.bounded(validated(RunConfig.from_json(config), catalogue).to_json())
    except InputError as error:
        st.warning(literal(error), icon=":material/block:")
        for key, value in getattr(error, "remedy", {}).items():
            st.button(f"Set {key} to {value}", key="new-remedy", on_click=_mended, args=(config, key, value))
        return True
    try:
        limits.room(len(steering.supervisor().waiting()))
    except InputError as error:  # only a warning: the queue may have moved on since the page was drawn
        st.warning(literal(error), icon=":material/hourglass_empty:")
    return False


def _mended(config: Mapping[str, Any], key: str, value: Any) -> None:
    owner = key.partition(".")[0] if "." in key else ""
    place = "new" if owner in config["methods"] else _place(config)
    st.session_state[f"{place}/{key}"] = value


def _place(config: Mapping[str, Any]) -> str:
    """Return how the keys of the widgets of settings begin: those of each problem keep their values."""
    return f"new/{config['problem'] or 'file'}"


def _what(catalogue: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw what is trained on; return the start of a configuration, and what every setting is before it is changed."""
    values = {k["name"]: k["default"] for k in catalogue["settings"]}
    for kind in ("methods", "probes", "problems"):
        for entry in catalogue[kind]:
            values |= {f"{entry['name']}.{k['name']}": k["default"] for k in entry["knobs"]}
    known, files = catalog.named(catalogue["problems"]), controls.files()
    kinds = ["Built-in problem", "Data file"]
    kind = st.segmented_control(
        "Train on",
        kinds,
        default=kinds[0],
        required=True,
        key="new-kind",
        persist_state="session",
        label_visibility="collapsed",
    )
    if kind == kinds[1]:
        if not files:
            st.info(
                "No data files are offered. Set MODALSCAPE_FILES to a folder of .npz files and restart the server.",
                icon=":material/folder_open:",
            )
            return {"problem": None, "data": None}, values
        name = st.selectbox(
            "Data file",
            list(files),
            key="new-file",
            persist_state="session",
            help="The .npz files in the server's folder MODALSCAPE_FILES.",
        )
        return {"problem": None, "data": str(files[name])}, values
    name = st.selectbox(
        "Problem", list(known), format_func=lambda n: known[n]["title"], key="new-problem", persist_state="session"
    )
    if name is None:
        return {"problem": None, "data": None}, values
    st.caption(known[name]["summary"])
    if known[name]["source"]:
        st.caption(f"Source: {known[name]['source']}")
    return {"problem": name, "data": None}, values | known[name].get("defaults", {})


_FRONT = ("optimizer.name", "optimizer.lr", "batch", "objective", "unimodal", "fusion")


def _settings(catalogue: Mapping[str, Any], values: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the settings: six in front, the others behind; return setting key to value."""
    known = {k["name"]: k for k in catalogue["settings"]}
    place = _place(config)
    front = [known[name] for name in _FRONT if name in known]
    found = controls.knobs("", front, values, place)
    with st.expander("More settings"):
        problem = catalog.named(catalogue["problems"]).get(config["problem"] or "")
        if problem and problem["knobs"]:
            st.markdown(f"**{problem['title']}**")
            found |= controls.knobs(problem["name"], problem["knobs"], values, place)
        groups = {"Model and training": "", "Optimiser and schedule": "optimizer."}
        for title, prefix in groups.items():
            st.markdown(f"**{title}**")
            rest = [k for n, k in known.items() if n not in _FRONT and n.startswith("optimizer.") == bool(prefix)]
            found |= controls.knobs("", rest, values, place)
    return found


def _methods(catalogue: Mapping[str, Any], asked: dict[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Draw the choice of methods with the knobs of those chosen; add these to `asked`; return the methods."""
    known = catalog.named(catalogue["methods"])
    chosen = st.pills(
        "Methods from the start",
        list(known),
        format_func=lambda n: known[n]["title"],
        selection_mode="multi",
        key="new-methods",
        persist_state="session",
        help="All of them can be switched on and off later, while the run trains.",
    )
    for name in chosen or ():
        if known[name]["knobs"]:
            with st.expander(f"{known[name]['title']}: knobs"):
                asked |= controls.knobs(name, known[name]["knobs"], values, "new")
    return list(chosen or ())


def _probes(catalogue: Mapping[str, Any]) -> dict[str, int]:
    """Draw the choice of probes; return probe to interval."""
    known = catalog.named(catalogue["probes"])
    chosen = st.pills(
        "Measure while it trains",
        [name for name, entry in known.items() if not entry["needs"]],
        format_func=lambda n: known[n]["title"],
        selection_mode="multi",
        default=[n for n, e in known.items() if e["usual"] and not e["needs"]],
        key="new-probes",
        persist_state="session",
        help="By a process beside the training, which goes on meanwhile; all can be changed later.",
    )
    return {name: 0 for name in chosen or ()}


def begin(config: Mapping[str, Any], catalogue: Mapping[str, Any], *, note: str = "", page: str = "live") -> None:
    """Start a run and show it; what is wrong with the configuration is said in place."""
    try:
        checked = validated(RunConfig.from_json(config), catalogue)
        run = steering.supervisor().begin(checked.to_json(), note)
    except InputError as error:
        st.error(literal(error), icon=":material/error:")
        return
    shell.go(page if any(p.stem.partition("_")[2] == page for p in shell.PAGES.glob("*.py")) else "live", run)


def heads(run: str) -> None:
    """Of a run that has one loss say what that leaves empty, and offer the run that has a loss for each modality."""
    config = unimodal_gap.with_heads(run, shell.catalogue())
    if config is None:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="with-heads"):
        st.caption("This run has one loss; comparing modalities by their losses needs one for each.", width="content")
        words = "Start it with a loss for each modality"
        if st.button(words, key=f"with-heads/{run}", icon=":material/play_arrow:"):
            begin(config, shell.catalogue(), note=f"with a loss for each modality, beside {shell.words(run)}")


@st.fragment
def runs() -> None:
    """Draw the list of runs, newest first; it follows their progress."""
    st.markdown("##### Runs")
    known = listed(folder())
    live.watch("", "runs", tag(roll(folder())), key="watch-runs")
    if not known:
        st.info("No run yet. Start one with a lesson, or with the form.", icon=":material/science:")
        return
    rows = branches(known)
    forks = Counter(comes[0] for _, home in known if (comes := origin(home)))
    with st.container(gap="xsmall", key="run-list"):
        for run, home, depth in rows if st.session_state.get("all-runs") else rows[:SHOWN]:
            _row(run, standing(run, home), depth, forks[run])
    if len(known) > SHOWN:
        st.toggle(f"Show all {len(known):,}", key="all-runs")


def _row(run: str, now, depth: int, forks: int) -> None:
    """Draw a run that has so many `forks`; a fork is moved in below its parent, `depth` times."""
    place = st.columns([INDENT * min(depth, DEEPEST), 1 - INDENT * min(depth, DEEPEST)])[1] if depth else st
    with place.container(border=True, key=f"row-{run}"):
        what, state, further, more = st.columns([5, 3, 4, 1.6], vertical_alignment="center")
        with what:
            comes = origin(folder() / run) if depth else None
            label = shell.words(run)
            if comes:  # what stands above it says the rest
                label = f"from step {comes[1]:,} · {label.rpartition(' · ')[2]}"
            st.page_link(shell.page_path("live"), label=label, query_params={"run": run})
            note = shell.note(run)
            if note:
                st.caption(literal(note))
        state.badge(literal(WORDS.get(now.state, now.state)), color=COLOURS.get(now.state, "gray"))
        share = min(1.0, now.step / now.steps) if now.steps else 0.0
        further.progress(share, text=f"{now.step:,} of {now.steps:,} steps")
        with more.popover("", icon=":material/more_horiz:", key=f"more-{run}", help="Note, resume, delete"):
            key = f"note-{run}={tag(note)}"  # another widget for another note, which another page may have written
            st.text_input("Note", note, key=key, max_chars=500, on_change=_noted, args=(run, key, note))
            if now.state in DEAD:
                st.button(
                    "Resume" if now.state != State.FINISHED else f"Train on to step {2 * now.steps:,}",
                    key=f"again-{run}",
                    icon=":material/play_arrow:",
                    on_click=steering.resumed,
                    args=(now,),
                    width="stretch",
                )
            sure = st.checkbox(
                "I am sure",
                key=f"sure-{run}",
                disabled=now.state in ALIVE,
                help="A run that trains cannot be deleted: stop it first.",
            )
            if forks:
                which = "One fork shows" if forks == 1 else f"{forks} forks show"
                st.caption(f"{which} the first steps of this run. Without it only what a fork trained itself is left.")
            st.button(
                "Delete for good",
                key=f"delete-{run}",
                icon=":material/delete:",
                disabled=not sure or now.state in ALIVE,
                on_click=_delete,
                args=(run,),
                width="stretch",
            )
        wrong = now.error if now.state in (State.FAILED, State.CRASHED, State.UNREADABLE) else ""
        for said in filter(None, (wrong, steering.supervisor().problems.get(run))):
            st.caption(f":red[{literal(said)}]")


def _noted(run: str, key: str, drawn: str) -> None:
    home, text = home_of(folder(), run), st.session_state.get(key)
    if home is not None and text is not None and text != drawn:
        write_note(home, text)


def _delete(run: str) -> None:
    if home_of(folder(), run) is None or not st.session_state.get(f"sure-{run}"):
        return
    if steering.supervisor().cancel(run):
        return
    try:
        delete(run)
    except InputError as error:
        st.toast(literal(error), icon=":material/error:")
        return
    if st.session_state.get("run") == run:
        del st.session_state["run"]
        st.query_params.pop("run", None)
