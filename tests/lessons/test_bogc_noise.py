"""Wrong captions take weight from the text's own loss, on seeds of their own and with a margin."""

import pytest

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.lessons.bogc_noise import BogcNoise
from modalscape.engine.runtime.session import Training


def scalars(arm: str, seed: int, steps: int | None = None) -> dict[str, float]:
    config = validated(RunConfig.from_json(BogcNoise.arms[arm] | {"seed": seed}), catalog())
    run = Training(config)
    for _ in range(config.steps if steps is None else steps):
        run.step()
    records = [r for r in run.probe("evidence").measure(run.snapshot()) if r is not None]
    return {r.name: r.value for r in records if r.kind == "scalar"}


def test_the_statistic_is_measured_in_every_arm():
    for arm in BogcNoise.arms:
        assert 0 < BogcNoise.statistic(scalars(arm, 0, steps=2)) < 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 8))
def test_wrong_captions_cost_the_texts_own_loss_its_weight(seed):
    wrong, clean, off = (scalars(arm, seed) for arm in ("wrong_captions", "clean_captions", "method_off"))
    assert BogcNoise.statistic(wrong) < BogcNoise.statistic(clean) - 0.1
    assert BogcNoise.statistic(off) < BogcNoise.statistic(clean) - 0.1
    assert wrong["evidence/precision/text/text"] < clean["evidence/precision/text/text"] - 2
    assert wrong["evidence/weight/image/image"] > clean["evidence/weight/image/image"] + 0.1
