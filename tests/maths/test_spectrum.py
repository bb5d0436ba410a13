"""Spectra against plain singular value decompositions, answers known on paper, and draws of random matrices."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from modalscape.engine.maths.features import singular_values as maths
from modalscape.engine.maths.features.feature_noise import edge, observed

F64 = torch.float64


def normal(*size: int, seed: int = 0, dtype=F64) -> torch.Tensor:
    return torch.randn(*size, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


shapes = pytest.mark.parametrize("m, n", [(40, 7), (6, 25), (9, 9), (1, 5), (5, 1)])


@shapes
@pytest.mark.parametrize("centre", [False, True])
def test_singular_values_are_those_of_a_decomposition_of_the_matrix_itself(m, n, centre):
    x = normal(m, n) + 2.0
    found = maths.decomposed(x, centre=centre)
    exact = np.linalg.svd((x - x.mean(0) if centre else x).numpy(), compute_uv=False)
    exact[exact < 1e-12 * max(exact[0], 1.0)] = 0.0
    assert found.values.numpy() == pytest.approx(exact, rel=1e-12, abs=1e-9)
    assert maths.singular_values(x, centre=centre).numpy() == pytest.approx(exact, rel=1e-12, abs=1e-9)
    kept = found.values > 0
    basis = found.basis[:, kept]
    torch.testing.assert_close(basis.T @ basis, torch.eye(int(kept.sum()), dtype=F64))
    taken = x - x.mean(0) if centre else x
    torch.testing.assert_close((taken @ basis).norm(dim=0), found.values[kept])


@pytest.mark.parametrize("size", [1e-150, 1e-7, 1e7, 1e150])
def test_everything_but_the_values_is_free_of_scale(size):
    x = normal(30, 8)
    one, other = maths.decomposed(x), maths.decomposed(size * x)
    assert (other.values / size).numpy() == pytest.approx(one.values.numpy(), rel=1e-9)
    assert maths.sizes(other.values) == pytest.approx(maths.sizes(one.values))
    assert maths.mean_share(1e7 * x) == pytest.approx(maths.mean_share(x))


def test_identity_features_fill_every_direction_alike():
    found = maths.sizes(maths.decomposed(torch.eye(6, dtype=F64)).values)
    assert found == pytest.approx(
        {"effective_rank": 6, "participation": 6, "stable_rank": 6, "rank": 6, "condition": 1}
    )


def test_features_of_rank_one_fill_one_direction():
    x = normal(20, 1, dtype=torch.float32) @ normal(1, 9, seed=1, dtype=torch.float32)
    found = maths.sizes(maths.decomposed(x).values)
    assert found == pytest.approx(
        {"effective_rank": 1, "participation": 1, "stable_rank": 1, "rank": 1, "condition": 1}
    )


def test_planted_directions_are_counted():
    u, v = (torch.linalg.qr(normal(size, 4, seed=size))[0] for size in (60, 15))
    x = u @ torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=F64)) @ v.T
    found = maths.decomposed(x)
    assert found.values[:4].tolist() == pytest.approx([8, 4, 2, 1]) and not found.values[4:].any()
    told = maths.sizes(found.values)
    share = [64 / 85, 16 / 85, 4 / 85, 1 / 85]
    assert told["effective_rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)))
    assert told["participation"] == pytest.approx(85**2 / (64**2 + 16**2 + 4**2 + 1))
    assert told["stable_rank"] == pytest.approx(85 / 64) and told["rank"] == 4 and told["condition"] == pytest.approx(8)


def test_a_dead_modality_has_no_rank_and_no_condition():
    dead = torch.zeros(8, 3)
    found = maths.decomposed(dead, centre=True)
    assert not found.values.any() and not maths.decomposed(dead).values.any()
    assert maths.singular_values(dead).tolist() == [0, 0, 0]
    assert maths.sizes(found.values) == {"effective_rank": 0, "participation": 0, "stable_rank": 0, "rank": 0}
    assert maths.mean_share(dead) == 0


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_that_are_all_alike_have_rank_one_and_none_without_their_mean(dtype):
    x = (normal(1, 12, dtype=dtype) * 3.3).repeat(50, 1)
    assert maths.sizes(maths.decomposed(x).values)["rank"] == 1
    assert not maths.decomposed(x, centre=True).values.any() and not maths.singular_values(x, centre=True).any()
    assert int((maths.singular_values(x) > 0).sum()) == 1
    assert maths.mean_share(x) == pytest.approx(1)


def test_the_mean_share_is_what_centring_takes():
    x = normal(30, 5) + torch.arange(5.0, dtype=F64)
    left = maths.decomposed(x, centre=True).values.square().sum() / x.square().sum()
    assert maths.mean_share(x) == pytest.approx(1 - float(left))


@pytest.mark.parametrize("m, n", [(64, 64), (200, 50), (30, 120)])
def test_random_values_are_the_mean_of_random_matrices(m, n):
    draws = torch.stack([torch.linalg.svdvals(normal(m, n, seed=s)) for s in range(200)])
    expected, error = maths.random_values(m, n), draws.std(0) / 200**0.5
    # In the bulk within the standard error of 200 draws, 0.01, and a finite-size bias of the order 1/r.
    middle = slice(len(expected) // 4, -len(expected) // 4)
    assert float((expected - draws.mean(0))[middle].abs().max()) < 4 * float(error.max()) + 1 / len(expected)
    # At the top within half the Tracy-Widom scale, (√m + √n)^⅓·(1/√m + 1/√n)^⅓/2, of the singular value.
    scale = (math.sqrt(m) + math.sqrt(n)) ** (1 / 3) * (m**-0.5 + n**-0.5) ** (1 / 3) / 2
    assert abs(float(expected[0] - draws.mean(0)[0])) < scale / 2
    assert float(expected.square().sum()) == pytest.approx(m * n, rel=5e-3)
    assert float(expected[0]) < edge(1.0, m, n)


def test_about_one_random_matrix_in_six_has_a_value_beyond_the_edge():
    found = torch.tensor([maths.beyond(torch.linalg.svdvals(normal(50, 80, seed=s)), 1.0, 50, 80) for s in range(400)])
    share, error = float((found > 0).double().mean()), math.sqrt(0.15 * 0.85 / 400)
    assert share == pytest.approx(0.15, abs=4 * error) and int(found.max()) <= 2


def test_draws_of_noise_agree_with_the_limit_theorems():
    m, n, delta = 300, 120, 1.0
    u, v = (torch.linalg.qr(normal(size, 4, seed=size))[0] for size in (m, n))
    clean = torch.tensor([90.0, 50.0, 20.0, 5.0], dtype=F64)
    x = u @ torch.diag(clean) @ v.T
    noisy = torch.stack([maths.with_noise(x, delta, normal(m, n, seed=s)) for s in range(40)])
    mean, error = noisy.mean(0), noisy.std(0) / 40**0.5
    # The third is below the edge of the noise, 28.3, yet above the threshold (300·120)^¼ = 13.8, so it comes out beyond
    # the edge. Standard error about 0.1, bias of the limit of the order 1/σ.
    limit = [observed(float(value), delta, m, n) for value in clean[:3]]
    assert mean[:3].tolist() == pytest.approx(limit, abs=4 * float(error[:3].max()) + 0.2)
    # The fourth drowns: the rest is the spectrum of noise with three rows and columns fewer.
    assert float((maths.random_values(m - 3, n - 3) - mean[3:])[1:].abs().max()) < 0.4
    assert float(mean[3]) < edge(delta, m, n)


def test_noise_is_added_before_the_mean_is_taken_away():
    x, draw = normal(20, 5) + 3.0, normal(20, 5, seed=1)
    noisy = (x + 0.5 * draw).numpy()
    expected = np.linalg.svd(noisy - noisy.mean(0), compute_uv=False)
    assert maths.with_noise(x, 0.5, draw, centre=True).numpy() == pytest.approx(expected)
    torch.testing.assert_close(maths.with_noise(x, 0.0, draw), maths.decomposed(x).values)


def test_the_energy_of_a_change_is_taken_along_the_clean_directions():
    x, change = normal(40, 6), 0.1 * normal(40, 6, seed=1)
    found = maths.decomposed(x)
    vectors = np.linalg.svd(x.numpy())[2]
    assert maths.in_noise(found, change).numpy() == pytest.approx(((change.numpy() @ vectors.T) ** 2).sum(0))
    assert float(maths.in_noise(found, change).sum()) == pytest.approx(float(change.square().sum()))


def test_unrelated_directions_are_kept_by_chance_and_equal_ones_for_sure():
    draws = [maths.kept(*(maths.decomposed(normal(60, 20, seed=s + i)) for i in (0, 500))) for s in range(50)]
    shares = torch.stack(draws)
    chance, error = torch.arange(1, 21, dtype=F64) / 20, shares.std(0) / 50**0.5
    assert float(((shares.mean(0) - chance).abs() - 4 * error).max()) < 1e-9
    one = maths.decomposed(normal(60, 20))
    assert maths.kept(one, one).tolist() == pytest.approx([1] * 20)
    turned = replace(one, basis=one.basis[:, [1, 0, *range(2, 20)]] * -1)
    assert maths.kept(one, turned).tolist() == pytest.approx([0] + [1] * 19)


def correlations(a, b, share=1.0):
    return maths.canonical(maths.leading(a, share), maths.leading(b, share))


def test_canonical_correlations_are_those_of_the_covariances():
    x, noise = normal(300, 3), normal(300, 4, seed=1)
    y = torch.cat([x[:, :1] + 0.5 * noise[:, :1], noise[:, 1:]], 1)
    found = correlations(x, y)
    a, b = (z - z.mean(0) for z in (x, y))
    cov = [c.numpy() for c in (a.T @ a, b.T @ b, a.T @ b)]
    squares = np.linalg.eigvals(np.linalg.solve(cov[0], cov[2]) @ np.linalg.solve(cov[1], cov[2].T))
    assert found.numpy() == pytest.approx(np.sqrt(np.sort(squares.real)[::-1]))
    mixed = y @ normal(4, 4, seed=2) + 7.0
    torch.testing.assert_close(correlations(x, mixed), found)
    assert correlations(x, x @ normal(3, 3, seed=3)).tolist() == pytest.approx([1, 1, 1])


def test_only_directions_that_hold_the_energy_are_compared():
    x = normal(200, 3) * torch.tensor([10.0, 3.0, 0.01], dtype=F64)
    span = maths.leading(x, 0.999)
    torch.testing.assert_close(span.T @ span, torch.eye(2, dtype=F64))
    assert maths.leading(x, 1.0).shape == (200, 3) and maths.leading(x, 0.5).shape == (200, 1)
    assert maths.leading(torch.zeros(200, 4), 1.0).shape == (200, 0)
    assert len(correlations(x, torch.zeros(200, 4))) == 0


@pytest.mark.parametrize("m, p, q", [(256, 20, 30), (400, 64, 64)])
def test_unrelated_features_correlate_up_to_the_edge_of_chance(m, p, q):
    top = [float(correlations(normal(m, p, seed=s), normal(m, q, seed=1000 + s))[0]) for s in range(40)]
    error = np.std(top) / 40**0.5
    # The largest lies below the limit by the Tracy-Widom shift, here at most 6 % (standard error 0.4 %).
    assert error < 0.01 and 0.94 * maths.chance(p, q, m) < np.mean(top) < maths.chance(p, q, m) + 3 * error


def test_with_too_few_rows_correlations_are_perfect_by_counting():
    assert maths.chance(6, 6, 10) == 1.0 and maths.chance(1, 1, 1) == 1.0
    assert float(correlations(normal(10, 6), normal(10, 6, seed=1))[0]) == pytest.approx(1)
