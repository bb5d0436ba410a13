"""From the click that starts a run to a chart that moves, in Chromium: `python -m tests.bench.start [TIMES]`.

A dashboard of its own per arm, warm before the first click; each start opens a fresh browser. Times are milliseconds
after the click, taken in the page: `page` is the other page's head, `first` a chart with two points or more, `moves`
the first time that such a chart shows more than it did.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests import chromium
from tests.servers import dashboard
from tests.story.pages import end, new_page

ARMS = {"Start, to Live": "", "lesson Window, to Methods": "Window", "lesson Full batch, to Curvature": "Full batch"}
"""What is clicked; the first is the button of the form."""
WITHIN, PATIENCE = 60_000, 5_000
"""Milliseconds that a start may take, and that its first chart may stand still: a short run is over by then."""
SETTLED = 8.0
"""Seconds that a new server has before the first click."""
WATCH = """() => {
  const seen = new Map(), marks = window.marks = {};
  const mark = (name) => { marks[name] ??= performance.now() - window.clicked; };
  const title = document.querySelector("h1")?.textContent;
  document.addEventListener("click", () => { window.clicked ??= performance.now(); look(); }, { capture: true });
  function look() {
    const head = document.querySelector("h1")?.textContent;
    if (head && head !== title) mark("page");
    if (document.querySelector(".ms-plot")) mark("mounted");
    if (window.Plotly) mark("plotly");
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      const size = Math.max(0, ...(plot._fullData || []).map((trace) => (trace.x || []).length));
      const last = Math.max(0, ...(plot._fullData || []).map((trace) => trace.x?.[trace.x.length - 1] || 0));
      if (size > 0) mark("drawn");
      if (size < 2) continue;
      mark("first");
      if (seen.has(plot) && seen.get(plot) !== last) mark("moves");
      seen.set(plot, last);
    }
    requestAnimationFrame(look);
  }
}"""


def clicked(page: Page, lesson: str) -> dict[str, float]:
    """Click and return the milliseconds to each mark."""
    button = page.get_by_role("button", name=lesson or "Start", exact=not lesson).first
    button.wait_for()
    page.wait_for_timeout(1500)
    page.evaluate(WATCH)
    button.click()
    over = f"(m) => m.moves || performance.now() - window.clicked > (m.first ? m.first + {PATIENCE} : {WITHIN})"
    page.wait_for_function(f"() => ({over})(window.marks)", timeout=2 * WITHIN)
    return page.evaluate("() => window.marks")


def started(browser: Browser, address: str, runs: Path, lesson: str) -> dict[str, float]:
    """Start a run in a new browser and end it again; return the marks, with `step` as the first one on disk."""
    page = new_page(browser, address)
    try:
        if not lesson:
            page.get_by_label("Steps", exact=True).fill("2000000")
            page.get_by_label("Steps", exact=True).press("Enter")
        return clicked(page, lesson)
    finally:
        page.context.close()
        for home in runs.glob("*/"):
            end(home)
        time.sleep(1.0)


def report(times: int = 10, arms: tuple[str, ...] = tuple(ARMS)) -> None:
    """Print median and range of every mark."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium.find(), args=chromium.FLAGS)
        for arm in arms:
            with tempfile.TemporaryDirectory() as name, dashboard(Path(name)) as (address, _):
                time.sleep(SETTLED)
                found = [started(browser, address, Path(name) / "runs", ARMS[arm]) for _ in range(times)]
            print(f"{arm} (n = {times})")
            for mark in dict.fromkeys(key for marks in found for key in marks):
                values = sorted(marks[mark] for marks in found if mark in marks)
                spread = f"{values[0]:.0f} to {values[-1]:.0f}"
                print(f"  {mark:8} {statistics.median(values):6.0f} ms ({spread}; in {len(values)})", flush=True)
        browser.close()


if __name__ == "__main__":
    report(*(int(word) for word in sys.argv[1:2]))
