"""The parameters that a fixed set of runs ends with, as hashes: every method on every problem, ten seeds.

For changes that must not change a number. `python -m tests.thetas > FILE` before, `python -m tests.thetas FILE` after:
it ends with 1 and the first differences when a run ends elsewhere. Hashes hold for one machine and one torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from modalscape.engine.config import RunConfig
from modalscape.engine.core.method import Method
from modalscape.engine.data.dataset import Source
from modalscape.engine.errors import InputError
from modalscape.engine.registry import discover
from modalscape.engine.runtime.session import Training

STEPS, SEEDS = 30, 10
EARLY = {
    "modalimmune.warmup": 2,
    "modalimmune.ramp": 2,
    "modalimmune.meta_every": 10,
    "bogc.warmup": 0.0,
    "gani.warmup": 3,
    "batch": 32,
    "threads": 1,
}
"""So that each method acts within the steps."""
SETS = [("gani", "fanoise", "inforeg", "bogc", "modalimmune"), ("sam", "gani", "moddrop")]


def stacks() -> list[tuple[str, ...]]:
    """Return the sets of methods that are tried: none, each alone, and some together."""
    return [(), *((name,) for name in discover("modalscape.engine.methods", Method)), *SETS]


def theta(problem: str, methods: tuple[str, ...], seed: int) -> str:
    """Return the hash of a run's last parameters, or the words in which it is refused."""
    try:
        run = Training(RunConfig(problem, methods=methods, steps=STEPS, seed=seed, device="cpu", settings=EARLY))
        for _ in range(STEPS):
            run.step()
    except InputError as error:
        return str(error)
    return hashlib.sha256(run.state.theta.numpy().tobytes()).hexdigest()[:16]


def thetas() -> dict[str, list[str]]:
    """Return problem and methods to the hashes, one a seed."""
    found = {}
    for problem in discover("modalscape.engine.problems", Source):
        for methods in stacks():
            key = f"{problem} {'+'.join(methods) or 'plain'}"
            found[key] = [theta(problem, methods, seed) for seed in range(SEEDS)]
            print(key, *found[key][:1], file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    now = thetas()
    if len(sys.argv) < 2:
        print(json.dumps(now, indent=1))
    else:
        before = json.loads(Path(sys.argv[1]).read_text())
        other = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
        print(f"{len(now)} sets of {SEEDS} runs; {len(other)} differ: {', '.join(sorted(other)[:5]) or 'none'}")
        sys.exit(bool(other))
