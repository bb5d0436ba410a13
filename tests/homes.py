"""Runs for tests: small ones in this process, and real engines as processes of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from modalscape.engine.catalog import catalog
from modalscape.engine.cli import entry
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.runtime.loop import Run
from modalscape.engine.runtime.session import Training, deterministic
from modalscape.engine.store.commands import post
from modalscape.engine.store.home import founded, lock
from modalscape.engine.store.writer import RunReader

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"planted.rows": 600, "batch": 32, "width": 8, "hidden": 8, "checkpoint": 20}


def small(**changes) -> RunConfig:
    """Return the configuration of a run that takes well under a second."""
    values = {"problem": "planted", "steps": 60, "device": "cpu", "settings": SMALL} | changes
    if "settings" in changes:
        values["settings"] = SMALL | changes["settings"]
    return validated(RunConfig(**values), catalog())


def trained(home: Path, config: RunConfig, commands: dict[int, list] | None = None, **options) -> Run:
    """Train in this process; `commands` maps a step to what is posted when that many steps are done.

    It may also be a function that does something else at that moment, and may return commands.
    """
    deterministic()
    founded(home, config.to_json())
    run = Run(Training(config), home, **options)
    run.mailbox.due = lambda: True
    waiting = dict(commands or {})

    def send(step: int) -> None:
        found = waiting.pop(step, ())
        for command in (found() or ()) if callable(found) else found:
            post(home, command)

    with lock(home):
        send(0)
        run.begin()
        run.go(send)
    return run


def engine(*arguments: str, **options) -> subprocess.Popen:
    """Start `python -m engine …` from the root."""
    return subprocess.Popen(
        [sys.executable, "-m", "engine", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def said(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run the command line to its end in this process; return what it wrote, and insist on the exit code."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        got = entry([str(a) for a in arguments])
    assert got == code, f"exit {got}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue(), err.getvalue()


def json_of(*arguments: str, code: int = 0) -> dict:
    """Return the JSON object on the last line of the command's output."""
    return json.loads(said(*arguments, "--json", code=code)[0].splitlines()[-1])


def wait_for(condition: Callable[[], object], seconds: float = 60, what: str = "it") -> object:
    """Return the first true value of `condition`, or fail when the deadline passes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


def reader_of(home: Path) -> RunReader | None:
    """Return a reader once the databases are there."""
    return RunReader(home) if (home / "run.db").exists() else None
