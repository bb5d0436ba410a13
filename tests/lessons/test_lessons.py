"""The lessons show what they claim, on seeds of their own and with a margin."""

import json
import math

import pytest

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, resolved, validated
from modalscape.engine.core.lesson import Lesson
from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.hessian_spectrum import spectrum
from modalscape.engine.registry import discover
from modalscape.engine.runtime.session import Training
from tests.homes import ROOT

LESSONS = discover("modalscape.engine.lessons", Lesson)
SEEDS = range(3)


def trained(lesson: str, arm: str, seed: int = 0, share: float = 1.0) -> Training:
    """The run of an arm, without probes, after a share of its steps."""
    config = validated(RunConfig.from_json(LESSONS[lesson].arms[arm] | {"seed": seed}), catalog())
    run = Training(config)
    for _ in range(math.ceil(share * config.steps)):
        run.step()
    return run


def sharpness(run: Training) -> float:
    batch = run.problem.probe_batch()
    return float(
        spectrum(lambda theta: run.problem.loss(theta, batch), run.state.theta, k=1, steps=30, probes=2).values[0]
    )


@pytest.mark.parametrize("lesson", LESSONS.values(), ids=list(LESSONS))
def test_every_arm_is_a_valid_run_of_known_methods(lesson):
    known = catalog()
    for arm in lesson.arms.values():
        validated(RunConfig.from_json(arm), known)
    assert lesson.control in list(lesson.arms)[1:]
    assert {*lesson.pairs, *lesson.pairs.values()} <= set(lesson.arms)
    assert all(arm != other for arm, other in lesson.pairs.items())
    assert lesson.expect in ("lower", "higher")
    pages = {path.stem.partition("_")[2] for path in (ROOT / "pages").glob("[0-9]*.py")}
    assert lesson.show and set(lesson.show) <= pages
    assert lesson.statistic({lesson.scalar: 2.5, "loss": 1.0}) == 2.5
    with pytest.raises(InputError, match="give it the probe"):
        lesson.statistic({"loss": 1.0})


def test_arms_are_what_they_were_when_their_numbers_were_taken():
    """Every setting that training depends on, defaults included, as written down in `arms.json`."""
    known, frozen = catalog(), json.loads((ROOT / "tests/lessons/arms.json").read_text())
    for path, own in frozen["arms"].items():
        lesson, _, arm = path.partition("/")
        config = validated(RunConfig.from_json(LESSONS[lesson].arms[arm]), known)
        wanted, found = frozen["common"] | own, resolved(config, known)
        what = config.to_json() | {"probes": sorted(config.probes)}
        assert {key: what[key] for key in wanted[""]} == wanted.pop(""), path
        assert {key: found[key] for key in wanted} == wanted, path
    assert {f"{name}/{arm}" for name, lesson in LESSONS.items() for arm in lesson.arms} == set(frozen["arms"])


def test_the_two_demonstrations_come_first():
    assert [entry["name"] for entry in catalog()["lessons"]][:2] == ["edge_of_stability", "label_noise"]


@pytest.mark.parametrize("lesson", LESSONS.values(), ids=list(LESSONS))
def test_every_arm_trains(lesson):
    for arm in lesson.arms:
        assert trained(lesson.name, arm, share=0.011).state.step >= 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_full_batch_descent_rides_at_two_over_lr(seed):
    """From well below it; over the last third of the run within 15 % everywhere and within 6 % on average."""
    run = trained("edge_of_stability", "full_batch", seed, 0.0)
    assert sharpness(run) < 0.7 * 5.0
    last = []
    while run.state.step < 1500:
        run.step()
        if run.state.step >= 1000 and run.state.step % 50 == 0:
            last.append(sharpness(run))
    assert all(abs(value - 5.0) < 0.15 * 5.0 for value in last), last
    assert sum(last) / len(last) == pytest.approx(5.0, rel=0.06)


@pytest.mark.slow
def test_the_ceiling_moves_with_the_step():
    assert sharpness(trained("edge_of_stability", "shorter_step")) == pytest.approx(2 / 0.3, rel=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_small_batches_stay_below_the_edge(seed):
    assert sharpness(trained("edge_of_stability", "small_batch", seed)) < 0.9 * 5.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_keeps_a_large_batch_out_of_sharp_places(seed):
    arms = ("gani", "large_batch", "isotropic_noise", "diagonal", "small_batch")
    found = {arm: sharpness(trained("label_noise", arm, seed)) for arm in arms}
    assert found["gani"] < 0.6 * min(found["large_batch"], found["isotropic_noise"], found["diagonal"])
    assert found["diagonal"] < 0.87 * found["large_batch"]
    assert found["small_batch"] < found["gani"]
