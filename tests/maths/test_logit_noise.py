"""The dose that is worked out for the noise of a logit gives that noise."""

import math

import pytest
import torch

from modalscape.engine.maths.features import feature_noise as maths
from modalscape.engine.maths.features.contrastive import normalised
from modalscape.engine.methods.fanoise import logit_noise as logits
from tests.maths.test_feature_noise import F64, batch, normal, scalings

TAU = 0.07


def forms(x, scaling):
    """Every form that the noise of a scaling takes on x, by name, with the width of its draws."""
    found = maths.directions(x)
    made = {
        f"matched {matched}, full {full}": (maths.shape(found, scaling, matched=matched, full=full), x.shape[1])
        for matched in (False, True)
        for full in (False, True)
    }
    if scaling == "linear":
        made |= {f"mixture {m}": (maths.mixture(x, matched=m), len(x)) for m in (False, True)}
    return made | ({"even": (maths.even(x), x.shape[1])} if scaling == "uniform" else {})


@scalings
@pytest.mark.parametrize("m, n", [(40, 6), (5, 9)])
def test_noise_of_the_dose_has_the_wanted_deviation_in_a_logit(m, n, scaling):
    """By draws: squares of the noise of a logit, means over the keys, with the standard error of their mean."""
    x, keys, target = normalised(batch(m, n) + 0.05), normalised(normal(30, n, seed=9) + 0.4), 1.8
    for name, (form, width) in forms(x, scaling).items():
        alpha = logits.alpha_for(target, TAU, logits.spread(form, keys))
        z = normal(40_000, width, seed=4)
        rows = maths.mixed(z, form) if isinstance(form, maths.Mixture) else maths.noise(z, form)
        squares = (alpha * rows @ keys.T / TAU).square().mean(1)
        error = float(squares.std() / math.sqrt(len(squares)))
        assert error < 0.015 * target**2, name
        assert abs(float(squares.mean()) - target**2) < 4 * error, name


def test_uniform_noise_of_all_directions_has_alpha_over_root_width_and_temperature():
    x, keys = normalised(normal(100, 64)), normalised(normal(30, 64, seed=1))
    for form in (maths.even(x), maths.shape(maths.directions(x), "uniform")):
        assert float(logits.spread(form, keys)) == pytest.approx(1 / 8)
        dose = float(logits.alpha_for(1.8, TAU, logits.spread(form, keys)))
        assert dose == pytest.approx(1.8 * 8 * TAU) and dose == pytest.approx(1.0, abs=0.01)


@scalings
def test_the_spread_is_that_of_the_covariance(scaling):
    for m, n in ((40, 6), (5, 9)):
        x, keys = batch(m, n), normal(7, n, seed=3)
        for full in (False, True):
            form = maths.shape(maths.directions(x), scaling, full=full)
            wanted = (form.covariance @ keys.T @ keys).trace() / 7
            assert float(logits.spread(form, keys)) == pytest.approx(float(wanted.sqrt()))


def test_keys_along_strong_directions_feel_shaped_noise_more_than_uniform_noise_of_equal_energy():
    x = batch(200, 8)
    found = maths.directions(x)
    spreads = [
        [float(logits.spread(maths.shape(found, s, matched=True), keys)) for s in ("uniform", "sublinear", "linear")]
        for keys in (found.basis.T[:1], found.basis.T[-1:])
    ]
    assert spreads[0] == sorted(spreads[0]) and spreads[1] == sorted(spreads[1], reverse=True)
    assert spreads[0][0] == pytest.approx(1 / math.sqrt(8))


def test_keys_are_the_unit_rows_of_all_other_modalities():
    given = {name: normal(5, 4, seed=i) for i, name in enumerate("abc")}
    given["b"][2] = 0.0
    keys = logits.keys_of(given, "a")
    torch.testing.assert_close(keys[:2], normalised(given["b"][:2]))
    torch.testing.assert_close(keys[5:], normalised(given["c"]))
    assert keys.shape == (10, 4) and keys[2].abs().max() == 0
    half = logits.keys_of({"a": given["a"].bfloat16(), "b": given["b"].bfloat16()}, "a")
    assert half.dtype == torch.float32


def test_a_dose_ends_at_the_largest_one_and_is_nothing_where_no_logit_is_reached():
    assert float(logits.alpha_for(1.8, TAU, torch.tensor(1e-6))) == logits.MOST
    assert float(logits.alpha_for(1.8, TAU, torch.tensor(0.0))) == 0.0
    keys = torch.zeros(3, 6, dtype=F64)
    for scaling in maths.SCALINGS:
        for form, _ in forms(batch(40, 6), scaling).values():
            assert float(logits.spread(form, keys)) == 0.0


@scalings
@pytest.mark.parametrize("wanted", maths.SCALINGS)
@pytest.mark.parametrize("full", [False, True])
def test_noise_takes_the_energy_of_another_scaling_and_keeps_its_shape(wanted, scaling, full):
    for m, n in ((40, 6), (5, 9)):
        found = maths.directions(batch(m, n))
        own, form = (maths.shape(found, scaling, full=full, energy=energy) for energy in ("own", wanted))
        assert float(form.energy) == pytest.approx(float(maths.shape(found, wanted, full=full).energy))
        torch.testing.assert_close(form.scale / form.scale[0], own.scale / own.scale[0])
        matched = maths.shape(found, scaling, full=full, matched=True)
        even = maths.shape(found, scaling, full=full, energy="uniform")
        torch.testing.assert_close(matched.scale, even.scale)
        torch.testing.assert_close(matched.rest, even.rest)
