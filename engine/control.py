"""Commands to a run and the mailbox that carries them. Free of torch.

`control.db` is written by the dashboard and the command line alone. Which commands were obeyed, and at which step, is in
the run's events, so each file has one writer.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from engine.knobs import InputError, nearest

LOOK_EVERY = 0.1
"""Seconds between two looks into the mailbox while a run trains."""


@dataclass(frozen=True)
class Command:
    """Something asked of a run, obeyed between two steps. Each kind applies itself to the run's method of its name."""

    affects_training: ClassVar[bool] = False
    """Whether a replay must repeat it."""

    def apply(self, run: Any) -> None:
        """Ask `run` for it.

        Raises:
            InputError: the run cannot do that; says why.
        """
        getattr(run, type(self).__name__.lower())(*(getattr(self, f.name) for f in dataclasses.fields(self)))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, from which `from_json` makes the same command."""
        return {"do": type(self).__name__.lower()} | dataclasses.asdict(self)


@dataclass(frozen=True)
class Pause(Command):
    """Rest before the next step."""


@dataclass(frozen=True)
class Resume(Command):
    """Go on, for a number of steps or without end."""

    steps: int | None = None


@dataclass(frozen=True)
class Stop(Command):
    """End the run; it can be resumed later."""


@dataclass(frozen=True)
class Toggle(Command):
    """Switch a method on or off."""

    affects_training: ClassVar[bool] = True

    method: str
    on: bool


@dataclass(frozen=True)
class Tune(Command):
    """Change one knob of a method, or `optimizer` `lr`."""

    affects_training: ClassVar[bool] = True

    method: str
    knob: str
    value: Any


@dataclass(frozen=True)
class Watch(Command):
    """Measure with a probe every so many steps (0: its own choice), or no longer."""

    probe: str
    on: bool
    every: int = 0


@dataclass(frozen=True)
class Measure(Command):
    """Measure now, whatever the budget says."""

    probe: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cancel(Command):
    """Give up a probe's measurements that are under way."""

    probe: str


@dataclass(frozen=True)
class Save(Command):
    """Write a checkpoint."""


@dataclass(frozen=True)
class Note(Command):
    """Write a note into the log."""

    text: str


COMMANDS = {c.__name__.lower(): c for c in (Pause, Resume, Stop, Toggle, Tune, Watch, Measure, Cancel, Save, Note)}


def from_json(values: dict[str, Any]) -> Command:
    """Return the command that `to_json` described.

    Raises:
        InputError: the command or one of its fields is unknown or missing.
    """
    values = dict(values)
    name = values.pop("do", None)
    if name not in COMMANDS:
        raise InputError(f"There is no command {name!r}{nearest(str(name), COMMANDS)}.")
    try:
        return COMMANDS[name](**values)
    except TypeError:
        known = ", ".join(f.name for f in dataclasses.fields(COMMANDS[name])) or "no fields"
        raise InputError(f"The command {name} takes {known}, not {', '.join(values) or 'nothing'}.") from None


def create(home: Path | str) -> None:
    """Make `control.db`, in write-ahead mode, unless it is there."""
    with _connected(home) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "CREATE TABLE IF NOT EXISTS command(id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL, who TEXT, body TEXT)"
        )
        db.execute("CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT)")


def post(home: Path | str, command: Command, who: str = "") -> int:
    """Put a command into the mailbox; return its number. Callable from any thread or process."""
    with _connected(home) as db:
        body = json.dumps(command.to_json())
        return db.execute("INSERT INTO command(time, who, body) VALUES (?, ?, ?)", (time.time(), who, body)).lastrowid


def set_meta(home: Path | str, key: str, value: Any) -> None:
    """Write one of the dashboard's own facts about a run, such as the exit code of its engine."""
    with _connected(home) as db:
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))


class Mailbox:
    """The engine's view of `control.db`: it only reads."""

    def __init__(self, home: Path | str) -> None:
        self._db = sqlite3.connect(
            f"file:{Path(home) / 'control.db'}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._next = 0.0

    def due(self) -> bool:
        """Return whether it is time for a look; true at most ten times a second."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOOK_EVERY
        return True

    def unread(self, after: int = 0) -> list[tuple[int, Command]]:
        """Return (number, command) of what was posted after number `after`, in order."""
        rows = self._db.execute("SELECT id, body FROM command WHERE id > ? ORDER BY id", (after,)).fetchall()
        return [(number, from_json(json.loads(body))) for number, body in rows]

    def meta(self, key: str, default: Any = None) -> Any:
        """Return one of the dashboard's facts."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


class _connected:  # noqa: N801  a context manager reads as a verb
    """A short connection for one write."""

    def __init__(self, home: Path | str) -> None:
        self.path = Path(home) / "control.db"

    def __enter__(self) -> sqlite3.Connection:
        self.db = sqlite3.connect(self.path, timeout=10.0, isolation_level=None)
        self.db.execute("PRAGMA synchronous=NORMAL")
        return self.db

    def __exit__(self, *error: object) -> None:
        self.db.close()
