"""Noise shaped by singular values has the covariance, energy and spectrum that are derived for it."""

import math

import pytest
import torch

from modalscape.engine.maths.features import feature_noise as maths
from modalscape.engine.maths.features.contrastive import normalised

F64 = torch.float64


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, dtype=F64, generator=torch.Generator().manual_seed(seed))


def batch(m: int, n: int, seed: int = 0, decay: float = 0.7) -> torch.Tensor:
    """A batch whose singular values fall by `decay` from one to the next, in random directions."""
    r = min(m, n)
    u, v = (torch.linalg.qr(normal(size, r, seed=seed + i))[0] for i, size in enumerate((m, n)))
    return u * decay ** torch.arange(r, dtype=F64) @ v.T


def power(gram: torch.Tensor, exponent: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * torch.where(values > 1e-12 * values[-1], values, 0.0) ** exponent) @ vectors.T


def closed_form(x: torch.Tensor, scaling: str) -> torch.Tensor:
    """The covariance of a row of noise for α = 1, from XᵀX alone."""
    gram, (m, n) = x.T @ x, x.shape
    r = min(m, n)
    if scaling == "uniform":
        return torch.linalg.pinv(x) @ x / n
    if scaling == "linear":
        return gram / (n * (power(gram, 0.5).trace() / r) ** 2)
    return power(gram, 0.5) / (n * (power(gram, 0.25).trace() / r) ** 2)


scalings = pytest.mark.parametrize("scaling", maths.SCALINGS)
shapes = pytest.mark.parametrize("m, n", [(40, 6), (5, 9)])


@scalings
@shapes
def test_rows_have_the_covariance_of_the_closed_form(m, n, scaling):
    x = batch(m, n)
    form = maths.shape(maths.directions(x), scaling)
    torch.testing.assert_close(form.covariance, closed_form(x, scaling), rtol=1e-9, atol=1e-9)
    rows = maths.noise(normal(200_000, n), form)
    error = (rows.T @ rows / len(rows) - form.covariance).norm() / form.covariance.norm()
    assert error < 0.02


@pytest.mark.parametrize("matched", [False, True])
def test_mixtures_of_rows_are_linear_noise(matched):
    x = batch(12, 5)
    form = maths.shape(maths.directions(x), "linear", matched=matched)
    rows = maths.mixed(normal(200_000, 12), maths.mixture(x, matched=matched))
    error = (rows.T @ rows / len(rows) - form.covariance).norm() / form.covariance.norm()
    assert error < 0.02


def test_matched_mixtures_need_no_singular_values(monkeypatch):
    x = batch(12, 5)
    monkeypatch.setattr(torch.linalg, "svdvals", None)
    monkeypatch.setattr(torch.linalg, "svd", None)
    assert maths.mixed(normal(12, 12), maths.mixture(x, matched=True)).shape == x.shape


@pytest.mark.parametrize("n", [16, 64, 512])
def test_uniform_noise_has_length_alpha_whatever_the_width(n):
    form = maths.shape(maths.directions(batch(n + 3, n, decay=0.99)), "uniform")
    assert float(form.energy) == pytest.approx(1.0)
    lengths = maths.noise(normal(1000, n), form).square().sum(1)
    # Σz²/n has the variance 2/n
    assert float(lengths.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / n / 1000))


def test_uniform_noise_of_full_rank_is_isotropic():
    x, z = batch(20, 7), normal(20, 7)
    form = maths.shape(maths.directions(x), "uniform")
    torch.testing.assert_close(form.covariance, torch.eye(7, dtype=F64) / 7)
    even = maths.even(x)
    torch.testing.assert_close(maths.noise(z, form), maths.noise(z, even))
    torch.testing.assert_close(even.covariance, form.covariance)
    assert torch.equal(maths.noise(z, even), z / math.sqrt(7)) and float(even.energy) == 1.0


