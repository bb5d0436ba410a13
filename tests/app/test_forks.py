"""Forks on the pages: made with one click, at rest at their step, drawn with the past that they share."""

import json
import shutil

import pytest
import streamlit as st

from modalscape.app.charts.labels import spoken
from modalscape.app.runs import acknowledged
from modalscape.app.runs.status import RUN_ID, branches, folder, listed, standing
from modalscape.app.runs.supervisor import Supervisor
from modalscape.app.server import live
from modalscape.app.server.routes import Desk
from modalscape.app.views import steering
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.config import read
from modalscape.engine.store.commands import Toggle
from tests.app.test_pages import mounted, opened
from tests.homes import said, small, trained

PARENT = "planted-261128-050112-ab12"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    home = tmp_path_factory.mktemp("template") / PARENT
    trained(home, small(probes={"imbalance": 20}), {10: [Toggle("gani", True)]})
    return home


@pytest.fixture
def parent(template):
    """A run that has ended, in the folder of runs."""
    return shutil.copytree(template, folder() / PARENT)


@pytest.fixture
def launched(monkeypatch):
    """What would be started: run and words."""
    found = []
    monkeypatch.setattr(RunHandle, "launch", lambda handle, *words: found.append((handle.home.name, *words)))
    steering.supervisor.clear()
    return found


@pytest.fixture
def toasts(monkeypatch):
    """A session without a browser, and what it says in toasts."""
    words = []
    monkeypatch.setattr(st, "session_state", {})
    monkeypatch.setattr(st, "query_params", {})
    monkeypatch.setattr(st, "toast", lambda text, **options: words.append(text))
    return words


def asked(monkeypatch, step, token="a", run=PARENT):
    monkeypatch.setattr(live, "asked_for", lambda: [{"token": token, "run": run, "act": {"do": "fork", "step": step}}])
    steering.received()


def made(parent, step=40, *words):
    home = parent.with_name(f"{parent.name}-fork-{step}-0f3c")
    said("fork", parent, "--step", step, "--home", home, *words)
    return home


def test_one_click_prepares_a_fork_that_rests_and_shows_it(parent, launched, toasts, monkeypatch):
    asked(monkeypatch, 40)
    run = st.session_state["run"]
    assert not toasts and RUN_ID.fullmatch(run) and run.startswith(f"{PARENT}-fork-40-")
    assert st.query_params == {"run": run} and launched == [(run, "resume", "--paused")]
    config = read(folder() / run)
    assert config.fork["of"] == PARENT and config.fork["step"] == 40 and config.methods == ("gani",)
    assert config.steps == 60


def test_a_fork_at_the_end_of_a_run_goes_on_as_long_again(parent, launched, toasts, monkeypatch):
    asked(monkeypatch, 60)
    config = read(folder() / st.session_state["run"])
    assert (config.steps, config.horizon) == (120, 60)


def test_the_same_click_that_comes_again_makes_no_second_fork(parent, launched, toasts, monkeypatch):
    asked(monkeypatch, 40)
    first = st.session_state["run"]
    monkeypatch.setattr(st, "session_state", {})
    asked(monkeypatch, 40)
    assert st.session_state["run"] == first and len(launched) == 1
    asked(monkeypatch, 40, token="b")
    assert st.session_state["run"] != first and len(launched) == 2


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (None, "a whole number"),
        ("40", "a whole number"),
        (True, "a whole number"),
        (-1, "nearest step that is kept is 0"),
    ]
    + [(61, "nearest step that is kept is 60"), (10**12, "nearest step that is kept is 60"), ([4], "a whole number")],
    ids=str,
)
def test_a_step_that_is_none_is_one_sentence(parent, launched, toasts, monkeypatch, step, told):
    asked(monkeypatch, step)
    assert len(toasts) == 1 and told in toasts[0] and not launched
    assert [run for run, _ in listed(folder())] == [PARENT]


def test_a_run_that_is_deleted_or_whose_data_are_gone_is_one_sentence(parent, launched, toasts, monkeypatch):
    values = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps(values | {"problem": None, "data": "/nowhere/emoji.npz"}))
    asked(monkeypatch, 40)
    assert "/nowhere/emoji.npz, is gone" in toasts[-1]
    (parent / "config.json").unlink()
    asked(monkeypatch, 40, token="b")
    assert len(toasts) == 2 and "no config.json" in toasts[-1]
    shutil.rmtree(parent)
    asked(monkeypatch, 40, token="c")
    assert len(toasts) == 3 and "no run" in toasts[-1] and not launched


def test_a_page_offers_a_fork_of_a_run_that_has_kept_a_step(parent):
    assert acknowledged.controls(standing(PARENT, parent))["forks"] is True
    waiting = folder() / "waiting-run"
    RunHandle(waiting).prepare(small())
    assert acknowledged.controls(standing("waiting-run", waiting))["forks"] is False


