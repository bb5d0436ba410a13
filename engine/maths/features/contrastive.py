"""Contrastive learning between two modalities: the loss and the retrieval scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def normalised(features: Tensor) -> Tensor:
    """Return features (…, D) scaled to length 1; smooth everywhere, and 0 stays 0."""
    return features * torch.rsqrt(features.square().sum(-1, keepdim=True) + 1e-12)


def info_nce(a: Tensor, b: Tensor, temperature: float, plain: bool = False) -> Tensor:
    """Return the symmetric InfoNCE loss (nats) of paired features (B, D): row i of `a` belongs to row i of `b`.

    With q, k the normalised rows: ½ mean_i [-log softmax_j(q_i·k_j / τ)_i] + the same with the roles exchanged. The two
    directions as in CLIP (arXiv 2103.00020, figure 3); the temperature τ is fixed, not learnt. `plain` takes q, k as
    the rows are.
    """
    table = similarity(a, b, temperature, plain)
    target = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(table, target) + F.cross_entropy(table.mT, target))


def similarity(a: Tensor, b: Tensor, temperature: float, plain: bool = False) -> Tensor:
    """Return the cosines of all rows of `a` with all rows of `b`, (B, D) each, over the temperature, (B, B).

    `plain` takes the products of the rows as they are, which are cosines where all have length 1.
    """
    if plain:
        return a @ b.mT / temperature
    return normalised(a) @ normalised(b).mT / temperature


def matching(table: Tensor) -> Tensor:
    """Return each row's share of the InfoNCE loss (B,) of similarities (B, B): their mean is the loss."""
    return 0.5 * (-table.log_softmax(1).diagonal() - table.log_softmax(0).diagonal())


def recall_at(a: Tensor, b: Tensor, counts: tuple[int, ...], rows: int = 1024) -> Tensor:
    """Return the recall at each of `counts` (len(counts),), as fractions: how often row i of `b` is among the nearest.

    Nearest to row i of `a` by cosine among all rows of `b`, (N, D) each. Rows that tie with the partner share its
    places: the value is the expectation over a random order of ties, so features that have collapsed score at chance.
    Works through `rows` queries at a time, so memory grows with N, not N².
    """
    a, b = normalised(a), normalised(b)
    found = a.new_zeros(len(counts))
    allowed = torch.tensor(counts, device=a.device, dtype=a.dtype)
    for start in range(0, len(a), rows):
        similarity = a[start : start + rows] @ b.mT
        own = similarity.diagonal(start).unsqueeze(1)
        before = (similarity > own).sum(1, keepdim=True)
        tied = (similarity == own).sum(1, keepdim=True)
        found = found + ((allowed - before) / tied).clamp(0.0, 1.0).sum(0)
    return found / len(a)
