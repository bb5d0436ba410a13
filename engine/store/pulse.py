"""`HOME/pulse`: how a run stands while its database cannot be written, told in a file that needs no further space.

The file gets its size when the engine starts and is written over in place, which a full disk allows. It counts only
where it is newer than the heartbeat in `run.db`. Free of torch.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

from modalscape.engine.store.files import misfit, opened, value_of
from modalscape.engine.store.schema import FACTS

SIZE = 4096
"""Bytes of the file: a block of the disk."""
MOST_WORDS = 1000
"""Characters of any text in it."""


class Pulse:
    """The engine's hand on the file."""

    def __init__(self, home: Path | str) -> None:
        """Make the file, so that its space is taken; on a disk that is full already the run is silent here."""
        self._file: int | None = None
        try:
            self._file = os.open(Path(home) / "pulse", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.fstat(self._file).st_size < SIZE:
                os.pwrite(self._file, b" " * SIZE, 0)
                os.fsync(self._file)
        except OSError:
            self.close()

    def tell(self, facts: dict[str, Any]) -> bool:
        """Write facts as they would stand in `run.db`, with the time as `beat`; return whether the file took them."""
        if self._file is None:
            return False
        facts = {key: value[:MOST_WORDS] if isinstance(value, str) else value for key, value in facts.items()}
        text = json.dumps(facts | {"beat": time.time()}).encode()
        line = b"%08x %s" % (zlib.crc32(text), text)
        if len(line) > SIZE:
            return False
        try:
            return os.pwrite(self._file, line.ljust(SIZE), 0) == SIZE
        except OSError:  # nobody can be told here; the engine's own output still says it
            return False

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def newer(home: Path | str, beat: float | None) -> dict[str, Any]:
    """Return the facts that an engine told after the heartbeat `beat` in `run.db`, or none."""
    try:
        with opened(Path(home) / "pulse") as file:
            check, _, text = file.read(SIZE).rstrip().partition(b" ")
        facts = value_of(text) if check == b"%08x" % zlib.crc32(text) else {}
    except (OSError, ValueError):
        return {}
    whole = isinstance(facts, dict) and not misfit(facts, FACTS)
    return facts if whole and facts.get("beat", 0.0) > (beat or 0.0) else {}
