"""Networks: shapes, owners, slices that add up, and derivatives of every order under every transform."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modalscape.engine import networks
from modalscape.engine.core import objectives
from modalscape.engine.core.problem import Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset
from modalscape.engine.errors import InputError

FAMILIES = {"vector": "mlp", "image": "cnn", "sequence": "sequence", "tokens": "tokens"}


def settings(**changes):
    defaults = {
        "fusion": "concat",
        "unimodal": "none",
        "encoder": "auto",
        "width": 6,
        "hidden": 16,
        "depth": 1,
        "activation": "gelu",
        "objective": "auto",
        "temperature": 0.07,
        "normalise": "loss",
    }
    return SimpleNamespace(**(defaults | changes))


def dataset(*kinds, rows=24):
    """Rows with one modality of each kind, named after it."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 6, size=(rows, 1))
    x = {
        "vector": draw.standard_normal((rows, 5)),
        "image": draw.standard_normal((rows, 2, 9, 6)),
        "sequence": draw.standard_normal((rows, 7, 3)),
        "tokens": np.where(np.arange(5) < lengths, draw.integers(1, 8, size=(rows, 5)), 0),
    }
    chosen = {k: x[k] if k == "tokens" else x[k].astype(np.float32) for k in kinds or x}
    split = np.repeat([0, 1, 2], rows // 3).astype(np.int8)
    return Dataset(
        "toy", "Toy", chosen, np.arange(rows) % 3, split, ("a", "b", "c"), {"tokens": 8} if "tokens" in chosen else {}
    )


def problem(data, rng=None, **changes):
    own = settings(**changes)
    return Multimodal(
        data.name,
        data.title,
        data.batches(),
        lambda: networks.build(data, own).double(),
        objectives.build(own, data),
        rng or Rng(0),
        batch=8,
    )


CASES = [
    *[((kind,), {"activation": "tanh"}) for kind in FAMILIES],
    *[((kind,), {"depth": 2}) for kind in FAMILIES],
    *[((), {"fusion": fusion, "unimodal": "heads"}) for fusion in networks.FUSIONS],
    (("vector", "image"), {"unimodal": "slices"}),
    (("vector", "tokens"), {"fusion": "sum", "unimodal": "slices"}),
    (("vector", "image", "tokens"), {"objective": "info_nce"}),
    (("image", "sequence"), {"encoder": "mlp", "objective": "squared_error"}),
]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    kinds, changes = request.param
    return problem(dataset(*kinds), **changes)


def test_logits_and_features_have_their_shapes():
    data = dataset()
    network = networks.build(data, settings(unimodal="heads"))
    batch = data.batches()["train"]
    for name, encoder in network.encoders.items():
        assert encoder(batch.x[name]).shape == (8, 6)
    logits = network(batch.x)
    assert list(logits) == ["fused", *data.modalities]
    assert all(z.shape == (8, 3) for z in logits.values())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 40, 2), (1, 64, 64)])
def test_images_of_any_size_are_taken(shape):
    encoder = networks.Cnn(shape, 6, 16, 1, torch.tanh)
    assert encoder(torch.randn(2, *shape)).shape == (2, 6)


def test_sequences_of_one_step_are_taken():
    assert networks.Sequence((1, 3), 6, 2, 0, torch.tanh)(torch.randn(2, 1, 3)).shape == (2, 6)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_family_takes_every_depth(depth):
    data = dataset()
    logits = networks.build(data, settings(depth=depth, hidden=2, width=2))(data.batches()["train"].x)
    assert bool(torch.isfinite(logits["fused"]).all())


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_slices_add_up_to_the_fused_logits(fusion):
    data = dataset()
    network = networks.build(data, settings(fusion=fusion, unimodal="slices")).double()
    features = {name: torch.randn(8, 6, dtype=torch.float64) for name in data.modalities}
    logits = network.trunk(features)
    fused = logits.pop("fused")
    assert list(logits) == list(data.modalities)
    assert (sum(logits.values()) - fused).abs().max() < 1e-14


def test_gated_fusion_says_that_it_has_no_slices():
    with pytest.raises(InputError, match="gated fusion has no slices.*unimodal=heads"):
        networks.build(dataset(), settings(fusion="gated", unimodal="slices"))


def test_a_gated_fusion_weighs_by_shares_that_sum_to_one():
    gated = networks.FUSIONS["gated"](("a", "b", "c"), 4, 2)
    same = torch.randn(5, 4)
    expected = gated.head(same.tanh())
    assert torch.allclose(gated({"a": same, "b": same, "c": same}), expected, atol=1e-6)


def test_parts_are_the_modalities_and_shared():
    for fusion in networks.FUSIONS:
        data = dataset("vector", "image")
        network = networks.build(data, settings(fusion=fusion, unimodal="heads"))
        owners = {name: network.part_of(name) for name, _ in network.named_parameters()}
        assert set(owners.values()) == {"vector", "image", "shared"}
        assert owners["trunk.heads.image.weight"] == "image"
        assert {o for name, o in owners.items() if name.startswith("trunk.fusion")} == {"shared"}
        assert {o for name, o in owners.items() if name.startswith("encoders.image")} == {"image"}


