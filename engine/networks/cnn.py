"""Small convolutional networks for images and spectrograms."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

GROUPS = 4
_FINAL = 4
_WIDEST = 4


class Block(nn.Module):
    """Convolution, GroupNorm, activation; `stride` 2 halves the sides."""

    def __init__(self, before: int, after: int, stride: int, activation: Callable) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, after)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, H / stride, W / stride), sides rounded up."""
        return self.activation(self.norm(self.conv(x)))


class Cnn(nn.Module):
    """Blocks that halve the image until its longer side is at most 4, then one linear layer.

    Channels start at an eighth of `hidden` (at least 8) and double up to four times that. Each layer of `depth` beyond
    the first adds a block that keeps the size.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, shape: tuple[int, int, int], width: int, hidden: int, depth: int, activation: Callable) -> None:
        """Make an encoder from images (B, C, H, W) of `shape` (C, H, W) to (B, `width`)."""
        super().__init__()
        channels, *sides = shape
        base = channels_for(hidden)
        after, blocks = base, []
        while max(sides) > _FINAL or not blocks:
            blocks.append(Block(channels, after, 2, activation))
            channels, after = after, min(2 * after, _WIDEST * base)
            sides = [(side + 1) // 2 for side in sides]
        blocks += [Block(channels, channels, 1, activation) for _ in range(depth - 1)]
        self.blocks = nn.ModuleList(blocks)
        self.out = nn.Linear(channels * sides[0] * sides[1], width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width) of x (B, C, H, W)."""
        for block in self.blocks:
            x = block(x)
        return self.out(x.flatten(1))


def channels_for(hidden: int) -> int:
    """Return an eighth of `hidden`, to a multiple of 8: two channels a group at least, so a norm is never of one."""
    return 8 * max(1, round(hidden / 64))
