"""Noise on the features lifts the retrieval of held-out pairs, and lets it sink again when it is switched off."""

import pytest

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.lessons.fanoise_retrieval import FaNoiseRetrieval as Lesson
from modalscape.engine.runtime.session import Training


def recall(arm: str, seed: int, off_at: int | None = None) -> float:
    """The lesson's statistic after the run of an arm, the method switched off at a step."""
    run = Training(validated(RunConfig.from_json(Lesson.arms[arm] | {"seed": seed}), catalog()))
    while run.state.step < run.config.steps:
        if run.state.step == off_at:
            run.toggle("fanoise", False)
        run.step()
    return run.problem.evaluate(run.state.theta)[Lesson.scalar]


def test_the_first_arm_is_the_papers_form_and_the_others_differ_in_what_their_names_say():
    doses = {arm: Lesson.arms[arm]["settings"] for arm in ("fanoise", "uniform", "linear")}
    shapes = {arm: dose["fanoise.scaling"] for arm, dose in doses.items()}
    assert shapes == {"fanoise": "sublinear", "uniform": "uniform", "linear": "linear"}
    assert next(iter(Lesson.arms)) == "fanoise" and not doses["fanoise"]["fanoise.matched"]
    assert {dose["fanoise.alpha"] for dose in doses.values()} == {1.0}
    assert not any(key.startswith("fanoise.") for key in Lesson.arms["none"]["settings"])


def test_uniform_noise_has_the_energy_of_the_first_arm_and_linear_noise_that_of_alpha():
    """On the same first batch, as the runs report the expected length of a row of noise."""
    lengths = {}
    for arm in ("fanoise", "uniform", "linear"):
        run = Training(validated(RunConfig.from_json(Lesson.arms[arm] | {"seed": 1000}), catalog()))
        records = run.stack.methods["fanoise"].report(run.step())
        key = "fanoise/noise_norm_expected/"
        lengths[arm] = {r.name.removeprefix(key): r.value for r in records if r.name.startswith(key)}
    assert lengths["uniform"] == pytest.approx(lengths["fanoise"], rel=1e-4)
    assert all(value > 1.05 for value in lengths["fanoise"].values())
    assert lengths["linear"] == pytest.approx(dict.fromkeys(lengths["linear"], 1.0), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 8))
def test_noise_lifts_recall_on_held_out_pairs(seed):
    found = {arm: recall(arm, seed) for arm in Lesson.arms}
    assert min(found["fanoise"], found["uniform"], found["linear"]) > found["none"] + 0.15
    assert found["fanoise"] == pytest.approx(found["uniform"], abs=0.05)


@pytest.mark.slow
def test_recall_sinks_when_the_noise_is_switched_off():
    assert recall("fanoise", 5, off_at=400) < recall("fanoise", 5) - 0.05
