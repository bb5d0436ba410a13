"""What a recorded run did, and its training at any of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from engine import checkpoint
from engine.catalog import catalog
from engine.config import read, validated
from engine.control import Command, from_json
from engine.knobs import InputError
from engine.store import RunReader
from engine.training import Training


def recorded_commands(reader: RunReader) -> Iterator[tuple[int, Command]]:
    """Yield (step, command) for each applied command that changed training, in order: the log that a replay repeats."""
    for event in reader.events(kinds=("applied",)):
        command = from_json(event.detail["command"])
        if command.affects_training:
            yield event.step, command


def remaining(reader: RunReader, training: Training) -> list[tuple[int, Command]]:
    """Return what of the log the training has not obeyed yet."""
    log = list(recorded_commands(reader))
    if training.obeyed is None:  # a checkpoint of an older version does not say
        training.obeyed = sum(step < training.state.step for step, _ in log)
    return log[training.obeyed :]


def restored(
    training: Training,
    home: Path,
    reader: RunReader,
    until: int | None = None,
    say: Callable[[str], None] = checkpoint.said,
) -> int | None:
    """Take training to the newest checkpoint, at or before step `until`, that holds; return its step.

    One holds if it is intact, fits the run, and is of a past that the records have reached: a run goes on from nothing
    that they do not know. None when there is none, so that training is at its beginning. `say` is told of the others.
    """
    reached, logged = reader.meta("step", 0), len(list(recorded_commands(reader)))
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
    return None


def recreated(home: Path, step: int | None = None, *, from_start: bool = False) -> Training:
    """Return the training of a recorded run at `step` (default: its last checkpoint), steps repeated as needed.

    Raises:
        InputError: the run has not come that far.
    """
    reader = RunReader(home)
    config = validated(read(home), catalog())
    training = Training(config)
    training.home = Path(home)
    newest = (checkpoint.steps(home) or [0])[-1]
    until = newest if step is None else step
    reached = max(newest, reader.meta("step", 0))
    if until > reached:
        raise InputError(f"The run in {home} has come to step {reached}, not to {until}; give a step up to {reached}.")
    if not from_start:
        restored(training, home, reader, until)
    training.advance(until, remaining(reader, training))
    return training
