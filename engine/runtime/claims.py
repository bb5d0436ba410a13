"""Whether a lesson's claim holds: its arms over seeds, the statistic of each, and the difference paired by seed.

Each run is an engine of its own, as many at a time as there are cores; runs that are there already are not repeated, so
a claim that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import stats

from modalscape.engine.catalog import catalog
from modalscape.engine.client.handle import ROOT, RunHandle
from modalscape.engine.client.summary import numbers, summary
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.lesson import Lesson
from modalscape.engine.errors import InputError
from modalscape.engine.registry import named
from modalscape.engine.store.reader import RunReader
from modalscape.engine.store.words import State


def claim(
    name: str,
    seeds: int | None,
    data: Path | None,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    first_seed: int = 0,
    problem: str | None = None,
) -> dict[str, Any]:
    """Run a lesson's arms over seeds; return arms, paired differences of the first to the others, and the verdict.

    There are `seeds` of them from `first_seed` on. A file of `data` or another built-in `problem` takes the place of
    the lesson's own, whose settings of the problem go with it. `settings` go to every arm, over its own. `holds` is
    true or false when the 95 % interval of the difference lies on one side of zero, else None; the lesson's `further`
    numbers stand beside it, compared in the same way, unjudged.

    Raises:
        InputError: no such lesson, both data and a problem, an arm cannot be configured, or a run fails.
    """
    lesson = named("modalscape.engine.lessons", Lesson, name)
    if data is not None and problem:
        raise InputError(f"A claim is tried on one set, not on {Path(data).name} and {problem}; give one of them.")
    count = lesson.seeds if seeds is None else seeds
    jobs = {
        (arm, seed): _config(_moved(values, data, problem), seed, settings)
        for arm, values in lesson.arms.items()
        for seed in range(first_seed, first_seed + count)
    }
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
        done = {key: pool.submit(_run, config, _home(folder / name, key, config), say) for key, config in jobs.items()}
        try:
            scalars = {key: future.result() for key, future in done.items()}
        except BaseException:  # an interrupted claim begins no further runs
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    first = next(arm for arm in lesson.arms if arm != lesson.control)
    found = _compared(lesson.statistic, scalars, first, lesson.pairs)
    difference = found["differences"][lesson.control]
    return {
        "lesson": name,
        "claim": lesson.claim,
        "data": problem if data is None else Path(data).name,
        "settings": dict(settings),
        "seeds": [first_seed, first_seed + count - 1],
        "difference": difference | {"of": first, "to": lesson.control},
        "holds": verdict(difference, lesson.expect),
        "further": {words: _compared(number, scalars, first, lesson.pairs) for words, number in lesson.further.items()},
    } | found


def _compared(
    number: Callable[[Mapping[str, float]], float],
    scalars: Mapping[tuple[str, int], Mapping[str, float]],
    first: str,
    pairs: Mapping[str, str],
) -> dict[str, Any]:
    """Return the interval of a number in each arm, and of the paired differences of the first arm to the others.

    Also of the arms of `pairs`, each minus the one that it is compared with.
    """
    arms: dict[str, list[float]] = {}
    for (arm, _), found in scalars.items():
        arms.setdefault(arm, []).append(number(found))
    return {
        "arms": {arm: interval(values) | {"n": len(values)} for arm, values in arms.items()},
        "differences": {arm: interval(np.subtract(arms[first], v)) for arm, v in arms.items() if arm != first},
        "pairs": {arm: interval(np.subtract(arms[arm], arms[to])) | {"to": to} for arm, to in pairs.items()},
    }


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and its 95 % interval by Student's t; without an interval for fewer than two values.

    >>> interval([1.0, 2.0, 3.0])["mean"]
    2.0
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(words: str, found: Mapping[str, Any]) -> list[str]:
    """Return the lines that show the arms of one number, the first arm's paired differences, and those of pairs."""

    def shown(value: Mapping[str, Any]) -> str:
        bounds = "" if value["low"] is None else f" [{value['low']:.4g}, {value['high']:.4g}]"
        return f"{value['mean']:.4g}{bounds}"

    lines = [f"{words}:"] if words else []
    for arm, value in found["arms"].items():
        against = (
            f"; first arm minus this one {shown(found['differences'][arm])}" if arm in found["differences"] else ""
        )
        lines.append(f"{arm}: {shown(value)}, n = {value['n']}{against}")
    lines += [f"{arm} minus {value['to']}: {shown(value)}" for arm, value in found["pairs"].items()]
    return lines


def verdict(difference: dict[str, Any], expect: str) -> bool | None:
    """Return whether a difference that should be `lower` or `higher` than zero is so; None when it is undecided."""
    low, high = difference["low"], difference["high"]
    if low is None or low <= 0 <= high:
        return None
    return (high < 0) == (expect == "lower")


def _moved(values: dict[str, Any], data: Path | None, problem: str | None) -> dict[str, Any]:
    """Return an arm on other data, or as it is."""
    if data is None and not problem:
        return values
    prefix = f"{values.get('problem')}."
    kept = {key: value for key, value in values.get("settings", {}).items() if not key.startswith(prefix)}
    where = {"problem": problem} if data is None else {"problem": None, "data": str(Path(data).absolute())}
    return values | where | {"settings": kept}


def _config(values: dict[str, Any], seed: int, settings: Mapping[str, Any]) -> RunConfig:
    values = {"device": "cpu"} | values | {"seed": seed}
    values |= {"settings": values.get("settings", {}) | dict(settings)}
    return validated(RunConfig.from_json(values), catalog())


def _home(folder: Path, key: tuple[str, int], config: RunConfig) -> Path:
    """Return the folder of one run; its name holds the configuration, so a changed lesson is run anew."""
    arm, seed = key
    word = "".join(c if c.isalnum() and c.isascii() else "-" for c in arm.lower())
    sign = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{word}-{seed}-{sign}"


def _run(config: RunConfig, home: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Bring a run to its end; return the last value of its scalars, and under `best/` those of its best step."""
    handle = RunHandle(home)
    command = "resume"
    if not (home / "config.json").exists():
        handle.prepare(config)
        command = "run"
    if handle.status().state != State.FINISHED:
        line = [sys.executable, "-m", "modalscape.engine", command, str(home.absolute())]
        ended = subprocess.run(
            line,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        if ended.returncode:
            raise InputError(
                f"The run in {home} ended with exit code {ended.returncode}: {ended.stderr.strip()[-300:]}"
            )
    found = summary(home)
    say(f"{home.name}: {found['state']} at step {found['step']}")
    return numbers(found) | over_the_run(RunReader(home))


def over_the_run(reader: RunReader) -> dict[str, float]:
    """Return numbers of all steps of a run: `update/rms`, the root mean square of the length of its updates."""
    names = [name for name in reader.names()["scalars"] if name.startswith("update_norm/")]
    squares = [np.square(reader.scalars(name, points=None)[1]) for name in names]
    return {"update/rms": float(np.sqrt(np.mean(np.sum(squares, axis=0))))} if squares else {}
