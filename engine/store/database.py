"""SQLite files that are only read: connections that cannot write, errors that name the file. Free of torch."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modalscape.engine.store.files import brief, regular
from modalscape.engine.store.schema import Unreadable


class _Damaged(Unreadable, sqlite3.OperationalError):
    """What a database says is wrong with it."""


class _Cursor(sqlite3.Cursor):
    """A cursor whose errors name the file that cannot be read."""

    def execute(self, *arguments: Any) -> _Cursor:
        return self._asked(super().execute, *arguments)

    def fetchall(self) -> list[tuple]:
        return self._asked(super().fetchall)

    def fetchone(self) -> tuple | None:
        return self._asked(super().fetchone)

    def _asked(self, ask: Callable, *arguments: Any) -> Any:
        try:
            return ask(*arguments)
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            if isinstance(error, sqlite3.ProgrammingError):  # a fault of the program
                raise
            raise _Damaged(self.connection.path, brief(error)) from None


class _Connection(sqlite3.Connection):
    """A connection to the file at `path`."""

    path: Path

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(*arguments)


def readonly(path: Path) -> sqlite3.Connection:
    """Return a connection that cannot write, each query its own short transaction; its errors are `Unreadable`.

    Raises:
        Unreadable: there is no such file, or something else, such as a pipe on which a reader would wait.
    """
    beside = [path.with_name(f"{path.name}-{end}") for end in ("wal", "shm", "journal")]
    try:
        for each in (path, *filter(os.path.lexists, beside)):
            regular(each)
        uri = f"{path.absolute().as_uri()}?mode=ro"
        # On a read-only disk nobody can be writing, and the index of the write-ahead log could not be made.
        if not os.access(path.parent, os.W_OK) and not beside[0].exists():
            uri += "&immutable=1"
        made = sqlite3.connect(
            uri, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False, factory=_Connection
        )
    except (OSError, ValueError, sqlite3.Error) as error:
        raise Unreadable(path, brief(error)) from None
    made.path = path
    return made


class Source:
    """One file of rows; each thread has a connection of its own, and a file that was replaced is opened anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    def opened(self) -> sqlite3.Connection:
        """Return a connection to the file, for one thread.

        Raises:
            Unreadable: there is no such file, or something else.
        """
        return readonly(self.path)

    def all(self, query: str, *values: Any) -> list[tuple]:
        """Return the rows of a query; none where there is no file.

        Raises:
            Unreadable: the file is damaged.
        """
        db = getattr(self._local, "db", None)
        if db is None:
            if not os.path.lexists(self.path):
                return []
            db = self._local.db = self.opened()
        return db.execute(query, values).fetchall()
