"""Signals that end a program become a stop between two steps."""

from __future__ import annotations

import signal
from typing import Any


class stopped_by_signals:
    """Turn SIGTERM and SIGINT into a stop between two steps."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def __enter__(self) -> None:
        def stop(number, frame):
            self.run.stopping = True

        self.before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
