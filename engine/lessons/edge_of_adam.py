"""Adam climbs to an edge of its own, which the Hessian alone does not show.

Adam divides the gradient by a running size of its own, P, so what it meets is the curvature of P⁻¹H, and with β₁ = 0.9
its edge is 38/lr. On whole batches λ_max(P⁻¹H) climbs there and stays; with small batches it stays far below.

*Source*: Cohen et al., arXiv 2207.14484. Model, data and rates are ours; they are those of the lesson on plain descent.
"""

from __future__ import annotations

from typing import Any

from modalscape.engine.core.lesson import Lesson

_SETTINGS: dict[str, Any] = {
    "digits_captions.inputs": "flat",
    "objective": "squared_error",
    "activation": "tanh",
    "hidden": 64,
    "width": 32,
    "optimizer.name": "adam",
    "optimizer.momentum": 0.9,
    "batch": 1200,
    "probe_rows": 1200,
    "evaluate": 50,
    "unimodal": "none",
}


def _arm(lr: float, **others: Any) -> dict[str, Any]:
    return {
        "problem": "digits_captions",
        "methods": [],
        "probes": {"stability": 50},
        "steps": 1000,
        "device": "cpu",
        "settings": _SETTINGS | {"optimizer.lr": lr} | others,
    }


class EdgeOfAdam(Lesson):
    """λ_max(P⁻¹H) climbs to 38/lr and rides there."""

    name = "edge_of_adam"
    place = 25
    title = "The edge of Adam"
    words = (
        "Adam is stable where plain descent is not, since it divides each entry of the gradient by its own size. Look "
        "at Edge of stability on the Curvature page: the Hessian divided in the same way climbs until it meets 38/lr, "
        "and stays there, whatever the rate. With small batches it stays far below."
    )
    claim = "On whole batches Adam ends with λ_max(P⁻¹H) near 38/lr, at a higher ratio to it than with batches of 64."
    arms = {"full_batch": _arm(0.003), "longer_step": _arm(0.01), "small_batch": _arm(0.003, batch=64)}
    control = "small_batch"
    scalar = "stability/ratio"
    number = "λ_max(P⁻¹H) over 38/lr at the end"
    expect = "higher"
    show = ("curvature", "live")
