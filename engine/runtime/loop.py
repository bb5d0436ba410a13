"""The loop: obey, step, measure, record, until the run is over."""

from __future__ import annotations

import sqlite3
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modalscape.engine.client.observers import Observers
from modalscape.engine.core.step_scalars import StepScalars
from modalscape.engine.errors import InputError
from modalscape.engine.runtime import checkpoint
from modalscape.engine.runtime.description import described, methods_described
from modalscape.engine.runtime.inline import Cancelled, Measuring
from modalscape.engine.runtime.recorder import Keeping
from modalscape.engine.runtime.replay import remaining, restored
from modalscape.engine.runtime.session import Training, obey_due
from modalscape.engine.runtime.signals import stopped_by_signals
from modalscape.engine.runtime.snapshots import Offer
from modalscape.engine.store.commands import Cancel, Command, Mailbox, Stop, garbled, shortened
from modalscape.engine.store.home import Gone
from modalscape.engine.store.words import EventKind, State
from modalscape.engine.store.writer import RunReader

_IDLE = 0.05
"""Seconds between two looks into the mailbox while a run is paused."""
HANDED_OVER = 5.0
"""Seconds in which the observers come that a dashboard started with the run."""
_LONG = 2000
"""Characters of a command that is refused, beyond which its event holds only the beginning."""


