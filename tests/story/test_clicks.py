"""The log of a run holds what a person clicked, no more and no less, however slow the network and how many the tabs."""

import json
import os
import sqlite3
import time

import pytest

from modalscape.engine.client.handle import RunHandle
from modalscape.engine.config import RunConfig
from modalscape.engine.store.commands import Stop, Toggle, Tune, Watch, post
from tests.homes import wait_for
from tests.servers import dashboard
from tests.slow_network import delayed
from tests.story.pages import end, new_page, press, side

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

LESSONS = ("Full batch", "Shorter step")
PAGES = ("live", "methods", "landscape", "curvature", "gradients", "spectra", "balance", "robustness", "log", "start")
PLANTED = {"planted.rows": 600, "batch": 32, "width": 8, "hidden": 8, "threads": 1, "unimodal": "heads"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Give the address of a dashboard and its folder of runs."""
    folder = tmp_path_factory.mktemp("clicks")
    with dashboard(folder) as (address, _):
        yield address, folder / "runs"
        for home in (folder / "runs").glob("*/"):
            end(home)


@pytest.fixture(
    scope="module", params=[pytest.param(0.0, id="fast", marks=pytest.mark.slow), pytest.param(0.15, id="150 ms")]
)
def address(request, site):
    """Give the dashboard's address, at once or through a slow network."""
    if not request.param:
        yield site[0]
        return
    with delayed(site[0], request.param) as slow:
        yield slow


@pytest.fixture(scope="module")
def engine(site, address):
    """Give the home of a run that trains through all stories of one address."""
    yield from training(site[1], f"planted-{address.rpartition(':')[2]}")


@pytest.fixture
def run(engine):
    """Give the home of a run that trains, with every method off and nothing on a schedule; what it was told is past."""
    now = RunHandle(engine).reader()
    for command in [Toggle(name, False) for name in now.meta("methods")] + [
        Watch(p, False) for p in now.meta("probes")
    ]:
        post(engine, command)
    wait_for(lambda: not RunHandle(engine).pending() and not now.meta("methods"), 60, "the methods to be off")
    PAST[engine] = len(told(engine))
    return engine


def training(runs, name):
    """Yield the home of a run that trains for as long as it is needed."""
    home = runs / name
    RunHandle.start(RunConfig("planted", steps=10**8, device="cpu", settings=PLANTED), home)
    wait_for(lambda: RunHandle(home).status().step > 0, 120, "the first step")
    os.setpriority(os.PRIO_PROCESS, int((home / "lock").read_text()), 15)  # it may train, but not starve the browser
    yield home
    post(home, Stop())
    wait_for(lambda: not RunHandle(home).status().alive, 60, "the run to end")


PAST = {}
"""Home to the number of commands that earlier stories left in its mailbox."""


def told(home):
    """Return what stands in the mailbox of a run, in order, without its number and time."""
    db = sqlite3.connect(f"{(home / 'control.db').as_uri()}?mode=ro", uri=True)
    try:
        return [json.loads(body) for (body,) in db.execute("SELECT body FROM command ORDER BY id")]
    finally:
        db.close()


def commands(home):
    """Return what this story put into the mailbox of a run."""
    return told(home)[PAST.get(home, 0) :]


def quiet(home, expected, page, seconds=2.0):
    """Insist that the mailbox comes to hold `expected` and that nothing follows."""
    expected = [command.to_json() for command in expected]
    wait_for(lambda: len(commands(home)) >= len(expected), 30, f"{expected}, not {commands(home)}")
    page.wait_for_timeout(1000 * seconds)
    assert commands(home) == expected


def flip(page, title):
    """Click the switch of a method in the sidebar."""
    side(page).get_by_text(title, exact=True).click()


def settled(page, words):
    """Wait until the sidebar says so much of a switch."""
    side(page).get_by_text(words).wait_for()


def fresh_start(browser, address, runs, button):
    """Open the dashboard, start a lesson, look at its page while it trains; return its home after it was stopped."""
    before = set(runs.glob("*/"))
    page = new_page(browser, address)
    page.get_by_role("button", name=button).first.click()
    home = wait_for(lambda: next(iter(set(runs.glob("*/")) - before), None), 60, "the run's folder")
    wait_for(lambda: (home / "control.db").exists() and RunHandle(home).status().step > 0, 120, "the first step")
    page.wait_for_timeout(2500)
    found = commands(home)
    page.context.close()
    post(home, Stop())
    wait_for(lambda: not RunHandle(home).status().alive, 60, "the run to end")
    return found


def test_a_fresh_lesson_says_nothing(browser, site, address):
    for button in LESSONS:
        assert fresh_start(browser, address, site[1], button) == []


@pytest.mark.slow
def test_twenty_fresh_lessons_say_nothing(browser, site, address):
    names = ("Full batch", "Shorter step", "Large batch", "Uniform", "Window")
    for i in range(20):
        assert fresh_start(browser, address, site[1], names[i % len(names)]) == [], f"start {i + 1} of 20"


def test_pages_that_are_opened_and_reloaded_say_nothing(browser, address, run):
    page = new_page(browser, address, f"/live?run={run.name}")
    settled(page, "training")
    for name in PAGES:
        page.goto(f"{address}/{name}?run={run.name}", wait_until="domcontentloaded")
        settled(page, "training")
        page.wait_for_timeout(400)
        page.reload(wait_until="domcontentloaded")
        settled(page, "training")
    quiet(run, [], page)
    assert page.problems == []


def test_switching_between_two_runs_says_nothing_and_shows_the_run_that_was_chosen(browser, site, address, run):
    for other in training(site[1], f"other-{run.name}"):
        post(other, Toggle("gani", True))
        page = new_page(browser, address, f"/methods?run={run.name}")
        settled(page, "training")
        for chosen in (other, run, other, run):
            side(page).get_by_role("combobox").first.click()
            page.get_by_role("option", name=chosen.name).or_(page.get_by_text(chosen.name, exact=True)).last.click()
            page.wait_for_url(f"**run={chosen.name}*")
            on = side(page).get_by_role("switch", name="GANI", checked=chosen is other)
            on.wait_for()
        for chosen in (other, run):
            page.goto(f"{address}/live?run={chosen.name}", wait_until="domcontentloaded")
            side(page).get_by_role("switch", name="GANI", checked=chosen is other).wait_for()
        quiet(run, [], page)
        assert commands(other) == [Toggle("gani", True).to_json()]


def test_one_click_on_a_method_is_one_command(browser, address, run):
    page = new_page(browser, address, f"/methods?run={run.name}")
    settled(page, "training")
    flip(page, "GANI")
    settled(page, "on · applied at step")
    card = page.locator(".st-key-method-card")
    card.get_by_role("switch", name="On").click()
    quiet(run, [Toggle("gani", True), Toggle("agm", True)], page)


def test_every_click_in_two_tabs_is_one_command(browser, address, run):
    tabs = [new_page(browser, address, f"/{name}?run={run.name}") for name in ("methods", "live")]
    for tab in tabs:
        settled(tab, "training")
    for click in range(10):
        for tab, title in ((tabs[0], "GANI"), (tabs[1], "SAM")):
            on = click % 2 == 0
            side(tab).get_by_role("switch", name=title, checked=not on).click()
            side(tab).get_by_role("switch", name=title, checked=on).wait_for()
    wait_for(lambda: len(commands(run)) >= 20, 30, f"20 commands, not {commands(run)}")
    tabs[0].wait_for_timeout(4000)
    for method in ("gani", "sam"):  # two tabs are two people: whose click comes first may be either
        own = [command for command in commands(run) if command["method"] == method]
        assert own == [Toggle(method, click % 2 == 0).to_json() for click in range(10)]
    assert len(commands(run)) == 20
    for tab in tabs:
        for title in ("GANI", "SAM"):
            side(tab).get_by_role("switch", name=title, checked=False).wait_for()
        assert tab.problems == []


def test_quick_clicks_are_all_sent_in_order(browser, address, run):
    page = new_page(browser, address, f"/live?run={run.name}")
    settled(page, "training")
    for title in ("GANI", "SAM", "FANoise", "GANI", "ModDrop", "SAM"):
        flip(page, title)
    expected = [("gani", True), ("sam", True), ("fanoise", True), ("gani", False), ("moddrop", True), ("sam", False)]
    quiet(run, [Toggle(*pair) for pair in expected], page)


def test_a_reload_every_second_loses_and_doubles_no_click(browser, address, run):
    page = new_page(browser, address, f"/live?run={run.name}")
    settled(page, "training")
    expected = []
    for click in range(6):
        on = click % 2 == 0
        began = time.monotonic()
        side(page).get_by_role("switch", name="GANI", checked=not on).click()
        expected.append(Toggle("gani", on))
        if click % 3:
            page.wait_for_timeout(max(0.0, 1000 * (1.0 - (time.monotonic() - began))))
        page.reload(wait_until="domcontentloaded")
        side(page).get_by_role("switch", name="GANI", checked=on).wait_for()
    quiet(run, expected, page)


def test_knobs_send_what_was_entered_and_no_knob_of_another_method(browser, address, run):
    page = new_page(browser, address, f"/methods?run={run.name}")
    settled(page, "training")
    choice = page.get_by_test_id("stButtonGroup").first
    choice.get_by_text("GANI", exact=True).click()
    card = page.locator(".st-key-method-card")
    card.get_by_role("heading", name="GANI").wait_for()
    field = card.get_by_label("Sigma", exact=True)
    sigma = 0.5 if field.input_value() != "0.5" else 0.6
    field.fill(str(sigma))
    field.press("Enter")
    flip(page, "GANI")
    choice.get_by_text("SAM", exact=True).click()
    card.get_by_role("heading", name="SAM").wait_for()
    card.get_by_role("button", name="Rho: more").click()
    rate = side(page).get_by_label("Learning rate", exact=True)
    rate.fill("0.004" if rate.input_value() != "0.004" else "0.005")
    value = float(rate.input_value())
    rate.press("Enter")
    wait_for(lambda: len(commands(run)) == 4, 30, f"four commands, not {commands(run)}")
    rho = commands(run)[2]["value"]
    expected = [
        Tune("gani", "sigma", sigma),
        Toggle("gani", True),
        Tune("sam", "rho", rho),
        Tune("optimizer", "lr", value),
    ]
    quiet(run, expected, page)
    rate.fill("7000")
    rate.press("Enter")
    side(page).get_by_text("Give a number from").wait_for()
    quiet(run, expected, page)


def test_an_interval_is_sent_once(browser, address, run):
    page = new_page(browser, address, f"/curvature?run={run.name}")
    settled(page, "training")
    place = page.locator(".st-key-measure-hessian")
    place.get_by_label("Measure", exact=True).select_option(label="every 50 steps")
    quiet(run, [Watch("hessian", True, 50)], page)
    second = new_page(browser, address, f"/curvature?run={run.name}")
    second.wait_for_function("() => document.querySelector('.st-key-measure-hessian select')?.value === '50'")
    second.locator(".st-key-measure-hessian select").select_option(label="on request only")
    page.wait_for_function("() => document.querySelector('.st-key-measure-hessian select')?.value === '0'")
    quiet(run, [Watch("hessian", True, 50), Watch("hessian", False, 0)], page)


def test_the_keys_pause_step_and_go_on(browser, address, run):
    page = new_page(browser, address, f"/live?run={run.name}")
    settled(page, "training")
    page.keyboard.press("p")
    side(page).get_by_text("paused", exact=True).wait_for()
    step = RunHandle(run).status().step
    side(page).get_by_role("button", name="Step").and_(page.locator(":enabled")).wait_for()
    page.keyboard.press("s")
    wait_for(lambda: RunHandle(run).status().step == step + 1, 20, "one step")
    wait_for(lambda: RunHandle(run).status().state == "paused", 20, "the pause after it")
    press(side(page), "Resume")
    side(page).get_by_text("training", exact=True).wait_for()
    assert [c["do"] for c in commands(run)] == ["pause", "resume", "resume"]
    assert commands(run)[1]["steps"] == 1 and commands(run)[2]["steps"] is None


def test_controls_wait_until_the_run_has_written_its_settings(browser, site, address):
    home = site[1] / f"queued-{time.time_ns()}"
    RunHandle(home).prepare(RunConfig("planted", steps=10, device="cpu", settings=PLANTED))
    page = new_page(browser, address, f"/methods?run={home.name}")
    side(page).get_by_text("Switches work once the run has started").wait_for()
    assert side(page).get_by_role("switch", disabled=False).count() == 0
    assert page.locator(".st-key-method-card").get_by_role("switch", disabled=False).count() == 0
    assert page.locator(".ms-knob input:enabled, .ms-knob select:enabled").count() == 0
    assert commands(home) == []


def test_no_chart_offers_to_send_its_data_out(browser, address, run):
    page = new_page(browser, address, f"/live?run={run.name}")
    page.wait_for_function("() => document.querySelectorAll('.modebar-btn').length > 3")
    titles = page.evaluate(
        "() => [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title || b.ariaLabel)"
    )
    assert titles and not [t for t in titles if any(word in t.lower() for word in ("share", "cloud", "studio", "edit"))]
    outside = []
    page.on("request", lambda request: outside.append(request.url) if address not in request.url else None)
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function("() => document.querySelectorAll('.modebar-btn').length > 3")
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []
