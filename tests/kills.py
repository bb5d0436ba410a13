"""Real engines that are killed with signal 9 at a chosen moment, and what must hold after the run was resumed.

Engines are forked from a process that has torch loaded already, so a case takes about a second; each is a process of
its own all the same, in a session of its own, and nothing of it survives the signal.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from pathlib import Path

from modalscape.engine.actions import replay
from modalscape.engine.cli import entry
from modalscape.engine.runtime.session import Training
from modalscape.engine.store.commands import Note, Toggle, Tune, post
from modalscape.engine.store.writer import RunReader
from tests.homes import SMALL, small

STEPS, EVERY, EVALUATE, PROBE = 240, 20, 30, 45
SETTINGS = SMALL | {"checkpoint": EVERY, "evaluate": EVALUATE, "report": 10}
WORDS = ["--problem=planted", f"--steps={STEPS}", "--device=cpu", f"--probe=imbalance:{PROBE}"]
WORDS += [f"--set={key}={value}" for key, value in SETTINGS.items()]
ORDERS = [
    Toggle("gani", True),
    Tune("gani", "rho", 0.5),
    Note("on the way"),
    Toggle("ogm_ge", True),
    Tune("optimizer", "lr", 0.004),
    Toggle("gani", False),
    Toggle("sam", True),
]

if __name__ != "__mp_main__" and Path(sys.argv[0]).name == "-c":
    Training(small()).step()  # in the process that engines are forked from: whatever is slow at first is done once


def _obey(words: list[str], log: str) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(entry(words))


def forked(*words: object, log: Path) -> multiprocessing.Process:
    """Start `python -m engine …` as a fork of a warm process; what it prints goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.kills"])
    process = context.Process(target=_obey, args=([str(word) for word in words], str(log)))
    process.start()
    return process


def files(home: Path) -> set[str]:
    """Return the names of the checkpoints that a run has now."""
    try:
        return {name for name in os.listdir(home / "checkpoints") if re.fullmatch(r"\d{8}\.pt", name)}
    except FileNotFoundError:
        return set()


def reached(home: Path) -> int:
    """Return the step that the records have come to."""
    return RunReader(home).meta("step", 0) if (home / "run.db").exists() else 0


def seen(home: Path) -> tuple[dict, list]:
    """Return every number, by name and step, and every event that a reader sees."""
    reader = RunReader(home)
    numbers = {}
    for name in reader.names()["scalars"]:
        steps, values = reader.scalars(name, points=None)
        assert len(set(steps.tolist())) == len(steps), f"{name} has a step twice"
        numbers[name] = dict(zip(steps.tolist(), values.tolist(), strict=True))
    return numbers, [(event.id, event.step, event.kind, event.detail) for event in reader.events()]


@contextmanager
def locked(home: Path):
    """Hold run.db as another program may, so that the engine cannot write."""
    with closing(sqlite3.connect(home / "run.db", timeout=5.0, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


def killed(process, home: Path, rng: random.Random, *, at_file: bool, lock: bool) -> None:
    """Send commands at random moments and kill the engine at one more, or as soon as a further checkpoint is there."""
    wait(process, lambda: reached(home) > 0)
    begun, orders = reached(home), random.Random(rng.random()).sample(ORDERS, 3)
    for order in orders:
        if rng.random() < 0.6:
            post(home, order)
    at = rng.randrange(begun, max(STEPS - 60, begun + 1))
    wait(process, lambda: reached(home) >= at)
    if lock:
        with locked(home):
            before = files(home)
            post(home, rng.choice(ORDERS))
            until = time.monotonic() + (1.0 if at_file else rng.uniform(0.0, 0.7))
            while process.is_alive() and time.monotonic() < until and not (at_file and files(home) - before):
                time.sleep(0)
            process.kill()
            process.join()
        return
    if at_file:
        before = files(home)
        while process.is_alive() and not files(home) - before:
            time.sleep(0)
    process.kill()
    process.join()


def wait(process, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until the condition holds or the engine is over."""
    until = time.monotonic() + seconds
    while process.is_alive() and not condition():
        assert time.monotonic() < until, "the engine made no progress"
        time.sleep(0.002)


def ended(process, log: Path, seconds: float = 120.0) -> None:
    """Wait for an engine to end of its own will."""
    process.join(seconds)
    assert process.exitcode == 0, log.read_text()[-2000:]


def survives(home: Path, seed: int) -> None:
    """Train, kill, resume, and check that nothing recorded is lost or doubled and that a replay is identical."""
    rng, log = random.Random(seed), home.with_suffix(".log")
    at_file, lock = seed % 2 == 0, seed % 3 == 0
    process = forked("run", "--home", home, *WORDS, log=log)
    killed(process, home, rng, at_file=at_file, lock=lock)
    before, alive = seen(home), reached(home) + EVERY
    if seed % 5 == 0:  # killed again while it repeats
        process = forked("resume", home, log=log)
        wait(process, lambda: any(kind == "resumed" for *_, kind, _ in seen(home)[1]))
        killed(process, home, rng, at_file=rng.random() < 0.5, lock=False)
        between = seen(home)
        checked(before, between)
        before, alive = between, reached(home) + EVERY
    ended(forked("resume", home, log=log), log)
    after = seen(home)
    checked(before, after)
    complete(home, *after, alive)
    assert replay(home)["identical"], "the replay differs"


def checked(before: tuple[dict, list], after: tuple[dict, list]) -> None:
    """Check that what was seen is still there, with the same values and in the same order."""
    for name, steps in before[0].items():
        for step, value in steps.items():
            now = after[0][name].get(step)
            same = now == value or (now is not None and math.isnan(now) and math.isnan(value))
            assert same, f"{name} at step {step} was {value} and is {now}"
    assert after[1][: len(before[1])] == before[1], "an event was lost or changed"


def complete(home: Path, numbers: dict, events: list, alive: int) -> None:
    """Check that a finished run has each step, evaluation, measurement and event exactly once."""
    for name in ("loss/fused", "accuracy/train", "lr", "grad_norm/shared"):
        assert sorted(numbers[name]) == list(range(STEPS)), f"{name} lacks steps"
    assert sorted(numbers["accuracy/val"]) == sorted({*range(0, STEPS + 1, EVALUATE), STEPS}), "evaluations"
    due = sorted({*range(PROBE, STEPS + 1, PROBE), STEPS})
    probes = [(detail["name"], step) for _, step, kind, detail in events if kind == "probe"]
    measured = sorted(step for _, step in probes)
    assert len(set(measured)) == len(measured) and set(measured) <= set(due), f"measured at {measured}"
    # One that was under way when the engine died, of a step before the checkpoint, is not there; all others are.
    assert all(step < alive and alive - step <= EVERY + PROBE for step in set(due) - set(measured)), f"only {measured}"
    obeyed = [detail["id"] for *_, kind, detail in events if kind in ("applied", "refused")]
    with closing(sqlite3.connect(home / "control.db")) as db:
        sent = [number for (number,) in db.execute("SELECT id FROM command ORDER BY id")]
    assert obeyed == sent, f"obeyed {obeyed} of {sent}"
    told = [detail["file"] for *_, kind, detail in events if kind == "checkpoint"]
    assert len(set(told)) == len(told), "a checkpoint was told twice"
    assert files(home) <= set(told), f"{files(home) - set(told)} were never told"
    assert f"{STEPS:08d}.pt" in told
    kinds = [kind for *_, kind, _ in events]
    assert (
        kinds.count("started") == 1 and kinds.count("finished") == 1 and kinds.count("note") <= kinds.count("applied")
    )
