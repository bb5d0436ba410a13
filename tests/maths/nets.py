"""A small two-branch network whose whole Hessian can be written down, shared by the tests of the mathematics."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from modalscape.engine.core.layout import Layout


class TwoBranch(nn.Module):
    """Two tanh branches and a linear head: {"a": (B, 6), "b": (B, 5)} to logits (B, 4)."""

    def __init__(self, width: int = 8, act=torch.tanh):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, width), nn.Linear(5, width), nn.Linear(2 * width, 4)
        self.act = act

    def forward(self, x):
        return self.head(torch.cat([self.act(self.a(x["a"])), self.act(self.b(x["b"]))], -1))


def part_of(name: str) -> str:
    return name[0] if name[0] in "ab" else "shared"


def problem(width: int = 8, dtype=torch.float64, act=torch.tanh, rows: int = 120):
    """Return the module, its layout, theta (P,), the loss of theta, and the data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        x = {"a": torch.randn(rows, 6).to(dtype), "b": torch.randn(rows, 5).to(dtype)}
        y = (x["a"][:, 0] + x["b"][:, 1] > 0).long() + 2 * (x["a"][:, 1] > 0.3).long()
        net = TwoBranch(width, act).to(dtype)
    layout = Layout.of(net, part_of)

    def loss(theta):
        logits = torch.func.functional_call(net, layout.unpack(theta), (x,))
        return nn.functional.cross_entropy(logits, y)

    theta = layout.pack(dict(net.named_parameters())).detach()
    for _ in range(60):
        theta = theta - torch.func.grad(loss)(theta)
    return net, layout, theta, loss, (x, y)


@lru_cache
def exact(width: int = 8):
    """Return the dense Hessian (P, P) at the point that `problem(width)` gives, and its eigenvalues, largest first."""
    _, _, theta, loss, _ = problem(width)
    hessian = torch.func.hessian(loss)(theta)
    return hessian, torch.linalg.eigvalsh(hessian).flip(0)
