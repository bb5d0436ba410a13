"""Reads what a run recorded and what was measured of it. Free of torch; read-only, so readers never disturb writers."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Record
from modalscape.engine.errors import InputError, shown
from modalscape.engine.store import schema
from modalscape.engine.store.database import Source
from modalscape.engine.store.files import brief, moment, whole
from modalscape.engine.store.lineage import Inherited, ancestors
from modalscape.engine.store.schema import Unreadable, unpacked

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
_GENERATION = 100
"""Numbers between the first files of a run and of its parent: 0 is the run's own, those up to here its observers'."""


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

    A fork shows the past that it shares with its parent as its own, see `lineage`; facts are the run's alone.

    Every call is a few short reads. Whatever lies in the files, a call returns what an engine or an observer may have
    written, or raises `Unreadable`; where what an observer or an ancestor wrote is damaged or gone, `damage` says so
    and the rest is read.
    """

    def __init__(self, home: Path | str, *, measured: bool = True, inherited: bool = True) -> None:
        """Open the run in `home`; a run that waits for its engine has recorded nothing yet.

        Without `measured`, only what the engine itself wrote is read; without `inherited`, nothing of a fork's parent.

        Raises:
            InputError: there is no run in it.
        """
        self.path = (Path(home) / "run.db").absolute()
        if not any(map(os.path.lexists, (self.path, self.path.with_name("config.json")))):
            raise InputError(f"{home} holds no run: there is no run.db in it; give the folder of a run.")
        self._own = Source(self.path)
        self._measured, self._inherited = measured, inherited and measured
        self._known: dict[int, tuple[tuple, Source]] = {}
        self._looked = -1.0
        self.damage = ""
        """Why what an observer or an ancestor wrote cannot be read, in a sentence, or nothing."""

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
        parts = [rows for _, rows in self._parts(query, name, since, most)]
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

    def numbers_at(self, step: int) -> dict[str, float]:
        """Return name to value of every scalar that was written for just this step."""
        query = "SELECT name.name, value FROM name JOIN number ON number.name = name.id AND step = ?"
        rows = [row for _, row in self._rows(query, step)]
        found = {name: v if isinstance(v, int | float) else float("nan") for name, v in rows if isinstance(name, str)}
        return dict(sorted(found.items()))

    def latest(self, name: str) -> tuple[int, Record] | None:
        """Return step and record of the newest measurement of that name."""
        rows = self._newest("SELECT step, kind, data, about FROM array WHERE name = ? ORDER BY step DESC LIMIT 1", name)
        if not rows:
            return None
        step, *packed = rows
        return step, unpacked(name, *packed)

    def drawn(self, names: Iterable[str]) -> dict[str, Display]:
        """Return name to how the newest record of that name asks to be drawn; names without a record are left out."""
        query = "SELECT step, about FROM array WHERE name = ? ORDER BY step DESC LIMIT 1"
        found = {name: self._newest(query, name) for name in names}
        return {name: schema.said(name, row[1])["display"] for name, row in found.items() if row}

    def history(self, name: str) -> list[int]:
        """Return the steps at which a record of that name was made, in order."""
        query = "SELECT step FROM array WHERE name = ? ORDER BY step"
        return sorted({step for _, (step,) in self._rows(query, name) if whole(step)})

    def stamp(self, name: str) -> tuple[int, int | None, int | None]:
        """Return what changes with every record of that name: their count, the newest step, the newest writes."""
        query = "SELECT count(*), max(step), max(id) FROM array WHERE name = ?"
        found = [row for _, row in self._rows(query, name) if row[0]]
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
        found = self._told(rows)
        return found if all(event.id < _APART for event in found) else sorted(found, key=lambda event: event.time)

    def newest(self, *kinds: str) -> Event | None:
        """Return the newest event of any of these kinds."""
        marks = ", ".join("?" * len(kinds))
        query = f"SELECT id, step, time, kind, detail FROM event WHERE kind IN ({marks}) ORDER BY id DESC LIMIT 1"
        return max(self._told(self._rows(query, *kinds)), key=lambda event: event.time, default=None)

    def newest_number(self) -> int:
        """Return the number of the newest event that the run's own engine wrote; 0 before the first."""
        number = self._own.all("SELECT max(id) FROM event")
        return (number[0][0] if number else None) or 0

    def last_ids(self) -> int:
        """Return a number that grows with every event, in whichever file it lies."""
        return sum(row[0] or 0 for _, row in self._rows("SELECT max(id) FROM event"))

    def meta(self, key: str, default: Any = None) -> Any:
        """Return a fact about the run."""
        return self.facts(key).get(key, default)

    def facts(self, *keys: str) -> dict[str, Any]:
        """Return key to fact, all of one moment; keys without a fact are left out."""
        rows = self._own.all(f"SELECT key, value FROM meta WHERE key IN ({', '.join('?' * len(keys))})", *keys)
        return schema.facts(self.path, rows)

    def observing(self, *, fresh: bool = False) -> dict[int, dict[str, Any]]:
        """Return the number of each observer to the facts that it wrote: `beat`, `step`, `observing` and others.

        A store that has come within the last moment is known only if `fresh` is asked for.
        """
        if fresh:
            self._looked = float("-inf")
        found = {}
        for number, (_, source) in list(self._files().items()):
            if number >= _GENERATION:
                continue
            try:
                found[number] = schema.facts(source.path, source.all("SELECT key, value FROM meta"))
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

    @property
    def lineage(self) -> tuple:
        """What differs when other files of ancestors are read: each one's number, and what tells it from others."""
        return tuple((number, mark) for number, (mark, _) in self._files().items() if number >= _GENERATION)

    def _parts(self, query: str, *values: Any) -> list[tuple[int, list[tuple]]]:
        """Return (number of the file, its rows) of the files that have any, later ones last.

        What is damaged in a file that the run's own engine did not write is left out, and `damage` says so.
        """
        files = list(self._files().items())
        before = [(number, source) for number, (_, source) in files if number >= _GENERATION]
        beside = [(number, source) for number, (_, source) in files if number < _GENERATION]
        found = []
        for number, source in [*before, (0, self._own), *beside]:
            try:
                rows = source.all(query, *values)
            except Unreadable as error:
                if not number:
                    raise
                self.damage = str(error)
                continue
            found += [(number, rows)] if rows else []
        return found

    def _rows(self, query: str, *values: Any) -> list[tuple[int, tuple]]:
        """Return (number of the file, row), as `_parts` does."""
        return [(number, row) for number, rows in self._parts(query, *values) for row in rows]

    def _told(self, rows: list[tuple[int, tuple]]) -> list[Event]:
        """Return events; of an ancestor's, those that are damaged are left out, and `damage` says so."""
        found = []
        for number, (first, *rest) in rows:
            try:
                found.append(_event(number * _APART + first, *rest))
            except Unreadable as error:
                if number < _GENERATION:
                    raise
                self.damage = str(error)
        return found

    def _newest(self, query: str, name: str, *values: Any) -> tuple:
        """Return the row of the highest step, its first field, over all files; the later file's where two have it."""
        found: tuple = ()
        for number, row in self._rows(query, name, *values):
            if whole(row[0]):
                found = row if not found or row[0] >= found[0] else found
            elif number < _GENERATION:
                raise Unreadable(f"The record {name}", f"its step is {shown(row[0])}")
        return found

    def _files(self) -> dict[int, tuple[tuple, Source]]:
        """Return number of each file beside the run's own to what tells it from others, and the file; oldest first."""
        now = time.monotonic()
        if not self._measured or now - self._looked < _LOOK_EVERY:
            return self._known
        found: dict[int, tuple[tuple, Source]] = {}
        line, wrong = ancestors(self.path.parent) if self._inherited else ([], "")
        self.damage = wrong or self.damage
        for depth, ancestor in reversed(list(enumerate(line, 1))):
            for number, path in ({0: ancestor.home / "run.db"} | stores(ancestor.home)).items():
                make = partial(Inherited, path, ancestor, observed=number > 0)
                self._look_at(found, depth * _GENERATION + number, path, (ancestor.step, ancestor.event), make)
        for number, path in stores(self.path.parent).items():
            self._look_at(found, number, path, (), partial(Source, path))
        self._known, self._looked = found, now
        return found

    def _look_at(self, found: dict, number: int, path: Path, limits: tuple, make: Callable[[], Source]) -> None:
        """Put a file into `found`: as it was known, unless another lies there now."""
        try:
            seen = path.stat()
        except OSError:
            return
        mark = (str(path), seen.st_dev, seen.st_ino, *limits)
        known = self._known.get(number)
        found[number] = known if known is not None and known[0] == mark else (mark, make())


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
    return Event(number, step, time, kind, schema.detail(what, kind, text))


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
