"""The folder that an engine has taken: whether it is still the same one, and what a killed engine left in it.

Free of torch.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from engine.knobs import InputError

LEFTOVERS = ("*.partial", ".new-*", "checkpoints/*.partial", "path/*.partial")
"""What is there only while it is being written."""


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


def _mark(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others, or None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
