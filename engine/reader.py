"""Reads what a run recorded. Free of torch; read-only, so that any number of readers never disturb the engine."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import stored
from engine.knobs import InputError, shown
from engine.outside import brief, moment, regular, whole
from engine.records import Record
from engine.stored import Unreadable, unpacked

TABLES = {
    "name": "id, name",
    "number": "name, step, value",
    "array": "id, name, step, kind, data, about",
    "event": "id, step, time, kind, detail",
    "meta": "key, value",
}
"""Table of a run to the columns that are relied upon."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run."""

    id: int
    step: int
    time: float
    """Seconds since 1970."""
    kind: str
    detail: dict[str, Any]


class RunReader:
    """The reader of `run.db`; every call is one short read, and each thread has a connection of its own.

    Whatever lies in the file, a call returns what an engine may have written or raises `Unreadable`.
    """

    def __init__(self, home: Path | str) -> None:
        """Open the run in `home`; a run that waits for its engine has recorded nothing yet.

        Raises:
            InputError: there is no run in it.
        """
        self.path = (Path(home) / "run.db").absolute()
        if not any(map(os.path.lexists, (self.path, self.path.with_name("config.json")))):
            raise InputError(f"{home} holds no run: there is no run.db in it; give the folder of a run.")
        self._local = threading.local()

    def names(self) -> dict[str, Any]:
        """Return `scalars`, a sorted list of names, and `records`, a dict of name to kind."""
        # One index probe a name: a plain GROUP BY would walk every row of a long run.
        walk = """WITH RECURSIVE known(name) AS (SELECT min(name) FROM array UNION ALL
                  SELECT (SELECT min(name) FROM array WHERE name > known.name) FROM known WHERE known.name IS NOT NULL)
                  SELECT name, (SELECT kind FROM array WHERE array.name = known.name ORDER BY step DESC LIMIT 1)
                  FROM known WHERE name IS NOT NULL"""
        scalars = self._all("SELECT name FROM name ORDER BY name")
        records = {name: kind for name, kind in self._all(walk) if isinstance(name, str) and isinstance(kind, str)}
        return {"scalars": [name for (name,) in scalars if isinstance(name, str)], "records": records}

    def scalars(
        self, name: str, since: int = -1, points: int | None = 1000, most: int = -1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return steps (N,) and values (N,) after `since`, thinned to at most `points` (None: all), spikes kept.

        Only the first `most` of them are read, where that is not negative.
        """
        rows = self._all(
            """SELECT step, value FROM number WHERE name = (SELECT id FROM name WHERE name = ?) AND step > ?
               ORDER BY step LIMIT ?""",
            name,
            since,
            most,
        )
        try:
            steps = np.array([step for step, _ in rows], dtype=np.int64)
            values = np.array([value for _, value in rows], dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise Unreadable(f"The number {name}", brief(error)) from None
        if len(steps) and not (whole(int(steps[0])) and whole(int(steps[-1]))):
            raise Unreadable(f"The number {name}", f"its steps go from {steps[0]} to {steps[-1]}")
        return (steps, values) if points is None else thinned(steps, values, points)

    def tail(
        self, names: Iterable[str], since: Mapping[str, int], points: int | None = 1000
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return name to the steps and values that came after `since[name]`, thinned as in `scalars`."""
        return {name: self.scalars(name, since.get(name, -1), points) for name in names}

    def last(self) -> dict[str, float]:
        """Return name to the last value of every scalar."""
        rows = self._all(
            """SELECT name, (SELECT value FROM number WHERE number.name = name.id ORDER BY step DESC LIMIT 1)
               FROM name ORDER BY name"""
        )
        return {name: value if isinstance(value, int | float) else float("nan") for name, value in rows}

    def latest(self, name: str) -> tuple[int, Record] | None:
        """Return step and record of the newest measurement of that name."""
        rows = self._all("SELECT step, kind, data, about FROM array WHERE name = ? ORDER BY step DESC LIMIT 1", name)
        if not rows:
            return None
        step, *packed = rows[0]
        if not whole(step):
            raise Unreadable(f"The record {name}", f"its step is {shown(step)}")
        return step, unpacked(name, *packed)

    def drawn(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return name to how the newest record of that name asks to be drawn; names without a record are left out."""
        query = "SELECT about FROM array WHERE name = ? ORDER BY step DESC LIMIT 1"
        found = {name: self._all(query, name) for name in names}
        return {name: stored.said(name, rows[0][0])["draw"] for name, rows in found.items() if rows}

    def history(self, name: str) -> list[int]:
        """Return the steps at which a record of that name was made, in order."""
        rows = self._all("SELECT step FROM array WHERE name = ? ORDER BY step", name)
        return [step for (step,) in rows if whole(step)]

    def stamp(self, name: str) -> tuple[int, int | None, int | None]:
        """Return what changes with every record of that name: their count, the newest step, the newest write."""
        rows = self._all("SELECT count(*), max(step), max(id) FROM array WHERE name = ?", name)
        return rows[0] if rows else (0, None, None)

    def at(self, name: str, step: int) -> Record | None:
        """Return the newest record of that name at or before `step`."""
        rows = self._all(
            "SELECT kind, data, about FROM array WHERE name = ? AND step <= ? ORDER BY step DESC LIMIT 1", name, step
        )
        return unpacked(name, *rows[0]) if rows else None

    def events(self, since: int = 0, kinds: Iterable[str] = ()) -> list[Event]:
        """Return the events after event number `since`, in order; only those of `kinds` where any are given."""
        kinds = tuple(kinds)
        chosen = f"AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        rows = self._all(
            f"SELECT id, step, time, kind, detail FROM event WHERE id > ? {chosen} ORDER BY id", since, *kinds
        )
        return [_event(*row) for row in rows]

    def newest(self, *kinds: str) -> Event | None:
        """Return the newest event of any of these kinds."""
        marks = ", ".join("?" * len(kinds))
        rows = self._all(
            f"SELECT id, step, time, kind, detail FROM event WHERE kind IN ({marks}) ORDER BY id DESC LIMIT 1", *kinds
        )
        return _event(*rows[0]) if rows else None

    def meta(self, key: str, default: Any = None) -> Any:
        """Return a fact about the run."""
        return self.facts(key).get(key, default)

    def facts(self, *keys: str) -> dict[str, Any]:
        """Return key to fact, all of one moment; keys without a fact are left out."""
        rows = self._all(f"SELECT key, value FROM meta WHERE key IN ({', '.join('?' * len(keys))})", *keys)
        return stored.facts(self.path, rows)

    def version(self) -> int:
        """Return a number that grows with every flush that brings more than a heartbeat."""
        return self.meta("version", 0)

    def check(self) -> None:
        """Look whether an engine may go on writing here.

        Raises:
            Unreadable: a table or column is missing, or the file is damaged anywhere.
        """
        for table, columns in TABLES.items():
            self._all(f"SELECT {columns} FROM {table} LIMIT 0")
        found = self._all("PRAGMA quick_check(1)")
        if found and found != [("ok",)]:
            raise Unreadable(self.path, shown(found[0][0]))

    def _all(self, query: str, *values: Any) -> list[tuple]:
        db = getattr(self._local, "db", None)
        if db is None:
            if not os.path.lexists(self.path):
                return []
            db = self._local.db = readonly(self.path)
        return db.execute(query, values).fetchall()


def _event(number: int, step: Any, time: Any, kind: Any, text: Any) -> Event:
    what = f"Event {number}"
    if not (whole(step) and moment(time) and isinstance(kind, str)):
        raise Unreadable(what, shown((step, time, kind)))
    return Event(number, step, time, kind, stored.detail(what, kind, text))


class _Damaged(Unreadable, sqlite3.OperationalError):
    """What a database says is wrong with it."""


class _Cursor(sqlite3.Cursor):
    """A cursor whose errors name the file that cannot be read."""

    def execute(self, *arguments: Any) -> _Cursor:
        return self._asked(super().execute, *arguments)

    def fetchall(self) -> list[tuple]:
        return self._asked(super().fetchall)

    def fetchone(self) -> tuple | None:
        return self._asked(super().fetchone)

    def _asked(self, ask: Callable, *arguments: Any) -> Any:
        try:
            return ask(*arguments)
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            if isinstance(error, sqlite3.ProgrammingError):  # a fault of the program
                raise
            raise _Damaged(self.connection.path, brief(error)) from None


class _Connection(sqlite3.Connection):
    """A connection to the file at `path`."""

    path: Path

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(*arguments)


def readonly(path: Path) -> sqlite3.Connection:
    """Return a connection that cannot write, each query its own short transaction; its errors are `Unreadable`.

    Raises:
        Unreadable: there is no such file, or something else, such as a pipe on which a reader would wait.
    """
    beside = [path.with_name(f"{path.name}-{end}") for end in ("wal", "shm", "journal")]
    try:
        for each in (path, *filter(os.path.lexists, beside)):
            regular(each)
        uri = f"{path.absolute().as_uri()}?mode=ro"
        # On a read-only disk nobody can be writing, and the index of the write-ahead log could not be made.
        if not os.access(path.parent, os.W_OK) and not beside[0].exists():
            uri += "&immutable=1"
        made = sqlite3.connect(
            uri, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False, factory=_Connection
        )
    except (OSError, ValueError, sqlite3.Error) as error:
        raise Unreadable(path, brief(error)) from None
    made.path = path
    return made


def thinned(x: np.ndarray, y: np.ndarray, points: int, *, log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `points` of the samples: first, last, and minimum and maximum of each of equal buckets.

    Equal in samples or, with `log`, in the logarithm of `x`, for such an axis: what came early is then kept whole.
    Spikes survive, unlike with random or strided sampling; infinities are spikes too. A bucket shows not-a-number only
    when it holds nothing else.

    >>> thinned(np.arange(9), np.array([0, 1, 9, 1, 1, 1, -5, 1, 0]), 5)[1].tolist()
    [0, 9, -5, 0]
    """
    if len(x) <= max(points, 2):
        return x, y
    buckets = (points - 2) // 2
    if buckets < 1:
        return x[[0, -1]], y[[0, -1]]
    inner = np.asarray(y[1:-1], dtype=np.float64)
    if log:
        where = _extremes(inner, np.searchsorted(x[1:-1], np.geomspace(max(x[1], 1), x[-1], buckets + 1)[:-1]))
        where = np.unique(np.concatenate(([0], 1 + where, [len(x) - 1])))
        return x[where], y[where]
    width = -(-len(inner) // buckets)
    rows = -(-len(inner) // width)
    padded = np.full((2, rows * width), [[np.inf], [-np.inf]])
    padded[:, : len(inner)] = np.where(np.isnan(inner), padded[:, : len(inner)], inner)
    low, high = padded.reshape(2, rows, width)
    starts = 1 + width * np.arange(rows)
    where = np.unique(np.concatenate(([0], starts + low.argmin(1), starts + high.argmax(1), [len(x) - 1])))
    return x[where], y[where]


def envelope(x: np.ndarray, y: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last of the samples, and minimum and maximum of each bucket of equal length on `x` (N,), sorted.

    Taken again over samples that were thinned so before, it still has the extremes of all that there ever were.

    >>> envelope(np.array([0, 1, 2, 3, 9]), np.array([5, 1, 7, 2, 4]), 3)[0].tolist()
    [0, 1, 2, 3, 9]
    """
    where = _extremes(y, np.searchsorted(x, np.linspace(x[0], x[-1], buckets + 1)[:-1]))
    where = np.unique(np.concatenate(([0], where, [len(x) - 1])))
    return x[where], y[where]


def _extremes(y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the places of minimum and maximum of `y` (N,) in the buckets that begin at `starts`."""
    low, high = (np.where(np.isnan(y), end, y) for end in (np.inf, -np.inf))
    edges = np.unique(np.append(starts, 0))
    edges = edges[edges < len(y)]
    bucket = np.repeat(np.arange(len(edges)), np.diff(np.append(edges, len(y))))
    # Sorted by bucket and then by value, each bucket begins where it began before, with its smallest.
    return np.concatenate([np.lexsort((values, bucket))[edges] for values in (low, -high)])
