"""Decoders from running moments against regressions on the rows themselves, and where their error's gradient goes."""

import pytest
import torch
from sklearn.linear_model import Ridge
from torch._subclasses.fake_tensor import FakeTensorMode

from modalscape.engine.maths.features.reconstruction import Sources, explained
from modalscape.engine.methods.modalimmune import decoders
from modalscape.engine.methods.modalimmune.decoders import DECAY, RIDGE, followed, term, unexplained

SIZES = {"a": 4, "b": 3, "c": 2}


def drawn(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(rows=50, seed=0, noise=0.3) -> dict[str, torch.Tensor]:
    """Three modalities of unequal scale and offset that share two directions."""
    shared = drawn(rows, 2, seed=seed)
    return {
        m: 10.0**i * (shared @ drawn(2, size, seed=90 + i) + noise * drawn(rows, size, seed=seed + 1 + i)) + 5 * i
        for i, (m, size) in enumerate(SIZES.items())
    }


def moments(batches) -> dict[str, torch.Tensor]:
    state = None
    for batch in batches:
        state = followed(state, batch)
    return state


def test_moments_are_those_of_all_rows_weighted_by_their_age():
    batches = [features(rows, seed=10 * rows) for rows in (20, 7, 31, 1)]
    state = moments(batches)
    z = [torch.cat(list(batch.values()), 1) for batch in batches]
    weights = torch.cat(
        [torch.full((len(x),), DECAY ** (3 - t) / len(x), dtype=torch.float64) for t, x in enumerate(z)]
    )
    weights, rows = weights / weights.sum(), torch.cat(z)
    mean = weights @ rows
    torch.testing.assert_close(state["mean"], mean, rtol=1e-12, atol=1e-12)
    expected = (rows - mean).T @ (weights[:, None] * (rows - mean))
    torch.testing.assert_close(state["covariance"], expected, rtol=1e-10, atol=1e-10)
    assert state["weight"].item() == pytest.approx(1 - DECAY**4)


def test_a_batch_that_is_not_finite_leaves_the_moments_as_they_were():
    before = moments([features(seed=1), features(seed=2)])
    broken = features(seed=3)
    broken["b"][4, 1] = torch.inf
    after = followed(before, broken)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_decoders_are_the_ridge_regressions_of_scikit_learn():
    batch = features()
    found = decoders.decoders(followed(None, batch), SIZES)
    whole = torch.cat(list(batch.values()), 1)
    start = 0
    for m, size in SIZES.items():
        own = slice(start, start + size)
        assert not found[m][:, own].any()
        others = [i for i in range(9) if not start <= i < start + size]
        x = (whole - whole.mean(0)) / whole.std(0, correction=0)
        theirs = Ridge(alpha=RIDGE * len(whole)).fit(x[:, others].numpy(), batch[m].numpy())
        guess = (whole - whole.mean(0)) @ found[m].T + batch[m].mean(0)
        torch.testing.assert_close(guess, torch.from_numpy(theirs.predict(x[:, others].numpy())), rtol=1e-8, atol=1e-8)
        start += size


def test_the_share_is_one_minus_the_r2_of_the_probe():
    fit, new = features(200, seed=1), features(100, seed=2)
    shares = unexplained(new, followed(None, fit))
    for i, m in enumerate(SIZES):
        x, y = (torch.cat([h for name, h in rows.items() if name != m], 1) for rows in (fit, new))
        guess = Sources(x).fit(fit[m], [RIDGE])(y)
        spread = (fit[m] - fit[m].mean(0)).square().sum() / 200 * 100
        assert shares[i].item() == pytest.approx(((new[m] - guess).square().sum() / spread).item())
        r2, _ = explained(new[m], guess, fit[m].mean(0))
        assert shares[i].item() == pytest.approx(1 - r2, rel=0.4), "the variance is that of the fit"


def test_scales_and_offsets_make_no_difference():
    fit, new = features(seed=1), features(seed=2)
    moved = [{m: 10.0 ** (3 * i - 3) * h - 40 for i, (m, h) in enumerate(rows.items())} for rows in (fit, new)]
    plain, other = unexplained(new, followed(None, fit)), unexplained(moved[1], followed(None, moved[0]))
    torch.testing.assert_close(plain, other, rtol=1e-8, atol=1e-10)


def test_what_is_linear_is_explained_and_what_is_independent_is_not():
    rows = {"a": drawn(4000, 4), "b": drawn(4000, 3, seed=1)}
    rows["c"] = rows["a"] @ drawn(4, 2, seed=2)
    a, b, c = unexplained(rows, followed(None, rows)).tolist()
    assert c < 1e-3 and b == pytest.approx(1, abs=0.01) and 0.2 < a < 0.7  # two of four directions are in c


@pytest.mark.parametrize("target", [0, 1, 2])
def test_the_gradient_is_that_of_finite_differences_and_goes_to_the_sources_only(target):
    state, batch = moments([features(seed=1), features(seed=2)]), features(6, seed=3)
    lost = list(SIZES)[target]
    sources = [h.clone().requires_grad_() for m, h in batch.items() if m != lost]

    def share(*given):
        given = dict(zip([m for m in SIZES if m != lost], given, strict=True)) | {lost: batch[lost]}
        return term({m: given[m] for m in SIZES}, state, target)

    assert torch.autograd.gradcheck(share, sources, atol=1e-7)
    leaves = {m: h.clone().requires_grad_() for m, h in batch.items()}
    term(leaves, state, target).backward()
    for m, leaf in leaves.items():
        assert bool(leaf.grad.any()) == (m != lost), m


def test_the_gradient_is_the_closed_form():
    """-2/(B·Σ var)·Aᵀ(z - decoded), for each source of each row."""
    state, batch = moments([features(seed=1)]), features(6, seed=3)
    leaves = {m: h.clone().requires_grad_() for m, h in batch.items()}
    term(leaves, state, 1).backward()
    a = decoders.decoders(state, SIZES)["b"]
    z = torch.cat(list(batch.values()), 1) - state["mean"]
    missed = z[:, 4:7] - z @ a.T
    expected = -2 / (6 * state["covariance"].diagonal()[4:7].sum()) * missed @ a
    torch.testing.assert_close(torch.cat([leaf.grad for leaf in leaves.values()], 1), expected, rtol=1e-9, atol=1e-12)


def test_a_source_that_follows_its_gradient_carries_more_of_the_target():
    """A linear map learns to pick out of its inputs what the other modality holds, the moments following."""
    hidden = drawn(400, 6)
    target, weight = hidden[:, :2] @ drawn(2, 3, seed=1), 0.3 * drawn(6, 2, seed=2)
    with torch.no_grad():
        weight[:2] *= 0.1
    state, shares = None, []
    for _ in range(300):
        weight = weight.detach().requires_grad_()
        rows = {"a": hidden @ weight, "b": target}
        state = followed(state, rows)
        share = term(rows, state, 1)
        (slope,) = torch.autograd.grad(share, weight)
        weight = weight - 0.3 * slope
        shares.append(share.item())
    assert shares[0] > 0.8 and shares[-1] < 0.2


def test_constant_features_are_neither_read_nor_reconstructed():
    batch = features(30, seed=1)
    state = followed(None, batch | {"b": torch.full_like(batch["b"], 0.1)})
    found = decoders.decoders(state, SIZES)
    assert not found["b"].any() and not found["a"][:, 4:7].any() and found["a"].any()
    shares = unexplained(features(seed=2), state)
    assert shares[1] == 0 and shares.isfinite().all()


def test_no_target_or_no_moments_is_no_term():
    batch = {m: h.requires_grad_() for m, h in features().items()}
    for value in (term(batch, None, 1), term(batch, followed(None, batch), -1)):
        assert value == 0 and value.requires_grad
    state, three = followed(None, batch), unexplained(batch, followed(None, batch))
    for m in range(3):
        assert torch.equal(term(batch, state, torch.tensor(m)), term(batch, state, m))
        assert torch.equal(term(batch, state, m), three[m])


def test_nothing_is_asked_of_the_host():
    with FakeTensorMode(allow_non_fake_inputs=False):
        batch = {m: torch.empty(8, size, device="meta", requires_grad=True) for m, size in SIZES.items()}
        state = followed(followed(None, batch), batch)
        value = term(batch, state, torch.empty((), dtype=torch.int64, device="meta"))
        torch.autograd.grad(value, list(batch.values()))
