"""Words and colours of charts: whose a quantity is, what captions keep, which ticks an axis has, what a log repeats."""

import gzip

import numpy as np
import pytest

from modalscape.app.charts.labels import labels
from modalscape.app.charts.registry import WORDY, protocols
from modalscape.app.figures.bars import shortened
from modalscape.app.figures.base import logarithmic
from modalscape.app.figures.curves import Line, Scale, series
from modalscape.app.figures.marks import PLACES, Mark, marking
from modalscape.app.theme import look
from modalscape.app.views.log import troubles
from modalscape.engine.core.records import Scalar
from modalscape.engine.store.reader import Event, thinned

LOOK = look(False, ["image", "audio"], ["sam", "gani"])


def test_a_quantity_that_bears_a_methods_name_has_the_colour_of_its_modality():
    assert LOOK.part("sharpness/audio/sam") == LOOK.modalities["audio"] != LOOK.methods["sam"]
    assert LOOK.part("sharpness/shared/sam") == LOOK.muted
    assert LOOK.part("escape/indicator/gani") == LOOK.methods["gani"]


def test_a_long_caption_keeps_what_all_lines_have_in_common():
    start = "training loss, no method active, "
    held = {name: Scalar(name, 1.0, mode=start + name * WORDY, n=256) for name in "ab"}
    assert protocols(held) == " · n = 256 · training loss, no method active"


def test_ticks_follow_the_error_band_too():
    values, error = np.array([0.5, 0.6]), np.array([0.49, 0.599])
    line = Line("a", np.array([1, 2]), values, LOOK.ink, error, sparse=True)
    axis = series([line], LOOK, scale=Scale(ylog=True)).layout.yaxis
    assert axis.dtick == logarithmic([np.array([0.001, 1.2])]).get("dtick") != logarithmic([values])["dtick"]


def test_names_of_tensors_stay_apart_when_they_are_cut():
    names = [f"encoders.{m}.blocks.{i}.conv.weight" for m in ("image", "audio") for i in range(3)]
    shown = shortened([*names, "fusion.head.bias"])
    assert len(set(shown.values())) == len(shown) and shown["fusion.head.bias"] == "fusion.head.bias"
    assert all(m in shown[name] for name in names for m in ("image", "audio") if m in name)
    assert max(map(len, shown.values())) <= 26


def test_a_loss_of_a_method_is_called_by_the_methods_title():
    found = labels(["loss/fused", "loss/reg/modalimmune"], {"modalimmune": "ModalImmune"})
    assert found == {"loss/fused": "fused", "loss/reg/modalimmune": "term of ModalImmune"}


def test_the_same_trouble_is_said_once_with_its_count():
    events = [Event(i, 10 * i, 0.0, kind, {"error": words}) for i, (kind, words) in enumerate(
        [("probe failed", "a"), ("note", "x"), ("probe failed", "b"), ("probe failed", "a")]
    )]  # fmt: skip
    assert [(e.step, times) for e, times in troubles(events)] == [(20, 1), (30, 2)]


@pytest.mark.parametrize("log", [False, True])
def test_every_event_has_its_line_however_many_there_are(log):
    colours = [LOOK.muted, *LOOK.methods.values()]
    marks = [Mark(7 * i + 1, f"lr = {i}", colours[i % len(colours)]) for i in range(5000)]
    figure = series(
        [Line("a", np.arange(1, 35_001, 35), np.ones(1000), LOOK.ink)], LOOK, scale=Scale(xlog=log), marks=marks
    )
    body = figure.to_json()
    lines = [t for t in figure.data if t.mode == "lines" and t.yaxis == "y2"]
    assert len(lines) == len(colours), "one trace a colour"
    assert {int(x) for t in lines for x in t.x} == {mark.step for mark in marks}
    handles = next(t for t in figure.data if t.mode == "markers")
    assert len(handles.x) <= PLACES + 1
    told = sum(
        1 if "more" not in line else int(line.split()[1].replace(",", ""))
        for t in handles.text
        for line in t.split("<br>")
    )
    assert told == 5000
    assert len(gzip.compress(body.encode(), 2)) < 150_000


def test_events_of_one_step_are_all_named_on_hover():
    marks = [Mark(10, f"m{i} on", LOOK.muted) for i in range(6)]
    traces, _ = marking(marks, (0.0, 100.0))
    (text,) = next(t for t in traces if t["mode"] == "markers")["text"]
    assert text == "<br>".join([*(f"m{i} on at step 10" for i in range(4)), "and 2 more to step 10"])


def test_words_of_events_keep_apart_on_a_logarithmic_axis():
    marks = [Mark(step, "resumed", LOOK.muted) for step in (10, 5000, 6000, 7000, 8000, 9000)]
    traces, _ = marking(marks, (1.0, 10_000.0), log=True)
    assert len(traces[-1]["text"]) == 4, "one early, and one in each of three rows"
    assert [place.split()[1] for place in traces[-1]["textposition"]] == ["right", "left", "left", "left"]
    traces, _ = marking([Mark(s, "resumed", LOOK.muted) for s in (50, 60, 72, 85, 95)], (0.0, 100.0))
    spans = [(x - 16, x, y) if side == "middle left" else (x, x + 16, y) for x, y, side in zip(
        *(traces[-1][key] for key in ("x", "y", "textposition")), strict=True
    )]  # fmt: skip
    assert len(spans) == 5 and not any(
        a < d and c < b for i, (a, b, y) in enumerate(spans) for c, d, z in spans[:i] if y == z
    )


def test_a_logarithmic_axis_shows_the_first_steps_whole_and_every_spike():
    x = np.arange(1, 50_001)
    y = np.random.default_rng(0).normal(size=len(x))
    y[[3, 40_000]], y[7] = (50.0, -50.0), np.nan
    at, values = thinned(x, y, 400, log=True)
    assert len(at) <= 400 and at[0] == 1 and at[-1] == 50_000 and (np.diff(at) > 0).all()
    assert {50.0, -50.0} <= set(values.tolist()) and set(at.tolist()) >= {1, 2, 3, 4, 5, 6}
    assert np.sum(at < 1000) > 5 * np.sum(thinned(x, y, 400)[0] < 1000)
