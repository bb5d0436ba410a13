"""Finds a Chromium for the browser tests, and installs one where there is none.

`python -m tests.chromium`: from PATH, else Playwright's installer, else apt-get as root, else said loudly; with
REQUIRE_BROWSER=1 that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]


def find() -> str | None:
    """Return the path of a Chromium, or None."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        path = shutil.which(name) if name else None
        if path:
            return path
    return _playwrights()


def _playwrights() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        path = p.chromium.executable_path
    return path if path and os.path.exists(path) else None


def _tried(command: list[str], seconds: int) -> bool:
    print("trying", " ".join(command), flush=True)
    try:
        return subprocess.run(command, timeout=seconds, stdin=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"  no: {error}", flush=True)
        return False


def main() -> int:
    """Make sure of a Chromium; return the exit code."""
    path = find()
    if path is None and _tried([sys.executable, "-m", "playwright", "install", "chromium"], 300):
        path = find()
    if path is None and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        _tried(["apt-get", "update", "-qq"], 300)
        _tried(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"], 900)
        path = find()
    if path:
        print(f"browser tests use {path}")
        return 0
    print("*** NO CHROMIUM: the browser tests will be SKIPPED. Install chromium and run again. ***")
    return 1 if os.environ.get("REQUIRE_BROWSER") == "1" else 0


if __name__ == "__main__":
    sys.exit(main())
