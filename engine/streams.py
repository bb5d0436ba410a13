"""Output of an engine that outlasts a full disk: what a full disk refuses is dropped, any other error is not.

Free of torch.
"""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a disk without room."""


class _Lossy(io.FileIO):
    """A file that takes everything; a full disk keeps none of it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return len(data)


def guard() -> None:
    """Let output and errors of this process, which may go into a log, survive a full disk."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        try:
            raw = _Lossy(old.fileno(), "wb", closefd=False)
        except (AttributeError, OSError):  # no file stands behind it
            continue
        new = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=old.encoding, errors=old.errors, line_buffering=old.line_buffering
        )
        old.flush()
        setattr(sys, name, new)
