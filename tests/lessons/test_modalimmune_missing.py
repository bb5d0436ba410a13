"""The lesson on missing modalities: its numbers are what it says, and its claim holds."""

import math

import pytest

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.lessons.modalimmune_missing import ModalImmuneMissing
from modalscape.engine.runtime.session import Training

SEEDS = range(100, 103)


def scored(arm: str, seed: int) -> dict[str, float]:
    """The robustness scalars at the end of an arm."""
    config = validated(RunConfig.from_json(ModalImmuneMissing.arms[arm] | {"seed": seed}), catalog())
    run = Training(config)
    for _ in range(config.steps):
        run.step()
    records = run.probe("robustness").measure(run.snapshot())
    return {r.name: r.value for r in records if r is not None and r.kind == "scalar"}


def test_what_is_compared_beside_the_claim_is_what_the_probe_wrote():
    scalars = {
        "robustness/area/missing": 0.9,
        "robustness/area/image": 0.5,
        "robustness/area/text": 0.7,
        "robustness/clean": 0.95,
        "robustness/worst": 0.6,
        "robustness/worst_subset": 0.4,
        "robustness/incomplete": 0.55,
        "robustness/retention/missing": 0.8,
        "reconstruction/r2/image": 0.9,
        "reconstruction/within/image": 0.25,
        "reconstruction/within/text": 0.35,
    }
    assert ModalImmuneMissing.statistic(scalars) == 0.9
    found = [number(scalars) for number in ModalImmuneMissing.further.values()]
    assert found == pytest.approx([0.6, 0.95, 0.6, 0.4, 0.55, 0.8, 0.3])
    assert all(math.isnan(number({})) for number in ModalImmuneMissing.further.values())


def test_arms_differ_by_the_method_alone():
    own, plain, dropped = (ModalImmuneMissing.arms[arm] for arm in ("modalimmune", "plain", "moddrop"))
    for arm in (own, dropped):
        extra = dict(arm["settings"].items() - plain["settings"].items())
        assert extra == {f"{arm['methods'][0]}.fill": "neutral"}
        same = ("problem", "probes", "steps", "device")
        assert [arm[key] for key in same] == [plain[key] for key in same]
    alone = ModalImmuneMissing.arms["one_at_a_time"]
    assert alone == own | {"settings": own["settings"] | {"modalimmune.others": 0.0}}
    assert plain["methods"] == []
    assert plain["settings"]["robustness.part"] == "test", "ModalImmune tunes itself on the validation rows"


@pytest.mark.slow
def test_the_claim_holds_at_no_cost_to_the_clean_score():
    found = {arm: [scored(arm, seed) for seed in SEEDS] for arm in ModalImmuneMissing.arms}

    def gains(name: str, other: str) -> list[float]:
        return [a[name] - b[name] for a, b in zip(found["modalimmune"], found[other], strict=True)]

    area = gains("robustness/area/missing", "plain")
    assert min(area) > 0.005, area
    assert min(gains("robustness/clean", "plain")) > -0.02
    # of two modalities the other always stays
    assert max(map(abs, gains("robustness/area/missing", "one_at_a_time"))) == 0.0
