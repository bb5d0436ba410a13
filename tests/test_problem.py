"""A problem: its batches, its functions of theta, and that what is built in can be learnt."""

import pytest
import torch
from torch.func import functional_call

from modalscape.engine import networks
from modalscape.engine.config import RunSettings
from modalscape.engine.core import objectives
from modalscape.engine.core.method import Stack
from modalscape.engine.core.optimizer import Optimizer, Settings
from modalscape.engine.core.problem import Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import State, train_step
from modalscape.engine.data import npz
from modalscape.engine.problems.digits_captions import DigitsCaptions
from modalscape.engine.problems.planted import Planted


def chosen(**changes):
    return RunSettings(**({"unimodal": "none"} | changes))


def built(data, dtype=torch.float32, seed=0, **changes):
    own = chosen(**changes)
    return Multimodal(
        data.name,
        data.title,
        data.batches(),
        lambda: networks.build(data, own).to(dtype),
        objectives.build(own, data),
        Rng(seed),
        batch=own.batch,
        micro=own.micro,
    )


def trained(problem, steps, seed=0, **optimizer):
    rule, stack, rng = Optimizer(Settings(**optimizer), steps), Stack(), Rng(seed)
    state = State(0, problem.init(), rule.init())
    for _ in range(steps):
        state, _ = train_step(state, problem, rule, stack, rng)
    return state.theta


@pytest.fixture(scope="module")
def digits():
    return DigitsCaptions().load(Rng(0))


def sums(batch):
    return batch.x["image"].double().sum(1)


def test_a_batch_is_pure_in_its_step(digits):
    problem, other = built(digits, batch=100), built(digits, batch=100)
    first = [problem.batch(step).y for step in range(30)]
    for step in (29, 0, 13, 12, 11, 24):
        assert torch.equal(other.batch(step).y, first[step])
    assert not torch.equal(first[0], first[1])


