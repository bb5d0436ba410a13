"""OGM-GE: the encoder of the modality that leads learns more slowly, with Gaussian noise to keep it general.

With s_m the batch sum of the true class's probability under modality m alone, the lead is ρ_m = s_m / min of the other
scores, and the gradients of encoder m are scaled by k_m = 1 - tanh(αρ_m) where ρ_m > 1, else left as they are. At
ρ = 1 the factor therefore jumps from 1 to 1 - tanh(α).

Scores come from the logits of a modality's head or slice where the network has them. Without, all other features are
set to zero and the fused logits taken, without gradient; the fused bias then counts whole, not in shares of 1/M.

*Acts at*: gradients.

*Remembers*: nothing.

*Composes with*: every `fuse`; rows `reg/…` are left alone. Adam and RMSprop largely cancel a constant damping of an
encoder, since they divide by the gradient's size: use SGD. FANoise and ModDrop change the features that the scores see.

*Source*: Peng et al., CVPR 2022, arXiv 2203.15332, and the authors' code. We differ: all parameters of an encoder are
modulated unless `layers` is `convolutions` (the code's choice: 4-D weights); a modality's own head never is; the window
is in steps, not epochs; three modalities or more divide by the smallest other score, as ports of the code do. GE noise
has the standard deviation of each unmodulated tensor, as in the code, and is added to the first, the fused, row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modalscape.engine.core.display import Display
from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.needs import FUSED
from modalscape.engine.core.records import Record, Scalar
from modalscape.engine.core.step import View
from modalscape.engine.maths.modalities import unimodal
from modalscape.engine.maths.modalities.unimodal import confidence, leads, places


def coefficient(lead: Tensor, alpha: float) -> Tensor:
    """Return k = 1 - tanh(αρ) for ρ > 1, else 1; elementwise."""
    return torch.where(lead > 1, 1 - torch.tanh(alpha * lead), torch.ones_like(lead))


def alone(view: View) -> dict[str, Tensor]:
    """Return modality to the logits (B, C) that it gives by itself, without graph."""
    problem = view.problem
    fused = unimodal.fused_by(problem.objectives, view.theta, view.batch)
    return unimodal.alone(problem.modalities, view.logits, view.features, fused)


def ratios(view: View) -> dict[str, Tensor]:
    """Return ρ_m of each modality (0-d) for the view's logits or features."""
    return leads({name: confidence(logits, view.batch.y) for name, logits in alone(view).items()})


class OgmGe(Method):
    """On-the-fly gradient modulation with generalisation enhancement."""

    name = "ogm_ge"
    title = "OGM-GE"
    needs = (FUSED,)
    modalities = (2, None)
    neutral = {"alpha": 0.0, "ge": False}
    rescaled = "It divides each gradient by its running size, which largely cancels a lasting damping: use sgd."

    @dataclass(frozen=True)
    class Params:
        """How hard and when the leading modality is held back."""

        alpha: float = knob(0.1, 0.0, 2.0, "Strength of the modulation; 0 leaves all gradients as they are.")
        ge: bool = knob(True, help="Add Gaussian noise of each tensor's gradient size to the encoders' gradients.")
        layers: str = knob("all", help="Which encoder tensors are modulated.", choices=("all", "convolutions"))
        start: int = knob(0, 0, 10_000_000, "First step of modulation.")
        stop: int = knob(0, 0, 10_000_000, "Step at which modulation ends; 0 for never.")

    def init(self, view: View) -> dict[str, Any]:
        """Return no state, after a look at whether modalities can be compared.

        Raises:
            InputError: the problem has no classes, or one modality.
        """
        problem, few = view.problem, view.batch.rows(slice(0, 2))
        with torch.no_grad():
            _, logits = problem.objectives(view.theta, problem.encode(view.theta, few), few)
        unimodal.comparable(self.title, problem.modalities, few.y, logits)
        return {}

    def idle(self, view: View) -> str:
        """Return why nothing is modulated: as for every method, or no encoder has what `layers` asks for."""
        problem, convolutions = view.problem, self.params.layers == "convolutions"
        if any(places(problem.layout, name, convolutions) for name in problem.modalities):
            return super().idle(view)
        return "OGM-GE modulates convolutions alone, and no encoder has one; set ogm_ge.layers to all."

    def gradients(self, grads: Tensor, view: View) -> Tensor:
        """Return the rows (K, P) with the leading encoders' slices scaled and noise in the first row."""
        p = self.params
        if (p.alpha == 0.0 and not p.ge) or view.step < p.start or 0 < p.stop <= view.step:
            return grads
        count = sum(not name.startswith("reg/") for name in view.losses)
        own = {name: places(view.problem.layout, name, p.layers == "convolutions") for name in view.problem.modalities}
        modulated = grads.clone()
        for name, lead in ratios(view).items():
            if own[name]:
                factor = coefficient(lead, p.alpha).to(grads.dtype)
                torch._foreach_mul_([modulated[:count, where] for where in own[name]], factor)
        if p.ge and any(own.values()):
            total = grads[:count].sum(0)
            pieces = [where for found in own.values() for where in found if where.stop - where.start > 1]
            noise = view.rng.normal("ogm_ge", view.step, total)
            sizes = torch.stack([total[where].std() for where in pieces]).unbind()
            noise = torch._foreach_mul([noise[where] for where in pieces], sizes)
            torch._foreach_add_([modulated[0, where] for where in pieces], noise)
        return modulated

    def report(self, view: View) -> Iterator[Record]:
        """Yield the lead and the coefficient of each modality."""
        for name, lead in ratios(view).items():
            factor = float(coefficient(lead, self.params.alpha))
            n, how = len(view.batch), "score / smallest other score"
            display = Display(panel="Lead ρ", place=1, ylog=True, levels={"balance": 1.0})
            yield Scalar(f"ogm_ge/lead/{name}", float(lead), n=n, mode=how, display=display)
            how = "factor on encoder gradients; below 1 for a leader alone"
            display = Display(panel="Factor k on the encoder's gradients", place=2)
            yield Scalar(f"ogm_ge/coefficient/{name}", factor, n=n, mode=how, display=display)
