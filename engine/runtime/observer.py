"""An observer: a process beside the training that measures the newest state of a run, or a kept one that is asked for.

What it measures goes into a store of its own. What a person asks for comes first, then the first picture of each probe,
then what costs little, a third of the time, then what has waited longest. A measurement of high cost is held at its own
reports of progress, for one that was asked for and for those of low cost that have grown old.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modalscape.engine.catalog import catalog
from modalscape.engine.client.observers import locked
from modalscape.engine.config import read, validated
from modalscape.engine.core.probe import Record
from modalscape.engine.errors import InputError
from modalscape.engine.runtime import checkpoint, snapshots
from modalscape.engine.runtime.inline import preferred
from modalscape.engine.runtime.jobs import Bench, Job, rank
from modalscape.engine.runtime.schedule import Schedule
from modalscape.engine.runtime.session import Training
from modalscape.engine.store.commands import Cancel, Command, Mailbox, Measure
from modalscape.engine.store.files import brief
from modalscape.engine.store.home import Busy, Place, held_since, is_locked, lock
from modalscape.engine.store.reader import RunReader
from modalscape.engine.store.schema import Unreadable
from modalscape.engine.store.words import EventKind
from modalscape.engine.store.writer import RunWriter, create_observed

LOOK_EVERY = 0.2
"""Seconds between two looks at the run and its mailbox."""
IDLE = 0.05
"""Seconds of rest where there is nothing to measure."""
FRESH = 5.0
"""Seconds after which a probe is measured anew, even before its interval is over, if the run has gone on."""
LATE = 6.0
"""Seconds after which a probe of low or medium cost is measured while one of high cost is held for it."""
APART = 1.0
"""Seconds between two scheduled measurements of a probe, at least."""
LINGER = 30.0
"""Seconds for which an observer waits for requests once the run is over."""
PATIENCE = 2.0
"""Seconds for which it waits until the engine hands over a state."""
LENT = 0.5
"""Seconds for measurements of low and medium cost that one of high cost earns them by each of its own."""
TRIES = 2
"""Times that a measurement may end its process before it is given up."""


class Observer:
    """Measures one run until nobody needs it any more."""

    def __init__(self, home: Path, number: int = 1) -> None:
        """Open the run in `home`; the caller holds the lock of observer `number`.

        Raises:
            InputError: there is no such run, its data is gone, or nothing can be written.
        """
        self.home, self.number = Path(home), number
        self.training = Training(validated(read(self.home), catalog()))
        self.training.home = self.home
        self.place = Place(self.home)
        self.reader = RunReader(self.home, inherited=False)
        self.mailbox = Mailbox(self.home, patience=0.1)
        self.writer = self._writer()
        self.schedule = Schedule(preferred)
        self.bench = Bench(self._opened, self.writer.record, self._heard, self._trying)
        self.asked: deque[Job] = deque()
        self.costs: dict[str, float] = {}
        """Seconds that the last measurement of each probe took."""
        self.shown: dict[str, float] = {}
        """Probe to when its last measurement ended; seconds of the monotonic clock."""
        self.begun: set[str] = set()
        """Probes of which something was shown, so that their next picture has time."""
        self.ends: dict[str, int] = {}
        """Probe to how often, one after the other, its scheduled measurement ended the process."""
        self.credit = 0.0
        """Seconds that measurements of low and medium cost may take before one of high cost has to get on."""
        self.alive = self.inline = False
        self._several = self.training.settings.observers > 1
        self.step, self.length = -1, 0
        self.read_up_to = 0
        self._said: dict[str, str] = {}
        """What was told once: about what, and the sentence."""
        self._looked, self._quiet = 0.0, time.monotonic()
        self._recall()

    def go(self) -> None:
        """Measure until the run is over and nothing was asked for during LINGER seconds.

        Raises:
            Gone: the run's folder is no longer there.
        """
        try:
            while True:
                self._look()
                job = self._next()
                if job is not None:
                    self._quiet = time.monotonic()
                    self._advance(job)
                elif self._over():
                    break
                else:
                    time.sleep(IDLE)
        finally:
            self.writer.beat("ended", max(self.step, 0), {"observing": {}, "trying": {}})
            self.writer.close()

    def _advance(self, job: Job) -> None:
        """Work at a measurement to its end, or as long as nothing goes before it."""
        job.before, first = job.seconds, job.probe not in self.begun
        ending = self.bench.advance(job, self._others_first)
        spent = job.seconds - job.before
        earned = LENT * spent if job.costly else 0.0 if first else -spent
        self.credit = min(self.credit + earned, LATE)
        if job.step >= 0:
            self.begun.add(job.probe)
        if ending is None:
            return
        kind, detail = ending
        self.begun.add(job.probe)
        self.shown[job.probe] = time.monotonic()
        if kind == EventKind.PROBE:
            self._said.pop(job.probe, None)
            self.ends.pop(job.probe, None)
            self.costs[job.probe] = round(job.seconds, 3)
        elif job.asked is None and self._said.get(job.probe) == detail["error"]:
            return  # of what is scheduled the same reason is told once
        else:
            self._said[job.probe] = detail["error"]
        self.writer.event(max(job.step if job.step >= 0 else self.step, 0), kind, {"name": job.probe} | detail)

    # What there is to do.

    def _look(self) -> None:
        """See how the run stands and what was asked for, and write what is buffered; at most each LOOK_EVERY."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        self.place.check()
        self._state()
        self._requests()
        if self.writer.due():
            self._beat()

    def _state(self) -> None:
        try:
            self.alive = is_locked(self.home)
            facts = self.reader.facts("step", "steps", "probes", "measure")
        except Unreadable as error:
            self._tell("run", str(error))
            return
        self.inline = facts.get("measure", "inline") == "inline"
        self.length = facts.get("steps", 0)
        self.step = facts.get("step", 0) if self.alive else (checkpoint.steps(self.home) or [-1])[-1]
        try:
            self.schedule.only(facts.get("probes", {}))
        except InputError as error:  # a probe of another version
            self._tell("probe", str(error))

    def _requests(self) -> None:
        """Take up what was asked for since the last look; only the first observer answers."""
        try:
            found = self.mailbox.unread(self.read_up_to)
        except (sqlite3.Error, InputError):  # the engine tells of a damaged mailbox
            return
        for number, command in found:
            self.read_up_to = number
            if command.measures and number not in self._answered:
                self._obey(number, command)
        if found:
            self.writer.meta("read_up_to", self.read_up_to)
            self._beat()

    def _obey(self, number: int, command: Command) -> None:
        detail = {"id": number, "command": command.to_json()}
        kind = EventKind.APPLIED
        try:
            if isinstance(command, Cancel):
                self._cancel(command.probe)
            elif isinstance(command, Measure) and self.number == 1:
                self.training.probe(command.probe, command.settings)
                self.asked.append(Job(command.probe, number, command.settings, command.step))
        except InputError as error:
            kind, detail = "refused", detail | {"error": str(error)}
        if self.number == 1:
            self.writer.event(max(self.step, 0), kind, detail)

    def _cancel(self, probe: str) -> None:
        self.bench.give_up(probe)
        self.asked = deque(job for job in self.asked if job.probe != probe)
        self.schedule.measured(probe, self.step)

    def _next(self) -> Job | None:
        """Return the measurement whose turn it is, or None."""
        if self.asked:
            return self.asked.popleft()
        due = self._due()
        first = [probe for probe in due if probe not in self.begun]
        if first:
            return Job(min(first, key=rank))
        waiting = sorted(self.bench.waiting, key=lambda job: (job.asked is None, job.costly))
        light, costly = [p for p in due if rank(p) < 2], [p for p in due if rank(p) == 2]
        if waiting and (waiting[0].asked is not None or not waiting[0].costly):
            return waiting[0]
        if light and (self.credit >= 0.0 or not (waiting or costly)):
            return Job(min(light, key=self._shown))
        if waiting:
            return waiting[0]
        return Job(min(costly, key=self._shown)) if costly else None

    def _due(self) -> list[str]:
        """Return the scheduled probes of which a newer measurement is wanted."""
        if self.inline or not (self.alive or 0 < self.length <= self.step):
            return []
        others = self._elsewhere()
        under_way = {job.probe for job in self.bench.jobs} | others
        return [p for p in self.schedule.intervals if p not in under_way and self._wants(p)]

    def _wants(self, probe: str) -> bool:
        if self.schedule.done(probe) >= self.step or self.ends.get(probe, 0) >= TRIES:
            return False
        if not self.alive:
            return True
        age = time.monotonic() - self._shown(probe)
        return age >= APART and (age >= FRESH or self.schedule.passed(probe, self.step))

    def _elsewhere(self, *, fresh: bool = False) -> set[str]:
        """Return the probes that other observers of the run measure now; take note of what they have measured."""
        found = set()
        for number, facts in self.reader.observing(fresh=fresh).items() if self._several else ():
            if number != self.number and held_since(self.home, locked(number)) is not None:
                said = facts.get("observing", {})
                found |= {job["probe"] for job in said.get("jobs", ()) if job.get("claimed")}
                for probe, step in said.get("steps", {}).items():
                    self.schedule.measured(probe, step)
                    self.begun.add(probe)
        return found

    def claim(self, job: Job) -> bool:
        """Return whether a scheduled measurement is this observer's to make, and let the others know."""
        if not self._several:
            return True
        try:
            with lock(self.home, "observers.lock", "being shared out"):
                free = job.probe not in self._elsewhere(fresh=True)
                job.claimed = free and self.schedule.done(job.probe) < self.step
                self._beat()
        except Busy:  # another observer holds it, or stands still with it: its turn comes again
            job.claimed = False
        return job.claimed

    def _over(self) -> bool:
        return not self.alive and time.monotonic() - self._quiet > LINGER

    def _shown(self, probe: str) -> float:
        return self.shown.get(probe, -1e9)

    def _others_first(self, job: Job) -> bool:
        """Return whether something goes before the rest of a scheduled measurement that has shown something."""
        if job.asked is not None or not job.costly or len(self.bench.stack) > 1:
            return False
        self.begun.add(job.probe)
        return bool(self.asked) or any(probe not in self.begun for probe in self._due())

    def _heard(self, job: Job) -> None:
        """Look at the run on the way; let what goes before a measurement have its turn while that is held."""
        self._look()
        if not job.costly or len(self.bench.stack) > 2:
            return
        if self.asked and job.asked is None and not job.given_up:
            self._advance(self.asked.popleft())
        late = [p for p in self._due() if rank(p) < 2 and time.monotonic() - self._shown(p) >= LATE]
        if late and not job.given_up and self.credit + LENT * (job.seconds - job.before) >= 0.0:
            self._advance(Job(min(late, key=self._shown)))

    # Measuring.

    def _opened(self, job: Job) -> Iterator[Record] | None:
        """Begin a measurement at the state that it is for; None where the engine does not hand one over in time."""
        if job.asked is None and not self.claim(job):
            return None
        content = self._content(job.wanted)
        if content is None:
            if job.asked is not None:
                self.asked.append(job)
            return None
        if job.asked is None and content["step"] <= self.schedule.done(job.probe):
            return None  # another observer has just measured what was handed over to both
        self.training.restore(content)
        snap = self.training.snapshot()
        job.step = snap.step
        if job.asked is None:
            self.schedule.measured(job.probe, snap.step)
        return iter(self.training.probe(job.probe, job.settings).measure(snap))

    def _content(self, wanted: int | None) -> dict[str, Any] | None:
        """Return the newest state of the run, or the kept one nearest to the step `wanted`.

        Raises:
            InputError: no step of the run was kept.
        """
        if wanted is None and self.alive:
            found = snapshots.newest(self.home, PATIENCE, self.training.device, lambda: time.sleep(0.002))
            if found is not None or is_locked(self.home):
                return found
        steps = checkpoint.steps(self.home)
        near = None if wanted is None else min(steps, key=lambda step: abs(step - wanted), default=None)
        found = checkpoint.load(self.home, near, self.training.device)
        if found is None:
            raise InputError("No step of this run was kept, so there is nothing to measure; let it train first.")
        return found

    # What is written.

    def _writer(self) -> RunWriter:
        """Return the writer of the store; one that is damaged is put aside for a new one."""
        name = create_observed(self.home, self.number)
        try:
            made = RunWriter(self.home, name)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # it is not damaged, but cannot be reached
                raise
            (self.home / name).replace(self.home / f"{name}.aside")
            for end in ("-wal", "-shm"):
                (self.home / f"{name}{end}").unlink(missing_ok=True)
            made = RunWriter(self.home, create_observed(self.home, self.number))
            words = f"What was measured before is damaged ({brief(error)}); it lies in {name}.aside now."
            made.event(0, EventKind.TROUBLE, {"error": words})
        return made

    def _beat(self) -> None:
        """Write what is buffered, and what is being measured."""
        facts = {"jobs": [job.told(self.costs.get(job.probe)) for job in self.bench.jobs], "costs": self.costs}
        facts |= {"waiting": [job.probe for job in self.asked], "steps": self.schedule.steps}
        self.writer.beat("observing", max(self.step, 0), {"observing": facts})
        self.writer.flush()

    def _trying(self, job: Job | None) -> None:
        """Write what is being tried, before it is: if the process ends on the way, the next one knows."""
        tried = {} if job is None else {"probe": job.probe, "asked": job.asked, "settings": job.settings}
        if job is not None:
            tried |= {"step": job.wanted, "tries": job.tries}
        self.writer.meta("trying", tried)
        self._beat()

    def _tell(self, about: str, words: str) -> None:
        """Record a sentence once."""
        if self._said.get(about) != words:
            self._said[about] = words
            self.writer.event(max(self.step, 0), EventKind.TROUBLE, {"error": words})

    def _recall(self) -> None:
        """Take up what an earlier observer left: what it measured, answered, and was at when it ended."""
        facts = self.reader.observing().get(self.number, {})
        answers, measured = (EventKind.APPLIED, EventKind.REFUSED), (EventKind.PROBE, EventKind.PROBE_FAILED)
        events = self.reader.events(kinds=answers + measured)
        self._answered = {e.detail.get("id") for e in events if e.kind in answers}
        for event in events:
            if event.kind in measured:
                self.schedule.measured(event.detail["name"], event.step)
                self.begun.add(event.detail["name"])
            if event.kind == EventKind.PROBE:
                self.costs[event.detail["name"]] = event.detail["seconds"]
        self.read_up_to = facts.get("read_up_to", 0)
        self.ends = dict(facts.get("ends", {}))
        tried = facts.get("trying") or {}
        self._state()
        if tried and facts.get("state") != "ended":
            self._ended_within(tried)

    def _ended_within(self, tried: dict[str, Any]) -> None:
        """Say that the process before this one ended while it measured; what was asked for is tried once more."""
        probe, tries = str(tried.get("probe")), int(tried.get("tries", 1))
        if tried.get("asked") is not None and tries < TRIES:
            again = Job(probe, tried["asked"], dict(tried.get("settings") or {}), tried.get("step"), tries=tries + 1)
            self.asked.append(again)
            going_on = "it is tried once more"
        elif tried.get("asked") is not None:
            going_on = "it is given up; ask again, perhaps with smaller settings"
        else:
            self.ends[probe] = self.ends.get(probe, 0) + 1
            self.writer.meta("ends", self.ends)
            going_on = "the next one is tried" if self.ends[probe] < TRIES else "it is measured on request only"
        words = f"The process that measured {probe} ended on the way (killed, or out of memory); {going_on}."
        self.writer.event(max(self.step, 0), EventKind.PROBE_FAILED, {"name": probe, "error": words})
