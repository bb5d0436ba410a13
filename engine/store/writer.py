"""`run.db`: everything a run recorded, written by its engine alone; `engine/store/reader.py` reads it. Free of torch.

What observers measure lies in `observed.db`, which has the same tables and is written by one observer alone; a second
one has `observed-2.db`, and so on.

Rows are keyed by name and step and replaced when written again, so a run that repeats steps after a crash leaves each
of them once. Writes are buffered and go to disk together, about four times a second: what a reader sees is always the
state between two steps.
"""

from __future__ import annotations

import io
import json
import sqlite3
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modalscape.engine.core.records import Record, Scalar
from modalscape.engine.errors import InputError
from modalscape.engine.store import commands
from modalscape.engine.store.files import give_name
from modalscape.engine.store.reader import Event, RunReader, observed, thinned
from modalscape.engine.store.words import EventKind

__all__ = ["Event", "RunReader", "RunWriter", "create", "thinned"]

FLUSH_EVERY = 0.25
"""Seconds between two writes to disk."""
_FIRST = 0.02
"""The same when the run has just begun and its first numbers are waited for; then ever more."""
RETRY_EVERY = 2.0
"""Seconds between two attempts, at most, while the disk refuses."""
MOST_BUFFERED = 500_000
"""Numbers kept in memory while the disk refuses them."""
MOST_BYTES = 64 * 2**20
"""Bytes of measurements kept in memory while the disk refuses them."""
MOST_EVENTS = 10_000
"""Events kept in memory while the disk refuses them."""
NEEDED = ("started", "resumed", "applied", "refused")
"""Events without which a run cannot be repeated; these are never given up, so the run asks `crowded` before it makes
more."""
MOST_NEEDED = 1000
"""Such events, at most, that wait in memory before the run obeys no more commands."""

# Names are stored once and numbers by the name's id: half the time of a key of text, and the files are a third smaller.
_SCHEMA = """
CREATE TABLE name(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE number(name INTEGER, step INTEGER, value REAL, PRIMARY KEY(name, step)) WITHOUT ROWID;
CREATE VIEW scalar AS SELECT name.name AS name, step, value FROM number JOIN name ON number.name = name.id;
CREATE TABLE array(
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, step INTEGER, kind TEXT, data BLOB, about TEXT,
    UNIQUE(name, step));
CREATE TABLE event(id INTEGER PRIMARY KEY AUTOINCREMENT, step INTEGER, time REAL, kind TEXT, detail TEXT);
CREATE INDEX event_kind ON event(kind);
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT);
"""
_ROW = 32
"""Bytes that a row takes beside its text."""
_BLOCK = 64
_NUMBER = "INSERT OR REPLACE INTO number VALUES (?, ?, ?)"
_NUMBERS = _NUMBER + ", (?, ?, ?)" * (_BLOCK - 1)
_ARRAY = "INSERT OR REPLACE INTO array(name, step, kind, data, about) VALUES (?, ?, ?, ?, ?)"
_EVENT = "INSERT INTO event(step, time, kind, detail) VALUES (?, ?, ?, ?)"
_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"


def create(home: Path | str) -> None:
    """Make both databases of a run, in write-ahead mode, unless they are there.

    Each appears whole, with its tables: two connections that switch the mode at once lock each other out, and a reader
    may look at any time.

    Raises:
        InputError: the folder lies on a file system without write-ahead logging.
        OSError: the folder cannot be written.
    """
    home = Path(home)
    if (home / "run.db").exists() and (home / "control.db").exists():
        return
    with tempfile.TemporaryDirectory(dir=home, prefix=".new-") as folder:
        commands.create(folder)
        _founded(Path(folder) / "run.db", home)
        for name in ("control.db", "run.db"):
            give_name(Path(folder) / name, home / name)


def create_observed(home: Path | str, number: int) -> str:
    """Make the store of an observer in a run's folder, unless it is there; return its name.

    Raises:
        OSError, sqlite3.Error: the folder cannot be written.
    """
    name = observed(number)
    if not (Path(home) / name).exists():
        with tempfile.TemporaryDirectory(dir=home, prefix=".new-") as folder:
            _founded(Path(folder) / name, Path(home))
            give_name(Path(folder) / name, Path(home) / name)
    return name


