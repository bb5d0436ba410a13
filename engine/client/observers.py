"""The observers of a run: processes that measure it, started beside its training and again when one ends.

Free of torch.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalscape.engine.client.launch import Launched, launched
from modalscape.engine.store.files import brief, text_of
from modalscape.engine.store.home import held_since
from modalscape.engine.store.schema import Unreadable

LOOK_EVERY = 0.5
"""Seconds between two looks whether the observers are there."""
WAIT, WAIT_MOST = 1.0, 30.0
"""Seconds until an observer that ended is started again, at first and at most."""
STEADY = 60.0
"""Seconds that an observer must have lasted for the wait to begin anew."""
MOST = 16
"""Observers of a run."""
BUSY = 3
"""Exit code of an observer that found another in its place."""
LOG = "observer.log"
_ANOTHER = "another takes its place, and training goes on."


def locked(number: int) -> str:
    """Return the name of the file that observer `number` holds."""
    return f"observer-{number}.lock"


def started(home: Path, number: int = 1) -> Launched:
    """Start an observer of the run in `home`, a process in a session of its own.

    Raises:
        OSError: it cannot be started, or the folder cannot be written.
    """
    words = ["observe", str(Path(home).absolute()), "--number", str(number)]
    log = os.open(Path(home) / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    with open(log, "ab") as file:
        return launched(words, file.fileno())


def beside(config: Mapping[str, Any]) -> int:
    """Return how many observers are started with a run of these JSON values that a page starts."""
    settings = config.get("settings") or {}
    count = settings.get("observers", 1)
    return count if settings.get("measure", "auto") != "inline" and isinstance(count, int) else 0


def observed_now(home: Path | str, number: int = 1) -> bool:
    """Return whether an observer of the run in `home` is at work; the first one answers requests."""
    try:
        return held_since(home, locked(number)) is not None
    except Unreadable:  # something else lies in the lock's place, and nobody can hold that
        return False


def dismissed(home: Path | str, patience: float = 3.0) -> None:
    """End the observers of the run in `home`, and wait up to `patience` seconds until they are gone."""
    for number in range(1, MOST + 1):
        path, until, asked = Path(home) / locked(number), time.monotonic() + patience, False
        if not os.path.lexists(path):
            continue
        while observed_now(home, number) and time.monotonic() < until:
            try:
                if not asked:
                    os.kill(int(text_of(path, 100)), signal.SIGTERM)
                    asked = True
            except (OSError, ValueError):  # it is just beginning, or has just ended
                asked = False
            time.sleep(0.02)


@dataclass
class _Place:
    """The place of one observer."""

    process: Launched | None = None
    code: int | None = None
    """Exit code of the process, once it has ended."""
    since: float = 0.0
    next: float = 0.0
    wait: float = WAIT
    seen: bool = False
    """Whether somebody else's observer was there."""


class Observers:
    """Keeps so many observers of a run at work; whoever trains calls `turn` now and then."""

    def __init__(self, home: Path, count: int, say: Callable[[str], None], *, patience: float = 0.0) -> None:
        """Keep `count` observers of the run in `home`; `say` is told in a sentence when one had to be replaced.

        For `patience` seconds nothing is done: whoever started the run has started its observers, too.
        """
        self.home, self._say, self._said = Path(home), say, ""
        self._places = {number: _Place() for number in range(1, count + 1)}
        self._next = time.monotonic() + patience

    def turn(self) -> None:
        """Start what is not there, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK_EVERY
        for number, place in self._places.items():
            if place.process is not None and place.code is not None:
                self._ended(number, place, now)
            if place.process is None and now >= place.next:
                self._start(number, place, now)

    def _start(self, number: int, place: _Place, now: float) -> None:
        if observed_now(self.home, number):
            place.seen = True
            return
        if place.seen:
            place.seen = False
            self._tell(f"The process that measures this run ended; {_ANOTHER}")
        try:
            place.process, place.since, place.code = started(self.home, number), now, None
        except OSError as error:
            place.next = now + WAIT_MOST
            self._tell(f"No observer could be started ({brief(error)}), so nothing is measured for now.")
            return
        threading.Thread(target=self._reap, args=(place, place.process), daemon=True).start()

    def _tell(self, words: str) -> None:
        """Say it, unless it is what was said last: an observer may end again and again for the same reason."""
        if words != self._said:
            self._say(words)
        self._said = words

    def _reap(self, place: _Place, process: Launched) -> None:
        code = process.wait()
        place.code = 1 if code is None else code

    def _ended(self, number: int, place: _Place, now: float) -> None:
        code, place.process = place.code, None
        if now - place.since > STEADY:
            place.wait, self._said = WAIT, ""
        place.next = now + place.wait
        if code in (0, BUSY):
            return
        place.wait = min(2 * place.wait, WAIT_MOST)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        self._tell(f"The process that measures this run {how}; {_ANOTHER}")
