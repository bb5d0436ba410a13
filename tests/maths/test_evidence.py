"""Opinions add up, fuse as Dempster's reduced rule says, and every reading has the limits it must have."""

import pytest
import torch

from modalscape.engine.maths.gradients import evidence as maths
from modalscape.engine.maths.gradients.evidence import EVIDENCE, READINGS, SIZES, combined, pooled

CONVEX = ("trust", "sources", "inverse_variance")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(*shape, seed=0, spread=2.0):
    return (spread * normal(*shape, seed=seed)).exp()


def opinion(e):
    """Belief (H, …) and uncertainty (…) of evidence (H, …)."""
    total = (e + 1).sum(0)
    return e / total, len(e) / total


@pytest.fixture(params=[1, 2, 5])
def opinions(request):
    return [opinion(positive(request.param, 50, seed=seed)) for seed in range(3)]


def test_masses_sum_to_one_before_and_after(opinions):
    (b1, u1), (b2, u2), _ = opinions
    b, u, _ = combined(b1, u1, b2, u2)
    for belief, doubt in ((b1, u1), (b, u)):
        torch.testing.assert_close(belief.sum(0) + doubt, torch.ones_like(doubt))


def test_a_vacuous_opinion_changes_nothing(opinions):
    b1, u1 = opinions[0]
    b, u, conflict = combined(b1, u1, torch.zeros_like(b1), torch.ones_like(u1))
    torch.testing.assert_close(b, b1)
    torch.testing.assert_close(u, u1)
    assert conflict.abs().max() < 1e-15


def test_the_rule_is_commutative_and_associative(opinions):
    one, two, three = opinions
    for a, b in zip(combined(*one, *two), combined(*two, *one), strict=True):
        torch.testing.assert_close(a, b)
    left = combined(*combined(*one, *two)[:2], *three)
    right = combined(*one, *combined(*two, *three)[:2])
    for a, b in zip(left[:2], right[:2], strict=True):
        torch.testing.assert_close(a, b)


def test_fused_uncertainty_is_below_both(opinions):
    one, two, _ = opinions
    assert (combined(*one, *two)[1] <= torch.minimum(one[1], two[1]) + 1e-15).all()


def test_one_hypothesis_never_conflicts_and_multiplies_uncertainty():
    e = positive(4, 30, seed=3)
    _, u, conflict = pooled((e / (1 + e))[:, None], 1 / (1 + e))
    assert conflict.abs().max() < 1e-14
    torch.testing.assert_close(u, (1 / (1 + e)).prod(0))
    torch.testing.assert_close(1 / u - 1, (1 + e).prod(0) - 1)


def test_same_sign_agrees_and_opposite_signs_conflict():
    e = positive(2, 40, seed=4)
    b, u = e / (e + 2), 2 / (e + 2)
    same = maths.signed(torch.ones_like(e), e)
    torch.testing.assert_close(same.fused, u[0] * u[1])
    torch.testing.assert_close(same.parts.sum(0), 1 - u[0] * u[1])
    assert same.conflict.abs().max() < 1e-14
    facing = maths.signed(torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 40), e)
    left = 1 - b[0] * b[1]
    torch.testing.assert_close(facing.conflict, b[0] * b[1])
    torch.testing.assert_close(facing.fused, u[0] * u[1] / left)
    torch.testing.assert_close(facing.parts.sum(0), (b[0] * u[1] - b[1] * u[0]) / left)


def test_certain_opinions_that_contradict_each_other_stay_finite():
    b1, b2 = torch.eye(2, dtype=torch.float64)[:, :, None]
    zero = torch.zeros(1, dtype=torch.float64)
    b, u, conflict = combined(b1, zero, b2, zero)
    assert conflict == 1 and torch.isfinite(b).all() and torch.isfinite(u).all()


@pytest.mark.parametrize("reading", CONVEX)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_equal_precision_gives_the_plain_mean(reading, count):
    mean = normal(count, 7, 5)
    found = READINGS[reading](mean, torch.full_like(mean, 3.0))
    torch.testing.assert_close(found.parts.sum(0), mean.mean(0))


@pytest.mark.parametrize("reading", ["trust", "inverse_variance"])
def test_a_source_without_precision_is_ignored(reading):
    mean, e = normal(2, 6), torch.stack([positive(6), torch.zeros(6, dtype=torch.float64)])
    torch.testing.assert_close(READINGS[reading](mean, e).parts.sum(0), mean[0])


