"""GANI: noise shaped like the curvature, added after the descent, so that a large batch explores as a small one does.

A reconstruction. Only the abstract of the paper is public, so:

- *the paper's*: an exponential moving average (EMA) of first-order gradients approximates curvature; structured
  anisotropic noise shaped by it is injected during the parameter update, apart from the deterministic descent; linear
  cost.
- *our reading*: the noise is Σ_j w_j d_j with w normal, and d_j the deviations of the gradients of the last K steps
  (`history`, closest to the words), or half the differences between the halves of their batches (`halves`); θ gains
  lr·σ times it. Decoupled means that it enters neither the EMA nor the optimiser's memory in the same step. Every
  number is ours as well.
- *former readings*, kept: a diagonal, lr·σ·√(c + ε)⊙ξ with ξ ~ N(0, I), where c is the batch gradient's variance
  (`central`), its second moment (`second`, noise follows gradient size) or its squared mean (`first`, the most literal
  wording and a weak choice: where the sign flips, the noise dies). A diagonal is nearly isotropic beside the Hessian.
- *our derivation*: the scale of halves, the unbiased `central` estimate, the virtual batch, and the stability bound
  2/(lr(1+q)) with its momentum form, q the noise's power along a direction over the gradient's. That the bound is what
  limits the Hessian's eigenvalue is our explanation, not known to be the paper's.
- *our extension*: the gain κ of each modality, by number or by rule (`even`, `inverse`); noise in units of the update.

`halves` costs half a backward pass more, and none where the batch is accumulated in pieces; its covariance is that of
the batch's gradient, whatever moved between the steps. `history` costs no pass, and excites itself: noise along sharp
directions moves the gradients whose variance sizes it. Both keep K vectors as large as the parameters.

σ comes from a virtual batch of b rows, σ² = ρ(B/b - 1), or is fixed, or relative to the gradient, or a temperature
(`langevin`); `sigma` multiplies in all four. With halves and ρ = 1 the step has the noise of batches of b rows, and the
stability bound of their descent. Never trust `second` with a virtual batch: v̂ holds the squared mean gradient too, and
the total came out up to 230 times too large. The clip is on the whole vector: a bias at zero could never leave it by a
share of its own norm; without one, self-excitation diverges. Noise ends before the run does: what is switched on in the
last part of a run (`rest`) waits in vain. Compare with the isotropic control before believing in the anisotropy.

*Acts at*: update, commit.

*Remembers*: the EMA of g and of g², (P,) each, and the sums of their weights; gradients seen, steps clipped, gradients
that were not finite; with vectors, the ring (K, P); with `through_grad`, the noise's own momentum buffer (P,).

*Composes with*: any optimiser; noise is in gradient units, so beside Adam's normalised step it is small (see
`noise_to_update`) unless `units` is `update`. Whatever raises gradient variance, such as noise on features, raises the
noise: lower `sigma` then. The gradients are those after all other methods, before weight decay. Adding it with
`isotropic_noise` adds both noises.

*Source*: Y. Wu and H. Liu, "Curvature-guided anisotropic noise injection for robust multimodal data processing in
neuroscience and perception science", Frontiers, 2026 (abstract). Mixing gradients with random weights is that of Wu et
al., arXiv 1906.07405, there of the present batch's pieces; the virtual batch follows Wen et al., arXiv 1902.08234;
nearest in wording is ASGLD, arXiv 1906.04324. Unlike all three, the noise here is decoupled by default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.method import Method
from modalscape.engine.core.records import Bars, Record, Scalar
from modalscape.engine.core.stability import stability_bound
from modalscape.engine.core.step import View
from modalscape.engine.maths.gradients import noise_injection as maths, noise_ring
from modalscape.engine.maths.gradients.angles import cosine
from modalscape.engine.maths.gradients.noise_dose import Dose, annealed, stillness, strength, suits


def expected_cosine(sigma: float) -> float:
    """Return cos(update, -g) = 1/√(1+σ²), which holds in many dimensions where c ≈ g² and the descent is plain."""
    return 1.0 / math.sqrt(1.0 + sigma**2)


_PANELS = {
    "ratio": Display(
        panel="Noise beside the gradient",
        place=1,
        note="Noise goes with each part's own gradients: a part with small gradients gets little.",
    ),
    "share": Display(panel="Where the noise goes", place=3, y="share of noise power"),
    "layers": Display(panel="Noise in one step, by tensor", place=4, y="standard deviation", ylog=True, tall=True),
    "bound": Display(
        panel="Largest stable curvature",
        place=5,
        ylog=True,
        y="λ",
        note="Noise that grows with the curvature lowers it: sharper minima throw the run out.",
    ),
    "shape": Display(panel="How uneven the noise is", place=6, ylog=True, note="Isotropic noise is at 1 and 1 %."),
    "sigma": Display(panel="Noise strength σ", place=7),
}
_TURN = Display(panel="Does the step still follow the gradient?", place=2, y="cosine")
_NOISY, _PLAIN = Display(label="with the noise"), Display(label="without", role="limit")


class Gani(Method):
    """Anisotropic exploration after the descent."""

    name = "gani"
    title = "GANI"
    neutral = {"sigma": 0.0}
    shown_by = ("escape",)
    judged = (
        "Keeps large batches out of sharp places: with a fifth of the labels wrong, λ_max fell to 29 to 40 % and "
        "accuracy on clean rows rose by 7 to 10 points on four data sets, where isotropic noise of the same length "
        "lowered λ_max by less than half as much and gained at most 2.5 points; it costs half a backward pass."
    )
    reconstructed = True
    rescaled = (
        "Its noise is measured in gradients and does not pass through the optimiser, so it vanishes beside the steps; "
        "set units to update."
    )

    class Params(Dose):
        """Shape, size and schedule of the noise."""

    def __init__(self, params: Params | None = None, state: dict[str, Any] | None = None) -> None:
        super().__init__(params, state)
        self._explored = maths.Explorer(partial(maths.shaped, name=self.name))

    @property
    def halves(self) -> bool:
        """Whether the step takes the gradient of half of its batch as well."""
        return self.params.mode == "halves" and self.params.sigma > 0.0

    def init(self, view: View) -> dict[str, Any]:
        """Return empty averages, after a look at whether the gains suit the problem."""
        suits(self.params.kappa, view.problem.layout)
        return maths.begun(self.params, view.theta)

    def idle(self, view: View) -> str:
        """Return why there is no noise: as for every method, or what sets its size comes to nothing."""
        reason = stillness(self.name, self.params, int(self.state["seen"]), len(view.batch), view)
        return super().idle(view) or (reason and f"{self.title} adds no noise: {reason}.")

    def update(self, update: Tensor, view: View) -> Tensor:
        """Return the update (P,) with the exploration step added."""
        step, _ = self._explored(self.params, self.state, view)
        return update if step is None else update + step

    def commit(self, view: View) -> dict[str, Any]:
        """Return the averages with this step's gradient in them."""
        return maths.remembered(self.params, self._explored(self.params, self.state, view)[1], view)

    def report(self, view: View) -> Iterator[Record]:
        """Yield size, shape and direction of the noise of this step, and the stability lines."""
        p, seen, rate = self.params, int(self.state["seen"]), view.rate
        sigma = strength(p, seen, view.step, len(view.batch), rate)
        resting = annealed(p.anneal, view.step, rate.horizon, p.rest) == 0.0
        how = f"{p.mode}, {p.sizing}" + ("; none any more, so that the run settles" if resting else "")
        yield Scalar("gani/sigma", sigma, n=seen, mode=how, display=_PANELS["sigma"])
        yield Scalar("gani/clipped", float(self.state["clipped"]), n=seen, mode="steps clipped since switched on")
        yield Scalar("gani/nonfinite", float(self.state["nonfinite"]), n=seen, mode="gradients left out")
        yield Scalar(
            "gani/alignment",
            float(cosine(view.applied_update, -view.grad)),
            mode="cos(step taken, -gradient)",
            display=_TURN | Display(label="taken"),
        )
        power = maths.weighed(p, self.state, view.problem.layout) if sigma > 0 else None
        gains = {} if power is None else self._gains(view)
        if rate.optimizer == "sgd" and not rate.nesterov and rate.lr > 0:
            yield from self._lines(sigma, max(gains.values(), default=1.0), view)
        if power is None:
            return
        if p.kappa != "1":
            for part, gain in gains.items():
                yield Scalar(
                    f"gani/kappa/{part}", gain, n=seen, mode=p.kappa, display=Display(title="Gain κ on the noise")
                )
        yield from self._noise(sigma, power, view)

    def _gains(self, view: View) -> dict[str, float]:
        """Return part to gain, for every part."""
        layout, p = view.problem.layout, self.params
        plain = maths.weighed(replace(p, kappa="1", exclude="none"), self.state, layout)
        return dict.fromkeys(layout.slices, 1.0) | {
            part: float(gain) for part, gain in maths.gains(p.kappa, self.state["square"], plain, layout).items()
        }

    def _lines(self, sigma: float, gain: float, view: View) -> Iterator[Record]:
        rate, p = view.rate, self.params
        how = "closed loop of second, diagonal Hessian; σ²·Σu⁴ for σ² where the top eigenvector u is spread"
        if p.mode in noise_ring.MODES:
            sigma = sigma * self._along_gradient(view)
            how = "noise of this power beside the gradient along it, as if along the top eigenvector"
        sigma *= gain
        edge = {"lr": rate.lr, "momentum": rate.momentum, "sigma": sigma, "placement": p.placement}
        told = Display(edge=edge | ({"along": "gradient"} if p.mode in noise_ring.MODES else {}))
        display = _PANELS["bound"]
        yield Scalar("gani/lambda_bound", stability_bound(**edge), mode=how, display=display | _NOISY | told)
        plain = stability_bound(rate.lr, 0.0, rate.momentum)
        yield Scalar("gani/lambda_edge", plain, mode="2(1+μ)/lr", display=display | _PLAIN)
        even = p.kappa == "1" and p.exclude == "none"
        if p.mode == "second" and p.sizing != "relative" and rate.momentum == 0 and even:
            display = _TURN | Display(label="expected", role="expected")
            yield Scalar(
                "gani/alignment_expected", expected_cosine(sigma), mode="1/√(1+σ²), where v̂ ≈ g²", display=display
            )

    def _along_gradient(self, view: View) -> float:
        """Return √(uᵀΣu)/‖g‖ at strength 1, u the gradient's direction."""
        length = view.grad.norm().clamp(min=torch.finfo(view.grad.dtype).tiny)
        along = noise_ring.along(self.state, view.grad / length, maths.trace(self.params, self.state))
        return float(along.sqrt() / length)

    def _kicked(self, sigma: float, power: Tensor, view: View) -> Tensor:
        """Return the noise of this step (P,) in gradient units; of vectors, whose ring has moved on, what was added."""
        if self.params.mode in noise_ring.MODES or self.params.units == "update":
            return (view.applied_update - view.descent) / view.rate.lr
        xi = view.rng.normal(self.name, view.step, view.grad)
        return maths.kick(self.params, sigma, power.sqrt() * xi, view)[0]

    def _noise(self, sigma: float, power: Tensor, view: View) -> Iterator[Record]:
        lr, layout = view.rate.lr, view.problem.layout
        noise = self._kicked(sigma, power, view)
        tiny = torch.finfo(noise.dtype).tiny
        ratios = layout.norms(noise) / layout.norms(view.grad).clamp(min=tiny)
        shape = torch.stack([*maths.anisotropy(power), lr * noise.norm() / view.applied_update.norm().clamp(min=tiny)])
        shares = torch.stack([part.sum() for part in layout.split(power).values()]) / power.sum().clamp(min=tiny)
        layers = lr * sigma * torch.stack([block.mean() for block in layout.blocks(power).values()]).sqrt()
        ratios, shape, shares, layers = (part.tolist() for part in (ratios, shape, shares, layers))
        for part, value in zip(layout.slices, ratios, strict=True):
            how = "‖noise‖/‖gradient‖ of this step"
            yield Scalar(f"gani/noise_to_gradient/{part}", value, n=1, mode=how, display=_PANELS["ratio"])
        yield Scalar("gani/noise_to_update", shape[2], n=1, mode="‖noise step‖/‖step taken‖")
        how = "(Σc)²/(P·Σc²); 1 is isotropic"
        display = _PANELS["shape"]
        yield Scalar("gani/participation", shape[0], mode=how, display=display | Display(label="participation ratio"))
        how = "noise power in the top 1 % of coordinates"
        yield Scalar("gani/top_share", shape[1], mode=how, display=display | Display(label="share of the top 1 %"))
        parts, how = np.array(list(layout.slices)), "share of noise power"
        yield Bars("gani/noise_share", parts, np.array(shares), mode=how, display=_PANELS["share"])
        yield Bars(
            "gani/noise_std",
            np.array(list(layout.shapes)),
            np.array(layers),
            mode="root mean square over a tensor, before the clip",
            display=_PANELS["layers"],
        )
