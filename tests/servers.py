"""A real dashboard on a free port of this machine, with a folder of runs of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def started(runs: Path, port: int, log: Path) -> subprocess.Popen:
    """Start the dashboard and wait until it answers."""
    line = ["-m", "streamlit", "run", "app/main.py", "--server.port", str(port), "--server.headless", "true"]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *line],
            cwd=ROOT,
            env=os.environ | {"MODALSCAPE_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2):
                return process
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise AssertionError(f"the dashboard did not start:\n{log.read_text()}") from None
            time.sleep(0.05)


@contextlib.contextmanager
def dashboard(folder: Path) -> Generator[tuple[str, subprocess.Popen], None, None]:
    """Give the address and process of a dashboard over `folder`/runs; it ends with the block."""
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    process = started(runs, port, folder / "dashboard.txt")
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
