"""Reads what a run recorded. Free of torch; read-only, so that any number of readers never disturb the engine."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.knobs import InputError
from engine.records import KINDS, Record


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
    """The reader of `run.db`; every call is one short read, and each thread has a connection of its own."""

    def __init__(self, home: Path | str) -> None:
        """Open the run in `home`.

        Raises:
            InputError: there is no `run.db` in it.
        """
        self.path = Path(home) / "run.db"
        if not self.path.exists():
            raise InputError(f"{home} holds no recorded run: there is no run.db in it; give the folder of a run.")
        self._local = threading.local()

    def names(self) -> dict[str, Any]:
        """Return `scalars`, a sorted list of names, and `records`, a dict of name to kind."""
        # One index probe a name: a plain DISTINCT would walk every row of a long run.
        walk = """WITH RECURSIVE names(name) AS (SELECT min(name) FROM scalar UNION ALL
                  SELECT (SELECT min(name) FROM scalar WHERE name > names.name) FROM names WHERE names.name IS NOT NULL)
                  SELECT name FROM names WHERE name IS NOT NULL"""
        records = self._all("SELECT name, kind FROM array GROUP BY name ORDER BY name")
        return {"scalars": [name for (name,) in self._all(walk)], "records": dict(records)}

    def scalars(self, name: str, since: int = -1, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Return steps (N,) and values (N,) after step `since`, thinned to at most `points` with all extremes kept."""
        rows = self._all("SELECT step, value FROM scalar WHERE name = ? AND step > ? ORDER BY step", name, since)
        steps = np.array([step for step, _ in rows], dtype=np.int64)
        values = np.array([value for _, value in rows], dtype=np.float64)
        return thinned(steps, values, points)

    def tail(self, names: list[str], since: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return name to the steps and values that came after `since[name]`."""
        return {name: self.scalars(name, since.get(name, -1)) for name in names}

    def last(self) -> dict[str, float]:
        """Return name to the last value of every scalar."""
        found = {}
        for name in self.names()["scalars"]:
            rows = self._all("SELECT value FROM scalar WHERE name = ? ORDER BY step DESC LIMIT 1", name)
            if rows:
                found[name] = float(rows[0][0])
        return found

    def latest(self, name: str) -> tuple[int, Record] | None:
        """Return step and record of the newest measurement of that name."""
        rows = self._all("SELECT step, kind, data, about FROM array WHERE name = ? ORDER BY step DESC LIMIT 1", name)
        return (rows[0][0], unpacked(name, *rows[0][1:])) if rows else None

    def history(self, name: str) -> list[int]:
        """Return the steps at which a record of that name was made, in order."""
        return [step for (step,) in self._all("SELECT step FROM array WHERE name = ? ORDER BY step", name)]

    def at(self, name: str, step: int) -> Record | None:
        """Return the newest record of that name at or before `step`."""
        rows = self._all(
            "SELECT kind, data, about FROM array WHERE name = ? AND step <= ? ORDER BY step DESC LIMIT 1", name, step
        )
        return unpacked(name, *rows[0]) if rows else None

    def events(self, since: int = 0) -> list[Event]:
        """Return the events after event number `since`, in order."""
        rows = self._all("SELECT id, step, time, kind, detail FROM event WHERE id > ? ORDER BY id", since)
        return [Event(*row[:4], json.loads(row[4])) for row in rows]

    def meta(self, key: str, default: Any = None) -> Any:
        """Return a fact about the run."""
        rows = self._all("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else default

    def version(self) -> int:
        """Return a number that grows with every flush of the engine."""
        return self.meta("version", 0)

    def _all(self, query: str, *values: Any) -> list[tuple]:
        db = getattr(self._local, "db", None)
        if db is None:
            # Immutable pages are never assumed: the engine may be writing.
            db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0, isolation_level=None)
            self._local.db = db
        return db.execute(query, values).fetchall()


def unpacked(name: str, kind: str, data: bytes, about: str) -> Record:
    """Return the record that was stored."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        values = {key: arrays[key] for key in arrays.files}
    if kind == "scalar":
        values = {key: float(value) for key, value in values.items()}
    return KINDS[kind](name=name, **values, **json.loads(about))


def thinned(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most about `points` of the samples: first, last, and minimum and maximum of each of equal buckets.

    Spikes survive, unlike with random or strided sampling. Samples that are not finite count as extremes.
    """
    if len(x) <= points or points < 4:
        return x, y
    buckets = (points - 2) // 2
    inner = y[1:-1]
    edges = np.linspace(0, len(inner), buckets + 1).astype(int)
    low = np.where(np.isnan(inner), -np.inf, inner)
    high = np.where(np.isnan(inner), np.inf, inner)
    keep = {0, len(x) - 1}
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        if stop > start:
            keep.add(1 + start + int(low[start:stop].argmin()))
            keep.add(1 + start + int(high[start:stop].argmax()))
    where = np.array(sorted(keep))
    return x[where], y[where]