def _founded(path: Path, home: Path) -> None:
    """Make an empty store at `path` for the run in `home`.

    Raises:
        InputError: it would lie on a file system without write-ahead logging.
    """
    db = sqlite3.connect(path, isolation_level=None)
    try:
        (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise InputError(f"{home} cannot hold a run: its file system has no shared memory; use a local disk.")
        db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    finally:
        db.close()


class RunWriter:
    """The engine's pen. Nothing it does raises for want of disk space: rows wait, and losses are counted and said."""

    def __init__(self, home: Path | str, name: str = "run.db", *, most: int = MOST_BUFFERED) -> None:
        """Open the store `name` in `home`; up to `most` numbers wait in memory while the disk refuses them."""
        path = (Path(home) / name).absolute()
        self._db = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=0.5, isolation_level=None, check_same_thread=False
        )
        self._most = most
        self._ids = dict(self._db.execute("SELECT name, id FROM name").fetchall())
        self._written = dict(self._db.execute("SELECT key, value FROM meta").fetchall())
        self._version = int(self._written.pop("version", 0))
        self._scalars: list[tuple[int, dict[str, float]]] = []
        self._arrays: list[tuple] = []
        self._events: list[tuple] = []
        self._meta: dict[str, Any] = {}
        self.gap = FLUSH_EVERY
        """Seconds between two writes to disk at present: longer while the disk refuses."""
        self._next = 0.0
        self._opened = time.monotonic()
        self.lost = 0
        """Rows given up so far because the disk refused them and the buffer was full."""
        self.error: str | None = None
        """Why the disk refused the last write, or None when it took it."""
        self._unsaid = 0

    def scalar(self, step: int, name: str, value: float) -> None:
        """Record one number at a step."""
        self._scalars.append((int(step), {name: float(value)}))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step."""
        self._scalars.append((int(step), {name: float(value) for name, value in values.items()}))

    def record(self, step: int, record: Record) -> None:
        """Record a measurement at a step; a scalar record is a number of that name too."""
        if isinstance(record, Scalar):
            self.scalar(step, record.name, record.value)
        about = {"n": record.n, "mode": record.mode, "seconds": record.seconds, "draw": record.display.to_json()}
        self._arrays.append((record.name, int(step), record.kind, packed(record), _text(about)))

    def event(self, step: int, kind: str, detail: Mapping[str, Any]) -> None:
        """Record that something happened."""
        self._events.append((int(step), time.time(), kind, _text(dict(detail))))

    def meta(self, key: str, value: Any) -> None:
        """Record a fact about the run, in place of its last value."""
        self._meta[key] = value

    def beat(self, state: str, step: int, detail: Mapping[str, Any]) -> None:
        """Record where the training loop is; called by that loop, never by a thread, which would outlive it."""
        self._meta |= {"state": state, "step": int(step), "beat": time.time(), **detail}

    def due(self) -> bool:
        """Return whether it is time to flush."""
        return time.monotonic() >= self._next

    @property
    def crowded(self) -> bool:
        """Whether so many events of obeyed commands wait that no more should be made."""
        return self.error is not None and sum(row[2] in NEEDED for row in self._events) >= MOST_NEEDED

    def waiting(self) -> dict[str, int]:
        """Return how many numbers, measurements and events wait in memory, and about how many bytes they are."""
        numbers = sum(len(values) for _, values in self._scalars)
        size = _ROW * (numbers + len(self._events)) + sum(len(row[3]) for row in (*self._arrays, *self._events))
        return {"numbers": numbers, "measurements": len(self._arrays), "events": len(self._events), "bytes": size}

    def flush(self, *, durable: bool = False) -> bool:
        """Write everything in one transaction; return whether the disk took it.

        What is `durable` outlasts a power cut; the rest outlasts the death of the engine.
        """
        facts = {key: _text(value) for key, value in self._meta.items()}
        changed = {key: text for key, text in facts.items() if self._written.get(key) != text}
        news = bool(self._scalars or self._arrays or self._events or self._unsaid or changed.keys() - {"beat"})
        version = self._version + news
        try:
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            ids = self._write_numbers()
            self._db.executemany(_ARRAY, self._arrays)
            self._db.executemany(_EVENT, self._events)
            if self._unsaid:
                step = self._meta.get("step", json.loads(self._written.get("step", "0")))
                detail = _text({"rows": self._unsaid, "error": self._loss()})
                self._db.execute(_EVENT, (step, time.time(), EventKind.LOST, detail))
            self._db.executemany(_META, [*changed.items(), ("version", str(version))])
            self._db.execute("COMMIT")
        except sqlite3.ProgrammingError:  # a fault of the program, which no retry mends
            raise
        except sqlite3.DatabaseError as error:
            self._keep(str(error))
            return False
        self._ids, self._version = ids, version
        self._written |= changed
        self._scalars, self._arrays, self._events, self._meta, self._unsaid = [], [], [], {}, 0
        self.error, self.gap = None, FLUSH_EVERY
        now = time.monotonic()
        self._next = now + min(self.gap, max(_FIRST, (now - self._opened) / 4))
        return True

    def close(self) -> bool:
        """Write what is left and let go of the file; return whether the disk took it."""
        written = self.flush()
        self._db.close()
        return written

    def abandon(self) -> None:
        """Let go of the file, whatever is not written."""
        self._db.close()

    def _write_numbers(self) -> dict[str, int]:
        """Write the buffered numbers, many to a statement, and return name to id with new names in it."""
        ids = dict(self._ids)
        series: dict[str, list] = {}
        for step, values in self._scalars:
            for name, value in values.items():
                if name not in series:
                    ids.setdefault(name, len(ids) + 1)
                    series[name] = []
                series[name] += (ids[name], step, value)
        self._db.executemany("INSERT INTO name VALUES (?, ?)", [(ids[n], n) for n in ids if n not in self._ids])
        flat = [cell for cells in series.values() for cell in cells]
        width = 3 * _BLOCK
        whole = len(flat) // width * width
        self._db.executemany(_NUMBERS, (flat[start : start + width] for start in range(0, whole, width)))
        self._db.executemany(_NUMBER, zip(flat[whole::3], flat[whole + 1 :: 3], flat[whole + 2 :: 3], strict=True))
        return ids

    def _keep(self, reason: str) -> None:
        """Undo a refused transaction and keep its rows; where memory would run over, the oldest go and are counted."""
        if self._db.in_transaction:
            self._db.rollback()
        self.error = reason
        self.gap = min(2 * self.gap, RETRY_EVERY)
        self._next = time.monotonic() + self.gap
        lost = _overflow([len(values) for _, values in self._scalars], self._most)
        arrays = _overflow([len(row[3]) for row in self._arrays], MOST_BYTES)
        spare = [row for row in self._events if row[2] not in NEEDED]
        over = max(len(spare) - MOST_EVENTS, _overflow([len(row[3]) for row in spare], MOST_BYTES))
        gone = {id(row) for row in spare[: max(over, 0)]}
        count = sum(len(values) for _, values in self._scalars[:lost]) + arrays + len(gone)
        del self._scalars[:lost], self._arrays[:arrays]
        self._events = [row for row in self._events if id(row) not in gone]
        self.lost += count
        self._unsaid += count

    def _loss(self) -> str:
        rows = "one row" if self._unsaid == 1 else f"{self._unsaid:,} rows"
        return f"Memory was full while run.db could not be written ({self.error}), so {rows} were given up."


def _overflow(sizes: list[int], most: int) -> int:
    """Return how many of the first must go for the sum of the rest to be at most `most`."""
    over, gone = sum(sizes) - most, 0
    while over > 0:
        over -= sizes[gone]
        gone += 1
    return gone


def packed(record: Record) -> bytes:
    """Return the arrays of a record as a compressed `.npz` that loads without pickling."""
    arrays = {key: _array(value) for key in record.arrays if (value := getattr(record, key)) is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _array(value: Any) -> np.ndarray:
    """Return an array of numbers or text, never of objects; None among numbers is not-a-number."""
    array = np.asarray(value)
    if array.dtype != object:
        return array
    return array.astype(str if any(isinstance(cell, str) for cell in array.flat) else float)


def _text(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """Return an array or a number of numpy as JSON values, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
