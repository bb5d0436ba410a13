"""What the commands of the command line do with a home: begin, go on, repeat, measure."""

from __future__ import annotations

import json
import math
import secrets
import shutil
import sqlite3
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine import checkpoint
from engine.catalog import catalog
from engine.config import RunConfig, read, validated
from engine.handle import lock
from engine.knobs import InputError
from engine.past import recreated
from engine.records import Record
from engine.run import Run
from engine.store import RunReader, RunWriter, create
from engine.training import Training, deterministic

DIVERGED = 4
"""Exit code of a run that nobody attends and whose loss is no longer finite."""
UNWRITTEN = 6
"""Exit code of a run that came to its end while the disk refused what it recorded."""


def new_home(folder: Path, config: RunConfig) -> Path:
    """Return the path of a new run: what is trained, the time, and four letters against collisions."""
    stem = Path(config.data).stem if config.data else config.problem or "run"
    stem = "".join(c if c.isalnum() and c.isascii() else "-" for c in stem.lower()).strip("-")[:24] or "run"
    return Path(folder) / f"{stem}-{time.strftime('%y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def run_new(config: RunConfig, home: Path, *, attended: bool = False) -> int:
    """Train a new run in `home`; return the exit code.

    Everything is checked and built before the folder is made, so bad input leaves nothing behind.

    Raises:
        InputError: the configuration or data cannot be used, or `home` holds a run or cannot be written.
        Busy: another engine trains there.
    """
    deterministic()
    config = validated(config, catalog())
    if (home / "config.json").exists():
        with lock(home):
            raise InputError(f"{home} already holds a run; resume it with `resume {home}` or give another --home.")
    training = Training(config)
    fresh = not home.exists()
    with ExitStack() as held:
        try:
            home.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(home))
            create(home)
            _write(home / "config.json", config.to_json())
        except (OSError, sqlite3.Error) as error:
            if fresh:
                shutil.rmtree(home, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"The home {home} cannot be written ({reason}); give another --home.") from None
        return _go(Run(training, home, attended=attended), begin=True)


def run_prepared(home: Path, *, attended: bool = False) -> int:
    """Train the run whose configuration lies in `home`; return the exit code.

    Raises:
        InputError: the configuration or data cannot be used (also recorded in the run), or the run has begun before.
        Busy: another engine trains there.
    """
    deterministic()
    config = read(home)
    with lock(home):
        create(home)
        if any(event.kind == "started" for event in RunReader(home).events()):
            raise InputError(f"{home} already holds a run; resume it with `resume {home}`.")
        training = _recorded(home, lambda: Training(validated(config, catalog())))
        return _go(Run(training, home, attended=attended), begin=True)


def resume(home: Path, steps: int | None = None, *, attended: bool = False) -> int:
    """Go on with the run in `home`, to a new length if `steps` is given; return the exit code.

    Raises:
        InputError: there is no run, its data is gone, or it has already come further than `steps`.
        Busy: another engine trains there.
    """
    deterministic()
    config = read(home)
    with lock(home):
        reader = RunReader(home)
        begun = any(event.kind == "started" for event in reader.events())
        length = steps if steps is not None else reader.meta("steps", config.steps)
        reached = reader.meta("step", 0)
        if length < reached or length < 1:
            raise InputError(
                f"The run in {home} has come to step {reached}; give --steps of at least that, not {length}."
            )
        training = _recorded(home, lambda: Training(validated(config, catalog())))
        run = Run(training, home, attended=attended)
        run.steps = length
        if begun:
            run.resume_recorded()
        return _go(run, begin=not begun)


def replay(home: Path) -> dict[str, Any]:
    """Repeat a run from its first step; return `step`, `identical`, and both hashes.

    Raises:
        InputError: the run has no checkpoint to compare with.
    """
    deterministic()
    recorded = RunReader(home).meta("theta", None) if read(home) else None
    if recorded is None:
        raise InputError(f"{home} has no checkpoint to compare a replay with; let it train first.")
    training = recreated(home, recorded["step"], from_start=True)
    found = checkpoint.sha256(training.state.theta)
    return {
        "home": str(home),
        "step": recorded["step"],
        "identical": found == recorded["sha256"],
        "theta": recorded["sha256"],
        "replayed": found,
    }


def probe(home: Path, name: str, step: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure a run at `step`; return the records as JSON values, stored in the run too when no engine holds it.

    Raises:
        InputError: no such run, step, probe or knob, or the measurement cannot be made.
    """
    deterministic()
    read(home)
    training = recreated(home, step)
    prober = training.probe(name, settings)
    started = time.perf_counter()
    made = (record for record in prober.measure(training.snapshot()) if record is not None)
    records = list({record.name: record for record in made}.values())  # of a picture that grows finer, the last
    seconds = time.perf_counter() - started
    at = training.state.step
    stored = _store(home, at, records)
    listed = [_described(record) for record in records]
    return {"home": str(home), "probe": name, "step": at, "seconds": seconds, "stored": stored, "records": listed}


def _go(run: Run, *, begin: bool) -> int:
    """Train with a progress bar on stderr; return the exit code."""
    if begin:
        run.begin()
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
        said = RunReader(run.home).newest("diverged")
        print(said.detail["error"] if said is not None else "The loss diverged.", file=sys.stderr)
        return DIVERGED
    if run.keeping.unwritten:
        print(run.keeping.unwritten, file=sys.stderr)
        return UNWRITTEN
    return 0


def _recorded(home: Path, build) -> Training:
    """Return what `build` makes; an input error is written into the run before it goes on to the caller."""
    try:
        return build()
    except InputError as error:
        writer = RunWriter(home)
        writer.event(0, "failed", {"error": str(error)})
        writer.beat("failed", RunReader(home).meta("step", 0), {})
        writer.flush()
        writer.close()
        raise


def _store(home: Path, step: int, records: list[Record]) -> bool:
    try:
        with lock(home):
            writer = RunWriter(home)
            for record in records:
                writer.record(step, record)
            writer.flush()
            writer.close()
            return True
    except InputError:  # an engine holds the run and is its only writer; the measurement is printed all the same
        return False


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


def _write(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1))
    partial.replace(path)
