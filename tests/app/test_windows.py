"""Prime learning windows are shaded where an encoder takes in information fastest, by the method or by the trace."""

import numpy as np
import pytest

from modalscape.app.charts import registry
from modalscape.app.charts.learning_windows import MOST, growing, windows
from modalscape.app.charts.request import ChartError
from modalscape.app.figures.curves import Line, series
from modalscape.app.theme import look
from modalscape.engine.client.handle import RunHandle
from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Curve, Scalar
from modalscape.engine.store.writer import RunWriter, create

COLOURS = look(False, ["image", "text"], [])
SHADE = ["inforeg/traces/*", "imbalance/fisher_trace/*"]


@pytest.fixture
def run(tmp_path):
    """Return how to write records (step, record) into a run, and its reader."""
    create(tmp_path)
    writer = RunWriter(tmp_path)

    def put(*records):
        for step, record in records:
            writer.record(step, record)
        writer.flush()
        return RunHandle.attach(tmp_path).reader()

    yield put
    writer.close()


def traces(part, *values):
    return [(10 * i, Scalar(f"imbalance/fisher_trace/{part}", value)) for i, value in enumerate(values)]


def test_a_window_is_open_where_the_trace_grows_by_more_than_k_of_itself():
    steps = np.arange(6) * 10
    assert growing(steps, np.array([1.0, 2.0, 4.0, 4.1, 3.0, 6.0])) == [(0.0, 20.0), (40.0, 50.0)]
    assert growing(steps[:3], np.array([1.0, 0.97, 0.99])) == []


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0, 0.0], [np.nan, np.nan, 2.0], [2.0, np.nan, np.nan]])
def test_no_window_opens_on_too_little_nothing_or_what_is_no_number(values):
    assert growing(np.arange(len(values)), np.array(values)) == []


def test_the_traces_measured_tell_the_windows_of_each_part(run):
    reader = run(*traces("image", 1.0, 2.0, 1.5), *traces("text", 1.0, 1.0, 1.4))
    shades, words = windows(reader, SHADE, COLOURS, {})
    assert [(s.part, list(s.spans)) for s in shades] == [("image", [(0.0, 10.0)]), ("text", [(10.0, 20.0)])]
    assert [s.colour for s in shades] == list(COLOURS.modalities.values())
    assert "more than 4% from one measurement to the next (image, text)" in words


def test_the_windows_of_the_method_come_first(run):
    curve = Curve("inforeg/traces/text", np.arange(2.0), np.ones(2), display=Display(spans=[[0, 30], [40, 50]]))
    shades, words = windows(run(*traces("image", 1.0, 2.0), (20, curve)), SHADE, COLOURS, {"inforeg": "InfoReg"})
    assert [(s.part, list(s.spans)) for s in shades] == [("text", [(0.0, 30.0), (40.0, 50.0)])]
    assert words == " · shaded: prime learning window by InfoReg (text)"


def test_a_window_that_never_opened_is_said_and_not_drawn(run):
    shades, words = windows(run(*traces("image", 3.0, 2.0, 1.0)), SHADE, COLOURS, {})
    assert shades == [] and words.startswith(" · nothing to shade yet")
    assert windows(run(), ["nothing/*"], COLOURS, {}) == ([], "")


def test_a_comb_of_windows_keeps_the_newest(run):
    values = [1.0 + (i % 2) for i in range(2 * MOST + 11)]
    (shade,), _ = windows(run(*traces("image", *values)), SHADE, COLOURS, {})
    assert len(shade.spans) == MOST and shade.spans[-1][1] == 10 * (len(values) - 2)


def test_overlapping_windows_have_lanes_of_their_own_and_end_with_the_curves():
    line = Line("x", np.array([0, 100]), np.ones(2), COLOURS.ink)
    red, blue = COLOURS.modalities.values()
    figure = series([line], COLOURS, bands=[([(0.0, 60.0)], red), ([(20.0, 400.0), (500.0, 600.0)], blue)])
    tall = [s for s in figure.layout.shapes if s.type == "rect"]
    assert [(s.x0, s.x1, s.y0, s.y1) for s in tall] == [(0.0, 60.0, 0, 1), (20.0, 100.0, 0, 1)]
    one, other = [s for s in figure.layout.shapes if s.type == "path"]
    assert one.path == "M0,0 H60 V0.022 H0 Z" and other.path == "M20,0.03 H100 V0.052 H20 Z"
    assert one.fillcolor != other.fillcolor


def test_many_windows_are_lanes_alone():
    line = Line("x", np.array([0, 100]), np.ones(2), COLOURS.ink)
    figure = series([line], COLOURS, bands=[([(5.0 * i, 5.0 * i + 2) for i in range(20)], COLOURS.ink)])
    (lane,) = figure.layout.shapes
    assert lane.path.count("M") == 20


def test_a_chart_is_drawn_anew_when_a_window_may_have_moved(run):
    args = registry.checked("series", {"names": ["imbalance/fisher_trace/*"], "shade": SHADE})
    reader = run(*traces("image", 1.0, 2.0))
    drawing = registry.CHARTS["series"].draw(reader, args, COLOURS)
    assert "shaded: Fisher trace" in drawing.caption
    assert any(shape.y1 == 1 and (shape.x0, shape.x1) == (0, 10) for shape in drawing.figure.layout.shapes)
    stamp = registry.CHARTS["series"].stamp(reader, args)
    curve = Curve("inforeg/traces/image", np.arange(2.0), np.ones(2), display=Display(spans=[[0, 5]]))
    assert registry.CHARTS["series"].stamp(run((20, curve)), args) != stamp


@pytest.mark.parametrize("shade", ["a", [1], ["a"] * 5, ["a\nb"]])
def test_a_chart_takes_only_names_as_shades(shade):
    with pytest.raises(ChartError, match="shades"):
        registry.checked("series", {"names": ["a"], "shade": shade})
