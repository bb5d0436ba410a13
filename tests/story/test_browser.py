"""The main story in a real browser: a real dashboard, a real engine, from the first click to the last."""

import os
import signal

import pytest

from modalscape.engine.client.handle import RunHandle
from tests.homes import wait_for
from tests.servers import free_port, started
from tests.story.pages import new_page, press

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

PLOTS = "[...document.querySelectorAll('.js-plotly-plot')]"
POINTS = f"() => Math.max(0, ...{PLOTS}.flatMap(p => (p._fullData || []).map(t => (t.x || []).length)))"
FIRST = "() => document.querySelector('.js-plotly-plot')"
MARKS = "() => document.querySelector('.js-plotly-plot')._fullData.flatMap(t => t.text || []).join(' ')"
KINDS = f"() => {PLOTS}.flatMap(p => (p._fullData || []).map(t => t.type))"


def begin(page, runs):
    """Start a long run of digits_captions from the form; return its home."""
    page.get_by_label("Steps", exact=True).fill("2000000")
    page.get_by_label("Steps", exact=True).press("Enter")
    page.get_by_role("button", name="Start", exact=True).click()
    home = wait_for(lambda: next(runs.glob("*/config.json"), None), what="the run's folder").parent
    wait_for(lambda: RunHandle(home).status().step > 0, 120, "the first step")
    return home


def test_the_main_story(browser, site):
    address, _, runs = site
    page = new_page(browser, address)
    page.get_by_text("Digits with captions").first.wait_for()
    home = begin(page, runs)
    page.wait_for_url(f"**run={home.name}*")

    page.get_by_role("link", name="Live").click()
    page.get_by_text("What the run is doing now").wait_for()
    early = page.wait_for_function(f"({POINTS})() > 3 && ({POINTS})()").json_value()
    page.wait_for_function(f"({POINTS})() > {early}")

    sidebar = page.locator("[data-testid=stSidebar]")
    sidebar.get_by_text("GANI", exact=True).click()
    sidebar.get_by_text("on · applied at step").wait_for()
    assert "gani" in RunHandle(home).reader().meta("methods")
    page.wait_for_function(f"({MARKS})().includes('GANI')")

    # A zoom survives the updates that follow it.
    zoomed = "{'xaxis.range': [1, 9], 'xaxis.autorange': false}"
    page.evaluate(f"() => Plotly.relayout(document.querySelector('.js-plotly-plot'), {zoomed})")
    node = page.evaluate_handle(FIRST)
    step = RunHandle(home).status().step
    wait_for(lambda: RunHandle(home).status().step > step + 200, what="more steps")
    page.wait_for_timeout(2500)
    assert page.evaluate("node => node === document.querySelector('.js-plotly-plot')", node)
    assert page.evaluate("node => node._fullLayout.xaxis.range.map(Math.round)", node) == [1, 9]

    # The button by its probe: one of the page before may still be there for a moment.
    for name, probe, record, kind in (
        ("Landscape", "landscape", "landscape/2d", "surface"),
        ("Curvature", "hessian", "hessian/spectrum", "bar"),
    ):
        page.get_by_role("link", name=name).click()
        press(page.locator(f".st-key-measure-{probe}"), "Measure now")
        wait_for(lambda record=record: record in RunHandle(home).reader().names()["records"], 120, record)
        page.wait_for_function(f"({KINDS})().includes('{kind}')", timeout=120_000)

    press(sidebar, "Pause")
    sidebar.get_by_text("paused", exact=True).wait_for()
    assert RunHandle(home).status().state == "paused"
    second = new_page(browser, address, f"/live?run={home.name}")
    second.locator("[data-testid=stSidebar]").get_by_text("paused", exact=True).wait_for()
    second.locator("[data-testid=stSidebar]").get_by_text("on · applied at step").wait_for()

    press(sidebar, "Resume")
    wait_for(lambda: RunHandle(home).status().state == "running", what="the run to go on")
    press(sidebar, "Stop")
    wait_for(lambda: RunHandle(home).status().state == "stopped", what="the run to stop")
    second.locator("[data-testid=stSidebar]").get_by_text("stopped", exact=True).wait_for()
    for tab in (page, second):
        assert tab.get_by_text("Traceback").count() == 0
        assert tab.problems == []


def test_a_killed_engine_is_said_and_resumed_and_a_killed_app_loses_nothing(browser, site, tmp_path):
    address, app, runs = site
    page = new_page(browser, address)
    page.get_by_text("Digits with captions").first.wait_for()
    home = begin(page, runs)
    page.wait_for_url(f"**run={home.name}*")
    sidebar = page.locator("[data-testid=stSidebar]")
    sidebar.get_by_text("training", exact=True).wait_for()
    page.wait_for_timeout(1500)

    os.kill(int((home / "lock").read_text()), signal.SIGKILL)
    sidebar.get_by_text("crashed", exact=True).wait_for(timeout=10_000)
    press(sidebar, "Resume")
    wait_for(lambda: RunHandle(home).status().state == "running", 90, "the resumed run")

    step = RunHandle(home).status().step
    app.kill()
    app.wait()
    wait_for(lambda: RunHandle(home).status().step > step + 50, what="steps without a dashboard")
    port = free_port()
    again = started(runs, port, tmp_path / "again.txt")
    try:
        page = new_page(browser, f"http://127.0.0.1:{port}", f"/live?run={home.name}")
        sidebar = page.locator("[data-testid=stSidebar]")
        sidebar.get_by_text("training", exact=True).wait_for()
        press(sidebar, "Stop")
        wait_for(lambda: RunHandle(home).status().state == "stopped", what="the run to stop")
    finally:
        again.kill()
        again.wait()
