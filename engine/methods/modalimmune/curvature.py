"""Where ModalImmune looks at second derivatives: what its gate sees, and its hyper-gradients.

`p` are the method's knobs, `state` is what it remembers, see `memory`; `view` is that of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from modalscape.engine.maths.curvature.hypergradient import HyperGradient
from modalscape.engine.methods.modalimmune import collapse, memory
from modalscape.engine.methods.modalimmune.omission import Omission


def omission(p: Any, state: Mapping[str, Any], view: Any, m: int = -1) -> Omission:
    """Return what leaves modality `m` out, and others of a row with it; without `m`, any one and no other."""
    kept = memory.kept(p, m, view)
    return Omission(view.problem, memory.share(p, state), p.fill == "neutral", kept)


def piece(view: Any) -> Any:
    """Return the rows on which curvature is measured: the first piece of the batch."""
    return view.batch.chunks(view.problem.micro)[0]


def first(p: Any, state: Mapping[str, Any], view: Any, m: int) -> Omission:
    """Return the `omission` of modality `m` on the rows of the first piece."""
    return omission(p, state, view, m).rows(slice(0, len(piece(view))))


def collapsed(p: Any, state: Mapping[str, Any], z: Tensor, name: str, view: Any, twice: bool = False) -> tuple:
    """Return λ_eff, the pull, and κ times the ratio (0-d both) of one modality's features z (B, D)."""
    m, (weight, kappa) = view.problem.modalities.index(name), memory.weights(p, state)
    found = collapse.terms(z, view.rng.normal("modalimmune", view.step, z), p.target, twice, p.pull)
    limit = p.floor * state["reference"][m].item()
    richest = memory.richest(p, state, m)
    strength = collapse.strength(weight, z, found.ratio.item(), found.scale, p.adaptive, limit, richest)
    return strength, found.pull, kappa * found.ratio


def mask(p: Any, state: Mapping[str, Any], push: Tensor, name: str, view: Any) -> Tensor | float:
    """Return what the gate leaves of a destructive gradient (…, n): a factor, or one for each entry."""
    m, where = view.problem.modalities.index(name), view.problem.layout.slices[name]

    def along(direction: Tensor) -> float:
        return first(p, state, view, m).along(view.theta, name, piece(view), where, direction)

    return memory.mask(p, state, m, where, push, view.rate.lr, along)


def looked(p: Any, state: Mapping[str, Any], view: Any) -> dict[str, Any]:
    """Return the gate after a look at the curvature of an encoder, where one is due."""
    layout, names = view.problem.layout, view.problem.modalities
    m = memory.due(p, state, [name in layout.slices for name in names])
    if m < 0 or (view.losses is not None and not math.isfinite(view.losses["fused"])):
        return {}
    left, batch = first(p, state, view, m), piece(view)
    if p.gate == "literal":
        found = left.fisher(view.theta, names[m], batch, layout.slices[names[m]])
    else:
        generator = view.rng.generator("modalimmune/gate", view.step)
        found = left.curvature(view.theta, names[m], batch, layout.mask(names[m]), p.gate_steps, generator)
    return memory.seen(state, m, *found)


def hypergradient(p: Any, state: Mapping[str, Any], name: str, view: Any, collapses: bool = True) -> HyperGradient:
    """Return d(held-out loss)/d(log λ, log κ), and by logit ω where that is tuned, for the loss of this step.

    It is certified for the gate that let the collapse act; where none did (`collapses` is false) λ and κ have 0. The
    rows that judge lose modalities as those that train do: all present, and each one left out, others with it.
    """
    m, batch, draw = view.problem.modalities.index(name), piece(view), view.rng.generator("modalimmune/meta", view.step)
    rows, where = memory.judges(p, len(batch), view), view.problem.layout.slices.get(name, slice(0))
    left, kept = first(p, state, view, m), memory.judging(p, len(rows), view)
    view = view.having(batch=batch)
    terms = partial(collapsed, p, state, name=name, view=view, twice=p.matrix == "hessian")
    return left.hypergradient(
        view.theta,
        name,
        batch,
        lambda theta: replace(left, kept=None).held_out(theta, rows, kept),
        (lambda clean: terms(clean[name])) if collapses else None,
        partial(memory.softened, p, state, where),
        generator=draw,
        p=p,
        by_share=memory.by_share(p),
    )
