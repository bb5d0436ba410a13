"""What a run records, kept safe: the records first, then the checkpoint that holds them, then the path of theta.

A checkpoint is written only once everything that it holds stands in `run.db`, durably. While the disk refuses, what was
recorded waits in bounded memory, one sentence says so, and training goes on.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modalscape.engine.runtime import checkpoint
from modalscape.engine.runtime.path_history import Trail
from modalscape.engine.runtime.session import Training
from modalscape.engine.runtime.streams import FULL
from modalscape.engine.store.home import Gone, Place, tidy
from modalscape.engine.store.pulse import Pulse
from modalscape.engine.store.reader import RunReader
from modalscape.engine.store.words import EventKind, State
from modalscape.engine.store.writer import RETRY_EVERY, RunWriter

PATIENCE = 30.0
"""Seconds for which a run that is over waits for a disk that refuses."""
RETRY_MOST = 10.0
"""Seconds between two attempts, at most, to write a checkpoint that was refused."""
_MB = 2**20


class Keeping:
    """Keeps a run in its home: what is recorded, where it stands, and what it can go on from."""

    def __init__(self, training: Training, home: Path, told: Callable[[], dict[str, Any]]) -> None:
        """Open the home, whose lock the caller holds; `told` gives what a heartbeat says, `state` and `seconds` too."""
        tidy(home)
        self.training, self.home, self.told = training, home, told
        self.writer = RunWriter(home)
        self.trail = Trail(home)
        self.place = Place(home)
        self.pulse = Pulse(home)
        self.words = ""
        """What waits to be written, in a sentence, or nothing."""
        self.unwritten = ""
        """What was not written when the run ended, in a sentence, or nothing."""
        self._files: set[str] = set()
        """Checkpoints that the log knows."""
        self._saved = -1
        self._owed = False
        self._refusal: OSError | None = None
        """Why the disk refused a checkpoint or a point of the path."""
        self._gap = self._again = 0.0
        self._size = 0

    def turn(self, *, prompt: bool = False) -> None:
        """Write what is buffered, if it is time; `prompt` says that it is, unless the disk just refused.

        Raises:
            Gone: the home is no longer there.
        """
        if self.writer.due() or (prompt and self.writer.error is None):
            self.place.check()
            self.flush()

    def flush(self, *, durable: bool = False) -> bool:
        """Write what is buffered, and what of the files was refused before; return whether run.db took it."""
        written = self._records(durable=durable)
        if written and not durable and (self._owed or self.trail.waiting) and time.monotonic() >= self._again:
            self._late()
        self._settle()
        return written

    def save(self) -> None:
        """Write a checkpoint unless this step has one: now, or as soon as the disk takes it and the records before it.

        Raises:
            Gone: the home is no longer there.
        """
        if self.training.state.step == self._saved:
            return
        self._owed = True
        if self.writer.error is None or self.writer.due():
            self.place.check()
            if self.flush(durable=True) and time.monotonic() >= self._again:
                self._checkpoint()
        self._settle()

    def path(self) -> None:
        """Keep where the run stands on its path, for measurements that look back.

        Raises:
            Gone: the home is no longer there.
        """
        state = self.training.state
        if self.trail.due(state.step, state.theta):
            self.place.check()
            try:
                self.trail.keep(state.step, state.theta)
            except OSError as error:
                self._refused(error)
            self._settle()

    def resumed(self, step: int | None, reader: RunReader, reached: int) -> None:
        """Complete what a killed engine left of the checkpoint of `step`, and drop what the records do not know.

        `reached` is the step that the records have come to.
        """
        self.trail.forget(after=reached)
        self._files = {event.detail.get("file", "") for event in reader.events(kinds=("checkpoint",))}
        if step is not None:
            self._saved = step
            self._known(checkpoint.named(step), ahead=(reader.meta("theta", None) or {}).get("step", -1) >= step)

    def close(self, final: str) -> None:
        """Write everything, waiting for a disk that refuses for PATIENCE seconds, and the run's last word.

        Raises:
            Gone: the home is no longer there.
        """
        until = time.monotonic() + PATIENCE
        self.save()
        while (self._owed or self.writer.error) and time.monotonic() < until:
            if self.writer.due():
                self.place.check()
                self.flush()
            time.sleep(0.02)
        if self._owed:  # the records stay behind, so a resumed run repeats these steps, but theta at least is there
            self._checkpoint()
        self.last_word(final, {})

    def failed(self, error: Exception) -> None:
        """Write why the run ends before its time."""
        detail = {"error": str(error)}
        if not isinstance(error, Gone):
            detail["traceback"] = "".join(traceback.format_exception(error))
        self.last_word(State.FAILED, detail)

    def last_word(self, final: str, detail: dict[str, Any]) -> None:
        """Write the last event and state, and let go of the home."""
        self._settle()
        self.writer.event(self.training.state.step, final, detail)
        written = self._records(final)
        if not written or self._refusal is not None:
            left = f"{self._reason()}: {self._sentence()}"
            self.unwritten = f"{left} could not be written before the run ended; resume makes up for it."
            self._pulse(final, self.unwritten)
        self.writer.abandon()
        self.pulse.close()

    def _records(self, state: str | None = None, *, durable: bool = False) -> bool:
        told = self.told()
        said = told.pop("state")
        self.writer.meta("seconds", told.pop("seconds"))
        self.writer.beat(state or said, self.training.state.step, told | {"waiting": self.words})
        return self.writer.flush(durable=durable)

    def _late(self) -> None:
        """Write the files that the disk refused before."""
        self.place.check()
        try:
            if self.trail.waiting:
                self.trail.write()
        except OSError as error:
            self._refused(error)
            return
        if self._owed and self._records(durable=True):
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Write the checkpoint of this step, whose records are written."""
        state = self.training.state
        try:
            path = checkpoint.save(self.home, self.training.content())
            self._size = path.stat().st_size
        except OSError as error:
            self._refused(error)
            return
        self._owed, self._saved = False, state.step
        self._known(path.name)

    def _known(self, name: str, *, ahead: bool = False) -> None:
        """Let the log know a checkpoint of this step and what theta is in it, unless the records are `ahead` of it."""
        state = self.training.state
        if not ahead:
            self.writer.meta("theta", {"step": state.step, "sha256": checkpoint.sha256(state.theta)})
        if name not in self._files:
            self._files.add(name)
            self.writer.event(state.step, EventKind.CHECKPOINT, {"file": name})

    def _refused(self, error: OSError) -> None:
        self._refusal = error
        self._gap = min(max(2 * self._gap, RETRY_EVERY / 2), RETRY_MOST)
        self._again = time.monotonic() + self._gap

    def _settle(self) -> None:
        """Say once when the disk begins to refuse and once when it is over; meanwhile keep the sentence fresh."""
        step = self.training.state.step
        if not self._owed and not self.trail.waiting:
            self._refusal, self._gap = None, 0.0
        if self.writer.error is None and self._refusal is None:
            if self.words:
                self.words = ""
                self.writer.event(step, EventKind.MENDED, {"text": "What waited to be written is written."})
            return
        begun = not self.words
        going_on = "Training goes on." if self.told()["state"] in (State.RUNNING, State.PAUSED) else "Training is over."
        self.words = f"{self._reason()}: {self._sentence()} wait to be written{self._remedy()}. {going_on}"
        if begun:
            self.writer.event(step, EventKind.UNSAVED, {"error": self.words})
        if self.writer.error is not None:
            self._pulse(self.told()["state"], self.words)

    def _pulse(self, state: str, words: str) -> None:
        told = self.told()
        facts = {"state": state, "step": self.training.state.step, "seconds": told["seconds"], "waiting": words}
        self.pulse.tell(facts | {"activity": told["activity"]})

    def _reason(self) -> str:
        if self._full():
            return "The disk is full"
        if self.writer.error is None:
            return f"The disk refuses ({self._refusal.strerror or self._refusal})"
        return f"run.db cannot be written ({self.writer.error})"

    def _full(self) -> bool:
        said = self.writer.error or ""
        return "full" in said or (self._refusal is not None and self._refusal.errno in FULL)

    def _remedy(self) -> str:
        return f"; free at least {math.ceil(self._needed() / _MB):,} MB" if self._full() else ""

    def _needed(self) -> int:
        """Return about how many bytes all that waits takes; in run.db for a while twice."""
        points = sum(point.nbytes for point in self.trail.waiting.values())
        return 2 * self.writer.waiting()["bytes"] + points + (self._checkpoint_size() if self._owed else 0)

    def _checkpoint_size(self) -> int:
        theta = self.training.state.theta
        return self._size or 4 * theta.numel() * theta.element_size()

    def _sentence(self) -> str:
        """Return what waits, in words."""
        waits = self.writer.waiting()
        parts = [_counted(waits[kind], kind) for kind in ("numbers", "measurements", "events") if waits[kind]]
        if self.trail.waiting:
            parts.append(_counted(len(self.trail.waiting), "points of the path"))
        if self._owed:
            parts.append(f"a checkpoint ({max(self._checkpoint_size() / _MB, 0.1):,.1f} MB)")
        return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts) or "nothing"


def _counted(count: int, what: str) -> str:
    first, _, rest = what.partition(" ")
    return f"{count:,} {first if count != 1 else first.removesuffix('s')} {rest}".rstrip()
