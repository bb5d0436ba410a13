"""The Landscape page: every view draws the fixture run and says step, n, cost and error; commands carry the choices."""

import json

import numpy as np
import pytest

from modalscape.app.charts.registry import CHARTS, checked
from modalscape.app.figures.surface import contour, surface
from modalscape.app.runs.status import folder
from modalscape.app.server.routes import Desk
from modalscape.app.theme import look
from modalscape.engine.client.handle import lock
from modalscape.engine.client.observers import locked
from modalscape.engine.core.display import Display
from modalscape.engine.store.commands import Cancel, Measure
from modalscape.engine.store.writer import RunReader, RunWriter, create_observed
from tests.app.test_pages import RUN, held, mounted, opened, sent, texts
from tests.fixture_run import NEIGHBOUR, STEPS, write_run

VIEWS = ["Around the parameters", "The way it came", "Between runs", "Beside another run"]
PLAIN = look(False, ["image", "text"], [])


@pytest.fixture
def home():
    write_run(folder() / NEIGHBOUR)
    return write_run(folder() / RUN)


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")


def view(name):
    at = opened("30_landscape.py", RUN)
    if name != VIEWS[0]:
        at.session_state["landscape-view"] = name
        at.run()
    return at


def charts(at):
    return [data for data in mounted(at) if data.get("kind") == "chart"]


def drawn(name, names, **args):
    return CHARTS[name].draw(RunReader(folder() / RUN), checked(name, {"names": names} | args), PLAIN)


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_draws_the_fixture_run_and_says_how_it_was_measured(home, served, name):
    at = view(name)
    assert not at.exception and not at.error
    assert len(charts(at)) >= 4
    for data in charts(at):
        got = Desk().pulse(data["run"], json.dumps([[data["name"], data["args"], ""]]), False)
        answer = json.loads(got)["charts"][0]
        assert answer["figure"] is not None, data
        assert f"step {STEPS}" in answer["caption"] and "n = 512" in answer["caption"], (data, answer["caption"])


@pytest.mark.parametrize("name", VIEWS[2:])
def test_without_another_run_a_view_says_what_is_missing(served, name):
    write_run(folder() / RUN)
    at = view(name)
    assert not at.exception and "No other run of this network" in texts(at) and not charts(at)


def test_a_run_of_another_network_is_not_offered(home, served):
    writer = RunWriter(folder() / NEIGHBOUR)
    writer.meta("layout", {"trunk.weight": [3, 3]})
    writer.close()
    assert "No other run of this network" in texts(view("Between runs"))


def test_the_choices_of_the_page_go_with_the_request():
    with held("paused") as home:
        at = view(VIEWS[0])
        at.segmented_control(key="landscape-plane").set_value("eigen").run()
        at.selectbox(key=f"landscape-part/{RUN}").set_value("image × text").run()
        at.button(key=f"now/{RUN}/landscape").click().run()
        assert sent(home) == [Measure("landscape", {"plane": "eigen", "part": "image,text"})]


def test_the_other_runs_go_with_the_request_and_come_from_the_list_alone():
    write_run(folder() / NEIGHBOUR)
    with held("paused") as home:
        at = view("Between runs")
        assert at.selectbox(key=f"between-other/{RUN}").options == [NEIGHBOUR]
        at.button(key=f"now/{RUN}/between").click().run()
        assert sent(home) == [Measure("between", {"other": NEIGHBOUR})]


def test_a_measurement_under_way_can_be_cancelled():
    home = write_run(folder() / RUN)
    job = {"probe": "landscape", "step": STEPS, "asked": True, "seconds": 1.0, "left": 8.0}
    job |= {"what": "points", "done": 120, "planned": 1681}
    with lock(home), lock(home, locked(1)):
        writer = RunWriter(home)
        writer.beat("running", STEPS, {"activity": "", "measure": "live"})
        writer.close()
        writer = RunWriter(home, create_observed(home, 1))
        writer.beat("observing", STEPS, {"observing": {"jobs": [job], "costs": {"landscape": 9.0}}})
        writer.close()
        at = view(VIEWS[0])
        words = f"measuring step {STEPS:,}: 120 of 1,681 points · about 8.0 s left"
        assert any(caption.value == words for caption in at.caption)
        at.button(key=f"cancel/{RUN}/landscape").click().run()
        assert sent(home) == [Cancel("landscape")]


def test_a_run_that_is_over_is_measured_from_the_page(monkeypatch):
    home = write_run(folder() / RUN)
    come = []
    monkeypatch.setattr("modalscape.engine.client.handle.RunHandle.observe", lambda handle: come.append(handle.home))
    at = view(VIEWS[0])
    at.button(key=f"now/{RUN}/landscape").click().run()
    assert [command.probe for command in sent(home)] == ["landscape"] and come == [home]


