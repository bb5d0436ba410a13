"""What a method declares that it needs: the configuration is refused for it, and so is the run by the engine."""

import re

import numpy as np
import pytest

from modalscape.engine import config as configuration
from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, resolved, validated
from modalscape.engine.core.needs import Unmet
from modalscape.engine.errors import InputError
from modalscape.engine.runtime.session import Training
from tests.homes import said, small

CATALOGUE = catalog()
METHODS = {entry["name"]: entry for entry in CATALOGUE["methods"]}
KNOBS = configuration.settings_known(RunConfig(problem="planted"), CATALOGUE)


def breaking(need, entry):
    """Return settings in which only this need is not met, for each value that its setting may have and should not."""
    rest = {other["setting"]: other["among"][0] for other in entry["needs"] if other is not need}
    others = KNOBS[need["setting"]]["choices"] or ()
    found = [rest | need["when"] | {need["setting"]: other} for other in others if other not in need["among"]]
    assert found, f"nothing can break {need}"
    return found


CASES = [
    (name, settings, need)
    for name, entry in METHODS.items()
    for need in entry["needs"]
    for settings in breaking(need, entry)
]
IDS = [f"{name}-{need['setting']}={settings[need['setting']]}" for name, settings, need in CASES]


def unchecked(**changes):
    values = {"problem": "planted", "steps": 5, "device": "cpu"} | changes
    values["settings"] = {"planted.rows": 600, "batch": 32, "width": 8, "hidden": 8} | values["settings"]
    return RunConfig(**values)


@pytest.mark.parametrize(("name", "settings", "need"), CASES, ids=IDS)
def test_an_unmet_need_is_a_sentence_before_anything_is_made(name, settings, need):
    with pytest.raises(Unmet) as caught:
        validated(unchecked(methods=(name,), settings=settings), CATALOGUE)
    text = str(caught.value)
    assert METHODS[name]["title"] in text and need["setting"] in text and re.fullmatch(r"[^\n]{20,240}\.", text)
    assert caught.value.remedy == {need["setting"]: need["among"][0]}


@pytest.mark.parametrize(("name", "settings", "need"), CASES, ids=IDS)
def test_the_engine_refuses_the_same_by_itself_so_nothing_that_trained_is_refused_now(name, settings, need):
    config = unchecked(methods=(name,), settings=settings)
    with pytest.raises(InputError):
        Training(config)


@pytest.mark.parametrize(("name", "settings", "need"), CASES, ids=IDS)
def test_the_remedy_mends_it(name, settings, need):
    mended = settings | {need["setting"]: need["among"][0]}
    Training(validated(unchecked(methods=(name,), settings=mended), CATALOGUE)).step()


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry["modalities"][0] > 1])
def test_too_few_modalities_are_refused_by_both(name):
    settings = {"modalities": "vision"}
    with pytest.raises(Unmet, match=r"needs 2 modalities or more, and this run has 1 \(vision\)"):
        validated(unchecked(methods=(name,), settings=settings), CATALOGUE)
    with pytest.raises(InputError):
        Training(unchecked(methods=(name,), settings=settings))


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry["modalities"][1]])
def test_too_many_modalities_are_refused_by_both(name, tmp_path):
    many = [f"m{i}" for i in range(METHODS[name]["modalities"][1] + 1)]
    draw = np.random.default_rng(0)
    arrays = {n: draw.random((60, 3), dtype=np.float32) for n in many}
    np.savez(tmp_path / "d.npz", labels=np.arange(60) % 2, **arrays)
    changes = {"problem": None, "data": str(tmp_path / "d.npz"), "methods": (name,)}
    with pytest.raises(Unmet, match="at most"):
        validated(unchecked(settings={"modalities": ",".join(many)}, **changes), CATALOGUE)
    with pytest.raises(InputError):
        Training(unchecked(settings={"modalities": ",".join(many)}, **changes))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_that_compares_modalities_says_so(name):
    """A method that the engine refuses for one modality, or without classes, has declared it."""
    for settings in ({"modalities": "vision", "unimodal": "heads"}, {"objective": "info_nce"}):
        try:
            Training(unchecked(methods=(name,), settings=settings))
        except InputError:
            with pytest.raises(Unmet):
                validated(unchecked(methods=(name,), settings=settings), CATALOGUE)


def test_two_owners_of_the_gradient_are_refused_before_anything_is_made():
    with pytest.raises(Unmet, match="bogc and mmpareto both replace the gradient; turn one off"):
        validated(unchecked(methods=("bogc", "mmpareto"), settings={"unimodal": "heads"}), CATALOGUE)


def test_what_a_problem_prefers_counts():
    config = validated(unchecked(methods=("mmpareto",), settings={"unimodal": "heads"}), CATALOGUE)
    assert resolved(config, CATALOGUE)["unimodal"] == "heads"


def test_the_command_line_makes_no_folder(tmp_path):
    home = tmp_path / "home"
    asked = ("--problem", "planted", "--method", "mmpareto", "--set", "unimodal=none", "--steps", "5")
    _, err = said("run", *asked, "--home", str(home), code=2)
    assert "MMPareto needs unimodal to be heads or slices, not none; set unimodal=heads" in err
    assert not home.exists()


def test_lessons_meet_the_needs_of_their_methods():
    for lesson in CATALOGUE["lessons"]:
        for arm in lesson["arms"].values():
            validated(RunConfig.from_json(arm), CATALOGUE)
    assert small(methods=("sam",)).methods == ("sam",)
