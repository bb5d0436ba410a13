import json

import numpy as np
import pytest

from modalscape.app import figures
from modalscape.app.charts.stability_edge import edges
from modalscape.app.figures.base import logarithmic, symlog, symlog_ticks
from modalscape.app.figures.curves import Line, Scale, series, smoothed
from modalscape.app.figures.marks import Mark
from modalscape.app.figures.pipeline import pipeline
from modalscape.app.figures.spectrum import density, sharpness, top
from modalscape.app.figures.surface import surface
from modalscape.app.theme import MODALITY_HUES, look
from modalscape.engine.core.display import Display
from modalscape.engine.core.points import Point
from modalscape.engine.core.records import KINDS, Bars, Curve, Matrix, Scalar, Surface

X = np.linspace(-1, 1, 51)
EXAMPLES = {
    "scalar": Scalar("hessian/trace", 3.0, 0.2),
    "curve": Curve("landscape/1d", X, X**2, 0.1 + 0 * X, display=Display(x="step", ylog=False)),
    "surface": Surface("landscape/2d", X, X, X[None] ** 2 + X[:, None] ** 2 + 0.1),
    "bars": Bars("imbalance/shapley", np.array(["image", "text"]), np.array([0.6, 0.2]), np.array([0.1, 0.1])),
    "matrix": Matrix(
        "hessian/shares", np.array(["a", "b"]), np.array(["image", "text"]), np.array([[0.1, -0.9], [0.2, 0.8]])
    ),
}
LOOKS = [look(dark, ["image", "text"], ["gani", "sam"]) for dark in (False, True)]


def line(name="loss", n=100, error=None, **options):
    return Line(name, np.arange(n), np.linspace(1, 2, n), "#112233", error, **options)


def all_lists(value, found):
    if isinstance(value, dict):
        for v in value.values():
            all_lists(v, found)
    elif isinstance(value, list):
        found.append(value)
        for v in value:
            all_lists(v, found)
    return found


@pytest.mark.parametrize("colours", LOOKS, ids=["light", "dark"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_record_has_a_default_figure(kind, colours):
    figure = figures.default(EXAMPLES[kind], colours)
    assert len(figure.data) > 0
    assert figure.layout.uirevision


def test_numbers_travel_as_narrow_typed_arrays_never_as_lists():
    drawn = [figures.default(record, LOOKS[0]) for record in EXAMPLES.values()]
    drawn.append(series([line(n=500)], LOOKS[0], scale=Scale(20.0), marks=[Mark(5, "GANI on", "#000000")]))
    for figure in drawn:
        data = json.loads(figure.to_json())["data"]
        kinds = [v["dtype"] for trace in data for v in trace.values() if isinstance(v, dict) and "bdata" in v]
        assert kinds and set(kinds) <= {"f4", "i4", "i2", "i1"}
        assert not [found for found in all_lists(data, []) if len(found) > 5 and isinstance(found[0], float)]


def test_zoom_survives_new_points_but_not_another_axis():
    first, later = series([line(n=10)], LOOKS[0]), series([line(n=900)], LOOKS[0])
    assert first.layout.uirevision == later.layout.uirevision
    assert series([line()], LOOKS[0], scale=Scale(ylog=True)).layout.uirevision != first.layout.uirevision


def test_what_has_no_logarithm_is_a_gap_on_a_logarithmic_axis():
    values = np.array([2.0, 0.0, -1.0, 3.0])
    drawn = [Line("norm", np.arange(4), values, "#112233")]
    logged, plain = (series(drawn, LOOKS[0], scale=Scale(ylog=ylog)).data[0] for ylog in (True, False))
    np.testing.assert_array_equal(logged.y, np.array([2, np.nan, np.nan, 3], np.float32))
    np.testing.assert_array_equal(plain.y, values)


def test_the_camera_of_a_surface_survives_new_heights():
    lower = Surface("landscape/2d", X, X, np.zeros((51, 51)) + 0.1)
    assert surface(lower, LOOKS[0]).layout.uirevision == surface(EXAMPLES["surface"], LOOKS[0]).layout.uirevision


@pytest.mark.parametrize(("columns", "written"), [(12, True), (32, False)])
def test_a_heat_map_writes_its_numbers_only_where_they_fit(columns, written):
    names = np.array([str(i) for i in range(columns)])
    record = Matrix("m/map", np.array(["a", "b"]), names, np.ones((2, columns)))
    assert bool(figures.default(record, LOOKS[0]).data[0].texttemplate) == written


def test_smoothing_off_is_off():
    y = np.random.default_rng(0).standard_normal(50)
    assert np.array_equal(smoothed(np.arange(50), y, 0.0), y)
    figure = series([line()], LOOKS[0])
    assert [trace.mode for trace in figure.data] == ["lines"]


def test_smoothing_halves_the_weight_of_a_value_each_half_life():
    y = np.zeros(11)
    y[0] = 1.0
    weights = 0.5 ** (np.arange(11) / 5)
    assert smoothed(np.arange(11), y, 5.0)[-1] == pytest.approx(weights[-1] / weights.sum())


def test_smoothing_leaves_gaps_where_values_are_not_finite():
    y = np.array([1.0, np.nan, 3.0])
    assert np.isnan(smoothed(np.arange(3), y, 5.0)).tolist() == [False, True, False]


def test_a_known_error_is_drawn_as_a_band_of_one_standard_error():
    error = np.full(100, 0.25)
    drawn = [t for t in series([line(error=error, sparse=True)], LOOKS[0]).data if t.fill == "toself"]
    assert len(drawn) == 1
    assert np.max(drawn[0].y) == pytest.approx(2.25)
    assert not [t for t in series([line(sparse=True)], LOOKS[0]).data if t.fill == "toself"]


def test_events_are_marked_on_the_time_axis_in_their_colour():
    figure = series([line()], LOOKS[0], marks=[Mark(40, "GANI on", "#C2255C")])
    words = [trace for trace in figure.data if trace.text is not None]
    assert any("GANI on" in text for trace in words for text in trace.text)
    assert any(trace.line.color == "#C2255C" and 40.0 in trace.x for trace in figure.data if trace.mode == "lines")


def test_a_colour_belongs_to_a_modality_whatever_else_is_there():
    alone, among = look(False, ["audio"]), look(False, ["text", "image", "audio"])
    assert alone.part("loss/audio") == among.part("accuracy/val/audio")
    assert len(set(among.modalities.values())) == 3


@pytest.mark.parametrize("dark", [False, True])
def test_eight_modalities_have_eight_colours(dark):
    colours = look(dark, [f"view{i}" for i in range(8)])
    assert len(set(colours.modalities.values())) == len(MODALITY_HUES) == 8


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_the_page(dark):
    colours = look(dark, [f"view{i}" for i in range(8)], [f"method{i}" for i in range(8)])

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in [*colours.modalities.values(), *colours.methods.values(), colours.muted, colours.ink]:
        low, high = sorted([luminance(colour), luminance(colours.paper)])
        assert (high + 0.05) / (low + 0.05) >= 3.0, colour


def test_symmetric_log_keeps_order_and_sign():
    values = np.array([-1e3, -1.0, -1e-3, 0.0, 1e-3, 1.0, 1e3])
    out = symlog(values, 1e-2)
    assert np.all(np.diff(out) > 0) and np.allclose(out, -out[::-1])
    places, words = symlog_ticks(-1e3, 1e3, 1e-2)
    assert len(places) == len(words) and "0" in words and np.all(np.diff(places) > 0)


def test_density_shows_the_whole_first_and_parts_on_request():
    curves = [
        (n, Curve(f"hessian/{n}", X, np.exp(-(X**2)), display=Display(lines=[0.9])), c)
        for n, c in (("whole", "#000000"), ("image", "#112233"))
    ]
    figure = density(curves, LOOKS[0])
    assert {trace.name: trace.visible for trace in figure.data if trace.name} == {"whole": True, "image": "legendonly"}


def test_top_eigenvalues_carry_their_residuals():
    figure = top(
        [("whole", Bars("hessian/top", np.array(["λ1"]), np.array([3.0]), np.array([0.4])), "#000000")], LOOKS[0]
    )
    assert figure.data[0].error_y.array[0] == pytest.approx(0.4)


def test_the_edge_of_stability_follows_rate_and_momentum():
    assert edges({"lr": 0.1})[0][0] == pytest.approx(20.0)
    assert edges({"lr": 0.1, "momentum": 0.9})[0][0] == pytest.approx(38.0)
    assert edges({"lr": 0.1, "momentum": 0.9, "nesterov": True})[0][0] == pytest.approx(38.0 / 2.8)
    assert edges({}) == []
    figure = sharpness([line(sparse=True)], LOOKS[0], levels=edges({"lr": 0.1}))
    assert figure.layout.shapes[0].y0 == pytest.approx(20.0)


def test_log_height_shows_the_true_loss_on_hover():
    figure = figures.contour(EXAMPLES["surface"], LOOKS[0], log=True)
    assert np.allclose(figure.data[0].z, np.log10(EXAMPLES["surface"].z), atol=1e-5)
    assert np.allclose(figure.data[0].customdata, EXAMPLES["surface"].z, atol=1e-5)


def test_the_pipeline_shows_seven_points_in_order_and_the_methods_on_them():
    figure = pipeline({"update": [("GANI", "#112233")]}, LOOKS[0])
    words = [a.text for a in figure.layout.annotations]
    heads = [w for w in words if w in tuple(Point)]
    assert heads == list(Point)
    assert "GANI" in words


@pytest.mark.parametrize("colours", LOOKS, ids=["light", "dark"])
def test_a_logarithmic_matrix_leaves_empty_what_is_not_positive_and_writes_all_values(colours):
    record = Matrix(
        "m", np.array(["a"]), np.array(list("xyz")), np.array([[100.0, 0.0, np.nan]]), display=Display(log=True)
    )
    figure = figures.default(record, colours)
    (trace,) = figure.data
    assert trace.z[0][0] == pytest.approx(2) and np.isnan(trace.z[0][1:]).all()
    assert list(trace.text[0]) == ["100", "", ""] and not trace.showscale
    notes = figure.layout.annotations
    assert [(note.x, note.text) for note in notes] == [(1, "0"), (2, "–")]
    assert {note.font.color for note in notes} == {colours.muted}


def test_a_matrix_of_cosines_is_coloured_from_minus_one_to_one():
    record = Matrix("m", np.array(["a"]), np.array(list("xy")), np.array([[0.1, np.nan]]), display=Display(signed=True))
    (trace,) = figures.default(record, LOOKS[0]).data
    assert (trace.zmin, trace.zmax, trace.showscale) == (-1, 1, True)


def test_of_many_columns_some_have_their_names():
    record = Matrix("m", np.array(["a"]), np.arange(64).astype(str), np.zeros((1, 64)))
    axis = figures.default(record, LOOKS[0]).layout.xaxis
    assert list(axis.tickvals) == [str(i) for i in range(0, 64, 4)]


def test_of_many_lying_bars_every_second_has_its_name_and_none_loses_its_value():
    labels = np.array([f"image/blocks.{i}.conv.weight" for i in range(30)])
    figure = figures.default(Bars("m", labels, np.arange(1.0, 31), display=Display(ylog=True)), LOOKS[0])
    assert len(figure.layout.yaxis.tickvals) == 15 and len(figure.data[0].x) == 30
    assert figure.layout.xaxis.type == "log"


def test_the_words_of_levels_stand_where_the_lines_leave_room():
    falling = Curve(
        "c", np.arange(1.0, 31), 10.0 ** -np.arange(30), display=Display(ylog=True, levels={"top": 1, "low": 0.5})
    )
    top, low = figures.default(falling, LOOKS[0]).layout.annotations
    assert (top.text, top.xanchor, top.x, top.yanchor) == ("top", "right", 1, "bottom")
    assert (low.xanchor, low.yanchor) == ("right", "top")  # two levels that lie close do not write into each other
    rising = Curve("c", np.arange(1.0, 31), np.arange(30.0), display=Display(levels={"end": 29.0}))
    assert figures.default(rising, LOOKS[0]).layout.annotations[0].xanchor == "left"


def test_a_band_that_reaches_zero_ends_below_all_that_a_logarithmic_axis_shows():
    line = Line("x", np.arange(3), np.array([10.0, 4.0, 20.0]), LOOKS[0].ink, np.array([12.0, 1.0, 2.0]))
    band, _ = series([line], LOOKS[0], scale=Scale(ylog=True)).data
    assert list(band.y) == [22.0, 5.0, 22.0, 18.0, 3.0, 1.5]
    band, _ = series([line], LOOKS[0]).data
    assert min(band.y) == -2.0


@pytest.mark.parametrize(("top", "ticks"), [(1.5, "L0.2"), (50.0, "D2"), (1e6, None), (1.0, None)])
def test_a_logarithmic_axis_has_few_ticks_where_all_would_collide(top, ticks):
    line = Line("x", np.arange(3), np.array([1.0, top, np.nan]), LOOKS[0].ink)
    assert series([line], LOOKS[0], scale=Scale(ylog=True)).layout.yaxis.dtick == ticks


CASES = [(2e-5, 9e-5, "D2"), (1e-5, 2e-3, 1), (1e-12, 1.0, 2), (2.0, 9e3, None)]


@pytest.mark.parametrize(("low", "top", "ticks"), CASES)
def test_small_numbers_have_powers_of_ten_beyond_a_decade(low, top, ticks):
    assert logarithmic([np.array([low, top])]).get("dtick") == ticks


def test_a_chart_of_few_steps_is_ticked_at_them_and_nowhere_else():
    one, many = (series([Line("a", np.arange(n), np.ones(n), LOOKS[0].ink)], LOOKS[0]).layout.xaxis for n in (2, 20))
    assert one.tickvals == (0, 1) and many.tickvals is None
    assert one.dtick is None, "an event at step 100,000 would cost as many ticks"


@pytest.mark.parametrize("colours", LOOKS, ids=["light", "dark"])
def test_a_map_of_two_rates_starts_its_colours_at_chance_and_writes_it_beside_them(colours):
    at, draw = np.array(["0.000", "0.412", "1.000"]), Display(rates=True, levels={"chance": 0.25}, z="accuracy")
    values = np.array([[0.9, 0.6, 0.4], [0.8, 0.5, 0.3], [0.7, 0.4, 0.26]])
    figure = figures.default(Matrix("robustness/rates/a+b", at, at, values, 0.1 * values, display=draw), colours)
    (cells,) = figure.data
    assert (cells.zmin, cells.zmax) == (0.25, pytest.approx(0.9))
    assert cells.x.tolist() == cells.y.tolist() == pytest.approx([0, 0.412, 1])
    marked = dict(zip(cells.colorbar.ticktext, cells.colorbar.tickvals, strict=True))
    assert marked["chance 0.25"] == 0.25 and len(marked) >= 3
    assert figure.layout.yaxis.autorange != "reversed" and figure.layout.xaxis.ticktext[1] == "0.41"