def test_two_runs_are_turned_together_on_one_scale_and_scrubbed_together(home, served):
    pair = [data for data in charts(view("Beside another run")) if data["args"].get("as") == "surface"]
    assert [data["run"] for data in pair] == [RUN, NEIGHBOUR] and {data["group"] for data in pair} == {"beside"}
    assert {data["link"] for data in charts(view("Beside another run"))} == {"beside"}
    record = RunReader(home).at("landscape/2d", STEPS)
    meta = surface(record, PLAIN).layout.meta
    assert meta["span"] == pytest.approx([record.z.min(), record.z.max()]) and not meta["log"]
    logs = surface(record, PLAIN, log=True).layout.meta
    assert logs["log"] and logs["span"] == pytest.approx(np.log10([record.z.min(), record.z.max()]))


def test_the_path_is_drawn_with_its_true_losses_and_what_lies_off_the_plane(home):
    record = RunReader(home).at("landscape/trajectory/2d", STEPS)
    path, flat, space = record.display.path, contour(record, PLAIN), surface(record, PLAIN)
    points = next(trace for trace in flat.data if trace.text is not None)
    assert points.marker.color.tolist() == pytest.approx(path["loss"])
    assert (points.marker.cmin, points.marker.cmax) == (flat.data[0].zmin, flat.data[0].zmax)
    assert flat.data[0].zmin <= min(path["loss"]) + 1e-6 and max(path["loss"]) <= flat.data[0].zmax
    order = np.argsort(path["off"])
    assert (np.diff(points.marker.size[order]) >= 0).all() and points.marker.size.max() > points.marker.size.min()
    assert "true loss" in points.text[0] and "off the plane" in points.text[0]
    line = next(trace for trace in space.data if trace.type == "scatter3d")
    assert line.z.tolist() == pytest.approx(path["loss"])


def test_every_loss_along_a_line_is_named_and_how_it_was_found_said_once(home):
    found = drawn("along", ["landscape/1d", "landscape/1d/*"])
    assert [trace.name for trace in found.figure.data] == ["joint", "image", "text"]
    assert found.caption.count("n = 512") == 1 and "every point evaluated · 2.4 s" in found.caption


def test_the_barrier_is_marked_between_the_chord_and_the_top(home):
    figure = drawn("barrier", [f"between/{NEIGHBOUR}/line"]).figure
    line, chord, rise = figure.data
    assert chord.y.tolist() == pytest.approx([line.y[0], line.y[-1]])
    assert rise.x[0] == rise.x[1] == 0.5 and rise.y[1] - rise.y[0] == pytest.approx(1.0)
    assert line.name == "joint, barrier 1"


def test_barriers_over_time_have_their_errors_and_say_what_they_cost(home):
    found = drawn("barriers", [f"between/{NEIGHBOUR}/barrier", f"between/{NEIGHBOUR}/barrier/*"])
    lines = [trace.name for trace in found.figure.data if trace.name and trace.fill is None]
    assert lines == ["joint", "image", "text"]
    bands = [trace for trace in found.figure.data if trace.fill == "toself"]
    assert len(bands) == 3 and np.ptp(bands[0].y) == pytest.approx(0.2)
    assert f"through step {STEPS}" in found.caption and "n = 512" in found.caption and found.caption.endswith("2.4 s")


def test_every_loss_is_drawn_on_the_plane_through_the_runs(home, served):
    planes = [data["args"]["names"] for data in charts(view("Between runs")) if data["name"] == "between"]
    for name in ("plane", "plane/image", "plane/text"):
        assert [f"between/{NEIGHBOUR}/{name}"] in planes


def test_the_runs_of_a_plane_are_called_as_a_person_would(home):
    run = "digits-captions-261121-163012-ab12"
    writer = RunWriter(home)
    record = RunReader(home).at(f"between/{NEIGHBOUR}/plane", STEPS)
    draw = record.display | Display(x=f"towards {run}", marks=[{"text": run, "x": 1.0, "y": 0.0}])
    writer.record(STEPS, type(record)(f"between/{run}/plane", record.x, record.y, record.z, display=draw))
    writer.close()
    figure = drawn("between", [f"between/{run}/plane"]).figure
    assert figure.layout.xaxis.title.text == "towards digits-captions · 21 Nov 16:30:12"
    assert figure.data[1].text[0] == "digits-captions · 21 Nov 16:30:12"


@pytest.mark.parametrize("name", ["along", "barrier", "between"])
def test_what_was_not_measured_leaves_words(home, name):
    assert drawn(name, ["between/no-such-run/line"], empty="Measure it.").empty == "Measure it."
