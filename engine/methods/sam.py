"""Sharpness-aware minimisation: the gradient is taken where the loss is highest within a small ball around theta.

*Acts at*: around.

*Remembers*: nothing.

*Composes with*: everything. Both passes run all methods of the inner points, with the same draws, since draws are keyed
by step; the ascent follows the gradient that training would descend, after `gradients` and `fuse`. The gradient rows in
the view are those of the second pass, losses and features those at theta itself. A step costs two passes.

*Source*: SAM, Foret et al., arXiv 2010.01412, equations 2 and 3; `adaptive` is ASAM, Kwon et al., arXiv 2102.11600,
equation 6 with T = |theta| + 0.01 for all parameters, biases included. The ball is around all parameters together,
where some implementations perturb each device's shard or leave out norm layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.records import Record, Scalar
from modalscape.engine.core.step import View


def ascent(grad: Tensor, theta: Tensor, rho: float, adaptive: bool) -> Tensor:
    """Return the offset (P,) of length rho along the gradient (P,): ρg/‖g‖, or ρT²g/‖Tg‖ with T = |theta| + 0.01.

    Zero where the gradient is.

    >>> ascent(torch.tensor([3.0, 4.0]), torch.zeros(2), 0.5, False)
    tensor([0.3000, 0.4000])
    """
    scale = theta.abs() + 0.01 if adaptive else torch.ones_like(theta)
    scaled = scale * grad
    return rho * scale * scaled / scaled.norm().clamp(min=torch.finfo(grad.dtype).tiny)


class Sam(Method):
    """Descent along the gradient at the worst nearby point."""

    name = "sam"
    title = "SAM"
    neutral = {"rho": 0.0}

    @dataclass(frozen=True)
    class Params:
        """Size and shape of the ball."""

        rho: float = knob(0.05, 0.0, 5.0, "Radius of the ball; 0 is off.")
        adaptive: bool = knob(False, help="ASAM: radius in units of each parameter's size; wants a rho of 0.5 to 2.")

    def around(self, gradient: Callable[[Tensor], View], view: View) -> Callable[[Tensor], View]:
        """Return the function that maps theta to its view, with the gradient rows of the perturbed theta."""
        rho, adaptive = self.params.rho, self.params.adaptive
        if rho == 0.0:
            return gradient

        def sharp(theta: Tensor) -> View:
            here = gradient(theta)
            there = gradient(theta.detach() + ascent(here.grad.detach(), theta.detach(), rho, adaptive))
            seen = {"theta": here.theta, "clean_features": here.clean_features, "features": here.features}
            return there.having(**seen, logits=here.logits, losses=here.losses)

        return sharp

    def report(self, view: View) -> Iterator[Record]:
        """Yield the rise of the batch loss over one ascent along the gradient that was used."""
        with torch.no_grad():
            offset = ascent(view.grad, view.theta, self.params.rho, self.params.adaptive)
            here, there = (view.problem.loss(point, view.batch) for point in (view.theta, view.theta + offset))
            values = torch.stack([there - here, offset.norm() / view.theta.norm()]).tolist()
        how = "loss rise over one ascent, no method active"
        display = Display(panel="Rise of the loss within the ball", place=1, levels={"": 0.0})
        yield Scalar("sam/sharpness", values[0], n=len(view.batch), mode=how, display=display)
        yield Scalar("sam/relative_radius", values[1], mode="‖offset‖/‖theta‖")
