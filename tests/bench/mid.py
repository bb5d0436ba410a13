"""The problem on which curvature and slices are timed: 50,602 parameters, 2,000 samples, trained to a loss of 0.009."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.problem import Functional

CLASSES, WIDTH = 10, 64
REST = 0.009
"""Training loss at which the analysis begins."""


class TwoBranches(nn.Module):
    """Two GELU branches on the halves of one input (N, 2·64), so that tools that know one tensor can run it."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        self.left, self.right = _mlp(WIDTH, hidden, hidden), _mlp(WIDTH, hidden, hidden)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(2 * hidden, hidden), nn.GELU(), nn.Linear(hidden, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        left, right = x.split(WIDTH, 1)
        return self.head(torch.cat([self.left(left), self.right(right)], 1))


@dataclass(frozen=True)
class Case:
    """A trained network with its data, as a module and as a loss of the flat parameters."""

    model: nn.Module
    x: Tensor
    y: Tensor

    @property
    def layout(self) -> Layout:
        """Where the parameters lie."""
        return Layout.of(self.model, lambda name: name.split(".")[0])

    @property
    def theta(self) -> Tensor:
        """The flat parameters (P,)."""
        return self.layout.pack(dict(self.model.named_parameters())).detach()

    def loss(self, x: Tensor | None = None, y: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the mean cross-entropy on some rows, by default all, as a function of the flat parameters.

        The module is called as a run calls its encoders.
        """
        x, y = (self.x, self.y) if x is None else (x, y)
        layout, model = self.layout, Functional(self.model, "model")

        def loss(theta: Tensor) -> Tensor:
            named = {f"model.{name}": value for name, value in layout.unpack(theta).items()}
            return functional.cross_entropy(model(named, x), y)

        return loss

    def double(self) -> Case:
        """Return the case in float64."""
        copy = type(self.model)(self.model.head[1].out_features).double()
        copy.load_state_dict(self.model.state_dict())
        return Case(copy, self.x.double(), self.y)


def mid(rows: int = 2000, hidden: int = 96, rest: float = REST) -> Case:
    """Return the trained network; labels depend on both halves of the input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y = _drawn(rows)
        model = TwoBranches(hidden)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2000):
        loss = functional.cross_entropy(model(x), y)
        if loss.item() < rest:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Case(model.eval(), x, y)


def samples(rows: int) -> tuple[Tensor, Tensor]:
    """Return inputs (rows, 2·64) and labels (rows,), those of `mid`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _drawn(rows)


def _drawn(rows: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 2 * WIDTH)
    return x, (torch.tanh(x) @ torch.randn(2 * WIDTH, CLASSES) + 0.5 * torch.randn(rows, CLASSES)).argmax(1)


def _mlp(*widths: int) -> nn.Sequential:
    first, second, third = widths
    return nn.Sequential(nn.Linear(first, second), nn.GELU(), nn.Linear(second, third))
