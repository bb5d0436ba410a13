"""Products with vectors against dense matrices: chunks, batches, Gauss-Newton, empirical Fisher."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.hessian_spectrum import (
    GaussNewton,
    PartedHessian,
    Products,
    empirical_fisher,
    hvp,
    spectrum,
    top_eigenpairs,
    trace,
)
from modalscape.engine.maths.curvature.matrix_products import Hessian
from tests.maths.nets import exact, problem


def rows_of(x, where):
    return {name: value[where] for name, value in x.items()}


def on_rows(where):
    """The mean loss of some rows as a function of theta."""
    net, layout, _, _, (x, y) = problem()
    x, y = rows_of(x, where), y[where]
    return lambda theta: nn.functional.cross_entropy(functional_call(net, layout.unpack(theta), (x,)), y)


def ragged(sizes=(50, 1, 37, 32)):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [(on_rows(slice(a, a + n)), n / sum(sizes)) for a, n in zip(starts, sizes, strict=True)]


def vectors(count, n, dtype=torch.float64):
    return torch.randn(count, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def test_ragged_chunks_are_one_batch():
    _, _, theta, _, _ = problem()
    dense, values = exact()
    v = vectors(3, len(theta))
    torch.testing.assert_close(hvp(ragged(), theta, v), v @ dense)
    found = spectrum(ragged(), theta, 3, 60)
    torch.testing.assert_close(found.values, values[:3])
    assert abs(found.trace - values.sum().item()) <= 3 * found.trace_error


def test_unweighted_chunks_would_not_be_one_batch():
    _, _, theta, _, _ = problem()
    wrong = [(loss, 0.25) for loss, _ in ragged()]
    assert abs(top_eigenpairs(wrong, theta, 1)[0][0] / exact()[1][0] - 1) > 0.02


@pytest.mark.parametrize("kept", [0, 1e5, 1e9])
def test_graphs_that_are_built_anew_give_the_same_bits(kept):
    _, _, theta, _, _ = problem()
    v = vectors(1, len(theta))[0]
    product = Products(ragged(), theta, kept=kept)
    assert torch.equal(product(v), Products(ragged(), theta)(v))
    assert torch.equal(product(v), product(v))


def test_no_more_graphs_are_alive_than_are_kept():
    _, _, theta, _, _ = problem()
    alive, seen = weakref.WeakSet(), []

    class Counted(Hessian):
        def graph(self, at):
            found = super().graph(at)
            alive.add(found)
            seen.append(len(alive))
            return found

    terms = [(Counted(loss), share) for loss, share in ragged((30, 30, 30, 30))]
    room = Products(terms[:1], theta).flow
    seen.clear()
    Products(terms, theta, kept=room)(vectors(1, len(theta))[0])
    assert seen == [1, 2, 2, 2], "one that is kept, one at work"


def test_several_vectors_at_once_are_one_after_the_other():
    _, _, theta, loss, _ = problem()
    product = Products(loss, theta)
    assert product.width > 1
    v = vectors(11, len(theta))
    together = product(v)
    assert product.width > 1 and product.count == 11
    torch.testing.assert_close(together, torch.stack([product(row) for row in v]), rtol=1e-10, atol=1e-12)


def test_operations_without_a_batching_rule_go_one_by_one():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(16, 2)).double()
        x = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    shapes = {name: p.shape for name, p in net.named_parameters()}
    theta = torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def loss(theta):
        pieces = theta.split([shape.numel() for shape in shapes.values()])
        named = {name: p.view(shape) for (name, shape), p in zip(shapes.items(), pieces, strict=True)}
        return functional_call(net, named, (x,)).square().mean()

    product, v = Products(loss, theta), vectors(3, len(theta))
    together = product(v)
    assert product.width == 1
    torch.testing.assert_close(together, torch.stack([Products(loss, theta)(row) for row in v]))
    torch.testing.assert_close(together, v @ hessian(loss)(theta))


def test_a_batch_that_disagrees_is_not_trusted():
    _, _, theta, loss, _ = problem()

    class Broken:
        flow = 1

        def __init__(self, at):
            self.inner = Hessian(loss).graph(at)

        def __call__(self, v, batched=False):
            return self.inner(v, batched) * (1.01 if batched else 1.0)

    class Term:
        def graph(self, at):
            return Broken(at)

    product, v = Products(Term(), theta), vectors(3, len(theta))
    torch.testing.assert_close(product(v), v @ exact()[0])
    assert product.width == 1


def parted(where=slice(None)):
    """The loss of some rows as a function of the parts."""
    net, layout, _, _, (x, y) = problem()
    x, y = rows_of(x, where), y[where]
    return PartedHessian(
        lambda blocks: nn.functional.cross_entropy(functional_call(net, layout.joined(blocks), (x,)), y), layout.slices
    )


def test_a_loss_of_parts_has_the_hessian_of_the_loss_of_all():
    _, layout, theta, loss, _ = problem()
    v = vectors(3, len(theta))
    torch.testing.assert_close(hvp(parted(), theta, v), v @ exact()[0])
    assert torch.equal(hvp(parted(), theta, v[0]), hvp(loss, theta, v[0]))
    for where in layout.slices.values():
        only = torch.zeros_like(v)
        only[:, where] = v[:, where]
        for one in (only, only[0]):
            torch.testing.assert_close(hvp(parted(), theta, one), one @ exact()[0])
    assert not hvp(parted(), theta, torch.zeros_like(theta)).any()
    terms = [(parted(slice(0, 70)), 70 / 120), (parted(slice(70, 120)), 50 / 120)]
    one, other = (spectrum(matrix, theta, 3, parts=layout.slices) for matrix in (terms, loss))
    torch.testing.assert_close(one.values, other.values)
    torch.testing.assert_close(one.coupling.values, other.coupling.values)
    mask = layout.mask("b")
    torch.testing.assert_close(
        top_eigenpairs(parted(), theta, 1, mask=mask)[0], top_eigenpairs(loss, theta, 1, mask=mask)[0]
    )


def test_a_vector_on_one_part_goes_through_the_graph_of_that_part_alone():
    seen = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, name):
            ctx.name = name
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(ctx.name)
            return grad, None

    matrix = PartedHessian(
        lambda blocks: sum((Noted.apply(w, name) ** 4).sum() for name, w in blocks.items()),
        {"left": slice(0, 3), "right": slice(3, 5)},
    )
    product = Products(matrix, torch.ones(5))
    seen.clear()
    found = product(torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0]))
    assert torch.equal(found, torch.tensor([0.0, 0.0, 0.0, 12.0, 24.0])) and set(seen) == {"right"}


def test_large_problems_go_one_by_one():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        table = torch.randn(4000, 200)
    assert Products(lambda w: (table @ w[:, None] * torch.ones(100)).tanh().sum(), torch.ones(200)).width == 1


def outputs_and_loss(kind):
    net, layout, theta, _, (x, y) = problem()

    def outputs(at):
        logits = functional_call(net, layout.unpack(at), (x,))
        return {"b": logits[:, :2], "a": logits} if kind == "dict" else logits

    if kind == "squares":
        return theta, outputs, lambda z: 0.5 * (z - nn.functional.one_hot(y, 4)).square().sum(1).mean()
    if kind == "dict":
        return theta, outputs, lambda z: nn.functional.cross_entropy(z["a"], y) + 0.5 * z["b"].square().sum(1).mean()
    return theta, outputs, lambda z: nn.functional.cross_entropy(z, y)


@pytest.mark.parametrize("kind", ["cross_entropy", "squares", "dict"])
def test_gauss_newton_is_the_dense_one(kind):
    theta, outputs, loss = outputs_and_loss(kind)

    def flat(at):
        found = outputs(at)
        return torch.cat([found["b"], found["a"]], 1).reshape(-1) if kind == "dict" else found.reshape(-1)

    def of_flat(values):
        if kind != "dict":
            return loss(values.view(-1, 4))
        values = values.view(-1, 6)
        return loss({"b": values[:, :2], "a": values[:, 2:]})

    jacobian = jacrev(flat)(theta)
    dense = jacobian.T @ hessian(of_flat)(flat(theta)) @ jacobian
    matrix, v = GaussNewton(outputs, loss), vectors(4, len(theta))
    torch.testing.assert_close(Products(matrix, theta)(v), v @ dense)
    torch.testing.assert_close(Products(matrix, theta)(v[0]), dense @ v[0])
    truth = torch.linalg.eigvalsh(dense).flip(0)
    found = spectrum(matrix, theta, 5, 60)
    assert ((found.values - truth[:5]).abs() <= found.residuals).all()
    assert abs(found.trace - truth.sum().item()) <= 3 * found.trace_error
    assert found.smallest >= -1e-12 and found.negative_mass < 1e-9


def test_gauss_newton_of_linear_outputs_is_the_hessian():
    matrix = torch.linalg.qr(vectors(12, 12)).Q

    def loss(z):
        return z.exp().sum()

    theta, v = vectors(1, 12)[0], vectors(3, 12)
    both = hvp(GaussNewton(lambda at: matrix @ at, loss), theta, v), hvp(lambda at: loss(matrix @ at), theta, v)
    torch.testing.assert_close(*both)


def test_a_loss_without_curvature_in_the_outputs_gives_zero():
    product = Products(GaussNewton(lambda at: at**2, lambda z: z.sum()), torch.ones(4))
    assert torch.equal(product(torch.ones(2, 4)), torch.zeros(2, 4))


def per_row():
    net, layout, theta, _, (x, y) = problem()

    def losses(at):
        return nn.functional.cross_entropy(functional_call(net, layout.unpack(at), (x,)), y, reduction="none")

    return theta, losses


def test_empirical_fisher_is_the_mean_of_outer_products():
    theta, losses = per_row()
    gradients = jacrev(losses)(theta)
    dense = gradients.T @ gradients / len(gradients)
    v = vectors(4, len(theta))
    torch.testing.assert_close(Products(empirical_fisher(losses), theta)(v), v @ dense)
    truth = torch.linalg.eigvalsh(dense).flip(0)
    values, _, residuals = top_eigenpairs(empirical_fisher(losses), theta, 3)
    assert ((values - truth[:3]).abs() <= residuals).all()
    value, error = trace(empirical_fisher(losses), theta)
    assert abs(value - gradients.square().sum(1).mean().item()) <= 3 * error


def test_empirical_fisher_vanishes_on_interpolation_and_the_ggn_does_not():
    _, layout, theta, loss, (x, y) = problem(24)
    net = problem(24)[0]
    optimizer_state = torch.zeros_like(theta)
    for _ in range(600):
        optimizer_state = 0.9 * optimizer_state + torch.func.grad(loss)(theta)
        theta = theta - 0.5 * optimizer_state

    def outputs(at):
        return functional_call(net, layout.unpack(at), (x,))

    h, g, f = (
        top_eigenpairs(matrix, theta, 1)[0].item()
        for matrix in (
            loss,
            GaussNewton(outputs, lambda z: nn.functional.cross_entropy(z, y)),
            empirical_fisher(lambda at: nn.functional.cross_entropy(outputs(at), y, reduction="none")),
        )
    )
    assert loss(theta) < 0.02 and g == pytest.approx(h, rel=0.1) and f < 0.2 * g


def test_gauss_newton_and_fisher_add_up_over_ragged_chunks():
    net, layout, theta, _, (x, y) = problem()
    cuts = (slice(0, 70), slice(70, 75), slice(75, 120))

    def terms(term):
        return [(term(rows_of(x, cut), y[cut]), (cut.stop - cut.start) / 120) for cut in cuts]

    def outputs(x):
        return lambda at: functional_call(net, layout.unpack(at), (x,))

    def ggn(x, y):
        return GaussNewton(outputs(x), lambda z: nn.functional.cross_entropy(z, y))

    def fisher(x, y):
        return empirical_fisher(lambda at: nn.functional.cross_entropy(outputs(x)(at), y, reduction="none"))

    v = vectors(2, len(theta))
    for term in (ggn, fisher):
        torch.testing.assert_close(hvp(terms(term), theta, v), hvp(term(x, y), theta, v))


def test_a_block_of_the_gauss_newton_matrix_is_the_block_of_the_dense_one():
    theta, outputs, loss = outputs_and_loss("cross_entropy")
    layout = problem()[1]
    whole = hvp(GaussNewton(outputs, loss), theta, torch.eye(len(theta), dtype=theta.dtype))
    inside = layout.mask("a").bool()
    truth = torch.linalg.eigvalsh(whole[inside][:, inside]).flip(0)[:2]
    found = top_eigenpairs(GaussNewton(outputs, loss), theta, 2, 1e-6, mask=inside)[0]
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        ([], "list of losses is empty"),
        (GaussNewton(lambda w: w.detach(), lambda z: z.sum()), "outputs have no graph"),
        (GaussNewton(lambda w: "logits", lambda z: 0), "outputs are a str"),
        (GaussNewton(lambda w: w, lambda z: z), "one number"),
        (GaussNewton(lambda w: w, lambda z: z.sum() / 0), "inf"),
        (lambda w: w.sum() * float("nan"), "nan"),
        ([(lambda w: (w**2).sum(), 1.0), (lambda w: (w**2).sum().detach(), 1.0)], "no graph"),
    ],
)
def test_what_has_no_matrix_is_refused_in_one_sentence(matrix, says):
    with pytest.raises(InputError, match=says) as refusal:
        hvp(matrix, torch.ones(3), torch.ones(3))
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)
