"""Heads are found by what they do, and gradient moments agree with autograd, closed forms and loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from modalscape.engine.errors import InputError
from modalscape.engine.maths.gradients.laplace import Full
from modalscape.engine.maths.gradients.last_layer import Head, at_modalities, gradient_moments, linear_heads, reread
from modalscape.engine.networks.fusion import FUSIONS, Trunk

NAMES, WIDTH, CLASSES, B = ("a", "b", "c"), 4, 3, 12


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trunk(fusion, unimodal="heads"):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Trunk(FUSIONS[fusion](NAMES, WIDTH, CLASSES), NAMES, WIDTH, CLASSES, unimodal).double()


def cross_entropy(net):
    def objectives(features, y):
        logits = net(features)
        return {name: F.cross_entropy(z, y) for name, z in logits.items()}, logits

    return objectives


@pytest.fixture
def features():
    return {name: normal(B, WIDTH, seed=i) for i, name in enumerate(NAMES)}


@pytest.fixture
def y():
    return torch.arange(B) % CLASSES


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("unimodal", ["none", "heads", "slices"])
def test_heads_give_the_networks_logits(fusion, unimodal, features, y):
    net = trunk(fusion, unimodal)
    heads = linear_heads(cross_entropy(net), features, y)
    assert list(heads) == ["fused", *(NAMES if unimodal != "none" else ())]
    for name, z in net(features).items():
        torch.testing.assert_close(heads[name].joined(features) @ heads[name].weight.T, z)
        assert heads[name].inputs == ((name,) if name in NAMES else NAMES)
        assert heads[name].classes


def test_a_concat_heads_weights_are_its_own(features, y):
    net = trunk("concat")
    head = linear_heads(cross_entropy(net), features, y)["fused"]
    torch.testing.assert_close(head.weight[:, :-1], net.fusion.head.weight.detach())
    torch.testing.assert_close(head.weight[:, -1], net.fusion.head.bias.detach())


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("unimodal", ["heads", "slices"])
def test_heads_read_again_are_those_found_anew(fusion, unimodal, features, y):
    net = trunk(fusion, unimodal)
    before = linear_heads(cross_entropy(net), features, y)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    after, anew = (
        reread(before, cross_entropy(net), features, y),
        linear_heads(cross_entropy(net), features, y),
    )
    for name, head in anew.items():
        assert torch.equal(after[name].weight, head.weight) and not torch.equal(before[name].weight, head.weight)
        assert (after[name].inputs, after[name].classes) == (head.inputs, head.classes)


def test_a_fusion_that_is_not_linear_is_refused(features, y):
    with pytest.raises(InputError, match="logits that are linear in the features, and those of 'fused' are not"):
        linear_heads(cross_entropy(trunk("gated")), features, y)


def test_losses_without_logits_and_unknown_losses_are_refused(features, y):
    net = trunk("concat", "none")
    with pytest.raises(InputError, match="a-b is on features alone"):
        linear_heads(lambda f, t: ({"a-b": f["a"].sum()}, {}), features, y)
    with pytest.raises(InputError, match="the loss 'fused' is neither"):
        linear_heads(
            lambda f, t: ({"fused": F.cross_entropy(net(f)["fused"], t, reduction="sum")}, net(f)), features, y
        )


def test_a_diverged_network_is_not_mistaken_for_another_kind(features, y):
    net = trunk("concat")
    bad = {name: value * math.nan for name, value in features.items()}
    assert list(linear_heads(cross_entropy(net), bad, y)) == ["fused", *NAMES]


@pytest.mark.parametrize("regression", [False, True])
def test_squared_error_is_recognised(regression, features, y):
    net = trunk("concat", "none")
    target = normal(B, seed=9) if regression else y

    def objectives(f, t):
        z = net(f)["fused"][:, :1] if regression else net(f)["fused"]
        wanted = t[:, None] if regression else F.one_hot(t, CLASSES)
        return {"fused": 0.5 * (z - wanted).square().sum(1).mean()}, {"fused": z}

    head = linear_heads(objectives, features, target)["fused"]
    assert not head.classes and len(head.weight) == (1 if regression else CLASSES)


@pytest.mark.parametrize("unimodal", ["heads", "slices"])
def test_plain_gradients_are_those_of_autograd(unimodal, features, y):
    net = trunk("sum", unimodal)
    heads = linear_heads(cross_entropy(net), features, y)
    leaves = {name: value.clone().requires_grad_() for name, value in features.items()}
    losses, _ = cross_entropy(net)(leaves, y)
    still = {
        n: gradient_moments(h, h.joined(features), y, h.weight, torch.zeros(2, *h.weight.shape))
        for n, h in heads.items()
    }
    for modality, (names, found) in at_modalities(heads, still, features).items():
        assert names == ["fused", modality]
        for k, name in enumerate(names):
            (grad,) = torch.autograd.grad(losses[name], leaves[modality], retain_graph=True)
            torch.testing.assert_close(found.plain[k] / B, grad)


def made_head(scale=0.5, classes=True):
    return Head(scale * normal(CLASSES, WIDTH + 1, seed=4), ("a",), classes)


@pytest.mark.parametrize("count", [5, 70, 300])
@pytest.mark.parametrize("classes", [True, False])
def test_moments_are_those_of_a_loop_over_draws(classes, count, features, y):
    head, draws = made_head(classes=classes), 0.3 * normal(count, CLASSES, WIDTH + 1, seed=5)
    x = head.joined(features)
    centre = head.weight + 0.1
    found = gradient_moments(head, x, y, centre, draws)
    each = []
    for delta in draws:
        w = centre + delta
        each.append((head.outputs(x @ w.T) - head.targets(y)) @ w[:, :-1])
    each = torch.stack(each)
    torch.testing.assert_close(found.mean, each.mean(0))
    torch.testing.assert_close(found.variance, each.var(0, correction=0))


def test_without_spread_the_mean_is_the_plain_gradient_to_the_last_bit(features, y):
    head = made_head()
    found = gradient_moments(
        head, head.joined(features), y, head.weight, torch.zeros(8, CLASSES, WIDTH + 1, dtype=torch.float64)
    )
    torch.testing.assert_close(found.mean, found.plain, rtol=0, atol=1e-15)
    assert (found.variance == 1e-8).all()


def first_order_variance(head, x, y, covariance):
    """D_k Σ D_kᵀ (B, d) with D_k = ∂g_k/∂[W | b], for the covariance Σ (n, n) of a head."""

    def gradient(weight, row, target):
        return (head.outputs(weight @ row) - target) @ weight[:, :-1]

    slopes = torch.func.vmap(torch.func.jacrev(gradient), (None, 0, 0))(head.weight, x, head.targets(y)).flatten(2)
    return torch.einsum("bkn,nm,bkm->bk", slopes, covariance, slopes)


def test_small_spreads_scale_and_equal_the_first_order_value(features, y):
    head = made_head()
    x = head.joined(features)
    covariance = torch.linalg.inv(Full.of(x, head.outputs(x @ head.weight.T), CLASSES).matrix + torch.eye(15))
    root = torch.linalg.cholesky(covariance)
    draws = (normal(4000, 15, seed=6) @ root.T).view(-1, CLASSES, WIDTH + 1)
    first = first_order_variance(head, x, y, covariance)
    for eps in (1e-4, 1e-6):
        found = gradient_moments(head, x, y, head.weight, eps**0.5 * draws, floor=0.0)
        # a variance from 4000 draws has the relative standard error √(2/4000) = 2.2 %; five of them
        torch.testing.assert_close(found.variance / eps, first, rtol=0.11, atol=0)


def test_squared_error_in_one_dimension_has_its_closed_form():
    """w ~ N(m, s²), g = w(wh - y): E g = (s²+m²)h - my, Var g = h²(2s⁴+4m²s²) + y²s² - 4hyms²."""
    m, s, h, y, count = 0.8, 0.6, 1.3, 0.4, 200_000
    head = Head(torch.tensor([[m, 0.0]], dtype=torch.float64), ("a",), False)
    draws = torch.zeros(count, 1, 2, dtype=torch.float64)
    draws[:, 0, 0] = s * normal(count, seed=7)
    x = torch.tensor([[h, 1.0]], dtype=torch.float64)
    found = gradient_moments(head, x, torch.tensor([y], dtype=torch.float64), head.weight, draws)
    variance = h**2 * (2 * s**4 + 4 * m**2 * s**2) + y**2 * s**2 - 4 * h * y * m * s**2
    # five standard errors; the kurtosis of this g is below 15, so the variance has a relative error under √(14/n)
    assert float(found.mean) == pytest.approx((s**2 + m**2) * h - m * y, abs=5 * math.sqrt(variance / count))
    assert float(found.variance) == pytest.approx(variance, rel=5 * math.sqrt(14 / count))


def test_moments_converge_as_draws_grow(features, y):
    head = made_head(1.0)
    x = head.joined(features)
    draws = 0.3 * normal(60_000, CLASSES, WIDTH + 1, seed=8)
    truth = gradient_moments(head, x, y, head.weight, draws)
    errors = []
    for count in (64, 1024):
        found = gradient_moments(head, x, y, head.weight, draws[:count])
        errors.append((found.variance / truth.variance - 1).square().mean().sqrt())
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 3 * math.sqrt(2 / 1024)
