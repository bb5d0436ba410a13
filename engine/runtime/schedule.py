"""Which probes are watched, every how many steps, and what of that is due. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modalscape.engine.errors import InputError


class Schedule:
    """Probe to interval, and to the step at which it was measured last: it is due at every multiple of its interval."""

    def __init__(self, known: Callable[[str], int]) -> None:
        """Watch nothing yet; `known` returns the interval that a probe prefers, or raises an `InputError`."""
        self.intervals: dict[str, int] = {}
        self._known = known
        self._done: dict[str, int] = {}

    def only(self, probes: Mapping[str, int]) -> None:
        """Watch these probes and no others."""
        for name in [name for name in self.intervals if name not in probes]:
            del self.intervals[name]
        for name, every in probes.items():
            if self.intervals.get(name) != every or not every:
                self.watch(name, True, every)

    def watch(self, probe: str, on: bool, every: int = 0) -> None:
        """Measure every `every` steps (0: the probe's own choice), or no longer.

        Raises:
            InputError: no such probe, or a negative interval.
        """
        preferred = self._known(probe)
        if every < 0:
            raise InputError(f"The interval of probe {probe} must be 1 step or more, or 0 for its own, not {every}.")
        self.intervals.pop(probe, None)
        if on:
            self.intervals[probe] = every or preferred

    def measured(self, probe: str, step: int) -> None:
        """Take note that a probe was measured, or given up, at a step."""
        self._done[probe] = max(step, self._done.get(probe, -1))

    def due(self, step: int, *, last: bool = False) -> list[str]:
        """Return the probes to be measured exactly at `step`, unless they were; at the `last` step all."""
        return [
            probe
            for probe, every in self.intervals.items()
            if self.done(probe) < step and (last or (step > 0 and step % every == 0))
        ]

    def passed(self, probe: str, step: int) -> bool:
        """Return whether a step at which a probe is due has come between its last measurement and `step`."""
        done, every = self.done(probe), self.intervals[probe]
        return done < 0 or step // every > done // every

    @property
    def steps(self) -> dict[str, int]:
        """The step at which each probe was measured last."""
        return dict(self._done)

    def done(self, probe: str) -> int:
        """Return the step at which a probe was measured last; -1 before the first time."""
        return self._done.get(probe, -1)
