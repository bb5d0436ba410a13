"""A loss with one modality left out of the fusion, mixed with the loss of all: values, gradients, curvature, and how it
should change with the weights of a collapse that is added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.maths.collapse import fisher_ends
from engine.maths.curvature import Products, lanczos
from engine.maths.hypergrad import GaussNewton, HyperGradient, Operator, hypergradient
from engine.maths.krylov import twice_differentiable

OMISSIONS = ("mixture", "rows", "batch")
FILLS = ("zero", "neutral")


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
    def losses(self, features: dict[str, Tensor], names: Sequence[str], theta: Tensor, batch: Any) -> Tensor:
        """Return the fused loss without each of the names, (len(names),); no graph."""
        return torch.stack([self.loss(features, name, theta, batch) for name in names])

    @torch.no_grad()
    def apart(self, theta: Tensor, batch: Any, slices: Mapping[str, slice], generator: torch.Generator) -> Tensor:
        """Return for each modality, (M,) of bool, whether the loss without it is blind to the parameters it owns.

        Looked up by values: at theta (P,) with noise on every entry, so that no weight that starts at zero hides a
        path, the loss must keep its bits when the modality's own entries are drawn anew.
        """

        def drawn(like: Tensor) -> Tensor:
            noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
            return like + 0.1 * noise.to(like)

        stirred, found = drawn(theta), []
        for name in self.problem.modalities:
            other = stirred.clone()
            other[slices.get(name, slice(0))] = drawn(stirred[slices.get(name, slice(0))])
            both = [self.loss(self.problem.encode(at, batch), name, at, batch) for at in (stirred, other)]
            found.append(torch.equal(*both))
        return torch.tensor(found)

    def dropped(
        self, features: dict[str, Tensor], name: str, theta: Tensor, batch: Any, each: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the features, one modality's left out in a random share ω of the rows, or in all of them at once."""
        z, blind = features[name], self.features(features, name, theta, batch)[name]
        out = torch.rand(len(z) if each else 1, 1, generator=generator, device=z.device) < self.share
        return features | {name: torch.where(out, blind, z)}

    def gradient(self, features: dict[str, Tensor], name: str, theta: Tensor, pieces: Sequence[Any]) -> Tensor:
        """Return the gradient (P,) of L_without over a batch; pieces have lost their graph and are encoded anew."""
        if features[name].requires_grad:
            return torch.autograd.grad(self.loss(features, name, theta, pieces[0]), theta, retain_graph=True)[0]
        theta, count = theta.detach().requires_grad_(), sum(map(len, pieces))
        total = torch.zeros_like(theta, requires_grad=False)
        for piece in pieces:
            loss = self.loss(self.problem.encode(theta, piece), name, theta, piece)
            total = total + len(piece) / count * torch.autograd.grad(loss, theta)[0]
        return total

    def pairs(
        self, theta: Tensor, name: str, batch: Any, others: Mapping[str, Tensor] | None = None
    ) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Return pairs of logits and a loss that is convex in them, whose losses add up to L, and the features.

        `others` are features that stand for those of all modalities but `name`.
        """
        clean = self.problem.encode(theta, batch)
        if others is not None:
            clean = {**others, name: clean[name]}
        full, logits = self.problem.objectives(theta, clean, batch)
        blind, dark = self.problem.objectives(theta, self.features(clean, name, theta, batch), batch)
        pairs = [(logits[row], loss * (1 - self.share if row == "fused" else 1)) for row, loss in full.items()]
        return [*pairs, (dark["fused"], self.share * blind["fused"])], clean

    def whole(self, theta: Tensor, name: str, batch: Any, others: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return L and all other losses in one sum (0-d); for `others` see `pairs`."""
        return sum(loss for _, loss in self.pairs(theta, name, batch, others)[0])

    def held_out(self, theta: Tensor, batch: Any) -> Tensor:
        """Return the fused loss (0-d), the mean over all modalities present and each one left out."""
        clean = self.problem.encode(theta, batch)
        cases = [self.loss(clean, name, theta, batch) for name in self.problem.modalities]
        return torch.stack([self.problem.objectives(theta, clean, batch)[0]["fused"], *cases]).mean()

    def curvature(
        self, theta: Tensor, name: str, batch: Any, mask: Tensor, steps: int, generator: torch.Generator
    ) -> tuple[float, float, float]:
        """Return λ_min and λ_max of the Hessian of L in the block that a modality owns, `mask`, by Lanczos.

        The third number is the residual of the former. Other encoders own none of the block, so products skip them.
        """
        with torch.no_grad():
            others = self.problem.encode(theta, batch)
        run = lanczos(lambda at: self.whole(at, name, batch, others), theta, steps, mask=mask, generator=generator)
        values, _, residuals = run.ritz()
        return values[-1].item(), values[0].item(), residuals[-1].item()

    def along(self, theta: Tensor, name: str, batch: Any, where: slice, direction: Tensor) -> float:
        """Return the curvature of L along a direction (n,) in a block; 0 for none."""
        unit = torch.zeros_like(theta, requires_grad=False)
        unit[where] = direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)
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
        p: Any,
    ) -> HyperGradient:
        """Return d(held-out loss on `outer`)/d(log λ, log κ) at theta for the training loss L + λ_eff(pull + κ·ratio).

        `collapse(features)` gives λ_eff, pull and κ·ratio. That loss is linear in λ and in λκ, so the mixed derivatives
        by log λ and log κ are the gradients of the collapse and of its second term, λ_eff held as it is; `mask` says
        what the gate leaves of them, and the matrix is that of the loss without the gate. `p` names the `matrix`, the
        `reading` of the series, its `terms` and its `damping`. The Gauss-Newton matrix holds
        all terms but the ratio, which is not convex.
        """
        theta = theta.detach().clone().requires_grad_()
        with torch.enable_grad(), twice_differentiable(theta.device):
            (aim,) = torch.autograd.grad(self.held_out(theta, outer), theta)
            pairs, clean = self.pairs(theta, name, batch)
            weight, pull, ratio = collapse(clean)
            mixed = [torch.autograd.grad(weight * f, theta, retain_graph=True)[0] for f in (pull + ratio, ratio)]
            if p.matrix == "ggn":
                product: Callable = GaussNewton(theta, [*pairs, (clean[name], weight * pull)])
            else:
                product = Products(lambda at: self._trained(at, name, batch, collapse), theta)
        return hypergradient(
            Operator(product, theta.detach(), generator),
            aim,
            mask(torch.stack(mixed)),
            reading=p.reading,
            terms=p.terms,
            damping=p.damping,
            positive=p.matrix == "ggn",
        )

    def _trained(self, theta: Tensor, name: str, batch: Any, collapse: Callable) -> Tensor:
        pairs, clean = self.pairs(theta, name, batch)
        weight, pull, ratio = collapse(clean)
        return sum(loss for _, loss in pairs) + weight * (pull + ratio)
