"""A million tiny steps: does the memory of the engine and of the server that shows it stay where it is?"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from modalscape.engine.client.handle import RunHandle
from modalscape.engine.config import RunConfig
from tests.bench.viewers import CHARTS
from tests.servers import dashboard

STEPS, LOOKS = 1_000_000, 10
TINY = {"planted.rows": 200, "batch": 8, "width": 4, "hidden": 4, "depth": 0}
MOST = 3600
"""Seconds after which the run is given up."""


def report() -> None:
    """Print resident memory of engine and server, size of the folder and latency of a tick, ten times over the run."""
    with tempfile.TemporaryDirectory() as name, dashboard(Path(name)) as (address, server):
        home = Path(name) / "runs" / "bench-run"
        handle = RunHandle.start(RunConfig("planted", steps=STEPS, device="cpu", settings=TINY), home)
        deadline, next_look = time.monotonic() + MOST, STEPS // LOOKS
        print(f"\n{STEPS:,} steps of a tiny run, one viewer of four charts a second")
        print(f"  {'step':>9} {'steps/s':>8} {'engine MiB':>10} {'server MiB':>10} {'folder MiB':>10} {'tick ms':>8}")
        with httpx.Client(base_url=address, timeout=60) as client:
            asked, has, ticks = {"run": home.name, "dark": "0"}, ["" for _ in CHARTS], []
            while time.monotonic() < deadline:
                status = handle.status()
                if status.step:
                    began = time.perf_counter()
                    wanted = [[chart, args, tag] for (chart, args, _), tag in zip(CHARTS, has, strict=True)]
                    answer = client.get("/modalscape/pulse", params=asked | {"charts": json.dumps(wanted)})
                    ticks.append(time.perf_counter() - began)
                    drawn = answer.raise_for_status().json()["charts"]
                    has = [new["tag"] if new else old for new, old in zip(drawn, has, strict=True)]
                if status.step >= next_look or status.state in ("finished", "failed", "crashed"):
                    engine = _resident(int((home / "lock").read_text())) if status.alive else float("nan")
                    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / 2**20
                    print(
                        f"  {status.step:9,} {status.rate or 0:8.0f} {engine:10.1f} {_resident(server.pid):10.1f} "
                        f"{size:10.1f} {1e3 * max(ticks[-60:], default=0):8.1f}",
                        flush=True,
                    )
                    next_look += STEPS // LOOKS
                if not status.alive and status.step:
                    break
                time.sleep(1.0)


def _resident(process: int) -> float:
    return psutil.Process(process).memory_info().rss / 2**20


if __name__ == "__main__":
    report()
