"""The dashboard's only way to an engine: start it, attach to it, send it commands, ask how it stands. Free of torch."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from engine import control, pulse
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
LOAD_WITHIN = 120.0
"""Seconds an engine that holds its lock may take to give the first sign, reading its data meanwhile, or for one breath
of a measurement."""

OVER = ("finished", "stopped", "failed", "crashed")
"""States in which no engine is at work."""
ENDED = ("finished", "stopped", "failed")
"""States that an engine leaves behind when it ends of its own will."""


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
                return "starting" if now - max(self.held, beat) < LOAD_WITHIN else "stalled"
            quiet = now - beat > (LOAD_WITHIN if self.activity else STALL_AFTER)
            return "stalled" if quiet and self.said not in ENDED else self.said
        if silent and self.code is None and now - self.launched < START_WITHIN:
            return "starting"
        if silent and self.code:
            return "failed" if self.code > 0 else "crashed"
        if self.said is None:
            return "crashed" if self.begun or self.launched is not None else "queued"
        return self.said if self.said in ENDED else "crashed"


class RunHandle:
    """One run, from outside."""

    program: ClassVar[tuple[str, ...]] = (sys.executable, "-m", "engine")
    """What is started, before the words `run HOME` or `resume HOME`."""

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
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"The home {self.home} cannot be written ({reason}); give another.") from None
        set_meta(self.home, "queued", time.time())

    def launch(self, command: str = "run", *arguments: str) -> None:
        """Start `python -m engine COMMAND HOME` in a session of its own, and record its exit code when it ends."""
        launched = time.time()
        set_meta(self.home, "exit_code", None)
        set_meta(self.home, "launched", launched)
        line = [*self.program, command, str(self.home.absolute()), "--attended", *arguments]
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
        threading.Thread(target=self._reap, args=(process, launched), daemon=True).start()

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
        """Return the commands that were sent and neither applied nor refused yet, with their numbers, in order."""
        reader = self.reader()
        answered = [reader.newest("applied"), reader.newest("refused")]
        with self._mailbox() as mailbox:
            return mailbox.unread(max((event.detail.get("id", 0) for event in answered if event), default=0))

    def reader(self) -> RunReader:
        """Return a reader of what the run recorded."""
        return RunReader(self.home)

    def status(self) -> Status:
        """Return how the run stands: what it last said, checked against its lock, heartbeat and exit code."""
        reader = self.reader()
        signs, facts = self._signs(reader)
        state = signs.state(time.time())
        if state == "crashed":  # perhaps an engine took the lock between two looks; a second look tells
            signs, facts = self._signs(reader)
            state = signs.state(time.time())
        alive = signs.held is not None
        age = None if signs.beat is None else max(time.time() - signs.beat, 0.0)
        step, steps = facts.get("step", 0), facts.get("steps") or self._planned()
        seconds = facts.get("seconds", 0.0)
        rate = step / seconds if seconds > 0.5 and step else None
        eta = (steps - step) / rate if rate and state == "running" else None
        error = self._error(reader, state, step, age, signs.code) or facts.get("waiting") or None
        return Status(state, step, steps, rate, eta, age, signs.activity if alive else "", error, alive, signs.code)

    def _signs(self, reader: RunReader) -> tuple[Signs, dict[str, Any]]:
        with self._mailbox() as mailbox:
            launched, code = mailbox.meta("launched"), mailbox.meta("exit_code")
        # The lock before the words: an engine writes its last word while it still holds the lock.
        held = held_since(self.home)
        begun = (self.home / "lock").exists()
        facts = reader.facts("state", "beat", "activity", "step", "steps", "seconds", "waiting")
        facts |= pulse.newer(self.home, facts.get("beat"))
        activity = facts.get("activity", "")
        return Signs(facts.get("state"), facts.get("beat"), held, begun, launched, code, activity), facts

    def _mailbox(self) -> closing[Mailbox]:
        return closing(Mailbox(self.home))

    def _planned(self) -> int:
        try:
            return int(json.loads((self.home / "config.json").read_text()).get("steps", 0))
        except (OSError, ValueError):
            return 0

    def _error(self, reader: RunReader, state: str, step: int, age: float | None, code: int | None) -> str | None:
        """Return what went wrong and what to do about it, or None."""
        if state == "stalled":
            return f"The engine has given no sign for {age or 0.0:.0f} s; wait, or end its process and resume."
        if state == "crashed":
            how = "" if code is None else f" (killed by signal {-code})" if code < 0 else f" (exit code {code})"
            return f"The engine ended without a word{how}; what it recorded is safe. Resume goes on from a checkpoint."
        if state == "failed":
            last = reader.newest("failed", "started", "resumed")
            if last is not None and last.kind == "failed":
                return last.detail.get("error")
            return self._last_words() or f"The engine ended with exit code {code}; see {self.home / 'log.txt'}."
        if state in ("paused", "stopped"):
            last = reader.newest("diverged")
            return last.detail.get("error") if last is not None and last.step == step else None
        return None

    def _last_words(self) -> str:
        """Return the last line of the log."""
        try:
            with (self.home / "log.txt").open("rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - 4096, 0))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _reap(self, process: subprocess.Popen, launched: float) -> None:
        """Wait for the engine, so that it leaves no zombie, and record its exit code unless a newer one was started."""
        code = process.wait()
        if not (self.home / "control.db").exists():
            return
        with self._mailbox() as mailbox:
            newer = mailbox.meta("launched") != launched
        if not newer:
            set_meta(self.home, "exit_code", code)


class lock:
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


def held_since(home: Path | str) -> float | None:
    """Return when the lock of a home was taken, in seconds since 1970, or None while it is free."""
    try:
        with (Path(home) / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return os.fstat(file.fileno()).st_mtime
            return None
    except FileNotFoundError:
        return None


def is_locked(home: Path | str) -> bool:
    """Return whether an engine holds the home."""
    return held_since(home) is not None


def runs_folder() -> Path:
    """Return the folder of runs: `$MODALSCAPE_RUNS`, or `runs` beside the code."""
    return Path(os.environ.get("MODALSCAPE_RUNS") or ROOT / "runs")


def runs(folder: Path | str | None = None) -> list[tuple[str, Path]]:
    """Return (id, path) of the runs in a folder, newest first."""
    folder = runs_folder() if folder is None else Path(folder)
    found = [path.parent for path in folder.glob("*/run.db")]
    found.sort(key=lambda path: (path / "config.json").stat().st_mtime if (path / "config.json").exists() else 0.0)
    return [(path.name, path) for path in reversed(found)]
