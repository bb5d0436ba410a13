"""The dashboard's only way to an engine: start it, attach to it, send it commands, ask how it stands. Free of torch."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import control
from engine.control import Command, Mailbox, set_meta
from engine.knobs import InputError
from engine.store import RunReader, create

ROOT = Path(__file__).resolve().parent.parent
RUN_ID = re.compile(r"^[a-z0-9][a-z0-9-]{2,60}$")
"""What a run's id, the name of its folder, looks like."""

STALL_AFTER = 15.0
"""Seconds without a heartbeat after which an engine that holds its lock is called stalled."""
START_WITHIN = 30.0
"""Seconds an engine may take to take its lock."""

OVER = ("finished", "stopped", "failed", "crashed")
"""States in which no engine is at work."""


class Busy(InputError):
    """The home is being trained by another engine."""


@dataclass(frozen=True)
class Status:
    """How a run stands, as far as it can be told from outside."""

    state: str
    """queued, starting, running, paused, stopping, finished, stopped, failed, crashed, stalled"""
    step: int
    steps: int
    rate: float | None
    """Steps per second over the run so far."""
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


class RunHandle:
    """One run, from outside."""

    def __init__(self, home: Path | str) -> None:
        self.home = Path(home)

    @classmethod
    def attach(cls, home: Path | str) -> RunHandle:
        """Return the handle of the run in `home`.

        Raises:
            InputError: there is no run.
        """
        if not (Path(home) / "run.db").exists():
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
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            if (self.home / "config.json").exists():
                raise InputError(f"{self.home} already holds a run; give another home.")
            create(self.home)
            partial = self.home / "config.partial"
            partial.write_text(json.dumps(values, indent=1))
            partial.replace(self.home / "config.json")
        except OSError as error:
            raise InputError(f"The home {self.home} cannot be written ({error.strerror}); give another.") from None
        set_meta(self.home, "queued", time.time())

    def launch(self, command: str = "run", *arguments: str) -> None:
        """Start `python -m engine COMMAND HOME` in a session of its own, and record its exit code when it ends."""
        set_meta(self.home, "exit_code", None)
        set_meta(self.home, "launched", time.time())
        line = [sys.executable, "-m", "engine", command, str(self.home.absolute()), "--attended", *arguments]
        with (self.home / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                line,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        threading.Thread(target=self._reap, args=(process,), daemon=True).start()

    def resume(self, steps: int | None = None) -> None:
        """Start an engine that goes on from the last checkpoint, to a new length if `steps` is given.

        Raises:
            Busy: an engine is at work on it.
        """
        if is_locked(self.home):
            raise Busy(f"{self.home} is already being trained by another engine; wait for it or stop it.")
        self.launch("resume", *(["--steps", str(steps)] if steps is not None else []))

    def send(self, command: Command, who: str = "") -> int:
        """Put a command into the run's mailbox; return its number."""
        return control.post(self.home, command, who)

    def pending(self) -> list[tuple[int, Command]]:
        """Return the commands that were sent and neither applied nor refused yet, with their numbers."""
        answered = {e.detail["id"] for e in self.reader().events() if e.kind in ("applied", "refused")}
        newest = max(answered, default=0)
        mailbox = Mailbox(self.home)
        try:
            return [(number, command) for number, command in mailbox.unread(newest) if number not in answered]
        finally:
            mailbox.close()

    def reader(self) -> RunReader:
        """Return a reader of what the run recorded."""
        return RunReader(self.home)

    def status(self) -> Status:
        """Return how the run stands: what it last said, checked against its lock, heartbeat and exit code."""
        reader = self.reader()
        mailbox = Mailbox(self.home)
        try:
            launched, code = mailbox.meta("launched"), mailbox.meta("exit_code")
        finally:
            mailbox.close()
        alive = is_locked(self.home)
        said, beat = reader.meta("state"), reader.meta("beat")
        age = None if beat is None else max(time.time() - beat, 0.0)
        state = _state(said, alive, age, reader.meta("activity", ""), launched, beat, code)
        step, steps = reader.meta("step", 0), reader.meta("steps", 0) or self._planned()
        seconds = reader.meta("seconds", 0.0)
        rate = step / seconds if seconds > 0.5 and step else None
        eta = (steps - step) / rate if rate and state == "running" else None
        activity = reader.meta("activity", "") if alive else ""
        return Status(state, step, steps, rate, eta, age, activity, self._error(reader, state), alive, code)

    def _planned(self) -> int:
        try:
            return int(json.loads((self.home / "config.json").read_text()).get("steps", 0))
        except (OSError, ValueError):
            return 0

    def _error(self, reader: RunReader, state: str) -> str | None:
        said = [e.detail.get("error") for e in reader.events() if e.kind in ("failed", "diverged", "resumed", "started")]
        if said and said[-1]:
            return said[-1]
        if state == "crashed":
            return "The engine ended without a word; what it recorded is safe. Resume goes on from the last checkpoint."
        return None

    def _reap(self, process: subprocess.Popen) -> None:
        """Wait for the engine, so that it leaves no zombie, and record its exit code."""
        code = process.wait()
        if self.home.exists():
            set_meta(self.home, "exit_code", code)


def _state(said, alive, age, activity, launched, beat, code) -> str:
    """Return the state that what the run said, its lock, and its launch together mean."""
    waiting = launched is not None and (beat is None or launched > beat) and code is None
    if not alive:
        if waiting and time.time() - launched < START_WITHIN:
            return "starting"
        if said in ("finished", "stopped", "failed"):
            return said
        if said is None and launched is None:
            return "queued"
        return "failed" if said is None and code else "crashed"
    if said is None or waiting or said in OVER:
        return "starting"
    return "stalled" if age is not None and age > STALL_AFTER and not activity else said


class lock:  # noqa: N801  a context manager reads as a verb
    """Hold the lock of a home; the proof of life of an engine, released by the system however it ends."""

    def __init__(self, home: Path | str) -> None:
        self.home = Path(home)

    def __enter__(self) -> lock:
        """Take the lock.

        Raises:
            Busy: another process holds it.
        """
        self._file = (self.home / "lock").open("a+")
        if not self._taken():
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise Busy(
                f"{self.home} is already being trained by another engine (process {holder}); wait for it or stop it."
            )
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _taken(self) -> bool:
        """Try for a second: a page that asks whether the home is locked holds a shared lock for an instant."""
        deadline = time.monotonic() + 1.0
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)


def is_locked(home: Path | str) -> bool:
    """Return whether an engine holds the home."""
    try:
        with (Path(home) / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except FileNotFoundError:
        return False


def runs_folder() -> Path:
    """Return the folder of runs: `$MODALSCAPE_RUNS`, or `runs` beside the code."""
    return Path(os.environ.get("MODALSCAPE_RUNS") or ROOT / "runs")


def runs(folder: Path | str | None = None) -> list[tuple[str, Path]]:
    """Return (id, path) of the runs in a folder, newest first."""
    folder = runs_folder() if folder is None else Path(folder)
    found = [path.parent for path in folder.glob("*/run.db")]
    found.sort(key=lambda path: (path / "config.json").stat().st_mtime if (path / "config.json").exists() else 0.0)
    return [(path.name, path) for path in reversed(found)]
