"""Ridge regressions between features against scikit-learn, refits without a row, and R² that is known beforehand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Sklearn, RidgeCV
from sklearn.metrics import r2_score

from modalscape.engine.errors import InputError
from modalscape.engine.maths.features.reconstruction import LEVELS, Sources, explained, ratio_error

SHAPES = [(40, 6, 4), (20, 50, 3), (30, 30, 2)]


def drawn(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n, p, d, noise=0.5, seed=0):
    """Sources of unequal scale and offset, and targets that are a linear function of them and noise."""
    x = drawn(n, p, seed=seed) * torch.logspace(-2, 2, p, dtype=torch.float64) + 3
    truth = drawn(p, d, seed=90) / torch.logspace(-2, 2, p, dtype=torch.float64)[:, None] / p**0.5
    return x, x @ truth + noise * drawn(n, d, seed=seed + 1) + 7


def standard(x: torch.Tensor) -> np.ndarray:
    return ((x - x.mean(0)) / x.std(0, correction=0)).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [10.0, 1e-2, 1e-4])
def test_the_fit_is_scikit_learns_on_standardised_sources(shape, level):
    x, y = related(*shape)
    model = Sources(x).fit(y, [level])
    theirs = Sklearn(alpha=level * len(x)).fit(standard(x), y.numpy())
    new = related(*shape, seed=5)[0]
    z = ((new - x.mean(0)) / x.std(0, correction=0)).numpy()
    assert model(new).numpy() == pytest.approx(theirs.predict(z), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_penalty_is_the_one_that_scikit_learn_chooses(shape):
    for noise in (0.01, 0.5, 5.0):
        x, y = related(*shape, noise=noise)
        theirs = RidgeCV(alphas=[level * len(x) for level in LEVELS]).fit(standard(x), y.numpy())
        assert Sources(x).fit(y).level * len(x) == pytest.approx(theirs.alpha_)


def refitted(x, y, level, groups):
    """By how much each row is missed by a fit to the others, intercepts free, with the scale and λ of all rows."""
    n, hot = len(x), torch.nn.functional.one_hot(groups).double()
    scale = (x - hot @ (hot.T @ x / hot.sum(0)[:, None])).square().mean(0).sqrt()
    design = torch.cat([x / scale, hot], 1)
    penalty = torch.diag(torch.cat([torch.full((x.shape[1],), level * n), torch.zeros(hot.shape[1])]).double())
    missed = []
    for i in range(n):
        rest = torch.arange(n) != i
        a, b = design[rest], y[rest]
        weight = torch.linalg.solve(a.T @ a + penalty, a.T @ b)
        missed.append(y[i] - design[i] @ weight)
    return torch.stack(missed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 4])
def test_rows_left_out_are_missed_as_by_a_fit_without_them(shape, count):
    """With several groups too: their means are of the rows that are left, or wide sources would interpolate."""
    x, y = related(*shape)
    groups = torch.arange(len(x)) % count
    for level in (1.0, 1e-3):
        found = Sources(x, groups).left_out(y, level)
        torch.testing.assert_close(found, refitted(x, y, level, groups), atol=1e-7, rtol=1e-7)


def test_groups_have_an_intercept_each():
    x, y = related(60, 5, 3)
    groups = torch.arange(60) % 3
    shift = 100 * drawn(3, 3, seed=4)
    sources = Sources(x, groups)
    plain, moved = sources.fit(y, [0.1]), sources.fit(y + shift[groups], [0.1])
    torch.testing.assert_close(moved.weight, plain.weight, atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(moved(x, groups), plain(x, groups) + shift[groups], atol=1e-10, rtol=1e-10)
    centre = moved.offset[groups]
    assert explained(y + shift[groups], moved(x, groups), centre)[0] > 0.5
    assert explained(y + shift[groups], centre, centre)[0] == 0.0


def test_the_only_row_of_a_group_says_nothing_of_the_penalty():
    x, y = related(20, 4, 2)
    groups = torch.tensor([1] + [0] * 19)
    found, rest = Sources(x, groups), Sources(x[1:])
    assert not found.left_out(y, 1.0)[0].any()
    assert found.fit(y).level == pytest.approx(rest.fit(y[1:]).level)


@pytest.mark.parametrize("shape", [(200, 10, 5), (60, 4, 80)])
def test_targets_that_are_a_linear_function_are_reconstructed(shape):
    x, y = related(*shape, noise=0.0)
    new, truth = related(*shape, noise=0.0, seed=5)
    model = Sources(x).fit(y)
    value, error = explained(truth, model(new), model.offset[0])
    assert model.level == LEVELS[-1] and value > 1 - 1e-6 and error < 1e-6


@pytest.mark.parametrize("p", [8, 300])
def test_independent_targets_are_not(p):
    """Mean over replicates within three of its standard errors of zero, and never above it by what one run says."""
    found = []
    for seed in range(40):
        model = Sources(drawn(100, p, seed=3 * seed)).fit(drawn(100, 6, seed=3 * seed + 1))
        new, y = drawn(200, p, seed=1000 + seed), drawn(200, 6, seed=2000 + seed)
        found.append(explained(y, model(new), model.offset[0]))
    values, errors = np.array(found).T
    assert abs(values.mean()) < 0.01 and (values < 4 * errors + 1e-3).all()


def test_r2_is_that_of_scikit_learn_about_the_mean_of_the_fit():
    y, guess = drawn(50, 4) * torch.tensor([1.0, 2.0, 5.0, 0.1]), drawn(50, 4, seed=1)
    mean = y.mean(0)
    theirs = r2_score(y.numpy(), guess.numpy(), multioutput="variance_weighted")
    assert explained(y, guess, mean)[0] == pytest.approx(theirs)
    own = 1 - (y - guess).square().sum(0) / (y - mean).square().sum(0)
    weights = y.var(0) / y.var(0).sum()
    assert explained(y, guess, mean)[0] == pytest.approx((weights * own).sum().item())
    off = explained(y, guess, mean + 1)[0]
    assert off == pytest.approx(1 - ((y - guess).square().sum() / (y - mean - 1).square().sum()).item())


def test_the_error_is_the_jackknife_and_what_fresh_rows_say():
    above, below = drawn(30).square(), 1 + drawn(30, seed=1).square()
    without = [(above[torch.arange(30) != i].sum() / below[torch.arange(30) != i].sum()).item() for i in range(30)]
    expected = np.sqrt(29 / 30 * ((without - np.mean(without)) ** 2).sum())
    assert ratio_error(above, below) == pytest.approx(expected)

    x, y = related(80, 5, 3)
    model = Sources(x).fit(y)
    found = [
        explained(t, model(s), model.offset[0]) for s, t in (related(150, 5, 3, seed=10 + 2 * i) for i in range(300))
    ]
    values, errors = np.array(found).T
    # the deviation of 300 values is known to 1/√600
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=4 / np.sqrt(600))


def test_constant_features_change_nothing():
    x, y = related(40, 6, 4)
    flat = torch.cat([x, torch.full((40, 2), 0.1, dtype=torch.float64)], 1)
    new = related(40, 6, 4, seed=5)[0]
    torch.testing.assert_close(
        Sources(flat).fit(y)(torch.cat([new, torch.full((40, 2), 9.0)], 1)),
        Sources(x).fit(y)(new),
        rtol=1e-9,
        atol=1e-9,
    )
    still = torch.full((40, 3), 0.1)
    model = Sources(x).fit(still)
    assert all(np.isnan(explained(still, model(new), model.offset[0])))
    model = Sources(still).fit(y)
    assert model.level == LEVELS[0] and not model.weight.any()
    assert explained(y, model(still), model.offset[0])[0] == 0.0


def test_rounding_of_a_constant_is_no_feature():
    x, y = related(40, 6, 4)
    noisy = torch.full((40, 2), 1e4) + 2.0**-10 * (torch.arange(40) % 2)[:, None]  # one unit in the last place
    assert not Sources(noisy).scale.any() and Sources(noisy.double()).scale.all()
    assert not Sources(noisy).fit(y).weight.any()


def test_one_row_has_no_error_and_two_are_too_few_for_a_fit():
    x, y = related(3, 2, 2)
    model = Sources(x).fit(y)
    value, error = explained(y[:1], model(x[:1]), model.offset[0])
    assert np.isfinite(value) and np.isnan(error)
    with pytest.raises(InputError, match="A regression on 2 rows says nothing; give it 3 rows or more."):
        Sources(x[:2])
