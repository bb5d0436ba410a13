"""The warm process, `python -m engine warm`: it has loaded what a first step needs, and forks when it is asked to.

`engine/client/launch.py` starts it, with one end of a pair of sockets as its input; it ends when the other is closed.
A request is a JSON object (`arguments`, `environment`, `folder`) with two file descriptors: the log, and a socket that
gets the number of the fork, a descriptor of its process and, when it ends, its exit code. A fork leaves the loop and
goes on as a fresh `python -m engine ARGUMENTS…` would; nobody but its owner's socket ties it to the warm process.

What must not be forked is never made: no thread (but the memory allocator's, which is made for that), no CUDA, no
random draw. Otherwise the process ends, and engines start without it.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST = 2**20
"""Bytes of a request."""
HARMLESS = {"jemalloc_bg_thd"}
"""Names of threads that are made anew after a fork by what made them."""


def owner() -> socket.socket | None:
    """Return the socket that this process was given as its input; None where it was given something else."""
    try:
        found = socket.socket(fileno=os.dup(0))
    except OSError:
        return None
    if found.family == socket.AF_UNIX and found.type == socket.SOCK_SEQPACKET:
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)
        return found
    found.close()
    return None


def serve(control: socket.socket) -> bool:
    """Load everything and fork on request until the owner is gone.

    Returns True in a fork, which then has the arguments, streams and environment of a process of its own, else False.
    """
    loaded()
    if not fit():
        return False
    return _Server(control).forks()


def loaded() -> None:
    """Import what an engine imports on its way to the first step, by going there with each problem on the CPU."""
    import torch

    from modalscape.engine.client import summary  # noqa: F401
    from modalscape.engine.config import RunConfig
    from modalscape.engine.data.dataset import Source
    from modalscape.engine.registry import discover
    from modalscape.engine.runtime.session import Training

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())  # imports a compiler
    drawn = torch.get_rng_state()
    for name in discover("modalscape.engine.problems", Source):
        with suppress(Exception):  # whoever trains on it is told
            Training(RunConfig(name, steps=1, device="cpu"))
    torch.set_rng_state(drawn)


def fit() -> bool:
    """Return whether a fork of this process can do all that a fresh one can."""
    import torch

    own = str(os.getpid())
    threads = [Path(f"/proc/self/task/{task}/comm") for task in os.listdir("/proc/self/task") if task != own]
    alone = {path.read_text().strip() for path in threads} <= HARMLESS
    return alone and not torch.cuda.is_initialized() and not any(map(_of_a_gpu, os.listdir("/proc/self/fd")))


def _of_a_gpu(place: str) -> bool:
    """Return whether a file descriptor is a GPU's: its driver is then in use, whatever torch says."""
    try:
        return os.readlink(f"/proc/self/fd/{place}").startswith("/dev/nvidia")
    except OSError:  # it was the one that listed the others
        return False


class _Server:
    """Forks, and tells how the forks end."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.wanted = True
        """Whether the owner may still ask for a fork."""
        self.children: dict[int, int] = {}
        """Descriptor of a process to its number."""
        self.told: dict[int, socket.socket] = {}
        """The same to who wants to know its exit code."""
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)

    def forks(self) -> bool:
        """Serve until the owner is gone; return whether this is a fork.

        An owner that wants no more forks closes its socket, and may still wait for exit codes.
        """
        gc.collect()
        gc.freeze()
        with suppress(OSError):
            self.control.send(b"ready")
        while self.wanted or self.told:
            for place, _ in self.poll.poll():
                if place in self.children:
                    self._ended(place)
                elif place != self.control.fileno():
                    self._forgotten(place)
                elif self._asked():
                    return True
        return False

    def _asked(self) -> bool:
        """Take a request; return whether this is the fork."""
        try:
            text, given, _, _ = socket.recv_fds(self.control, MOST, 2)
        except OSError:
            text, given = b"", []
        if not text:
            self.wanted = False
            self.poll.unregister(self.control)
            return False
        return self._answered(text, given)

    def _answered(self, text: bytes, given: list[int]) -> bool:
        """Fork, if the request makes sense; return whether this is the fork. One that is refused is let go of."""
        child = False
        try:
            request, (log, answers) = _understood(text), given
            child = fit() and self._forked(request, log, answers)
        except (ValueError, OSError):
            child = False
        finally:
            for place in given:
                os.close(place)
        return child

    def _forked(self, request: dict[str, Any], log: int, answers: int) -> bool:
        pid = os.fork()
        if not pid:
            try:
                self._born(request, log)
            except BaseException:
                os._exit(1)  # never back into the loop: that is the warm process's
            return True
        handle, told = os.pidfd_open(pid), socket.socket(fileno=os.dup(answers))
        self.children[handle], self.told[handle] = pid, told
        self.poll.register(handle, select.POLLIN)
        self.poll.register(told, select.POLLIN)
        with suppress(OSError):  # nobody wants to know any more
            socket.send_fds(told, [str(pid).encode()], [handle])
        return False

    def _born(self, request: dict[str, Any], log: int) -> None:
        """Become what a fresh process would be."""
        import numpy as np

        os.setsid()
        self.control.close()
        for handle in self.children:
            os.close(handle)
        for told in self.told.values():
            told.close()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv[1:] = request["arguments"]
        np.random.seed()  # from the system, as in a fresh process; `random` does so by itself

    def _ended(self, handle: int) -> None:
        """Tell how a fork ended."""
        self.poll.unregister(handle)
        code = os.waitstatus_to_exitcode(os.waitpid(self.children.pop(handle), 0)[1])
        os.close(handle)
        told = self.told.get(handle)
        if told is not None:
            with suppress(OSError):
                told.send(str(code).encode())
            self._forgotten(told.fileno())

    def _forgotten(self, place: int) -> None:
        """Let go of who wanted to know an exit code."""
        handle = next((handle for handle, told in self.told.items() if told.fileno() == place), None)
        if handle is not None:
            self.poll.unregister(place)
            self.told.pop(handle).close()


def _understood(text: bytes) -> dict[str, Any]:
    """Return a request.

    Raises:
        ValueError: it is none.
    """
    request = json.loads(text)
    try:
        texts = [*request["arguments"], *request["environment"].items(), request["folder"]]
        flat = [word for entry in texts for word in ([entry] if isinstance(entry, str) else entry)]
        if not all(isinstance(word, str) and "\0" not in word for word in flat):
            raise ValueError("not texts")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(str(error)) from None
    return request
