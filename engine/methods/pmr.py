"""PMR: the encoder of the slower modality is drawn to prototypes, the mean features of each class.

P_m (C, D) are class means of h_m, and -‖h_m - P_m,c‖ are a modality's logits without any head. With s_m the batch sum
of their true class's probability and ρ_m = s_m / min of the other scores, the term is α·β_m·CE(-‖h_m - P_m‖, y), summed
over modalities with ρ_m < 1: β = 1 (`switch`, the authors' code) or clip(1/ρ_m - 1, 0, 1) (`graded`, as we remember
the paper). So the slowest modality alone is helped, and the fused loss stays what it is.

Prototypes come from a pass over a share of an epoch's batches when the method is switched on, and again after each
epoch; each pass is blended with the last, `momentum` on the old. A class that no pass has met has no prototype: it gets
no probability, and its rows count neither in scores nor in the loss. One that a pass misses keeps its old prototype.

*Acts at*: losses, commit.

*Remembers*: the prototypes (C, D) of each modality, which classes have one, the length of an epoch, and its first step.

*Composes with*: everything. Features are taken clean, so dropped or noisy ones move no encoder through this term. The
term is the row `reg/pmr`: other methods leave it alone. In an accumulated batch each piece finds its own slower
modality. A step at the end of an epoch costs a forward pass over the share.

*Source*: Fan et al., CVPR 2023, and the authors' code. We differ: epochs end by a count of steps; the passes go over
the batches that come next; three modalities or more divide by the smallest other score. The paper's early entropy
term is left out, since its form could not be checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modalscape.engine.core.display import Display
from modalscape.engine.core.method import Method, knob
from modalscape.engine.core.needs import FUSED
from modalscape.engine.core.records import Record, Scalar
from modalscape.engine.core.step import View
from modalscape.engine.maths.modalities.imbalance import similarity
from modalscape.engine.maths.modalities.unimodal import comparable, confidence, leads


def prototypical(similar: Tensor, y: Tensor, known: Tensor) -> Tensor:
    """Return the mean cross-entropy (0-d, nats) of similarities (B, C) over rows with a known class y (B,); else 0."""
    counted = known[y]
    single = F.cross_entropy(similar, y.where(counted, known.to(y.dtype).argmax()), reduction="none")
    return single.where(counted, 0.0).sum() / counted.sum().clamp(min=1)


def blended(old: Tensor, known: Tensor, sums: Tensor, counts: Tensor, momentum: float) -> Tensor:
    """Return prototypes (C, D): old ones with `momentum`, the means sums/counts of a pass with the rest.

    `sums` (C, D) and `counts` (C,) are of the pass; a new class takes its mean, one that was missed keeps its own.
    """
    mean = sums / counts.clamp(min=1)[:, None]
    mixed = torch.where(known[:, None], momentum * old + (1 - momentum) * mean, mean)
    return torch.where((counts > 0)[:, None], mixed, old)


def strength(lead: Tensor, graded: bool) -> Tensor:
    """Return β for ρ: 1, or clip(1/ρ - 1, 0, 1) if `graded`, where ρ < 1; else 0. Elementwise.

    >>> strength(torch.tensor([0.4, 0.8, 1.0, 2.0]), True)
    tensor([1.0000, 0.2500, 0.0000, 0.0000])
    """
    full = (1 / lead - 1).clamp(0, 1) if graded else torch.ones_like(lead)
    return torch.where(lead < 1, full, torch.zeros_like(lead))


class Pmr(Method):
    """Prototypical modal rebalance."""

    name = "pmr"
    title = "PMR"
    needs = (FUSED,)
    modalities = (2, None)
    neutral = {"alpha": 0.0}

    @dataclass(frozen=True)
    class Params:
        """Strength and upkeep of the prototypes."""

        alpha: float = knob(1.0, 0.0, 10.0, "Weight of the term; 0 is off.")
        weights: str = knob("switch", help="All or nothing, or by the ratio.", choices=("switch", "graded"))
        momentum: float = knob(0.2, 0.0, 0.99, "Share of the old prototypes in the new.")
        share: float = knob(0.1, 0.001, 1.0, "Share of an epoch's batches that make prototypes; at least one.")
        every: int = knob(0, 0, 10_000_000, "Steps between two passes; 0 for an epoch.")
        start: int = knob(0, 0, 10_000_000, "First step of the term.")
        stop: int = knob(0, 0, 10_000_000, "Step at which the term ends; 0 for never.")

    def init(self, view: View) -> dict[str, Any]:
        """Return the state after a first pass at the view's theta.

        Raises:
            InputError: the problem has no classes, or one modality.
        """
        problem, few = view.problem, view.batch.rows(slice(0, 2))
        with torch.no_grad():
            features = problem.encode(view.theta, few)
            _, logits = problem.objectives(view.theta, features, few)
        comparable(self.title, problem.modalities, few.y, logits)
        classes = logits["fused"].shape[-1]
        rows = sum(len(batch) for batch in problem.held_out("train"))
        state = {
            "prototypes": {name: h.new_zeros(classes, h.shape[-1]) for name, h in features.items()},
            "known": torch.zeros(classes, dtype=torch.bool, device=view.theta.device),
            "epoch": max(rows // len(view.batch), 1),
            "first": view.step,
        }
        return self._passed(state, view, view.theta, view.step)

    def losses(self, view: View) -> Tensor:
        """Return the term (0-d), zero where no modality is behind."""
        p, similar = self.params, self._similarities(view)
        term = sum(h.sum() for h in view.clean_features.values()) * 0.0
        if p.alpha == 0.0 or view.step < p.start or 0 < p.stop <= view.step:
            return term
        with torch.no_grad():
            weights = {name: strength(lead, p.weights == "graded") for name, lead in self._leads(similar, view).items()}
        for name, z in similar.items():
            term = term + p.alpha * weights[name] * prototypical(z, view.batch.y, self.state["known"])
        return term

    def commit(self, view: View) -> dict[str, Any]:
        """Return the state, after the last step of an epoch with a pass at the theta that follows."""
        state, done = self.state, view.step + 1 - self.state["first"]
        if done % (self.params.every or state["epoch"]):
            return state
        return self._passed(state, view, view.theta + view.applied_update, view.step + 1)

    def report(self, view: View) -> Iterator[Record]:
        """Yield lead, weight and accuracy of the prototypes by modality, and how many classes have one."""
        known, y = self.state["known"], view.batch.y
        similar = self._similarities(view)
        for name, lead in self._leads(similar, view).items():
            right = float((similar[name].argmax(-1) == y).double().mean())
            beta = float(strength(lead, self.params.weights == "graded"))
            about = {"n": len(y)}
            display = Display(panel="Lead ρ of the prototypes", place=1, ylog=True, levels={"balance": 1.0})
            how = "prototype score / smallest other score"
            yield Scalar(f"pmr/lead/{name}", float(lead), **about, mode=how, display=display)
            display = Display(panel="Weight β of the prototype loss", place=2)
            how = "before α; 0 unless the modality is behind"
            yield Scalar(f"pmr/weight/{name}", beta, **about, mode=how, display=display)
            display = Display(panel="Accuracy of the nearest prototype", place=3)
            yield Scalar(f"pmr/accuracy/{name}", right, **about, mode="training batch", display=display)
        yield Scalar("pmr/classes", float(known.sum()), n=len(known), mode="classes with a prototype")

    def _similarities(self, view: View) -> dict[str, Tensor]:
        s = self.state
        return {name: similarity(h, s["prototypes"][name], s["known"]) for name, h in view.clean_features.items()}

    def _leads(self, similar: dict[str, Tensor], view: View) -> dict[str, Tensor]:
        counted = self.state["known"][view.batch.y]
        return leads({name: confidence(z[counted], view.batch.y[counted]) for name, z in similar.items()})

    def _passed(self, state: dict[str, Any], view: View, theta: Tensor, step: int) -> dict[str, Any]:
        """Return the state after a pass at theta (P,) over the batches from `step` on."""
        p, problem, known = self.params, view.problem, state["known"]
        sums = {name: torch.zeros_like(value) for name, value in state["prototypes"].items()}
        counts = torch.zeros(len(known), dtype=torch.int64, device=known.device)
        with torch.no_grad():
            for i in range(math.ceil(p.share * state["epoch"])):
                for piece in problem.batch(step + i).chunks(problem.micro):
                    hot = F.one_hot(piece.y, len(known))
                    counts += hot.sum(0)
                    for name, h in problem.encode(theta, piece).items():
                        sums[name] += hot.to(h.dtype).T @ h
            old = state["prototypes"]
            made = {name: blended(old[name], known, sums[name], counts, p.momentum) for name in old}
        return state | {"prototypes": made, "known": known | (counts > 0)}
