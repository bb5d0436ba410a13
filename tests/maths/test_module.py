"""Curvature of modules of one's own: any input, layer and parameter, against the dense Hessian."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from modalscape.engine.errors import InputError
from modalscape.engine.maths.curvature.hessian_spectrum import hvp, spectral_density, spectrum, top_eigenpairs, trace
from modalscape.engine.maths.curvature.user_module import analysed, batch_norm_gap

ROWS, CLASSES = 24, 3


def made(build, *, double: bool = True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = build()
        return net.double() if double else net


def drawn(*shape, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.arange(ROWS) % CLASSES


class Two(nn.Module):
    """Two branches from a mapping to a mapping of logits."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 3), nn.Linear(2, 3), nn.Linear(6, CLASSES)

    def forward(self, x):
        fused = self.head(torch.cat([self.a(x["a"]).tanh(), self.b(x["b"]).tanh()], -1))
        return {"fused": fused, "norm": fused.square().mean(-1)}


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, CLASSES), nn.Linear(4, 2)

    def forward(self, x):
        return self.used(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.again, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.again.weight = self.inner.weight

    def forward(self, x):
        return self.out(self.again(self.inner(x).tanh()).tanh())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """Fused attention, whose kernel has no second derivative."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, CLASSES)

    def forward(self, x):
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return self.out(functional.scaled_dot_product_attention(q, k, v)[:, 0].mean(1))


class Encoder(nn.Module):
    """PyTorch's transformer layer, which has a fast path of its own in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.3, batch_first=True)
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.ConvTranspose2d(2, 1, 3), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(36, CLASSES),
    )  # fmt: skip


def words():
    return nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Tanh(), nn.Linear(9, CLASSES))


def zero_biases():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, CLASSES))
    for layer in (net[0], net[2]):
        nn.init.zeros_(layer.bias)
    return net


def frozen():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, CLASSES))
    net[0].requires_grad_(False)
    return net


PLAIN, STEPS = drawn(ROWS, 4), drawn(ROWS, 3, 4)
CASES = {
    "mapping": (Two, {"a": drawn(ROWS, 4), "b": drawn(ROWS, 2, seed=1)}),
    "unused": (Unused, PLAIN),
    "frozen": (frozen, PLAIN),
    "tied": (Tied, PLAIN),
    "lstm": (Recurrent, drawn(ROWS, 4, 3)),
    "attention": (Attention, STEPS),
    "transformer": (Encoder, STEPS),
    "convolution and batch norm": (convolutional, drawn(ROWS, 1, 6, 6)),
    "embedding": (words, torch.arange(3 * ROWS).view(ROWS, 3) % 7),
    "zero biases": (zero_biases, PLAIN),
}


def objective(net, batch):
    found = net(batch["x"])
    loss = functional.cross_entropy(found["fused"] if isinstance(found, dict) else found, batch["y"])
    return loss + 0.1 * found["norm"].mean() if isinstance(found, dict) else loss


def case(name, double: bool = True):
    build, x = CASES[name]
    net = made(build, double=double)
    if not double and not isinstance(x, dict):
        x = x.float() if x.is_floating_point() else x
    elif not double:
        x = {key: value.float() for key, value in x.items()}
    return net, {"x": x, "y": LABELS}


def dense(net, batch):
    """The Hessian (P, P) in the order of the named parameters, BatchNorm with the statistics of the batch."""
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        objective(net, batch)
    net.eval()
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])

    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return objective(self.net, batch)

    def loss(theta):
        pieces = theta.split([p.numel() for p in named.values()])
        swapped = {f"net.{n}": v.view(p.shape) for (n, p), v in zip(named.items(), pieces, strict=True)}
        return functional_call(Host(), swapped, (batch,))

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.functional.hessian(loss, theta)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.parametrize("name", CASES)
def test_any_module_has_the_curvature_of_its_dense_hessian(name):
    net, batch = case(name)
    model = analysed(net, objective, [batch])
    matrix = dense(net, batch)
    assert model.theta.dtype == torch.float64 and len(model.theta) == len(matrix)
    v = drawn(2, len(matrix), seed=4)
    torch.testing.assert_close(hvp(model.loss, model.theta, v), v @ matrix)
    truth = torch.linalg.eigvalsh(matrix).flip(0)
    found = spectrum(model.loss, model.theta, 3, 300, parts=model.layout.slices)
    torch.testing.assert_close(found.values, truth[:3], rtol=1e-6, atol=1e-9)
    assert abs(found.trace - truth.sum().item()) <= 3 * found.trace_error
    assert set(found.traces) == set(model.layout.slices)


