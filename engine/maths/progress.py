"""How far work has come, told to whoever listens: so much done of so much planned. Work need not know who that is.

    with listening(lambda what, done, planned: print(f"{done} of {planned} {what}")):
        spectrum(loss, theta)

A listener may raise: that is how a measurement is cancelled. What it raises passes through the work unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int], None]
"""Called with a plural noun, such as "products", the number done and the number planned."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(call: Listener) -> Generator[None]:
    """Call `call(what, done, planned)` whenever work within says how far it has come.

    `done` never exceeds `planned`, which may change as work learns how much there is. Of listeners within each other
    the innermost is called. Around a generator, enter it where the generator is consumed.
    """
    token = _listener.set(call)
    try:
        yield
    finally:
        _listener.reset(token)


def report(what: str, done: int, planned: int) -> None:
    """Tell the listener, if there is one, that `done` of `planned` are done, or of `done` where that is more."""
    call = _listener.get()
    if call is not None:
        call(what, done, max(done, planned))


def tracked(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and report before the first and after each; `total` is their number where they have no length.

    Raises:
        TypeError: no total is given, and the items have no length.

    >>> with listening(lambda *found: print(*found)):
    ...     kept = list(tracked("ab", "letters"))
    letters 0 2
    letters 1 2
    letters 2 2
    """
    if total is None:
        if not isinstance(items, Collection):
            raise TypeError(f"{type(items).__name__} has no length; say how many {what} there are.")
        total = len(items)
    report(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        report(what, done, total)


class Tally:
    """A count that several pieces of work add to, reported whenever it changes.

    >>> with listening(lambda *found: print(*found)):
    ...     tally = Tally("products", 3)
    ...     tally.add()
    ...     tally.plan(-1)
    products 0 3
    products 1 3
    products 1 2
    """

    def __init__(self, what: str, planned: int):
        """Begin at 0 of `planned`."""
        self.what, self.done, self.planned = what, 0, planned
        self.add(0)

    def add(self, count: int = 1) -> None:
        """Report `count` more as done; 0 says that work goes on."""
        self.done += count
        report(self.what, self.done, self.planned)

    def plan(self, count: int) -> None:
        """Plan `count` more, or fewer where it is negative."""
        self.planned += count
        self.add(0)

    def finish(self) -> None:
        """Plan no more than is done."""
        self.plan(self.done - self.planned)
