"""Go back, go on differently: three clicks from the step that one wonders about to two curves that part."""

import os

import numpy as np
import pytest

from modalscape.engine.client.handle import RunHandle
from modalscape.engine.config import read
from modalscape.engine.store.writer import RunReader
from tests.homes import said, wait_for
from tests.slow_network import delayed
from tests.story.pages import end, new_page, press, side

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

WORDS = ("--problem", "planted", "--device", "cpu", "--steps", 400)
PLANTED = {"planted.rows": 600, "batch": 32, "width": 8, "hidden": 8, "checkpoint": 50}


@pytest.fixture
def parent(site):
    """Give a run that has ended, in the folder of a dashboard."""
    home = site[2] / "planted-parent"
    said("run", *WORDS, *[f"--set={key}={value}" for key, value in PLANTED.items()], "--home", home)
    yield home
    for other in site[2].glob("*/"):
        end(other)


def back(page, presses):
    """Move the time slider so many kept steps back, and return the step that it says."""
    field = side(page).get_by_label("step that the charts show")
    field.focus()
    for _ in range(presses):
        field.press("ArrowLeft")
    return int(side(page).locator("output", has_text="step").inner_text().removeprefix("step "))


@pytest.mark.parametrize(
    "delay", [pytest.param(0.0, id="fast", marks=pytest.mark.slow), pytest.param(0.15, id="150 ms")]
)
def test_three_clicks_lead_to_two_curves_that_part(browser, site, parent, delay):
    if not delay:
        story(browser, site[0], parent)
        return
    with delayed(site[0], delay) as slow:
        story(browser, slow, parent)


def story(browser, address, parent):
    page = new_page(browser, address, f"/live?run={parent.name}")
    side(page).get_by_text("finished", exact=True).wait_for()
    step = back(page, 4)
    assert step == 250
    side(page).get_by_role("button", name="Fork here").click()
    page.wait_for_url(f"**run={parent.name}-fork-250-*")
    home = wait_for(lambda: next(iter(parent.parent.glob("*-fork-*")), None), 30, "the fork")
    side(page).get_by_text("paused", exact=True).wait_for()
    os.setpriority(os.PRIO_PROCESS, int((home / "lock").read_text()), 15)
    assert RunHandle(home).status().step == 250
    side(page).get_by_role("switch", name="GANI", checked=False, disabled=False).click()
    side(page).get_by_text("on · applied at step 250").wait_for()
    press(side(page), "Resume")
    side(page).get_by_text("finished", exact=True).wait_for()
    page.get_by_text("shared with the parent, whose own way is grey").first.wait_for()
    (steps, own), (_, other) = (RunReader(run).scalars("loss/fused", points=None) for run in (home, parent))
    assert len(steps) == 400 and np.array_equal(own[:251], other[:251]) and not np.array_equal(own[251:], other[251:])
    assert read(home).fork["of"] == parent.name and len(list(parent.parent.glob("*-fork-*"))) == 1
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_text("from step 250 ·").last.wait_for()
    assert page.problems == []
