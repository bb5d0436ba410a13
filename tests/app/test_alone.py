"""A modality trained alone against what it reaches in company: which runs are compared, the gap, and how to get one."""

import json
import shlex

import numpy as np
import pytest

from modalscape.app import catalog
from modalscape.app.charts import unimodal_gap
from modalscape.app.charts.registry import CHARTS, checked
from modalscape.app.runs.status import folder
from modalscape.app.server.routes import Desk
from modalscape.app.theme import look
from modalscape.engine.config import read
from modalscape.engine.store.commands import Toggle
from modalscape.engine.store.writer import RunReader, RunWriter, create
from tests.app.test_pages import RUN, mounted, opened, texts
from tests.fixture_run import STEPS, write_run

PAGE = "50_balance.py"
PLAIN = look(False, ["image", "text"], [])


def write_alone(modality, name, *, events=(), score=0.9, **changes):
    """Write the run that the fixture run asks for, trained on one modality, with some of its configuration changed."""
    home = folder() / name
    home.mkdir(parents=True)
    create(home)
    own = read(folder() / RUN).to_json()
    settings = own["settings"] | {"modalities": modality} | changes.pop("settings", {})
    config = own | {"methods": [], "probes": {}, "settings": settings} | changes
    (home / "config.json").write_text(json.dumps(config))
    writer = RunWriter(home)
    for key, value in {"modalities": [modality], "score": "accuracy", "rows": {"val": 180}}.items():
        writer.meta(key, value)
    for command in events:
        writer.event(50, "applied", {"id": 1, "command": command.to_json()})
    for step in range(0, STEPS + 1, 40):
        writer.scalars(step, {"accuracy/val": score * step / STEPS})
    writer.close()
    return home


@pytest.fixture
def home():
    return write_run(folder() / RUN)


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("MODALSCAPE_SERVED", "1")


def known():
    return unimodal_gap.companions(RUN, catalog.load())


def test_a_run_of_one_modality_and_otherwise_the_same_is_found(home):
    write_alone("image", "image-alone")
    assert known() == {"image": "image-alone"}
    write_alone(
        "text", "text-alone", settings={"report": 5, "evaluate": 10, "hessian.steps": 20, "optimizer.nesterov": False}
    )
    assert known() == {"image": "image-alone", "text": "text-alone"}
    assert unimodal_gap.companions("image-alone", catalog.load()) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"steps": 999},
        {"problem": "planted"},
        {"methods": ["sam"]},
        {"settings": {"optimizer.lr": 0.2}},
        {"settings": {"label_noise": 0.1}},
        {"settings": {"digits_captions.wrong_caption": 0.3}},
        {"settings": {"modalities": "image,text"}},
        {"settings": {"modalities": "sound"}},
        {"events": [Toggle("sam", True)]},
    ],
)
def test_a_run_that_differs_in_more_is_not_compared(home, changes):
    write_alone("image", "image-alone", **changes)
    assert known() == {}


def test_the_gap_is_the_difference_at_the_steps_that_both_were_scored_at(home):
    write_alone("image", "image-alone", score=0.95)
    reader = RunReader(home)
    found = CHARTS["alone"].draw(reader, checked("alone", {"names": ["image-alone"]}), PLAIN)
    line = next(trace for trace in found.figure.data if trace.name == "image" and trace.fill is None)
    steps, joint = reader.scalars("accuracy/val/image", points=None)
    joint = dict(zip(steps.tolist(), joint.tolist(), strict=True))
    assert line.x.tolist() == list(range(0, STEPS + 1, 40))
    np.testing.assert_allclose(line.y, [0.95 * s / STEPS - joint[s] for s in line.x], atol=1e-6)
    band = next(trace for trace in found.figure.data if trace.fill == "toself")
    p, q = 0.95, joint[STEPS]
    assert max(band.y[band.x == STEPS]) - line.y[-1] == pytest.approx(
        np.sqrt((p * (1 - p) + q * (1 - q)) / 180), rel=1e-4
    )
    for words in (f"through step {STEPS}", "n = 180", "in company: unimodal heads", "image alone: image-alone"):
        assert words in found.caption
    assert "alone" in found.figure.layout.yaxis.title.text


def test_the_chart_takes_no_path_no_run_of_several_and_no_stranger(home):
    write_run(folder() / "another")
    for names in (["another"], ["../" + RUN], ["no-such-run"], [RUN]):
        assert CHARTS["alone"].draw(RunReader(home), checked("alone", {"names": names}), PLAIN).figure is None


