"""Thirty viewers of one live run: are all ticks served, how fast, and at what cost."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from modalscape.engine.client.handle import RunHandle
from modalscape.engine.config import RunConfig
from modalscape.engine.store.commands import Stop
from tests.servers import dashboard

VIEWERS, SECONDS = 30, 20
CHARTS = [
    ["series", {"names": ["loss/*"]}, ""],
    ["series", {"names": ["accuracy/*", "error/*", "recall@*/val"]}, ""],
    ["series", {"names": ["grad_norm/*"]}, ""],
    ["series", {"names": ["update_norm/*"]}, ""],
]


async def viewer(
    client: httpx.AsyncClient, run: str, place: int, times: list[float], failed: list[str], sizes: list[int]
) -> None:
    """Poll as the Live page does, once a second, keeping each chart's version."""
    has = ["" for _ in CHARTS]
    await asyncio.sleep(place / VIEWERS)
    start = time.perf_counter()
    for tick in range(SECONDS):
        await asyncio.sleep(max(0.0, start + tick - time.perf_counter()))
        asked = [[name, args, tag] for (name, args, _), tag in zip(CHARTS, has, strict=True)]
        began = time.perf_counter()
        try:
            answer = await client.get(
                "/modalscape/pulse", params={"run": run, "dark": "0", "charts": json.dumps(asked)}
            )
            answer.raise_for_status()
        except httpx.HTTPError as error:
            failed.append(str(error))
            continue
        times.append(time.perf_counter() - began)
        sizes.append(len(answer.content))
        for i, drawn in enumerate(answer.json()["charts"]):
            has[i] = drawn["tag"] if drawn else has[i]


def report() -> None:
    """Print ticks served, latency, and the server's share of a core and memory."""
    with tempfile.TemporaryDirectory() as name, dashboard(Path(name)) as (address, server):
        home = Path(name) / "runs" / "bench-run"
        handle = RunHandle.start(RunConfig(problem="digits_captions", steps=10**7, device="cpu"), home)
        deadline = time.monotonic() + 90
        while handle.status().step < 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        process = psutil.Process(server.pid)
        times, failed, sizes = [], [], []

        async def everyone() -> None:
            async with httpx.AsyncClient(base_url=address, limits=httpx.Limits(max_connections=None)) as client:
                await asyncio.gather(*(viewer(client, home.name, i, times, failed, sizes) for i in range(VIEWERS)))

        before, began = process.cpu_times(), time.perf_counter()
        asyncio.run(everyone())
        spent, after = time.perf_counter() - began, process.cpu_times()
        share = (after.user + after.system - before.user - before.system) / spent
        handle.send(Stop())
        while handle.status().alive and time.monotonic() < deadline + 60:
            time.sleep(0.1)
        order = sorted(times)
        print(f"\n{VIEWERS} viewers of one live run, 1 Hz for {SECONDS} s, four charts a tick")
        print(
            f"  ticks served   {len(times)} of {VIEWERS * SECONDS}"
            + (f", first failure: {failed[0]}" if failed else "")
        )
        middle, late = statistics.median(order) * 1e3, order[int(0.95 * len(order))] * 1e3
        print(f"  latency        p50 {middle:.1f} ms, p95 {late:.1f} ms (aim 100)")
        print(
            f"  server         {share:.1%} of a core (aim 10 %), {process.memory_info().rss / 2**20:.0f} MiB resident"
        )
        print(f"  traffic        {statistics.mean(sizes) / 1e3:.1f} kB a tick before compression")


if __name__ == "__main__":
    report()