def test_an_epoch_is_a_permutation_of_the_training_rows(digits):
    problem = built(digits, batch=100)
    everything = sums(problem.rows["train"]).sort().values
    epochs = [torch.cat([sums(problem.batch(12 * epoch + i)) for i in range(12)]) for epoch in (0, 1)]
    assert all(torch.equal(epoch.sort().values, everything) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_a_ragged_tail_is_left_out(digits):
    problem = built(digits, batch=500)
    assert all(len(problem.batch(step)) == 500 for step in range(5))


def test_a_full_batch_keeps_its_order(digits):
    problem = built(digits, batch=5000)
    assert problem.batch(0) is problem.rows["train"] and problem.batch(7) is problem.rows["train"]


@pytest.mark.parametrize(
    "changes", [{}, {"fusion": "sum", "unimodal": "slices"}, {"fusion": "gated", "unimodal": "heads"}], ids=str
)
def test_encode_and_objectives_are_the_network(digits, changes):
    problem = built(digits, torch.float64, **changes)
    network = networks.build(digits, chosen(**changes)).double()
    theta, batch = problem.init(), problem.batch(0)
    features = problem.encode(theta, batch)
    losses, logits = problem.objectives(theta, features, batch)
    expected = functional_call(network, problem.layout.unpack(theta), (batch.x,))
    assert list(logits) == list(expected)
    assert all(torch.equal(logits[name], expected[name]) for name in expected)
    total = sum(torch.nn.functional.cross_entropy(z, batch.y) for z in expected.values())
    assert problem.loss(theta, batch) == total == sum(losses.values())


def test_the_first_theta_follows_the_seed(digits):
    assert torch.equal(built(digits).init(), built(digits).init())
    assert not torch.equal(built(digits).init(), built(digits, seed=1).init())


def test_without_zeros_one_modality_alone(digits):
    problem = built(digits)
    batch = problem.batch(0)
    bare = problem.without(batch, "text")
    assert bool((bare.x["text"] == 0).all()) and bool((batch.x["text"] != 0).any())
    assert torch.equal(bare.x["image"], batch.x["image"]) and torch.equal(bare.y, batch.y)


def test_without_a_text_is_an_empty_text():
    source = DigitsCaptions(DigitsCaptions.Params(inputs="raw"))
    problem = built(source.load(Rng(0)))
    bare = problem.without(problem.batch(0), "text")
    features = problem.encode(problem.init(), bare)["text"]
    assert bare.x["text"].dtype == torch.int64 and torch.equal(features, features[:1].expand_as(features))


def test_scores_say_how_a_modality_was_scored(digits):
    for unimodal, words in (("none", "at zero"), ("heads", "heads"), ("slices", "slices")):
        problem = built(digits, unimodal=unimodal)
        scores = problem.evaluate(problem.init(), "val")
        assert words in problem.protocol
        assert {"loss/val", "accuracy/val", "accuracy/val/image", "accuracy/val/text"} <= set(scores)


def test_recalls_are_named_by_part_and_way(digits):
    problem = built(digits, objective="info_nce")
    scores = problem.evaluate(problem.init(), "val")
    assert {"accuracy/val", "recall@10/val", "recall@1/val/image-to-text", "recall@5/val/text-to-image"} <= set(scores)


@pytest.mark.parametrize("inputs", ["flat", "raw"])
def test_digits_with_captions_are_learnt(inputs):
    source = DigitsCaptions(DigitsCaptions.Params(inputs=inputs))
    problem = built(source.load(Rng(0)), unimodal="heads")
    scores = problem.evaluate(trained(problem, 150), "test")
    assert scores["accuracy/test"] > 0.93 and scores["accuracy/test/image"] > scores["accuracy/test/text"] > 0.6


def test_planted_evidence_is_learnt_in_its_order():
    problem = built(Planted().load(Rng(0)), unimodal="heads")
    scores = problem.evaluate(trained(problem, 100), "test")
    assert scores["accuracy/test"] > scores["accuracy/test/vision"] > scores["accuracy/test/audio"] > 0.65


def test_pairs_are_found_again_after_contrastive_training(digits):
    problem = built(digits, objective="info_nce")
    before = problem.evaluate(problem.init(), "test")["recall@10/test"]
    after = problem.evaluate(trained(problem, 150), "test")["recall@10/test"]
    assert before < 0.08 and after > 3 * before


@pytest.mark.parametrize(
    ("name", "steps", "part", "least"),
    [("mfeat", 100, "test", 0.95), ("mosi", 60, "test", 0.68), ("wikipedia", 80, "test", 0.58)],
)
def test_real_sets_of_vectors_are_learnt(real_data, name, steps, part, least):
    problem = built(npz.read(real_data / f"{name}.npz", Rng(0)))
    assert problem.evaluate(trained(problem, steps), part)[f"accuracy/{part}"] > least


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("avdigits", 0.97), ("emoji", 0.84)])
def test_real_sets_with_images_are_learnt(real_data, name, least):
    problem = built(npz.read(real_data / f"{name}.npz", Rng(0)))
    assert problem.evaluate(trained(problem, 400), "test")["accuracy/test"] > least


@pytest.mark.slow
def test_full_batch_descent_settles_at_the_edge_of_stability(digits):
    """Sharpness rises to 2 / learning rate and stays (arXiv 2103.00065): squared loss, tanh branches 64-32, lr 0.4."""
    problem = built(digits, batch=5000, width=32, hidden=64, activation="tanh", objective="squared_error")
    rule, stack, rng = Optimizer(Settings(name="sgd", lr=0.4, momentum=0.0), 1), Stack(), Rng(0)
    state, v, path = State(0, problem.init(), rule.init()), torch.ones(problem.layout.size), {}
    for step in range(1201):
        if step % 100 == 0:
            path[step], v = _sharpness(problem, state.theta, v, 60 if step == 0 else 15)
        state, _ = train_step(state, problem, rule, stack, rng)
    assert 2.0 < path[0] < 3.2
    assert all(abs(path[step] - 5.0) < 0.5 for step in range(800, 1201, 100))


def _sharpness(problem, theta, v, rounds):
    theta = theta.detach().requires_grad_()
    grad = torch.autograd.grad(problem.loss(theta, problem.rows["train"]), theta, create_graph=True)[0]
    for _ in range(rounds):
        v = v / v.norm()
        product = torch.autograd.grad(grad @ v, theta, retain_graph=True)[0]
        value, v = float(v @ product), product
    return value, v
