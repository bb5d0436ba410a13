"""Measurements under way in one process: the one at work, those that are held for it, those that wait to go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from modalscape.engine.core.probe import Probe, Record
from modalscape.engine.errors import InputError
from modalscape.engine.maths.progress import listening
from modalscape.engine.registry import named
from modalscape.engine.runtime.inline import Cancelled, broken
from modalscape.engine.store.home import Gone

_RANK = {"low": 0, "medium": 1, "high": 2}


@dataclass
class Job:
    """One measurement."""

    probe: str
    asked: int | None = None
    """Number of the command that asked for it; None where it is scheduled."""
    settings: dict[str, Any] = field(default_factory=dict)
    wanted: int | None = None
    """The step that was asked for; None for the newest."""
    tries: int = 1
    step: int = -1
    records: Iterator[Record] | None = None
    made: int = 0
    before: float = 0.0
    """Seconds of work before the present stretch."""
    progress: tuple[str, int, int] | None = None
    """What is counted, how many are done, how many are planned."""
    given_up: bool = False
    claimed: bool = False
    """Whether no other observer begins it."""
    _seconds: float = 0.0
    _since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of work, without those for which it was held."""
        return self._seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @property
    def costly(self) -> bool:
        """Whether measurements of less cost go before it."""
        return rank(self.probe) == _RANK["high"]

    def work(self) -> None:
        """Let its clock go."""
        self._since = time.perf_counter()

    def rest(self) -> None:
        """Hold its clock."""
        self._seconds, self._since = self.seconds, None

    def told(self, cost: float | None) -> dict[str, Any]:
        """Return what a page says of it; `cost` is what the last one of its probe took, in seconds."""
        found = {"probe": self.probe, "step": self.step, "asked": self.asked is not None, "claimed": self.claimed}
        found |= {"seconds": round(self.seconds, 2), "left": self._left(cost)}
        if self.progress is not None:
            found |= dict(zip(("what", "done", "planned"), self.progress, strict=True))
        return found

    def _left(self, cost: float | None) -> float | None:
        """Return the seconds of work that are left: by the last one's cost, else by the share that is done."""
        if cost is not None and cost > self.seconds:
            return round(cost - self.seconds, 1)
        share = self.progress[1] / self.progress[2] if self.progress and self.progress[2] else 0.0
        return round(self.seconds * (1.0 - share) / share, 1) if 0.05 < share < 1.0 else None


def rank(probe: str) -> int:
    """Return 0 for a probe of low cost, 1 for one of medium cost, 2 for one of high cost."""
    return _RANK[named("modalscape.engine.probes", Probe, probe).cost]


class Bench:
    """Works at one measurement at a time. A measurement may be held, at its own reports of progress, for another."""

    def __init__(
        self,
        open_: Callable[[Job], Iterator[Record] | None],
        record: Callable[[int, Record], None],
        heard: Callable[[Job], None],
        trying: Callable[[Job | None], None],
    ) -> None:
        """Work with what an observer gives.

        `open_(job)` begins a measurement, or returns None where that cannot be yet; `record` writes; `heard(job)` is
        called at every report of progress; `trying(job)` before work at another measurement begins.
        """
        self._open, self._record, self._heard, self._trying = open_, record, heard, trying
        self.waiting: list[Job] = []
        """Measurements that have shown something and wait to go on."""
        self.stack: list[Job] = []
        """The measurement at work, the last, and those that are held for it."""

    @property
    def jobs(self) -> list[Job]:
        """All measurements under way, the one at work first."""
        return [*reversed(self.stack), *self.waiting]

    def advance(self, job: Job, until: Callable[[Job], bool]) -> tuple[str, dict[str, Any]] | None:
        """Work at a measurement to its end, or until `until(job)` after a record; return how it ended.

        None where it waits to go on, was given up, or could not begin.

        Raises:
            Gone: the run's folder is no longer there.
        """
        self.waiting = [other for other in self.waiting if other is not job]
        if self.stack:
            self.stack[-1].rest()
        self.stack.append(job)
        self._trying(job)
        job.work()
        try:
            with listening(lambda *progress: self._progress(job, progress)), torch.enable_grad():
                return self._worked(job, until)
        except Cancelled:
            return None
        except Gone:
            raise
        except InputError as error:
            return "probe failed", {"error": str(error)}
        except Exception as error:  # a measurement that breaks is recorded whole and must not end the others
            return "probe failed", broken(error)
        finally:
            job.rest()
            self.stack.pop()
            if self.stack:
                self.stack[-1].work()
            self._trying(self.stack[-1] if self.stack else None)

    def give_up(self, probe: str) -> None:
        """Give up the measurements of a probe; one at work ends at its next report of progress."""
        for job in self.jobs:
            job.given_up = job.given_up or job.probe == probe
        self.waiting = [job for job in self.waiting if not job.given_up]

    def _worked(self, job: Job, until: Callable[[Job], bool]) -> tuple[str, dict[str, Any]] | None:
        if job.records is None:
            job.records = self._open(job)
            if job.records is None:
                return None
        for record in job.records:
            job.made += 1
            self._record(job.step, replace(record, seconds=job.seconds if record.seconds is None else record.seconds))
            if job.given_up:
                raise Cancelled
            if until(job):
                self.waiting.append(job)
                return None
        return "probe", {"seconds": round(job.seconds, 4), "records": job.made}

    def _progress(self, job: Job, progress: tuple[str, int, int]) -> None:
        job.progress = progress
        self._heard(job)
        if job.given_up:
            raise Cancelled
