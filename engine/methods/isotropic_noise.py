"""The control for anisotropic noise: as much power, from the same curvature estimate, spread evenly.

`matched` (the default): each step's noise has exactly the norm that GANI's would have in the same state, from the draws
that GANI would make, and an isotropic direction. `all`, `tensor`: every coordinate has the standard deviation
lr·σ·√(mean of c + ε) over all coordinates or within its tensor, so the trace of the covariance equals GANI's for the
same gradients and knobs. Whatever this control achieves is owed to noise as such, not to its shape.

Equal knobs are not equal power: each run sizes its noise by its own gradients, and shaped noise, which moves along
sharp directions, raises them. Compare the root mean square of the updates too.

*Acts at*: update, commit.

*Remembers*: what GANI remembers: the moving averages of g and g², (P,) each, their weights, and three counters; with
`through_grad`, the noise's own momentum buffer (P,).

*Composes with*: anything that GANI composes with. Run it in an arm of its own; beside GANI both noises are added.

*Source*: the equal-trace control of Zhu et al., arXiv 1803.00195, whose standard deviation is √(trace/P) of the
mini-batch covariance. Here the covariance is the moving-average estimate that GANI uses, not a fresh one from samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.records import Record, Scalar
from modalscape.engine.core.step import View
from modalscape.engine.maths.gradients import noise_injection as maths
from modalscape.engine.maths.gradients.noise_dose import Dose, stillness, strength, suits

SHAPED = "gani"
"""Key of the draws of the noise whose norm is matched: those that GANI itself would make."""


class IsotropicNoise(Method):
    """Noise of GANI's power without its shape."""

    name = "isotropic_noise"
    title = "Isotropic noise (control)"
    neutral = {"sigma": 0.0}
    shown_by = ("escape",)

    @dataclass(frozen=True)
    class Params(Dose):
        """The knobs of GANI, and how the power is made even."""

        level: str = knob(
            "matched",
            help="What is equal to GANI's: the norm of each step's noise, or the expected power, spread evenly over "
            "all coordinates or within each tensor.",
            choices=("matched", "all", "tensor"),
        )

    def __init__(self, params: Params | None = None, state: dict[str, Any] | None = None) -> None:
        super().__init__(params, state)
        self._explored = maths.Explorer(self._even)

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
        """Return the update (P,) with the noise added."""
        step, _ = self._explored(self.params, self.state, view)
        return update if step is None else update + step

    def commit(self, view: View) -> dict[str, Any]:
        """Return the averages with this step's gradient in them."""
        return maths.remembered(self.params, self._explored(self.params, self.state, view)[1], view)

    def report(self, view: View) -> Iterator[Record]:
        """Yield the strength σ, the noise's expected size beside the gradient's, and the counters."""
        p, seen = self.params, int(self.state["seen"])
        sigma = strength(p, seen, view.step, len(view.batch), view.rate)
        display = Display(panel="Noise strength σ", place=2)
        yield Scalar("isotropic_noise/sigma", sigma, n=seen, mode=f"{p.mode}, {p.sizing}", display=display)
        yield Scalar("isotropic_noise/clipped", float(self.state["clipped"]), n=seen, mode="steps clipped")
        yield Scalar("isotropic_noise/nonfinite", float(self.state["nonfinite"]), n=seen, mode="gradients left out")
        if sigma > 0 and p.sizing != "relative":
            power = maths.weighed(p, self.state, view.problem.layout).sum()
            ratio = sigma * float(power.sqrt() / view.grad.norm())
            display = Display(panel="Noise beside the gradient", place=1)
            yield Scalar("isotropic_noise/noise_to_gradient", ratio, mode="expected, before the clip", display=display)

    def _even(self, dose: Params, memory: dict[str, Any], at: View) -> Tensor:
        """Return noise (P,) at strength 1 of even power: of the norm that GANI's would have, or of as much power."""
        xi, layout = at.rng.normal(self.name, at.step, at.grad), at.problem.layout
        if dose.level == "matched":
            return xi * (maths.shaped(dose, memory, at, SHAPED).norm() / xi.norm())
        power = maths.weighed(dose, memory, layout)
        return maths.uniform(power, layout.sizes if dose.level == "tensor" else None).sqrt() * xi
