"""What a recorded run did, and its training at any of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine import checkpoint
from engine.catalog import catalog
from engine.config import read, validated
from engine.control import Command, from_json
from engine.knobs import InputError
from engine.store import RunReader
from engine.training import Training


def recorded_commands(reader: RunReader, since: int = 0) -> Iterator[tuple[int, Command]]:
    """Yield (step, command) for each applied command that changed training at or after step `since`."""
    for event in reader.events():
        if event.kind == "applied" and event.step >= since:
            command = from_json(event.detail["command"])
            if command.affects_training:
                yield event.step, command


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
    content = None if from_start else checkpoint.load(home, until, training.device)
    if content is not None:
        training.restore(content)
    training.advance(until, recorded_commands(reader, since=training.state.step))
    return training
