"""The numbers of runs kept in memory and only added to, so that a tick reads what is new and not the whole run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from modalscape.engine.store.reader import envelope, thinned
from modalscape.engine.store.writer import RunReader

MOST = 600
"""Series kept; the least recently drawn are let go."""
MOST_READERS = 40
FULL = 65_536
"""Samples of one series kept in memory; a longer one is thinned, so memory does not grow with the length of a run."""
WHOLE = 4_096
"""Samples at its beginning that are never thinned: a logarithmic axis shows them apart."""
READ = 50_000
"""Rows read at once."""


class Tail:
    """One growing series: steps and values, in arrays that double when they are full, up to FULL samples.

    Beyond that, what follows the beginning is thinned to the extremes of buckets of equal length, which is far finer
    than any chart.
    """

    def __init__(self) -> None:
        self.steps = np.empty(256, np.int64)
        self.values = np.empty(256, np.float64)
        self.size = 0
        self.lock = threading.Lock()

    def extended(self, reader: RunReader, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return steps (N,) and values (N,), after reading what was recorded since the last look."""
        with self.lock:
            count = READ
            while count == READ:
                last = int(self.steps[self.size - 1]) if self.size else -1
                steps, values = reader.scalars(name, since=last, points=None, most=READ)
                count = len(steps)
                self._append(steps, values)
            return self.steps[: self.size], self.values[: self.size]

    def _append(self, steps: np.ndarray, values: np.ndarray) -> None:
        need = self.size + len(steps)
        while need > len(self.steps):
            self.steps = np.concatenate([self.steps, np.empty_like(self.steps)])
            self.values = np.concatenate([self.values, np.empty_like(self.values)])
        self.steps[self.size : need] = steps
        self.values[self.size : need] = values
        self.size = need
        if need > FULL:
            buckets = (FULL // 2 - WHOLE) // 2
            late = envelope(self.steps[WHOLE:need], self.values[WHOLE:need], buckets)
            self.steps, self.values = (
                np.concatenate([early[:WHOLE], kept])
                for early, kept in zip((self.steps, self.values), late, strict=True)
            )
            self.size = len(self.steps)


class Tails:
    """The series of every run of one server."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple, Tail] = OrderedDict()
        self.readers: OrderedDict[str, TailReader] = OrderedDict()
        self.lock = threading.Lock()

    def reader(self, home: Path) -> TailReader:
        """Return the reader of the run in `home`."""
        with self.lock:
            reader = self.readers.setdefault(str(home), TailReader(home, self))
            self.readers.move_to_end(str(home))
            while len(self.readers) > MOST_READERS:
                self.readers.popitem(last=False)
            return reader

    def of(self, home: Path, name: str, lineage: tuple = ()) -> Tail:
        """Return the series `name` of the run in `home`; of a fork another one whenever its `lineage` is another."""
        key = (str(home), name, lineage)
        with self.lock:
            tail = self.kept.setdefault(key, Tail())
            self.kept.move_to_end(key)
            while len(self.kept) > MOST:
                self.kept.popitem(last=False)
            return tail


class TailReader:
    """A run's reader whose numbers and names come from memory; everything else is the reader's own."""

    def __init__(self, home: Path, tails: Tails) -> None:
        self.home, self.tails = home, tails
        self.reader = RunReader(home)
        self._known: tuple[tuple | None, dict[str, Any]] = (None, {})

    def names(self) -> dict[str, Any]:
        """Return the names of numbers and records, read anew when the run has recorded something."""
        version = (self.reader.version(), self.reader.lineage)
        if version != self._known[0]:
            self._known = (version, self.reader.names())
        return self._known[1]

    def scalars(self, name: str, points: int | None = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and values, thinned to at most `points` (None: all), each bucket's extremes kept."""
        steps, values = self.tails.of(self.home, name, self.reader.lineage).extended(self.reader, name)
        return (steps, values) if points is None else thinned(steps, values, points)

    def __getattr__(self, key: str) -> Any:
        return getattr(self.reader, key)
