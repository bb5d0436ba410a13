"""What a recorded run did, and its training at any of its steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import read, validated
from modalscape.engine.errors import InputError
from modalscape.engine.runtime import checkpoint
from modalscape.engine.runtime.session import Training
from modalscape.engine.store.commands import Command, from_json
from modalscape.engine.store.lineage import missing, parent_of, within
from modalscape.engine.store.words import EventKind
from modalscape.engine.store.writer import RunReader


class Differs(InputError):
    """The state at which a fork leaves its parent is not the one that it was made from."""

    def __init__(self, parent: Path, step: int, wanted: str, found: str) -> None:
        super().__init__(
            f"The parameters of {parent.name} at step {step} are not those that this run was forked from; restore that "
            "run, or fork again."
        )
        self.step, self.wanted, self.found = step, wanted, found


def recorded_commands(reader: RunReader, newest: int | None = None) -> Iterator[tuple[int, Command]]:
    """Yield (step, command) for each applied command that changed training, in order: the log that a replay repeats.

    Only events up to number `newest` count, where that is given.
    """
    for event in reader.events(kinds=(EventKind.APPLIED,)):
        if newest is not None and event.id > newest:
            return
        command = from_json(event.detail["command"])
        if command.affects_training:
            yield event.step, command


def remaining(reader: RunReader, training: Training, newest: int | None = None) -> list[tuple[int, Command]]:
    """Return what of the log, up to event `newest` if given, the training has not obeyed yet."""
    log = list(recorded_commands(reader, newest))
    if training.obeyed is None:  # a checkpoint of an older version does not say
        training.obeyed = sum(step < training.state.step for step, _ in log)
    return log[training.obeyed :]


def restored(
    training: Training,
    home: Path,
    reader: RunReader,
    until: int | None = None,
    say: Callable[[str], None] = checkpoint.said,
    newest: int | None = None,
) -> int | None:
    """Take training to the newest checkpoint, at or before step `until`, that holds; return its step.

    One holds if it is intact, fits the run, and is of a past that the records, up to event `newest` if given, have
    reached: a run goes on from nothing that they do not know. None when there is none: training is then at its
    beginning, a fork at the step at which it leaves its parent. `say` is told of the others.

    Raises:
        InputError: a fork has no checkpoint that holds, and its parent is gone or is not what it was.
    """
    reached, logged = reader.meta("step", 0), len(list(recorded_commands(reader, newest)))
    for content in checkpoint.newest_first(home, until, training.device, say=say):
        step = content["step"]
        if step > reached or (content.get("obeyed") or 0) > logged:
            say(f"The checkpoint of step {step} is newer than the run's records; the one before is used.")
            continue
        try:
            training.restore(content)
        except InputError as error:
            say(f"The checkpoint of step {step} does not fit the run ({error}); the one before is used.")
            continue
        return step
    if training.config.fork:
        branch(training, home)
    return None


def branch(training: Training, home: Path, *, from_start: bool = False) -> str:
    """Take the training of the fork in `home` to the step at which it leaves its parent; return the SHA-256 of theta.

    The parent is recreated there, by its checkpoints or, `from_start`, from its first step. Methods that are on in both
    keep their state, others begin afresh; the optimiser keeps its memory.

    Raises:
        Differs: the parent has other parameters there.
        InputError: it is gone or cannot be recreated.
    """
    fork = training.config.fork
    parent, step = parent_of(home, fork), fork["step"]
    if not os.path.lexists(parent / "config.json"):
        raise InputError(f"{missing(parent, step)} Without it this run cannot be taken to that step; restore it.")
    origin = _at(parent, step, newest=fork["event"], from_start=from_start)
    found = checkpoint.sha256(origin.state.theta)
    if fork["theta"] not in ("", found):
        raise Differs(parent, step, fork["theta"], found)
    content, on = origin.content(), training.config.methods
    content |= {
        "settings": origin.values | training.config.settings,
        "methods": {name: state for name, state in content["methods"].items() if name in on},
        "obeyed": 0,
    }
    torch.set_num_threads(training.settings.threads)  # the parent's were set to repeat its steps
    training.restore(content)
    for name in on:
        training.toggle(name, True)
    return found


def recreated(
    home: Path,
    step: int | None = None,
    *,
    from_start: bool = False,
    say: Callable[[str], None] = checkpoint.said,
) -> Training:
    """Return the training of a recorded run at `step` (default: its last checkpoint), steps repeated as needed.

    Steps before the first of a fork are those of its parent. Where that is gone and the run is repeated `from_start`,
    it is repeated from the checkpoint of its first step, and `say` is told.

    Raises:
        InputError: the run has not come that far, or what it comes from is gone.
    """
    newest = (checkpoint.steps(home) or [read(home).first_step])[-1]
    until = newest if step is None else step
    reached = max(newest, RunReader(home, measured=False).meta("step", 0))
    if until > reached:
        raise InputError(f"The run in {home} has come to step {reached}, not to {until}; give a step up to {reached}.")
    training = _at(within(home, until), until, from_start=from_start, say=say)
    training.home = Path(home)
    return training


def _at(
    home: Path,
    until: int,
    *,
    newest: int | None = None,
    from_start: bool = False,
    say: Callable[[str], None] = checkpoint.said,
) -> Training:
    """Return the training of the run in `home` at step `until`, by its log up to event `newest` if given."""
    reader = RunReader(home, measured=False)
    training = Training(validated(read(home), catalog()))
    training.home = Path(home)
    if not from_start:
        restored(training, home, reader, until, newest=newest)
    elif training.config.fork:
        _repeated_base(training, home, reader, say)
    training.advance(until, remaining(reader, training, newest))
    return training


def _repeated_base(training: Training, home: Path, reader: RunReader, say: Callable[[str], None]) -> None:
    """Take a fork to its first step by repeating its parent or, where that cannot be done, by the checkpoint there."""
    first = training.config.first_step
    try:
        branch(training, home, from_start=True)
        return
    except Differs:
        raise
    except InputError as error:
        reason = error
    if restored(training, home, reader, first) != first:
        raise reason
    why = str(reason).partition(". ")[0].rstrip(".")
    say(f"{why}, so the run is repeated from its own checkpoint of step {first}.")
