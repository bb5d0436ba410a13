"""Output of an engine that outlasts a full disk, and errors a reader who has gone; no other failure is hidden.

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
    """A file that takes everything; what is refused for one of the reasons `dropped` is kept nowhere."""

    dropped: tuple[int, ...] = FULL

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self.dropped:
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
        if name == "stderr":  # words beside the result, which must not end what yields it
            raw.dropped += (errno.EPIPE,)
        new = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=old.encoding, errors=old.errors, line_buffering=old.line_buffering
        )
        old.flush()
        setattr(sys, name, new)
