"""ResNet-18 for small images and spectrograms, with GroupNorm in place of BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

GROUPS = 32
CHANNELS = (64, 128, 256, 512)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, activation: Callable) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, after) for _ in range(2))
        self.shortcut = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(GROUPS, after))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, H / stride, W / stride), sides rounded up."""
        inner = self.activation(self.norms[0](self.first(x)))
        return self.activation(self.norms[1](self.second(inner)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Eight residual blocks in four stages, the mean over all places, one linear layer: 11 million parameters.

    *Source*: He et al., arXiv 1512.03385, table 1, with a first convolution of 3 x 3 and no pooling, as is usual for
    small images; GroupNorm of 32 groups, Wu and He, arXiv 1803.08494. `hidden` and `depth` are what the name says, and
    are not used.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: tuple[int, int, int], width: int, hidden: int, depth: int, activation: Callable) -> None:
        """Make an encoder from images (B, C, H, W) of `shape` (C, H, W) to (B, `width`)."""
        super().__init__()
        before = CHANNELS[0]
        self.stem = nn.Sequential(nn.Conv2d(shape[0], before, 3, 1, 1, bias=False), nn.GroupNorm(GROUPS, before))
        blocks = []
        for stage, after in enumerate(CHANNELS):
            blocks += [Residual(before, after, 2 if stage else 1, activation), Residual(after, after, 1, activation)]
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.activation = activation
        self.out = nn.Linear(before, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width) of x (B, C, H, W)."""
        return self.out(self.blocks(self.activation(self.stem(x))).mean((2, 3)))
