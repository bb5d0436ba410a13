"""Small transformers for token ids. Attention is written out: fused kernels lack a second derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

_FAR = -1e9


class Attention(nn.Module):
    """Self-attention of one head, and a perceptron, each on a normalised input and added to what came in."""

    def __init__(self, size: int, activation: Callable) -> None:
        super().__init__()
        self.size = size
        self.activation = activation
        self.before = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.mix = nn.Linear(size, size)
        self.between = nn.LayerNorm(size)
        self.up = nn.Linear(size, 2 * size)
        self.down = nn.Linear(2 * size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (B, L, size); `mask` (B, 1, L) is very negative where a token is padding, else 0."""
        q, k, v = self.qkv(self.before(x)).split(self.size, -1)
        weights = torch.softmax(q @ k.mT / math.sqrt(self.size) + mask, -1)
        x = x + self.mix(weights @ v)
        return x + self.down(self.activation(self.up(self.between(x))))


class Tokens(nn.Module):
    """Embedding and positions, `depth` transformer blocks, the mean over tokens, one linear layer.

    Embeddings have half of `hidden` numbers. A row of padding alone gives the features of an empty text: the same for
    all such rows, and learnt.
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens",)

    def __init__(self, shape: tuple[int, int], width: int, hidden: int, depth: int, activation: Callable) -> None:
        """Make an encoder from ids (B, L) to (B, `width`); `shape` is (vocabulary, L), id 0 is padding."""
        super().__init__()
        vocabulary, length = shape
        size = max(8, hidden // 2)
        self.embedding = nn.Embedding(vocabulary, size)
        self.position = nn.Parameter(0.1 * torch.randn(length, size))
        self.blocks = nn.ModuleList(Attention(size, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Return features (B, width) of ids (B, L)."""
        there = (ids != 0).to(self.position.dtype)
        mask = (1.0 - there).unsqueeze(1) * _FAR
        x = self.embedding(ids) + self.position
        for block in self.blocks:
            x = block(x, mask)
        share = there / there.sum(1, keepdim=True).clamp(min=1.0)
        pooled = (share.unsqueeze(1) @ self.norm(x)).squeeze(1)
        return self.out(pooled)
