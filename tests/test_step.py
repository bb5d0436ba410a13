"""The training step is plain gradient descent when no method is on, and loses nothing when cut into pieces."""

import pytest
import torch
from torch.func import functional_call

from modalscape.engine.core.method import Stack
from modalscape.engine.core.step import gradient, per_objective, settled, train_step
from tests import tiny


def plain(problem, steps, optimizer_of):
    """The same training with a module, its parameters in place and torch's own loop."""
    net = tiny.Net(heads=True).double()
    named = problem.layout.unpack(problem.init())
    net.load_state_dict({name: value.clone() for name, value in named.items()})
    rule = optimizer_of(net.parameters())
    for step in range(steps):
        batch = problem.batch(step)
        logits = net.trunk({name: net.encoders[name](batch.x[name]) for name in tiny.WIDTHS})
        rule.zero_grad()
        sum(tiny.CrossEntropy().losses(logits, {}, batch.y).values()).backward()
        rule.step()
    return problem.layout.pack(dict(net.named_parameters())).detach()


def test_train_step_equals_a_plain_torch_loop():
    problem = tiny.problem(heads=True)
    state, _, _ = tiny.train(problem, [], 25, tiny.sgd(0.2, 0.9))
    slow = plain(problem, 25, lambda p: torch.optim.SGD(p, 0.2, momentum=0.9))
    assert (state.theta - problem.init()).norm() > 0.1
    torch.testing.assert_close(state.theta, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("micro", [1, 5, 16])
def test_accumulated_gradient_equals_the_whole_batch(micro):
    whole, cut = tiny.problem(batch=24, heads=True), tiny.problem(batch=24, heads=True, micro=micro)
    views = []
    for problem in (whole, cut):
        _, (view,), _ = tiny.train(problem, [], 1)
        views.append(view)
    torch.testing.assert_close(views[1].raw_grads, views[0].raw_grads, rtol=0, atol=1e-14)
    for name, loss in views[0].losses.items():
        torch.testing.assert_close(views[1].losses[name], loss, rtol=0, atol=1e-14)
    for name, features in views[0].features.items():
        torch.testing.assert_close(views[1].features[name], features, rtol=0, atol=1e-14)


def test_rows_are_the_gradients_of_the_losses_in_their_order():
    problem = tiny.problem(heads=True)
    theta = problem.init().requires_grad_()
    batch = problem.batch(0)
    losses, _ = problem.objectives(theta, problem.encode(theta, batch), batch)
    rows = per_objective(losses, theta)
    net = tiny.Net(heads=True).double()
    assert list(losses) == ["fused", "image", "text"]
    for row, name in zip(rows, losses, strict=True):

        def loss(named, name=name):
            features = {
                m: functional_call(net.encoders[m], prefix(named, f"encoders.{m}."), batch.x[m]) for m in tiny.WIDTHS
            }
            logits = functional_call(net.trunk, prefix(named, "trunk."), features)
            return torch.nn.functional.cross_entropy(logits[name], batch.y)

        expected = problem.layout.pack(torch.func.grad(loss)(problem.layout.unpack(theta.detach())))
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-14)
    assert rows[1][problem.layout.slices["text"]].abs().max() == 0


def prefix(named, start):
    return {name[len(start) :]: value for name, value in named.items() if name.startswith(start)}


def test_gradient_is_the_same_twice():
    problem = tiny.problem(heads=True)
    state, views, stack = tiny.train(problem, [], 1)
    view = views[0].having(theta=state.theta)
    first, second = (gradient(state.theta, view, Stack()).grad for _ in range(2))
    assert torch.equal(first, second)


def test_the_view_of_a_step_holds_no_graph():
    problem = tiny.problem()
    _, (view,), _ = tiny.train(problem, [], 1)
    held = [view.theta, view.raw_grads, view.grads, view.grad, view.applied_update]
    held += [*view.losses.values(), *view.features.values(), *view.clean_features.values(), *view.logits.values()]
    assert not any(value.requires_grad for value in held)
    assert settled(view).losses == view.losses


def test_a_step_changes_nothing_that_was_there_before():
    problem = tiny.problem()
    state, optimizer, stack, rng = tiny.started(problem, [], tiny.sgd(0.1, 0.9))
    state, _ = train_step(state, problem, optimizer, stack, rng)
    theta, buffer = state.theta.clone(), state.moments["slots"]["momentum_buffer"].clone()
    train_step(state, problem, optimizer, stack, rng)
    assert torch.equal(state.theta, theta)
    assert torch.equal(state.moments["slots"]["momentum_buffer"], buffer)
