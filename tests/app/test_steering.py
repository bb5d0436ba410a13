"""Controls: drawn from what a run has acknowledged, and only what a person asks for is sent, each token once."""

import json

import pytest
import streamlit as st

from modalscape.app.runs import acknowledged
from modalscape.app.runs.status import folder, standing
from modalscape.app.server import live
from modalscape.app.server.routes import Desk
from modalscape.app.views import steering
from modalscape.engine.client.handle import RunHandle, lock
from modalscape.engine.store.commands import Mailbox, Pause, Resume, Toggle, Tune, Watch, post
from modalscape.engine.store.writer import RunWriter, create_observed
from tests.app.test_pages import RUN, held, mounted, opened
from tests.fixture_run import write_run


@pytest.fixture
def alive():
    with held("running") as home:
        yield home


@pytest.fixture
def said(monkeypatch):
    """What a session without a browser says in toasts."""
    words = []
    monkeypatch.setattr(st, "session_state", {})
    monkeypatch.setattr(st, "toast", lambda text, **options: words.append(text))
    return words


def hand_over(monkeypatch, *entries):
    """Have the page hand over entries, and the session take them."""
    monkeypatch.setattr(live, "asked_for", lambda: list(entries))
    steering.received()


def sent(home):
    return [command for _, command in Mailbox(home).unread(2)]


def entry(act, token="a", run=RUN):
    return {"token": token, "run": run, "act": act}


def on(method, value=True):
    return {"do": "toggle", "method": method, "on": value}


def test_each_token_is_taken_once_however_often_it_comes(alive, said, monkeypatch):
    first, second = entry(on("sam"), "a"), entry(on("sam", False), "b")
    hand_over(monkeypatch, first)
    hand_over(monkeypatch, first, second)
    hand_over(monkeypatch, first, second)
    assert sent(alive) == [Toggle("sam", True), Toggle("sam", False)] and not said
    assert steering.confirmed() == ["a", "b"]


def test_another_session_that_is_handed_the_same_token_posts_nothing(alive, said, monkeypatch):
    hand_over(monkeypatch, entry(on("sam")))
    post(alive, Toggle("sam", False))
    monkeypatch.setattr(st, "session_state", {})
    hand_over(monkeypatch, entry(on("sam")))
    assert sent(alive) == [Toggle("sam", True), Toggle("sam", False)]
    assert steering.confirmed() == ["a"]


@pytest.mark.parametrize(
    "act",
    [
        on("gani"),
        on("sam", False),
        {"do": "tune", "method": "gani", "knob": "sigma", "value": 1},
        {"do": "watch", "probe": "hessian", "on": True, "every": 100},
        {"do": "watch", "probe": "landscape", "on": False, "every": 0},
    ],
    ids=str,
)
def test_what_the_run_has_already_is_not_asked_for(alive, said, monkeypatch, act):
    hand_over(monkeypatch, entry(act))
    assert sent(alive) == [] and not said


@pytest.mark.parametrize(
    "command",
    [Toggle("sam", True), Tune("gani", "sigma", 0.5), Watch("hessian", True, 50), Watch("hessian", False), Pause()],
)
def test_what_waits_already_is_not_asked_for_again(alive, said, monkeypatch, command):
    post(alive, command)
    hand_over(monkeypatch, entry(command.to_json()))
    assert sent(alive) == [command]


def test_what_waits_can_be_taken_back_and_steps_add_up(alive, said, monkeypatch):
    post(alive, Toggle("sam", True))
    step = {"do": "resume", "steps": 1}
    hand_over(monkeypatch, entry(on("sam", False), "a"), entry(step, "b"), entry(step, "c"))
    assert sent(alive) == [Toggle("sam", True), Toggle("sam", False), Resume(1), Resume(1)]


@pytest.mark.parametrize(
    "handed",
    [
        None,
        7,
        {"token": 1, "run": RUN, "act": on("sam")},
        {"token": "x", "act": on("sam")},
        entry(on("sam"), run="../../etc"),
        entry(on("sam"), run="no-such-run"),
        entry(None),
        entry("stop"),
        entry({"do": "save"}),
        entry({"do": "note", "text": "hello"}),
        entry({"do": "toggle", "method": ["sam"], "on": True}),
        entry({"do": "toggle", "method": "sam"}),
        entry({"do": ["toggle"]}),
        entry({"do": "go on and on"}),
    ],
    ids=str,
)
def test_what_no_page_hands_over_is_left_alone(alive, said, monkeypatch, handed):
    hand_over(monkeypatch, handed)
    assert sent(alive) == []


def test_a_run_that_has_written_no_settings_is_not_steered(said, monkeypatch):
    home = folder() / RUN
    RunHandle(home).prepare({"problem": "planted", "methods": [], "probes": {}, "steps": 10, "settings": {}})
    with lock(home):
        hand_over(monkeypatch, entry(on("sam")))
        assert Mailbox(home).unread() == [] and len(said) == 1
        now = standing(RUN, home)
        assert not acknowledged.controls(now)["ready"] and "settings" in acknowledged.why(now)


def test_the_tag_and_the_revision_follow_what_was_asked_and_acknowledged(alive):
    seen = [acknowledged.controls(standing(RUN, alive))]
    number = post(alive, Toggle("sam", True))
    seen.append(acknowledged.controls(standing(RUN, alive)))
    assert seen[1]["methods"]["sam"] == {"on": False, "asked": True, "words": "requested: on", "idle": ""}
    writer = RunWriter(alive)
    writer.event(405, "applied", {"id": number, "command": Toggle("sam", True).to_json()})
    writer.meta("methods", {"sam": {"params": {}}})
    writer.close()
    seen.append(acknowledged.controls(standing(RUN, alive)))
    assert seen[2]["methods"]["sam"] == {"on": True, "asked": None, "words": "on · applied at step 405", "idle": ""}
    assert len({controls["tag"] for controls in seen}) == 3
    observer = RunWriter(alive, create_observed(alive, 1))
    observer.event(405, "probe", {"name": "hessian", "seconds": 1.0, "records": 1})
    observer.close()
    seen.append(acknowledged.controls(standing(RUN, alive)))
    writer = RunWriter(alive)
    writer.event(406, "note", {"text": "later than what was observed"})
    writer.close()
    seen.append(acknowledged.controls(standing(RUN, alive)))
    revisions = [controls["revision"] for controls in seen]
    assert revisions == sorted(set(revisions)), "whichever file the newest event lies in"


def test_a_tick_brings_the_controls_unless_the_page_has_them(alive):
    desk = Desk()
    first = json.loads(desk.pulse(RUN, "[]", False))
    assert first["controls"]["values"]["gani.sigma"] == 1.0
    assert "controls" not in json.loads(desk.pulse(RUN, "[]", False, first["controls"]["tag"]))


def test_a_page_hands_its_controls_one_source(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")
    write_run(folder() / RUN)
    at = opened("20_methods.py", RUN)
    assert not at.exception and all(toggle.key.startswith("ask/") for toggle in at.toggle)
    kinds = [data["kind"] for data in mounted(at)]
    assert kinds.count("steering") == 1 and {"switch", "knobs"} <= set(kinds)
    assert [data for data in mounted(at) if "controls" in data and data["kind"] != "steering"] == []