def test_nothing_depends_on_other_rows_or_on_the_mode():
    data = dataset()
    network = networks.build(data, settings()).double()
    batch = data.batches()["train"]
    x = {name: value.double() if value.is_floating_point() else value for name, value in batch.x.items()}
    whole = network(x)["fused"]
    single = torch.cat([network({k: v[i : i + 1] for k, v in x.items()})["fused"] for i in range(8)])
    assert (whole - single).abs().max() < 1e-12
    assert torch.equal(network.eval()(x)["fused"], whole)
    assert not list(network.buffers())


def test_padding_carries_nothing_and_empty_texts_are_alike():
    encoder = networks.Tokens((8, 5), 6, 16, 1, torch.tanh).double()
    ids = torch.tensor([[3, 4, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [4, 3, 0, 0, 0]])
    before = encoder(ids)
    assert torch.equal(before[1], before[2]) and not torch.allclose(before[0], before[3])
    with torch.no_grad():
        encoder.embedding.weight[0] += 1.0
        encoder.position[2:] += 1.0
    after = encoder(ids)
    assert torch.allclose(before[[0, 3]], after[[0, 3]], atol=1e-12) and torch.equal(before[1], after[1])


def test_vmap_over_parameters_equals_a_loop(case):
    batch = case.batch(0)
    points = case.init() + 0.1 * torch.randn(3, case.layout.size, generator=torch.Generator().manual_seed(0)).double()
    together = torch.vmap(lambda theta: case.loss(theta, batch))(points)
    assert (together - torch.stack([case.loss(theta, batch) for theta in points])).abs().max() < 1e-10


def test_transforms_give_the_gradient_of_autograd(case):
    batch, theta = case.batch(0), case.init()
    by_func = torch.func.grad(lambda t: case.loss(t, batch))(theta)
    leaf = theta.clone().requires_grad_()
    by_tape = torch.autograd.grad(case.loss(leaf, batch), leaf)[0]
    assert (by_func - by_tape).abs().max() < 1e-12
    points = torch.stack([theta, 0.9 * theta])
    both = torch.vmap(torch.func.grad(lambda t: case.loss(t, batch)))(points)
    assert (both[0] - by_tape).abs().max() < 1e-10


def test_second_derivatives_agree_with_differences_of_gradients(case):
    batch, theta = case.batch(0), case.init()
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=theta.dtype)
    v /= v.norm()

    def gradient(at):
        at = at.detach().requires_grad_()
        return at, torch.autograd.grad(case.loss(at, batch), at, create_graph=True)[0]

    leaf, grad = gradient(theta)
    product = torch.autograd.grad(grad @ v, leaf)[0]
    h = 1e-5
    differences = (gradient(theta + h * v)[1] - gradient(theta - h * v)[1]).detach() / (2 * h)
    assert product.norm() > 0
    assert (product - differences).norm() < 1e-5 * (1 + product.norm())


def test_an_override_goes_to_the_inputs_it_fits():
    network = networks.build(dataset(), settings(encoder="mlp"))
    assert {name: type(e).__name__ for name, e in network.encoders.items()} == {
        "vector": "Mlp",
        "image": "Mlp",
        "sequence": "Mlp",
        "tokens": "Tokens",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "cnn"}, "takes none of the inputs .vector is a vector."),
        ({"encoder": "resnet"}, "encoder must be one of auto, mlp"),
        ({"fusion": "film"}, "fusion must be one of concat"),
        ({"unimodal": "all"}, "unimodal must be one of none"),
        ({"activation": "sine"}, "activation must be one of gelu"),
    ],
)
def test_wrong_choices_are_refused_in_one_sentence(changes, words):
    with pytest.raises(InputError, match=words):
        networks.build(dataset("vector"), settings(**changes))


def test_resnet18_has_the_parameters_of_its_paper_and_two_derivatives():
    net = networks.ResNet18((3, 9, 6), 10, 16, 1, torch.tanh).double()
    assert sum(p.numel() for p in net.parameters()) == 11_173_962
    x = torch.randn(2, 3, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = net.out.weight
    (grad,) = torch.autograd.grad(net(x).square().sum(), weight, create_graph=True)
    (twice,) = torch.autograd.grad(grad.sum(), weight)
    assert net(x).shape == (2, 10) and twice.isfinite().all() and twice.any()


def test_resnet18_is_chosen_for_images_only():
    data = dataset("image", "vector")
    net = networks.build(data, settings(encoder="resnet18"))
    assert [type(net.encoders[name]).__name__ for name in ("image", "vector")] == ["ResNet18", "Mlp"]
    assert type(networks.build(data, settings()).encoders["image"]).__name__ == "Cnn"
