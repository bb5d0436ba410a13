"""The dashboard's only way to an engine: start it, attach to it, send it commands, ask how it stands. Free of torch."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from modalscape.engine.client.launch import PROGRAM, Launched, launched
from modalscape.engine.client.observers import beside, observed_now, started
from modalscape.engine.errors import InputError
from modalscape.engine.store import commands, pulse
from modalscape.engine.store.commands import Command, Mailbox, set_meta
from modalscape.engine.store.files import brief, opened, text_of, value_of
from modalscape.engine.store.home import ROOT, Busy, founded, held_since, is_locked, lock, runs, runs_folder
from modalscape.engine.store.ids import RUN_ID
from modalscape.engine.store.schema import Unreadable
from modalscape.engine.store.words import EventKind, State
from modalscape.engine.store.writer import RunReader

__all__ = [
    "ENDED",
    "LOAD_WITHIN",
    "OVER",
    "ROOT",
    "RUN_ID",
    "STALL_AFTER",
    "START_WITHIN",
    "UNREADABLE",
    "Busy",
    "RunHandle",
    "Signs",
    "Status",
    "held_since",
    "is_locked",
    "lock",
    "runs",
    "runs_folder",
]

STALL_AFTER = 15.0
"""Seconds without a heartbeat after which an engine that holds its lock is called stalled."""
START_WITHIN = 30.0
"""Seconds an engine may take to take its lock."""
LOAD_WITHIN = 120.0
"""Seconds an engine that holds its lock may take to give the first sign, reading its data meanwhile, or for one breath
of a measurement."""

OVER = (State.FINISHED, State.STOPPED, State.FAILED, State.CRASHED)
"""States in which no engine is at work."""
UNREADABLE = State.UNREADABLE
"""State of a run of which some file cannot be read."""
ENDED = (State.FINISHED, State.STOPPED, State.FAILED)
"""States that an engine leaves behind when it ends of its own will."""


@dataclass(frozen=True)
class Status:
    """How a run stands, as far as it can be told from outside."""

    state: str
    """queued, starting, running, paused, stopping, finished, stopped, failed, crashed, stalled, unreadable"""
    step: int
    steps: int
    rate: float | None
    """Steps per second over the run so far, or its pace where that is lower."""
    eta: float | None
    """Seconds to the last step, or None while that cannot be told."""
    age: float | None
    """Seconds since the training loop last gave a sign."""
    activity: str
    """What the engine is busy with beside training."""
    error: str | None
    alive: bool
    """Whether an engine holds the run."""
    exit_code: int | None

    @property
    def over(self) -> bool:
        """Whether no engine is at work on the run and none is on its way."""
        return self.state in OVER or (self.state == UNREADABLE and not self.alive)


@dataclass(frozen=True)
class Signs:
    """What can be seen of a run from outside; times are seconds since 1970."""

    said: str | None = None
    """The state that the engine wrote last."""
    beat: float | None = None
    """When it wrote that."""
    held: float | None = None
    """When the lock was taken; None while it is free."""
    begun: bool = False
    """Whether any engine ever took the lock."""
    launched: float | None = None
    """When an engine was last started from here."""
    code: int | None = None
    """Exit code of that engine; None while it runs or when nobody waited for it."""
    activity: str = ""

    def state(self, now: float) -> str:
        """Return the state that these signs together mean, as in `Status.state`.

        The lock is the proof of life: whatever the engine wrote last, without the lock it is no longer at work.
        """
        beat = self.beat or 0.0
        silent = self.launched is not None and self.launched > beat
        if self.held is not None:
            if self.held > beat or (silent and self.code is None):
                return State.STARTING if now - max(self.held, beat) < LOAD_WITHIN else State.STALLED
            quiet = now - beat > (LOAD_WITHIN if self.activity else STALL_AFTER)
            return State.STALLED if quiet and self.said not in ENDED else self.said
        if silent and self.code is None and now - self.launched < START_WITHIN:
            return State.STARTING
        if silent and self.code:
            return State.FAILED if self.code > 0 else State.CRASHED
        if self.said is None:
            return State.CRASHED if self.begun or self.launched is not None else State.QUEUED
        return self.said if self.said in ENDED else "crashed"


@contextmanager
def mailbox(home: Path | str) -> Generator[Mailbox]:
    """Give the mailbox of the run in `home`.

    Raises:
        Unreadable: it is damaged or not there.
    """
    try:
        with closing(Mailbox(home)) as found:
            yield found
    except sqlite3.Error as error:
        if isinstance(error, InputError):
            raise
        raise Unreadable(Path(home) / "control.db", brief(error)) from None


class RunHandle:
    """One run, from outside."""

    program: ClassVar[tuple[str, ...]] = PROGRAM
    """What is started, before the words `run HOME` or `resume HOME`."""

    def __init__(self, home: Path | str) -> None:
        self.home = Path(home)

    @classmethod
    def attach(cls, home: Path | str) -> RunHandle:
        """Return the handle of the run in `home`.

        Raises:
            InputError: there is no run.
        """
        if not os.path.lexists(Path(home) / "run.db"):
            raise InputError(f"{home} holds no run: there is no run.db in it; give the folder of a run.")
        return cls(home)

    @classmethod
    def start(cls, config: Any, home: Path | str) -> RunHandle:
        """Make the home and start an engine on it, a process of its own that outlives this one.

        `config` is a `RunConfig` or the JSON values of one.

        Raises:
            InputError: the home holds a run or cannot be written.
        """
        handle = cls(home)
        handle.prepare(config)
        handle.launch("run")
        return handle

    def prepare(self, config: Any) -> None:
        """Make the home with its configuration and databases; an engine may be launched on it later.

        Raises:
            InputError: the home holds a run or cannot be written.
        """
        values = config if isinstance(config, Mapping) else config.to_json()
        founded(self.home, values)
        try:
            set_meta(self.home, "queued", time.time())
        except sqlite3.Error as error:
            raise InputError(f"The home {self.home} cannot be written ({brief(error)}); give another.") from None

    def launch(self, command: str = "run", *arguments: str) -> None:
        """Start `python -m engine COMMAND HOME` in a session of its own, and record its exit code when it ends.

        Raises:
            InputError: a file of the home is damaged or cannot be written.
        """
        moment = time.time()
        line = [command, str(self.home.absolute()), "--attended", *arguments]
        try:
            set_meta(self.home, "exit_code", None)
            set_meta(self.home, "launched", moment)
            # Without waiting: something else than a file may lie in its place.
            log = os.open(self.home / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
            with open(log, "ab") as file:
                process = launched(line, file.fileno(), program=self.program)
            self._observed()
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"No engine could be started in {self.home} ({brief(error)}); mend that folder.") from None
        threading.Thread(target=self._reap, args=(process, moment), daemon=True).start()

    def _observed(self) -> None:
        """Start the observers of a run that is just being started, so that nobody waits for them.

        Raises:
            OSError: they cannot be started.
        """
        try:
            count = beside(value_of(text_of(self.home / "config.json")))
        except (OSError, ValueError, AttributeError):  # the engine says what is wrong with its configuration
            return
        for number in range(1, count + 1) if self.program == PROGRAM else ():
            if not observed_now(self.home, number):
                self._waited(started(self.home, number))

    def _waited(self, process: Launched) -> None:
        threading.Thread(target=process.wait, daemon=True).start()

    def resume(self, steps: int | None = None) -> None:
        """Start an engine that goes on from the last checkpoint, to a new length if `steps` is given.

        Raises:
            Busy: an engine is at work on it.
        """
        if is_locked(self.home):
            raise Busy(f"{self.home} is already being trained by another engine; wait for it or stop it.")
        self.launch("resume", *(["--steps", str(steps)] if steps is not None else []))

    def send(self, command: Command, who: str = "", *, once: bool = False) -> int:
        """Put a command into the run's mailbox, `once` for all requests of the token `who`; return its number.

        Raises:
            InputError: there is no run, or its mailbox is damaged or cannot be written.
        """
        try:
            return commands.post(self.home, command, who, once=once)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"The mailbox of {self.home} takes no command ({brief(error)}); try again.") from None

    def discard(self) -> bool:
        """Delete a run that no engine has taken up; return whether it was one.

        Raises:
            InputError: an engine has just taken it up, or the folder cannot be written.
        """
        with lock(self.home):
            signs, _ = self._signs(self._own())
            if signs.said is not None or signs.launched is not None:
                return False
            shutil.rmtree(self.home, ignore_errors=True)
            return True

    def pending(self) -> list[tuple[int, Command]]:
        """Return the commands that were sent and neither applied nor refused yet, with their numbers, in order."""
        reader = RunReader(self.home, measured=False)
        answered = [reader.newest(EventKind.APPLIED), reader.newest(EventKind.REFUSED)]
        obeyed = max((event.detail.get("id") or 0 for event in answered if event), default=0)
        measured = max((facts.get("read_up_to", 0) for facts in self._own().observing().values()), default=0)
        if reader.meta("measure", "inline") == "inline":
            measured = max(measured, obeyed)
        with self._mailbox() as mailbox:
            waiting = mailbox.unread(min(obeyed, measured))
        return [(number, c) for number, c in waiting if number > (measured if c.measures else obeyed)]

    def observe(self) -> None:
        """Start a process that measures the run, unless one does or its engine measures by itself.

        Raises:
            InputError: the folder cannot be written.
        """
        if observed_now(self.home) or is_locked(self.home):
            return
        try:
            process = started(self.home)
        except OSError as error:
            words = f"No process could be started in {self.home} to measure it ({brief(error)}); mend that folder."
            raise InputError(words) from None
        self._waited(process)

    def observers(self, reader: RunReader) -> list[dict[str, Any]]:
        """Return what the observers that are at work on the run said last."""
        return [facts for number, facts in reader.observing().items() if observed_now(self.home, number)]

    def reader(self) -> RunReader:
        """Return a reader of what the run recorded, and of the past that a fork shares with its parent."""
        return RunReader(self.home)

    def _own(self) -> RunReader:
        return RunReader(self.home, inherited=False)

    def status(self) -> Status:
        """Return how the run stands: what it last said, checked against its lock, heartbeat and exit code.

        Whatever lies in the home, this never raises: what cannot be read makes the run `unreadable`, with the reason.
        """
        try:
            return self._status()
        except InputError as error:
            return Status(UNREADABLE, 0, self._planned(), None, None, None, "", str(error), self._held(), None)

    def _held(self) -> bool:
        try:
            return is_locked(self.home)
        except InputError:  # something else lies in the lock's place, and nobody can hold that
            return False

    def _status(self) -> Status:
        reader = self._own()
        signs, facts = self._signs(reader)
        state = signs.state(time.time())
        if state == State.CRASHED:  # perhaps an engine took the lock between two looks; a second look tells
            signs, facts = self._signs(reader)
            state = signs.state(time.time())
        alive = signs.held is not None
        age = None if signs.beat is None else max(time.time() - signs.beat, 0.0)
        step, steps = facts.get("step", 0), facts.get("steps") or self._planned()
        seconds, taken = facts.get("seconds", 0.0), step - facts.get("first_step", 0)
        rate = taken / seconds if seconds > 0.5 and taken > 0 else None
        pace = facts.get("pace") or 0.0
        rate = min(rate, pace) if rate and pace > 0 else rate
        eta = (steps - step) / rate if rate and state == State.RUNNING else None
        error = self._error(reader, state, step, age, signs.code) or facts.get("waiting") or None
        return Status(state, step, steps, rate, eta, age, signs.activity if alive else "", error, alive, signs.code)

    def _signs(self, reader: RunReader) -> tuple[Signs, dict[str, Any]]:
        with self._mailbox() as mailbox:
            launched, code = mailbox.meta("launched"), mailbox.meta("exit_code")
        # The lock before the words: an engine writes its last word while it still holds the lock.
        held = held_since(self.home)
        begun = (self.home / "lock").exists()
        keys = ("state", "beat", "activity", "step", "steps", "seconds", "waiting", "pace", "first_step")
        facts = reader.facts(*keys)
        facts |= pulse.newer(self.home, facts.get("beat"))
        activity = facts.get("activity", "")
        return Signs(facts.get("state"), facts.get("beat"), held, begun, launched, code, activity), facts

    def _mailbox(self) -> AbstractContextManager[Mailbox]:
        return mailbox(self.home)

    def _planned(self) -> int:
        try:
            return int(value_of(text_of(self.home / "config.json"))["steps"])
        except (OSError, ValueError, TypeError, LookupError, OverflowError):
            return 0

    def _error(self, reader: RunReader, state: str, step: int, age: float | None, code: int | None) -> str | None:
        """Return what went wrong and what to do about it, or None."""
        if state == State.STALLED:
            return f"The engine has given no sign for {age or 0.0:.0f} s; wait, or end its process and resume."
        if state == State.CRASHED:
            how = "" if code is None else f" (killed by signal {-code})" if code < 0 else f" (exit code {code})"
            return f"The engine ended without a word{how}; what it recorded is safe. Resume goes on from a checkpoint."
        if state == State.FAILED:
            last = reader.newest(EventKind.FAILED, EventKind.STARTED, EventKind.RESUMED)
            if last is not None and last.kind == EventKind.FAILED:
                return last.detail.get("error")
            return self._last_words() or f"The engine ended with exit code {code}; see {self.home / 'log.txt'}."
        if state in ("paused", "stopped"):
            last = reader.newest(EventKind.DIVERGED)
            return last.detail.get("error") if last is not None and last.step == step else None
        return None

    def _last_words(self) -> str:
        """Return the last line of the log."""
        try:
            with opened(self.home / "log.txt") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - 4096, 0))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _reap(self, process: Launched, launched: float) -> None:
        """Wait for the engine, so that it leaves no zombie, and record its exit code unless a newer one was started."""
        code = process.wait()
        try:
            with self._mailbox() as mailbox:
                newer = mailbox.meta("launched") != launched
            if code is not None and not newer:
                set_meta(self.home, "exit_code", code)
        except (InputError, OSError, sqlite3.Error):  # the folder was deleted or damaged: there is no run to tell of
            return
