"""`run.db`: everything a run recorded, written by its engine alone. Free of torch; the reader is in `engine/reader.py`.

Rows are keyed by name and step and replaced when written again, so a run that repeats steps after a crash leaves each of
them once. Writes are buffered and go to disk together, about four times a second: what a reader sees is always the state
between two steps.
"""

from __future__ import annotations

import io
import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine import control
from engine.reader import Event, RunReader
from engine.records import Record, Scalar

__all__ = ["Event", "RunReader", "RunWriter", "create"]

FLUSH_EVERY = 0.25
"""Seconds between two writes to disk."""
MOST_BUFFERED = 500_000
"""Rows kept in memory while the disk refuses them."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS scalar(name TEXT, step INTEGER, value REAL, PRIMARY KEY(name, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS array(
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, step INTEGER, kind TEXT, data BLOB, about TEXT, UNIQUE(name, step));
CREATE TABLE IF NOT EXISTS event(id INTEGER PRIMARY KEY AUTOINCREMENT, step INTEGER, time REAL, kind TEXT, detail TEXT);
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT);
"""
_SCALAR = "INSERT OR REPLACE INTO scalar VALUES (?, ?, ?)"
_ARRAY = "INSERT OR REPLACE INTO array(name, step, kind, data, about) VALUES (?, ?, ?, ?, ?)"
_EVENT = "INSERT INTO event(step, time, kind, detail) VALUES (?, ?, ?, ?)"
_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"


def create(home: Path | str) -> None:
    """Make both databases of a run, in write-ahead mode, unless they are there.

    Done before the engine starts: two connections that switch the mode at once lock each other out.

    Raises:
        sqlite3.Error: the folder cannot be written.
    """
    db = sqlite3.connect(Path(home) / "run.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(_SCHEMA)
    db.close()
    control.create(home)


class RunWriter:
    """The engine's pen. Nothing it does raises for want of disk space: rows wait, and losses are counted and said."""

    def __init__(self, home: Path | str) -> None:
        self._db = sqlite3.connect(Path(home) / "run.db", timeout=10.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._scalars: list[tuple[int, Mapping[str, float]]] = []
        self._rows: list[tuple[str, tuple]] = []
        self._meta: dict[str, Any] = {}
        self._written: dict[str, str] = {}
        self._next = 0.0
        self._version = RunReader(home).version()
        self.lost = 0
        """Rows given up so far because the disk refused them and the buffer was full."""
        self._unsaid = 0

    def scalar(self, step: int, name: str, value: float) -> None:
        """Record one number at a step."""
        self._scalars.append((step, {name: value}))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step; the mapping must not change afterwards."""
        self._scalars.append((step, values))

    def record(self, step: int, record: Record) -> None:
        """Record a measurement at a step; a scalar record is a number of that name too."""
        if isinstance(record, Scalar):
            self.scalar(step, record.name, float(record.value))
        about = {"n": record.n, "mode": record.mode, "seconds": record.seconds, "draw": record.draw}
        self._rows.append((_ARRAY, (record.name, step, record.kind, packed(record), json.dumps(about))))

    def event(self, step: int, kind: str, detail: Mapping[str, Any]) -> None:
        """Record that something happened."""
        self._rows.append((_EVENT, (step, time.time(), kind, json.dumps(detail, default=str))))

    def meta(self, key: str, value: Any) -> None:
        """Record a fact about the run, in place of its last value."""
        self._meta[key] = value

    def beat(self, state: str, step: int, detail: Mapping[str, Any]) -> None:
        """Record where the training loop is; called by that loop, never by a thread, which would outlive its hanging."""
        self._meta |= {"state": state, "step": step, "beat": time.time(), **detail}

    def due(self) -> bool:
        """Return whether it is time to flush."""
        return time.monotonic() >= self._next

    def flush(self) -> bool:
        """Write everything in one transaction; return whether the disk took it."""
        self._next = time.monotonic() + FLUSH_EVERY
        if self._unsaid:
            self._rows.append((_EVENT, (self._meta.get("step", 0), time.time(), "lost", json.dumps({"rows": self._unsaid}))))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            flat = [(name, step, _real(v)) for step, values in self._scalars for name, v in values.items()]
            self._db.executemany(_SCALAR, flat)
            for statement, row in self._rows:
                self._db.execute(statement, row)
            facts = {key: json.dumps(value, default=str) for key, value in self._meta.items()}
            changed = [(key, text) for key, text in facts.items() if self._written.get(key) != text]
            self._db.executemany(_META, [*changed, ("version", str(self._version + 1))])
            self._db.execute("COMMIT")
        except sqlite3.Error:
            self._kept()
            return False
        self._written |= dict(changed)
        self._version += 1
        self._scalars, self._rows, self._unsaid = [], [], 0
        return True

    def close(self) -> None:
        """Write what is left and let go of the file."""
        self.flush()
        self._db.close()

    def _kept(self) -> None:
        """Undo a refused transaction and keep its rows, the oldest numbers first to go when memory would run over."""
        if self._db.in_transaction:
            self._db.rollback()
        if self._unsaid:
            self._rows.pop()
        width = max((len(values) for _, values in self._scalars), default=1)
        over = len(self._scalars) + len(self._rows) - MOST_BUFFERED // width
        if over > 0:
            gone = self._scalars[:over]
            rows = self._rows[: over - len(gone)]
            del self._scalars[:over], self._rows[: len(rows)]
            count = sum(len(values) for _, values in gone) + len(rows)
            self.lost += count
            self._unsaid += count


def packed(record: Record) -> bytes:
    """Return the arrays of a record as a compressed `.npz` that loads without pickling."""
    arrays = {}
    for key in record.arrays:
        value = getattr(record, key)
        if value is not None:
            array = np.asarray(value)
            arrays[key] = array.astype(str) if array.dtype == object else array
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _real(value: float) -> float | str:
    """Return the number; not-a-number as text, since the database would turn it into nothing."""
    return value if value == value else "nan"
