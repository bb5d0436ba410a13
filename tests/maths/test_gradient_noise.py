"""The noise scale of a gradient against its definition, its unbiasedness, and what no number may come of."""

import math

import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients.noise_scale import cosines, grams, jackknife, mean_cosine, noise_scale
from tests.maths.nets import problem

F64 = torch.float64


def batches(signal, spread, count, rows, seed=0):
    """Return the mean gradients (count, P) of `count` batches of rows with this mean and standard deviation."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, rows, len(signal), generator=draw, dtype=F64)
    return signal + (noise * spread).mean(1)


def scale_of(vectors, rows):
    return noise_scale(vectors @ vectors.T, rows)


def test_the_noise_scale_is_the_variance_of_a_row_over_the_squared_mean():
    signal, spread = torch.tensor([1.0, -2.0, 0.5], dtype=F64), torch.tensor([1.0, 3.0, 0.2], dtype=F64)
    expected = float(spread.square().sum() / signal.square().sum())
    value, error = scale_of(batches(signal, spread, 400, 4), 4)
    assert 0 < error < 0.15 * expected and abs(value - expected) < 3 * error


def test_it_agrees_with_two_batch_sizes_of_the_paper():
    """Appendix A.1 with one batch of all rows and the mean squared length of the small ones."""
    vectors, rows = batches(torch.ones(6, dtype=F64), torch.tensor(2.0), 8, 16), 16
    small, big = vectors.square().sum(1).mean(), vectors.mean(0).square().sum()
    one, other = rows, 8 * rows
    signal = (other * big - one * small) / (other - one)
    spread = (small - big) / (1 / one - 1 / other)
    assert scale_of(vectors, rows)[0] == pytest.approx(float(spread / signal))


def test_the_error_is_about_the_spread_over_repetitions():
    signal, spread = torch.ones(20, dtype=F64), torch.tensor(1.0, dtype=F64)
    found = [scale_of(batches(signal, spread, 16, 4, seed), 4) for seed in range(300)]
    values, errors = torch.tensor(found, dtype=F64).T
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.15)


def test_equal_batches_have_no_noise_and_opposed_ones_no_signal():
    same = torch.ones(4, 3, dtype=F64)
    assert scale_of(same, 5) == (0.0, 0.0)
    opposed = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    assert all(math.isnan(value) for value in scale_of(opposed, 5))
    assert all(math.isnan(value) for value in scale_of(torch.zeros(4, 3), 5))
    assert math.isnan(scale_of(torch.full((4, 3), math.nan), 5)[0])


def test_two_batches_are_too_few():
    with pytest.raises(InputError, match="at least 3 mini-batches, not 2"):
        noise_scale(torch.eye(2), 4)


def test_the_scale_is_free_of_the_size_of_the_loss():
    vectors = batches(torch.ones(6, dtype=F64), torch.tensor(2.0), 8, 16)
    assert scale_of(1e-6 * vectors, 16) == pytest.approx(scale_of(vectors, 16))


def test_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=F64)
    left = [float((values.sum() - v) / 11) for v in values]
    assert jackknife(left) == pytest.approx(float(values.std() / math.sqrt(12)))
    assert math.isnan(jackknife([1.0, math.nan]))


def test_grams_of_groups_add_up_to_that_of_the_whole():
    _, layout, theta, *_ = problem()
    vectors = torch.randn(5, layout.size, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = grams(layout, vectors, layout.parts.get)
    assert list(found) == ["a", "b", "shared"]
    torch.testing.assert_close(sum(found.values()), vectors @ vectors.T)
    where = layout.slices["b"]
    torch.testing.assert_close(found["b"], vectors[:, where] @ vectors[:, where].T)
    assert theta.dtype == F64


def test_a_vector_without_length_has_no_cosine():
    vectors = torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]], dtype=F64)
    found = cosines(vectors @ vectors.T)
    assert found[0, 1] == pytest.approx(0.96) and found[0, 0] == 1
    assert found[2].isnan().all() and found[:, 2].isnan().all()


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.3
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    pairs = [float(unit[i] @ unit[j]) for i in range(6) for j in range(i)]
    value, error = mean_cosine(vectors @ vectors.T)
    assert value == pytest.approx(sum(pairs) / 15) and error > 0
    assert mean_cosine(torch.eye(4, dtype=F64)) == (0.0, 0.0)
    assert math.isnan(mean_cosine(torch.zeros(3, 3))[0])
