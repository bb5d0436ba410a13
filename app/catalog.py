"""The catalogue of methods, probes, problems and lessons, read from the engine once and kept until its files change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from modalscape.engine.client.launch import stamp
from modalscape.engine.errors import InputError
from modalscape.engine.store.files import replace_text

ROOT = Path(__file__).resolve().parents[1]
LOOK_AGAIN = 5.0
"""Seconds between two looks at whether the engine's files have changed."""
PATIENCE = 120
"""Seconds that the engine may take to list its catalogue; importing torch on a busy machine takes several."""


def load() -> dict[str, Any]:
    """Return the catalogue.

    Raises:
        InputError: the engine could not list it; says the last line it wrote.
    """
    with _one_at_a_time():
        return _read(_stamped(int(time.monotonic() / LOOK_AGAIN)))


@lru_cache(maxsize=1)
def _stamped(period: int) -> str:
    return stamp(ROOT / "engine")


@cache
def _one_at_a_time() -> threading.Lock:
    return threading.Lock()


@cache
def _read(mark: str) -> dict[str, Any]:
    kept = _cache() / f"catalog-{mark}.json"
    try:
        return json.loads(kept.read_text())
    except (OSError, json.JSONDecodeError):
        text = _asked()
    found = json.loads(text)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_text(kept, text)
        for old in kept.parent.glob("catalog-*.json"):
            if old != kept:
                old.unlink(missing_ok=True)
    except OSError:  # a folder that cannot be written costs a few seconds at the next start, nothing else
        return found
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modalscape"


def _asked() -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "modalscape.engine", "catalog", "--json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"The engine did not list its catalogue within {PATIENCE} s; reload the page.") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise InputError(f"The engine could not list its catalogue; it said: {said}")
    return lines[-1]


def named(entries: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return name to entry of one list of the catalogue."""
    return {entry["name"]: entry for entry in entries}


def methods() -> list[dict[str, Any]]:
    """Return the methods; none as long as the catalogue cannot be read."""
    try:
        return load()["methods"]
    except InputError:
        return []


def titles() -> dict[str, str]:
    """Return method name to title."""
    return {entry["name"]: entry["title"] for entry in methods()}
