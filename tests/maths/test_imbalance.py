"""Imbalance metrics against loops, closed forms and their own identities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities import imbalance
from tests.maths.nets import problem


def test_true_class_score_sums_probabilities():
    logits, y = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]]), torch.tensor([1, 0])
    assert imbalance.true_class_score(logits, y).item() == pytest.approx(0.75 + 0.5)


def test_ogm_ratio_of_two_is_the_papers_and_of_more_against_their_mean():
    assert imbalance.ogm_ratio(torch.tensor([8.0, 2.0])).tolist() == [4.0, 0.25]
    torch.testing.assert_close(imbalance.ogm_ratio(torch.tensor([6.0, 2.0, 4.0])), torch.tensor([2.0, 0.4, 1.0]))
    assert imbalance.ogm_ratio(torch.full((5,), 3.0)).tolist() == [1.0] * 5


def test_ogm_ratio_against_the_smallest_is_that_of_the_benchmark():
    found = imbalance.ogm_ratio(torch.tensor([6.0, 2.0, 4.0]), "smallest")
    torch.testing.assert_close(found, torch.tensor([3.0, 0.5, 2.0]))
    pair = torch.tensor([8.0, 2.0])
    torch.testing.assert_close(imbalance.ogm_ratio(pair, "smallest"), imbalance.ogm_ratio(pair))


def test_gap_counts_only_weaker_modalities():
    scores = torch.tensor([0.9, 0.5, 0.5, 0.1])
    torch.testing.assert_close(imbalance.performance_gap(scores), torch.tensor([(0.4 + 0.4 + 0.8) / 3, 0.4, 0.4, 0.0]))


def test_gradient_norm_ratio_is_symmetric_and_free_of_scale():
    ratio = imbalance.gradient_norm_ratio(torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(ratio, torch.tensor([math.log(2), -math.log(2)]))
    norms = torch.tensor([1.0, 5.0, 0.2])
    torch.testing.assert_close(imbalance.gradient_norm_ratio(norms), imbalance.gradient_norm_ratio(norms * 1e-7))
    assert imbalance.gradient_norm_ratio(torch.tensor([0.0, 1.0]))[0] == -math.inf
    assert imbalance.gradient_norm_ratio(torch.zeros(2)).tolist() == [0.0, 0.0]


def per_row():
    net, layout, theta, _, (x, y) = problem()

    def loss(theta, a, b, y):
        logits = torch.func.functional_call(net, layout.unpack(theta), ({"a": a, "b": b},))
        return torch.nn.functional.cross_entropy(logits, y)

    return layout, theta, loss, (x["a"], x["b"], y)


def test_per_sample_gradients_are_the_loop():
    _, theta, loss, rows = per_row()
    fast = imbalance.per_sample_gradients(loss, theta, rows, chunk=32)
    slow = torch.stack([torch.func.grad(loss)(theta, *(v[i : i + 1] for v in rows)) for i in range(len(rows[0]))])
    torch.testing.assert_close(fast, slow)
    trace, error = imbalance.fisher_trace(fast)
    assert trace.item() == pytest.approx((slow**2).sum().item() / len(slow))
    assert 0 < error < trace


def test_fisher_trace_of_a_linear_softmax_is_its_closed_form():
    """Trace = mean |p - e_y|² |h|² for one linear layer without bias."""
    g = torch.Generator().manual_seed(0)
    h, y = torch.randn(50, 7, generator=g).double(), torch.randint(0, 3, (50,), generator=g)
    w = torch.randn(21, generator=g).double()

    def loss(w, h, y):
        return torch.nn.functional.cross_entropy(h @ w.view(7, 3), y)

    trace, _ = imbalance.fisher_trace(imbalance.per_sample_gradients(loss, w, (h, y)))
    p = (h @ w.view(7, 3)).softmax(1) - torch.nn.functional.one_hot(y, 3)
    torch.testing.assert_close(trace, (p.square().sum(1) * h.square().sum(1)).mean())


def test_fisher_trace_of_batches_approaches_the_per_sample_one():
    _, theta, loss, rows = per_row()
    rows_of = imbalance.per_sample_gradients(loss, theta, rows)
    truth, _ = imbalance.fisher_trace(rows_of)
    draw = torch.randint(0, len(rows_of), (4000, 8), generator=torch.Generator().manual_seed(0))
    plain, corrected = imbalance.fisher_trace_of_batches(rows_of[draw].mean(1), 8)
    assert corrected.item() == pytest.approx(truth.item(), rel=0.03)
    assert plain < 0.5 * truth
    mean = rows_of.mean(0).square().sum()
    assert plain.item() == pytest.approx((mean + (truth - mean) / 8).item(), rel=0.03)


def test_shapley_shares_add_up_and_reward_what_helps():
    players = "abc"
    value = {
        frozenset(s): sum(map(ord, s)) + 10.0 * ("a" in s and "b" in s)
        for n in range(4)
        for s in itertools.combinations(players, n)
    }
    shares = imbalance.shapley(value)
    assert sum(shares.values()) == pytest.approx(value[frozenset(players)] - value[frozenset()])
    assert shares == pytest.approx({"a": 97 + 5, "b": 98 + 5, "c": 99})


def test_shapley_of_two_is_the_short_formula():
    v = {frozenset(): 0.1, frozenset("a"): 0.7, frozenset("b"): 0.4, frozenset("ab"): 0.9}
    assert imbalance.shapley(v)["a"] == pytest.approx(0.5 * (0.7 - 0.1 + 0.9 - 0.4))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: imbalance.ogm_ratio(torch.ones(1)), "at least 2 modalities"),
        (lambda: imbalance.fisher_trace(torch.ones(1, 3)), "at least 2"),
        (lambda: imbalance.fisher_trace_of_batches(torch.ones(1, 3), 4), "at least 2"),
        (lambda: imbalance.shapley({frozenset("ab"): 1.0}), "all 4"),
    ],
)
def test_what_has_no_balance_is_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_drawn_labels_give_the_fisher_trace_in_closed_form():
    # For z = W h the gradient is (p - e_y) hᵀ, and E‖p - e_y‖² over y ~ p is 1 - ‖p‖².
    draw = torch.Generator().manual_seed(0)
    h, w = (torch.randn(*size, dtype=torch.float64, generator=draw) for size in ((200, 3), (4, 3)))
    y = torch.zeros(200, dtype=torch.long)
    p = (h @ w.T).softmax(-1)
    loss = torch.nn.functional.cross_entropy(h @ w.T, y)
    found = []
    for seed in range(100):
        labels = imbalance.drawn_labels(h @ w.T, y, loss, torch.Generator().manual_seed(seed))
        error = p - torch.nn.functional.one_hot(labels, 4)
        found.append((error.square().sum(1) * h.square().sum(1)).mean())
    found = torch.stack(found)
    expected = ((1 - p.square().sum(1)) * h.square().sum(1)).mean()
    assert float(found.mean()) == pytest.approx(float(expected), abs=4 * float(found.std()) / 10)


def test_labels_are_drawn_only_from_a_likelihood():
    z, y, draw = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.Generator()
    loss = torch.nn.functional.cross_entropy(z, y)
    assert imbalance.drawn_labels(z, y, loss, draw).shape == (5,)
    assert imbalance.drawn_labels(z, y, 0.5 * loss, draw) is None
    assert imbalance.drawn_labels(None, y, loss, draw) is None
    assert imbalance.drawn_labels(z, y.double(), loss, draw) is None


def test_overfitting_ratio_is_the_growth_of_the_gap_by_what_was_gained():
    before, after = (2.3, 2.4), (0.4, 1.4)
    assert imbalance.overfitting_ratio(before, after) == pytest.approx(((1.4 - 0.4) - (2.4 - 2.3)) / (2.4 - 1.4))
    assert math.isnan(imbalance.overfitting_ratio(before, before))


def test_class_means_are_those_of_a_loop_and_miss_no_class_silently():
    h, y = torch.randn(9, 2, dtype=torch.float64), torch.tensor([0, 0, 3, 1, 1, 1, 3, 0, 3])
    means, known = imbalance.class_means(h, y, 4)
    assert known.tolist() == [True, True, False, True]
    for c in (0, 1, 3):
        torch.testing.assert_close(means[c], h[y == c].mean(0))
    assert imbalance.similarity(h, means, known)[:, 2].isneginf().all()


def test_ridge_is_damped_least_squares_whatever_the_scale():
    draw = torch.Generator().manual_seed(0)
    h, new = (torch.randn(size, 4, dtype=torch.float64, generator=draw) + 5 for size in (30, 7))
    y = torch.randint(3, (30,), generator=draw)
    x, target = h - h.mean(0), torch.eye(3, dtype=torch.float64)[y]
    level = 0.01 * x.square().sum() / 4
    stacked = torch.cat([x, level.sqrt() * torch.eye(4, dtype=torch.float64)])
    zero = torch.zeros(4, 3, dtype=torch.float64)
    weight = torch.linalg.lstsq(stacked, torch.cat([target - target.mean(0), zero])).solution
    expected = (new - h.mean(0)) @ weight + target.mean(0)
    torch.testing.assert_close(imbalance.ridge(h, y, 3, new), expected)
    torch.testing.assert_close(imbalance.ridge(1e6 * h, y, 3, 1e6 * new), expected)
    assert imbalance.ridge(torch.zeros(30, 4), y, 3, torch.zeros(2, 4)).isfinite().all()