def test_a_fork_starts_before_others_and_where_one_place_more_is_needed(parent, launched, monkeypatch):
    monkeypatch.setattr("modalscape.app.runs.supervisor.Supervisor._release", lambda self: None)
    supervisor = Supervisor(1)
    first, second = supervisor.begin(small().to_json()), supervisor.begin(small().to_json())
    config = read(made(parent)).to_json()
    supervisor.fork(config, f"{PARENT}-fork-40-aaaa")
    supervisor.fork(config, f"{PARENT}-fork-40-bbbb")
    assert [run for run, *_ in launched] == [first, f"{PARENT}-fork-40-aaaa"]
    assert supervisor.waiting() == [f"{PARENT}-fork-40-bbbb", second]


def test_a_server_that_starts_anew_lets_a_waiting_fork_rest_too(parent, launched):
    home = parent.with_name("waiting-fork")
    RunHandle(home).prepare(read(made(parent)).to_json())
    Supervisor(1).adopt()
    assert launched == [("waiting-fork", "resume", "--paused")]


def traces(run, **args):
    body = json.loads(Desk().pulse(run, json.dumps([["series", {"names": ["loss/fused"]} | args, ""]]), False))
    return body["charts"][0]


def test_the_shared_part_is_thinner_and_the_parents_way_is_beside_it(parent):
    child = made(parent, 40, "--set", "optimizer.lr=0.05")
    said("resume", child)
    plain = traces(PARENT)["figure"]["data"]
    assert "legendgroup" not in plain[0]
    drawn = traces(child.name, parent=True)
    lines = [line for line in drawn["figure"]["data"] if line.get("mode") == "lines"]
    widths = [line["line"]["width"] for line in lines[:4]]
    assert widths[0] == 1.0 and widths[1] == widths[2] == widths[3] / 2  # the grey line lies below
    assert "thin up to step 40: shared with the parent, whose own way is grey" in drawn["caption"]
    assert "grey" not in traces(child.name)["caption"]


def test_a_chart_that_was_drawn_loses_the_parents_part_with_the_parent(parent):
    child = made(parent, 40)
    said("resume", child)
    tails = Desk().tails.reader(child)
    assert tails.scalars("loss/fused", None)[0].tolist() == list(range(60))
    shutil.rmtree(parent)
    tails.reader._looked = -1.0
    assert tails.scalars("loss/fused", None)[0].tolist() == list(range(40, 60))
    now = standing(child.name, child)
    assert now.state == "finished" and "was deleted or moved" in now.error
    assert traces(child.name, parent=True)["figure"]


def test_what_the_parent_was_told_is_no_command_of_the_fork(parent):
    child = made(parent, 40)
    now = standing(child.name, child)
    assert now.methods["gani"].on and now.methods["gani"].since is None and now.first_step == 40
    assert (now.step, now.steps, now.rate) == (40, 60, 0.0)


def test_the_list_of_runs_shows_forks_below_their_parent(parent):
    child = made(parent, 40)
    early = made(parent, 20)
    said("resume", child)
    grandchild = made(child, 50)
    lone = folder() / "another-run"
    RunHandle(lone).prepare(small())
    tree = {run: depth for run, _, depth in branches(listed(folder()))}
    assert list(tree) == ["another-run", PARENT, early.name, child.name, grandchild.name]
    assert list(tree.values()) == [0, 0, 1, 1, 2]
    at = opened()
    links = [json.loads(json.dumps(str(element.proto))) for element in at.main.get("page_link")]
    assert any("2 forks show the first steps" in str(caption.value) for caption in at.caption)
    assert not at.exception and any("from step 50 · 0f3c" in link for link in links)
    shutil.rmtree(parent)
    assert sorted(depth for *_, depth in branches(listed(folder()))) == [0, 0, 0, 1]
    values = json.loads((child / "config.json").read_text())
    values["fork"]["of"] = child.name
    (child / "config.json").write_text(json.dumps(values))
    assert {run for run, *_ in branches(listed(folder()))} == {"another-run", early.name, child.name, grandchild.name}


def test_the_page_of_a_fork_is_drawn_before_its_engine_has_begun(parent, launched, monkeypatch):
    home = parent.with_name("planted-fork")
    RunHandle(home).prepare(read(made(parent)).to_json())
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")
    at = opened("10_live.py", "planted-fork")
    assert not at.exception and any(data["kind"] == "steering" for data in mounted(at))
    assert traces("planted-fork")["figure"]


def test_a_fork_is_called_by_its_parent_and_step():
    assert spoken(f"{PARENT}-fork-1200-0f3c") == "step 1,200 of planted · 28 Nov 05:01:12 · 0f3c"
