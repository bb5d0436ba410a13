"""Reads what a run recorded and what was measured of it. Free of torch; read-only, so readers never disturb writers."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import stored
from engine.database import Source
from engine.knobs import InputError, shown
from engine.outside import brief, moment, whole
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
_STORE = re.compile(r"observed(?:-([1-9][0-9]?))?\.db")
_LOOK_EVERY = 0.5
"""Seconds between two looks for stores of observers."""
_APART = 10**9
"""Numbers between the first events of two files."""


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
    """The reader of a run: what its engine wrote into `run.db` and what observers measured, as if it were one file.

    Every call is a few short reads. Whatever lies in the files, a call returns what an engine or an observer may have
    written, or raises `Unreadable`; where what an observer wrote is damaged, `damage` says so and the rest is read.
    """

    def __init__(self, home: Path | str, *, measured: bool = True) -> None:
        """Open the run in `home`; a run that waits for its engine has recorded nothing yet.

        Without `measured`, only what the engine itself wrote is read.

        Raises:
            InputError: there is no run in it.
        """
        self.path = (Path(home) / "run.db").absolute()
        if not any(map(os.path.lexists, (self.path, self.path.with_name("config.json")))):
            raise InputError(f"{home} holds no run: there is no run.db in it; give the folder of a run.")
        self._own = Source(self.path)
        self._measured = measured
        self._known: dict[int, tuple[tuple[int, int], Source]] = {}
        self._looked = -1.0
        self.damage = ""
        """Why what an observer wrote cannot be read, in a sentence, or nothing."""

    def names(self) -> dict[str, Any]:
        """Return `scalars`, a sorted list of names, and `records`, a dict of name to kind."""
        # One index probe a name: a plain GROUP BY would walk every row of a long run.
        walk = """WITH RECURSIVE known(name) AS (SELECT min(name) FROM array UNION ALL
                  SELECT (SELECT min(name) FROM array WHERE name > known.name) FROM known WHERE known.name IS NOT NULL)
                  SELECT name, (SELECT kind FROM array WHERE array.name = known.name ORDER BY step DESC LIMIT 1)
                  FROM known WHERE name IS NOT NULL"""
        scalars = {name for _, (name,) in self._rows("SELECT name FROM name") if isinstance(name, str)}
        records = {name: kind for _, (name, kind) in self._rows(walk) if isinstance(name, str)}
        records = {name: kind for name, kind in records.items() if isinstance(kind, str)}
        return {"scalars": sorted(scalars), "records": dict(sorted(records.items()))}

    def scalars(
        self, name: str, since: int = -1, points: int | None = 1000, most: int = -1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return steps (N,) and values (N,) after `since`, thinned to at most `points` (None: all), spikes kept.

        Only the first `most` of them are read, where that is not negative.
        """
        query = """SELECT step, value FROM number WHERE name = (SELECT id FROM name WHERE name = ?) AND step > ?
                   ORDER BY step LIMIT ?"""
        parts = [rows for source in self._sources() if (rows := source.all(query, name, since, most))]
        # Where two files have a step, the later one's value holds.
        rows = parts[0] if len(parts) == 1 else sorted(dict(row for rows in parts for row in rows).items())
        rows = rows[:most] if most >= 0 else rows
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
        rows = self._rows(
            """SELECT name.name, step, value FROM name JOIN number ON number.name = name.id AND step =
               (SELECT max(step) FROM number WHERE number.name = name.id)"""
        )
        found: dict[str, tuple[int, Any]] = {}
        for _, (name, step, value) in rows:
            if isinstance(name, str) and whole(step) and (name not in found or step >= found[name][0]):
                found[name] = step, value
        return {name: v if isinstance(v, int | float) else float("nan") for name, (_, v) in sorted(found.items())}

    def latest(self, name: str) -> tuple[int, Record] | None:
        """Return step and record of the newest measurement of that name."""
        rows = self._newest("SELECT step, kind, data, about FROM array WHERE name = ? ORDER BY step DESC LIMIT 1", name)
        if not rows:
            return None
        step, *packed = rows
        return step, unpacked(name, *packed)

    def drawn(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return name to how the newest record of that name asks to be drawn; names without a record are left out."""
        query = "SELECT step, about FROM array WHERE name = ? ORDER BY step DESC LIMIT 1"
        found = {name: self._newest(query, name) for name in names}
        return {name: stored.said(name, row[1])["draw"] for name, row in found.items() if row}

    def history(self, name: str) -> list[int]:
        """Return the steps at which a record of that name was made, in order."""
        query = "SELECT step FROM array WHERE name = ? ORDER BY step"
        return sorted({step for source in self._sources() for (step,) in source.all(query, name) if whole(step)})

    def stamp(self, name: str) -> tuple[int, int | None, int | None]:
        """Return what changes with every record of that name: their count, the newest step, the newest writes."""
        query = "SELECT count(*), max(step), max(id) FROM array WHERE name = ?"
        found = [row for source in self._sources() for row in source.all(query, name) if row[0]]
        if not found:
            return (0, None, None)
        return sum(row[0] for row in found), max(row[1] for row in found), sum(row[2] for row in found)

    def at(self, name: str, step: int) -> Record | None:
        """Return the newest record of that name at or before `step`."""
        query = "SELECT step, kind, data, about FROM array WHERE name = ? AND step <= ? ORDER BY step DESC LIMIT 1"
        rows = self._newest(query, name, step)
        return unpacked(name, *rows[1:]) if rows else None

    def events(self, kinds: Iterable[str] = ()) -> list[Event]:
        """Return the events in the order of their time; only those of `kinds` where any are given."""
        kinds = tuple(kinds)
        chosen = f"WHERE kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        rows = self._rows(f"SELECT id, step, time, kind, detail FROM event {chosen} ORDER BY id", *kinds)
        found = [_event(number * _APART + row[0], *row[1:]) for number, row in rows]
        return found if not found or found[-1].id < _APART else sorted(found, key=lambda event: event.time)

    def newest(self, *kinds: str) -> Event | None:
        """Return the newest event of any of these kinds."""
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT id, step, time, kind, detail FROM event WHERE kind IN ({marks}) ORDER BY id DESC LIMIT 1"
        found = [_event(number * _APART + row[0], *row[1:]) for number, row in self._rows(query, *kinds)]
        return max(found, key=lambda event: event.time, default=None)

    def last_ids(self) -> int:
        """Return a number that grows with every event, in whichever file it lies."""
        return sum(row[0] or 0 for _, row in self._rows("SELECT max(id) FROM event"))

    def meta(self, key: str, default: Any = None) -> Any:
        """Return a fact about the run."""
        return self.facts(key).get(key, default)

    def facts(self, *keys: str) -> dict[str, Any]:
        """Return key to fact, all of one moment; keys without a fact are left out."""
        rows = self._own.all(f"SELECT key, value FROM meta WHERE key IN ({', '.join('?' * len(keys))})", *keys)
        return stored.facts(self.path, rows)

    def observing(self) -> dict[int, dict[str, Any]]:
        """Return the number of each observer to the facts that it wrote: `beat`, `step`, `observing` and others."""
        found = {}
        for number, (_, source) in list(self._files().items()):
            try:
                found[number] = stored.facts(source.path, source.all("SELECT key, value FROM meta"))
            except Unreadable as error:
                self.damage = str(error)
        return found

    def version(self) -> int:
        """Return a number that grows with every flush that brings more than a heartbeat."""
        return self.meta("version", 0) + sum(facts.get("version", 0) for facts in self.observing().values())

    def check(self) -> None:
        """Look whether an engine may go on writing here.

        Raises:
            Unreadable: a table or column is missing, or the file is damaged anywhere.
        """
        for table, columns in TABLES.items():
            self._own.all(f"SELECT {columns} FROM {table} LIMIT 0")
        found = self._own.all("PRAGMA quick_check(1)")
        if found and found != [("ok",)]:
            raise Unreadable(self.path, shown(found[0][0]))

    def _rows(self, query: str, *values: Any) -> list[tuple[int, tuple]]:
        """Return (number of the file, row); what is damaged in an observer's file is left out, and `damage` says so."""
        rows = [(0, row) for row in self._own.all(query, *values)]
        for number, (_, source) in list(self._files().items()):
            try:
                rows += [(number, row) for row in source.all(query, *values)]
            except Unreadable as error:
                self.damage = str(error)
        return rows

    def _newest(self, query: str, name: str, *values: Any) -> tuple:
        """Return the row of the highest step, its first field, over all files; the later file's where two have it."""
        found: tuple = ()
        for source in self._sources():
            for row in source.all(query, name, *values):
                if not whole(row[0]):
                    raise Unreadable(f"The record {name}", f"its step is {shown(row[0])}")
                found = row if not found or row[0] >= found[0] else found
        return found

    def _sources(self) -> list[Source]:
        return [self._own, *(source for _, source in list(self._files().values()))]

    def _files(self) -> dict[int, tuple[tuple[int, int], Source]]:
        """Return the number of each observer that has a store to what tells the file from others, and the file."""
        now = time.monotonic()
        if not self._measured or now - self._looked < _LOOK_EVERY:
            return self._known
        found = {}
        for number, path in stores(self.path.parent).items():
            try:
                seen = path.stat()
            except OSError:
                continue
            mark = seen.st_dev, seen.st_ino
            known = self._known.get(number)
            found[number] = known if known is not None and known[0] == mark else (mark, Source(path))
        self._known, self._looked = found, now
        return found


def observed(number: int) -> str:
    """Return the name of the store of an observer.

    >>> observed(1), observed(2)
    ('observed.db', 'observed-2.db')
    """
    return "observed.db" if number == 1 else f"observed-{number}.db"


def stores(home: Path) -> dict[int, Path]:
    """Return the number of each observer that has a store in `home` to its path, in order."""
    try:
        names = os.listdir(home)
    except OSError:
        return {}
    found = {int(match[1] or 1): home / name for name in names if (match := _STORE.fullmatch(name))}
    return dict(sorted(found.items()))


def _event(number: int, step: Any, time: Any, kind: Any, text: Any) -> Event:
    what = f"Event {number}"
    if not (whole(step) and moment(time) and isinstance(kind, str)):
        raise Unreadable(what, shown((step, time, kind)))
    return Event(number, step, time, kind, stored.detail(what, kind, text))


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
