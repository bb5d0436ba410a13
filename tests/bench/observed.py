"""What an observer costs the training beside it, and how fresh it keeps what it measures; both in one run.

Arms alternate: a run with no observer, and one whose observer measures every usual probe without a pause. `DATA` is a
data file, by default the audio-visual digits of the real sets where they are, else the built-in digits.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from modalscape.engine.catalog import catalog
from modalscape.engine.client.observers import dismissed, locked
from modalscape.engine.store.home import held_since
from modalscape.engine.store.writer import RunReader

ROOT = Path(__file__).resolve().parent.parent.parent
USUAL = [entry["name"] for entry in catalog()["probes"] if entry["usual"] and not entry["needs"]]
LIGHT = [entry["name"] for entry in catalog()["probes"] if entry["name"] in USUAL and entry["cost"] != "high"]
STEPS = 10**6


def what() -> list[str]:
    """Return the words that say what is trained."""
    folder = Path(os.environ.get("MODALSCAPE_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "avdigits.npz"
    return ["--data", str(path)] if path.exists() else ["--problem", "digits_captions"]


def begun(home: Path, probes: list[str], observers: int, *more: str) -> subprocess.Popen:
    """Start a run that observers measure."""
    words = [*what(), f"--steps={STEPS}", "--set=measure=live", f"--set=observers={observers}", f"--home={home}"]
    words += [f"--probe={name}" for name in probes] + [f"--set={pair}" for pair in more]
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "run", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def ended(process: subprocess.Popen, home: Path) -> None:
    """End a run and what observes it."""
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    dismissed(home)


def ready(home: Path) -> RunReader:
    """Wait until the run has taken its first steps; return its reader."""
    while True:
        if (home / "run.db").exists() and RunReader(home).meta("step", 0) > 0:
            return RunReader(home)
        time.sleep(0.02)


def rate(probes: list[str], observers: int, seconds: float, *more: str) -> float:
    """Return the steps a second of a run, from when its observer is at work (or would be)."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "run"
        process = begun(home, probes, observers, *more)
        reader = ready(home)
        while observers and held_since(home, locked(1)) is None:
            time.sleep(0.05)
        time.sleep(6.0)
        step, at = reader.meta("step"), reader.meta("beat")
        time.sleep(seconds)
        found = (reader.meta("step") - step) / (reader.meta("beat") - at)
        ended(process, home)
        return found


def freshness(probes: list[str], seconds: float, *more: str) -> dict[str, tuple[float, float, int]]:
    """Return probe to the seconds to its first figure, the longest gap between two, and how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "run"
        process = begun(home, probes, 1, *more)
        reader, first, last, gaps, counts, stamps = ready(home), {}, {}, {}, {}, {}
        start = time.monotonic()
        while (now := time.monotonic()) < start + seconds:
            for probe in probes:
                names = [name for name in reader.names()["records"] if name.startswith(f"{probe}/")]
                stamp = [reader.stamp(name) for name in names]
                if names and stamp != stamps.get(probe):
                    newest = max(mark[1] for mark in stamp)
                    fresh = probe not in first or newest > last[probe][1]
                    stamps[probe] = stamp
                    if not fresh:
                        continue
                    first.setdefault(probe, now - start)
                    if probe in last:
                        gaps[probe] = max(gaps.get(probe, 0.0), now - last[probe][0])
                    last[probe] = now, newest
                    counts[probe] = counts.get(probe, 0) + 1
            time.sleep(0.1)
        for probe, (at, _) in last.items():
            gaps[probe] = max(gaps.get(probe, 0.0), now - at)
        ended(process, home)
    return {p: (first.get(p, float("inf")), gaps.get(p, float("inf")), counts.get(p, 0)) for p in probes}


def spread(values: list[float]) -> str:
    """Return median and range of numbers."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def report(repeats: int = 5, seconds: float = 20.0, long: float = 200.0, *more: str) -> None:
    """Print the table."""
    words = " ".join((*what(), *more))
    print(f"\n{words}: {repeats} alternating pairs of {seconds:g} s, one run of {long:g} s")
    pairs = [(rate([], 0, seconds, *more), rate(USUAL, 1, seconds, *more)) for _ in range(repeats)]
    print(f"steps/s with no observer     {spread([a for a, _ in pairs])}")
    print(f"steps/s with an observer     {spread([b for _, b in pairs])}")
    print(f"with over without            {spread([b / a for a, b in pairs])}")
    for title, probes, length in (("all", USUAL, long), ("hessian alone", ["hessian"], long / 3)):
        print(f"{title}: seconds to the first figure, longest gap, figures")
        for probe, (first, gap, count) in freshness(probes, length, *more).items():
            print(f"  {probe:16} {first:6.1f} {gap:6.1f} {count:4}{'  light' if probe in LIGHT else ''}")


if __name__ == "__main__":
    numbers = [float(word) for word in sys.argv[1:4]]
    report(int(numbers[0]) if numbers else 5, *numbers[1:], *sys.argv[4:])
