"""The controls of a run, and what becomes of what a person asks for there.

Controls are drawn from what the engine has acknowledged. The browser resends the value of every widget of Streamlit's
at every rerun, and a value that was drawn anew meanwhile then looks like a person's change; so with the server's routes
controls are a component of our own, which hands over what was clicked and nothing else. Without them (a test, or
`streamlit run app/ui.py`) they are Streamlit's widgets, whose callbacks know the value that was drawn.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from modalscape.app import catalog
from modalscape.app.runs.acknowledged import already, measurable, ready
from modalscape.app.runs.status import ALIVE, DEAD, Standing, folder, home_of, sentence, standing
from modalscape.app.runs.supervisor import Supervisor
from modalscape.app.server import live
from modalscape.app.text import literal
from modalscape.engine.client.forks import planned
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.errors import InputError
from modalscape.engine.store.commands import (
    Cancel,
    Command,
    Measure,
    Pace,
    Pause,
    Resume,
    Stop,
    Toggle,
    Tune,
    Watch,
    from_json,
)
from modalscape.engine.store.ids import fork_id
from modalscape.engine.store.words import State

MOST = 100
"""Requests taken from a page at once, and tokens remembered of those taken before."""
OFFERED = (Pause, Resume, Stop, Pace, Toggle, Tune, Watch, Measure, Cancel)
"""What a page's controls may ask for."""


@st.cache_resource
def supervisor() -> Supervisor:
    """Return the server's supervisor, which has taken up what waited from an earlier server."""
    made = Supervisor()
    made.adopt()
    return made


def send(run: str, command: Command, token: str = "") -> None:
    """Send a command to a run, once for each `token`; a run that cannot take it says so in a toast."""
    home = home_of(folder(), run)
    try:
        if home is None:
            raise InputError(f"There is no run {run}.")
        RunHandle.attach(home).send(command, token, once=bool(token))
    except (InputError, OSError, sqlite3.Error) as error:
        st.toast(f"The command was not sent: {literal(error)}", icon=":material/error:")


def measure(run: str, command: Measure, token: str = "") -> None:
    """Ask for a measurement, and see that somebody is there to make it, also when the run is over."""
    send(run, command, token)
    home = home_of(folder(), run)
    try:
        if home is not None:
            RunHandle(home).observe()
    except InputError as error:
        st.toast(f"Nobody could be started to measure: {literal(error)}", icon=":material/error:")


def forked(now: Standing, step: Any, token: str = "") -> None:
    """Make a new run that goes on from a step of this one, let it rest there, and show it.

    Raises:
        InputError: that is no step of the run, or the run, its data or the room for another are not there.
    """
    if isinstance(step, bool) or not isinstance(step, int):
        raise InputError("A run is forked at one of its steps, a whole number.")
    parent = home_of(folder(), now.id)
    if parent is None:
        raise InputError(f"There is no run {now.id} any more.")
    four = hashlib.sha256(token.encode()).hexdigest()[:4] if token else None
    run = fork_id(now.id, max(step, 0), four)
    if not token or home_of(folder(), run) is None:  # else another session has handed it over already
        config = planned(parent, step, catalog.load(), beside=folder())
        supervisor().fork(config.to_json(), run)
    st.session_state["run"] = st.query_params["run"] = run


def resumed(now: Standing) -> None:
    """Go on with a run: from its last checkpoint when its engine has ended, else from its pause."""
    if now.state in DEAD:
        supervisor().resume(now.id, 2 * now.steps if now.state == State.FINISHED else None)
    else:
        send(now.id, Resume())


def leave(now: Standing) -> None:
    """Take a run out of the queue."""
    if not supervisor().cancel(now.id):
        st.toast("This run has already started.")


ACTIONS: dict[str, Callable[[Standing, Mapping[str, Any], str], None]] = {
    "go on": lambda now, act, token: resumed(now),
    "leave": lambda now, act, token: leave(now),
    "fork": lambda now, act, token: forked(now, act.get("step"), token),
}
"""What a page may ask for that is no command to an engine, and how that is done: of a run, as asked, under a token."""


def confirmed() -> list[str]:
    """Return the tokens of what this session has taken from its page."""
    return list(st.session_state.setdefault("confirmed", deque(maxlen=MOST)))


def received() -> None:
    """Take what the page hands over: each token once, however often it comes."""
    confirmed()
    for entry in live.asked_for()[:MOST]:
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in ("token", "run")):
            continue
        token = entry["token"][:80]
        if token not in st.session_state["confirmed"]:
            st.session_state["confirmed"].append(token)
            taken(entry["run"], entry.get("act"), token)


def taken(run: str, act: Any, token: str = "") -> None:
    """Do what a person asked for, unless the run has it or was asked for it already; say why where it cannot be."""
    home = home_of(folder(), run)
    if home is None:
        st.toast(f"There is no run {literal(run[:60])}.", icon=":material/error:")
        return
    now, action = standing(run, home), ACTIONS.get(str(act.get("do"))) if isinstance(act, Mapping) else None
    try:
        if action is not None:
            action(now, act, token)
            return
        command = from_json(act)
        if not isinstance(command, OFFERED):
            raise InputError(f"A page does not ask for {command.word}.")
        if isinstance(command, Toggle | Tune | Watch | Pace) and not ready(now):
            raise InputError("The run cannot be steered now: it has not written its settings, or it has ended.")
        if isinstance(command, Measure) and not measurable(now):
            raise InputError("The run cannot be measured now: it has not begun.")
    except InputError as error:
        what = "The command was not sent" if action is None else "This cannot be done"
        st.toast(f"{what}: {literal(error)}", icon=":material/error:")
        return
    if isinstance(command, Measure):
        measure(run, command, token)
    elif not already(now, command.to_json()):
        send(run, command, token)


