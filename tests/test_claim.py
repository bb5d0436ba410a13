"""Claims: arms over seeds in real engines, differences paired by seed, a verdict that may be undecided."""

import json

import numpy as np
import pytest
from scipy import stats

from modalscape.engine.client.summary import summary
from modalscape.engine.core.lesson import Lesson
from modalscape.engine.errors import InputError
from modalscape.engine.runtime import claims
from tests.homes import SMALL


class Longer(Lesson):
    name, title, words = "longer", "Longer", "Two lengths of the same run."
    claim = "The longer run has done more steps at a smaller learning rate."
    arms = {
        name: {"problem": "planted", "steps": 30, "settings": SMALL | {"optimizer.lr": rate}}
        for name, rate in (("slow", 0.001), ("fast", 0.01))
    }
    control, scalar, expect, seeds, show = "fast", "lr", "lower", 2, ("live",)
    further = {"twice the rate": lambda scalars: 2 * scalars["lr"]}


def test_the_interval_is_students():
    values = [1.0, 2.0, 4.0, 4.5]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = claims.interval(values)
    assert found["low"] == pytest.approx(low) and found["high"] == pytest.approx(high)
    assert claims.interval([3.0]) == {"mean": 3.0, "low": None, "high": None}


@pytest.mark.parametrize(
    ("low", "high", "expect", "verdict"),
    [(-2, -1, "lower", True), (-2, -1, "higher", False), (1, 2, "higher", True), (-1, 1, "lower", None), (None,) * 4],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(low, high, expect, verdict):
    assert claims.verdict({"low": low, "high": high}, expect or "lower") is verdict


def test_a_claim_runs_its_arms_once_and_compares_them_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "named", lambda *_: Longer)
    said = []
    found = claims.claim("longer", None, None, tmp_path, said.append)
    assert found["arms"]["slow"]["mean"] == pytest.approx(0.001) and found["arms"]["fast"]["n"] == 2
    assert found["difference"]["mean"] == pytest.approx(-0.009) and len(said) == 4
    assert found["further"]["twice the rate"]["differences"]["fast"]["mean"] == pytest.approx(-0.018)
    homes = sorted((tmp_path / "longer").glob("*"))
    before = [summary(home) for home in homes]
    assert claims.claim("longer", None, None, tmp_path) == found
    assert [summary(home) for home in homes] == before


def test_an_arm_with_a_control_of_its_own_is_compared_with_that_by_seed(tmp_path, monkeypatch):
    class Three(Longer):
        arms = Longer.arms | {
            "middle": {"problem": "planted", "steps": 30, "settings": SMALL | {"optimizer.lr": 0.004}}
        }
        pairs = {"middle": "fast"}

    monkeypatch.setattr(claims, "named", lambda *_: Three)
    found = claims.claim("three", 2, None, tmp_path)
    pair = found["pairs"]["middle"]
    assert pair["mean"] == pytest.approx(-0.006) and pair["low"] == pytest.approx(pair["high"]) and pair["to"] == "fast"
    assert found["further"]["twice the rate"]["pairs"]["middle"]["mean"] == pytest.approx(-0.012)
    assert claims.table("", found)[-1].startswith("middle minus fast: -0.006 [")
    assert found["difference"]["to"] == "fast" and set(found["differences"]) == {"fast", "middle"}


def test_a_claim_begins_at_the_seed_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "named", lambda *_: Longer)
    found = claims.claim("longer", 2, None, tmp_path, first_seed=7)
    assert found["seeds"] == [7, 8]
    names = sorted(home.name.rpartition("-")[0] for home in (tmp_path / "longer").glob("*"))
    assert names == ["fast-7", "fast-8", "slow-7", "slow-8"]


def test_another_problem_takes_the_place_of_the_lessons_own(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "named", lambda *_: Longer)
    found = claims.claim("longer", 1, None, tmp_path, problem="tumours")
    assert found["data"] == "tumours" and found["arms"]["slow"]["n"] == 1
    configs = [json.loads((home / "config.json").read_text()) for home in (tmp_path / "longer").glob("*")]
    assert {config["problem"] for config in configs} == {"tumours"}
    assert not any(key.startswith("planted.") for config in configs for key in config["settings"])
    with pytest.raises(InputError, match="not on x.npz and tumours; give one of them"):
        claims.claim("longer", 1, tmp_path / "x.npz", tmp_path, problem="tumours")


def test_an_unknown_lesson_is_answered_by_a_sentence(tmp_path):
    with pytest.raises(InputError, match="did you mean label_noise"):
        claims.claim("label_nose", 1, None, tmp_path)


def test_settings_of_the_command_line_reach_every_arm(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "named", lambda *_: Longer)
    found = claims.claim("longer", 1, None, tmp_path, settings={"optimizer.lr": "0.05"})
    assert {value["mean"] for value in found["arms"].values()} == {0.05}
    assert claims.table("the rate", found) == ["the rate:", *claims.table("", found)]
    assert claims.table("", found)[0].startswith("slow: 0.05, n = 1")
