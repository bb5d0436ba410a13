"""Words and colours of charts: whose a quantity is, what captions keep, which ticks an axis has, what a log repeats."""

import numpy as np

from app.charts import WORDY, _told
from app.figures.bars import shortened
from app.figures.base import logarithmic
from app.figures.curves import Line, Scale, series
from app.log import troubles
from app.naming import labels
from app.theme import look
from engine.reader import Event
from engine.records import Scalar

LOOK = look(False, ["image", "audio"], ["sam", "gani"])


def test_a_quantity_that_bears_a_methods_name_has_the_colour_of_its_modality():
    assert LOOK.part("sharpness/audio/sam") == LOOK.modalities["audio"] != LOOK.methods["sam"]
    assert LOOK.part("sharpness/shared/sam") == LOOK.muted
    assert LOOK.part("escape/indicator/gani") == LOOK.methods["gani"]


def test_a_long_caption_keeps_what_all_lines_have_in_common():
    start = "training loss, no method active, "
    held = {name: Scalar(name, 1.0, mode=start + name * WORDY, n=256) for name in "ab"}
    assert _told(held) == " · n = 256 · training loss, no method active"


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