@scalings
@pytest.mark.parametrize("full", [False, True])
@shapes
def test_matched_noise_has_the_energy_of_the_uniform_one(m, n, full, scaling):
    found = maths.directions(batch(m, n))
    form = maths.shape(found, scaling, matched=True, full=full)
    assert float(form.energy) == pytest.approx(1.0 if full else min(m, n) / n)
    assert float(form.covariance.trace()) == pytest.approx(float(form.energy))


def test_unmatched_shapes_carry_more_energy_by_one_plus_the_squared_variation():
    found = maths.directions(batch(30, 8))
    for scaling, grown in (("linear", found.values), ("sublinear", found.values.sqrt())):
        variation = float(grown.std(correction=0) / grown.mean())
        assert float(maths.shape(found, scaling).energy) == pytest.approx(1 + variation**2)


@scalings
def test_a_full_basis_fills_the_rest_with_the_smallest_scale(scaling):
    found = maths.directions(batch(4, 9))
    form = maths.shape(found, scaling, full=True)
    values = torch.linalg.eigvalsh(9 * form.covariance).sqrt()
    assert values[:6].tolist() == pytest.approx([float(form.scale.min())] * 6)
    torch.testing.assert_close(values[-4:].flip(0), form.scale)
    thin = torch.linalg.eigvalsh(maths.shape(found, scaling).covariance)
    assert thin[:5].abs().max() < 1e-12


@scalings
def test_a_direction_gains_the_predicted_energy(scaling):
    x, alpha, draws = batch(10, 6), 0.8, 20_000
    found = maths.directions(x)
    form = maths.shape(found, scaling)
    spent = alpha * maths.noise(normal(draws * 10, 6), form).view(draws, 10, 6)
    energy = ((x + spent) @ found.basis).square().sum(1)
    wanted = maths.predicted(found.values, form, alpha, 10).square()
    assert ((energy.mean(0) - wanted).abs() < 5 * energy.std(0) / math.sqrt(draws)).all()


def test_noise_has_the_slopes_two_zero_and_one():
    found, z = maths.directions(batch(4000, 12)), normal(4000, 12)
    for scaling, wanted in zip(maths.SCALINGS, (2.0, 0.0, 1.0), strict=True):
        form = maths.shape(found, scaling)
        exact, error = maths.slope(found.values, maths.ratio(found.values, form, 0.3, 4000))
        assert exact == pytest.approx(wanted, abs=1e-9) and error < 1e-9
        spent = 0.09 * maths.powers(maths.noise(z, form), found.basis)
        drawn, error = maths.slope(found.values, found.values.square() / spent)
        assert 0 < error < 0.02
        assert abs(drawn - wanted) < 5 * error


def test_a_slope_needs_three_points_with_spread():
    for x in (torch.ones(5), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 0.0, -1.0])):
        assert all(map(math.isnan, maths.slope(x, torch.ones_like(x))))


@pytest.mark.parametrize("scaling", ["linear", "sublinear"])
def test_scales_average_one_and_ignore_the_size_of_the_features(scaling):
    values = maths.directions(batch(20, 7)).values
    scale = maths.scales(values, scaling)
    assert float(scale.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(maths.scales(1e3 * values, scaling), scale)
    torch.testing.assert_close(maths.scales(torch.full((4,), 2.0), scaling), torch.ones(4))
    with pytest.raises(ValueError, match="not 'cubic'"):
        maths.scales(values, "cubic")


@scalings
def test_noise_depends_neither_on_signs_nor_on_a_basis_of_equal_values(scaling):
    values = torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=F64)
    basis, turn = (torch.linalg.qr(normal(size, size, seed=size))[0] for size in (4, 2))
    turned = basis.clone()
    turned[:, 1:3] = basis[:, 1:3] @ turn
    turned[:, [0, 3]] *= -1
    z = normal(9, 4)
    one, other = (maths.noise(z, maths.shape(maths.Directions(values, b), scaling)) for b in (basis, turned))
    torch.testing.assert_close(one, other)


