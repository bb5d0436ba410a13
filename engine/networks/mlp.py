"""Perceptrons for vectors; any other array is flattened."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn


class Mlp(nn.Module):
    """`depth` linear layers of `hidden` units, each followed by the activation, and one for the features."""

    kinds: ClassVar[tuple[str, ...]] = ("vector", "image", "sequence")

    def __init__(self, shape: tuple[int], width: int, hidden: int, depth: int, activation: Callable) -> None:
        """Make an encoder from (B, …) with `shape` (F,) numbers in all to (B, `width`)."""
        super().__init__()
        self.activation = activation
        sizes = [shape[0], *[hidden] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.out = nn.Linear(sizes[-1], width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width) of x (B, …)."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.out(x)
