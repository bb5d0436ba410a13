"""What the engine of a run measures itself: everything that is due, exactly at its step, between two steps.

Where observers measure beside the training, the engine only keeps the intervals for them.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from modalscape.engine.core.probe import Probe
from modalscape.engine.errors import InputError
from modalscape.engine.maths.progress import listening
from modalscape.engine.registry import named
from modalscape.engine.runtime.schedule import Schedule
from modalscape.engine.runtime.session import Training
from modalscape.engine.store.commands import shortened
from modalscape.engine.store.reader import RunReader
from modalscape.engine.store.words import EventKind
from modalscape.engine.store.writer import RunWriter


class Cancelled(Exception):
    """A measurement is not wanted any more."""


def preferred(probe: str) -> int:
    """Return the steps between two measurements that a probe prefers.

    Raises:
        InputError: there is no such probe.
    """
    return named("modalscape.engine.probes", Probe, probe).every


class Measuring:
    """The probes of a run: which are watched, when they are due, and, in an `inline` run, measuring them."""

    def __init__(
        self,
        training: Training,
        writer: RunWriter,
        *,
        inline: bool,
        breathe: Callable[[str], None] = lambda probe: None,
    ) -> None:
        """Measure for `training` into `writer`; `breathe(probe)` is called on the way and may raise `Cancelled`."""
        self.training, self.writer, self.inline, self.breathe = training, writer, inline, breathe
        self.schedule = Schedule(preferred)
        self.activity = ""
        """What is being measured, in words, or nothing."""
        self.spent = 0.0
        """Seconds spent on measurements."""
        self.fresh = False
        """Whether a measurement has just begun, which readers should see at once."""
        self._said: dict[str, str] = {}
        """Probe to why its last measurement failed."""
        self.schedule.only(training.config.probes)

    def recall(self, reader: RunReader) -> None:
        """Go on with the probes that a recorded run watched, and with what was measured."""
        for event in reader.events(kinds=(EventKind.PROBE, EventKind.PROBE_FAILED)):
            self.schedule.measured(event.detail["name"], event.step)
        probes = reader.meta("probes", None)
        if probes is not None:
            self.schedule.only(probes)

    def due(self, step: int, *, last: bool = False) -> None:
        """Measure what is due after `step` steps; everything watched at the last step."""
        if self.inline:
            for probe in self.schedule.due(step, last=last):
                self._measure(probe, {}, asked=False)

    def now(self, probe: str, settings: dict[str, Any], step: int | None = None) -> None:
        """Measure what a person asked for.

        Raises:
            InputError: no such probe or knob, or a step that lies behind.
        """
        if step is not None and step != self.training.state.step:
            raise InputError(
                f"This run measures between its steps, so step {step} cannot be measured while it trains; measure it "
                "when the run has ended."
            )
        self.training.probe(probe, settings)
        self._measure(probe, settings, asked=True)

    def _measure(self, probe: str, settings: dict[str, Any], *, asked: bool) -> None:
        """Measure here and now, and write records and how it ended."""
        step, started = self.training.state.step, time.perf_counter()
        self.schedule.measured(probe, step)
        ending: tuple[str, dict[str, Any]] | None
        try:
            made = self._records(probe, settings, started)
            ending = "probe", {"seconds": round(time.perf_counter() - started, 4), "records": made}
            self._said.pop(probe, None)
        except Cancelled:
            ending = None
        except InputError as error:
            ending = self._failed(probe, {"error": str(error)}, asked)
        except Exception as error:  # a measurement that breaks is recorded whole and must not end the training
            ending = self._failed(probe, broken(error), asked)
        self.activity = ""
        self.spent += time.perf_counter() - started
        if ending is not None:
            kind, detail = ending
            self.writer.event(step, kind, {"name": probe} | detail)

    def _records(self, probe: str, settings: dict[str, Any], started: float) -> int:
        """Write the records of a measurement; return how many there were."""
        made, step = 0, self.training.state.step

        def heard(what: str, done: int, planned: int) -> None:
            self.activity = f"measuring {probe}: {done:,} of {planned:,} {what}"
            self.breathe(probe)

        self.activity, self.fresh = f"measuring {probe}", True
        self.breathe(probe)
        self.fresh = False
        with listening(heard):
            for record in self.training.probe(probe, settings).measure(self.training.snapshot()):
                made += 1
                seconds = time.perf_counter() - started if record.seconds is None else record.seconds
                self.writer.record(step, replace(record, seconds=seconds))
                self.breathe(probe)
        return made

    def _failed(self, probe: str, detail: dict[str, Any], asked: bool) -> tuple[str, dict[str, Any]] | None:
        """Return how a measurement failed; of what is scheduled, the same reason is told once."""
        if self._said.get(probe) == detail["error"] and not asked:
            return None
        self._said[probe] = detail["error"]
        return "probe failed", detail


def broken(error: Exception) -> dict[str, Any]:
    """Return what is recorded of a measurement that broke: its error in a line, and its traceback."""
    words = f"{type(error).__name__}: {shortened(str(error))}"
    return {"error": words, "traceback": "".join(traceback.format_exception(error))}