def switch(now: Standing, entry: Mapping[str, Any], place: str, text: str = "") -> None:
    """Draw the switch of a method as the run has acknowledged it or, while a command waits, as it was asked for."""
    name, text, words = entry["name"], text or entry["title"], entry.get("summary") or None
    if live.served():
        live.control("switch", now.id, key=f"{place}/{now.id}/{name}", method=name, text=text, help=words)
        return
    stand = now.methods.get(name)
    on = bool(stand and (stand.on if stand.asked is None else stand.asked))
    key = f"{place}/{now.id}/{name}={on}"
    made = lambda value: Toggle(name, bool(value))  # noqa: E731  read with the widget below
    st.toggle(text, on, key=key, help=words, disabled=not ready(now), on_change=changed, args=(now.id, key, on, made))
    if stand and (stand.idle or stand.words):
        st.caption(literal(stand.idle or stand.words))


def changed(run: str, key: str, drawn: Any, made: Callable[[Any], Command]) -> None:
    """Send what a widget of Streamlit's now asks for, if that is another value than was drawn."""
    value = st.session_state.get(key)
    if value is not None and value != drawn:
        taken(run, made(value).to_json())


def tuning(now: Standing, entry: Mapping[str, Any], *, columns: int = 3, key: str = "") -> None:
    """Draw the knobs of a method or the optimiser at the values that the run acknowledges; a change is sent at once."""
    owner, entries = entry["name"], entry["knobs"]
    if live.served():
        place = f"knobs/{now.id}/{owner}/{key}"
        live.control("knobs", now.id, key=place, owner=owner, knobs=[described(k) for k in entries], columns=columns)
        return
    for start in range(0, len(entries), columns):
        for column, knob in zip(st.columns(columns), entries[start : start + columns], strict=False):
            path = f"{owner}.{knob['name']}"
            value = now.asked.get(path, (now.settings or {}).get(path, knob["default"]))
            with column:
                # A key of its own for each value: once the engine says otherwise, the widget is another one.
                place, made = f"tune/{now.id}/{path}={value}", _tune(owner, knob["name"])
                options = {"on_change": changed, "args": (now.id, place, value, made), "disabled": not ready(now)}
                widget(knob, place, value, **options)
    waiting = [sentence(c) for c in now.commands if c.get("do") == "tune" and c.get("method") == owner]
    if waiting:
        st.caption(literal("requested: " + ", ".join(waiting)))


def _tune(owner: str, knob: str) -> Callable[[Any], Tune]:
    return lambda value: Tune(owner, knob, value)


def described(knob: Mapping[str, Any]) -> dict[str, Any]:
    """Return a knob as the component draws it."""
    kept = ("name", "type", "default", "low", "high", "log", "choices", "help")
    return {key: knob.get(key) for key in kept} | {"label": label(knob)}


def rate(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the learning rate as a knob of the optimiser, out of the catalogue's settings."""
    return next((entry | {"name": "lr"} for entry in entries if entry["name"] == "optimizer.lr"), None)


def interval(now: Standing, probe: Mapping[str, Any]) -> None:
    """Draw how often a probe measures."""
    name, every = probe["name"], now.asked.get(f"probe {probe['name']}", now.probes.get(probe["name"], 0))
    options = sorted({0, 10, 25, 50, 100, 200, 500, 1000, int(probe["every"]), int(every)})
    if probe["needs"] and not (now.settings or {}).get(f"{name}.{probe['needs']}"):
        options = sorted({0, int(every)})  # on a schedule it would be refused every time
    words = (
        f"{probe['title']}: {probe['cost']} cost. Beside the training it is measured as soon as so many steps "
        "have passed and it is its turn; in a run that measures between its steps, exactly at them."
    )
    if live.served():
        live.control(
            "interval", now.id, key=f"every/{now.id}/{name}", width=190, probe=name, options=options, help=words
        )
        return
    key = f"every/{now.id}/{name}={every}"
    st.selectbox(
        "Measure",
        options,
        options.index(int(every)),
        key=key,
        format_func=lambda n: f"every {n:,} steps" if n else "on request only",
        width=190,
        disabled=not ready(now),
        on_change=changed,
        args=(now.id, key, int(every), lambda value: Watch(name, int(value) > 0, int(value))),
        help=words,
    )


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
    """Draw Streamlit's widget of a knob, first at `value`; return what it stands at.

    The value is the widget's own default, not written into the session: what lies in a closed popover or expander would
    otherwise open at the lowest value of its range.
    """
    common = {"key": key, "help": knob.get("help") or None, "disabled": disabled}
    common |= {"on_change": on_change, "args": args} if on_change else {}
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


def buttons(now: Standing) -> None:
    """Draw Streamlit's buttons of a run: always in the same places, disabled where they make no sense."""
    if now.state == State.QUEUED:
        st.button("Leave the queue", key="cancel-queued", on_click=leave, args=(now,), width="stretch")
        return
    on, dead, (first, second), (third, fourth) = now.state in ALIVE, now.state in DEAD, st.columns(2), st.columns(2)
    offered = (
        (first, "Resume", dead or now.state == State.PAUSED, resumed, (now,)),
        (second, "Pause", on and now.state not in (State.PAUSED, State.STOPPING), send, (now.id, Pause())),
        (third, "Step", now.state == State.PAUSED, send, (now.id, Resume(1))),
        (fourth, "Stop", on and now.state != State.STOPPING, send, (now.id, Stop())),
    )
    for column, name, may, pressed, given in offered:
        column.button(name, key=name.lower(), disabled=not may, on_click=pressed, args=given, width="stretch")
