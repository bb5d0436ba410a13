"""One training step, as one short function; the rest of the engine only feeds it and writes down what happened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modalscape.engine.core.method import Stack
from modalscape.engine.core.optimizer import Optimizer, Rate
from modalscape.engine.core.problem import Batch, Problem, join
from modalscape.engine.core.rng import Rng
from modalscape.engine.errors import InputError


@dataclass(frozen=True)
class State:
    """Where a run stands between two steps; with the methods' params and state, all a checkpoint holds."""

    step: int
    theta: Tensor
    """(P,)"""
    moments: dict[str, Any]
    """The optimiser's memory."""


@dataclass(frozen=True)
class View:
    """What a method may see of a step. Fields are filled as the step goes on; None until then."""

    step: int
    theta: Tensor
    """(P,), where the gradient is taken."""
    batch: Batch
    problem: Problem
    rng: Rng
    rate: Rate | None = None
    """Learning rate and momentum of this step."""
    clean_features: dict[str, Tensor] | None = None
    """Modality to features (B, D) as encoded."""
    features: dict[str, Tensor] | None = None
    """Modality to features (B, D) after the methods."""
    logits: dict[str, Tensor] | None = None
    losses: dict[str, Tensor] | None = None
    """Row name to scalar; names that start with `reg/` are regularisers."""
    raw_grads: Tensor | None = None
    """(K, P), one row per loss."""
    grads: Tensor | None = None
    """(K, P), after the methods."""
    grad: Tensor | None = None
    """(P,), what the optimiser gets."""
    halves: Tensor | None = None
    """(P,), where a method asks for it: the gradient of the first n of B rows minus that of all, times √(n/(B - n)).

    Its covariance over rows drawn without replacement is that of the batch's gradient, and its mean is zero.
    """
    descent: Tensor | None = None
    """(P,), what the optimiser adds to theta, before the methods."""
    applied_update: Tensor | None = None
    """(P,), what is added to theta."""

    def having(self, **changes: Any) -> View:
        """Return the view with some fields replaced; `dataclasses.replace` without its cost."""
        view = object.__new__(View)
        view.__dict__.update(self.__dict__)
        view.__dict__.update(changes)
        return view


def train_step(state: State, problem: Problem, optimizer: Optimizer, stack: Stack, rng: Rng) -> tuple[State, View]:
    """Advance training by one step; return the new state and the view of what happened."""
    view, moments = looked(state, problem, optimizer, stack, rng)
    stack.commit(view)
    return State(state.step + 1, state.theta + view.applied_update, moments), view


def looked(state: State, problem: Problem, optimizer: Optimizer, stack: Stack, rng: Rng) -> tuple[View, dict[str, Any]]:
    """Return the view of the step that would come next, and the optimiser's memory after it; nothing is changed."""
    view = View(state.step, state.theta, problem.batch(state.step), problem, rng, optimizer.rate(state.step))
    evaluate = stack.chain("around", partial(gradient, view=view, stack=stack), view)
    view = settled(evaluate(state.theta))
    update, moments = optimizer.update(view.grad, state.moments, state.theta)
    view = view.having(descent=update)
    return view.having(applied_update=stack.chain("update", update, view)), moments


def gradient(theta: Tensor, view: View, stack: Stack) -> View:
    """Return the view with the training gradient at `theta` (P,): pure, so it may be called twice or elsewhere.

    A batch larger than `problem.micro` rows is accumulated: `features` and `losses` act on each piece, `gradients` and
    `fuse` on the whole.
    """
    view = view.having(theta=theta.detach().requires_grad_())
    pieces = view.batch.chunks(view.problem.micro)
    if len(pieces) == 1:
        whole = fused(backward(view, stack), stack)
        half = backward(_part(view, len(view.batch) // 2), stack, apart=stack.weighs) if stack.halves else None
    else:
        views = backward_by_pieces(view, pieces, stack)
        whole = fused(accumulated(view, views), stack)
        count = sum(map(len, pieces[: len(pieces) // 2]))
        half = accumulated(_part(view, count), views[: len(pieces) // 2]) if stack.halves else None
    return whole if half is None else whole.having(halves=_difference(fused(half, stack), whole))


def fused(view: View, stack: Stack) -> View:
    """Return the view with the gradient rows after the methods, and the one gradient that they become."""
    view = view.having(grads=stack.chain("gradients", view.raw_grads, view))
    return view.having(grad=stack.fuse(view.grads, view))


def backward(view: View, stack: Stack, *, apart: bool = True) -> View:
    """Return the view with features, losses and gradient rows, for the batch in the view.

    There is one row for each loss, or one for the sum of all unless they are taken `apart`.
    """
    theta = view.theta
    view = view.having(clean_features=view.problem.encode(theta, view.batch))
    view = view.having(features=stack.chain("features", view.clean_features, view))
    losses, logits = view.problem.objectives(theta, view.features, view.batch)
    view = view.having(losses=losses, logits=logits)
    view = view.having(losses=losses | stack.losses(view))
    losses = view.losses if apart else {"": sum(view.losses.values())}
    return view.having(raw_grads=per_objective(losses, theta))


def backward_by_pieces(view: View, pieces: list[Batch], stack: Stack) -> list[View]:
    """Return the view of each piece after its backward pass, without its graph; each draws from a source of its own."""
    views = []
    for i, piece in enumerate(pieces):
        views.append(settled(backward(view.having(batch=piece, rng=view.rng.within(f"piece{i}")), stack)))
    return views


def accumulated(view: View, pieces: list[View]) -> View:
    """Return the view of a batch from those of its pieces; gradient rows and losses are means over all samples."""
    views = [(len(piece.batch) / len(view.batch), piece) for piece in pieces]
    return view.having(
        clean_features=join([v.clean_features for _, v in views]),
        features=join([v.features for _, v in views]),
        logits=join([v.logits for _, v in views]),
        losses={name: sum(share * v.losses[name] for share, v in views) for name in views[0][1].losses},
        raw_grads=sum(share * v.raw_grads for share, v in views),
    )


def per_objective(losses: dict[str, Tensor], theta: Tensor) -> Tensor:
    """Return the gradient of each loss at theta, (K, P), in the order of `losses`; the graph is kept.

    Raises:
        InputError: a loss does not depend on the parameters.
    """
    rows = []
    for name, loss in losses.items():
        if not loss.requires_grad:
            raise InputError(
                f"The loss {name!r} does not depend on the parameters; check that its input reaches theta."
            )
        rows.append(torch.autograd.grad(loss, theta, retain_graph=True)[0])
    return torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)


def settled(view: View) -> View:
    """Return the view without its graph, so that no state can keep one alive."""
    changes = {}
    for name in ("theta", "raw_grads", "grads", "grad", "halves"):
        value = getattr(view, name)
        changes[name] = None if value is None else value.detach()
    for name in ("clean_features", "features", "logits", "losses"):
        changes[name] = {key: value.detach() for key, value in getattr(view, name).items()}
    return view.having(**changes)


def _part(view: View, count: int) -> View:
    """Return the view with the first rows of its batch, at least one."""
    return view.having(batch=view.batch.rows(slice(0, max(count, 1))))


def _difference(half: View, whole: View) -> Tensor:
    """Return what `View.halves` holds; zero for a batch that has no halves."""
    part, rest = len(half.batch), len(whole.batch) - len(half.batch)
    return (half.grad - whole.grad).detach() * math.sqrt(part / rest if rest else 0.0)
