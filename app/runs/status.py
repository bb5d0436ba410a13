"""What pages and the poller say of a run: its state, what was asked and what was applied. Free of Streamlit."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalscape.app.runs import progress
from modalscape.engine.client.handle import OVER, RUN_ID, UNREADABLE, RunHandle, Status, runs, runs_folder
from modalscape.engine.errors import InputError
from modalscape.engine.store.home import kept_steps
from modalscape.engine.store.lineage import fork_of
from modalscape.engine.store.reader import RunReader
from modalscape.engine.store.words import EventKind, State

ALIVE = (State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING, State.STALLED)
DEAD = OVER

WORDS = {
    State.QUEUED: "waiting for a free core",
    State.STARTING: "starting",
    State.RUNNING: "training",
    State.PAUSED: "paused",
    State.STOPPING: "stopping",
    State.FINISHED: "finished",
    State.STOPPED: "stopped",
    State.FAILED: "failed",
    State.CRASHED: "crashed",
    State.STALLED: "not responding",
    State.UNREADABLE: "cannot be read",
}
"""State to what a page says."""


EVENTS = tuple(EventKind)
"""Kinds of event that a run leaves."""


@dataclass(frozen=True)
class MethodStand:
    """How a method stands: `on` as the engine says, `asked` if a command waits, and since which step."""

    on: bool
    asked: bool | None
    since: int | None
    """Step at which the last toggle took effect; None when it was so from the start."""
    params: Mapping[str, Any]
    first: int = 0
    """The step at which the run began: that of a fork, where it left its parent."""
    idle: str = ""
    """Why the method leaves training as it is, and what would give it an effect; or nothing."""

    @property
    def words(self) -> str:
        """What a page writes below the toggle."""
        if self.asked is not None:
            return f"requested: {'on' if self.asked else 'off'}"
        if self.since is not None:
            return f"{'on' if self.on else 'off'} · applied at step {self.since:,}"
        begun = f"on where it was forked, at step {self.first:,}" if self.first else "on from the start"
        return begun if self.on else ""


@dataclass(frozen=True)
class Standing:
    """A run at one moment."""

    id: str
    state: str
    step: int
    steps: int
    rate: float
    eta: float | None
    activity: str
    error: str | None
    alive: bool
    pending: tuple[str, ...]
    asked: Mapping[str, Any]
    """Values that wait to be applied: `gani.sigma` to a value, `probe hessian` to an interval (0: off)."""
    methods: Mapping[str, MethodStand]
    probes: Mapping[str, int]
    refused: tuple[int, str] | None
    """Event id and sentence of the last command, when it was refused."""
    records: int
    events: int
    busy: tuple[str, ...] = ()
    """Probes that measure now."""
    progress: Mapping[str, str] = field(default_factory=dict)
    """Probe to words about how far its measurement is, or what the last one took."""
    measured: tuple[str, ...] = ()
    """Probes that have come to an end of a measurement."""
    settings: Mapping[str, Any] | None = None
    """Setting key to value as the run has acknowledged them; None before its engine has written any."""
    commands: tuple[Mapping[str, Any], ...] = ()
    """The commands that wait, as JSON values."""
    revision: int = 0
    """A number that grows with every command that is sent or answered."""
    kept: tuple[int, ...] = ()
    """Steps whose state was kept, so that they can be measured."""
    pace: float = 0.0
    """Steps a second that the run takes at most; 0 for as fast as it can."""
    first_step: int = 0
    """The step at which the run itself began to train: that of a fork is where it left its parent."""

    @property
    def tags(self) -> dict[str, str]:
        """Topic to a tag that changes when that topic does; a page is then drawn again."""
        control = [
            self.state,
            self.pending,
            sorted((n, m.on, m.asked, m.since, m.idle, dict(m.params)) for n, m in self.methods.items()),
        ]
        return {
            "control": tag([control, self.refused, sorted(self.probes.items()), self.steps]),
            "state": tag([self.state, self.steps]),
            "events": tag([self.events, self.state]),
            "records": tag([self.records, sorted(self.probes.items()), self.pending, self.state]),
        }

    def to_json(self) -> dict[str, Any]:
        """Return what the live panel shows."""
        return {
            "id": self.id,
            "state": self.state,
            "word": WORDS.get(self.state, self.state),
            "step": self.step,
            "steps": self.steps,
            "rate": round(self.rate, 2) if self.rate else 0,
            "eta": None if self.eta is None else round(self.eta, 1),
            "activity": self.activity,
            "progress": dict(self.progress),
            "busy": list(self.busy),
            "measured": list(self.measured),
            "error": self.error,
            "pending": list(self.pending),
            "tags": self.tags,
        }


def tag(values: Any) -> str:
    """Return a short text that differs when JSON `values` do."""
    return f"{zlib.crc32(json.dumps(values, default=str, sort_keys=True).encode()):08x}"


def folder() -> Path:
    """Return the folder of all runs."""
    return runs_folder()


def home_of(folder: Path | str, run: str) -> Path | None:
    """Return the folder of run `run` below `folder`, or None when the id is not one or there is no such run."""
    if not RUN_ID.fullmatch(run or ""):
        return None
    home = Path(folder) / run
    return home if os.path.lexists(home / "run.db") else None


def listed(folder: Path | str) -> list[tuple[str, Path]]:
    """Return (id, home) of the runs in `folder` whose id is well formed, newest first."""
    return [(run, Path(home)) for run, home in runs(folder) if RUN_ID.fullmatch(run)]


def origin(home: Path) -> tuple[str, int] | None:
    """Return the run beside it from which a fork comes, and the step; None of a run that is none or does not say."""
    try:
        fork = fork_of(home)
    except InputError:  # the run's own status says so
        return None
    return (fork["of"], fork["step"]) if fork else None


def branches(known: Sequence[tuple[str, Path]]) -> list[tuple[str, Path, int]]:
    """Return (id, home, depth) of runs, newest first: each fork below its parent, one deeper, by step.

    A fork whose parent is not among them stands by itself.
    """
    homes, below, roots = dict(known), {}, []
    for run, home in known:
        comes = origin(home)
        if comes and comes[0] in homes and not _within_itself(run, homes):
            below.setdefault(comes[0], []).append((comes[1], run))
        else:
            roots.append(run)
    found: list[tuple[str, Path, int]] = []
    waiting = [(run, 0) for run in reversed(roots)]
    while waiting:
        run, depth = waiting.pop()
        found.append((run, homes[run], depth))
        waiting += [
            (child, depth + 1) for _, child in sorted(below.get(run, ()), key=lambda pair: pair[0], reverse=True)
        ]
    return found


def _within_itself(run: str, homes: Mapping[str, Path]) -> bool:
    """Return whether a damaged run comes from itself, by way of others."""
    seen, here = set(), run
    while here in homes and here not in seen:
        seen.add(here)
        comes = origin(homes[here])
        here = comes[0] if comes else ""
    return here in seen


def standing(run: str, home: Path) -> Standing:
    """Return how the run in `home` stands, from its two databases and its lock; one that cannot be read says so."""
    engine = RunHandle(home)
    status = engine.status()
    try:
        if status.state == UNREADABLE:
            return _unreadable(run, home, status, status.error or "")
        return _standing(run, engine, status)
    except InputError as error:
        return _unreadable(run, home, status, str(error))


def _unreadable(run: str, home: Path, status: Status, reason: str) -> Standing:
    reason = reason.replace(str(home.absolute()), run)  # where the server keeps its runs is its own affair
    return Standing(run, UNREADABLE, 0, status.steps, 0.0, None, "", reason, status.alive, (), {}, {}, {}, None, 0, 0)


def _standing(run: str, engine: RunHandle, status: Status) -> Standing:
    reader, own = engine.reader(), RunReader(engine.home, inherited=False)
    waiting = engine.pending()
    pending = [_json(command) for _, command in waiting]
    events = own.events(kinds=(EventKind.APPLIED, EventKind.REFUSED))
    numbers = [number for number, _ in waiting] + [event.detail.get("id", 0) for event in events[-1:]]
    newest = own.newest(*EVENTS)
    known = reader.names()["records"]
    observers = engine.observers(reader)
    known_facts = reader.facts("probes", "methods", "settings", "pace", "idle", "first_step")
    first = known_facts.get("first_step", 0)
    inline = _inline(status.activity or "")
    return Standing(
        run,
        status.state,
        status.step or 0,
        status.steps or 0,
        status.rate or 0.0,
        status.eta,
        status.activity or progress.activity(observers),
        status.error or reader.damage.replace(str(engine.home.absolute()), run) or None,
        status.alive,
        tuple(sentence(command) for command in pending),
        _asked(pending),
        stands(known_facts.get("methods", {}), events, pending, known_facts.get("idle", {}), first),
        known_facts.get("probes", {}),
        _refused(events),
        len(known),
        newest.id if newest is not None else 0,
        (*progress.busy(observers), *inline),
        progress.progress(reader.observing().values()) | inline,
        tuple(probe for facts in observers for probe in facts.get("observing", {}).get("costs", ())),
        known_facts.get("settings"),
        tuple(pending),
        max(numbers, default=0) + reader.last_ids(),
        kept_steps(engine.home),
        known_facts.get("pace", 0.0),
        first,
    )


def _inline(activity: str) -> dict[str, str]:
    """Return the probe that the engine itself measures now to how far it is, as its heartbeat says."""
    probe, _, words = activity.removeprefix("measuring ").partition(": ")
    return {probe: words or "measuring"} if activity.startswith("measuring ") else {}


def stands(
    on: Mapping[str, Any],
    events: Sequence,
    pending: Sequence[Mapping[str, Any]],
    idle: Mapping[str, str] | None = None,
    first: int = 0,
) -> dict[str, MethodStand]:
    """Return how each method stands that is on, was ever toggled, or is asked for.

    `idle` is method to reason, `first` the step at which the run began.
    """
    since = {}
    for event in events:
        command = event.detail.get("command") if event.kind == EventKind.APPLIED else None
        if command and command.get("do") == "toggle":
            since[command["method"]] = event.step
    asked = {c["method"]: c["on"] for c in pending if c.get("do") == "toggle"}
    names = [*on, *(n for n in (*since, *asked) if n not in on)]
    return {
        name: MethodStand(
            name in on,
            asked.get(name) if asked.get(name) != (name in on) else None,
            since.get(name),
            (on.get(name) or {}).get("params", {}),
            first,
            (idle or {}).get(name, "") if name in on else "",
        )
        for name in dict.fromkeys(names)
    }


def sentence(command: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> str:
    """Return a command in a few words, such as `GANI on` or `lr = 0.01`."""
    do, titles = command.get("do"), titles or {}
    if do == "toggle":
        return f"{titles.get(command['method'], command['method'])} {'on' if command['on'] else 'off'}"
    if do == "tune":
        owner = "" if command["method"] == "optimizer" else f"{titles.get(command['method'], command['method'])} "
        value = command["value"]
        return f"{owner}{command['knob']} = {format(value, 'g') if isinstance(value, float) else value}"
    if do == "watch":
        every = f" every {command['every']:,}" if command["on"] and command.get("every") else ""
        return f"{command['probe']}{every}" if command["on"] else f"{command['probe']} off"
    if do == "measure":
        at = f" at step {command['step']:,}" if command.get("step") is not None else ""
        return f"measure {command['probe']}{at}"
    if do == "resume":
        return "single step" if command.get("steps") == 1 else "resume"
    if do == "pace":
        return f"{command['rate']:g} steps/s" if command["rate"] else "full speed"
    if do == "note":
        return f"note “{command['text']}”"
    return str(do)


def _asked(pending: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    asked = {}
    for command in pending:
        if command.get("do") == "tune":
            asked[f"{command['method']}.{command['knob']}"] = command["value"]
        elif command.get("do") == "pace":
            asked["pace"] = command["rate"]
        elif command.get("do") == "watch":
            asked[f"probe {command['probe']}"] = command["every"] if command["on"] else 0
    return asked


def _refused(events: Sequence) -> tuple[int, str] | None:
    last = events[-1] if events else None
    return (last.id, last.detail.get("error", "")) if last is not None and last.kind == EventKind.REFUSED else None


def _json(command: Any) -> dict[str, Any]:
    return command.to_json() if hasattr(command, "to_json") else dict(command)
