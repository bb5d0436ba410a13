"""AGM: each modality's share of the fused logits gets its gradient scaled by how its lead differs from its usual one.

The mono-modal responses φ_m are Shapley shares of the fused logits F over the modalities' inputs, with F(none) = 0; for
two φ_a = ½[F(a,v) - F(0,v) + F(a,0)]. They sum to F(all) for any fusion. With s_m the batch mean of -log softmax(φ_m)_y
(probabilities not below 1e-8),

    r_m = exp(Σ_{j≠m} (s_j - s_m)/(M-1)),   τ_m the same of the means of s over all steps before,
    κ_m = exp(α·min(τ_m - r_m, 10)),

and the gradient of the fused loss that enters φ_m is multiplied by κ_m: a modality that leads by more than it used to
is slowed, one that falls behind is sped up. Where an entry of the head's gradient exceeds 1, the whole gradient is cut
to norm `clip`, as in the authors' code.

*Acts at*: gradients, commit.

*Remembers*: the mean score of each modality, the steps behind it, and the last step's numbers for the report.

*Composes with*: every `fuse`. Only the fused row is modulated (with `route` encoders, every row on an encoder); rows
`reg/…` are left alone. What other methods did to the fused row stays: the change is added. A batch in pieces is encoded
once more, and feature noise then counts as added, dropped features as cut off. Adam and RMSprop largely cancel a
lasting κ: use SGD.

*Source*: Li et al., ICCV 2023, arXiv 2308.07686, and the authors' code. We differ: before the first step τ = 1; the
window is in steps, not epochs; inputs are put at zero by their one row of features, so encoders whose rows see each
other are only approximated; above five modalities (31 sets) it is refused.
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
from modalscape.engine.errors import InputError
from modalscape.engine.maths.modalities.unimodal import comparable, fused_by, places, ratio, responses, score

_MOST = 5
_ROWS = {
    "score": "cross-entropy of the response, nats",
    "ratio": "r, lead over the other modalities; 1 is balance",
    "usual": "τ, r of the mean scores of all steps before",
    "coefficient": "κ, factor on the gradient that enters the response",
}
_PANELS = {
    "coefficient": Display(panel="Factor κ on each response's gradient", place=1, ylog=True, levels={"": 1.0}),
    "ratio": Display(panel="Lead r beside the usual one", place=2, ylog=True, label="now"),
    "usual": Display(panel="Lead r beside the usual one", place=2, label="usual", role="expected"),
    "score": Display(panel="Cross-entropy of each response", place=3, y="nats"),
}


def coefficient(usual: Tensor, now: Tensor, alpha: float) -> Tensor:
    """Return κ = exp(α·min(τ - r, 10)); elementwise."""
    return (alpha * (usual - now).clamp(max=10)).exp()


def cut(rows: Tensor, head: slice | None, norm: float) -> Tensor:
    """Return rows (K, P), scaled to a sum of at most `norm` where an entry of the sum's head exceeds 1; 0 is never."""
    if norm == 0.0 or head is None:
        return rows
    total = rows.sum(0)
    size = total.norm().clamp(min=torch.finfo(total.dtype).tiny)
    factor = torch.where(total[head].abs().max() > 1, (norm / size).clamp(max=1), torch.ones_like(size))
    return rows * factor


def shares(view: View, absent: str) -> dict[str, Tensor]:
    """Return modality to its response (B, C) where absent `inputs` or `features` are zero.

    With a graph where the view's features have one.
    """
    problem = view.problem
    if absent == "features":
        without = {name: torch.zeros_like(h[:1]) for name, h in view.features.items()}
    else:
        one = view.batch.rows(slice(0, 1))
        for name in problem.modalities:
            one = problem.without(one, name)
        without = problem.encode(view.theta, one)
    return responses(view.features, without, fused_by(problem.objectives, view.theta, view.batch))


@torch.no_grad()
def measured(view: View, mean: Tensor, params: Agm.Params) -> Tensor:
    """Return scores, ratios, usual ratios (of mean scores (M,)) and coefficients of the modalities, (4, M)."""
    scores = torch.stack([score(r, view.batch.y) for r in shares(view, params.absent).values()])
    now, usual = ratio(scores), ratio(mean)
    return torch.stack([scores, now, usual, coefficient(usual, now, params.alpha)])


