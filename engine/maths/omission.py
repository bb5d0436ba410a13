"""A loss with one modality left out of the fusion, mixed with the loss of all: values, gradients, curvature, and how it
should change with the weights of a collapse that is added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.maths.collapse import fisher_ends
from engine.maths.curvature import Products, lanczos
from engine.maths.hypergrad import GaussNewton, HyperGradient, Operator, hypergradient
from engine.maths.krylov import twice_differentiable


class Fusing(Protocol):
    """What is asked of a problem: a batch to features (B, D) by modality, and features to losses and logits (B, C)."""

    modalities: tuple[str, ...]

    def without(self, batch: Any, modality: str) -> Any:
        """Return the batch with one modality's input at what stands for nothing."""

    def encode(self, theta: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return modality to features."""

    def objectives(self, theta: Tensor, features: dict[str, Tensor], batch: Any) -> tuple[dict, dict]:
        """Return the losses, `fused` among them, and the logits."""


@dataclass(frozen=True)
class Omission:
    """L = (1-ω)·L_full + ω·L_without for the fused loss, all other losses as they are; theta is (P,) throughout."""

    problem: Fusing
    share: float
    """ω, 0 to 1."""
    neutral: bool
    """Whether what is left out becomes the features of the neutral input; otherwise zero."""

    def features(self, features: dict[str, Tensor], name: str, theta: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the features with those of one modality replaced by what stands for none."""
        if not self.neutral:
            return features | {name: torch.zeros_like(features[name])}
        one = self.problem.without(batch.rows(slice(0, 1)), name)
        return features | {name: self.problem.encode(theta, one)[name].expand_as(features[name])}

    def loss(self, features: dict[str, Tensor], name: str, theta: Tensor, batch: Any) -> Tensor:
        """Return the fused loss (0-d) of the features with one modality left out."""
        return self.problem.objectives(theta, self.features(features, name, theta, batch), batch)[0]["fused"]

    @torch.no_grad()
    def losses(self, features: dict[str, Tensor], names: Sequence[str], theta: Tensor, batch: Any) -> tuple:
        """Return the fused loss without each of the names (len(names),), and with all modalities (0-d); no graph."""
        without = [self.loss(features, name, theta, batch) for name in names]
        return torch.stack(without), self.problem.objectives(theta, features, batch)[0]["fused"]

    def gradient(self, name: str, theta: Tensor, pieces: Sequence[Any]) -> Tensor:
        """Return the gradient (P,) of L_without over a batch in pieces, which are encoded here."""
        theta, count = theta.detach().requires_grad_(), sum(map(len, pieces))
        total = torch.zeros_like(theta, requires_grad=False)
        for piece in pieces:
            loss = self.loss(self.problem.encode(theta, piece), name, theta, piece)
            total = total + len(piece) / count * torch.autograd.grad(loss, theta)[0]
        return total

    def pairs(self, theta: Tensor, name: str, batch: Any) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Return pairs of logits and a loss that is convex in them, whose losses add up to L, and the features."""
        clean = self.problem.encode(theta, batch)
        full, logits = self.problem.objectives(theta, clean, batch)
        blind, dark = self.problem.objectives(theta, self.features(clean, name, theta, batch), batch)
        pairs = [(logits[row], loss * (1 - self.share if row == "fused" else 1)) for row, loss in full.items()]
        return [*pairs, (dark["fused"], self.share * blind["fused"])], clean

    def whole(self, theta: Tensor, name: str, batch: Any) -> Tensor:
        """Return L and all other losses in one sum (0-d)."""
        return sum(loss for _, loss in self.pairs(theta, name, batch)[0])

    def held_out(self, theta: Tensor, batch: Any) -> Tensor:
        """Return the fused loss (0-d), the mean over all modalities present and each one left out."""
        clean = self.problem.encode(theta, batch)
        cases = [self.loss(clean, name, theta, batch) for name in self.problem.modalities]
        return torch.stack([self.problem.objectives(theta, clean, batch)[0]["fused"], *cases]).mean()

    def curvature(
        self, theta: Tensor, name: str, batch: Any, mask: Tensor, steps: int, generator: torch.Generator
    ) -> tuple[float, float, float]:
        """Return λ_min and λ_max of the Hessian of L in a masked block, and the residual of the former (Lanczos)."""
        run = lanczos(lambda at: self.whole(at, name, batch), theta, steps, mask=mask, generator=generator)
        values, _, residuals = run.ritz()
        return values[-1].item(), values[0].item(), residuals[-1].item()

    def along(self, theta: Tensor, name: str, batch: Any, direction: Tensor) -> float:
        """Return the curvature of L along a direction (P,); 0 for none."""
        unit = direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)
        return (unit @ Products(lambda at: self.whole(at, name, batch), theta)(unit)).item()

    def fisher(self, theta: Tensor, name: str, batch: Any, where: slice) -> tuple[float, float, float]:
        """Return λ_min and λ_max of the empirical Fisher matrix of L in a block, and 0 for the error.

        No gradient is taken where the rows are too few for a matrix of full rank; see `fisher_ends`.
        """
        width = where.stop - where.start
        theta = theta.detach().requires_grad_()
        rows = batch.chunks(1) if len(batch) >= width else []
        grads = [torch.autograd.grad(self.whole(theta, name, row), theta)[0][where] for row in rows]
        return *fisher_ends(torch.stack(grads) if grads else theta[:0].detach(), width), 0.0

    def hypergradient(
        self,
        theta: Tensor,
        name: str,
        batch: Any,
        outer: Any,
        collapse: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor, Tensor]],
        mask: Callable[[Tensor], Tensor],
        *,
        generator: torch.Generator,
        matrix: str = "ggn",
        reading: str = "ift",
        terms: int = 20,
        damping: float = 0.05,
    ) -> HyperGradient:
        """Return d(held-out loss on `outer`)/d(log λ, log κ) at theta for the training loss L + λ_eff(pull + κ·ratio).

        `collapse(features)` gives λ_eff, pull and κ·ratio. That loss is linear in λ and in λκ, so the mixed derivatives
        by log λ and log κ are the gradients of the collapse and of its second term, λ_eff held as it is; `mask` says
        what the gate leaves of them, and the matrix is that of the loss without the gate. The Gauss-Newton matrix holds
        all terms but the ratio, which is not convex.
        """
        theta = theta.detach().clone().requires_grad_()
        with torch.enable_grad(), twice_differentiable(theta.device):
            (aim,) = torch.autograd.grad(self.held_out(theta, outer), theta)
            pairs, clean = self.pairs(theta, name, batch)
            weight, pull, ratio = collapse(clean)
            mixed = [torch.autograd.grad(weight * f, theta, retain_graph=True)[0] for f in (pull + ratio, ratio)]
            if matrix == "ggn":
                product: Callable = GaussNewton(theta, [*pairs, (clean[name], weight * pull)])
            else:
                product = Products(lambda at: self._trained(at, name, batch, collapse), theta)
        return hypergradient(
            Operator(product, theta.detach(), generator),
            aim,
            mask(torch.stack(mixed)),
            reading=reading,
            terms=terms,
            damping=damping,
            positive=matrix == "ggn",
        )

    def _trained(self, theta: Tensor, name: str, batch: Any, collapse: Callable) -> Tensor:
        pairs, clean = self.pairs(theta, name, batch)
        weight, pull, ratio = collapse(clean)
        return sum(loss for _, loss in pairs) + weight * (pull + ratio)