@scalings
@shapes
def test_noise_follows_permuted_rows_and_rotated_features(m, n, scaling):
    x, z = batch(m, n), normal(m, n, seed=5)
    plain = maths.noise(z, maths.shape(maths.directions(x), scaling))
    order = torch.randperm(m, generator=torch.Generator().manual_seed(1))
    permuted = maths.noise(z[order], maths.shape(maths.directions(x[order]), scaling))
    torch.testing.assert_close(permuted, plain[order])
    turn = torch.linalg.qr(normal(n, n, seed=2))[0]
    rotated = maths.noise(z @ turn, maths.shape(maths.directions(x @ turn), scaling))
    torch.testing.assert_close(rotated, plain @ turn)


@scalings
@shapes
@pytest.mark.parametrize("centre", [False, True])
def test_the_gram_route_gives_the_same_noise(m, n, centre, scaling):
    x, z = batch(m, n, decay=0.8) + 0.3, normal(m, n, seed=5)
    if centre and m < n and scaling == "uniform":
        pytest.skip("uniform noise in a direction of singular value 0 is arbitrary")
    svd, gram = (
        maths.noise(z, maths.shape(maths.directions(x, centre=centre, gram=gram), scaling)) for gram in (False, True)
    )
    torch.testing.assert_close(svd, gram, rtol=1e-7, atol=1e-7)


def test_centring_takes_the_mean_row_away():
    x = batch(20, 5) + 10.0
    torch.testing.assert_close(maths.directions(x, centre=True).values, torch.linalg.svdvals(x - x.mean(0)))
    assert maths.directions(x).values[0] > 50 * maths.directions(x, centre=True).values[0]