class Agm(Method):
    """Adaptive gradient modulation."""

    name = "agm"
    title = "AGM"
    needs = (FUSED,)
    modalities = (2, _MOST)
    after = ("modalimmune",)
    neutral = {"alpha": 0.0, "clip": 0.0}
    rescaled = "It divides each gradient by its running size, which largely cancels a lasting κ: use sgd."

    @dataclass(frozen=True)
    class Params:
        """How hard, where and when gradients are modulated."""

        alpha: float = knob(1.0, 0.0, 5.0, "Strength of the modulation; 0 leaves all shares as they are.")
        absent: str = knob("inputs", help="What is zero where a modality is out.", choices=("inputs", "features"))
        route: str = knob(
            "responses",
            help="Scale what enters each response, or the modality's encoder as ports do.",
            choices=("responses", "encoders"),
        )
        clip: float = knob(1.0, 0.0, 100.0, "Norm of the gradient where an entry of the head's exceeds 1; 0 for never.")
        start: int = knob(0, 0, 10_000_000, "First step of modulation.")
        stop: int = knob(0, 0, 10_000_000, "Step at which modulation ends; 0 for never.")

    def init(self, view: View) -> dict[str, Any]:
        """Return scores before any step.

        Raises:
            InputError: the problem has no classes, one modality, or more than five.
        """
        problem, few = view.problem, view.batch.rows(slice(0, 2))
        with torch.no_grad():
            _, logits = problem.objectives(view.theta, problem.encode(view.theta, few), few)
        comparable(self.title, problem.modalities, few.y, logits)
        count = len(problem.modalities)
        if count > _MOST:
            sets = 2**count - 1
            raise InputError(
                f"AGM would need {sets} passes for {count} modalities; use ogm_ge, or at most {_MOST} modalities."
            )
        return {"mean": view.theta.new_zeros(count), "steps": 0, "last": view.theta.new_zeros(len(_ROWS), count)}

    def gradients(self, grads: Tensor, view: View) -> Tensor:
        """Return the rows (K, P) with each response's part of the fused row scaled, and all cut where steep."""
        p = self.params
        if (p.alpha == 0.0 and p.clip == 0.0) or view.step < p.start or 0 < p.stop <= view.step:
            return grads
        count = sum(not name.startswith("reg/") for name in view.losses)
        layout, changed = view.problem.layout, grads.clone()
        if p.alpha > 0.0:
            factors = measured(view, self.state["mean"], p)[3]
            if p.route == "encoders":
                for name, factor in zip(view.problem.modalities, factors, strict=True):
                    for where in places(layout, name):
                        changed[:count, where] *= factor
            else:
                changed[list(view.losses).index("fused")] += self._change(factors, view)
        changed[:count] = cut(changed[:count], layout.slices.get("shared"), p.clip)
        return changed

    def commit(self, view: View) -> dict[str, Any]:
        """Return the mean scores with this step's in them."""
        last, steps = measured(view, self.state["mean"], self.params), self.state["steps"] + 1
        return {"mean": self.state["mean"] + (last[0] - self.state["mean"]) / steps, "steps": steps, "last": last}

    def report(self, view: View) -> Iterator[Record]:
        """Yield score, ratio, usual ratio and coefficient of each modality at the last step."""
        for (what, mode), values in zip(_ROWS.items(), self.state["last"].tolist(), strict=True):
            for name, value in zip(view.problem.modalities, values, strict=True):
                yield Scalar(f"agm/{what}/{name}", value, n=len(view.batch), mode=mode, display=_PANELS[what])

    def _change(self, factors: Tensor, view: View) -> Tensor:
        """Return Σ_m (κ_m - 1) ∇⟨∂L/∂F, φ_m⟩ (P,), what the factors (M,) add to the fused row."""
        change = torch.zeros_like(view.theta)
        for share, piece in _pieces(view):
            slope = torch.autograd.grad(piece.losses["fused"], piece.logits["fused"], retain_graph=True)[0]
            parts = shares(piece, self.params.absent).values()
            inner = sum((k - 1) * (slope * part).sum() for k, part in zip(factors, parts, strict=True))
            change += share * torch.autograd.grad(inner, piece.theta, retain_graph=True)[0]
        return change


def _pieces(view: View) -> Iterator[tuple[float, View]]:
    """Yield (share of the rows, view with a graph): the view itself, or the batch encoded anew where it has none."""
    if all(h.requires_grad for h in view.features.values()):
        yield 1.0, view
        return
    theta, problem, start = view.theta.detach().requires_grad_(), view.problem, 0
    for piece in view.batch.chunks(problem.micro):
        here = slice(start, start + len(piece))
        start = here.stop
        encoded = problem.encode(theta, piece)
        features = {}
        for name, value in view.features.items():
            kept = (value[here] != 0) | (view.clean_features[name][here] == 0)
            features[name] = value[here] + kept * (encoded[name] - encoded[name].detach())
        losses, logits = problem.objectives(theta, features, piece)
        yield (
            len(piece) / len(view.batch),
            view.having(theta=theta, batch=piece, features=features, losses=losses, logits=logits),
        )
