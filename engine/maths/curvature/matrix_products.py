"""Products with the Hessian of a loss, with its Gauss-Newton matrix or with the empirical Fisher, at one point.

A *matrix* is a loss, or a term (`Hessian`, `GaussNewton`, `empirical_fisher`), or a list of (loss or term, weight),
whose sum is meant: a mean over rows is the sum over chunks of rows, each weighted by its share of them. Chunks bound
the memory and may be ragged.

All products are reverse mode on a graph that is kept: forward mode fails on fused attention and recurrent kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from modalscape.engine.errors import InputError
from modalscape.engine.maths.progress import Tally

Loss = Callable[[Tensor], Tensor]

KEPT = 2**30
"""Bytes that pass through the graphs which are kept (they hold less); the graph of any further chunk is built anew for
each product, at about half again the time."""

_SMALL = 2.5e6
"""Bytes through a graph below which several vectors at once are faster on a CPU.

Two-branch MLPs and token transformers of 25,000 to 140,000 parameters, one thread, 8 vectors: 1.6 to 2.2 times as fast
at 1.0 to 1.6 MB, 1.2 to 1.4 at 2.0, 0.9 to 1.0 at 2.8 to 3, 0.7 at 10. A rule by size rather than a race of timings,
which would make the last bits of a result depend on the weather.
"""


class Graph(Protocol):
    """One term at one point, with its graph."""

    flow: int
    """Bytes that pass through the graph in one product: a measure of its time and, from above, of its memory."""

    def __call__(self, v: Tensor, batched: bool = False) -> Tensor:
        """Return the product with `v` (n,), or with each row of `v` (N, n) where it is `batched`."""


class Term(Protocol):
    """A symmetric matrix (n, n) that depends on theta (n,)."""

    def graph(self, theta: Tensor) -> Graph:
        """Return the matrix at `theta`, which requires a gradient."""

    def within(self, embed: Callable[[Tensor], Tensor]) -> Term:
        """Return the block that `embed`, the map from a block of parameters to all of them, reaches."""


@dataclass(frozen=True)
class Hessian:
    """∇²L of a loss of theta (n,)."""

    loss: Loss

    def graph(self, theta: Tensor) -> Graph:
        """Return the matrix at `theta`."""
        return _HessianGraph(self.loss, theta)

    def within(self, embed: Callable[[Tensor], Tensor]) -> Hessian:
        """Return the block that `embed` reaches."""
        return Hessian(lambda block: self.loss(embed(block)))


@dataclass(frozen=True)
class PartedHessian:
    """∇²L of a loss of the parts of theta (n,), by name; `parts` are slices that together cover theta, in order.

    The same matrix as that of the loss of theta. A product with a vector that lives on one part goes through the graph
    of that part's gradient alone, which takes 0.3 to 0.6 of the time where the parts are branches of a network.
    """

    loss: Callable[[dict[str, Tensor]], Tensor]
    parts: Mapping[str, slice]

    def graph(self, theta: Tensor) -> Graph:
        """Return the matrix at `theta`."""
        return _PartedGraph(self.loss, self._split(theta))

    def within(self, embed: Callable[[Tensor], Tensor]) -> Hessian:
        """Return the block that `embed` reaches."""
        return Hessian(lambda block: self.loss(self._split(embed(block))))

    def _split(self, theta: Tensor) -> dict[str, Tensor]:
        return {part: theta[where] for part, where in self.parts.items()}


@dataclass(frozen=True)
class GaussNewton:
    """The generalised Gauss-Newton matrix Jᵀ (∇²ℓ) J, J the derivative of `outputs`, ∇²ℓ of `loss` in the outputs.

    `outputs` maps theta (n,) to a tensor, or to a mapping or sequence of tensors, of any shapes; `loss` maps the same
    to a scalar. Positive semi-definite where `loss` is convex; equal to the Fisher matrix for softmax with
    cross-entropy in the logits and for squared error.
    """

    outputs: Callable[[Tensor], Any]
    loss: Callable[[Any], Tensor]

    def graph(self, theta: Tensor) -> Graph:
        """Return the matrix at `theta`."""
        found, rebuilt = _taken_apart(self.outputs(theta))
        moving = [i for i, value in enumerate(found) if value.requires_grad]
        if not moving:
            raise InputError(
                "the outputs have no graph that leads to theta; compute them from theta without detach or no_grad."
            )
        fixed = [value.detach() for value in found]
        places = [fixed[i].requires_grad_() for i in moving]
        return GaussNewtonGraph(theta, [([found[i] for i in moving], places, checked(self.loss(rebuilt(fixed))))])

    def within(self, embed: Callable[[Tensor], Tensor]) -> GaussNewton:
        """Return the block that `embed` reaches."""
        return GaussNewton(lambda block: self.outputs(embed(block)), self.loss)


def empirical_fisher(losses: Loss) -> GaussNewton:
    """Return the mean over samples of g gᵀ, g the gradient of one sample's loss; `losses` maps theta to them (N,).

    Not the Fisher matrix and no approximation of the Hessian: it vanishes where every sample is fitted. It is the
    Gauss-Newton matrix of ½ mean ℓ², so its products are Jᵀ (J v) / N and no (N, n) matrix of gradients is formed.
    """
    return GaussNewton(losses, lambda values: 0.5 * values.square().mean())


Matrix = Loss | Term | Sequence[tuple[Loss | Term, float]]


def terms(matrix: Matrix) -> list[tuple[Term, float]]:
    """Return a matrix as its terms and their weights.

    Raises:
        InputError: an empty list.
    """
    pairs = list(matrix) if isinstance(matrix, Sequence) else [(matrix, 1.0)]
    if not pairs:
        raise InputError("the list of losses is empty; give at least one (loss, weight), such as (loss, 1.0).")
    return [(Hessian(term) if callable(term) else term, float(weight)) for term, weight in pairs]


class Products:
    """The map v -> M v at one point: graphs that are built once and, up to `kept` bytes, kept.

    The graphs belong to a detached copy of `theta`.

    Raises:
        InputError: the loss is not a finite scalar, or has no graph that leads to `theta`.
    """

    def __init__(self, matrix: Matrix, theta: Tensor, kept: float = KEPT, tally: Tally | None = None):
        """Evaluate the first term once, with a graph; the others follow with the first product.

        Vectors multiplied are added to `tally`, or to one of its own for each call.
        """
        self.theta = theta.detach().clone().requires_grad_()
        self.terms = terms(matrix)
        self.tally = tally
        self.count = 0
        """Vectors multiplied so far."""
        self._kept: dict[int, Graph] = {}
        self._room = kept
        self._known_good = False
        self.flow = self._graph(0).flow
        """Bytes that pass through the graph of the first term in one product."""
        self.width = _width(self.flow, self.theta.device)
        """Vectors that are multiplied at once."""

    def __call__(self, v: Tensor) -> Tensor:
        """Return M v for `v` (n,), or for each row of `v` (N, n)."""
        rows = v if v.dim() == 2 else v[None]
        tally = self.tally or Tally("products", len(rows))
        total = None
        for i, (_, weight) in enumerate(self.terms):
            graph, found = self._graph(i), []
            for group in rows.split(self.width):
                found.append(self._times(graph, group))
                tally.add(len(group) if i == len(self.terms) - 1 else 0)
            del graph  # one that is not kept must be gone before the next is built
            part = torch.cat(found) if len(found) > 1 else found[0] if found else torch.zeros_like(rows)
            part = part if weight == 1.0 else weight * part
            total = part if total is None else total + part
        self.count += len(rows)
        return total if v.dim() == 2 else total[0]

    def _times(self, graph: Graph, rows: Tensor) -> Tensor:
        """Return the products with a few rows, at once where that is known to work."""
        if len(rows) > 1:
            try:
                found = graph(rows, batched=True)
            except RuntimeError:  # an operation without a rule for batches, such as the second derivative of GroupNorm
                self.width = 1
            else:
                if self._known_good or self._agrees(found[0], graph(rows[0])):
                    return found
        return torch.stack([graph(row) for row in rows]) if len(rows) > 1 else graph(rows[0])[None]

    def _agrees(self, one: Tensor, other: Tensor) -> bool:
        """Check, once, that a batch gives what one vector alone gives; from then on one at a time if it does not."""
        error, size = torch.linalg.vector_norm(one - other), torch.linalg.vector_norm(other)
        self._known_good = bool(error <= 100 * torch.finfo(one.dtype).eps * len(one) ** 0.5 * size)
        if not self._known_good:
            self.width = 1
        return self._known_good

    def _graph(self, i: int) -> Graph:
        if i in self._kept:
            return self._kept[i]
        with torch.enable_grad(), twice_differentiable(self.theta.device):
            graph = self.terms[i][0].graph(self.theta)
        if graph.flow <= self._room:
            self._room -= graph.flow
            self._kept[i] = graph
        return graph


class _HessianGraph:
    """Double backward: H v is the derivative of gᵀv."""

    def __init__(self, loss: Loss, theta: Tensor):
        self.theta = theta
        value = checked(loss(theta))
        (self.grad,) = torch.autograd.grad(value, theta, create_graph=True, materialize_grads=True)
        self.flow = _flow(self.grad)

    def __call__(self, v: Tensor, batched: bool = False) -> Tensor:
        if not self.grad.requires_grad:
            return torch.zeros_like(v)
        return _pulled([self.grad], [self.theta], [v], batched)[0]


class _PartedGraph:
    """Double backward from the gradients of those parts on which v is not zero."""

    def __init__(self, loss: Callable[[dict[str, Tensor]], Tensor], blocks: dict[str, Tensor]):
        self.leaves = {part: block.detach().requires_grad_() for part, block in blocks.items()}
        found = list(self.leaves.values())
        self.grads = torch.autograd.grad(checked(loss(self.leaves)), found, create_graph=True, materialize_grads=True)
        self.flow = _flow(*self.grads)

    def __call__(self, v: Tensor, batched: bool = False) -> Tensor:
        found = list(self.leaves.values())
        pieces = v.split([len(leaf) for leaf in found], -1)
        pairs = [(g, piece) for g, piece in zip(self.grads, pieces, strict=True) if g.requires_grad and piece.any()]
        if not pairs:
            return torch.zeros_like(v)
        return torch.cat(_pulled([g for g, _ in pairs], found, [piece for _, piece in pairs], batched), -1)


Bend = tuple[list[Tensor], list[Tensor], Tensor]
"""Some outputs, the tensors in whose place a loss was computed, and that loss, a scalar (), which bends in them."""


class GaussNewtonGraph:
    """Σ Jᵀ (∇²ℓ) J over losses ℓ, J the derivative of the outputs by `theta` (n,), which requires a gradient.

    Three passes: J v as the derivative of uᵀJ with respect to a dummy u, then each ∇²ℓ by itself, then Jᵀ. The places
    of a loss may be its outputs themselves, or others of their values; no loss sees the outputs of another.
    """

    def __init__(self, theta: Tensor, bends: Sequence[Bend]) -> None:
        """Build the graph of uᵀJ, and those of the slopes of each loss."""
        self.theta = theta
        self.outputs = [output for outputs, _, _ in bends for output in outputs]
        self.places = [places for _, places, _ in bends]
        with torch.enable_grad():
            self.slopes = [
                torch.autograd.grad(loss, places, create_graph=True, materialize_grads=True)
                for _, places, loss in bends
            ]
            self.dummies = [torch.zeros_like(value).requires_grad_() for value in self.outputs]
            (self.back,) = torch.autograd.grad(
                self.outputs, theta, self.dummies, create_graph=True, materialize_grads=True
            )
        self.flow = _flow(self.back, *self.outputs, *(slope for slopes in self.slopes for slope in slopes))

    def __call__(self, v: Tensor, batched: bool = False) -> Tensor:
        """Return the product with `v` (n,), or with each row of `v` (N, n) where it is `batched`."""
        if not self.back.requires_grad:
            return torch.zeros_like(v)
        pushed, images = list(_pulled([self.back], self.dummies, [v], batched)), []
        for slopes, places in zip(self.slopes, self.places, strict=True):
            parts = pushed[len(images) : len(images) + len(places)]
            bent = [(slope, part) for slope, part in zip(slopes, parts, strict=True) if slope.requires_grad]
            if bent:
                images += _pulled([slope for slope, _ in bent], places, [part for _, part in bent], batched)
            else:
                images += [torch.zeros_like(part) for part in parts]
        return _pulled(self.outputs, [self.theta], images, batched)[0]


def _pulled(outputs: list[Tensor], inputs: list[Tensor], v: list[Tensor], batched: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs, v, retain_graph=True, materialize_grads=True, is_grads_batched=batched)


def _taken_apart(value: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Return the tensors of a value and how to put others in their place."""
    if isinstance(value, Tensor):
        return [value], lambda tensors: tensors[0]
    if isinstance(value, Mapping) and all(isinstance(v, Tensor) for v in value.values()):
        return list(value.values()), lambda tensors: dict(zip(value, tensors, strict=True))
    if isinstance(value, Sequence) and all(isinstance(v, Tensor) for v in value):
        return list(value), list
    raise InputError(f"the outputs are a {type(value).__name__}; return a tensor, or a mapping or sequence of tensors.")


