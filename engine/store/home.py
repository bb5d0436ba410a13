"""The folder of a run, its home: its lock, its configuration, which is claimed once, whether it is still there.

Free of torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import platformdirs

from modalscape.engine.config import DEFAULTS
from modalscape.engine.errors import InputError
from modalscape.engine.store.files import brief, give_name, opened, partial_of, regular, replace_text
from modalscape.engine.store.schema import Unreadable
from modalscape.engine.store.writer import create

ROOT = Path(__file__).resolve().parents[2]
_CHECKPOINT = re.compile(r"[0-9]{8,18}\.pt")
LEFTOVERS = ("*.partial", ".new-*", "checkpoints/*.partial", "path/*.partial", "snapshot.pt", "snapshot.wanted")
"""What is there only while it is being written."""


class Busy(InputError):
    """The home is being trained by another engine."""


class lock:
    """Hold a lock of a home, the proof of life of an engine or observer, released by the system however it ends."""

    def __init__(self, home: Path | str, name: str = "lock", held: str = "being trained by another engine") -> None:
        """Hold the file `name`; `held` says what somebody does who holds it already."""
        self.home, self.name, self.held = Path(home), name, held

    def __enter__(self) -> lock:
        """Take the lock.

        Raises:
            Busy: another process holds it.
            InputError: the home is not there or cannot be written.
        """
        try:
            self._file = self._taken()
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.home} cannot be locked ({brief(error)}); give the folder of a run that can be written."
            ) from None
        with suppress(OSError):  # on a full disk the lock holds without the number
            self._file.truncate(0)
            os.write(self._file.fileno(), str(os.getpid()).encode())
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _taken(self) -> TextIO:
        """Try for a second: a page that asks whether the home is locked holds a shared lock for an instant."""
        path, deadline = self.home / self.name, time.monotonic() + 1.0
        while True:
            file = open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666), "a+")  # noqa: SIM115
            try:
                regular(path)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who deletes a run holds the lock of a file that is then gone.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
                file.close()
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    file.close()
                    raise Busy(
                        f"{self.home} is already {self.held} (process {holder}); wait for it or stop it."
                    ) from None
                file.close()
                time.sleep(0.02)
            except BaseException:
                file.close()
                raise


def founded(home: Path, values: Mapping[str, Any]) -> None:
    """Make the home of a new run, its configuration and databases; of several who try at once, one does.

    Raises:
        InputError: the home holds a run or cannot be written.
    """
    claimed = False
    try:
        home.mkdir(parents=True, exist_ok=True)
        _claim(home, {"defaults": DEFAULTS} | dict(values))
        claimed = True
        create(home)
    except (OSError, UnicodeError, sqlite3.Error, InputError) as error:
        if claimed:
            _given_back(home)
        if isinstance(error, InputError):
            raise
        raise InputError(f"The home {home} cannot be written ({brief(error)}); give another --home.") from None


def _claim(home: Path, values: Mapping[str, Any]) -> None:
    """Write the configuration, whole or not at all, unless there is one.

    Raises:
        InputError: there is one.
        OSError: the folder cannot be written.
    """
    path = home / "config.json"
    partial = partial_of(path)
    try:
        partial.write_text(json.dumps(values, indent=1))
        if not give_name(partial, path):
            raise InputError(f"{home} already holds a run; resume it with `resume {home}` or give another --home.")
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def rewritten(home: Path, values: Mapping[str, Any]) -> None:
    """Put another configuration in the place of that of a run, whose lock the caller holds; whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        replace_text(home / "config.json", json.dumps(dict(values), indent=1))
    except OSError as error:
        raise InputError(f"The home {home} cannot be written ({brief(error)}); see its permissions.") from None


def _given_back(home: Path) -> None:
    """Take back what was claimed, and the folder where nothing else is in it."""
    with suppress(OSError):
        (home / "config.json").unlink()
    cleared(home)


def cleared(home: Path) -> None:
    """Remove the folder of a run that was not made after all, if nothing but a lock is in it."""
    with suppress(OSError):
        if set(os.listdir(home)) <= {"lock"}:
            shutil.rmtree(home)


class Gone(InputError):
    """The folder of a run was deleted, moved or replaced while an engine trained in it."""


class Place:
    """The home that an engine has taken, told from whatever else may come to lie at its path."""

    def __init__(self, home: Path | str) -> None:
        self.home = Path(home)
        marks = {self.home / name: _mark(self.home / name) for name in ("lock", "run.db")}
        self._marks = {path: mark for path, mark in marks.items() if mark is not None}

    def check(self) -> None:
        """Make sure that the engine still has the folder at its path.

        Raises:
            Gone: it has not.
        """
        for path, mark in self._marks.items():
            try:
                same = _mark(path) == mark
            except OSError:  # a disk that does not answer has not lost the folder
                continue
            if not same:
                raise Gone(
                    f"The run's folder {self.home} was deleted, moved or replaced while it trained, so training ends; "
                    "where the folder still is, resume goes on from its last checkpoint."
                )


def tidy(home: Path | str) -> None:
    """Remove what a killed engine left half written; the caller holds the lock."""
    for pattern in LEFTOVERS:
        for path in Path(home).glob(pattern):
            with suppress(OSError):  # what cannot be removed is in nobody's way
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def kept_steps(home: Path | str) -> tuple[int, ...]:
    """Return the steps of a run whose state was kept in a checkpoint, in order."""
    try:
        names = os.listdir(Path(home) / "checkpoints")
    except OSError:
        return ()
    return tuple(sorted(int(name[:-3]) for name in names if _CHECKPOINT.fullmatch(name)))


def held_since(home: Path | str, name: str = "lock") -> float | None:
    """Return when a lock of a home was taken, in seconds since 1970, or None while it is free.

    Raises:
        Unreadable: something else lies in the lock's place, or it cannot be opened.
    """
    path = Path(home) / name
    try:
        with opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return os.fstat(file.fileno()).st_mtime
            return None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unreadable(path, brief(error)) from None


def is_locked(home: Path | str) -> bool:
    """Return whether an engine holds the home."""
    return held_since(home) is not None


def runs_folder() -> Path:
    """Return the folder of runs: `$MODALSCAPE_RUNS`, `runs` in a checkout, or where the user's data belong."""
    given = os.environ.get("MODALSCAPE_RUNS")
    if given:
        return Path(given)
    return ROOT / "runs" if (ROOT / "modalscape").is_dir() else platformdirs.user_data_path("modalscape") / "runs"


def runs(folder: Path | str | None = None) -> list[tuple[str, Path]]:
    """Return (id, path) of the runs in a folder, newest first; none where there is no such folder.

    Raises:
        InputError: the folder cannot be read.
    """
    folder = runs_folder() if folder is None else Path(folder)
    try:
        found = [path for path in folder.iterdir() if os.path.lexists(path / "run.db")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"The runs in {folder} cannot be listed ({brief(error)}); give another folder.") from None
    found.sort(key=_made)
    return [(path.name, path) for path in reversed(found)]


def _made(home: Path) -> float:
    try:
        return (home / "config.json").stat().st_mtime
    except OSError:
        return 0.0


def _mark(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others, or None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
