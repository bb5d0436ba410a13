"""The problem that asks most of a tool: BatchNorm, convolutions and fused attention in 62,842 parameters, 49 tensors.

PyHessian is handed what it needs: the attention kernel that has a second derivative, and one input tensor.
"""

from __future__ import annotations

import statistics
import time

import torch
from pyhessian import hessian
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from modalscape.engine.maths.curvature.hessian_spectrum import spectrum, top_eigenpairs, trace
from modalscape.engine.maths.curvature.user_module import analysed

ROWS, SIDE, TOKENS, WIDTH, CLASSES, K = 256, 16, 12, 48, 10, 5


class Mixed(nn.Module):
    """A small CNN and a transformer of three pre-norm layers on the two halves of one input (N, 16·16 + 12·48)."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, WIDTH),
        )
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True, bias=True
        )
        self.text = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.place = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        image, text = x.split([SIDE * SIDE, TOKENS * WIDTH], 1)
        text = self.text(text.view(-1, TOKENS, WIDTH) + self.place).mean(1)
        return self.head(torch.cat([self.image(image.view(-1, 1, SIDE, SIDE)), text], 1))


def mixed() -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network after 60 steps, with its rows (256, 832) and labels (256,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, model = torch.randn(ROWS, SIDE * SIDE + TOKENS * WIDTH), Mixed()
        y = (torch.tanh(x) @ torch.randn(x.shape[1], CLASSES)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(60):
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), x, y


def ours(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Return the top-5 and the trace, with the density from the same run; the module as it is handed over."""
    copied = _analysed(model, x, y)
    found = spectrum(copied.loss, copied.theta, k=K, steps=40, probes=8)
    return found.values, found.trace


def pyhessian(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Return the same from PyHessian: values to 1e-3, 100 draws for the trace, a density of 100 steps."""
    with sdpa_kernel(SDPBackend.MATH):
        tool = hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
        top = tool.eigenvalues(maxIter=1000, tol=1e-4, top_n=K)[0]
        draws = tool.trace(maxIter=100, tol=0.0)
        tool.density(iter=100, n_v=1)
    model.zero_grad()
    return torch.tensor(top, dtype=torch.float64), sum(draws) / len(draws)


def report(repeats: int) -> None:
    """Print times, errors and the ratio, interleaved."""
    model, x, y = mixed()
    parameters = list(model.parameters())
    copied = _analysed(model.double(), x.double(), y)
    truth = top_eigenpairs(copied.loss, copied.theta, K, tol=1e-8)[0]
    whole, error = trace(copied.loss, copied.theta, rel_error=0.01)
    model.float()
    seconds: dict[str, list[float]] = {"ours, 40 steps + 8 probes": [], "PyHessian": []}
    found = {}
    for _ in range(repeats):
        for (name, times), tool in zip(seconds.items(), (ours, pyhessian), strict=True):
            began = time.perf_counter()
            found[name] = tool(model, x, y)
            times.append(time.perf_counter() - began)
    print(f"\nCNN and transformer: {sum(p.numel() for p in parameters):,} parameters, {len(parameters)} tensors")
    print(f"reference: trace {whole:.4g} with standard error {error:.2g}")
    for name, (top, value) in found.items():
        off = float(((top - truth) / truth).abs().max())
        print(f"{name:32}{statistics.median(seconds[name]):8.2f} s, top-5 {off:.0e}, trace {value / whole - 1:+.1%}")
    ratios = [slow / fast for fast, slow in zip(*seconds.values(), strict=True)]
    told = "met" if statistics.median(ratios) >= 7 else "missed"
    span = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"PyHessian / ours: {statistics.median(ratios):.1f} ({span}; {repeats} repeats; aim 7, {told})")


def _analysed(model: nn.Module, x: Tensor, y: Tensor):
    return analysed(
        model, lambda net, batch: functional.cross_entropy(net(batch[0]), batch[1]), [(x, y)], statistics="stored"
    )
