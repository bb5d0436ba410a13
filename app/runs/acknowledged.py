"""What a run has acknowledged, as its controls draw it, and whether a command asks for anything else.

Free of Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modalscape.app.runs.status import ALIVE, DEAD, Standing, tag
from modalscape.engine.store.words import State

ONCE = ("pause", "stop", "save")
"""Commands that say nothing new while one of their kind still waits."""


def ready(now: Standing) -> bool:
    """Return whether the run can be steered: its engine is at work and has written its settings."""
    return now.state in ALIVE and now.settings is not None


def measurable(now: Standing) -> bool:
    """Return whether a step of the run can be measured: it has begun, whether it trains on or is over."""
    return now.settings is not None and now.state in (*ALIVE, *DEAD)


def why(now: Standing) -> str:
    """Return why the run cannot be steered, and what to do, or nothing where it can."""
    if ready(now):
        return ""
    if now.state in DEAD:
        return "Resume the run to switch methods."
    if now.state == State.UNREADABLE:
        return "This run cannot be read, so it cannot be steered."
    return "Switches work once the run has started and written its settings."


def controls(now: Standing) -> dict[str, Any]:
    """Return what the controls of a run are drawn from, as JSON values; `tag` differs when anything else does."""
    found = {
        "ready": ready(now),
        "why": why(now),
        "alive": now.state in ALIVE,
        "over": now.state in DEAD,
        "methods": {
            name: {"on": m.on, "asked": m.asked, "words": m.words, "idle": m.idle} for name, m in now.methods.items()
        },
        "values": dict(now.settings or {}),
        "asked": dict(now.asked),
        "probes": dict(now.probes),
        "refused": now.refused[1] if now.refused else "",
        "revision": now.revision,
        "measurable": measurable(now),
        "pace": now.pace,
        "kept": list(now.kept),
        "forks": bool(now.kept) and now.state != State.UNREADABLE,
    }
    return found | {"tag": tag(found)}


def already(now: Standing, command: Mapping[str, Any]) -> bool:
    """Return whether the run has what a command (as JSON values) asks for, or has been asked for it."""
    do = command.get("do")
    if do == "toggle":
        stand = now.methods.get(command["method"])
        on = stand is not None and (stand.on if stand.asked is None else stand.asked)
        return on == command["on"]
    if do == "tune":
        path = f"{command['method']}.{command['knob']}"
        known = now.asked.get(path, (now.settings or {}).get(path))
        return known == command["value"] and isinstance(known, bool) == isinstance(command["value"], bool)
    if do == "watch":
        path, every = f"probe {command['probe']}", command.get("every", 0)
        known = now.asked.get(path, now.probes.get(command["probe"], 0))
        return not known if not command["on"] else bool(every) and known == every
    if do == "pace":
        return now.asked.get("pace", now.pace) == command["rate"]
    return do in ONCE and any(waiting.get("do") == do for waiting in now.commands)
