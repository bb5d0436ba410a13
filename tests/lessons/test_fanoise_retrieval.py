"""Noise on the features lifts the retrieval of held-out pairs, and lets it sink again when it is switched off."""

import pytest

from engine.catalog import catalog
from engine.config import RunConfig, validated
from engine.lessons.fanoise_retrieval import FaNoiseRetrieval as Lesson
from engine.training import Training


def recall(arm: str, seed: int, off_at: int | None = None) -> float:
    """The lesson's statistic after the run of an arm, the method switched off at a step."""
    run = Training(validated(RunConfig.from_json(Lesson.arms[arm] | {"seed": seed}), catalog()))
    while run.state.step < run.config.steps:
        if run.state.step == off_at:
            run.toggle("fanoise", False)
        run.step()
    return run.problem.evaluate(run.state.theta)[Lesson.scalar]


def test_the_noise_of_all_arms_has_the_same_energy():
    doses = {arm: Lesson.arms[arm]["settings"] for arm in ("fanoise", "uniform", "sublinear")}
    assert {(dose["fanoise.alpha"], dose["fanoise.matched"]) for dose in doses.values()} == {(1.0, True)}
    assert {dose["fanoise.scaling"] for dose in doses.values()} == {"linear", "uniform", "sublinear"}
    assert not any(key.startswith("fanoise.") for key in Lesson.arms["none"]["settings"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 8))
def test_noise_lifts_recall_on_held_out_pairs(seed):
    found = {arm: recall(arm, seed) for arm in Lesson.arms}
    assert min(found["fanoise"], found["uniform"], found["sublinear"]) > found["none"] + 0.15
    assert found["fanoise"] == pytest.approx(found["uniform"], abs=0.05)


@pytest.mark.slow
def test_recall_sinks_when_the_noise_is_switched_off():
    assert recall("fanoise", 5, off_at=400) < recall("fanoise", 5) - 0.05
