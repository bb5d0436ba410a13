"""Convolutional networks for sequences of vectors, time first."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from modalscape.engine.networks.cnn import GROUPS, channels_for


class Stage(nn.Module):
    """Convolution over five steps, GroupNorm, activation; halves the length."""

    def __init__(self, before: int, after: int, activation: Callable) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, after, 5, 2, 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, after)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, T / 2), rounded up."""
        return self.activation(self.norm(self.conv(x)))


class Sequence(nn.Module):
    """`depth` + 1 stages of a quarter of `hidden` channels, the mean over time, one linear layer."""

    kinds: ClassVar[tuple[str, ...]] = ("sequence",)

    def __init__(self, shape: tuple[int, int], width: int, hidden: int, depth: int, activation: Callable) -> None:
        """Make an encoder from sequences (B, T, F) of `shape` (T, F) to (B, `width`)."""
        super().__init__()
        channels = 2 * channels_for(hidden)
        sizes = [shape[1], *[channels] * (depth + 1)]
        self.stages = nn.ModuleList(Stage(a, b, activation) for a, b in zip(sizes, sizes[1:], strict=False))
        self.out = nn.Linear(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width) of x (B, T, F)."""
        x = x.mT
        for stage in self.stages:
            x = stage(x)
        return self.out(x.mean(-1))
