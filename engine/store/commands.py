"""Commands to a run and the mailbox that carries them. Free of torch.

`control.db` is written by the dashboard and the command line alone. Which commands were obeyed, and at which step, is
in the run's events, so each file has one writer.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
import typing
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from modalscape.engine.errors import InputError, nearest, shown
from modalscape.engine.store.database import readonly
from modalscape.engine.store.files import brief, value_of
from modalscape.engine.store.schema import facts

LOOK_EVERY = 0.1
"""Seconds between two looks into the mailbox while a run trains."""
RETRY_EVERY = 1.0
"""Seconds until the next look after one that failed."""
MOST_BODY = 100_000
"""Bytes of a command."""
MOST_AT_ONCE = 1000
"""Commands of one look."""
MOST_STEPS = 10**9
"""Steps that a command may name."""
MOST_RATE = 10**6
"""Steps a second that a pace may name."""


@dataclass(frozen=True)
class Command:
    """Something asked of a run, obeyed between two steps. Each kind applies itself to the run's method of its name."""

    affects_training: ClassVar[bool] = False
    """Whether a replay must repeat it."""
    measures: ClassVar[bool] = False
    """Whether it is for whoever measures: the observers of a run that has any, else its engine."""

    def __post_init__(self) -> None:
        """Check the types of the fields, so that a command made is a command that can be obeyed.

        Raises:
            InputError: a field has another type than declared.
        """
        for name, kind in _fields(type(self)).items():
            value = getattr(self, name)
            whole_for_true = isinstance(value, bool) and kind in (int, int | None)
            if whole_for_true or (kind is not Any and not isinstance(value, kind)):
                raise InputError(f"The command {self.word} takes {_NAMED[kind]} as {name}, not {value!r}.")
            if kind in (int, int | None) and value is not None and abs(value) > MOST_STEPS:
                raise InputError(f"The command {self.word} takes up to {MOST_STEPS:,} as {name}, not a larger number.")

    @property
    def word(self) -> str:
        """The command in one word, also the name of the run's method that obeys it."""
        return type(self).__name__.lower()

    def apply(self, run: Any) -> None:
        """Ask `run` for it.

        Raises:
            InputError: the run cannot do that; says why.
        """
        getattr(run, self.word)(*(getattr(self, name) for name in _fields(type(self))))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, from which `from_json` makes the same command."""
        return {"do": self.word} | dataclasses.asdict(self)


def _fields(command: type[Command]) -> dict[str, Any]:
    """Return field to type, in order."""
    hints = typing.get_type_hints(command)
    return {f.name: hints[f.name] for f in dataclasses.fields(command)}


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
    value: bool | int | float | str


@dataclass(frozen=True)
class Watch(Command):
    """Measure with a probe every so many steps (0: its own choice), or no longer."""

    probe: str
    on: bool
    every: int = 0


@dataclass(frozen=True)
class Measure(Command):
    """Measure now, or at the kept step that is nearest to `step`."""

    measures: ClassVar[bool] = True

    probe: str
    settings: dict = field(default_factory=dict)
    step: int | None = None


@dataclass(frozen=True)
class Cancel(Command):
    """Give up a probe's measurements that are under way."""

    measures: ClassVar[bool] = True

    probe: str


@dataclass(frozen=True)
class Pace(Command):
    """Take at most so many steps a second; 0 for as fast as it can."""

    rate: int | float

    def __post_init__(self) -> None:
        """Check the type and the range of the rate.

        Raises:
            InputError: it is no number from 0 to MOST_RATE.
        """
        super().__post_init__()
        if isinstance(self.rate, bool) or not 0 <= self.rate <= MOST_RATE:
            raise InputError(
                f"A pace is a number of steps a second from 0 (as fast as it can) to {MOST_RATE:,}, not {self.rate!r}."
            )


@dataclass(frozen=True)
class Save(Command):
    """Write a checkpoint."""


@dataclass(frozen=True)
class Note(Command):
    """Write a note into the log."""

    text: str


@dataclass(frozen=True)
class Garbled(Command):
    """What another version or another program put into the mailbox and this one cannot read; the run refuses it."""

    body: str
    error: str

    def apply(self, run: Any) -> None:
        """Refuse.

        Raises:
            InputError: always; says what is wrong with the command.
        """
        raise InputError(self.error)


_NAMED = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    int | None: "a whole number or nothing",
    int | float: "a number",
    bool | int | float | str: "a number, text, or true or false",
    dict: "settings by name",
}
"""Type of a field in words."""

COMMANDS = {
    c.__name__.lower(): c for c in (Pause, Resume, Stop, Pace, Toggle, Tune, Watch, Measure, Cancel, Save, Note)
}


def from_json(values: dict[str, Any]) -> Command:
    """Return the command that `to_json` described.

    Raises:
        InputError: the command or one of its fields is unknown or missing.
    """
    if not isinstance(values, dict):
        raise InputError(f"A command is a JSON object such as {{'do': 'pause'}}, not {values!r}.")
    values = dict(values)
    name = values.pop("do", None)
    if not isinstance(name, str) or name not in COMMANDS:
        raise InputError(f"There is no command {name!r}{nearest(str(name), COMMANDS)}")
    known = _fields(COMMANDS[name])
    try:
        return COMMANDS[name](**values)
    except TypeError:
        takes, given = ", ".join(known) or "no fields", ", ".join(map(str, values)) or "nothing"
        raise InputError(f"The command {name} takes {takes}, not {given}.") from None


