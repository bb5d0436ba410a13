"""Spectrum, target, controller and gate of the collapse have the values that are known on paper."""

import itertools
import math

import pytest
import torch

from modalscape.engine.maths.curvature.hypergradient import gauss_newton
from modalscape.engine.methods.modalimmune import collapse
from tests.maths import nets

DOUBLE = torch.float64


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Rows whose spectrum has gaps."""
    scale = 0.7 ** torch.arange(width, dtype=DOUBLE)
    return torch.randn(rows, width, generator=draw(seed), dtype=DOUBLE) * scale + 0.3


def with_covariance(values: list[float]) -> torch.Tensor:
    """Rows (2n, n) whose covariance is exactly the diagonal of `values`."""
    n = len(values)
    roots = torch.tensor(values, dtype=DOUBLE).sqrt().diag() * math.sqrt((2 * n - 1) / 2)
    return torch.cat([roots, -roots])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([1.0] * 7, 7.0), ([3.0, 0, 0, 0], 1.0), ([4.0, 1, 1, 1, 1], 2.0), ([5.0, 2, 2, 2, 2], 2.6),
     ([8.0, 5, 5, 5, 5], 3.5), ([104.0, 101, 101, 101, 101], 508 / 104)],
)  # fmt: skip
def test_the_ratio_has_its_known_values(values, wanted):
    assert collapse.spectral_ratio(with_covariance(values), guard=0.0).item() == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("shape", [(40, 6), (5, 9)])
def test_the_ratio_is_the_stable_rank_of_the_centred_features(shape):
    z = features(*shape)
    zc = z - z.mean(0)
    wanted = zc.norm() ** 2 / torch.linalg.matrix_norm(zc, 2) ** 2
    assert collapse.spectral_ratio(z, guard=0.0).item() == pytest.approx(wanted.item(), abs=1e-12)
    assert collapse.spectral_ratio(3.7 * z + 5, guard=0.0).item() == pytest.approx(wanted.item(), abs=1e-11)
    values = torch.linalg.eigvalsh(zc.T @ zc / (len(z) - 1)).flip(0)[: min(shape)]
    torch.testing.assert_close(collapse.eigenvalues(z).flip(0), values, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("shape", [(30, 5), (4, 6)])
def test_the_gradient_of_the_ratio_is_the_closed_form_and_never_shrinks(shape):
    z = features(*shape, seed=1).requires_grad_()
    (found,) = torch.autograd.grad(collapse.spectral_ratio(z, guard=0.0), z)
    zc = (z - z.mean(0)).detach()
    sigma = zc.T @ zc / (len(z) - 1)
    values, vectors = torch.linalg.eigh(sigma)
    top, u = values[-1], vectors[:, -1]
    by_sigma = torch.eye(len(sigma), dtype=DOUBLE) / top - sigma.trace() / top**2 * torch.outer(u, u)
    torch.testing.assert_close(found, 2 / (len(z) - 1) * zc @ by_sigma, atol=1e-10, rtol=1e-8)
    assert found.sum(0).abs().max() < 1e-10
    assert abs((found * zc).sum()) < 1e-10


def test_the_gradient_by_the_covariance_itself_is_the_closed_form():
    """∂r/∂Σ = I/λ_max - (tr Σ/λ_max²)uuᵀ."""
    sigma = torch.cov(features(40, 5).T).requires_grad_()
    (found,) = torch.autograd.grad(collapse.ratio(torch.linalg.eigvalsh(sigma), 0.0), sigma)
    values, vectors = torch.linalg.eigh(sigma.detach())
    wanted = (
        torch.eye(5, dtype=DOUBLE) / values[-1] - values.sum() / values[-1] ** 2 * vectors[:, -1:] @ vectors[:, -1:].T
    )
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-9)


def test_the_ratio_passes_gradcheck():
    # the detached trace in the guard is no part of the derivative, hence without it
    assert torch.autograd.gradcheck(lambda z: collapse.spectral_ratio(z, 0.0), features(12, 4).requires_grad_())


def test_vanishing_features_give_finite_numbers():
    z = torch.zeros(6, 3, dtype=DOUBLE, requires_grad=True)
    for twice, pull in itertools.product((False, True), collapse.PULLS):
        found = collapse.terms(z, torch.randn(6, 3, generator=draw(0), dtype=DOUBLE), 0.5, twice, pull)
        grad = torch.autograd.grad(found.pull + found.ratio, z)[0]
        assert found.ratio == 0
        assert torch.isfinite(grad).all()
        assert collapse.strength(1.0, z, 0.0, found.scale, True, 0.0) == 0
        assert collapse.strength(1.0, z, 0.0, found.scale, False, 0.0) == 0


@pytest.mark.parametrize("shape", [(40, 6), (5, 9), (6, 6)])
def test_the_cheap_ratio_and_its_gradient_are_those_of_the_eigenvalues(shape):
    z, noise = features(*shape, seed=3).requires_grad_(), torch.zeros(shape, dtype=DOUBLE)
    found = [collapse.terms(z, noise, 0.5, twice).ratio for twice in (False, True)]
    torch.testing.assert_close(*found, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(r, z)[0] for r in found), atol=1e-12, rtol=1e-9)


def test_a_repeated_eigenvalue_gives_a_gradient_that_is_finite():
    z = with_covariance([2.0, 2.0, 1.0]).requires_grad_()
    ratio = collapse.terms(z, torch.zeros_like(z), 0.5).ratio
    assert ratio.item() == pytest.approx(2.5, rel=1e-5)
    assert torch.isfinite(torch.autograd.grad(ratio, z)[0]).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_give_no_number_and_raise_nothing(value):
    z = features(6, 4)
    z[2, 1] = value
    assert torch.isnan(collapse.terms(z, torch.zeros_like(z), 0.5).ratio)
    assert torch.isnan(collapse.eigenvalues(z)).all()


@pytest.mark.parametrize(
    ("rows", "wanted"), [(8, 3.18), (16, 4.61), (32, 6.14), (64, 7.83), (256, 10.77), (4096, 14.36)]
)
def test_one_batch_underestimates_the_ratio(rows, wanted):
    """Isotropic features of width 16, true ratio 16: mean over draws within five standard errors (and rounding).

    The Marchenko-Pastur edge, d/(1 + √(d/B))², is 1 to 14 % lower still.
    """
    g, draws = draw(rows), 400 if rows < 1000 else 40
    found = [collapse.spectral_ratio(torch.randn(rows, 16, generator=g, dtype=DOUBLE)) for _ in range(draws)]
    mean, error = torch.stack(found).mean().item(), torch.stack(found).std().item() / math.sqrt(draws)
    assert mean == pytest.approx(wanted, abs=5 * error + 0.006)
    assert 0.86 < 16 / (1 + math.sqrt(16 / rows)) ** 2 / mean < 0.995


def test_dimensions_agree_on_flat_and_rank_one_spectra():
    assert all(v == pytest.approx(5.0) for v in collapse.dimensions(torch.ones(5)).values())
    assert all(v == pytest.approx(1.0) for v in collapse.dimensions(torch.tensor([0.0, 0.0, 2.0])).values())
    assert all(v == 0.0 for v in collapse.dimensions(torch.zeros(3)).values())
    found = collapse.dimensions(torch.tensor([1.0, 1.0, 2.0]))
    assert found["participation"] == pytest.approx(16 / 6)
    assert found["stable rank of Σ"] == pytest.approx(1.5)


def test_the_pull_is_shrinkage_in_expectation():
    """Mean over ξ of ‖z - g‖² = ‖z‖² + B·D·η²s², and its gradient 2z; five standard errors."""
    z, target, draws = features(6, 4, seed=2).requires_grad_(), 0.5, 4000
    scale, g = collapse.rms(z), draw(7)
    values, grads = [], []
    for _ in range(draws):
        pull = collapse.terms(z, torch.randn(6, 4, generator=g, dtype=DOUBLE), target).pull
        values.append(pull.detach() * scale**2 * z.numel())
        grads.append(torch.autograd.grad(pull, z)[0] * scale**2 * z.numel())
    values, grads = torch.stack(values), torch.stack(grads)
    wanted = (z.square().sum() + z.numel() * (target * scale) ** 2).item()
    assert values.mean().item() == pytest.approx(wanted, abs=5 * values.std().item() / math.sqrt(draws))
    error = grads.std(0) / math.sqrt(draws)
    assert ((grads.mean(0) - 2 * z).abs() < 5 * error).all()


@pytest.mark.parametrize("shape", [(40, 6), (5, 9)])
def test_the_pull_by_rows_has_the_size_of_the_ratio_whatever_the_shape_and_the_scale(shape):
    """Mean over ξ is (B-1)/B·(1 + η²)·r, its gradient 2(z - z̄)/(Bλ_max); five standard errors, and no pull on z̄."""
    z, target, draws, g = features(*shape, seed=4).requires_grad_(), 0.5, 3000, draw(8)
    values = torch.linalg.eigvalsh(torch.cov(z.detach().T))
    found, grads = [], []
    for _ in range(draws):
        noise = torch.randn(shape, generator=g, dtype=DOUBLE)
        found.append(collapse.terms(z, noise, target, pull="rows").pull)
        grads.append(torch.autograd.grad(found[-1], z)[0])
    found, grads = torch.stack(found).detach(), torch.stack(grads)
    ratio = (values.sum() / values[-1]).item()
    wanted = collapse.expected_pull(z, ratio, collapse.rms(z).item(), target, "rows")
    assert wanted == pytest.approx((shape[0] - 1) / shape[0] * 1.25 * ratio)
    assert found.mean().item() == pytest.approx(wanted, abs=5 * found.std().item() / math.sqrt(draws) + 1e-5)
    zc = (z - z.mean(0)).detach()
    error = grads.std(0) / math.sqrt(draws) + 1e-6
    assert ((grads.mean(0) - 2 * zc / shape[0] / values[-1]).abs() < 5 * error).all()
    assert grads.sum(1).abs().max() < 1e-12
    large = collapse.terms(1000 * z + 5, torch.zeros(shape, dtype=DOUBLE), target, pull="rows").pull
    small = collapse.terms(z, torch.zeros(shape, dtype=DOUBLE), target, pull="rows").pull
    torch.testing.assert_close(large, small)


@pytest.mark.parametrize("width", [4, 64])
def test_the_gradient_of_the_pull_by_entries_is_that_by_rows_over_the_ratio(width):
    z = torch.randn(512, width, generator=draw(width), dtype=DOUBLE)
    z, nothing = (z - z.mean(0)).requires_grad_(), torch.zeros_like(z)
    rows, entries = (torch.autograd.grad(collapse.terms(z, nothing, 0.5, pull=p).pull, z)[0] for p in collapse.PULLS)
    ratio = collapse.spectral_ratio(z).item()
    torch.testing.assert_close(entries, rows * 512 / 511 / ratio, atol=1e-10, rtol=1e-4)


def test_no_gradient_passes_through_scale_or_target():
    z, noise = features(6, 4).requires_grad_(), torch.randn(6, 4, generator=draw(1), dtype=DOUBLE)
    pull, scale = collapse.terms(z, noise, 0.5).pull, collapse.rms(z)
    wanted = 2 * (z - 0.5 * scale * noise) / scale**2 / z.numel()
    torch.testing.assert_close(torch.autograd.grad(pull, z)[0], wanted.detach())


def test_the_strength_fades_with_the_spectrum_and_stops_at_the_floor():
    z = with_covariance([4.0, 1, 1, 1, 1])
    found, scale = collapse.spectral_ratio(z).item(), collapse.rms(z).item()
    assert collapse.most(z) == 5
    assert collapse.strength(0.2, z, found, scale, True, 0.0) == pytest.approx(0.2 * (2 - 1) / 4, rel=1e-5)
    assert collapse.strength(0.2, z, found, scale, False, 0.0) == pytest.approx(0.2)
    assert collapse.strength(0.2, z, found, scale, False, 1.01 * scale) == 0
    assert collapse.strength(0.2, z, found, scale, False, 0.99 * scale) > 0
    assert collapse.strength(0.2, z, 1.0, scale, True, 0.0) == 0
    assert collapse.strength(0.2, z, found, scale, True, 0.0, found) == pytest.approx(0.2)
    assert collapse.strength(0.2, z, found, scale, True, 0.0, 3.0) == pytest.approx(0.2 * (2 - 1) / 2, rel=1e-5)
    assert collapse.strength(0.2, z, 1.01, scale, True, 0.0, 1.02) == pytest.approx(0.2 * 0.01 / collapse.LEAST)
    assert collapse.strength(0.2, z, found, scale, True, 0.0, math.nan) == pytest.approx(0.2 / 4, rel=1e-5)


@pytest.mark.parametrize("width", [2, 16, 64])
def test_the_largest_eigenvalue_is_found_by_products_within_its_bound(width):
    """Random spectra, one rival at its worst place, and as many rivals as there is room for; 0 and nan pass through."""
    q, _ = torch.linalg.qr(torch.randn(width, width, generator=draw(width), dtype=DOUBLE))
    spectra = [torch.rand(width, generator=draw(seed), dtype=DOUBLE) ** 3 for seed in range(20)]
    spectra += [
        torch.cat([torch.ones(1, dtype=DOUBLE), torch.full((width - 1,), x, dtype=DOUBLE)]) for x in (0.9, 0.96)
    ]
    for values in spectra:
        found = collapse.largest(q @ (1e3 * values).diag() @ q.T).item() / 1e3
        weights = (values / values.max()) ** 32
        assert found == pytest.approx(((weights * values).sum() / weights.sum()).item(), rel=1e-9)
        assert 0.93 * values.max() < found <= values.max() * (1 + 1e-12)
    assert collapse.largest(torch.eye(width)).item() == pytest.approx(1.0)
    assert collapse.largest(torch.zeros(width, width)) == 0
    assert torch.isnan(collapse.largest(torch.full((width, width), torch.nan)))


def test_chances_are_a_distribution_above_their_floor():
    w = [0.0, -3.0, -800.0]
    for explore in (0.01, 0.3, 1.0):
        found = collapse.probabilities(w, explore, "exp3")
        assert sum(found) == pytest.approx(1.0)
        assert min(found) >= explore / 3 - 1e-15
        assert found == pytest.approx(collapse.probabilities([x + 17 for x in w], explore, "exp3"))
    assert collapse.probabilities(w, 1.0, "exp3") == pytest.approx([1 / 3] * 3)
    assert collapse.probabilities(w, 0.1, "uniform") == pytest.approx([1 / 3] * 3)


def test_the_importance_weighted_reward_is_unbiased():
    """400,000 draws; standard error √(r²(1/p - 1)/n)."""
    rewards, n = torch.tensor([0.2, 0.9, 0.5], dtype=DOUBLE), 400_000
    chances = torch.tensor(collapse.probabilities([0.0, -1.0, -2.0], 0.3, "exp3"), dtype=DOUBLE)
    arms = torch.multinomial(chances, n, replacement=True, generator=draw(0))
    found = torch.bincount(arms, minlength=3) * rewards / chances / n
    error = (rewards.square() * (1 / chances - 1) / n).sqrt()
    assert ((found - rewards).abs() < 5 * error).all()
    step = collapse.rewarded([0.0] * 3, {1: 0.9}, chances[1].item(), 0.3, "exp3")
    assert step[1] - step[0] == pytest.approx(0.3 / 3 * 0.9 / chances[1].item())


def test_draws_follow_the_chances():
    chances = torch.tensor([0.1, 0.6, 0.3], dtype=DOUBLE)
    uniform = torch.rand(20_000, generator=draw(1), dtype=DOUBLE).tolist()
    found = torch.bincount(torch.tensor([collapse.drawn([0.1, 0.6, 0.3], u) for u in uniform])) / 20_000
    assert ((found - chances).abs() < 5 * (chances * (1 - chances) / 20_000).sqrt()).all()
    assert collapse.drawn([0.1, 0.6, 0.3], 1.0) == 2


def played(
    rewards: list[float], explore: float, steps: int, controller: str, seed: int = 0
) -> tuple[torch.Tensor, float]:
    """Shares of the arms over the second half, and the regret, of fixed rewards."""
    w, g, arms, paid = [0.0] * len(rewards), draw(seed), [], 0.0
    for _ in range(steps):
        chances = collapse.probabilities(w, explore, controller)
        arm = collapse.drawn(chances, torch.rand((), generator=g, dtype=DOUBLE).item())
        found = {arm: rewards[arm]} if controller == "exp3" else dict(enumerate(rewards))
        w = collapse.rewarded(w, found, chances[arm], explore, controller)
        arms.append(arm)
        paid += rewards[arm]
    shares = torch.bincount(torch.tensor(arms[steps // 2 :]), minlength=len(rewards)) / (steps - steps // 2)
    return shares, max(rewards) * steps - paid


@pytest.mark.parametrize("controller", ["exp3", "hedge"])
def test_the_best_arm_is_found_within_the_regret_bound(controller):
    shares, regret = played([0.8, 0.3, 0.2], 0.1, 4000, controller)
    assert shares[0] > 0.9
    assert regret <= (math.e - 1) * 0.1 * 0.8 * 4000 + 3 * math.log(3) / 0.1


def test_equal_rewards_do_not_drift_in_expectation():
    assert collapse.rewarded([0.0] * 3, dict.fromkeys(range(3), 0.7), 1.0, 0.3, "hedge") == [0.0] * 3
    start = torch.tensor([0.0, -0.5, -1.0], dtype=DOUBLE)
    chances = collapse.probabilities(start.tolist(), 0.3, "exp3")
    steps = [collapse.rewarded(start.tolist(), {a: 0.7}, chances[a], 0.3, "exp3") for a in range(3)]
    # log-weights are known up to a constant: what is expected of their differences stays as it was
    expected = sum(p * (torch.tensor(s, dtype=DOUBLE) - s[0]) for p, s in zip(chances, steps, strict=True))
    torch.testing.assert_close(expected, start - start[0])


def test_signed_gains_pay_nothing_for_help_by_absence():
    assert collapse.information_gain([1.5, 0.5, 1.0], 1.0, True) == [0.25, 0.0, 0.0]
    assert collapse.information_gain([1.5, 0.5, 1.0], 1.0, False) == [0.25, 0.25, 0.0]


def test_rewards_are_bounded_by_a_decaying_maximum():
    assert collapse.rewards([2.0, 1.0], 0.0) == ([1.0, 0.5], 2.0)
    found, scale = collapse.rewards([0.99, 0.0], 2.0)
    assert scale == pytest.approx(1.98)
    assert found == pytest.approx([0.5, 0.0])
    assert collapse.rewards([0.0, 0.0], 0.0)[0] == [0.0, 0.0]


def test_fisher_and_gauss_newton_have_no_negative_eigenvalue_but_the_hessian_has():
    """So the literal gate, which closes below -τ, never does; 30 random nets, and one with a negative Hessian."""
    for seed in range(30):
        grads = torch.randn(60, 20, generator=draw(seed), dtype=DOUBLE) * torch.rand(20, generator=draw(seed + 1))
        smallest, largest = collapse.fisher_ends(grads, 20)
        assert -1e-12 < smallest < largest
        assert not collapse.closed(smallest, largest, 0.05)
        assert collapse.fisher_ends(grads[:10], 20) == (0.0, 0.0)
    assert not collapse.closed(0.0, 0.0, 0.05)
    _, values = nets.exact(4)
    assert values[-1] < -1e-4
    assert collapse.closed(values[-1].item(), values[-1].item(), 0.05)


def test_so_it_is_with_networks_wherever_their_parameters_are():
    """Empirical Fisher and Gauss-Newton matrix of random networks have no negative eigenvalue; the Hessian does."""
    net, layout, theta, loss, (x, y) = nets.problem(width=2)
    below = []
    for seed in range(6):
        at = (theta + torch.randn(theta.shape, generator=draw(seed), dtype=DOUBLE)).requires_grad_()

        def single(at, a, b, y):
            out = torch.func.functional_call(net, layout.unpack(at), ({"a": a[None], "b": b[None]},))
            return torch.nn.functional.cross_entropy(out, y[None])

        rows = torch.func.vmap(torch.func.grad(single), (None, 0, 0, 0))(at.detach(), x["a"], x["b"], y)
        fisher = collapse.fisher_ends(rows, len(theta))
        logits = torch.func.functional_call(net, layout.unpack(at), (x,))
        product = gauss_newton(at, [(logits, torch.nn.functional.cross_entropy(logits, y))])
        ggn = torch.linalg.eigvalsh(torch.stack([product(row) for row in torch.eye(len(theta), dtype=DOUBLE)]))
        assert min(fisher[0], ggn[0].item()) > -1e-12
        assert not collapse.closed(*fisher, 1e-6) and not collapse.closed(ggn[0].item(), ggn[-1].item(), 1e-6)
        values = torch.linalg.eigvalsh(torch.func.hessian(loss)(at.detach()))
        below.append(collapse.closed(values[0].item(), values[-1].item(), 0.01))
    assert all(below)


def test_the_gate_opens_and_closes_at_its_threshold():
    assert collapse.closed(-1.0, 1.0, 0.05)
    assert not collapse.closed(-0.04, 1.0, 0.05)
    assert not collapse.closed(0.0, 1.0, 0.0)
    assert collapse.too_steep(-0.2, 1.0, 0.1, 0.1)
    assert collapse.too_steep(30.0, 30.0, 0.1, 0.1)
    assert not collapse.too_steep(10.0, 30.0, 0.1, 0.1)


def test_the_soft_mask_has_its_limits():
    fisher = torch.tensor([0.0, 1.0, 1e9], dtype=DOUBLE)  # the median, so τ, is 1
    assert collapse.soft_mask(fisher, 1.0).tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-8)
    assert torch.equal(collapse.soft_mask(torch.zeros(4), 1.0), torch.ones(4))


def test_clipping_shortens_and_never_lengthens():
    d = torch.tensor([3.0, 4.0])
    assert torch.equal(collapse.clipped(d, 6.0), d)
    torch.testing.assert_close(collapse.clipped(d, 1.0), d / 5)
    assert torch.equal(collapse.clipped(torch.zeros(2), 0.0), torch.zeros(2))
