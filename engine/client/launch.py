"""Starts `python -m engine …` in a session of its own, to outlive this process: forked from a warm process, or anew.

Importing torch takes seconds. A warm process (`engine/runtime/warm.py`) has done so before anyone asks. It belongs to
the process that called `keep_warm`, and they are joined by a pair of sockets that nobody else can open: when one of
them is gone, however it ended, the other sees the end of the file. Where no warm process is ready, or what it has
loaded is not what a new one would load, an engine is started as if there were none. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "modalscape.engine")
"""What is started, before its arguments."""
ANSWER_WITHIN = 5.0
"""Seconds that a warm process has to fork; one that takes longer is ended."""
OWN = "MODALSCAPE_"
"""How the environment variables begin that are read when they are needed: a warm process need not agree on these."""


class Launched(Protocol):
    """An engine that was started; whoever starts it waits for it in a thread, so that it leaves no zombie."""

    pid: int

    def wait(self) -> int | None:
        """Wait for its end; return its exit code, -N after signal N, or None where nobody is left who knows it."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal, such as `signal.SIGTERM`; one that has ended gets none."""


def launched(
    arguments: Sequence[str],
    log: int,
    *,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = PROGRAM,
) -> Launched:
    """Start `program` with `arguments` at the root of the code, its output and errors into the file descriptor `log`.

    It has a session of its own, no input, and `environment` (default: this process's) with one OpenMP thread where
    that says nothing else.

    Raises:
        OSError: no process can be started.
    """
    variables = {"OMP_NUM_THREADS": "1", **(os.environ if environment is None else environment)}
    if tuple(program) == PROGRAM:
        found = _KEPT.forked(list(arguments), log, variables)
        if found is not None:
            return found
    return subprocess.Popen(
        [*program, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env=variables,
    )


def keep_warm() -> None:
    """Start a warm process in the background unless there is one, and from now on another whenever it is of no use."""
    _KEPT.begin()


def let_go() -> None:
    """End the warm process; what was forked from it goes on."""
    _KEPT.end()


def stamp(package: Path) -> str:
    """Return a text that changes whenever a file of the engine does."""
    digest = hashlib.sha256(sys.executable.encode())
    for path in sorted(package.rglob("*.py")):
        about = path.stat()
        digest.update(f"{path.relative_to(package)} {about.st_mtime_ns} {about.st_size}\n".encode())
    return digest.hexdigest()[:24]


class Forked:
    """A process that a warm one has forked, which tells its exit code."""

    def __init__(self, pid: int, handle: int, answers: socket.socket) -> None:
        """`handle` is a file descriptor of the process, `answers` brings its exit code."""
        self.pid, self._handle, self._answers = pid, handle, answers

    def wait(self) -> int | None:
        """Wait for its end; return its exit code, -N after signal N, or None where the warm process ended before it."""
        text = _received(self._answers)
        if not text:
            _readable(self._handle, None)
        return int(text) if text else None

    def send_signal(self, number: int, /) -> None:
        """Send a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def __del__(self) -> None:
        os.close(self._handle)
        self._answers.close()


class _Warm:
    """A warm process, from its owner's side."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            OSError: no process can be started.
        """
        self.mark, self.variables = mark(), _fixed({"OMP_NUM_THREADS": "1", **os.environ})
        self.ready = False
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(ANSWER_WITHIN)
        with theirs:
            self.process = subprocess.Popen(
                [*PROGRAM, "warm"],
                cwd=ROOT,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        threading.Thread(target=self.process.wait, daemon=True, name="warm").start()

    def alive(self) -> bool:
        """Return whether it has not ended; `ready` then says whether it can fork."""
        if not _readable(self.socket.fileno(), 0):
            return True
        said = bool(_received(self.socket))
        self.ready = self.ready or said
        return said

    def forked(self, arguments: list[str], log: int, variables: Mapping[str, str]) -> Forked | None:
        """Return a fork that runs the engine, or None where there will be none."""
        if not self.ready or _fixed(variables) != self.variables:
            return None
        request = json.dumps({"arguments": arguments, "environment": dict(variables), "folder": str(ROOT)})
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(self.socket, [request.encode()], [log, theirs.fileno()])
            ours.settimeout(ANSWER_WITHIN)
            text, handles, _, _ = socket.recv_fds(ours, 64, 1)
            ours.settimeout(None)
        except OSError as error:  # it is gone, the request is too long for it, or it does not answer
            if isinstance(error, TimeoutError):
                self.process.kill()
            ours.close()
            return None
        if not text:
            ours.close()
            return None
        return Forked(int(text), handles[0], ours)


class _Kept:
    """The warm process of this one, if it wants one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wanted = False
        self.warm: _Warm | None = None
        self.useless = ""
        """Mark of the code that could not be loaded."""

    def begin(self) -> None:
        """Want one."""
        if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
            return
        with self.lock:
            self.wanted = True
            self._current()

    def end(self) -> None:
        """Want none."""
        with self.lock:
            self.wanted = False
            self._drop()

    def forked(self, arguments: list[str], log: int, variables: Mapping[str, str]) -> Forked | None:
        """Return a fork of the warm process, or None where there is no such process or it is of no use."""
        with self.lock:
            warm = self._current() if self.wanted else None
            return warm.forked(arguments, log, variables) if warm is not None else None

    def _current(self) -> _Warm | None:
        """Return the warm process of the code as it is; start one where there is none."""
        if self.warm is not None:
            alive, same = self.warm.alive(), self.warm.mark == mark()
            if alive and same:
                return self.warm
            self.useless = self.warm.mark if same and not self.warm.ready else ""
            self._drop()
        if self.useless != mark():
            with suppress(OSError):
                self.warm = _Warm()
        return self.warm

    def _drop(self) -> None:
        if self.warm is not None:
            self.warm.socket.close()
            self.warm = None


def mark() -> str:
    """Return a text that changes with the code of the engine and with what is installed."""
    try:
        return f"{stamp(ROOT / 'engine')} {os.stat(sysconfig.get_path('purelib')).st_mtime_ns}"
    except OSError:  # a file was deleted between two looks
        return "changing"


def _fixed(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those variables that something may read while it is loaded."""
    return {name: value for name, value in variables.items() if not name.startswith(OWN)}


def _readable(place: int, milliseconds: int | None) -> bool:
    """Wait until a file descriptor can be read, or a process has ended; return whether so."""
    poll = select.poll()
    poll.register(place, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _received(source: socket.socket) -> bytes:
    """Wait for a message; return it, or nothing where the other end is closed."""
    try:
        return source.recv(64)
    except OSError:
        return b""


_KEPT = _Kept()
