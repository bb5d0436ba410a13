"""What the commands of the command line do with a home: begin, go on, repeat, measure."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modalscape.engine.catalog import catalog
from modalscape.engine.client.forks import planned
from modalscape.engine.client.handle import mailbox
from modalscape.engine.client.observers import locked
from modalscape.engine.config import MOST_STEPS, RunConfig, read, validated
from modalscape.engine.core.knobs import checked
from modalscape.engine.core.records import Record
from modalscape.engine.errors import InputError
from modalscape.engine.runtime import checkpoint
from modalscape.engine.runtime.fork import first_training, made, vacant
from modalscape.engine.runtime.loop import Run
from modalscape.engine.runtime.observer import Observer
from modalscape.engine.runtime.replay import Differs, recreated
from modalscape.engine.runtime.session import Training, deterministic
from modalscape.engine.store.files import brief
from modalscape.engine.store.home import cleared, founded, lock
from modalscape.engine.store.ids import fork_id
from modalscape.engine.store.words import EventKind, State
from modalscape.engine.store.writer import RunReader, RunWriter, create

DIVERGED = 4
"""Exit code of a run that nobody attends and whose loss is no longer finite."""
UNWRITTEN = 6
"""Exit code of a run that came to its end while the disk refused what it recorded."""


def run_new(config: RunConfig, home: Path, *, attended: bool = False) -> int:
    """Train a new run in `home`; return the exit code.

    Everything is checked and built before the folder is made, so bad input leaves nothing behind.

    Raises:
        InputError: the configuration or data cannot be used, or `home` holds a run or cannot be written.
        Busy: another engine trains there.
    """
    deterministic()
    config = validated(config, catalog())
    if os.path.lexists(home / "config.json"):
        with lock(home):
            raise InputError(f"{home} already holds a run; resume it with `resume {home}` or give another --home.")
    training, fresh = Training(config), not os.path.lexists(home)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, UnicodeError) as error:
        raise InputError(f"The home {home} cannot be written ({brief(error)}); give another --home.") from None
    with lock(home):
        try:
            founded(home, config.to_json())  # reading the data took a while: another may have been faster
        except InputError:
            if fresh:
                cleared(home)
            raise
        return _go(_opened(training, home, attended), begin=True)


def run_prepared(home: Path, *, attended: bool = False) -> int:
    """Train the run whose configuration lies in `home`; return the exit code.

    Raises:
        InputError: the configuration or data cannot be used (also recorded in the run), or the run has begun before.
        Busy: another engine trains there.
    """
    deterministic()
    config = read(home)
    with lock(home):
        try:
            create(home)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"The home {home} cannot be written ({brief(error)}); give another.") from None
        if _sound(home).newest(EventKind.STARTED) is not None:
            raise InputError(f"{home} already holds a run; resume it with `resume {home}`.")
        training = _recorded(home, lambda: first_training(validated(config, catalog()), home))
        return _go(_opened(training, home, attended), begin=True)


def fork(home: Path, step: int, new: Path | None, **changes: Any) -> Path:
    """Make a new run that goes on from `step` of the run in `home`, with `changes` as for
    `modalscape.engine.client.forks.planned`.

    Return its folder, `new` or one beside the parent.

    Raises:
        InputError: there is no such run or step, a change is impossible, or `new` cannot be made.
    """
    deterministic()
    read(home)
    parent = Path(home).resolve()
    new = Path(new or parent.with_name(fork_id(parent.name, max(step, 0)))).absolute()
    vacant(new)
    made(planned(parent, step, catalog(), beside=new.parent, **changes), new)
    return new


def resume(home: Path, steps: int | None = None, *, attended: bool = False, paused: bool = False) -> int:
    """Go on with the run in `home`, to a new length if `steps` is given; return the exit code.

    One that begins now rests at its first step where `paused` says so.

    Raises:
        InputError: there is no run, its data is gone, or it has already come further than `steps`.
        Busy: another engine trains there.
    """
    deterministic()
    config = read(home)
    with lock(home):
        reader = _sound(home)
        begun = reader.newest(EventKind.STARTED) is not None
        length = steps if steps is not None else reader.meta("steps", config.steps)
        checked({"type": "int", "high": MOST_STEPS}, length, "--steps")
        reached = max(reader.meta("step", 0), config.first_step)
        if length < reached or length < 1:
            raise InputError(
                f"The run in {home} has come to step {reached}; give --steps of at least that, not {length}."
            )
        settled = validated(config, catalog())
        training = _recorded(home, lambda: Training(settled) if begun else first_training(settled, home))
        run = _opened(training, home, attended)
        run.steps = length
        if begun:
            run.resume_recorded()
        return _go(run, begin=not begun, paused=paused and not begun)


def replay(home: Path) -> dict[str, Any]:
    """Repeat a run from its first step; return `step`, `identical`, and both hashes.

    Raises:
        InputError: the run has no checkpoint to compare with.
    """
    deterministic()
    read(home)
    recorded = RunReader(home).meta("theta", None)
    if recorded is None:
        raise InputError(f"{home} has no checkpoint to compare a replay with; let it train first.")
    step, wanted = recorded["step"], recorded["sha256"]
    try:
        found = checkpoint.sha256(recreated(home, step, from_start=True).state.theta)
    except Differs as error:  # where a fork leaves its parent
        checkpoint.said(str(error))
        step, wanted, found = error.step, error.wanted, error.found
    return {"home": str(home), "step": step, "identical": found == wanted, "theta": wanted, "replayed": found}


def probe(home: Path, name: str, step: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure a run at `step`; return the records as JSON values, stored in the run too when no engine holds it.

    Raises:
        InputError: no such run, step, probe or knob, or the measurement cannot be made.
    """
    deterministic()
    read(home)
    if step is not None and step < 0:
        raise InputError(f"A run has no step {step}; give --step of at least 0.")
    training = recreated(home, step)
    prober = training.probe(name, settings)
    started = time.perf_counter()
    made = prober.measure(training.snapshot())
    records = list({record.name: record for record in made}.values())  # of a picture that grows finer, the last
    seconds = time.perf_counter() - started
    at = training.state.step
    stored = _store(home, at, records)
    listed = [_described(record) for record in records]
    return {"home": str(home), "probe": name, "step": at, "seconds": seconds, "stored": stored, "records": listed}