def test_where_sources_are_the_frame_one_without_precision_keeps_a_remainder():
    e = torch.stack([positive(6), torch.zeros(6, dtype=torch.float64)])
    torch.testing.assert_close(maths.sources(normal(2, 6), e).weights[1], 1 / (e.sum(0) + 2))


def test_trust_and_sources_have_opposite_limits():
    e, mean = positive(3, 20, spread=1.0), normal(3, 20)
    like_e, uniform = e / e.sum(0), torch.full_like(e, 1 / 3)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(maths.trust(mean, 1e8 * e).weights, uniform, **close)
    torch.testing.assert_close(maths.trust(mean, 1e-8 * e).weights, like_e, **close)
    torch.testing.assert_close(maths.sources(mean, 1e8 * e).weights, like_e, **close)
    torch.testing.assert_close(maths.sources(mean, 1e-8 * e).weights, uniform, **close)


def test_inverse_variance_with_exponent_zero_is_uniform():
    mean, lam = normal(2, 9), positive(2, 9)
    torch.testing.assert_close(
        maths.inverse_variance(mean, EVIDENCE["power"](mean, lam, 0.0)).weights, torch.full_like(mean, 0.5)
    )
    torch.testing.assert_close(
        maths.inverse_variance(mean, EVIDENCE["power"](mean, lam, 1.0)).parts.sum(0), (lam * mean).sum(0) / lam.sum(0)
    )


@pytest.mark.parametrize("reading", CONVEX)
def test_the_result_lies_between_the_sources(reading):
    mean, e = normal(3, 8, 6), positive(3, 8, 6, seed=1)
    found = READINGS[reading](mean, e)
    total = found.parts.sum(0)
    assert (total >= mean.amin(0) - 1e-12).all() and (total <= mean.amax(0) + 1e-12).all()
    torch.testing.assert_close(found.weights.sum(0), torch.ones_like(total))
    twice = READINGS[reading](mean[:1].expand(3, -1, -1), e)
    torch.testing.assert_close(twice.parts.sum(0), mean[0])


def test_confidence_shortens_trust():
    mean, e = normal(2, 8), positive(2, 8)
    plain, short = maths.trust(mean, e), maths.confident_trust(mean, e)
    torch.testing.assert_close(short.parts, plain.parts * (1 - (1 / (1 + e)).prod(0)))


@pytest.mark.parametrize("reading", READINGS)
def test_no_evidence_at_all_is_finite(reading):
    found = READINGS[reading](normal(2, 4), torch.zeros(2, 4, dtype=torch.float64))
    assert all(torch.isfinite(value).all() for value in vars(found).values())


def test_raw_precision_collapses_trust_and_relative_precision_does_not():
    """The scale trap of the method: precisions in the thousands make every source fully trusted."""
    lam = 3000 * positive(2, 400, spread=1.5)
    mean = normal(2, 400)
    raw, relative = (maths.trust(mean, EVIDENCE[kind](mean, lam, 1.0)).weights[0].std() for kind in ("raw", "relative"))
    assert raw < 0.02 and relative > 0.1


def test_relative_evidence_does_not_know_the_unit():
    mean, lam = normal(2, 9, 4), positive(2, 9, 4)
    for kind in ("relative", "snr"):
        torch.testing.assert_close(EVIDENCE[kind](mean, 1e5 * lam, 0.5), EVIDENCE[kind](mean, lam, 0.5))
    assert EVIDENCE["relative"](mean, lam, 0.5).median() == 1


def test_a_row_without_gradient_has_no_evidence_by_snr():
    mean = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert EVIDENCE["snr"](mean, torch.ones_like(mean), 0.5).tolist() == [0.0, 1.0, 1.0]


def test_average_precision_is_that_of_the_mean_variance():
    variance = positive(2, 5, 3)
    lam = maths.precision(variance, 1)
    torch.testing.assert_close(lam[:, 0], 1 / variance.mean(1))
    assert torch.equal(lam[:, 0], lam[:, 4])


def test_sizes_say_what_they_multiply_by():
    parts, plain = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    assert SIZES["sources"](parts, plain) == 3 and SIZES["mean"](parts, plain) == 1
    torch.testing.assert_close((SIZES["norm"](parts, plain) * parts.sum(0)).norm(), plain.sum(0).norm())


