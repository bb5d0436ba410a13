"""Training steps on a device without numbers: whatever asks the host, or is copied to the device, is an error there.

A step that waits for the device, or copies to it, cannot be captured as a graph, and costs more than its arithmetic on
a GPU. Here theta, batch, optimiser and method states are empty tensors on torch's `meta` device. Reading a number there
raises by itself (`float`, `if`, boolean indexing); copies from the host, which it lets pass, are refused by `NoCopies`.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from modalscape.engine.core.method import Method, Stack
from modalscape.engine.core.optimizer import _BUILD, Optimizer
from modalscape.engine.core.problem import Batch
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import State, train_step
from tests import tiny

SETTINGS = tiny.sgd(0.1, 0.9)
_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)
_BY_INDEX = (Tensor.__getitem__, Tensor.__setitem__)


class HostCopy(Exception):
    """Something was copied from the host to the device within a step."""


QUESTIONS = (DataDependentOutputException, DynamicOutputShapeException, HostCopy)
"""What a step raises that asks the host: for a number, for a shape that depends on data, or by a copy."""


class NoCopies(TorchFunctionMode):
    """Refuses functions that make a tensor of the device from numbers or tensors of the host.

    A single number, a 0-dim tensor of the host, may be an operand, since it is passed as one.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _BY_INDEX and args[0].device.type != "cpu":
            self._checked_index(function, args[1])
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        host = any(t.device.type == "cpu" and t.dim() for t in given)
        if host and any(t.device.type != "cpu" for t in given):
            raise HostCopy(f"{getattr(function, '__name__', function)} mixes tensors of the host and of the device")
        made = function(*args, **kwargs)
        moved = any(isinstance(t, Tensor) and t.device.type != "cpu" for t in tree_flatten(made)[0])
        if moved and (host or function in _FROM_NUMBERS):
            raise HostCopy(f"{getattr(function, '__name__', function)} copies from the host to the device")
        return made

    @staticmethod
    def _checked_index(function, index) -> None:
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, list | range) or (isinstance(part, Tensor) and part.device.type == "cpu"):
                raise HostCopy(f"{function.__name__} copies an index to the device")


def emptied(value):
    """Return nested values with every tensor replaced by an empty one on the meta device."""
    return tree_map(lambda leaf: torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf, value)


def _without_numbers(method: Method) -> Method:
    """Return the method with all it holds emptied; what is one object in it stays one."""
    held = [leaf for leaf in tree_flatten(vars(method))[0] if isinstance(leaf, Tensor)]
    empty = type(method)(method.params)
    vars(empty).update(deepcopy(vars(method), {id(leaf): emptied(leaf) for leaf in held}))
    return empty


def _batch(batch: Batch) -> Batch:
    return Batch(emptied(batch.x), emptied(batch.y))


@contextmanager
def _keyed_draws_on_the_device():
    """Let `Rng` hand out the device's own generator there, which is what a graph registers."""
    before = Rng.generator

    def generator(self, purpose, step=0, device="cpu"):
        return before(self, purpose, step) if torch.device(device).type == "cpu" else None

    Rng.generator = generator
    try:
        yield
    finally:
        Rng.generator = before


def steps_without_numbers(problem, methods: list[Method], steps: int, before: int = 3) -> None:
    """Take a few steps as usual, so that states are filled, and then `steps` without numbers.

    Raises:
        One of QUESTIONS: a hook asked the host; the traceback has the line.
    """
    state, optimizer, stack, rng = tiny.started(problem, methods, SETTINGS)
    for _ in range(before):
        state, _ = train_step(state, problem, optimizer, stack, rng)
    batch, probe = _batch(problem.batch(before)), _batch(problem.probe_batch())
    parts = {name: _batch(rows) for name, rows in problem.rows.items()}
    problem.batch, problem.probe_rows, problem.rows, problem._named = (lambda step: batch), probe, parts, None
    stack = Stack(_without_numbers(m) for m in stack.methods.values())
    state = State(state.step, emptied(state.theta), emptied(state.moments))
    optimizer = Optimizer(SETTINGS, optimizer.horizon)
    optimizer._slot = nn.Parameter(torch.empty_like(state.theta))
    optimizer._rule = _BUILD[SETTINGS.name]([optimizer._slot], SETTINGS)
    with FakeTensorMode(allow_non_fake_inputs=True), _keyed_draws_on_the_device(), NoCopies():
        for _ in range(steps):
            state, _ = train_step(state, problem, optimizer, stack, rng)
