"""A loss with modalities left out of the fusion, mixed with the loss of all: values, gradients, curvature, and how it
should change with its own share and with the weights of a collapse that is added to it.

One modality, the attacked one, is left out of every row. Where `kept` says so, a row loses others as well, but never
all: see `kept_others`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from modalscape.engine.maths.curvature.hessian_spectrum import Products, lanczos
from modalscape.engine.maths.curvature.hypergradient import HyperGradient, Operator, gauss_newton, hypergradient
from modalscape.engine.maths.curvature.krylov import twice_differentiable
from modalscape.engine.methods.modalimmune.collapse import fisher_ends

OMISSIONS = ("mixture", "rows", "batch")
FILLS = ("zero", "neutral")


def kept_others(uniform: Tensor, m: int, p: float) -> Tensor:
    """Return which modalities each row keeps, (B, M) of bool, from uniform numbers (B, M): never modality `m`.

    Every other one is lost with probability p where that leaves something; otherwise the one with the largest number
    stays, which is each of them as often. So of M - 1 others each is lost at the rate p - p^(M-1)/(M-1): of two
    modalities in all nothing further is lost. M is 2 at least.

    >>> kept_others(torch.tensor([[0.9, 0.2, 0.8], [0.9, 0.2, 0.3]]), 0, 0.5).tolist()
    [[False, False, True], [False, False, True]]
    """
    here = torch.arange(uniform.shape[1], device=uniform.device)
    others = torch.where(here == m, -1.0, uniform)
    return (others >= p) | (here == others.argmax(1, keepdim=True))


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
    kept: Tensor | None = None
    """Which modalities a row keeps where one is left out, (B, M) of bool, see `kept_others`; None: all others."""

    @property
    def alone(self) -> Omission:
        """The same with one modality left out and no other."""
        return replace(self, kept=None)

    def rows(self, where: slice) -> Omission:
        """Return the same for some rows of the batch."""
        return self if self.kept is None else replace(self, kept=self.kept[where])

    def features(self, features: dict[str, Tensor], name: str, theta: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the features with those of one modality, and of others where they are not `kept`, replaced."""
        gone = (name,) if self.kept is None else tuple(self.problem.modalities)
        if self.neutral:
            one = batch.rows(slice(0, 1))
            for modality in gone:
                one = self.problem.without(one, modality)
            blank = self.problem.encode(theta, one)
            blank = {modality: blank[modality].expand_as(features[modality]) for modality in gone}
        else:
            blank = {modality: torch.zeros_like(features[modality]) for modality in gone}
        for m, modality in enumerate(gone):
            if self.kept is not None and modality != name:
                blank[modality] = torch.where(self.kept[:, m : m + 1], features[modality], blank[modality])
        return features | blank

    def loss(self, features: dict[str, Tensor], name: str, theta: Tensor, batch: Any) -> Tensor:
        """Return the fused loss (0-d) of the features with one modality left out, and others where not `kept`."""
        return self.problem.objectives(theta, self.features(features, name, theta, batch), batch)[0]["fused"]

    @torch.no_grad()
    def losses(self, features: dict[str, Tensor], names: Sequence[str], theta: Tensor, batch: Any) -> Tensor:
        """Return the fused loss without each of the names alone, (len(names),); no graph."""
        return torch.stack([self.alone.loss(features, name, theta, batch) for name in names])

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
        """Return the features, one modality's left out in a random share ω of the rows, or in all of them at once.

        Where that one is left out, so are the others that are not `kept`.
        """
        z, blind = features[name], self.features(features, name, theta, batch)
        out = torch.rand(len(z) if each else 1, 1, generator=generator, device=z.device) < self.share
        changed = {other: value for other, value in blind.items() if value is not features[other]}
        return features | {other: torch.where(out, value, features[other]) for other, value in changed.items()}

    def gradient(self, features: dict[str, Tensor], name: str, theta: Tensor, pieces: Sequence[Any]) -> Tensor:
        """Return the gradient (P,) of L_without over a batch; pieces have lost their graph and are encoded anew."""
        if features[name].requires_grad:
            return torch.autograd.grad(self.loss(features, name, theta, pieces[0]), theta, retain_graph=True)[0]
        theta, count = theta.detach().requires_grad_(), sum(map(len, pieces))
        total, start = torch.zeros_like(theta, requires_grad=False), 0
        for piece in pieces:
            own = self.rows(slice(start, start + len(piece)))
            loss, start = own.loss(self.problem.encode(theta, piece), name, theta, piece), start + len(piece)
            total = total + len(piece) / count * torch.autograd.grad(loss, theta)[0]
        return total

    def pairs(
        self, theta: Tensor, name: str, batch: Any, others: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Return row to logits and a loss that is convex in them, and the features; the losses add up to L.

        The rows are those of the problem and `reg/without`, the share of L without the modality. `others` are features
        that stand for those of all modalities but `name`.
        """
        clean = self.problem.encode(theta, batch)
        if others is not None:
            clean = {**others, name: clean[name]}
        full, logits = self.problem.objectives(theta, clean, batch)
        blind, dark = self.problem.objectives(theta, self.features(clean, name, theta, batch), batch)
        pairs = {row: (logits[row], loss * (1 - self.share if row == "fused" else 1)) for row, loss in full.items()}
        return pairs | {"reg/without": (dark["fused"], self.share * blind["fused"])}, clean

    def whole(self, theta: Tensor, name: str, batch: Any, others: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return L and all other losses in one sum (0-d); for `others` see `pairs`."""
        return sum(loss for _, loss in self.pairs(theta, name, batch, others)[0].values())

    def held_out(self, theta: Tensor, batch: Any, kept: Sequence[Tensor | None] = ()) -> Tensor:
        """Return the fused loss (0-d), the mean over all modalities present and each one left out.

        `kept` says for each of them which others its rows keep, (B, M) of bool or None for all; empty for all.
        """
        clean, names = self.problem.encode(theta, batch), self.problem.modalities
        masks = kept or [None] * len(names)
        cases = [
            replace(self, kept=mask).loss(clean, name, theta, batch) for name, mask in zip(names, masks, strict=True)
        ]
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
        singles = [self.rows(slice(i, i + 1)).whole(theta, name, row) for i, row in enumerate(rows)]
        grads = [torch.autograd.grad(single, theta)[0][where] for single in singles]
        return *fisher_ends(torch.stack(grads) if grads else theta[:0].detach(), width), 0.0

    def hypergradient(
        self,
        theta: Tensor,
        name: str,
        batch: Any,
        outer: Callable[[Tensor], Tensor],
        collapse: Callable[[dict[str, Tensor]], tuple[Tensor | float, Tensor, Tensor]] | None,
        mask: Callable[[Tensor], Tensor],
        *,
        generator: torch.Generator,
        p: Any,
        by_share: bool = False,
    ) -> HyperGradient:
        """Return d(held-out loss)/d(log λ, log κ, logit ω) at theta for the training loss L + λ_eff(pull + κ·ratio).

        `outer(theta)` is the held-out loss (0-d). `collapse(features)` gives λ_eff, pull and κ·ratio. That loss is
        linear in λ and in λκ, so the mixed derivatives by log λ and log κ are the gradients of the collapse and of its
        second term, λ_eff held as it is; `mask` says what the gate leaves of them, and the matrix is that of the loss
        without the gate. Without a `collapse` both are 0. It is linear in ω as well, so that by logit ω the mixed
        derivative is ω(1-ω)(∇L_without - ∇L_full); only with `by_share`, else there are two numbers. `p` names the
        `matrix`, the `reading` of the series, its `terms` and its `damping`. The Gauss-Newton matrix holds all terms
        but the ratio, which is not convex.
        """
        theta = theta.detach().clone().requires_grad_()
        with torch.enable_grad(), twice_differentiable(theta.device):
            (aim,) = torch.autograd.grad(outer(theta), theta)
            pairs, clean = self.pairs(theta, name, batch)
            convex, mixed = list(pairs.values()), torch.zeros(2, len(theta), dtype=theta.dtype, device=theta.device)
            if collapse is not None:
                weight, pull, ratio = collapse(clean)
                convex.append((clean[name], weight * pull))
                by_log = [torch.autograd.grad(weight * f, theta, retain_graph=True)[0] for f in (pull + ratio, ratio)]
                mixed = mask(torch.stack(by_log))
            if by_share:
                mixed = torch.cat([mixed, self._by_share(theta, pairs)[None]])
            if p.matrix == "ggn":
                product: Callable = gauss_newton(theta, convex)
            else:
                product = Products(lambda at: self._trained(at, name, batch, collapse), theta)
        return hypergradient(
            Operator(product, theta.detach(), generator),
            aim,
            mixed,
            reading=p.reading,
            terms=p.terms,
            damping=p.damping,
            positive=p.matrix == "ggn",
        )

    def _by_share(self, theta: Tensor, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Return ω(1-ω)(∇L_without - ∇L_full), (P,), from the losses as weighted: ω·L_without and (1-ω)·L_full."""
        blind, full = pairs["reg/without"][1], pairs["fused"][1]
        return torch.autograd.grad((1 - self.share) * blind - self.share * full, theta, retain_graph=True)[0]

    def _trained(self, theta: Tensor, name: str, batch: Any, collapse: Callable | None) -> Tensor:
        pairs, clean = self.pairs(theta, name, batch)
        total = sum(loss for _, loss in pairs.values())
        if collapse is None:
            return total
        weight, pull, ratio = collapse(clean)
        return total + weight * (pull + ratio)
