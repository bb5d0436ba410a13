"""What a configuration leaves out: new runs have unimodal heads, and those of older versions keep what they had."""

import json

import pytest
import torch

from modalscape.engine import config as configuration
from modalscape.engine.actions import probe, replay, resume, run_prepared
from modalscape.engine.catalog import catalog
from modalscape.engine.config import DEFAULTS, RunConfig, read, resolved, validated
from modalscape.engine.errors import InputError
from modalscape.engine.runtime.session import Training
from modalscape.engine.store.home import founded
from modalscape.engine.store.writer import create
from tests.homes import SMALL, json_of, said, small, trained
from tests.methods.several import data_file

CATALOGUE = catalog()
SETTINGS = SMALL | {"unimodal": "none"}
OLD = {"problem": "planted", "data": None, "methods": [], "probes": {}, "steps": 40, "seed": 3, "device": "cpu"}


def of_old(home, **changes):
    """Make a home as an older version prepared it: a configuration without the number of its defaults."""
    home.mkdir()
    (home / "config.json").write_text(json.dumps(OLD | {"settings": SMALL} | changes))
    create(home)
    return home


def unimodal(**values):
    config = validated(RunConfig(**({"problem": "planted", "device": "cpu"} | values)), CATALOGUE)
    return resolved(config, CATALOGUE)["unimodal"], Training(config).settings.unimodal


def test_a_new_run_has_heads_and_one_setting_takes_them_away():
    assert unimodal() == ("heads", "heads")
    assert unimodal(settings={"unimodal": "none"}) == ("none", "none")


def test_the_command_line_has_heads_unless_told_otherwise(tmp_path):
    small_run = ("run", "--problem", "planted", "--steps", 3, "--set", "planted.rows=200", "--device", "cpu")
    found = json_of(*small_run, "--home", tmp_path / "new")["scalars"]
    assert {"loss/vision", "loss/audio"} <= set(found)
    found = json_of(*small_run, "--set", "unimodal=none", "--home", tmp_path / "fused")["scalars"]
    assert "loss/fused" in found and "loss/vision" not in found


@pytest.mark.parametrize("settings", [{"objective": "info_nce"}, {"modalities": "audio"}], ids=str)
def test_where_heads_would_say_nothing_there_are_none_and_no_error(settings):
    assert unimodal(settings=settings) == ("none", "none")


def test_a_file_of_one_modality_has_none_either(tmp_path):
    config = RunConfig(data=data_file(tmp_path, names=("image",)), device="cpu")
    training = Training(validated(config, CATALOGUE))
    assert training.settings.unimodal == training.values["unimodal"] == "none"
    asked = Training(validated(RunConfig(data=config.data, device="cpu", settings={"unimodal": "heads"}), CATALOGUE))
    assert asked.settings.unimodal == "heads"


def test_heads_that_are_asked_for_where_there_are_no_logits_are_still_refused():
    with pytest.raises(InputError, match="unimodal must be none"):
        unimodal(settings={"objective": "info_nce", "unimodal": "heads"})


def test_what_is_written_is_read_as_it_was_meant():
    for config in (small(), small(settings={"unimodal": "none"}), small(settings={"unimodal": "heads"})):
        values = json.loads(json.dumps(config.to_json()))
        assert values["defaults"] == DEFAULTS and validated(RunConfig.from_json(values), CATALOGUE) == config


def test_a_configuration_of_an_older_version_keeps_the_fused_loss(tmp_path):
    config = validated(read(of_old(tmp_path / "old")), CATALOGUE)
    assert resolved(config, CATALOGUE)["unimodal"] == "none" == config.settings["unimodal"]
    again = RunConfig.from_json(config.to_json())
    assert validated(again, CATALOGUE) == config
    kept = read(of_old(tmp_path / "heads", settings=SMALL | {"unimodal": "heads"}))
    assert kept.settings["unimodal"] == "heads"


@pytest.mark.parametrize("number", [0, DEFAULTS + 1, -1, "2", True, 1.0, None])
def test_unknown_defaults_are_a_sentence(tmp_path, number):
    home = of_old(tmp_path / "odd", defaults=number)
    with pytest.raises(InputError, match=rf"defaults must be a whole number from 1 to {DEFAULTS}, .*wrote it\.$"):
        read(home)


def test_a_home_made_of_plain_values_has_the_new_defaults(tmp_path):
    founded(tmp_path / "home", OLD)
    assert "unimodal" not in read(tmp_path / "home").settings


def test_an_old_home_trains_resumes_replays_and_is_measured_as_before(tmp_path):
    """Bit for bit what a run is that says unimodal=none, and no head comes in at any of these."""
    home = of_old(tmp_path / "old")
    assert run_prepared(home) == 0 and replay(home)["identical"]
    assert resume(home, 60) == 0
    found = replay(home)
    assert found["identical"] and found["step"] == 60
    twin = trained(tmp_path / "twin", small(steps=60, seed=3, settings=SETTINGS))
    plain = Training(twin.training.config)
    assert not any(name.startswith("trunk.heads") for name in plain.problem.layout.shapes)
    assert replay(twin.home)["theta"] == found["theta"]
    measured = {home: probe(home, "generalization", 20, {})["records"] for home in (home, twin.home)}
    values = [[(r["name"], r.get("value")) for r in records] for records in measured.values()]
    assert values[0] == values[1] and not any("vision" in name for name, _ in values[0])


def test_the_number_does_not_reach_what_is_trained():
    old = RunConfig.from_json(OLD | {"settings": SMALL, "defaults": 1})
    new = RunConfig.from_json(OLD | {"settings": SETTINGS})
    first, second = (Training(validated(config, CATALOGUE)).problem.init() for config in (old, new))
    assert torch.equal(first, second)


def test_the_former_defaults_are_settings_that_there_are():
    known = set(configuration.settings_known(RunConfig(), CATALOGUE))
    assert all(set(former) <= known for former in configuration._FORMER.values())
    assert max(configuration._FORMER) < DEFAULTS


def test_older_defaults_keep_all_that_has_changed_since(monkeypatch):
    monkeypatch.setattr(configuration, "DEFAULTS", 3)
    monkeypatch.setattr(configuration, "_FORMER", {1: {"a": 1, "b": 1}, 2: {"b": 2, "c": 2}})
    found = [configuration.former_defaults(number) for number in (1, 2, 3)]
    assert found == [{"a": 1, "b": 1, "c": 2}, {"b": 2, "c": 2}, {}]


def test_show_reads_an_old_home(tmp_path):
    home = of_old(tmp_path / "old")
    out, _ = said("show", home)
    assert "step 0 of 40" in out