@scalings
@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize(
    "x",
    [torch.zeros(6, 4), torch.ones(6, 4), batch(1, 4), batch(3, 4).repeat(4, 1), batch(2, 9).repeat(2, 1)],
    ids=["zero", "equal rows", "one row", "duplicates", "duplicates, few"],
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_deficient_batch_gets_finite_noise_and_none_where_it_has_nothing(x, gram, scaling, dtype):
    x = x.to(dtype)
    found = maths.directions(x, gram=gram)
    rank = int(torch.linalg.matrix_rank(x))
    assert (found.values > 0).sum() == rank
    for matched in (False, True):
        form = maths.shape(found, scaling, matched=matched)
        assert maths.noise(torch.ones_like(x), form).isfinite().all()
        if scaling != "uniform":
            assert (form.scale[rank:] == 0).all()
    assert maths.mixed(torch.ones(len(x), len(x), dtype=dtype), maths.mixture(x)).isfinite().all()
    assert 1 <= float(maths.effective_rank(found.values)) <= max(rank, 1) + 1e-5


def test_no_singular_value_moves_by_more_than_the_noises_norm():
    x = batch(30, 10)
    for scaling in maths.SCALINGS:
        form = maths.shape(maths.directions(x), scaling)
        for seed in range(20):
            noise = maths.noise(normal(30, 10, seed=seed), form)
            moved = (torch.linalg.svdvals(x + noise) - torch.linalg.svdvals(x)).abs().max()
            assert moved <= torch.linalg.matrix_norm(noise, 2) + 1e-12


@pytest.mark.parametrize("size", [(300, 450), pytest.param((1000, 1536), marks=pytest.mark.slow)])
def test_a_spike_in_noise_is_seen_where_random_matrices_say(size):
    m, n = size
    delta = 0.1 / math.sqrt(n)
    limit, end = maths.threshold(delta, m, n), maths.edge(delta, m, n)
    if size == (1000, 1536):
        assert (limit, end) == pytest.approx((0.0898, 0.1807), abs=1e-4)
    u, v = (normal(count, 1, seed=i) for i, count in enumerate(size))
    u, v = u / u.norm(), v / v.norm()
    noise = delta * normal(m, n, seed=7)
    assert float(torch.linalg.matrix_norm(noise, 2)) == pytest.approx(end, rel=0.02)
    for times in (0.5, 2.0, 4.0):
        left, values, right = torch.linalg.svd(times * limit * u @ v.T + noise, full_matrices=False)
        assert float(values[0]) == pytest.approx(maths.observed(times * limit, delta, m, n), rel=0.02)
        seen = (float(right[0] @ v) ** 2, float(left[:, 0] @ u) ** 2)
        assert seen == pytest.approx(maths.overlap(times * limit, delta, m, n), abs=0.06 if m < 1000 else 0.04)
    assert maths.overlap(0.9 * limit, delta, m, n) == (0.0, 0.0)
    assert maths.overlap(1.0001 * limit, delta, m, n) == pytest.approx((0.0, 0.0), abs=1e-3)


def pulls(keys: int, width: int, tau: float, delta: float, draws: int):
    """The expected gradient of -log p_0 at a query: by draws, by Stein's identity, and as the paper has it."""
    q, k = normalised(normal(width, seed=1)), normalised(normal(keys, width, seed=2))
    even = maths.even(k)
    own = torch.nn.functional.one_hot(torch.tensor(0), keys).to(F64)
    total, mean, square = (torch.zeros(size, dtype=F64) for size in (width, keys, ()))
    for seed in range(10):
        noise = maths.noise(normal(draws * keys, width, seed=seed), even).view(draws, keys, width)
        noise = delta * math.sqrt(width) * noise
        p = ((k + noise) @ q / tau).softmax(1)
        total += -(((own - p)[:, :, None] * (k + noise)).sum(1) / tau).mean(0) / 10
        mean, square = mean + p.mean(0) / 10, square + p.square().sum(1).mean() / 10
    stein = -(k[0] - mean @ k - delta**2 / tau * (1 - square) * q) / tau
    flat = -(k[0] - (k @ q / tau).softmax(0) @ k - delta**2 / tau * q) / tau
    return q, total, stein, flat


def test_noise_on_keys_gives_the_gradient_that_steins_identity_says():
    q, drawn, stein, _ = pulls(16, 6, 0.2, 0.15, 8000)
    assert float((drawn - stein).norm() / stein.norm()) < 0.01


def test_the_papers_gradient_holds_for_a_flat_softmax_and_its_extra_term_is_radial():
    q, drawn, _, flat = pulls(1024, 6, 1.0, 0.3, 150)
    assert float((drawn - flat).norm() / flat.norm()) < 0.02
    extra = 0.09 * q
    assert float((extra - (extra @ q) * q).norm()) < 1e-12


def test_pairs_on_the_sphere_are_measured_as_defined():
    a, b = normalised(normal(9, 4)), normalised(normal(9, 4, seed=1))
    found = {key: float(value) for key, value in maths.pairing(a, b).items()}
    others = [(i, j) for i in range(9) for j in range(9) if i != j]
    spread = [math.log(sum(math.exp(-2 * float((s[i] - s[j]).square().sum())) for i, j in others) / 72) for s in (a, b)]
    assert found == pytest.approx(
        {
            "positive": float((a * b).sum(1).mean()),
            "negative": sum(float(a[i] @ b[j]) for i, j in others) / 72,
            "alignment": float((a - b).square().sum(1).mean()),
            "uniformity": sum(spread) / 2,
            "gap": float((a.mean(0) - b.mean(0)).norm()),
        }
    )
    assert found["alignment"] == pytest.approx(2 - 2 * found["positive"])
    assert math.isnan(float(maths.pairing(a[:1], b[:1])["negative"]))


def test_effective_rank_counts_equal_directions():
    assert float(maths.effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0]))) == pytest.approx(3.0)


def test_the_dose_warms_up_and_anneals():
    assert [maths.dose(1.0, step, 4, "none", 0) for step in (0, 2, 4, 100)] == [0.0, 0.5, 1.0, 1.0]
    linear = [maths.dose(2.0, step, 0, "linear", 10) for step in (0, 5, 10, 11)]
    assert linear == [2.0, 1.0, 0.0, 0.0]
    cosine = [maths.dose(2.0, step, 10, "cosine", 30) for step in (10, 20, 30)]
    assert cosine == pytest.approx([2.0, 1.0, 0.0])