@pytest.mark.parametrize("kind", EVIDENCE)
def test_the_unit_of_one_loss_matters_to_precision_and_not_to_snr(kind):
    """A loss times 7 has a mean times 7 and a variance times 49."""
    mean, variance, unit = normal(2, 9, 4), positive(2, 9, 4, seed=1), torch.tensor([1.0, 7.0])[:, None, None]
    before, after = (EVIDENCE[kind](u * mean, maths.precision(u**2 * variance), 0.5) for u in (1.0, unit))
    assert torch.allclose(before, after) == (kind == "snr")


def test_one_evidence_for_all_rows_is_mean_square_over_mean_variance():
    mean, variance = normal(2, 9, 4), positive(2, 9, 4, seed=1)
    e = EVIDENCE["snr"](maths.root_mean_square(mean, 1), maths.precision(variance, 1), 1.0)
    ratio = mean.square().mean(1) / variance.mean(1)
    torch.testing.assert_close(e, (ratio / ratio.median())[:, None].expand(2, 9, 4), rtol=1e-6, atol=0)


def test_signs_that_agree_are_no_contradiction_and_leave_the_gradient_as_it_is():
    mean, e = normal(3, 8, 5).abs(), positive(3, 8, 5, seed=1)
    assert maths.contradiction(mean, e).abs().max() < 1e-14
    found = maths.trust(mean, e)
    torch.testing.assert_close(maths.damped(found, mean, e, 1.0).parts, found.parts, rtol=1e-12, atol=0)
    assert maths.damped(found, mean, e, 0.0) is found


def test_two_opposite_signs_contradict_by_the_product_of_their_beliefs():
    e = positive(2, 40, seed=4)
    mean = torch.tensor([[2.0], [-0.5]], dtype=torch.float64).expand(2, 40)
    c = e.prod(0) / (e + 2).prod(0)
    torch.testing.assert_close(maths.contradiction(mean, e), c)
    torch.testing.assert_close(maths.contradiction(mean, e), maths.signed(mean, e).conflict)
    for share in (0.3, 1.0):
        found = maths.damped(maths.trust(mean, e), mean, e, share)
        torch.testing.assert_close(found.parts, (1 - share * c) * maths.trust(mean, e).parts)
        torch.testing.assert_close(found.conflict, c)


def test_two_against_one_contradict_by_what_the_two_believe_together():
    e = positive(3, 20, seed=5)
    mean = torch.tensor([[1.0], [3.0], [-2.0]], dtype=torch.float64).expand(3, 20)
    u = 2 / (e + 2)
    torch.testing.assert_close(maths.contradiction(mean, e), (1 - u[0] * u[1]) * (1 - u[2]))


def test_full_conflict_leaves_nothing_even_of_the_longer_gradient():
    """Equal evidence without end on opposite signs: the plain mean follows the longer of the two, the damped goes."""
    mean = torch.tensor([[3.0], [-1.0]], dtype=torch.float64)
    for e, rest in ((1e4, 4e-4), (1e8, 4e-8)):
        e = torch.full_like(mean, e)
        assert maths.trust(mean, e).parts.sum(0) == pytest.approx(1.0)
        assert float(maths.damped(maths.trust(mean, e), mean, e, 1.0).parts.sum(0)) == pytest.approx(rest, rel=1e-3)


def test_more_evidence_on_either_side_and_a_larger_share_damp_more():
    mean = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 50)
    grown = torch.logspace(-3, 3, 50, dtype=torch.float64)
    for e in (torch.stack([grown, torch.ones(50)]), torch.stack([torch.ones(50), grown])):
        assert (maths.contradiction(mean, e).diff() > 0).all()
        sizes = [maths.damped(maths.trust(mean, e), mean, e, share).parts.abs() for share in (0.0, 0.4, 0.8, 1.0)]
        assert all((less < more).all() for more, less in zip(sizes, sizes[1:], strict=False))


def test_a_mean_of_zero_contradicts_nobody():
    mean, e = torch.tensor([[0.0], [-1.0]], dtype=torch.float64), torch.full((2, 1), 9.0, dtype=torch.float64)
    assert maths.contradiction(mean, e) == 0
