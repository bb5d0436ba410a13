"""What calibration does to coordinates and to units: sensitive ones are damped, and a loss may have any unit."""

from dataclasses import dataclass

import pytest
import torch

from modalscape.engine.maths.gradients import calibration as maths
from modalscape.engine.maths.gradients.evidence import READINGS
from modalscape.engine.maths.gradients.last_layer import Head, Moments
from modalscape.engine.methods.bogc import Bogc

ROWS, WIDTH = 40, 12
SPREAD = torch.logspace(-4, 4, WIDTH, dtype=torch.float64)
"""Variance by coordinate, rising."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def found(**knobs):
    """Two sources that agree on a gradient (B, d) of the same size in every coordinate, and know some better."""
    mean = torch.where(normal(ROWS, WIDTH) > 0, 1.0, -1.0).double() * normal(ROWS, 1, seed=1).exp()
    mean = mean.expand(2, -1, -1)
    variance = SPREAD.expand(2, ROWS, -1) * (0.5 * normal(2, ROWS, WIDTH, seed=2)).exp()
    choices = Bogc.Params(**{"by_coordinate": True, "reading": "confident_trust", "size": "norm"} | knobs)
    return maths.weighed(["fused", "image"], Moments(mean, mean, variance), choices)


def gain(f):
    """Length of the calibrated gradient over that of the plain sum, by coordinate."""
    return f.gradient.norm(dim=0) / f.moments.plain.sum(0).norm(dim=0)


@pytest.mark.parametrize("evidence", ["snr", "relative"])
def test_sensitive_coordinates_are_damped_and_insensitive_ones_freed_at_the_same_length(evidence):
    f = found(evidence=evidence)
    ratio = gain(f)
    torch.testing.assert_close(f.gradient.norm(), f.moments.plain.sum(0).norm())
    assert (ratio.diff() < 0).all() and ratio[0] > 1.2 and ratio[-1] < 0.1
    # the same for all rows: a row that is larger or less certain than others keeps its share
    torch.testing.assert_close(f.gradient / f.moments.plain.sum(0), ratio.expand(ROWS, -1))


def test_the_gain_of_a_coordinate_is_its_fused_confidence():
    """Closed form, K sources alike: e = (median of σ² / σ²)^q, 1 - (1 + e)^-K, in units of the norm's factor."""
    f = found(size="mean", evidence="relative")
    lam = 1 / f.moments.variance.mean(1)
    e = (lam / lam.median()).sqrt()
    wanted = 0.5 * (1 - (1 / (1 + e)).prod(0))
    torch.testing.assert_close(gain(f), wanted)


def test_trust_alone_damps_no_coordinate_on_which_the_sources_agree():
    torch.testing.assert_close(gain(found(reading="trust")), torch.ones(WIDTH, dtype=torch.float64))


def test_evidence_by_row_changes_rows_beside_each_other_and_evidence_by_coordinate_does_not():
    for by_coordinate in (False, True):
        f = found(by_coordinate=by_coordinate)
        spread = (f.gradient / f.moments.plain.sum(0)).std(0).max()
        assert (spread < 1e-12) == by_coordinate
        assert (f.evidence.std(1).max() < 1e-12) == by_coordinate


def test_the_reported_gains_are_those_of_the_outer_quarters():
    f = found()
    plain, shuffled = f.moments.plain.sum(0), torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))
    wanted = [f.gradient[:, part].norm() / plain[:, part].norm() for part in (slice(0, 3), slice(-3, None))]
    torch.testing.assert_close(maths.gains(f), torch.stack(wanted))
    m = f.moments.at((..., shuffled))
    again = maths.weighed(f.sources, m, Bogc.Params(by_coordinate=True, reading="confident_trust", size="norm"))
    torch.testing.assert_close(maths.gains(again), torch.stack(wanted))


def test_full_conflict_on_a_coordinate_takes_it_away_and_no_other():
    """Both sources certain; on the last coordinate they contradict each other, and the longer one would win."""
    mean = torch.ones(2, ROWS, WIDTH, dtype=torch.float64)
    mean[1, :, -1] = -0.25
    moments = Moments(mean, mean, torch.full_like(mean, 1e-12))
    knobs = {"evidence": "raw", "size": "sources"}
    off, on = (maths.weighed(["a", "b"], moments, Bogc.Params(conflict=c, **knobs)).gradient for c in (0.0, 1.0))
    torch.testing.assert_close(on[:, :-1], off[:, :-1])
    assert off[:, -1].min() > 0.7 and on[:, -1].abs().max() < 1e-10


@dataclass(frozen=True)
class Scaled(Head):
    """A head whose loss is a constant times what it was: so is the error that flows back."""

    unit: float = 1.0

    def targets(self, y):
        return self.unit * super().targets(y)

    def outputs(self, z, axis=-1):
        return self.unit * super().outputs(z, axis)


@pytest.mark.parametrize("by_coordinate", [False, True])
@pytest.mark.parametrize("reading", READINGS)
def test_weights_do_not_know_the_unit_of_a_loss_and_with_precision_they_do(reading, by_coordinate):
    """One of two losses times 50, drawn through the same heads."""
    y = torch.arange(30) % 3
    features = {"image": normal(30, 5), "text": normal(30, 4, seed=1)}
    weights = {"fused": normal(3, 10, seed=2), "image": normal(3, 6, seed=3)}
    drawn = {name: (None, 0.3 * normal(64, *w.shape, seed=4)) for name, w in weights.items()}

    def weighed(unit, evidence):
        heads = {
            "fused": Head(weights["fused"], ("image", "text"), True),
            "image": Scaled(weights["image"], ("image",), True, unit),
        }
        choices = Bogc.Params(reading=reading, evidence=evidence, by_coordinate=by_coordinate, conflict=0.5)
        return maths.calibrated(heads, features, y, drawn, choices)["image"]

    one, many = weighed(1.0, "snr"), weighed(50.0, "snr")
    torch.testing.assert_close(many.moments.mean, one.moments.mean * torch.tensor([1.0, 50.0])[:, None, None])
    for field in ("weights", "uncertainty", "fused", "conflict"):
        torch.testing.assert_close(getattr(many.calibration, field), getattr(one.calibration, field), msg=field)
    moved = weighed(50.0, "relative").calibration.weights - weighed(1.0, "relative").calibration.weights
    assert moved[1].max() < 0 and moved[1].mean() < -0.05
