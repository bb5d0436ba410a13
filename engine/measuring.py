"""When to measure: intervals, the budget, and measurements under way, one slice between two training steps.

What a person asks for goes on between any two steps. What is scheduled goes on only while all measurements together
keep to the budget, so at no time have they taken more than that share of the wall time and one breath; a dear
measurement under a small budget is spread over many steps. What is due at the last step is measured after it, when it
no longer holds anything back.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.knobs import InputError
from engine.probe import Budget, Probe, Record
from engine.reader import RunReader
from engine.registry import named
from engine.store import RunWriter
from engine.training import Training

SLICE = 0.025
"""Seconds of measuring between two training steps, as far as a measurement's breathing points allow."""
NAMED = 3
"""Measurements under way that are listed by name; more are counted."""
HEAD_START = 3.0
"""Seconds by which a probe that has shown nothing yet goes before the others: its first picture is worth more than
their next."""


@dataclass
class Job:
    """One measurement under way."""

    probe: str
    step: int
    records: Iterator[Record | None]
    asked: bool
    """Whether a person asked for it, so that the budget does not hold it back."""
    seconds: float = 0.0
    made: int = 0


class Measuring:
    """The probes of a run: which are watched, when they are due, and what they cost."""

    def __init__(self, training: Training, writer: RunWriter) -> None:
        self.training, self.writer = training, writer
        self.budget = Budget(training.own.budget)
        self.jobs: deque[Job] = deque()
        self.intervals: dict[str, int] = {}
        self._next: dict[str, int] = {}
        self._said: dict[str, str] = {}
        """Probe to why its last measurement failed."""
        self.costs: dict[str, float] = {}
        """Seconds that the last measurement of each probe took."""
        self._done: set[tuple[str, int]] = set()
        """Probe and step of the measurements that the run recorded before this engine."""
        self.served: dict[str, float] = {}
        """Seconds that each probe has had beside the oldest, or, where it joined later, would have had."""
        self.watched(training.config.probes)

    @property
    def busy(self) -> bool:
        """Whether a measurement is under way."""
        return bool(self.jobs)

    @property
    def activity(self) -> str:
        """What is being measured, in words, or nothing."""
        probes = dict.fromkeys(job.probe for job in self.jobs)
        names = ", ".join(probes) if len(probes) <= NAMED else f"{len(probes)} probes"
        slowly = names and not self._idle and not any(job.asked for job in self.jobs) and self.budget.share < 1.0
        return names and f"measuring {names}" + (f" in {self.budget.share:.0%} of the time" if slowly else "")

    def told(self) -> dict[str, Any]:
        """Return what a heartbeat says of measurements, from which a page estimates when the next ones are done."""
        jobs = [
            {"probe": job.probe, "step": job.step, "asked": job.asked, "seconds": round(job.seconds, 2)}
            | {"rank": round(self._rank(job), 3)}
            for job in self.jobs
        ]
        facts = {"jobs": jobs, "costs": self.costs, "next": self._next, "share": self.budget.share, "slice": SLICE}
        facts |= {"spent": round(self.budget.spent, 2), "trained": round(self._trained, 2), "steps": self._turns}
        facts |= {"step": self.training.state.step, "every": self.intervals}
        facts["served"] = {probe: round(seconds, 3) for probe, seconds in self.served.items()}
        facts["head_start"] = HEAD_START
        return {"activity": self.activity, "measuring": facts}

    def recall(self, reader: RunReader) -> None:
        """Go on with the probes that a recorded run watched, and with what their measurements took."""
        events = reader.events(kinds=("probe", "probe failed"))
        self.costs = {event.detail["name"]: event.detail["seconds"] for event in events if event.kind == "probe"}
        self._done = {(event.detail["name"], event.step) for event in events}
        probes = reader.meta("probes", None)
        if probes is not None:
            self.watched(probes)

    def watched(self, probes: Mapping[str, int]) -> None:
        """Watch these probes and no others."""
        self.intervals, self._next = {}, {}
        for name, every in probes.items():
            self.watch(name, True, every)

    def watch(self, probe: str, on: bool, every: int = 0) -> None:
        """Measure every `every` steps (0: the probe's own choice), or no longer.

        Raises:
            InputError: no such probe, or a negative interval.
        """
        kind = named("engine.probes", Probe, probe)
        if every < 0:
            raise InputError(f"The interval of probe {probe} must be 1 step or more, or 0 for its own, not {every}.")
        self._next.pop(probe, None)
        self.intervals.pop(probe, None)
        if on:
            self.intervals[probe] = every or kind.every
            step, every = self.training.state.step, self.intervals[probe]
            self._next[probe] = -(-max(step, 1) // every) * every

    def due(self, step: int, *, last: bool = False) -> None:
        """Start what is due after `step` steps, unless it is still under way; everything watched at the last step.

        It does not wait until the budget allows a piece: with a dear measurement under way that never is, since what is
        earned is spent at once, and a cheap one could not start beside it.
        """
        for probe, at in self._next.items():
            if (probe, step) in self._done:  # by an engine that ended after this step, which is only repeated
                self._next[probe] = (step // self.intervals[probe] + 1) * self.intervals[probe]
            elif step >= at or last:
                waiting = [job for job in self.jobs if job.probe == probe]
                if waiting and not last:
                    continue
                if last:
                    self.cancel(probe)
                if last or self.budget.share > 0.0:
                    self._start(probe, {}, asked=last)
                    self._next[probe] = (step // self.intervals[probe] + 1) * self.intervals[probe]

    def now(self, probe: str, settings: dict[str, Any]) -> None:
        """Start a measurement that a person asked for; it goes before the others, and a scheduled one is given up.

        Raises:
            InputError: no such probe or knob.
        """
        self._start(probe, settings, asked=True)
        self.jobs.rotate(1)
        self.jobs = deque(job for job in self.jobs if job.asked or job.probe != probe)

    def cancel(self, probe: str) -> None:
        """Give up the measurements of a probe that are under way."""
        self.jobs = deque(job for job in self.jobs if job.probe != probe)

    def turn(self, trained: float, *, idle: bool = False) -> None:
        """Go on for about a slice with the measurements under way; `trained` is the seconds of training so far."""
        if self._before is None:
            self._before = trained
        self._trained = trained - self._before
        self._turns += not idle
        self._idle = idle
        until = time.perf_counter() + SLICE
        while time.perf_counter() < until:
            job = self._next_job(idle)
            if job is None:
                return
            self._go_on(job, idle=idle)

    def _next_job(self, idle: bool) -> Job | None:
        """Return the measurement whose turn it is: what was asked for, the oldest, or the least served of the others.

        The last two have half of the time each, so a cheap measurement does not wait for a dear one, in however many
        pieces it comes, and of many dear ones the oldest gets on. Of the others the probe comes that has had least over
        the run: one that is soon due again does not keep a dear one waiting. A probe's first picture has a start.
        """
        asked = next((job for job in self.jobs if job.asked), None)
        if asked is not None or not self.jobs:
            return asked
        if not idle and not self._allowed():
            return None
        oldest, *others = self.jobs
        return min(others, key=self._rank) if others and self._lead > 0.0 else oldest

    def _rank(self, job: Job) -> float:
        return self.served[job.probe] + HEAD_START * (job.made > 0 or job.probe in self.costs)

    def _go_on(self, job: Job, *, idle: bool) -> None:
        """Take a measurement to its next record or breathing point."""
        started = time.perf_counter()
        self._advance(job, started)
        seconds = time.perf_counter() - started
        job.seconds += seconds
        if len(self.jobs) > 1 and not job.asked:
            oldest = job is self.jobs[0]
            self._lead += seconds if oldest else -seconds
            self.served[job.probe] += 0.0 if oldest else seconds
        self.budget.spend(0.0 if idle else seconds)

    def _advance(self, job: Job, started: float) -> None:
        """Compute and write a measurement's next record, or end it."""
        try:
            record = next(job.records)
        except StopIteration:
            self._finish(job)
        except InputError as error:
            self._fail(job, {"error": str(error)})
        except Exception as error:  # a measurement that breaks is recorded whole and must not end the training
            self._fail(job, {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        else:
            if record is not None:
                job.made += 1
                if record.seconds is None:
                    record = replace(record, seconds=job.seconds + time.perf_counter() - started)
                self.writer.record(job.step, record)

    _before: float | None = None
    """Seconds of training before this engine's first turn, by which a resumed run has earned nothing."""
    _trained = 0.0
    _idle = False
    """Whether training rests, so that measurements have all the time."""
    _turns = 0
    """Steps taken by this engine."""
    _lead = 0.0
    """Seconds that the oldest measurement has had more than the others."""

    def _allowed(self) -> bool:
        return self.budget.allows(self._trained + self.budget.spent)

    def _start(self, probe: str, settings: dict[str, Any], *, asked: bool) -> None:
        started = time.perf_counter()
        snap = self.training.snapshot()
        records = self.training.probe(probe, settings).measure(snap)
        # One that comes later has no claim to what the others have had meanwhile.
        others = min((self.served[job.probe] for job in self.jobs), default=0.0)
        self.served[probe] = max(self.served.get(probe, 0.0), others)
        self.jobs.append(Job(probe, snap.step, iter(records), asked))
        self.budget.spend(time.perf_counter() - started)

    def _finish(self, job: Job) -> None:
        self.jobs.remove(job)
        self._said.pop(job.probe, None)
        self.costs[job.probe] = round(job.seconds, 4)
        self.writer.event(job.step, "probe", {"name": job.probe, "seconds": round(job.seconds, 4), "records": job.made})

    def _fail(self, job: Job, detail: dict[str, Any]) -> None:
        """Give up a measurement and say why; what is scheduled says the same thing once."""
        self.jobs.remove(job)
        if self._said.get(job.probe) == detail["error"] and not job.asked:
            return
        self._said[job.probe] = detail["error"]
        self.writer.event(job.step, "probe failed", {"name": job.probe} | detail)