@pytest.mark.parametrize("name", CASES)
def test_float32_comes_close(name):
    net, batch = case(name, double=False)
    model = analysed(net, objective, [batch])
    found = top_eigenpairs(model.loss, model.theta, 1)
    truth = torch.linalg.eigvalsh(dense(*case(name)))[-1]
    assert abs(found[0][0] - truth) <= found[2][0] + 2e-5 * truth


@pytest.mark.parametrize("name", ["mapping", "lstm", "transformer", "convolution and batch norm"])
def test_ragged_batches_of_a_loader_are_one_batch(name):
    net, batch = case(name)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return ROWS

        def __getitem__(self, i):
            x = batch["x"]
            return {"x": {k: v[i] for k, v in x.items()} if isinstance(x, dict) else x[i], "y": batch["y"][i]}

    many = analysed(net, objective, DataLoader(Rows(), batch_size=9), statistics="stored")
    one = analysed(net, objective, [batch], statistics="stored")
    assert [round(share * ROWS) for _, share in many.loss] == [9, 9, 6] and many.rows == ROWS
    v = drawn(len(one.theta), seed=4)
    torch.testing.assert_close(hvp(many.loss, many.theta, v), hvp(one.loss, one.theta, v))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_the_module_its_gradients_mode_and_randomness_are_untouched(name, training):
    net, batch = case(name)
    net.train(training)
    for i, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, float(i)) if i % 2 else None
    before = {key: value.clone() for key, value in net.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    owners = [p.data_ptr() for p in net.parameters()]
    model = analysed(net, objective, [batch])
    spectrum(model.loss, model.theta, 2, 8, 2, parts=model.layout.slices)
    top_eigenpairs(model.loss, model.theta, 1), trace(model.loss, model.theta, 0.5)
    spectral_density(model.loss, model.theta, 4, 2)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert [p.data_ptr() for p in net.parameters()] == owners
    for p, grad in zip(net.parameters(), grads, strict=True):
        assert p.grad is None if grad is None else torch.equal(p.grad, grad)


def test_the_live_module_may_go_on_training():
    net, batch = case("mapping")
    model = analysed(net, objective, [batch])
    v = torch.ones_like(model.theta)
    before = hvp(model.loss, model.theta, v)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    objective(net, batch).backward()
    optimizer.step()
    assert torch.equal(hvp(model.loss, model.theta, v), before)
    assert not torch.equal(hvp(analysed(net, objective, [batch]).loss, model.theta + 0.1, v), before)


def lagging():
    """A network whose stored statistics are not those of its data."""
    net, batch = case("convolution and batch norm")
    net[1].running_var.fill_(0.001)
    return net, batch


def test_batch_norm_is_recalibrated_on_the_copy():
    net, batch = lagging()
    fresh = analysed(net, objective, [batch])
    assert any("recalibrated on the 24 rows" in note for note in fresh.notes) and net[1].running_var[0] == 0.001
    truth = torch.linalg.eigvalsh(dense(net, batch))[-1]
    torch.testing.assert_close(top_eigenpairs(fresh.loss, fresh.theta, 1, 1e-6)[0][0], truth)


def test_batch_norm_says_when_its_statistics_matter():
    net, batch = lagging()
    found, warning = batch_norm_gap(net, objective, [batch])
    assert set(found) == {"recalibrated", "stored", "batch"} and found["stored"] > 10 * found["recalibrated"]
    assert "say which one is meant" in warning
    with torch.no_grad():
        net.train()
        for _ in range(200):
            net(batch["x"])
    found, warning = batch_norm_gap(net.eval(), objective, [batch], tolerance=0.5)
    assert not warning and found["stored"] == pytest.approx(found["recalibrated"], rel=0.2)


def test_what_a_forward_pass_draws_is_the_same_each_time():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    net = made(lambda: Noisy(4, CLASSES))
    model = analysed(net, objective, [{"x": PLAIN, "y": LABELS}])
    assert model.loss[0][0](model.theta) == model.loss[0][0](model.theta)


def test_half_precision_is_computed_in_float32():
    net, batch = case("zero biases", double=False)
    truth = torch.linalg.eigvalsh(dense(*case("zero biases")))[-1].item()
    half = {"x": batch["x"].bfloat16(), "y": batch["y"]}
    model = analysed(net.bfloat16(), objective, [half])
    assert model.theta.dtype == torch.float32 and "computed in float32" in model.notes
    assert top_eigenpairs(model.loss, model.theta, 1)[0][0].item() == pytest.approx(truth, rel=0.05)


def test_gauss_newton_and_empirical_fisher_of_a_module():
    net, batch = case("mapping")
    model = analysed(net, objective, [batch])
    ggn = model.gauss_newton(lambda net, batch: net(batch["x"]), lambda out, batch: _loss(out, batch["y"]))
    top = top_eigenpairs(ggn, model.theta, 1)[0].item()
    assert spectrum(ggn, model.theta, 1, 100).smallest > -1e-9 and top > 0
    fisher = model.empirical_fisher(
        lambda net, batch: functional.cross_entropy(net(batch["x"])["fused"], batch["y"], reduction="none")
    )
    grads = torch.func.vmap(
        torch.func.grad(
            lambda theta, x, y: functional.cross_entropy(
                functional_call(net, model.layout.unpack(theta), (x,))["fused"], y
            )
        ),
        (None, 0, 0),
    )(model.theta, batch["x"], batch["y"])
    truth = torch.linalg.eigvalsh(grads.T @ grads / ROWS)[-1].item()
    assert top_eigenpairs(fisher, model.theta, 1)[0].item() == pytest.approx(truth, rel=1e-3)


def _loss(out, y):
    return functional.cross_entropy(out["fused"], y) + 0.1 * out["norm"].mean()


@dataclasses.dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("wrap", [lambda b: (b["x"], b["y"]), lambda b: Pair(**b), lambda b: [b["x"], b["y"]]])
def test_batches_may_be_tuples_lists_or_dataclasses(wrap):
    net, batch = case("frozen")
    given = wrap(batch)

    def loss(net, batch):
        x, y = (batch.x, batch.y) if isinstance(batch, Pair) else batch
        return functional.cross_entropy(net(x), y)

    model = analysed(net, loss, [given])
    assert model.rows == ROWS and len(model.theta) == 15 and model.notes == ("20 frozen parameters are constants",)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.w.dtype) @ self.w).real