def _flow(*roots: Tensor) -> int:
    """Return the bytes of all gradients that pass through the graphs of `roots` in one backward pass."""
    todo = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen, entries = set(todo), 0
    while todo:
        node = todo.pop()
        entries += sum(math.prod(meta.shape) for meta in node._input_metadata)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return entries * roots[0].element_size()


def _width(flow: int, device: torch.device) -> int:
    """Return how many vectors to multiply at once; on an accelerator what fills, and fits, its memory (not timed)."""
    if device.type == "cpu":
        return 8 if flow <= _SMALL else 1
    return max(1, min(16, 2**28 // max(flow, 1)))


def checked(value: Tensor) -> Tensor:
    """Return a loss as a scalar (); one that is not a finite number with a graph is refused by an `InputError`."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError(f"the loss must return one number, not {getattr(value, 'shape', type(value).__name__)}.")
    if not torch.isfinite(value):
        raise InputError(f"the loss is {value.item()} at theta; its curvature exists only where it is finite.")
    if not value.requires_grad:
        raise InputError("the loss has no graph that leads to theta; compute it from theta without detach or no_grad.")
    return value.reshape(())


@contextmanager
def twice_differentiable(device: torch.device) -> Generator[None]:
    """Fused attention and cuDNN's recurrent kernels have no second derivative, and autocast would round it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield
