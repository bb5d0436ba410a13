"""The one live component: charts, controls and watches, fed by one poller a page.

Where the server's own routes are absent (a test, or `streamlit run app/ui.py`), the same charts are drawn by Streamlit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from modalscape.app.charts.registry import CHARTS, checked
from modalscape.app.figures.base import HEIGHT
from modalscape.app.runs.acknowledged import controls
from modalscape.app.runs.status import Standing, folder
from modalscape.app.server import routes
from modalscape.app.text import literal
from modalscape.engine.store.writer import RunReader

_SERVED = "MODALSCAPE_SERVED"
STEERING = "steering"
"""Key of the component that receives what a person asks for, on every page."""
CONFIG = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
"""Of charts that Streamlit draws: nothing offers to send data out."""

_START = """
const started = new Map();
export default function (component) {
  const url = new URL(component.data.script, window.location.origin).href;
  if (!started.has(url)) started.set(url, import(url));
  const ready = started.get(url);
  ready.then((m) => m.mount(component), () => {
    component.parentElement.textContent = "Live charts need the server's own routes: start with `make run`.";
  });
  return () => ready.then((m) => m.unmount(component.key), () => {});
}
"""

_mount = st.components.v2.component("modalscape.live", js=_START, isolate_styles=False)


def serving(on: bool) -> None:
    """Say whether this process serves the routes that the component needs."""
    if on:
        os.environ[_SERVED] = "1"
    else:
        os.environ.pop(_SERVED, None)


def served() -> bool:
    """Return whether the component's routes are there."""
    return os.environ.get(_SERVED) == "1"


def dark() -> bool:
    """Return whether the page is dark, as far as the server knows."""
    return st.context.theme.type == "dark"


def chart(
    run: str,
    name: str,
    *,
    key: str,
    title: str = "",
    height: int = HEIGHT,
    names: Sequence[str] = (),
    group: str = "",
    link: str = "",
    **args: Any,
) -> None:
    """Draw chart `name` of `run` and keep it current.

    Charts of one `group` are scrubbed through time together; surfaces of one `link` are turned together, on one scale.
    """
    asked = {"names": list(names)} | {k: v for k, v in args.items() if v is not None and v is not False and v != ""}
    held = checked(name, asked)
    if not served():
        _plain(run, name, held, key=key, title=title, height=height)
        return
    data = {"kind": "chart", "run": run, "name": name, "args": asked, "title": title, "height": height}
    _mount(key=key, data=data | {"group": group, "link": link} | _scripts())


def scrubber(run: str, names: Sequence[str], *, key: str, group: str) -> None:
    """Draw a slider over the steps at which the first of `names` was measured; it moves the charts of `group`."""
    if served():
        data = {"kind": "scrub", "run": run, "name": "steps", "args": {"names": list(names)}, "group": group}
        _mount(key=key, data=data | _scripts())


def steering(
    standing: Standing,
    methods: Sequence[Mapping[str, Any]],
    rate: Mapping[str, Any] | None,
    probes: Sequence[str],
    *,
    received: Callable[[], None],
    confirmed: Sequence[str],
) -> None:
    """Draw the state of a run and its controls: buttons, pace, time, a switch for each of `methods`, the learning rate.

    `probes` can measure the run at an earlier step. What a person asks for anywhere on the page arrives here:
    `received` is called when `asked_for` has something new. `confirmed` lists the tokens of what has arrived.
    """
    entries = [{"name": m["name"], "title": m["title"], "help": m.get("summary", "")} for m in methods]
    data = {"kind": "steering", "run": standing.id, "methods": entries, "rate": rate, "received": list(confirmed)}
    data |= {"probes": list(probes), "topic": "state", "drawn": standing.tags["state"], "status": standing.to_json()}
    callbacks = {"on_changed_change": lambda: None, "on_sent_change": received}
    _mount(key=STEERING, data=data | {"controls": controls(standing)} | _scripts(), **callbacks)


def asked_for() -> list[Any]:
    """Return what the page has handed over since the last time, oldest first, as it came."""
    found = st.session_state.get(STEERING)
    sent = found.get("sent") if found else None
    return sent if isinstance(sent, list) else []


def control(kind: str, run: str, *, key: str, width: int | str = "stretch", **data: Any) -> None:
    """Draw a control of the run in view, a `switch`, `knobs` or `interval`; it shows what `steering` knows of the run.

    What a person does there arrives at `steering`, too.
    """
    _mount(key=key, data=data | {"kind": kind, "run": run} | _scripts(), width=width)


def progress(standing, probe: str, usual: str, *, key: str) -> None:
    """Draw how far the measurement of a probe is, as it goes on; `usual` where nothing is known of it."""
    words = standing.progress.get(probe, usual)
    if served():
        data = {"kind": "progress", "run": standing.id, "probe": probe, "words": words, "usual": usual}
        data |= {"busy": probe in standing.busy}
        _mount(key=key, data=data | _scripts())
    elif words:
        st.caption(literal(words))


def watch(run: str, topic: str, drawn: str, *, key: str) -> bool:
    """Have the surrounding fragment run again when `topic` of `run` is no longer as `drawn` says."""
    return served() and _watching({"kind": "watch", "run": run, "topic": topic, "drawn": drawn}, key)


def _watching(data: dict[str, Any], key: str) -> bool:
    return bool(_mount(key=key, data=data | _scripts(), on_changed_change=lambda: None).changed)


def _scripts() -> dict[str, str]:
    return {"script": routes.live_path(), "plotly": routes.plotly_path(), "base": routes.BASE}


def _plain(run: str, name: str, args: dict[str, Any], *, key: str, title: str, height: int) -> None:
    """Draw a chart without the component: no live updates, zoom lost when the page is drawn again."""
    reader = RunReader(folder() / run)
    drawing = CHARTS[name].draw(reader, args, routes.looks(reader, dark()))
    with st.container(key=f"{key}-plain"):
        if title:
            st.markdown(f"**{literal(title)}**")
        if drawing.figure is None:
            st.info(literal(drawing.empty))
            return
        drawing.figure.update_layout(height=height)
        st.plotly_chart(drawing.figure, key=f"{key}-figure", theme=None, config=CONFIG)
        st.caption(literal(drawing.caption))