BATCH = {"x": PLAIN, "y": LABELS}
NAN = {"x": PLAIN * float("nan"), "y": LABELS}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: analysed(made(frozen), objective, []), "no batch to analyse"),
        (lambda: analysed(made(frozen), objective, BATCH), "put it into a list"),
        (lambda: analysed(made(frozen), objective, [{"x": PLAIN[:0], "y": LABELS[:0]}]), "no rows"),
        (lambda: analysed(made(frozen), objective, ["words"]), "no tensor"),
        (lambda: analysed(made(frozen).requires_grad_(False), objective, [BATCH]), "unfreeze"),
        (lambda: analysed(nn.LazyLinear(3), objective, [BATCH]), "lazy"),
        (lambda: analysed(Complex(), objective, [BATCH]), "complex"),
        (lambda: analysed(made(frozen), objective, [BATCH], statistics="moving"), "statistics must be one of"),
        (lambda: analysed(made(convolutional), objective, [BATCH] * 2, statistics="batch"), "give one batch"),
        (lambda: _top(made(frozen), lambda net, b: objective(net, b).detach()), "no graph"),
        (lambda: _top(made(frozen), lambda net, b: net(b["x"])), "one number"),
        (lambda: _top(made(frozen), objective, NAN), "nan"),
        (lambda: _top(made(frozen), objective, k=16), "k = 16 eigenpairs were asked of 15 parameters"),
    ],
)
def test_what_cannot_be_analysed_is_refused_in_one_sentence(call, says):
    with pytest.raises(InputError, match=says) as refusal:
        call()
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def _top(net, task, batch=BATCH, k=1):
    model = analysed(net, task, [batch])
    return top_eigenpairs(model.loss, model.theta, k)
