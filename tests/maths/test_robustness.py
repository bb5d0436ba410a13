"""Areas, retention and masks have the published values and the closed forms."""

import math

import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities import robustness
from modalscape.engine.maths.modalities.robustness import RULES, area, effective_robustness, present

TEN = [i / 10 for i in range(10)]
ELEVEN = [i / 10 for i in range(11)]
LATE = [0.7521, 0.6849, 0.6534, 0.6326, 0.6012, 0.5623, 0.5429, 0.5192, 0.4538, 0.4566]
MULT = [0.8337, 0.7524, 0.7048, 0.6659, 0.6302, 0.5706, 0.5821, 0.5317, 0.5032, 0.4921]
EARLY = [0.7360, 0.6811, 0.6234, 0.5217, 0.5197, 0.4987, 0.4629, 0.4581, 0.4530, 0.4415]


def relative_robustness(curve: list[float]) -> float:
    """MultiBench's, on its ten levels."""
    return area(TEN, curve, normalised=False)


def test_flat_and_straight_curves_have_their_areas():
    assert area(ELEVEN, [0.5] * 11, normalised=False) == pytest.approx(0.5)
    assert relative_robustness([0.5] * 10) == pytest.approx(0.45)
    assert area(ELEVEN, [1 - s for s in ELEVEN]) == pytest.approx(0.5)
    assert relative_robustness([1 - s for s in TEN]) == pytest.approx(0.495)
    assert area([0.0, 0.3, 0.9], [0.7] * 3) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("curve", "relative", "effective"), [(LATE, 0.5255, 0.0), (MULT, 0.5604, -0.4083), (EARLY, 0.4807, -0.3019)]
)
def test_multibenchs_published_text_noise_curves(curve, relative, effective):
    assert relative_robustness(curve) == pytest.approx(relative, abs=6e-5)
    assert effective_robustness(curve, LATE) == pytest.approx(effective, abs=6e-5)


def test_late_fusion_plus_a_constant_is_no_more_robust():
    assert effective_robustness([v + 0.1 for v in LATE], LATE) == pytest.approx(0.0, abs=1e-12)


def test_a_model_that_ignores_the_modality_looks_perfect():
    assert relative_robustness([0.779] * 10) == pytest.approx(0.7011)
    falling = [0.8 - 0.03 * i for i in range(10)]
    assert effective_robustness([0.779] * 10, falling) == pytest.approx(0.03 * 45)
    assert robustness.mean_retention([0.779] * 10) == pytest.approx(1.0)


def test_gcnets_iemocap_curve_has_its_area():
    rates, values = [0.0, 0.1, 0.3, 0.5, 0.7], [78.4, 77.5, 76.2, 73.8, 71.4]
    assert area(rates, values, normalised=False) == pytest.approx(52.685)
    assert area(rates, values) == pytest.approx(75.264, abs=1e-3)


def test_retention_is_corrected_for_chance():
    values = [0.9, 0.7, 0.5]
    assert robustness.retention(values, 0.5) == pytest.approx([1.0, 0.5, 0.0])
    assert robustness.mean_retention(values, 0.5) == pytest.approx(0.25)
    assert robustness.half_level([0.0, 0.5, 1.0], values, 0.5) == pytest.approx(0.5)
    assert robustness.half_level([0.0, 0.5, 1.0], values) == 1.0
    assert math.isnan(robustness.half_level([0.0, 1.0], [0.4, 0.4], 0.5))
    assert math.isnan(robustness.mean_retention([0.5, 0.4], 0.5))


def test_corruption_errors():
    assert robustness.corruption_error([0.2, 0.4], [0.3, 0.9]) == pytest.approx(0.5)
    assert robustness.corruption_error([0.2, 0.4], [0.3, 0.7], relative=True) == pytest.approx(0.5)
    assert math.isnan(robustness.corruption_error([0.2], [0.3], relative=True))


def test_immunity_and_dominance_by_hand():
    score = {frozenset("ab"): 0.8, frozenset("a"): 0.6, frozenset("b"): 0.4}
    assert robustness.immunity(score, "ab") == pytest.approx({"a": 0.5, "b": 0.75})
    assert robustness.dominance_gap(score, "ab") == pytest.approx(0.2)
    assert robustness.majority(torch.tensor([0, 1, 1, 2])) == 0.5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_masks_have_the_rate_of_the_closed_form(rule, p):
    """40,000 rows of three; five standard errors of a mean of rates within [0, 1]."""
    uniform = torch.rand(40_000, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = present(uniform, p, rule)
    lost = 1 - mask.double().mean(1)
    wanted = robustness.expected_rate(p, 3, rule)
    assert lost.mean().item() == pytest.approx(wanted, abs=5 * lost.std().item() / 200 + 1e-12)
    if rule != "none":
        assert mask.any(1).all()
    columns = mask.double().mean(0)
    assert columns.max() - columns.min() <= 10 * 0.5 / 200


@pytest.mark.parametrize(("p", "rule", "rate"), [(0.5, "keep", 0.4583), (1.0, "keep", 0.6667), (0.9, "redraw", 0.631)])
def test_published_rates_of_three_modalities(p, rule, rate):
    assert robustness.expected_rate(p, 3, rule) == pytest.approx(rate, abs=5e-4)


def test_a_higher_rate_loses_the_same_and_more():
    uniform = torch.rand(500, 4, generator=torch.Generator().manual_seed(1))
    before = present(uniform, 0.0, "none")
    assert before.all()
    for p in (0.2, 0.5, 0.8, 1.0):
        now = present(uniform, p, "none")
        assert (now <= before).all()
        before = now


def test_the_error_of_a_mean_is_over_rows_not_draws():
    hits = torch.tensor([[1.0, 0.0, 1.0, 1.0]]).repeat(7, 1)
    mean, error = robustness.mean_over_rows(hits)
    assert mean == 0.75
    assert error == pytest.approx(0.5 / 2)


def test_bad_input_is_refused_with_a_sentence():
    with pytest.raises(InputError, match="at least 2 levels"):
        area([0.0], [1.0])
    with pytest.raises(InputError, match="one of keep, redraw, none, not 'x'"):
        present(torch.rand(2, 3), 0.5, "x")
    with pytest.raises(InputError, match="same levels"):
        effective_robustness([1.0], LATE)
