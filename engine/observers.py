"""The observers of a run: processes that measure it, started beside its training and again when one ends.

Free of torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from engine.folder import ROOT, held_since
from engine.outside import brief, text_of
from engine.stored import Unreadable

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


def locked(number: int) -> str:
    """Return the name of the file that observer `number` holds."""
    return f"observer-{number}.lock"


def started(home: Path, number: int = 1) -> subprocess.Popen:
    """Start an observer of the run in `home`, a process in a session of its own.

    Raises:
        OSError: it cannot be started, or the folder cannot be written.
    """
    words = [*Observers.program, "observe", str(Path(home).absolute()), "--number", str(number)]
    log = os.open(Path(home) / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    with open(log, "ab") as file:
        return subprocess.Popen(
            words,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )


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

    process: subprocess.Popen | None = None
    since: float = 0.0
    next: float = 0.0
    wait: float = WAIT


class Observers:
    """Keeps so many observers of a run at work; whoever trains calls `turn` now and then."""

    program: ClassVar[tuple[str, ...]] = (sys.executable, "-m", "engine")
    """What is started, before the words `observe HOME`."""

    def __init__(self, home: Path, count: int, say: Callable[[str], None]) -> None:
        """Keep `count` observers of the run in `home`; `say` is told in a sentence when one had to be replaced."""
        self.home, self.say = Path(home), say
        self._places = {number: _Place() for number in range(1, count + 1)}
        self._next = 0.0

    def turn(self) -> None:
        """Start what is not there, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK_EVERY
        for number, place in self._places.items():
            if place.process is not None:
                code = place.process.poll()
                if code is None:
                    continue
                self._ended(number, place, code, now)
            if now >= place.next:
                self._start(number, place, now)

    def _start(self, number: int, place: _Place, now: float) -> None:
        try:
            place.process, place.since = started(self.home, number), now
        except OSError as error:
            place.next = now + WAIT_MOST
            self.say(f"No observer could be started ({brief(error)}), so nothing is measured for now.")

    def _ended(self, number: int, place: _Place, code: int, now: float) -> None:
        place.process = None
        if now - place.since > STEADY:
            place.wait = WAIT
        place.next = now + place.wait
        if code in (0, BUSY):
            return
        place.wait = min(2 * place.wait, WAIT_MOST)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        self.say(f"The process that measures this run {how}; another takes its place, and training goes on.")
