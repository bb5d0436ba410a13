"""The standard error of a mean, and what is left of one that nobody knows."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from modalscape.app.figures.bars import bars
from modalscape.app.theme import look
from modalscape.engine.core.records import Bars, Curve, Matrix, Scalar, Surface
from modalscape.engine.maths.modalities import robustness
from modalscape.engine.maths.standard_error import mean_and_error


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_it_is_the_deviation_by_the_root_of_their_number(dim):
    samples = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    mean, error = mean_and_error(samples, dim)
    assert mean.dtype == error.dtype == torch.float64
    np.testing.assert_allclose(mean, samples.double().numpy().mean(dim), rtol=1e-14)
    np.testing.assert_allclose(error, stats.sem(samples.double().numpy(), axis=dim), rtol=1e-13)


def test_one_sample_claims_no_certainty():
    mean, error = mean_and_error(torch.ones(1, 3))
    assert mean.tolist() == [1.0] * 3 and error.isnan().all()
    assert math.isnan(robustness.mean_over_rows(torch.ones(5, 1))[1])


def test_an_error_that_is_nan_throughout_is_not_known():
    two, nothing = np.arange(2.0), np.full(2, math.nan)
    labels = np.array(["a", "b"])
    assert Scalar("a", 1.0, math.nan).error is None and Scalar("a", 1.0, 0.0).error == 0.0
    assert Curve("a", two, two, nothing).error is None and Bars("a", labels, two, nothing).error is None
    assert Matrix("a", labels, labels, np.eye(2), np.full((2, 2), math.nan)).error is None
    assert Bars("a", labels, two, np.array([math.nan, 1.0])).error.tolist()[1] == 1.0
    assert not hasattr(Surface("a", two, two, np.eye(2)), "error")


def test_an_error_that_is_not_known_is_drawn_as_none():
    record = Bars("a", np.array(["x", "y"]), np.arange(2.0), np.full(2, math.nan))
    drawn = bars(record, look(False, [], [])).data[0]
    assert drawn.error_y.array is None and "±" not in drawn.hovertemplate
    record = Bars("a", np.array(["x", "y"]), np.arange(2.0), np.array([math.nan, 0.5]))
    assert ["±" in words for words in bars(record, look(False, [], [])).data[0].hovertemplate] == [False, True]
