"""What the stories share: pages of a browser, and engines that are ended after them."""

from __future__ import annotations

import os
import signal

from modalscape.engine.client.handle import is_locked
from modalscape.engine.store.commands import Stop, post


def end(home):
    """End the engine of a home that a failed story left behind, also one that is still on its way up."""
    if (home / "control.db").exists():
        post(home, Stop())
    if (home / "lock").exists() and is_locked(home):
        os.kill(int((home / "lock").read_text()), signal.SIGKILL)


def new_page(browser, address, path="/"):
    """Open a page of 1400 × 1000 in a context of its own; errors of its scripts are kept in `problems`."""
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.set_default_timeout(60_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address + path, wait_until="domcontentloaded")
    return page


def press(place, name):
    """Press a button once it can be pressed: the word of a state may be there a moment before its buttons."""
    place.get_by_role("button", name=name, disabled=False).dispatch_event("click")


def side(page):
    """Return the sidebar of a page."""
    return page.locator("[data-testid=stSidebar]")
