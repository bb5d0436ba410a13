"""What a method reports is drawn so that its claim can be seen: records that belong together share a chart."""

import json

import numpy as np
import pytest

from modalscape.app import catalog, figures
from modalscape.app.charts import registry
from modalscape.app.charts.method_panels import LAST, MOST, panels
from modalscape.app.figures.bars import beside
from modalscape.app.figures.curves import overlay
from modalscape.app.figures.styles import styles
from modalscape.app.runs.status import folder
from modalscape.app.server.routes import Desk
from modalscape.app.theme import look
from modalscape.app.views import methods
from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Curve, Matrix, Scalar
from modalscape.engine.store.commands import Tune
from modalscape.engine.store.writer import RunReader, RunWriter
from tests.app.test_pages import RUN, held, mounted, opened, sent, texts
from tests.fixture_run import STEPS, write_run

LOOKS = [look(dark, ["image", "text"], ["gani", "ogm_ge"]) for dark in (False, True)]
X = np.arange(1.0, 6.0)


def curve(label, **draw):
    return Curve(f"m/spectrum/image/{label}", X, 1 / X, display=Display(label=label) | Display(**draw))


def test_panels_come_in_their_order_and_the_others_last():
    kinds = dict.fromkeys(("m/a/x", "m/b", "m/c"), "scalar")
    asked = {"m/b": Display(panel="B", place=2), "m/c": Display(panel="C", place=1, note="Falls.")}
    found = panels(kinds, asked)
    assert [(p.title, p.place) for p in found] == [("C", 1), ("B", 2), ("A", LAST)]
    assert found[0].note == "Falls."


def test_panels_of_one_place_follow_the_modalities():
    kinds = {f"m/s/{part}/x": "curve" for part in ("image", "audio")}
    asked = {name: Display(panel=f"S, {name.split('/')[2]}", place=1) for name in kinds}
    assert [p.title for p in panels(kinds, asked, ["image", "audio"])] == ["S, image", "S, audio"]
    assert [p.title for p in panels(kinds, asked)] == ["S, audio", "S, image"]


def test_records_of_different_groups_share_the_panel_that_they_name():
    kinds = {"m/drift/a": "scalar", "m/limit/a": "scalar"}
    (panel,) = panels(kinds, dict.fromkeys(kinds, Display(panel="Drift", place=1)))
    assert panel.names == ["m/drift/a", "m/limit/a"]


def test_curves_of_one_modality_share_a_chart_unasked():
    kinds = dict.fromkeys(("m/s/image/a", "m/s/image/b", "m/s/text/a"), "curve")
    assert [p.names for p in panels(kinds, {})] == [["m/s/image/a", "m/s/image/b"], ["m/s/text/a"]]


def test_a_panel_holds_no_more_records_than_a_request_may_name():
    kinds = {f"m/a/{i:03}": "scalar" for i in range(60)}
    assert [len(p.names) for p in panels(kinds, {})] == [MOST]


def test_a_logarithmic_axis_has_no_place_for_a_level_of_zero():
    record = curve("before", ylog=True, levels={"floor": 0.0, "edge": 0.5})
    figure = overlay([("before", record, LOOKS[0].ink)], LOOKS[0])
    assert [shape.y0 for shape in figure.layout.shapes] == [0.5]
    assert [note.text for note in figure.layout.annotations] == ["edge"]


@pytest.mark.parametrize("colours", LOOKS, ids=["light", "dark"])
def test_measured_predicted_and_limit_look_different(colours):
    hue = colours.modalities["image"]
    found = styles(
        [(hue, Display()), (hue, Display(role="expected")), (hue, Display(role="limit")), (hue, Display())], colours
    )
    assert [s.dash for s in found] == ["solid", "dash", "dot", "dot"]
    assert [s.colour for s in found] == [hue, colours.ink, colours.muted, hue]


def test_lines_of_two_modalities_keep_their_colours_in_every_role():
    image, text = LOOKS[0].modalities.values()
    found = styles(
        [(image, Display()), (text, Display()), (image, Display(role="expected")), (text, Display(role="expected"))],
        LOOKS[0],
    )
    assert [s.colour for s in found] == [image, text, image, text]


def test_lines_of_no_modality_differ_by_colour():
    own = LOOKS[0].methods["gani"]
    assert len({s.colour for s in styles([(own, Display())] * 4, LOOKS[0])}) == 4


def test_an_overlay_marks_levels_and_shades_spans():
    records = [curve("before", role="before", levels={"edge": 0.5}, ylog=True), curve("after", spans=[[2.0, 3.0]])]
    figure = overlay([(r.display.label, r, LOOKS[0].part(r.name)) for r in records], LOOKS[0])
    lines = [shape for shape in figure.layout.shapes if shape.type == "line"]
    assert [(shape.y0, shape.y1) for shape in lines] == [(0.5, 0.5)]
    assert [(s.x0, s.x1) for s in figure.layout.shapes if s.type == "rect"] == [(2.0, 3.0)]
    (words,) = (a for a in figure.layout.annotations if a.text == "edge")
    assert words.y == pytest.approx(np.log10(0.5))


