"""GANI: noise shaped like the curvature, added after the descent, so that a large batch explores as a small one does.

A reconstruction. Only the abstract of the paper is public, so:

- *the paper's*: an exponential moving average (EMA) of first-order gradients approximates curvature; noise shaped by it
  is injected during the parameter update, apart from the deterministic descent; linear cost.
- *our reading*: the EMA is of g and g²; the noise is θ ← θ + lr·σ·√(c + ε)⊙ξ with ξ ~ N(0, I); decoupled means that
  it enters neither the EMA nor the optimiser's memory in the same step; every number.
- *our derivation*: the unbiased `central` estimate, the virtual batch, and the stability bound 2/(lr(1+σ²)) with its
  momentum form. That the bound is what limits the Hessian's eigenvalue is our explanation, not known to be the paper's.
- *our extension*: the gain κ of each modality, by number or by rule (`even`, `inverse`).

c is the batch gradient's variance (`central`), its second moment (`second`, noise follows gradient size) or its squared
mean (`first`, the most literal wording and a weak choice: where the sign flips, the noise dies). σ comes from a virtual
batch of b rows, σ² = ρ(B/b - 1), or is fixed, or relative to the gradient, or a temperature (`langevin`); `sigma`
multiplies in all four. Never trust `second` with a virtual batch: v̂ holds the squared mean gradient too, and the total
came out up to 230 times too large. The clip is on the whole vector: a bias at zero could never leave it by a share
of its own norm; without one, self-excitation diverges. Noise ends before the run does: what is switched on in the last
part of a run (`rest`) waits in vain. Compare with the isotropic control before believing in the anisotropy.

*Acts at*: update, commit.

*Remembers*: the EMA of g and of g², (P,) each, and the sums of their weights; gradients seen, steps clipped, gradients
that were not finite; with `through_grad`, the noise's own momentum buffer (P,).

*Composes with*: any optimiser; noise is in gradient units, so beside Adam's normalised step it is small (see
`noise_to_update`). Whatever raises gradient variance, such as noise on features, raises c: lower `sigma` then. The EMA
sees the gradient after all other methods, before weight decay. Adding it with `isotropic_noise` adds both noises.

*Source*: Y. Wu and H. Liu, "Curvature-guided anisotropic noise injection for robust multimodal data processing in
neuroscience and perception science", Frontiers, 2026 (abstract). The virtual batch follows Wen et al.,
arXiv 1902.08234, with the diagonal Fisher estimated from successive gradients rather than samples; nearest in wording
is ASGLD, arXiv 1906.04324. Unlike both, the noise here is decoupled by default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.layout import Layout
from engine.maths import anisotropic_noise as maths
from engine.maths.angles import cosine
from engine.method import Method
from engine.records import Bars, Record, Scalar
from engine.stability import stability_bound
from engine.step import View


def anisotropic(power: Tensor, layout: Layout) -> Tensor:
    """Return the standard deviation of each coordinate (P,) for a power (P,), which is overwritten: its root."""
    return power.sqrt_()


def expected_cosine(sigma: float) -> float:
    """Return cos(update, -g) = 1/√(1+σ²), which holds in many dimensions where c ≈ g² and the descent is plain."""
    return 1.0 / math.sqrt(1.0 + sigma**2)


_PANELS = {
    "ratio": {
        "panel": "Noise beside the gradient",
        "place": 1,
        "note": "Noise goes with each part's own gradients: a part with small gradients gets little.",
    },
    "share": {"panel": "Where the noise goes", "place": 3, "y": "share of noise power"},
    "layers": {
        "panel": "Noise in one step, by tensor",
        "place": 4,
        "y": "standard deviation",
        "ylog": True,
        "tall": True,
    },
    "bound": {
        "panel": "Largest stable curvature",
        "place": 5,
        "ylog": True,
        "y": "λ",
        "note": "Noise that grows with the curvature lowers it: sharper minima throw the run out.",
    },
    "shape": {"panel": "How uneven the noise is", "place": 6, "ylog": True, "note": "Isotropic noise is at 1 and 1 %."},
    "sigma": {"panel": "Noise strength σ", "place": 7},
}
_TURN = {"panel": "Does the step still follow the gradient?", "place": 2, "y": "cosine"}
_NOISY, _PLAIN = {"label": "with the noise"}, {"label": "without", "role": "limit"}


class Gani(Method):
    """Anisotropic exploration after the descent."""

    name = "gani"
    title = "GANI"
    neutral = {"sigma": 0.0}
    shown_by = ("escape",)
    reconstructed = True

    class Params(maths.Dose):
        """Shape, size and schedule of the noise."""

    def __init__(self, params: Params | None = None, state: dict[str, Any] | None = None) -> None:
        super().__init__(params, state)
        self._explored = maths.Explorer(self.name, anisotropic)

    def init(self, view: View) -> dict[str, Any]:
        """Return empty averages, after a look at whether the gains suit the problem."""
        maths.suits(self.params.kappa, view.problem.layout)
        return maths.fresh(view.theta)

    def idle(self, view: View) -> str:
        """Return why there is no noise: as for every method, or what sets its size comes to nothing."""
        reason = maths.stillness(self.name, self.params, self.state["seen"], len(view.batch), view)
        return super().idle(view) or (reason and f"{self.title} adds no noise: {reason}.")

    def update(self, update: Tensor, view: View) -> Tensor:
        """Return the update (P,) with the exploration step added."""
        step, _ = self._explored(self.params, self.state, view)
        return update if step is None else update + step

    def commit(self, view: View) -> dict[str, Any]:
        """Return the averages with this step's gradient in them."""
        return self._explored(self.params, self.state, view)[1]

    def report(self, view: View) -> Iterator[Record]:
        """Yield size, shape and direction of the noise of this step, and the stability lines."""
        p, seen, rate = self.params, self.state["seen"], view.rate
        sigma = maths.strength(p, seen, view.step, len(view.batch), rate)
        resting = maths.annealed(p.anneal, view.step, rate.horizon, p.rest) == 0.0
        how = f"{p.mode}, {p.sizing}" + ("; none any more, so that the run settles" if resting else "")
        yield Scalar("gani/sigma", sigma, n=seen, mode=how, draw=_PANELS["sigma"])
        yield Scalar("gani/clipped", float(self.state["clipped"]), n=seen, mode="steps clipped since switched on")
        yield Scalar("gani/nonfinite", float(self.state["nonfinite"]), n=seen, mode="gradients left out")
        yield Scalar(
            "gani/alignment",
            float(cosine(view.moved, -view.grad)),
            mode="cos(step taken, -gradient)",
            draw=_TURN | {"label": "taken"},
        )
        power = maths.weighed(p, self.state, view.problem.layout) if sigma > 0 else None
        gains = {} if power is None else self._gains(view)
        if rate.optimizer == "sgd" and not rate.nesterov and rate.lr > 0:
            yield from self._lines(sigma * max(gains.values(), default=1.0), view)
        if power is None:
            return
        if p.kappa != "1":
            for part, gain in gains.items():
                yield Scalar(f"gani/kappa/{part}", gain, n=seen, mode=p.kappa, draw={"title": "Gain κ on the noise"})
        yield from self._noise(sigma, power, view)

    def _gains(self, view: View) -> dict[str, float]:
        """Return part to gain, for every part."""
        layout, p = view.problem.layout, self.params
        plain = maths.curvature(self.state, p.mode) + p.eps
        return dict.fromkeys(layout.slices, 1.0) | {
            part: float(gain) for part, gain in maths.gains(p.kappa, self.state["square"], plain, layout).items()
        }

    def _lines(self, sigma: float, view: View) -> Iterator[Record]:
        rate, p = view.rate, self.params
        edge = {"lr": rate.lr, "momentum": rate.momentum, "sigma": sigma, "placement": p.placement}
        how = "closed loop of second, diagonal Hessian; σ²·Σu⁴ for σ² where the top eigenvector u is spread"
        draw = _PANELS["bound"]
        yield Scalar("gani/lambda_bound", stability_bound(**edge), mode=how, draw=draw | _NOISY | {"edge": edge})
        plain = stability_bound(rate.lr, 0.0, rate.momentum)
        yield Scalar("gani/lambda_edge", plain, mode="2(1+μ)/lr", draw=draw | _PLAIN)
        even = p.kappa == "1" and p.exclude == "none"
        if p.mode == "second" and p.sizing != "relative" and rate.momentum == 0 and even:
            draw = _TURN | {"label": "expected", "role": "expected"}
            yield Scalar("gani/alignment_expected", expected_cosine(sigma), mode="1/√(1+σ²), where v̂ ≈ g²", draw=draw)

    def _noise(self, sigma: float, power: Tensor, view: View) -> Iterator[Record]:
        p, lr, layout = self.params, view.rate.lr, view.problem.layout
        xi = view.rng.normal("gani", view.step, view.grad)
        noise, _ = maths.kick(p, sigma, power.sqrt(), xi, view.grad, view.theta, lr)
        tiny = torch.finfo(noise.dtype).tiny
        ratios = layout.norms(noise) / layout.norms(view.grad).clamp(min=tiny)
        shape = torch.stack([*maths.anisotropy(power), lr * noise.norm() / view.moved.norm().clamp(min=tiny)])
        shares = torch.stack([part.sum() for part in layout.split(power).values()]) / power.sum().clamp(min=tiny)
        layers = lr * sigma * torch.stack([block.mean() for block in layout.blocks(power).values()]).sqrt()
        ratios, shape, shares, layers = (part.tolist() for part in (ratios, shape, shares, layers))
        for part, value in zip(layout.slices, ratios, strict=True):
            how = "‖noise‖/‖gradient‖ of this step"
            yield Scalar(f"gani/noise_to_gradient/{part}", value, n=1, mode=how, draw=_PANELS["ratio"])
        yield Scalar("gani/noise_to_update", shape[2], n=1, mode="‖noise step‖/‖step taken‖")
        how = "(Σc)²/(P·Σc²); 1 is isotropic"
        draw = _PANELS["shape"]
        yield Scalar("gani/participation", shape[0], mode=how, draw=draw | {"label": "participation ratio"})
        how = "noise power in the top 1 % of coordinates"
        yield Scalar("gani/top_share", shape[1], mode=how, draw=draw | {"label": "share of the top 1 %"})
        parts, how = np.array(list(layout.slices)), "share of noise power"
        yield Bars("gani/noise_share", parts, np.array(shares), mode=how, draw=_PANELS["share"])
        yield Bars(
            "gani/noise_std",
            np.array(list(layout.shapes)),
            np.array(layers),
            mode="root mean square over a tensor, before the clip",
            draw=_PANELS["layers"],
        )