class Run:
    """A training with a home: obeys commands, records what happens, leaves checkpoints.

    The methods whose names are commands (`pause`, `toggle`, …) are what commands apply to.
    """

    def __init__(self, training: Training, home: Path, *, attended: bool = False) -> None:
        """Prepare a run in `home`, whose lock the caller holds; an `attended` one waits for help when it diverges."""
        self.training = training
        self.home = training.home = Path(home)
        self.attended = attended
        self.keeping = Keeping(training, self.home, self._told)
        self.writer = self.keeping.writer
        self.mailbox = Mailbox(self.home, patience=0.1)
        self.steps = training.config.steps
        settings = training.settings
        self.live = settings.measure == "live" or (settings.measure == "auto" and attended)
        """Whether observers measure beside the training."""
        self.measuring = Measuring(training, self.writer, inline=not self.live, breathe=self._breathe)
        self.observers = Observers(
            self.home, settings.observers if self.live else 0, self._trouble, patience=HANDED_OVER if attended else 0.0
        )
        self.offer = Offer(self.home)
        self.rate = settings.pace
        """Steps a second, at most; 0 for as fast as it can."""
        self._due_at = 0.0
        """When the next step may be taken, of the clock that `time.monotonic` reads."""
        self.paused = self.stopping = self.diverged = False
        self.stop_at: int | None = None
        self.script: deque[tuple[int, Command]] = deque()
        self.caught_up = 0
        """Step up to which recorded commands are repeated before new ones are obeyed."""
        self.read_up_to = 0
        self.seconds = 0.0
        self._deaf = False
        """Whether the last look into the mailbox failed."""
        self._scalars = StepScalars(training.problem)
        self._idle: dict[str, str] = {}
        """Method that leaves training as it is to why, as it was told last."""
        self._measured_up_to = 0
        """Number of the last command that observers have answered."""
        self._evaluate_every = settings.evaluate or min(max(training.config.horizon // 40, 20), 1000)

    def begin(self) -> None:
        """Write what a reader needs to know of the run before its first step."""
        self._describe()
        config = self.training.config
        about = {"of": config.fork["of"]} if config.fork else {}
        about |= {"seed": config.seed, "device": str(self.training.device)}
        self.writer.event(self.training.state.step, EventKind.STARTED, about)
        self._evaluate()
        self._tell_idle()
        self.keeping.save()

    def resume_recorded(self) -> None:
        """Go to the newest checkpoint that holds and take up the commands recorded after it."""
        reader, passed = RunReader(self.home, measured=False), []
        found = restored(self.training, self.home, reader, say=passed.append)
        step, recorded = self.training.state.step, reader.meta("step", 0)
        for words in passed:
            checkpoint.said(words)
            self.writer.event(step, EventKind.TROUBLE, {"error": words})
        checkpoint.set_aside(self.home, after=step if found is not None else -1)
        self.script = deque(remaining(reader, self.training))
        self.caught_up = max([recorded, step, *(at for at, _ in self.script)])
        answers = reader.events(kinds=(EventKind.APPLIED, EventKind.REFUSED))
        self.read_up_to = max((event.detail.get("id", 0) for event in answers), default=0)
        self.seconds = reader.meta("seconds", 0.0)
        self.keeping.resumed(found, reader, self.caught_up)
        if found is None:
            self._evaluate()
            if self.training.config.fork:  # its base, recreated
                self.keeping.save()
        everything = RunReader(self.home, inherited=False)
        self._measured_up_to = max((facts.get("read_up_to", 0) for facts in everything.observing().values()), default=0)
        self.measuring.recall(everything)
        self.rate = reader.meta("pace", self.rate)
        self._describe()
        self.writer.event(step, EventKind.RESUMED, {"from": step, "recorded": self.caught_up})
        if not self.script:
            self._tell_idle()

    def go(self, progress: Callable[[int], None] = lambda step: None) -> str:
        """Train until the last step or a stop; return the final state, `finished` or `stopped`.

        An error in the loop is recorded with its traceback, the run is `failed`, and the error goes on to the caller.
        """
        with stopped_by_signals(self):
            try:
                self._loop(progress)
                return self._close()
            except Exception as error:
                self.keeping.failed(error)
                raise

    def _loop(self, progress: Callable[[int], None]) -> None:
        training = self.training
        if self.live:
            self.observers.turn()
        self.keeping.flush()
        if training.state.step >= self.steps:
            self._measure()
        while not self.stopping:
            self._obey()
            if self.stopping or training.state.step >= self.steps:
                break
            if self.paused or not self._in_time():
                self._rest()
                continue
            started = time.perf_counter()
            if self.take_step():
                progress(training.state.step)
            self.seconds += time.perf_counter() - started
            self._measure()
            self._beside()

    def _beside(self) -> None:
        """Do what goes on beside the steps: write, hand over states, see that observers are there."""
        self.keeping.turn()
        if self.live:
            self.offer.turn(self.training.content)
            self.observers.turn()

    def _in_time(self) -> bool:
        """Return whether the pace lets the next step be taken now, and count it as taken if so."""
        if self.rate <= 0:
            return True
        now = time.monotonic()
        if now < self._due_at:
            return False
        self._due_at = max(self._due_at, now - 1.0 / self.rate) + 1.0 / self.rate
        return True

    def _measure(self) -> None:
        """Measure what is due here, unless observers do."""
        step = self.training.state.step
        self.measuring.due(step, last=step == self.steps)

    def _breathe(self, probe: str) -> None:
        """Give signs of life while a probe is measured between two steps.

        Raises:
            Cancelled: the run is to stop, or the measurement is not wanted any more.
        """
        self.keeping.turn(prompt=self.measuring.fresh)
        if self.mailbox.due():
            waiting = [command for _, command in self._unread()]
            given_up = any(isinstance(c, Cancel) and c.probe == probe for c in waiting)
            if given_up or any(isinstance(c, Stop) for c in waiting):
                raise Cancelled
        if self.stopping:
            raise Cancelled

    def _trouble(self, words: str) -> None:
        self.writer.event(self.training.state.step, EventKind.TROUBLE, {"error": words})

    def take_step(self) -> bool:
        """Take one step and record it; a step whose numbers are not finite is taken back. Return whether it holds."""
        training = self.training
        self.keeping.path()
        before, states = training.state, {m: m.state for m in training.stack.methods.values()}
        try:
            view = training.step()
        except InputError as error:  # a method that cannot go on from here, before anything has changed
            if not self.attended:
                raise
            self._diverge("", f"Step {before.step + 1} could not be taken: {error}")
            return False
        values = self._scalars(view)
        bad = [name for name, value in values.items() if not abs(value) < float("inf")]
        if bad:
            training.state = before
            for method, state in states.items():
                method.state = state
            words = (
                f"{bad[0]} is no longer finite at step {before.step}, so that step was not taken; "
                "lower optimizer.lr or a method's dose, then resume."
            )
            self._diverge(bad[0], words)
            return False
        self.writer.scalars(view.step, values)
        settings = training.settings
        if view.step % settings.report == 0:
            for method in training.stack.methods.values():
                for record in method.report(view):
                    self.writer.record(view.step, record)
        if training.state.step % settings.report == 0:
            self._tell_idle()
        step = training.state.step
        if step % self._evaluate_every == 0 or step == self.steps:
            self._evaluate()
        if step % settings.checkpoint == 0 or step == self.steps:
            self.keeping.save()
        if step == self.stop_at:
            self.pause()
        return True

    def _tell_idle(self) -> None:
        """Say of methods that are on and leave training as it is why, and what would give them an effect; once."""
        now = self.training.idle()
        for name, text in now.items():
            if self._idle.get(name) != text:
                self.writer.event(self.training.state.step, EventKind.IDLE, {"method": name, "text": text})
        self._idle = now
        self.writer.meta("idle", now)

    def _evaluate(self) -> None:
        state = self.training.state
        self.writer.scalars(state.step, self.training.problem.evaluate(state.theta))

    def _obey(self) -> None:
        """Obey recorded commands that belong here, then, once caught up, new ones."""
        if self.training.state.step < self.caught_up or self.script:
            obey_due(self.training, self.script)
            if not self.script:
                self._describe_methods()
                self._tell_idle()
            return
        if self.mailbox.due() and not self.writer.crowded:
            before = self.read_up_to
            for number, command in self._unread():
                self.read_up_to = number
                if command.measures and (self.live or number <= self._measured_up_to):
                    continue  # observers answer it
                self._answer(number, command)
                self._describe_methods()
                if command.affects_training:
                    self._tell_idle()
            self.keeping.turn(prompt=self.read_up_to > before)

    def _unread(self) -> list[tuple[int, Command]]:
        """Return what was posted; a mailbox that cannot be read is told once and does not end training."""
        step = self.training.state.step
        try:
            found = self.mailbox.unread(self.read_up_to)
        except sqlite3.Error as error:
            if not self._deaf:
                words = f"Commands cannot be read ({error}); training goes on without them until control.db is mended."
                self.writer.event(step, EventKind.TROUBLE, {"error": words})
            self._deaf = True
            return []
        if self._deaf:
            self.writer.event(step, EventKind.MENDED, {"text": "Commands can be read again."})
        self._deaf = False
        return found

    def _answer(self, number: int, command: Command) -> None:
        """Obey a command, or refuse it and say why."""
        said, refused = command.to_json(), {}
        try:
            command.apply(self)
            self.training.obeyed += command.affects_training
        except Gone:
            raise
        except InputError as error:
            refused = {"error": shortened(str(error), 1000)}
        except Exception as error:  # a command that breaks something is recorded whole and must not end the training
            refused = {"error": f"{type(error).__name__}: {shortened(str(error))}", "traceback": traceback.format_exc()}
        if refused and len(str(said)) > _LONG:
            said = garbled(str(said), refused["error"]).to_json()
        kind = EventKind.REFUSED if refused else EventKind.APPLIED
        self.writer.event(self.training.state.step, kind, {"id": number, "command": said} | refused)

    def _rest(self) -> None:
        """Let a moment pass: until the pause is over, or the next step may be taken."""
        self._beside()
        until = _IDLE if self.paused else min(max(self._due_at - time.monotonic(), 0.0), _IDLE)
        time.sleep(until)

    def _diverge(self, name: str, words: str) -> None:
        step = self.training.state.step
        self.diverged = True
        self.writer.event(step, EventKind.DIVERGED, {"name": name, "error": words})
        if self.attended:
            self.pause()
        else:
            self.stopping = True

    def _close(self) -> str:
        state = self.training.state
        final = State.FINISHED if state.step >= self.steps and not self.diverged else State.STOPPED
        self.stopping = True
        self.keeping.save()
        self.offer.close()
        self.keeping.close(final)
        return final

    def _told(self) -> dict[str, Any]:
        """Return what a heartbeat says."""
        state = State.STOPPING if self.stopping else State.PAUSED if self.paused else State.RUNNING
        seconds = self.seconds + self.measuring.spent
        return {"state": state, "seconds": seconds, "activity": self.measuring.activity}

    def _describe(self) -> None:
        for key, value in described(self.training, self.steps).items():
            self.writer.meta(key, value)
        self.writer.meta("measure", "live" if self.live else "inline")
        self._describe_methods()

    def _describe_methods(self) -> None:
        for key, value in methods_described(self.training).items():
            self.writer.meta(key, value)
        self.writer.meta("probes", self.measuring.schedule.intervals)
        self.writer.meta("pace", self.rate)

    # What commands do.

    def pause(self) -> None:
        """Rest before the next step, with a checkpoint."""
        if not self.paused:
            self.paused, self.stop_at = True, None
            self.keeping.save()
            self.writer.event(self.training.state.step, EventKind.PAUSED, {})

    def resume(self, steps: int | None = None) -> None:
        """Go on, for `steps` more steps or without end.

        Raises:
            InputError: `steps` is not positive.
        """
        if steps is not None and steps < 1:
            raise InputError(f"A run cannot go on for {steps} steps; give 1 or more.")
        self.paused = self.diverged = False
        # Steps that were asked for and are still to come count: two single steps are two.
        start = self.training.state.step if self.stop_at is None else self.stop_at
        self.stop_at = None if steps is None else start + steps

    def stop(self) -> None:
        """End the run here; it can be resumed later."""
        self.stopping = True

    def toggle(self, method: str, on: bool) -> None:
        """Switch a method on or off before the next step."""
        self.training.toggle(method, on)

    def tune(self, method: str, knob: str, value: Any) -> None:
        """Change one knob before the next step."""
        self.training.tune(method, knob, value)

    def watch(self, probe: str, on: bool, every: int = 0) -> None:
        """Measure with a probe every `every` steps, or no longer."""
        self.measuring.schedule.watch(probe, on, every)

    def pace(self, rate: float) -> None:
        """Take at most `rate` steps a second; 0 for as fast as it can."""
        self.rate, self._due_at = float(rate), 0.0

    def measure(self, probe: str, settings: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Measure now."""
        self.measuring.now(probe, settings or {}, step)

    def cancel(self, probe: str) -> None:
        """Give up a probe's measurement; between two steps none is under way."""

    def save(self) -> None:
        """Write a checkpoint here."""
        self.keeping.save()

    def note(self, text: str) -> None:
        """Write a note into the log."""
        self.writer.event(self.training.state.step, EventKind.NOTE, {"text": text})