def test_bars_of_two_modalities_stand_beside_each_other():
    blocks = [
        (m, Bars(f"m/slope/{m}", np.array(["a", "b"]), np.array([1.0, 2.0])), "#112233") for m in ("image", "text")
    ]
    figure = beside(blocks, LOOKS[0])
    assert figure.layout.barmode == "group" and [trace.name for trace in figure.data] == ["image", "text"]


def test_shares_are_stacked_to_one_and_the_drawn_one_is_marked_within_its_own():
    chances = np.array([[0.6, 0.7, 0.2], [0.4, 0.3, 0.8]])
    drawn = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    rows = np.array(["image", "text", "drawn: image", "drawn: text"])
    record = Matrix(
        "m/controller", rows, np.array(["3", "4", "5"]), np.concatenate([chances, drawn]), display=Display(stack=2)
    )
    figure = figures.default(record, LOOKS[0])
    areas = [t for t in figure.data if t.stackgroup]
    np.testing.assert_allclose(sum(np.asarray(t.y) for t in areas), 1.0, atol=1e-6)
    assert [t.fillcolor for t in areas] == [LOOKS[0].faint(LOOKS[0].part(n), 0.4) for n in ("image", "text")]
    marks = [t for t in figure.data if t.mode == "markers"]
    assert [list(t.x) for t in marks] == [[3.0], [4.0]]
    np.testing.assert_allclose([t.y[0] for t in marks], [0.3, 0.85], atol=1e-6)


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")


def reported(home, *records, **meta):
    writer = RunWriter(home)
    for record in records:
        writer.record(380, record)
    for key, value in meta.items():
        writer.meta(key, value)
    writer.close()


def test_the_methods_page_draws_what_belongs_together_as_one(served):
    home = write_run(folder() / RUN)
    panel = Display(panel="Singular values: image", place=1, note="Noise lifts each direction.")
    reported(home, *(curve(label, **panel.to_json()) for label in ("before", "after")))
    reported(
        home,
        *(Curve(f"gani/s/image/{r}", X, X, display=panel | Display(label=r, role=r)) for r in ("before", "expected")),
    )
    at = opened("20_methods.py", RUN)
    (chart,) = [d for d in mounted(at) if d.get("title") == "Singular values: image"]
    assert chart["args"]["names"] == ["gani/s/image/before", "gani/s/image/expected"]
    drawn = json.loads(Desk().pulse(RUN, json.dumps([[chart["name"], chart["args"], ""]]), False))["charts"][0]
    assert [trace["name"] for trace in drawn["figure"]["data"]] == ["before", "expected"]
    assert "Noise lifts each direction." in texts(at)
    own = lambda: [d for d in mounted(at) if d.get("args", {}).get("names") == ["gani/alignment"]]  # noqa: E731
    assert not own(), "what does not tell stays folded"
    at.toggle(key="more-evidence/gani").set_value(True).run()
    assert own()


def test_a_chart_of_numbers_obeys_what_their_records_ask(home_of_two):
    asked = [["panel", {"names": ["gani/drift/image", "gani/limit/image"]}, ""]]
    drawn = json.loads(Desk().pulse(RUN, json.dumps(asked), False))["charts"][0]
    assert drawn["figure"], drawn["empty"]
    drawn = drawn["figure"]
    by_name = {trace["name"]: trace for trace in drawn["data"] if trace.get("name")}
    assert by_name["image, limit"]["line"]["dash"] == "dot" and by_name["image, drift"]["line"]["dash"] == "solid"
    assert drawn["layout"]["yaxis"]["type"] == "log"
    assert [shape["y0"] for shape in drawn["layout"]["shapes"]] == [0.04]


@pytest.fixture
def home_of_two():
    home = write_run(folder() / RUN)
    draw = Display(panel="Drift", ylog=True, levels={"K": 0.04})
    reported(
        home,
        Scalar("gani/drift/image", 1.0, display=draw | Display(label="drift")),
        Scalar("gani/limit/image", 2.0, display=draw | Display(label="limit", role="limit")),
    )
    writer = RunWriter(home)
    for name in ("drift", "limit"):
        writer.scalar(STEPS - 40, f"gani/{name}/image", 1.5)
    writer.close()
    return home


def test_a_chart_of_one_value_says_so_and_draws_no_axes():
    home = write_run(folder() / RUN)
    writer = RunWriter(home)
    writer.scalar(40, "note/one", 0.25)
    writer.close()
    drawn = json.loads(Desk().pulse(RUN, json.dumps([["series", {"names": ["note/one"]}, ""]]), False))["charts"][0]
    assert drawn["figure"] is None
    assert drawn["empty"] == "One value so far, at step 40: one 0.25. The line begins with the second."