def create(home: Path | str) -> None:
    """Make `control.db`, in write-ahead mode, in a folder that has none; `writer.create` makes both of a run."""
    db = sqlite3.connect(Path(home) / "control.db", isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "CREATE TABLE command(id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL, who TEXT, body TEXT NOT NULL)"
        )
        db.execute("CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT)")
    finally:
        db.close()


def post(home: Path | str, command: Command, who: str = "", *, once: bool = False) -> int:
    """Put a command into the mailbox; return its number. Callable from any thread or process.

    With `once`, `who` is a token of the request: what is posted again under it stays the one command that it was.

    Raises:
        InputError: there is no run in `home`, or the command is too long.
    """
    unless = "WHERE NOT EXISTS (SELECT 1 FROM command WHERE who = ?)" if once else ""
    body = json.dumps(command.to_json())
    if len(body) > MOST_BODY:
        raise InputError(f"A command may have up to {MOST_BODY:,} characters, not {len(body):,}; shorten it.")
    with _connected(home) as db:
        made = (time.time(), who, body, *([who] if once else []))
        done = db.execute(f"INSERT INTO command(time, who, body) SELECT ?, ?, ? {unless}", made)
        if done.rowcount:
            return done.lastrowid
        return db.execute("SELECT id FROM command WHERE who = ?", (who,)).fetchone()[0]


def set_meta(home: Path | str, key: str, value: Any) -> None:
    """Write one of the dashboard's own facts about a run, such as the exit code of its engine.

    Raises:
        InputError: there is no run in `home`.
    """
    with _connected(home) as db:
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))


@contextmanager
def _connected(home: Path | str) -> Generator[sqlite3.Connection]:
    """Give a short connection for one write."""
    path = (Path(home) / "control.db").absolute()
    if not path.exists():
        raise InputError(f"{home} holds no run: there is no control.db in it; give the folder of a run.")
    db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=10.0, isolation_level=None)
    try:
        # A number must not be given twice, even after a power cut: the run has obeyed the command of that number.
        db.execute("PRAGMA synchronous=FULL")
        yield db
    finally:
        db.close()


class Mailbox:
    """The engine's view of `control.db`: it only reads."""

    def __init__(self, home: Path | str, patience: float = 5.0) -> None:
        """Look into the mailbox of the run in `home`, waiting up to `patience` seconds while another locks it."""
        self._path = Path(home) / "control.db"
        self._patience = patience
        self._next = 0.0
        self._open: tuple[tuple[int, int], sqlite3.Connection] | None = None

    @property
    def _db(self) -> sqlite3.Connection:
        """The connection to the file that lies there now.

        Raises:
            sqlite3.Error: there is none that can be opened.
        """
        try:
            found = self._path.stat()
        except OSError as error:
            raise sqlite3.OperationalError(f"{self._path.name}: {error.strerror}") from None
        mark = found.st_dev, found.st_ino
        if self._open is None or self._open[0] != mark:
            self.close()
            db = readonly(self._path)
            db.execute(f"PRAGMA busy_timeout={int(1000 * self._patience)}")
            self._open = mark, db
        return self._open[1]

    def due(self) -> bool:
        """Return whether it is time for a look; true at most ten times a second."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOOK_EVERY
        return True

    def unread(self, after: int = 0) -> list[tuple[int, Command]]:
        """Return (number, command) of what was posted after number `after`, in order, up to MOST_AT_ONCE.

        Raises:
            sqlite3.Error: the mailbox cannot be read; the next look is not due at once.
        """
        # As bytes, since text that is not UTF-8 would make the whole look fail, and never more than a command may hold.
        query = """SELECT id, length(CAST(body AS BLOB)), substr(CAST(body AS BLOB), 1, ?) FROM command
                   WHERE id > ? ORDER BY id LIMIT ?"""
        try:
            rows = self._db.execute(query, (MOST_BODY, after, MOST_AT_ONCE)).fetchall()
        except sqlite3.Error:
            self._next = time.monotonic() + RETRY_EVERY
            raise
        return [(number, _read(body or b"", size or 0)) for number, size, body in rows]

    def meta(self, key: str, default: Any = None) -> Any:
        """Return one of the dashboard's facts."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else facts("control.db", [(key, row[0])])[key]

    def close(self) -> None:
        """Let go of the file."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _read(body: bytes, size: int) -> Command:
    """Return the command that a body of `size` bytes describes, or why it describes none."""
    text = body.decode(errors="replace")
    if size > MOST_BODY:
        return garbled(text, f"A command of {size:,} bytes is not read; it may have up to {MOST_BODY:,}.")
    try:
        values = value_of(text)
        # Half a surrogate pair, infinities and what is no number could be read, but never written again.
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        return from_json(values)
    except InputError as error:
        return garbled(text, str(error))
    except ValueError as error:
        return garbled(
            text, f"A command is a JSON object such as {{'do': 'pause'}}, not {shown(text)} ({brief(error)})."
        )


def garbled(body: str, error: str) -> Garbled:
    """Return what stands in a run's log for a command that was refused and is too odd to be kept whole."""
    return Garbled(shortened(body), shortened(error))


def shortened(text: str, most: int = 300) -> str:
    """Return at most so many characters of a text, its end cut off.

    >>> shortened("abcdef", 3)
    'abc…'
    """
    return text if len(text) <= most else f"{text[:most]}…"
