"""Full-batch descent sharpens its own landscape until the step is just too large, and then stays there.

Squared loss on one-hot targets of the digits with captions, a small tanh network, plain gradient descent. Two over the
learning rate is where a quadratic of that curvature would begin to diverge.

*Source*: Cohen et al., ICLR 2021, arXiv 2103.00065. Model, data and rates are ours.
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
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.0,
    "batch": 1200,
    "probe_rows": 1200,
    "hessian.parts": False,
    "hessian.steps": 30,
    "hessian.probes": 4,
    "evaluate": 50,
    "unimodal": "none",
}


def _arm(lr: float, steps: int, **others: Any) -> dict[str, Any]:
    settings = _SETTINGS | {"optimizer.lr": lr} | others
    return {
        "problem": "digits_captions",
        "methods": [],
        "probes": {"hessian": 50},
        "steps": steps,
        "device": "cpu",
        "settings": settings,
    }


class EdgeOfStability(Lesson):
    """λ_max climbs to 2/lr and rides there."""

    name = "edge_of_stability"
    place = 10
    title = "The edge of stability"
    words = (
        "Descent with the full batch has no noise at all, so one would expect it to settle in some valley. Watch λ_max "
        "on the Curvature page: it climbs until it meets 2/lr, the curvature at which the step is just too long, and "
        "stays there while the loss goes on falling. Start the arm with the shorter step: the ceiling moves up with "
        "2/lr, and λ_max follows. With small batches the climb ends lower."
    )
    claim = (
        "With lr 0.4, full-batch descent ends at a larger λ_max, close to 2/lr = 5, than descent with batches of 64."
    )
    arms = {"full_batch": _arm(0.4, 1500), "shorter_step": _arm(0.3, 2000), "small_batch": _arm(0.4, 1500, batch=64)}
    control = "small_batch"
    scalar = "hessian/lambda_max"
    number = "λ_max at the end"
    expect = "higher"
    show = ("curvature", "live")
