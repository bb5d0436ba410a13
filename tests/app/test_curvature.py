"""The Curvature page: every view draws the fixture run, and charts that compare say what they compare."""

import json

import numpy as np
import pytest

from modalscape.app.charts.registry import CHARTS, checked
from modalscape.app.runs.status import folder
from modalscape.app.server.routes import Desk
from modalscape.app.theme import look
from modalscape.engine.core.records import Bars
from modalscape.engine.store.commands import Measure
from modalscape.engine.store.writer import RunReader, RunWriter
from tests.app.test_pages import RUN, held, mounted, opened, sent, texts
from tests.fixture_run import STEPS, write_run

VIEWS = ["Spectrum", "Modalities", "Gauss–Newton and Fisher", "Sharpness measures", "Check with PyHessian"]
PLAIN = look(False, ["image", "text"], [])


@pytest.fixture
def home():
    return write_run(folder() / RUN)


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")


def view(name):
    at = opened("40_curvature.py", RUN)
    if name != VIEWS[0]:
        at.session_state["curvature-view"] = name
        at.run()
    return at


def drawn(name, names, **args):
    reader = RunReader(folder() / RUN)
    return CHARTS[name].draw(reader, checked(name, {"names": names} | args), PLAIN)


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_draws_the_fixture_run(home, served, name):
    at = view(name)
    assert not at.exception and not at.error
    charts = [data for data in mounted(at) if data.get("kind") == "chart"]
    assert len(charts) >= 4
    for data in charts:
        answer = Desk().pulse(RUN, json.dumps([[data["name"], data["args"], ""]]), False)
        got = json.loads(answer)["charts"][0]
        assert got["figure"] is not None, data
        assert "step" in got["caption"] and ("n = " in got["caption"] or "time spent" in got["caption"]), data


def test_only_the_view_that_is_open_is_drawn(home, served):
    first, second = (len(mounted(view(name))) for name in VIEWS[:2])
    assert first < 20 and second < 20


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_a_run_without_measurements_says_what_to_do(served, name):
    with held("paused", records=False):
        at = view(name)
        assert not at.exception
    empty = [data["args"]["empty"] for data in mounted(at) if data.get("kind") == "chart"]
    assert empty and all("Measure now" in words or "Check with PyHessian" in words for words in empty)


def test_the_second_opinion_is_asked_for_by_its_button():
    with held("paused") as home:
        at = view("Check with PyHessian")
        button = at.button(key=f"now/{RUN}/pyhessian")
        assert button.label == "Check with PyHessian" and "by magnitude" in texts(at) and "density fails" in texts(at)
        button.click().run()
        assert sent(home) == [Measure("pyhessian", {})]


def test_eigenvalues_over_time_keep_their_rank_and_their_residuals(home):
    figure = drawn("leading", ["hessian/top"]).figure
    lines = {trace.name: trace for trace in figure.data if trace.mode and "lines" in trace.mode and trace.name}
    assert [n for n in lines if n.startswith("λ")] == [f"λ{i}" for i in range(1, 6)]
    top = RunReader(home).at("hessian/top", STEPS)
    assert [lines[f"λ{i + 1}"].y[-1] for i in range(5)] == pytest.approx(list(top.values))
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 5 and np.max(bands[0].y) - np.max(lines["λ1"].y) == pytest.approx(0.2, abs=1e-4)


def test_eigenvalues_of_another_count_leave_gaps(home):
    writer = RunWriter(home)
    writer.record(STEPS + 50, Bars("hessian/top", np.array(["λ1"]), np.array([3.0]), np.array([0.1])))
    writer.close()
    lines = {t.name: t.y for t in drawn("leading", ["hessian/top"]).figure.data if t.name and t.fill != "toself"}
    assert lines["λ1"][-1] == 3.0 and np.isnan(lines["λ2"][-1])


def test_matrices_are_told_by_name_in_legend_and_caption(home):
    every = [f"{m}/lambda_max" for m in ("ggn", "hessian", "ggn/empirical_fisher")]
    found = drawn("matrices", every)
    names = [t.name for t in found.figure.data if t.name and t.fill != "toself"]
    assert names == ["Hessian", "Gauss–Newton", "empirical Fisher"]
    assert len({t.line.color for t in found.figure.data if t.name and t.fill != "toself"}) == 3
    assert "empirical Fisher: " in found.caption and "n = 512" in found.caption
    both = drawn("densities", ["ggn/spectrum", "hessian/spectrum"])
    seen = {t.name: t.visible for t in both.figure.data if t.name and t.mode == "lines" and t.fill != "toself"}
    assert seen == {"Hessian": True, "Gauss–Newton": True}


def test_the_two_opinions_stand_side_by_side(home):
    found = drawn("opinions", ["pyhessian/top", "pyhessian/ours/top"], **{"as": "top"})
    assert [t.name for t in found.figure.data] == ["PyHessian", "ours"]
    assert len({t.marker.color for t in found.figure.data}) == 2 and "no error" in found.caption
    trace = drawn("opinions", ["pyhessian/trace", "pyhessian/ours/trace"])
    assert list(trace.figure.data[0].x) == ["PyHessian", "ours"] and "±" in trace.caption
    costs = drawn("opinions", ["pyhessian/top", "pyhessian/trace", "pyhessian/ours/top"], **{"as": "seconds"})
    assert list(costs.figure.data[0].y) == pytest.approx([2.0, 2.0, 0.9])


@pytest.mark.parametrize("name", ["leading", "matrices", "densities", "opinions"])
def test_what_was_not_measured_leaves_words(home, name):
    assert drawn(name, ["nothing/at_all"], empty="Measure it.").empty == "Measure it."
