"""OPM: the features of the modality that leads are dropped at random, so that the fused logits lean on the others.

With s_m the batch sum of the true class's probability under modality m alone and ρ_m = s_m / min of the other scores,
a row of modality m is set to zero with probability q_m = clip(q₀(1 + α·tanh(ρ_m - 1)), 0, 1) where ρ_m > 1, else never.
At ρ = 1 the probability therefore jumps from 0 to q₀. A share `execute` of the batches is treated, the others are left
alone. The weakest modality is never dropped, so no row loses everything. With `rescale`, all features of a treated
batch are divided by 1 - Σ_m D_m q_m / Σ_m D_m, as the authors' code does.

*Acts at*: features.

*Remembers*: nothing.

*Composes with*: everything; FANoise acts before it, so that what is dropped stays dropped. Scores are those of the
batch at hand, before the drop: from a modality's head or slice where the network has them, otherwise with all other
features at zero. A modality's own head sees the dropped features as well. OGM-GE scores the features that are left, so
it holds the leader back less. In an accumulated batch each piece is scored and drawn for itself.

*Source*: Wei et al., TPAMI 2024, arXiv 2410.11582; defaults and the drop by rows as in BalanceBenchmark's port. We
differ: the window is in steps, not epochs, and three modalities or more divide by the smallest other score.
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
from modalscape.engine.maths.modalities.unimodal import alone, comparable, confidence, fused_by, leads


def probability(lead: Tensor, base: float, alpha: float) -> Tensor:
    """Return q = clip(base·(1 + alpha·tanh(ρ - 1)), 0, 1) where ρ > 1, else 0; elementwise.

    >>> probability(torch.tensor([1.0, 1e9]), 0.4, 0.5)
    tensor([0.0000, 0.6000])
    """
    q = (base * (1 + alpha * torch.tanh(lead - 1))).clamp(0, 1)
    return torch.where(lead > 1, q, torch.zeros_like(q))


class Opm(Method):
    """On-the-fly prediction modulation."""

    name = "opm"
    title = "OPM"
    needs = (FUSED,)
    modalities = (2, None)
    after = ("fanoise",)
    neutral = {"base": 0.0}
    silent = {"execute": 0.0}

    @dataclass(frozen=True)
    class Params:
        """How often the leading modality is dropped."""

        base: float = knob(0.4, 0.0, 1.0, "Probability q₀ of a drop at the smallest lead; 0 is off.")
        alpha: float = knob(0.5, 0.0, 5.0, "Growth of the probability with the lead.")
        execute: float = knob(0.7, 0.0, 1.0, "Share of the batches that are treated.")
        rescale: bool = knob(True, help="Divide the features of a treated batch by the mean share that is kept.")
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
        comparable(self.title, problem.modalities, few.y, logits)
        return {}

    def features(self, features: dict[str, Tensor], view: View) -> dict[str, Tensor]:
        """Return modality to features (B, D), some rows of those that lead at zero."""
        p = self.params
        if p.base == 0.0 or view.step < p.start or 0 < p.stop <= view.step or not self._treated(view):
            return features
        names, device = tuple(features), view.theta.device
        q = torch.stack([self._probability(lead) for lead in ratios(features, view).values()])
        generator = view.rng.generator("opm", view.step, device)
        kept = torch.rand(len(view.batch), len(names), generator=generator, device=device) >= q
        if p.rescale:
            widths = torch.tensor([h[0].numel() for h in features.values()], dtype=q.dtype, device=device)
            factors = kept / (1 - (widths * q).sum() / widths.sum())
        else:
            factors = kept.to(q.dtype)
        return {name: features[name] * factors[:, m : m + 1] for m, name in enumerate(names)}

    def report(self, view: View) -> Iterator[Record]:
        """Yield lead, probability and what was dropped, by modality."""
        about = {"n": len(view.batch)}
        for name, lead in ratios(view.clean_features, view).items():
            lost = ((view.features[name] == 0) & (view.clean_features[name] != 0)).double().mean()
            how = "share of features at zero after all methods that were not"
            q = float(self._probability(lead))
            display = Display(panel="Lead ρ before the drop", place=1, ylog=True, levels={"balance": 1.0})
            yield Scalar(f"opm/lead/{name}", float(lead), **about, mode="score / smallest other score", display=display)
            display = Display(panel="Rows dropped", place=2, y="share of rows")
            mode = "probability of a drop in a treated batch"
            yield Scalar(
                f"opm/probability/{name}", q, **about, mode=mode, display=display | Display(label="q", role="expected")
            )
            yield Scalar(
                f"opm/dropped/{name}", float(lost), **about, mode=how, display=display | Display(label="dropped")
            )

    def _treated(self, view: View) -> bool:
        return float(torch.rand((), generator=view.rng.generator("opm/execute", view.step))) < self.params.execute

    def _probability(self, lead: Tensor) -> Tensor:
        return probability(lead, self.params.base, self.params.alpha)


def ratios(features: dict[str, Tensor], view: View) -> dict[str, Tensor]:
    """Return ρ_m of each modality (0-d) for features (B, D) at the view's theta, without graph."""
    problem, batch = view.problem, view.batch
    given = {name: h.detach() for name, h in features.items()}
    with torch.no_grad():
        _, logits = problem.objectives(view.theta, given, batch)
        single = alone(tuple(given), logits, given, fused_by(problem.objectives, view.theta, batch))
        return leads({name: confidence(z, batch.y) for name, z in single.items()})