def test_the_gap_is_drawn_anew_when_the_other_run_goes_on(home):
    other, args = write_alone("image", "image-alone"), checked("alone", {"names": ["image-alone"]})
    before = unimodal_gap.stamp(RunReader(home), args)
    assert unimodal_gap.stamp(RunReader(home), args) == before
    writer = RunWriter(other)
    writer.scalars(STEPS + 40, {"accuracy/val": 0.5})
    writer.close()
    assert unimodal_gap.stamp(RunReader(home), args) != before


def test_the_page_draws_what_is_there_and_says_how_to_get_the_rest(home, served):
    write_alone("image", "image-alone")
    at = opened(PAGE, RUN)
    assert not at.exception
    (chart,) = [data for data in mounted(at) if data.get("name") == "alone"]
    answer = json.loads(Desk().pulse(RUN, json.dumps([["alone", chart["args"], ""]]), False))["charts"][0]
    assert answer["figure"] is not None and chart["args"]["names"] == ["image-alone"]
    assert "what text would reach alone" in texts(at) and "More settings" in texts(at)
    (line,) = [element.value for element in at.code]
    assert "--set modalities=text" in line and "--seed 0" in line and "--set optimizer.lr=0.1" in line


def test_the_line_is_a_run_that_the_page_would_find(home, tmp_path):
    words = shlex.split(unimodal_gap.command(unimodal_gap.config_of(RUN, "text", catalog.load())))
    pairs = dict(word.split("=", 1) for flag, word in zip(words, words[1:], strict=False) if flag == "--set")
    told = {
        flag: word for flag, word in zip(words, words[1:], strict=False) if flag.startswith("--") and flag != "--set"
    }
    assert words[:4] == ["python", "-m", "engine", "run"]
    assert told == {"--problem": "digits_captions", "--steps": "1000", "--seed": "0"}
    write_alone("text", "text-alone", settings={key: value for key, value in pairs.items() if key == "modalities"})
    assert pairs["modalities"] == "text" and known() == {"text": "text-alone"}


def test_the_button_starts_that_run(home, monkeypatch):
    begun = []
    monkeypatch.setattr(
        "modalscape.app.runs.supervisor.Supervisor.begin",
        lambda self, config, note="": begun.append((config, note)) or RUN,
    )
    monkeypatch.setattr("modalscape.app.views.shell.go", lambda page, run: None)
    at = opened(PAGE, RUN)
    at.button(key=f"alone/{RUN}/text").click().run()
    assert not at.exception and not at.error
    ((config, note),) = begun
    assert config["settings"]["modalities"] == "text" and config["methods"] == [] and "text alone" in note


def test_the_start_page_offers_the_modalities_among_its_settings():
    at = opened()
    found = at.text_input(key="new/digits_captions/modalities")
    assert (found.label, found.value) == ("Modalities", "") and "empty for all" in found.help


@pytest.mark.parametrize("page", [PAGE, "55_robustness.py"])
def test_a_run_of_one_modality_says_that_there_is_nothing_to_compare(home, page):
    write_alone("image", "image-alone")
    at = opened(page, "image-alone")
    assert not at.exception and "trains on image alone" in texts(at)


@pytest.mark.parametrize("page", ["45_gradients.py", PAGE, "55_robustness.py"])
def test_a_run_of_one_loss_is_offered_again_with_a_loss_for_each_modality(home, page, monkeypatch):
    begun = []
    monkeypatch.setattr(
        "modalscape.app.runs.supervisor.Supervisor.begin",
        lambda self, config, note="": begun.append((config, note)) or RUN,
    )
    monkeypatch.setattr("modalscape.app.views.shell.go", lambda page, run: None)
    assert f"with-heads/{RUN}" not in {button.key for button in opened(page, RUN).button}
    config = json.loads((home / "config.json").read_text())
    config["settings"]["unimodal"] = "none"
    (home / "config.json").write_text(json.dumps(config))
    at = opened(page, RUN)
    assert "This run has one loss" in texts(at)
    at.button(key=f"with-heads/{RUN}").click().run()
    assert not at.exception and not at.error
    ((made, note),) = begun
    assert made["settings"]["unimodal"] == "heads" and made["methods"] == ["ogm_ge"]
    assert made["probes"] and made["seed"] == 0 and "a loss for each modality" in note


def test_no_losses_of_modalities_are_offered_where_there_can_be_none(home):
    config = json.loads((home / "config.json").read_text())
    for settings in ({"objective": "info_nce", "unimodal": "none"}, {"modalities": "image", "unimodal": "none"}):
        (home / "config.json").write_text(json.dumps(config | {"settings": settings}))
        if "modalities" in settings:
            writer = RunWriter(home)
            writer.meta("modalities", ["image"])
            writer.close()
        assert unimodal_gap.with_heads(RUN, catalog.load()) is None
