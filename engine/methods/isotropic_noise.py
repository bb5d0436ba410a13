"""The control for anisotropic noise: as much power, from the same curvature estimate, spread evenly.

Every coordinate gets the standard deviation lr·σ·√(mean of c + ε), so the trace of the noise covariance equals GANI's
for the same gradients and knobs. Whatever this control achieves is owed to noise as such, not to its shape; the power
can be levelled over all coordinates, or within each parameter tensor, which keeps the layers' scales.

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
from operator import is_
from typing import Any

from torch import Tensor

from engine.maths import anisotropic_noise as maths
from engine.method import Method, knob
from engine.records import Record, Scalar
from engine.step import View


class IsotropicNoise(Method):
    """Noise of GANI's power without its shape."""

    name = "isotropic_noise"
    title = "Isotropic noise (control)"
    neutral = {"sigma": 0.0}

    @dataclass(frozen=True)
    class Params(maths.Dose):
        """The knobs of GANI, and over what the power is levelled."""

        level: str = knob("all", help="Over what the power is levelled.", choices=("all", "tensor"))

    _known: tuple | None = None

    def init(self, view: View) -> dict[str, Any]:
        """Return empty averages."""
        return maths.fresh(view.theta)

    def update(self, update: Tensor, view: View) -> Tensor:
        """Return the update (P,) with the noise added."""
        step, _ = self._explored(view)
        return update if step is None else update + step

    def commit(self, view: View) -> dict[str, Any]:
        """Return the averages with this step's gradient in them."""
        return self._explored(view)[1]

    def report(self, view: View) -> Iterator[Record]:
        """Yield the strength σ, the noise's expected size beside the gradient's, and the clip counter."""
        p, seen = self.params, self.state["seen"]
        sigma = maths.strength(p, seen, view.step, len(view.batch), view.rate.lr)
        yield Scalar("isotropic_noise/sigma", sigma, n=seen, mode=f"{p.mode}, {p.sizing}")
        yield Scalar("isotropic_noise/clipped", float(self.state["clipped"]), n=seen, mode="steps clipped")
        if sigma > 0 and p.sizing != "relative":
            power = (maths.curvature(self.state, p.mode) + p.eps).sum()
            ratio = sigma * float(power.sqrt() / view.grad.norm())
            yield Scalar("isotropic_noise/noise_to_gradient", ratio, mode="expected, before the clip")

    def _explored(self, view: View) -> tuple[Tensor | None, dict[str, Any]]:
        # commit asks again for what update asked, so the last answer is kept with what it was computed from
        asked = (self.state, view.grad, view.theta, view.batch, view.rate, view.rng, view.step)
        if self._known is None or not all(map(is_, self._known[0], asked)):
            self._known = (asked, self._computed(view))
        return self._known[1]

    def _computed(self, view: View) -> tuple[Tensor | None, dict[str, Any]]:
        sizes = view.problem.layout.sizes if self.params.level == "tensor" else None
        batch, draw = len(view.batch), lambda: view.rng.normal("isotropic_noise", view.step, view.grad)
        return maths.explore(
            self.params,
            self.state,
            view.step,
            batch,
            view.grad,
            view.theta,
            view.rate,
            lambda power: maths.uniform(power, sizes),
            draw,
        )
