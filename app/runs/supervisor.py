"""Starts engines: no more at once than there are free cores, the others in a queue on disk. Free of Streamlit."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from modalscape.app.runs import limits
from modalscape.app.runs.status import folder, home_of, listed
from modalscape.engine.client.handle import RunHandle, lock
from modalscape.engine.client.observers import dismissed
from modalscape.engine.config import read
from modalscape.engine.errors import InputError
from modalscape.engine.store.files import brief, replace_text, text_of
from modalscape.engine.store.ids import new_id
from modalscape.engine.store.lineage import fork_of
from modalscape.engine.store.words import State

_LOOK = 0.3
"""Seconds between two looks at the engines that run while others wait."""


def parallel() -> int:
    """Return how many engines may run at once: all cores but one, at least one, unless the server says otherwise."""
    return limits.LIMITS["working"].most


def launched(handle: RunHandle) -> None:
    """Start the engine of a run that was prepared; a fork rests at its first step.

    Raises:
        InputError: a file of the home is damaged or cannot be written.
    """
    if fork_of(handle.home):
        handle.launch("resume", "--paused")
    else:
        handle.launch("run")


class Supervisor:
    """The engines of one server: those at work, and the queue of those that wait.

    A waiting run is a prepared folder that was never launched, so a restarted server finds it again.
    """

    def __init__(self, most: int | None = None) -> None:
        """Let up to `most` engines work at once, by default one fewer than there are cores."""
        self.most = most or parallel()
        self._queue: deque[tuple[str, Callable[[RunHandle], None]]] = deque()
        self._working: set[str] = set()
        self._forks: set[str] = set()
        """Forks that wait for their first start."""
        self._change = threading.Condition()
        self._tender: threading.Thread | None = None
        self.problems: dict[str, str] = {}
        """Run to the sentence that says why its engine could not be started."""

    def begin(self, config: Mapping[str, Any], note: str = "") -> str:
        """Prepare a new run and put it into the queue; return its id.

        Raises:
            InputError: the folder of runs cannot be written, or this server takes no such run, or none now.
        """
        limits.bounded(config)
        with self._change:
            limits.room(len(self._queue))
            run = new_id(config.get("problem"), config.get("data"))
            while (folder() / run).exists():  # two of one second may draw the same digits
                run = new_id(config.get("problem"), config.get("data"))
            handle = RunHandle(folder() / run)
            handle.prepare(config)
            if note:
                write_note(handle.home, note)
            self._enqueue(run, launched)
        return run

    def fork(self, config: Mapping[str, Any], run: str) -> None:
        """Prepare a fork under the id `run` and start it before all others that wait, at rest at its first step.

        One fork may start where all places are taken: whoever asks for it looks at its parent, which has one.

        Raises:
            InputError: the folder of runs cannot be written, or this server takes no such run, or none now.
        """
        limits.bounded(config)
        with self._change:
            limits.room(len(self._queue))
            RunHandle(folder() / run).prepare(config)
            self._forks.add(run)
            self._enqueue(run, launched)

    def resume(self, run: str, steps: int | None = None) -> None:
        """Put a run that has ended into the queue, to go on from its last checkpoint, up to `steps` if given.

        Where this server takes no such run, or none now, `problems` says why.
        """
        try:
            asked = read(folder() / run).to_json()
            limits.bounded(asked | {"steps": steps or asked["steps"]})
            with self._change:
                limits.room(len(self._queue))
                self._enqueue(run, lambda handle: handle.resume(steps))
        except InputError as error:
            self.problems[run] = str(error)

    def cancel(self, run: str) -> bool:
        """Take a run out of the queue; one that never began is deleted. Return whether it was waiting."""
        with self._change:
            waiting = [entry for entry in self._queue if entry[0] == run]
            for entry in waiting:
                self._queue.remove(entry)
        home = home_of(folder(), run)
        if waiting and home is not None:
            try:
                RunHandle(home).discard()
            except InputError:  # another server's engine has just taken it up, or it is damaged: it stays
                return True
        return bool(waiting)

    def adopt(self) -> list[str]:
        """Take up what an earlier server left: engines at work are counted, waiting runs queued and returned."""
        found = []
        for run, home in reversed(listed(folder())):
            status = RunHandle(home).status()
            if status.state == State.QUEUED:
                found.append(run)
            elif not status.over:
                with self._change:
                    self._working.add(run)
        for run in found:
            self._enqueue(run, launched)
        return found

    def waiting(self) -> list[str]:
        """Return the ids in the queue, next first."""
        with self._change:
            return [run for run, _ in self._queue]

    def working(self) -> list[str]:
        """Return the ids whose engine is at work."""
        with self._change:
            return sorted(self._working)

    def settle(self, seconds: float) -> bool:
        """Wait up to `seconds` until the queue is empty and every engine has ended; return whether so."""
        with self._change:
            return self._change.wait_for(lambda: not self._queue and not self._working, seconds)

    def _enqueue(self, run: str, launch: Callable[[RunHandle], None]) -> None:
        with self._change:
            self._release()
            if run in self._working or any(waiting == run for waiting, _ in self._queue):
                return
            self.problems.pop(run, None)
            (self._queue.appendleft if run in self._forks else self._queue.append)((run, launch))
            self._advance()
            if self._tender is None:
                self._tender = threading.Thread(target=self._tend, daemon=True, name="supervisor")
                self._tender.start()

    def _tend(self) -> None:
        with self._change:
            while self._queue or self._working:
                self._change.wait(_LOOK)
                self._advance()
            self._tender = None

    def _advance(self) -> None:
        """Let go of engines that have ended and launch those that may; the condition is held."""
        self._release()
        while self._queue and len(self._working) < self.most + (self._queue[0][0] in self._forks):
            run, launch = self._queue.popleft()
            self._forks.discard(run)
            home = home_of(folder(), run)
            if home is None:
                continue
            try:
                launch(RunHandle(home))
                self._working.add(run)
            except (InputError, OSError, sqlite3.Error) as error:
                self.problems[run] = str(error)
        if not self._queue and not self._working:
            self._change.notify_all()

    def _release(self) -> None:
        for run in list(self._working):
            home = home_of(folder(), run)
            if home is None or RunHandle(home).status().over:
                self._working.discard(run)


def delete(run: str) -> None:
    """Delete a run for good.

    Raises:
        InputError: an engine trains it, or the folder cannot be deleted.
    """
    home = home_of(folder(), run)
    if home is None:
        return
    held = home / "lock"
    nobodys = os.path.lexists(held) and not held.is_file()  # nobody can hold what is no file
    try:
        with nullcontext() if nobodys else lock(home):
            dismissed(home)
            shutil.rmtree(home)
    except OSError as error:
        raise InputError(f"{home} cannot be deleted ({brief(error)}); delete the folder by hand.") from None


def note_of(home: Path) -> str:
    """Return the note that a person left on a run."""
    try:
        return text_of(home / "note.txt")[:500]
    except (OSError, ValueError):
        return ""


def write_note(home: Path, text: str) -> None:
    """Leave a note on a run."""
    replace_text(home / "note.txt", text.strip()[:500])
