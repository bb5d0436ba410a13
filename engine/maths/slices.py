"""Work cut into slices: what a measurement's pieces cost, and a foreign function that knows no breathing points."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

T = TypeVar("T")
Pause = Callable[[], None]


class Timed(Generic[T]):
    """A measurement that is gone through with `yield from`; afterwards `found` is its result and `seconds` its cost."""

    found: T

    def __init__(self, measurement: Iterator[T | None]):
        """Hold a measurement that yields None at its breathing points and its result at last."""
        self._measurement, self.seconds = measurement, 0.0

    def __iter__(self) -> Iterator[None]:
        """Yield None after every slice, whose time alone is counted."""
        found = None
        while found is None:
            started = time.perf_counter()
            found = next(self._measurement)
            self.seconds += time.perf_counter() - started
            yield
        self.found = found


def timed(work: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Yield what `work` yields with the seconds it has taken so far, without those in which training went on."""
    seconds, over = 0.0, object()
    while True:
        started = time.perf_counter()
        found = next(work, over)
        seconds += time.perf_counter() - started
        if found is over:
            return
        yield found, seconds


def in_slices(
    work: Callable[[Pause], T], around: Callable[[], AbstractContextManager] = nullcontext
) -> Generator[T | None]:
    """Yield None whenever `work(pause)` calls `pause()`, and at last its result.

    `work` runs in a thread of its own, but never at the same time as the caller: it waits inside `pause()` until the
    next slice is asked for, so nothing that the two share can change under either. `around()` is entered for each
    slice. An error of `work` is raised here; a generator that is closed early ends `work` at its pause.
    """
    go, back = threading.Semaphore(0), threading.Semaphore(0)
    found: list[T] = []
    errors: list[BaseException] = []
    over = False

    def pause() -> None:
        back.release()
        go.acquire()
        if over:
            raise _GivenUp

    def run() -> None:
        go.acquire()
        try:
            if not over:
                found.append(work(pause))
        except BaseException as error:  # carried over to the caller's thread, which raises it
            errors.append(error)
        back.release()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            with around():
                go.release()
                back.acquire()
            if errors:
                raise errors[0]
            if found:
                break
            yield
        yield found[0]
    finally:
        over = True
        go.release()
        thread.join()


class _GivenUp(BaseException):
    """The rest of the work is not wanted."""