def test_the_page_says_which_reading_is_in_force(served):
    home = write_run(folder() / RUN)
    reported(home, settings={"optimizer.lr": 0.1, "gani.sigma": 1.0, "gani.mode": "first"})
    shown = texts(opened("20_methods.py", RUN))
    line = next(row for row in shown.splitlines() if row.startswith("The reading in force: "))
    assert "**mode first**" in line and "sigma" not in line


def test_the_card_says_what_a_method_is_good_for_where_that_was_measured(served):
    write_run(folder() / RUN)
    judged = {entry["name"]: entry["judged"] for entry in catalog.methods()}
    assert {name for name, words in judged.items() if words} == {"bogc", "fanoise", "gani", "inforeg", "modalimmune"}
    at = opened("20_methods.py", RUN)
    for name in ("gani", "moddrop"):
        at.session_state["method-choice"] = name
        at.run()
        assert not at.exception and (judged["gani"] in texts(at)) == (name == "gani")


@pytest.mark.parametrize(("optimizer", "noted"), [("sgd", False), ("adam", True), ("rmsprop", True)])
def test_a_method_that_scales_gradients_is_noted_where_it_meets_adam(optimizer, noted):
    home = write_run(folder() / RUN)
    reported(home, optimizer={"name": optimizer, "lr": 0.1, "momentum": 0.9}, methods={"ogm_ge": {"params": {}}})
    shown = texts(opened("20_methods.py", RUN))
    assert (f"This run's optimiser is {optimizer}." in shown) == noted


def test_the_rate_is_sent_as_it_is_turned():
    with held("paused") as home:
        at = opened("10_live.py", RUN)
        at.sidebar.number_input(key=f"tune/{RUN}/optimizer.lr=0.1").set_value(0.05).run()
        assert sent(home) == [Tune("optimizer", "lr", 0.05)]
        assert at.sidebar.number_input(key=f"tune/{RUN}/optimizer.lr=0.05").value == 0.05
        assert "requested: lr = 0.05" in texts(at) and not at.exception


def test_what_a_file_says_is_set_as_its_author_wrote_it():
    doc = "Title.\n\n- *the paper's*: ‖Σ‖_*/‖Σ‖_op and a [b] * c\n  goes on.\n\n*Source*: x_y."
    assert methods.prose(doc) == (
        "Title.\n\n- *the paper's*: ‖Σ‖\\_\\*/‖Σ‖\\_op and a \\[b\\] \\* c\n  goes on.\n\n*Source*: x\\_y."
    )


def test_lines_are_named_without_the_modality_that_their_title_says_and_in_the_order_of_their_roles(tmp_path):
    home = write_run(tmp_path / RUN)
    writer = RunWriter(home)
    roles = {"noise": "limit", "predicted": "expected", "after": "", "before": "before"}
    for label, role in roles.items():
        for part in ("image", "text"):
            draw = Display(label=label, role=role, panel=f"Spectrum: {part}")
            writer.record(STEPS, Curve(f"m/spectrum/{part}/{label}", X, X, display=draw))
            writer.record(STEPS, Curve(f"m/lines/{part}/{label}", X, X, display=Display(label=label, role=role)))
    writer.close()
    reader = RunReader(home)

    def legend(*names):
        args = registry.checked("panel", {"names": list(names)})
        return [trace.name for trace in registry.CHARTS["panel"].draw(reader, args, LOOKS[0]).figure.data]

    assert legend("m/spectrum/image/*") == ["before", "after", "predicted", "noise"]
    both = legend("m/lines/*/after", "m/lines/*/before")
    assert both == ["image, before", "image, after", "text, before", "text, after"]


def test_a_panel_is_tall_where_one_of_its_records_asks():
    kinds = dict.fromkeys(("m/a", "m/b"), "bars")
    assert [p.tall for p in panels(kinds, {"m/a": Display(tall=True)})] == [True, False]


def test_the_methods_page_shows_what_a_probe_measured_of_a_method(served):
    write_run(folder() / RUN)

    def charts_of_escape():
        return [d for d in mounted(at) if any(n.startswith("escape/") for n in d.get("args", {}).get("names", []))]

    at = opened("20_methods.py", RUN)
    assert ["escape/indicator/added", "escape/indicator/batch"] in [d["args"]["names"] for d in charts_of_escape()]
    assert any("Measured beside it" in words.value for words in at.markdown)
    at.session_state["method-choice"] = "moddrop"
    at.run()
    assert not charts_of_escape()


def test_growth_far_below_what_matters_is_cut_and_said(tmp_path):
    home = write_run(tmp_path / RUN)
    writer = RunWriter(home)
    for step, value in ((STEPS, -40.0), (STEPS + 10, 0.5)):
        writer.record(step, Scalar("m/growth/image", value, display=Display(within=[-1.0, 1.0])))
    writer.close()
    args = registry.checked("panel", {"names": ["m/growth/*"]})
    drawing = registry.CHARTS["panel"].draw(RunReader(home), args, LOOKS[0])
    low, high = drawing.figure.layout.yaxis.range
    assert -1.2 < low < -1 and 0.5 < high < 0.7
    assert "some values lie beyond" in drawing.caption