def observe(home: Path, number: int = 1) -> None:
    """Measure the run in `home` as its observer `number` until nobody needs it any more.

    Raises:
        InputError: there is no run, or it cannot be measured.
        Busy: another process is that observer.
        Gone: the folder was deleted meanwhile.
    """
    read(home)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with lock(home, locked(number), "observed by another process"):
        try:
            Observer(home, number).go()
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{home} cannot be measured now ({brief(error)}); mend that, and it goes on.") from None


def _go(run: Run, *, begin: bool, paused: bool = False) -> int:
    """Train with a progress bar on stderr; return the exit code."""
    if begin:
        run.begin()
    if paused:
        run.pause()
    bar = tqdm(
        total=run.steps,
        initial=run.training.state.step,
        unit="step",
        file=sys.stderr,
        mininterval=0.5,
        dynamic_ncols=True,
    )
    with bar:
        run.go(lambda step: bar.update(step - bar.n))
    if run.diverged:
        last = RunReader(run.home, inherited=False).newest(EventKind.DIVERGED)
        words = last.detail.get("error") if last is not None else None
        print(words or "The loss diverged.", file=sys.stderr)
        return DIVERGED
    if run.keeping.unwritten:
        print(run.keeping.unwritten, file=sys.stderr)
        return UNWRITTEN
    return 0


def _sound(home: Path) -> RunReader:
    """Return the reader of a run on which an engine may go on.

    Raises:
        InputError: one of its databases is damaged, or of a version without all that is needed.
    """
    reader = RunReader(home, inherited=False)
    reader.check()
    with mailbox(home) as found:
        found.unread()
    return reader


def _opened(training: Training, home: Path, attended: bool) -> Run:
    """Return the run in `home`, ready to train.

    Raises:
        InputError: its databases cannot be written.
    """
    try:
        return Run(training, home, attended=attended)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"The home {home} cannot be written ({brief(error)}); see its permissions.") from None


def _recorded(home: Path, build) -> Training:
    """Return what `build` makes; an input error is written into the run before it goes on to the caller."""
    try:
        return build()
    except InputError as error:
        writer = RunWriter(home)
        writer.event(0, EventKind.FAILED, {"error": str(error)})
        writer.beat(State.FAILED, RunReader(home).meta("step", 0), {})
        writer.flush()
        writer.close()
        raise


def _store(home: Path, step: int, records: list[Record]) -> bool:
    try:
        with lock(home), closing(RunWriter(home)) as writer:
            for record in records:
                writer.record(step, record)
            return writer.flush()
    except (InputError, OSError, sqlite3.Error):
        return False  # an engine holds the run, or nobody can write there; the measurement is printed all the same


def _described(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {"name": record.name, "kind": record.kind, "n": record.n, "mode": record.mode}
    for key in record.arrays:
        value = getattr(record, key)
        if value is not None:
            found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
