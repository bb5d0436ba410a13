"""The lesson on missing modalities: its arms are what it says, and its claim holds."""

import pytest

from engine.catalog import catalog
from engine.config import RunConfig, validated
from engine.lessons.modalimmune_missing import ModalImmuneMissing
from engine.training import Training

SEEDS = range(3)


def scored(arm: str, seed: int) -> dict[str, float]:
    """The robustness scalars at the end of an arm."""
    config = validated(RunConfig.from_json(ModalImmuneMissing.arms[arm] | {"seed": seed}), catalog())
    run = Training(config)
    for _ in range(config.steps):
        run.step()
    records = run.probe("robustness").measure(run.snapshot())
    return {r.name: r.value for r in records if r is not None and r.kind == "scalar"}


@pytest.mark.slow
def test_the_claim_holds_seed_by_seed_at_no_cost_to_the_clean_score():
    found = {arm: [scored(arm, seed) for seed in SEEDS] for arm in ModalImmuneMissing.arms}
    gain = [
        a["robustness/worst"] - b["robustness/worst"] for a, b in zip(found["modalimmune"], found["plain"], strict=True)
    ]
    assert min(gain) > 0.01, gain
    for own, plain in zip(found["modalimmune"], found["plain"], strict=True):
        assert own["robustness/clean"] > plain["robustness/clean"] - 0.02

    def mean(arm: str, name: str) -> float:
        return sum(scores[name] for scores in found[arm]) / len(SEEDS)

    # what the words say of the other arms
    for arm in ("moddrop", "omission_only"):
        assert mean(arm, "robustness/worst") > mean("modalimmune", "robustness/worst") - 0.01
    assert mean("strong", "robustness/area/vision") > mean("plain", "robustness/area/vision")
    assert mean("strong", "robustness/area/audio") < mean("plain", "robustness/area/audio")
